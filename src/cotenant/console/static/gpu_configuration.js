// What the page of GPU configuration does beside its form: it notices what others do.

const form = () => document.getElementById("gpu-form");
let wasRunning = false;

/** Say that another browser or terminal has saved, and hold applies back while one is going on. */
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
  // What runs is another than before: the differences are told anew, and what was typed stays.
  if (ended) window.htmx.trigger(form(), "change");
}

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
