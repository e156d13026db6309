// Runs before anything is drawn, so that a chosen colour scheme does not flash.
try {
  const theme = localStorage.getItem("cotenant.theme");
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
} catch {
  // Without storage, the colours of the system are used.
}
