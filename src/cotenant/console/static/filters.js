// Search and filters over the rows of a list, kept in the address so that they survive a reload.

const lists = [];

/** Set up `[data-filters=ID]`, whose fields filter the children of `#ID`. */
export function startFilters() {
  for (const bar of document.querySelectorAll("[data-filters]")) {
    const rows = document.getElementById(bar.dataset.filters);
    if (!rows) continue;
    const list = { bar, rows, none: document.querySelector(`[data-none="${bar.dataset.filters}"]`) };
    lists.push(list);
    bar.addEventListener("input", () => {
      remember(bar);
      narrow(list);
    });
    list.none?.querySelector("[data-clear]")?.addEventListener("click", () => {
      for (const field of bar.querySelectorAll("[data-filter]")) field.value = "";
      remember(bar);
      narrow(list);
      bar.querySelector("[data-filter]").focus();
    });
    narrow(list);
  }
  document.addEventListener("cotenant:updated", () => lists.forEach(narrow));
}

function remember(bar) {
  const url = new URL(location.href);
  for (const field of bar.querySelectorAll("[data-filter]")) {
    if (field.value) url.searchParams.set(field.dataset.filter, field.value);
    else url.searchParams.delete(field.dataset.filter);
  }
  history.replaceState(null, "", url);
}

function narrow({ bar, rows, none }) {
  const words = bar.querySelector('[data-filter="q"]')?.value.trim().toLowerCase().split(/\s+/) ?? [];
  const show = bar.querySelector('[data-filter="show"]')?.value ?? "";
  let shown = 0;
  for (const row of rows.children) {
    const fits =
      words.every((word) => row.dataset.q.includes(word)) &&
      (!show || row.dataset.show.split(" ").includes(show));
    if (row.hidden === fits) row.hidden = !fits;
    shown += fits;
  }
  const all = rows.children.length;
  const count = bar.querySelector("[data-count]");
  const text = shown === all ? "" : `${shown} of ${all}`;
  if (count && count.textContent !== text) count.textContent = text;
  if (none) none.hidden = shown > 0 || all === 0;
}
