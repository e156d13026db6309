// One event stream per tab: it brings the parts of the page that changed on the server.

import { goToLogin } from "./api.js";
import { change, forget } from "./change.js";
import { morph } from "./morph.js";

const FIRST_WAIT_MS = 1000;
const LONGEST_WAIT_MS = 8000;
const SLICE_MS = 10;
const address = document.body.dataset.stream;
const banner = document.getElementById("connection");
let source = null;
let waitMs = FIRST_WAIT_MS;
let timer = 0;
let lost = false;
let turn = Promise.resolve();

/** Follow the page while it is visible: browsers allow few connections per host. */
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
  source.addEventListener("parts", (event) => {
    turn = turn.then(() => update(event.data)).catch(startOver);
  });
  source.addEventListener("login", goToLogin);
  source.addEventListener("trouble", (event) => say(JSON.parse(event.data).text));
  source.addEventListener("open", () => {
    waitMs = FIRST_WAIT_MS;
    lost = false;
    say("");
  });
  source.addEventListener("error", () => {
    lost = true;
    say("The connection to the daemon is lost: what is shown may be old. Trying again…");
    later();
  });
}

function later() {
  disconnect();
  timer = setTimeout(connect, waitMs);
  waitMs = Math.min(waitMs * 2, LONGEST_WAIT_MS);
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

// The first message of a stream has the whole page: it is processed in slices, so that keys and clicks are
// handled in between. Messages are processed one after the other.
async function update(text) {
  const start = performance.now();
  let [began, tookMs] = [start, 0];
  const { parts, changes, rows } = JSON.parse(text);
  const fresh = [];
  const made = new Map();
  const template = document.createElement("template");
  for (const [id, html] of parts) {
    if (performance.now() - began > SLICE_MS) {
      tookMs += end(began);
      await new Promise((resolve) => setTimeout(resolve));
      began = performance.now();
    }
    template.innerHTML = html;
    const wanted = template.content.firstElementChild;
    const there = document.getElementById(id);
    if (there) {
      forget(there);
      morph(there, wanted, fresh);
    } else made.set(id, wanted);
  }
  const strange = changes.filter(([id, count, updates]) => !change(document.getElementById(id), count, updates));
  for (const [id, order] of Object.entries(rows)) arrange(document.getElementById(id), order, made, fresh);
  for (const element of fresh) if (element.isConnected) window.htmx?.process(element);
  document.dispatchEvent(new CustomEvent("cotenant:updated"));
  tookMs += end(began);
  performance.measure("cotenant:update", { start, duration: tookMs });
  if (strange.length) startOver();
}

// A new stream starts with the whole page.
function startOver(error) {
  if (error) reportError(error);
  if (source) later();
}

function end(began) {
  return performance.measure("cotenant:slice", { start: began }).duration;
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
