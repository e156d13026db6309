// Script of every page: live updates, confirmations and errors.

import { startFilters } from "./filters.js";
import { startLive } from "./live.js";
import { startOrders } from "./orders.js";
import { startTips } from "./tips.js";
import { startTheme } from "./theme_choice.js";

startTheme();
startTips();
startFilters();
startOrders();
startLive();

document.addEventListener("click", async (event) => {
  const button = event.target.closest("[data-copy]");
  if (!button) return;
  const text = button.dataset.copy;
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
  } catch {
    // The clipboard is not available over plain HTTP from another machine: select the text instead.
    const code = button.parentElement.querySelector("code");
    if (code) getSelection().selectAllChildren(code);
    button.textContent = "Selected";
  }
  setTimeout(() => (button.textContent = "Copy"), 1500);
});
