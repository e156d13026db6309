// Changes one tree into another, touching only what differs, to keep focus, selection, hover and scroll.
//
//   data-own      owned by a script: neither changed nor removed
//   data-client   attributes set by scripts, unknown to the server
//   id, data-key  identify children

const HX = /^hx-/;

/** Change `from` into `to`; new elements, and those whose htmx attributes changed, are added to `fresh`. */
export function morph(from, to, fresh) {
  if (from.nodeType !== Node.ELEMENT_NODE) {
    if (from.nodeValue !== to.nodeValue) from.nodeValue = to.nodeValue;
    return;
  }
  if (from.hasAttribute("data-own") || from.isEqualNode(to)) return;
  if (morphAttributes(from, to)) fresh.push(from);
  morphChildren(from, to, fresh);
}

function morphAttributes(from, to) {
  const kept = from.getAttribute("data-client")?.split(" ") ?? [];
  let rebound = false;
  for (const { name, value } of to.attributes) {
    if (from.getAttribute(name) === value || kept.includes(name)) continue;
    from.setAttribute(name, value);
    rebound ||= HX.test(name);
  }
  for (const name of from.getAttributeNames()) {
    if (to.hasAttribute(name) || kept.includes(name)) continue;
    from.removeAttribute(name);
    rebound ||= HX.test(name);
  }
  if (from.localName === "progress" && to.hasAttribute("value")) from.value = to.value;
  return rebound;
}

function morphChildren(from, to, fresh) {
  const keyed = new Map();
  for (let child = from.firstElementChild; child; child = child.nextElementSibling) {
    const key = keyOf(child);
    if (key) keyed.set(key, child);
  }
  let next = skipOwn(from.firstChild);
  for (const wanted of [...to.childNodes]) {
    const key = keyOf(wanted);
    let found = key ? keyed.get(key) : null;
    if (!key && next && !keyOf(next) && next.nodeName === wanted.nodeName) found = next;
    if (found && found.nodeName === wanted.nodeName) {
      if (found === next) next = skipOwn(next.nextSibling);
      else from.insertBefore(found, next);
      morph(found, wanted, fresh);
    } else {
      from.insertBefore(wanted, next);
      if (wanted.nodeType === Node.ELEMENT_NODE) fresh.push(wanted);
    }
  }
  while (next) {
    const after = skipOwn(next.nextSibling);
    next.remove();
    next = after;
  }
}

function keyOf(node) {
  return node.nodeType === Node.ELEMENT_NODE ? node.id || node.getAttribute("data-key") : undefined;
}

function skipOwn(node) {
  // Elements added by scripts stay, after those of the server.
  while (node?.nodeType === Node.ELEMENT_NODE && node.hasAttribute("data-own") && node.hasAttribute("data-fault"))
    node = node.nextSibling;
  return node;
}
