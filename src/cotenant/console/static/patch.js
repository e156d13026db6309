// Changes an element by the text of its HTML, where only words and values differ from what came before: a table
// of hundreds of rows is not parsed again because its numbers have changed.

const ATTRIBUTE = /([^\s"=<>/]+)(?:="([^"]*)")?/g;
const ENTITY = /&(?:amp|lt|gt|quot|#34|#39);/g;
const MEANT = { "&amp;": "&", "&lt;": "<", "&gt;": ">", "&quot;": '"', "&#34;": '"', "&#39;": "'" };
const REBINDS = /^(hx-|id$|data-key$|data-own$)/;
const known = new Map();

/** Make the element with this id as its HTML says; false, having changed nothing, if that takes more. */
export function patch(element, id, html) {
  const before = known.get(id);
  const tokens = tokensOf(html.trim(), before ?? []);
  known.set(id, tokens);
  if (!element || before?.length !== tokens.length) return false;
  const changes = [];
  let last = tokens.length - 1;
  while (last > 0 && tokens[last] === before[last]) last--;
  const filter = element.querySelector("[data-own]") ? ours : null;
  const walker = document.createTreeWalker(element, NodeFilter.SHOW_ELEMENT | NodeFilter.SHOW_TEXT, filter);
  let node = element;
  // Before the first tag there is nothing, and behind the last change nothing to do.
  for (let at = 1; at <= last; at++) {
    const token = tokens[at];
    const isTag = at % 2 === 1;
    if (!token || (isTag && token[1] === "/")) {
      if (token !== before[at]) return false;
      continue;
    }
    if (at > 1) node = walker.nextNode();
    if (!node || (node.nodeType === Node.ELEMENT_NODE) !== isTag) return false;
    if (token === before[at]) continue;
    if (isTag ? !compare(node, before[at], token, changes) : !addText(node, token, changes)) return false;
  }
  for (const [target, name, value] of changes) {
    if (name === null) target.nodeValue = value;
    else if (value === null) target.removeAttribute(name);
    else target.setAttribute(name, value);
  }
  return true;
}

/** Return texts and tags in turns, a text first; those that are as before are the very strings of before. */
function tokensOf(html, before) {
  const tokens = [];
  for (let at = 0; at < html.length; ) {
    const isTag = tokens.length % 2 === 1;
    const old = before[tokens.length];
    let token = old;
    if (old === undefined || !html.startsWith(old, at) || !(isTag || html[at + old.length] === "<")) {
      const end = isTag ? html.indexOf(">", at) + 1 : html.indexOf("<", at);
      token = html.slice(at, end < at || (isTag && end === 0) ? html.length : end);
    }
    tokens.push(token);
    at += token.length;
  }
  return tokens;
}

function ours(node) {
  if (node.parentNode.nodeType === Node.ELEMENT_NODE && node.parentNode.hasAttribute("data-own"))
    return NodeFilter.FILTER_REJECT;
  return NodeFilter.FILTER_ACCEPT;
}

function addText(node, token, changes) {
  const text = meant(token);
  if (text === null) return false;
  changes.push([node, null, text]);
  return true;
}

function compare(element, before, after, changes) {
  const [name, ...former] = attributes(before);
  const [wantedName, ...wanted] = attributes(after);
  if (name[0] !== wantedName[0] || element.localName !== name[0].toLowerCase()) return false;
  const had = new Map(former);
  const kept = new Map(wanted).get("data-client")?.split(" ") ?? [];
  for (const [key, value] of wanted) {
    const is = had.get(key);
    had.delete(key);
    if (is === value || kept.includes(key)) continue;
    const text = meant(value);
    if (REBINDS.test(key) || text === null) return false;
    changes.push([element, key, text]);
  }
  for (const key of had.keys()) {
    if (REBINDS.test(key)) return false;
    if (!kept.includes(key)) changes.push([element, key, null]);
  }
  return true;
}

function attributes(tag) {
  return [...tag.matchAll(ATTRIBUTE)].map(([, name, value]) => [name, value ?? ""]);
}

/** Return what a text of HTML means; null if it takes a parser to know. */
function meant(text) {
  if (!text.includes("&")) return text;
  const plain = text.replace(ENTITY, "");
  return plain.includes("&") ? null : text.replace(ENTITY, (entity) => MEANT[entity]);
}
