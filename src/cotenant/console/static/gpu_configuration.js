// Script of the GPU configuration page: it reacts to changes made elsewhere.

const form = () => document.getElementById("gpu-form");
let wasRunning = false;

/** Show that the configuration was saved elsewhere, and disable Apply while an apply is running. */
function look() {
  const saved = Number(document.getElementById("gpu-saved")?.dataset.number ?? 0);
  const elsewhere = document.getElementById("gpu-elsewhere");
  elsewhere.querySelector("[data-number]").textContent = saved;
  elsewhere.hidden = saved <= Number(form().dataset.base);
  const running = document.getElementById("gpu-status")?.hasAttribute("data-running") ?? false;
  document.getElementById("gpu-apply").disabled = running;
  document.getElementById("gpu-running").hidden = !running;
  const ended = wasRunning && !running;
  wasRunning = running;
  // The applied configuration has changed: render the differences again, keeping typed values.
  if (ended) window.htmx.trigger(form(), "change");
}

const values = () => new URLSearchParams(new FormData(form())).toString();
let sent = "";
document.addEventListener("htmx:beforeRequest", (event) => {
  if (event.detail.elt === form()) sent = values();
});
// What was chosen, saved or applied while the form was under way is not in its reply.
document.addEventListener("htmx:beforeSwap", (event) => {
  const { elt } = event.detail.requestConfig;
  if (elt.id === "gpu-form" && (elt !== form() || values() !== sent)) event.detail.shouldSwap = false;
});

let previewed = false;
document.addEventListener("toggle", (event) => {
  if (event.target.id === "gpu-diff") previewed = event.target.open;
}, true);
document.addEventListener("htmx:afterSwap", () => {
  const diff = document.getElementById("gpu-diff");
  if (diff) diff.open = previewed;
  look();
});
document.addEventListener("htmx:afterRequest", look);
document.addEventListener("cotenant:updated", look);
look();
