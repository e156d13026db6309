"""The screen of `cotenant top`, as lines that fit a terminal."""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from cotenant.cli.gpus import short_name
from cotenant.cli.ps import (
    device_index,
    device_label,
    measured_bytes,
    node_of,
    several,
    stranded_bytes,
)
from cotenant.cli.table import Column, table_lines
from cotenant.cli.top.view import Choices, Snapshot
from cotenant.domain.alerts import AlertKind
from cotenant.domain.devices import Sensors
from cotenant.domain.units import GIB

KEYS: Final = "↑↓ select  l load  u unload  p pin  w why  / filter  ? help  q quit"
HELP: Final = (
    "cotenant top",
    "",
    "  ↑ ↓  k j    select a model; PgUp and PgDn go ten at a time",
    "  l           load the selected model",
    "  u           unload it; asks first if it is answering requests",
    "  p           pin it, so that it is never evicted, or unpin it",
    "  w           why: its last decisions",
    "  /           show only models whose name contains what you type; Esc shows all again",
    "  q           quit",
    "",
    "Each letter in a card's bar is memory of the model with that letter, × of others,",
    "· is free, / is free but no model could use it.",
    "Figures cover the last seconds; - means unknown.",
)


class Style(StrEnum):
    """The style of a line."""

    PLAIN = "plain"
    BOLD = "bold"
    DIM = "dim"
    REVERSE = "reverse"
    BAD = "bad"


@dataclass(frozen=True, slots=True)
class Line:
    """A line of text, cut to the terminal's width."""

    text: str
    style: Style = Style.PLAIN


def frame(snapshot: Snapshot, choices: Choices, address: str, width: int, height: int | None) -> list[Line]:
    """Lay out the screen; without a height it is as long as needed."""
    width = max(width, 20)
    room = None if height is None else height - 1
    if choices.page is not None:
        body = _page(choices, width, room or 1000)
    else:
        body = _tables(snapshot, choices, address, width, room)
    if room is not None:
        body = [*body[:room], *[Line("")] * (room - len(body)), _bottom(choices)]
    return [_cut(line, width) for line in body]


def _page(choices: Choices, width: int, height: int) -> list[Line]:
    heading, *rest = choices.page or ("",)
    lines = [line for text in rest for line in _wrapped(text, width)]
    # The scroll limit is known only here.
    choices.page_top = max(0, min(choices.page_top, len(lines) - (height - 1)))
    return [Line(heading, Style.BOLD), *map(Line, lines[choices.page_top :][: height - 1])]


def _wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width, subsequent_indent=" " * 9) or [""]


def _bottom(choices: Choices) -> Line:
    if choices.question is not None:
        return Line(f"{choices.question} (y/n)", Style.REVERSE)
    if choices.typing:
        return Line(f"/{choices.filter}_   Enter keeps it, Esc ends it", Style.REVERSE)
    if choices.page is not None:
        return Line("↑↓ scroll  Esc or q back", Style.DIM)
    return Line(choices.message, Style.BOLD) if choices.message else Line(KEYS, Style.DIM)


