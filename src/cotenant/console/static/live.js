// One stream a tab: pieces of the page that changed on the server take the place of the old ones.

import { goToLogin } from "./api.js";
import { morph } from "./morph.js";
import { patch } from "./patch.js";

const FIRST_WAIT_MS = 1000;
const LONGEST_WAIT_MS = 8000;
const address = document.body.dataset.stream;
const banner = document.getElementById("connection");
let source = null;
let waitMs = FIRST_WAIT_MS;
let timer = 0;
let lost = false;

/** Follow the page, while anybody sees it: browsers allow few connections to one host. */
export function startLive() {
  if (!address) return;
  document.addEventListener("visibilitychange", () => (document.hidden ? disconnect() : connect()));
  addEventListener("pagehide", disconnect);
  addEventListener("pageshow", connect);
  connect();
}

function connect() {
  if (source || document.hidden) return;
  clearTimeout(timer);
  source = new EventSource(address);
  source.addEventListener("parts", (event) => update(JSON.parse(event.data)));
  source.addEventListener("login", goToLogin);
  source.addEventListener("trouble", (event) => say(JSON.parse(event.data).text));
  source.addEventListener("open", () => {
    waitMs = FIRST_WAIT_MS;
    lost = false;
    say("");
  });
  source.addEventListener("error", () => {
    disconnect();
    lost = true;
    say("The connection to the daemon is lost: what is shown may be old. Trying again…");
    timer = setTimeout(connect, waitMs);
    waitMs = Math.min(waitMs * 2, LONGEST_WAIT_MS);
  });
}

function disconnect() {
  clearTimeout(timer);
  source?.close();
  source = null;
}

function say(text) {
  if (banner.textContent !== text) banner.textContent = text;
  banner.hidden = !text;
  document.body.classList.toggle("stale", lost);
}

function update({ parts, rows }) {
  performance.mark("cotenant:update");
  const fresh = [];
  const made = new Map();
  const template = document.createElement("template");
  for (const [id, html] of parts) {
    const there = document.getElementById(id);
    if (patch(there, id, html)) continue;
    template.innerHTML = html;
    const wanted = template.content.firstElementChild;
    if (there) morph(there, wanted, fresh);
    else made.set(id, wanted);
  }
  for (const [id, order] of Object.entries(rows)) arrange(document.getElementById(id), order, made, fresh);
  for (const element of fresh) if (element.isConnected) window.htmx?.process(element);
  document.dispatchEvent(new CustomEvent("cotenant:updated"));
  performance.measure("cotenant:update", "cotenant:update");
}

function arrange(container, order, made, fresh) {
  if (!container) return;
  const wanted = new Set(order);
  for (const child of [...container.childNodes])
    if (!wanted.has(child.id) && !child.dataset?.own) child.remove();
  let next = container.firstElementChild;
  for (const id of order) {
    const row = made.get(id) ?? document.getElementById(id);
    if (!row) continue;
    if (row === next) {
      next = next.nextElementSibling;
      continue;
    }
    container.insertBefore(row, next);
    if (made.has(id)) fresh.push(row);
  }
}
