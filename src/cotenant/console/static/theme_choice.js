// The button that selects the theme: system, light, dark.

const ORDER = ["system", "light", "dark"];
const SAID = { system: "as the system has them", light: "light", dark: "dark" };

/** Set up the button; all tabs of this browser follow. */
export function startTheme() {
  const button = document.getElementById("theme");
  label(button);
  button.addEventListener("click", () => {
    const next = ORDER[(ORDER.indexOf(current()) + 1) % ORDER.length];
    try {
      localStorage.setItem("cotenant.theme", next);
    } catch {
      // Without storage it applies to this page only.
    }
    take(next, button);
  });
  addEventListener("storage", (event) => event.key === "cotenant.theme" && take(event.newValue, button));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", tell);
}

function current() {
  return document.documentElement.dataset.theme ?? "system";
}

function take(theme, button) {
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
  else delete document.documentElement.dataset.theme;
  label(button);
  tell();
}

function label(button) {
  const text = `Colours: ${SAID[current()]}`;
  button.setAttribute("aria-label", text);
  button.title = text;
}

function tell() {
  document.dispatchEvent(new CustomEvent("cotenant:theme"));
}
