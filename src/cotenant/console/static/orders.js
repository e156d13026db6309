// Buttons that send orders through htmx: CSRF token, confirmation and error.

import { api, csrfHeaders, goToLogin, readFault } from "./api.js";
import { clearFaults, showFault } from "./faults.js";

/** Set up the buttons. */
export function startOrders() {
  document.addEventListener("htmx:configRequest", (event) => Object.assign(event.detail.headers, csrfHeaders));
  document.addEventListener("htmx:confirm", onConfirm);
  document.addEventListener("htmx:beforeRequest", (event) => {
    clearFaults(event.detail.elt);
    event.detail.elt.setAttribute("aria-busy", "true");
  });
  document.addEventListener("htmx:afterRequest", (event) => event.detail.elt.removeAttribute("aria-busy"));
  document.addEventListener("htmx:responseError", (event) => {
    const { xhr, elt } = event.detail;
    if (xhr.status === 401) goToLogin();
    else showFault(elt, readFault(xhr.status, xhr.responseText).message);
  });
  document.addEventListener("keydown", (event) => {
    const menu = event.key === "Escape" && event.target.closest?.("details.menu[open]");
    if (!menu) return;
    menu.open = false;
    menu.querySelector("summary").focus();
  });
  document.addEventListener("htmx:sendError", (event) =>
    showFault(event.detail.elt, "The daemon cannot be reached. Look whether it runs."),
  );
}

async function onConfirm(event) {
  const { elt, issueRequest } = event.detail;
  if (!elt.dataset.ask) return;
  event.preventDefault();
  const text = [elt.dataset.askText, elt.dataset.preview && (await preview(elt))];
  if (text.includes(null)) return;
  elt.closest("details.menu")?.removeAttribute("open");
  if (await ask(elt.dataset.ask, text.filter(Boolean).join("\n\n"), elt.dataset.askYes ?? "Go on")) issueRequest(true);
}

// What an order would do, as the API says; null if it is refused, which is shown.
async function preview(elt) {
  clearFaults(elt);
  try {
    const found = await api("POST", elt.dataset.preview);
    return (found.models ?? [found]).map(sentences).join("\n\n") || "No model is there.";
  } catch (error) {
    showFault(elt, error.message);
    return null;
  }
}

function sentences(plan) {
  const gib = (bytes) => (bytes / 2 ** 30).toFixed(1);
  const bytes = plan.devices.map(
    (d) => `GPU ${d.index}: ${gib(d.now_bytes)} GiB now, ${gib(d.during_bytes)} during, ${gib(d.after_bytes)} after`,
  );
  const takes = plan.expected_s === null ? "" : `; about ${Math.ceil(plan.expected_s)} s`;
  return [`${plan.model} ${plan.text}${takes}.`, ...(plan.target.length ? bytes : [])].join("\n");
}

/** Ask for confirmation; resolves to the answer and restores the focus. */
export function ask(title, text, yes) {
  const dialog = document.getElementById("ask");
  document.getElementById("ask-title").textContent = title;
  document.getElementById("ask-text").textContent = text;
  document.getElementById("ask-yes").textContent = yes;
  dialog.returnValue = "no";
  dialog.showModal();
  return new Promise((resolve) =>
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true }),
  );
}
