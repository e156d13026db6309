// Tooltips for the element under the pointer or with the focus: `data-tip`.

const tip = document.getElementById("tip");
let target = null;

/** Set up tooltips, and the arrow keys that move along a bar. */
export function startTips() {
  document.addEventListener("pointerover", (event) => show(event.target.closest?.("[data-tip]")));
  document.addEventListener("focusin", (event) => show(event.target.closest?.("[data-tip]")));
  document.addEventListener("focusout", () => show(null));
  document.addEventListener("scroll", () => show(null), { passive: true, capture: true });
  document.addEventListener("keydown", onKey);
  document.addEventListener("cotenant:updated", () => {
    if (target && !target.isConnected) show(null);
    else if (target) write(target.dataset.tip);
  });
}

/** Show a tooltip next to an element while it is under the pointer or has the focus; null hides it. */
export function show(element) {
  if (element === target) return;
  target?.classList.remove("active");
  target = element;
  tip.hidden = !element;
  if (!element) return;
  element.classList.add("active");
  write(element.dataset.tip);
  placeAt(element.getBoundingClientRect());
}

/** Show a tooltip at a position of the window; null hides it. */
export function showAt(text, rect) {
  show(null);
  tip.hidden = text === null;
  if (text === null) return;
  write(text);
  placeAt(rect);
}

function write(text) {
  if (tip.textContent !== text) tip.textContent = text;
}

function placeAt(rect) {
  const { width, height } = tip.getBoundingClientRect();
  const left = Math.min(Math.max(8, rect.left + rect.width / 2 - width / 2), innerWidth - width - 8);
  const above = rect.top - height - 8;
  tip.style.left = `${left}px`;
  tip.style.top = `${above > 8 ? above : rect.bottom + 8}px`;
}

function onKey(event) {
  if (event.key === "Escape") show(null);
  const bar = event.target.closest?.("[data-bar]");
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (!bar || !step) return;
  event.preventDefault();
  const parts = [...bar.querySelectorAll("[data-tip]")];
  const at = parts.indexOf(target);
  show(parts[at < 0 ? (step > 0 ? 0 : parts.length - 1) : (at + step + parts.length) % parts.length]);
}
