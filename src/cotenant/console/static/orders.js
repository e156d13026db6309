// Buttons that send orders through htmx: CSRF token, confirmation and error.

import { csrfHeaders, goToLogin, readFault } from "./api.js";
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
  document.addEventListener("htmx:sendError", (event) =>
    showFault(event.detail.elt, "The daemon cannot be reached. Look whether it runs."),
  );
}

async function onConfirm(event) {
  const { elt, issueRequest } = event.detail;
  if (!elt.dataset.ask) return;
  event.preventDefault();
  if (await ask(elt.dataset.ask, elt.dataset.askText ?? "", elt.dataset.askYes ?? "Go on")) issueRequest(true);
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
