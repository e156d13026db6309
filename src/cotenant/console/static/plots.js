// Plots of the last ten minutes: `data-plot` is the quantity, `data-of` the device or model.

import { api } from "./api.js";
import { showAt } from "./tips.js";

const GIB = 2 ** 30;
const SPAN_S = 600;
const plots = new Map();
let history = null;
let telling = null;

const sizes = new ResizeObserver((entries) => {
  for (const { target, contentRect } of entries) {
    const plot = plots.get(target);
    if (plot && contentRect.width) plot.setSize({ width: contentRect.width, height: target.clientHeight });
  }
});

function style(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

function times() {
  const end = Date.parse(history.end) / 1000;
  return Array.from({ length: history.points }, (_, at) => end - (history.points - 1 - at) * history.step_s);
}

const KINDS = {
  device: {
    find: (of) => history.devices.find((device) => device.uuid === of),
    curves: (device) => [device.used_bytes.map((b) => (b === null ? null : b / GIB)), device.utilisation_percent],
    series: () => [
      { stroke: style("--accent"), fill: style("--accent-faint"), width: 1.5, scale: "y", said: " GiB", digits: 1 },
      { stroke: style("--busy"), width: 1, scale: "%", said: " % busy", digits: 0 },
    ],
    top: (device) => (device.total_bytes ?? GIB) / GIB,
  },
};
for (const [name, said, digits] of [
  ["requests_per_s", " requests/s", 2],
  ["first_token_s", " s", 2],
  ["tokens_per_s", " tokens/s", 1],
]) {
  KINDS[name] = {
    find: (of) => history.models.find((model) => model.name === of),
    curves: (model) => [model[name]],
    series: () => [
      { stroke: style("--accent"), fill: style("--accent-faint"), width: 1.5, scale: "y", said, digits, dots: true },
    ],
  };
}

function options(kind, found, element) {
  const tall = element.classList.contains("tall");
  const faint = style("--line");
  const axis = {
    show: tall,
    stroke: style("--dim"),
    grid: { stroke: faint, width: 1 },
    ticks: { show: false },
    font: "11px system-ui",
  };
  return {
    width: element.clientWidth,
    height: element.clientHeight,
    padding: tall ? [8, 20, 0, 0] : [2, 0, 2, 0],
    legend: { show: false },
    cursor: { y: false, points: { size: 5 }, drag: { x: false, y: false } },
    scales: {
      x: { time: true, range: (_, low, high) => [high - SPAN_S, high] },
      y: { range: (_, low, high) => [0, kind.top?.(found) ?? Math.max(high ?? 0, 0.1) * 1.1] },
      "%": { range: [0, 100] },
    },
    axes: [
      { ...axis, space: 80, size: 24, values: (_, splits) => splits.map((at) => clock(at).slice(0, 5)) },
      { ...axis, space: 28, size: 44 },
    ],
    series: [
      {},
      ...kind.series().map(({ said, digits, dots, ...each }) => ({
        ...each,
        points: { show: Boolean(dots), size: 3 },
        spanGaps: false,
        value: (_, value) => (value === null || value === undefined ? null : value.toFixed(digits) + said),
      })),
    ],
    hooks: { setCursor: [tell] },
  };
}

function clock(seconds) {
  return new Date(seconds * 1000).toTimeString().slice(0, 8);
}

function tell(plot) {
  const at = plot.cursor.idx;
  if (at === null || at === undefined || plot.cursor.left < 0) {
    // New points move every plot's cursor: only the plot under the pointer may hide its tooltip.
    if (telling === plot) showAt(null);
    if (telling === plot) telling = null;
    return;
  }
  telling = plot;
  const values = plot.series
    .slice(1)
    .map((series, number) => series.value(plot, plot.data[number + 1][at]))
    .filter((text) => text !== null);
  const box = plot.over.getBoundingClientRect();
  const said = values.length ? values.join(" · ") : "nothing known";
  showAt(`${clock(plot.data[0][at])} · ${said}`, {
    left: box.left + plot.cursor.left,
    width: 0,
    top: box.top,
    bottom: box.bottom,
  });
}

function draw() {
  if (!history) return;
  for (const [element, plot] of plots) {
    if (element.isConnected) continue;
    plot.destroy();
    plots.delete(element);
    sizes.unobserve(element);
  }
  for (const element of document.querySelectorAll("[data-plot]")) {
    const kind = KINDS[element.dataset.plot];
    const found = kind?.find(element.dataset.of);
    if (!found || !element.clientWidth) continue;
    const data = [times(), ...kind.curves(found)];
    const plot = plots.get(element);
    if (plot) plot.setData(data);
    else {
      plots.set(element, new window.uPlot(options(kind, found, element), data, element));
      sizes.observe(element);
    }
  }
}

async function refresh() {
  if (document.hidden) return;
  try {
    history = await api("GET", "/api/history");
    performance.mark("cotenant:plots");
    draw();
    performance.measure("cotenant:plots", "cotenant:plots");
  } catch {
    // The banner shows that the connection is lost.
  }
}

document.addEventListener("cotenant:theme", () => {
  for (const plot of plots.values()) plot.destroy();
  plots.clear();
  draw();
});
document.addEventListener("cotenant:updated", () => {
  if (document.querySelectorAll("[data-plot]").length !== plots.size) draw();
});
document.addEventListener("visibilitychange", refresh);
setInterval(refresh, 5000);
refresh();
