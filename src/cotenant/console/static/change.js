// Changes text and attributes of an element whose structure is unchanged: no HTML is parsed or compared.

const known = new WeakMap();

/** Change nodes by number; returns false, without a change, if the element has another number of nodes. */
export function change(element, count, changes) {
  if (!element) return true;
  const nodes = known.get(element) ?? nodesOf(element);
  if (nodes.length !== count) return false;
  known.set(element, nodes);
  for (const [number, what] of changes) {
    const node = nodes[number];
    if (typeof what === "string") node.nodeValue = what;
    else for (const name in what) set(node, name, what[name]);
  }
  return true;
}

/** Forget the numbering of an element's nodes, because its structure has changed. */
export function forget(element) {
  known.delete(element);
}

function set(element, name, value) {
  if (value === null) element.removeAttribute(name);
  else element.setAttribute(name, value);
}

// Nodes added by scripts are not counted by the server.
function nodesOf(element) {
  const walker = document.createTreeWalker(element, NodeFilter.SHOW_ELEMENT | NodeFilter.SHOW_TEXT);
  const nodes = [element];
  let scripts = null;
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    if (scripts?.contains(node)) continue;
    if (node.nodeType === Node.ELEMENT_NODE && node.hasAttribute("data-own")) scripts = node;
    if (scripts !== node || !node.hasAttribute("data-fault")) nodes.push(node);
  }
  return nodes;
}
