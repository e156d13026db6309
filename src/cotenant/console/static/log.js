// A live log of an engine, with a search.

import { ApiError, request } from "./api.js";

const TAIL = 500;
const MOST_LINES = 5000;
const AGAIN_MS = 3000;

/** Follow the log of a panel while it is visible. */
export function startLog(panel) {
  const lines = panel.querySelector("[data-lines]");
  const state = panel.querySelector("[data-log-state]");
  const field = panel.querySelector("[data-find]");
  const found = panel.querySelector("[data-found]");
  let leaving = null;

  field.addEventListener("input", () => narrow([...lines.children]));
  document.addEventListener("visibilitychange", () => (document.hidden ? leaving?.abort() : follow()));
  follow();

  async function follow() {
    if (leaving || document.hidden) return;
    if (!document.getElementById("model-engine")?.hasAttribute("data-has-log")) {
      say("There is none yet: no engine was started for it.");
      document.addEventListener("cotenant:updated", follow, { once: true });
      return;
    }
    leaving = new AbortController();
    try {
      const path = `${panel.dataset.log}?tail=${TAIL}&follow=1`;
      const response = await request("GET", path, undefined, { signal: leaving.signal });
      lines.replaceChildren();
      say("Following.");
      const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
      let rest = "";
      for (let piece = await reader.read(); !piece.done; piece = await reader.read()) {
        const texts = (rest + piece.value).split("\n");
        rest = texts.pop();
        add(texts);
      }
      say("The log has ended. Trying again…");
    } catch (error) {
      if (error.name !== "AbortError")
        say(error instanceof ApiError && error.status === 404 ? error.message : "The log cannot be read. Trying again…");
    }
    leaving = null;
    setTimeout(follow, AGAIN_MS);
  }

  function say(text) {
    if (state.textContent !== text) state.textContent = text;
  }

  function add(texts) {
    const atEnd = lines.scrollHeight - lines.scrollTop - lines.clientHeight < 24;
    const fresh = texts.map((text) => {
      const line = document.createElement("span");
      line.textContent = `${text}\n`;
      return line;
    });
    narrow(fresh);
    lines.append(...fresh);
    while (lines.childElementCount > MOST_LINES) lines.firstElementChild.remove();
    if (atEnd) lines.scrollTop = lines.scrollHeight;
    count();
  }

  function narrow(some) {
    const wanted = field.value.toLowerCase();
    for (const line of some) line.hidden = wanted !== "" && !line.textContent.toLowerCase().includes(wanted);
    count();
  }

  function count() {
    const all = lines.childElementCount;
    const hidden = field.value ? lines.querySelectorAll("[hidden]").length : 0;
    found.textContent = field.value ? `${all - hidden} of ${all} lines` : "";
  }
}