def _tables(snapshot: Snapshot, choices: Choices, address: str, width: int, height: int | None) -> list[Line]:
    top = [_title(snapshot, choices, address), *_alerts(snapshot)]
    cards = _cards(snapshot, width)
    (heading, *models), selected = _models(snapshot, choices, width, marked=height is not None)
    decisions = []
    for decision in snapshot.decisions[-20:]:
        model = f"{decision['model']}: " if decision.get("model") else ""
        text = f"{str(decision.get('time', ''))[11:19]} {model}{decision.get('text', '')}"
        decisions += [Line(line) for line in _wrapped(text, width)]
    if height is not None:
        left = height - len(top) - 4
        cards = _first(cards, max(1, left // 2))
        left -= len(cards)
        kept = min(len(decisions), max(3, left - len(models)), max(0, left - 2))
        most = max(1, left - kept)
        first = max(0, min(selected - most // 2, len(models) - most))
        models = models[first : first + most]
        decisions = decisions[len(decisions) - kept :]
    recent = [Line(""), Line("last decisions", Style.BOLD), *decisions] if decisions else []
    return [*top, *cards, Line(""), heading, *models, *recent]


def _title(snapshot: Snapshot, choices: Choices, address: str) -> Line:
    loaded = sum(1 for model in snapshot.models if model.get("devices"))
    facts = [f"cotenant {address}", f"{loaded} of {len(snapshot.models)} models loaded"]
    if choices.filter:
        facts.append(f"only {choices.filter!r}")
    return Line("  ".join([*facts, snapshot.taken_at]), Style.BOLD)


def _alerts(snapshot: Snapshot) -> list[Line]:
    # An alert's text is of when it began; why a machine's devices are left out has its age now.
    left_out = {
        each["left_out"]: None for each in snapshot.devices if each.get("node") and each.get("left_out")
    }
    alerts = [alert["text"] for alert in snapshot.alerts if alert.get("alert") != AlertKind.NODE_SILENT]
    texts = [*left_out, *alerts]
    lines = [Line(f"! {text}", Style.BAD) for text in texts[:3]]
    if len(texts) > 3:
        lines.append(Line(f"! and {len(texts) - 3} more alerts", Style.BAD))
    if snapshot.problem is not None:
        lines.append(Line(snapshot.problem, Style.BAD))
    return lines


def _cards(snapshot: Snapshot, width: int) -> list[Line]:
    labels = [device_label({**each, "name": short_name(each["name"])}) for each in snapshot.devices]
    label_width = min(max(map(len, labels), default=0), max(8, width // 4))
    figures = [_figures(device) for device in snapshot.devices]
    figures_width = max(map(len, figures), default=0)
    bar_width = max(10, min(60, width - label_width - figures_width - 4))
    lines = []
    for device, label, numbers in zip(snapshot.devices, labels, figures, strict=True):
        bar = _bar(snapshot, device, bar_width)
        silent = bool(device.get("node")) and device.get("left_out")
        over = Style.BAD if device.get("overcommitted") else Style.DIM if silent else Style.PLAIN
        lines.append(Line(f"{label[:label_width]:<{label_width}} [{bar}] {numbers}", over))
    return lines or [Line("no devices", Style.DIM)]


def _bar(snapshot: Snapshot, device: Mapping[str, Any], width: int) -> str:
    total = device.get("total_bytes")
    if not total:
        return "?" * width
    holdings = [(snapshot.letters.get(name, "#"), n) for name, n in snapshot.holdings(device["uuid"])]
    # The memory of others is as reported, else what is used and not ours.
    others = device.get("foreign_bytes") or 0
    if not others and device.get("free_bytes") is not None:
        others = total - device["free_bytes"] - sum(count for _, count in holdings)
    if others > total / 50:
        holdings.append(("×", others))
    # Even a small model is visible.
    bar = "".join(letter * max(1, min(width, round(n / total * width))) for letter, n in holdings)
    useless = round(stranded_bytes(snapshot.fragmentation, device["uuid"]) / total * width)
    free = max(0, width - len(bar))
    return bar[:width].ljust(width - min(useless, free), "·").ljust(width, "/")


def _figures(device: Mapping[str, Any]) -> str:
    total, free = device.get("total_bytes"), device.get("free_bytes")
    used = None if total is None or free is None else total - free
    values = ((device.get(name), display.unit) for name, display in Sensors.displays().items())
    sensors = "".join(f" {value:.0f}{unit}" for value, unit in values if value is not None)
    return f"{_gib(used)}/{_gib(total)} GiB{sensors}"


def _models(snapshot: Snapshot, choices: Choices, width: int, *, marked: bool) -> tuple[list[Line], int]:
    """Return the table with its heading, and the number of the selected row."""
    shown, current = choices.shown(snapshot), choices.model(snapshot)
    # One column for the mark of the selection, one for a margin.
    heading, *rows = table_lines(_columns(snapshot, wide=width >= 110), shown, width=width - 2, gap=" ")
    lines = [Line(f" {heading}", Style.BOLD)]
    selected = 0
    for number, (model, row) in enumerate(zip(shown, rows, strict=True)):
        chosen = marked and current is not None and model["name"] == current["name"]
        selected = number if chosen else selected
        style = Style.PLAIN if model.get("devices") else Style.DIM
        lines.append(Line(f">{row}" if chosen else f" {row}", Style.REVERSE if chosen else style))
    if not shown:
        lines.append(Line("  no model matches" if choices.filter else "  no models", Style.DIM))
    return lines, selected


def _columns(snapshot: Snapshot, *, wide: bool) -> Sequence[Column[Mapping[str, Any]]]:
    """Return the columns of the models; the last ones only on a wide terminal."""
    indices = {device["uuid"]: device_index(device) for device in snapshot.devices}
    nodes = {device["uuid"]: device.get("node") for device in snapshot.devices}
    node: list[Column[Mapping[str, Any]]] = [Column("NODE", lambda m: node_of(m, nodes))] * several(nodes)
    letters, tokens = snapshot.letters, snapshot.tokens_per_s
    columns: list[Column[Mapping[str, Any]]] = [
        Column("", lambda model: letters.get(model["name"], "#" if model.get("devices") else " ")),
        Column("model", lambda model: str(model["name"]), min_width=8),
        Column("state", _state),
        *node,
        Column("GPU", lambda model: ",".join(indices.get(u, "?") for u in model.get("devices", ())) or "-"),
        Column("req/s", lambda model: f"{model.get('requests_per_s') or 0:.1f}", right=True),
        Column(
            "tok/s", lambda model: f"{tokens[n]:.0f}" if (n := model["name"]) in tokens else "-", right=True
        ),
        Column("run", lambda model: f"{model.get('in_flight', 0)}/{model.get('slots', 0)}", right=True),
        Column("queue", lambda model: str(model.get("queued", 0)), right=True),
        Column("idle", lambda model: _span(model.get("idle_s")), right=True),
        Column(
            "keep", lambda m: "pinned" if m.get("pinned") else _span(m.get("keep_alive_left_s")), right=True
        ),
    ]
    if wide:
        columns += [
            Column("planned", lambda model: _size(model.get("predicted_bytes")), right=True),
            Column("measured", lambda model: _size(measured_bytes(model)), right=True),
        ]
    return columns


def _state(model: Mapping[str, Any]) -> str:
    load = model.get("load") or {}
    if fetch := load.get("fetching"):
        return f"fetch {min(99, fetch['received_bytes'] * 100 // max(1, fetch['total_bytes']))}%"
    read, total = load.get("read_bytes"), load.get("total_bytes")
    if model["state"] == "loading" and read is not None and total:
        return f"load {min(99, read * 100 // total)}%"
    moves = any(other["role"] == "successor" for other in model.get("others") or ())
    return "moves" if moves else str(model["state"])


def _first(lines: list[Line], most: int) -> list[Line]:
    if len(lines) <= most:
        return lines
    kept = max(0, most - 1)
    return [*lines[:kept], Line(f"… and {len(lines) - kept} more", Style.DIM)]


def _cut(line: Line, width: int) -> Line:
    clean = "".join(character if character.isprintable() else " " for character in line.text)
    return Line(clean if len(clean) <= width else clean[: width - 1] + "…", line.style)


def _gib(count: int | None) -> str:
    return "-" if count is None else f"{count / GIB:.1f}"


def _size(count: int | None) -> str:
    return "-" if count is None else f"{_gib(count)}G"


def _span(seconds: float | None) -> str:
    """Render seconds in four characters: `52s`, `4m`, `17h`, `12d`."""
    if seconds is None:
        return "-"
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f}{unit}"
    return f"{seconds:.0f}s"
