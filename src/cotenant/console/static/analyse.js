// Script of the page Analyse: sliders, remedies, and headers of files on this computer.

import { ApiError, csrfHeaders, goToLogin, readFault } from "./api.js";

const FIRST_BYTES = 16 * 1024 * 1024;
const form = document.getElementById("analyse-form");
const analysis = document.getElementById("analysis");
const field = (name) => document.getElementById(name);
let files = [];
let sending = null;

/** Plan again; `fresh` with the model's own settings, which then fill the form. */
function plan(fresh = false) {
  if (fresh) field("fresh").value = "1";
  window.htmx.trigger(form, "plan");
}

// The fields of the form.

function show() {
  for (const name of ["source", "devices"]) {
    const chosen = form.elements[name].value;
    for (const block of form.querySelectorAll(`[data-${name}]`)) block.hidden = block.dataset[name] !== chosen;
  }
  form.querySelector("[data-layers]").hidden = field("layers").value !== "number";
}

// A slider and its field have the same value.

function slide(range) {
  const value = Number(range.value);
  field(range.dataset.for).value = range.dataset.scale === "log" ? Math.round(2 ** value / 256) * 256 : value;
}

function follow(input) {
  const range = form.querySelector(`[data-for="${input.id}"]`);
  const value = Number(input.value.replaceAll(",", ""));
  if (range && value >= 0) range.value = range.dataset.scale === "log" ? Math.log2(Math.max(1, value)) : value;
}

function fill(name, value) {
  const input = field(name);
  if (!input) return;
  if (input.type === "checkbox") input.checked = Boolean(value);
  else input.value = value;
  follow(input);
}

function fillAll(found) {
  const { recipe, n_layers: layers } = found;
  for (const [name, value] of Object.entries(recipe)) if (name !== "n_gpu_layers") fill(name, value);
  for (const name of ["reserve_mib", "min_budget_mib", "overhead_mib"]) fill(name, found[name]);
  fillLayers(recipe.n_gpu_layers, layers + 1);
}

function fillLayers(value, most) {
  if (most !== undefined) field("layers-range").max = most;
  const counted = typeof value === "number";
  field("layers").value = counted ? "number" : value;
  if (counted) fill("n_gpu_layers", value);
}

// A file on this computer: only its header is sent.

async function send(file, size) {
  const query = new URLSearchParams({ name: file.name, size: file.size });
  const response = await fetch(`/api/plan/headers?${query}`, {
    method: "POST",
    headers: { "Content-Type": "application/octet-stream", ...csrfHeaders },
    body: file.slice(0, size),
    signal: sending.signal,
  });
  if (response.ok) return response.json();
  const needed = Number(response.headers.get("X-Cotenant-Needed-Bytes"));
  const fault = readFault(response.status, await response.text());
  if (response.status === 416 && needed > size) return send(file, needed);
  if (response.status === 401) goToLogin();
  throw fault;
}

async function read() {
  sending?.abort();
  sending = new AbortController();
  const mine = sending;
  field("headers").value = "";
  field("fault-source").replaceChildren();
  say(`Reading ${files.length === 1 ? files[0].name : `${files.length} headers`}…`);
  try {
    const found = [];
    for (const file of files) found.push(await send(file, Math.min(file.size, FIRST_BYTES)));
    if (mine !== sending) return;
    field("headers").value = found.map((each) => each.id).join(" ");
    say(files.map((file) => file.name).join(", "));
    plan(true);
  } catch (error) {
    if (error.name === "AbortError") return;
    say("");
    const known = error instanceof ApiError;
    complain(known ? error.message : "The daemon cannot be reached. Look whether it runs.");
    plan();
  }
}

function say(text) {
  field("file-said").textContent = text;
}

function complain(text) {
  const note = document.createElement("p");
  note.className = "fault";
  note.setAttribute("role", "alert");
  note.textContent = text;
  field("file-said").replaceChildren(note);
}

// Event handlers.

form.addEventListener("input", (event) => {
  const { target } = event;
  if (target.dataset.for) slide(target);
  else follow(target);
  if (target.name === "path") field("fresh").value = "1";
});
form.addEventListener("change", (event) => {
  const { target } = event;
  if (target.name === "source" || target.name === "model") field("fresh").value = "1";
  if (target.dataset.twin) field(target.dataset.twin).value = target.value;
  if (target === field("file") && target.files.length) {
    files = [...target.files];
    read();
  }
  show();
});
document.addEventListener("click", (event) => {
  const set = event.target.closest("[data-set]");
  if (set) fill(set.dataset.set, set.dataset.value);
  const remedy = event.target.closest("[data-changes]");
  if (remedy) {
    const { n_gpu_layers: layers, ...changes } = JSON.parse(remedy.dataset.changes);
    for (const [name, value] of Object.entries(changes)) fill(name, value);
    if (layers !== undefined) fillLayers(layers);
    show();
  }
  if (set || remedy) plan();
});
field("reset").addEventListener("click", () => plan(true));
document.addEventListener("htmx:beforeSwap", (event) => {
  if (event.detail.target === analysis) analysis.removeAttribute("aria-busy");
});
document.addEventListener("htmx:afterSwap", () => {
  const outcome = analysis.querySelector("[data-plan]");
  if (outcome) {
    const found = JSON.parse(outcome.dataset.plan);
    if (field("fresh").value === "1") fillAll(found);
    else field("layers-range").max = found.n_layers + 1;
    field("fresh").value = "0";
    show();
  } else if (analysis.querySelector("[data-header-gone]") && files.length) {
    read();
  }
});
show();
