"""Renders templates, and formats numbers on pages."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import cache
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

from cotenant import __version__
from cotenant.console.live_updates import Live, Part, Rows
from cotenant.console.responses import asset_url
from cotenant.domain.units import GIB, format_bytes, format_duration

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

NONE: Final = "–"
"""Shown for an unknown value. Bytes and durations are formatted as on the command line."""


@cache
def environment() -> Environment:
    """Return the templates; Jinja is imported only when the first page is rendered."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    made = Environment(
        loader=PackageLoader("cotenant.console"),
        autoescape=True,
        undefined=StrictUndefined,
        auto_reload=False,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "bytes": _known(format_bytes),
        "gib": _known(lambda count: f"{count / GIB:,.1f}"),
        "duration": _known(format_duration),
        "rate": _known(_rate),
        "number": _known(lambda value: f"{value:,.0f}"),
        "clock": _clock,
        "segment": as_segment,
        "data": lambda value: json.dumps(value, ensure_ascii=False, separators=(",", ":")),
    }
    made.globals |= {"asset": asset_url, "live": live, "version": __version__, "dash": NONE}
    return made


def render(template: str, facts: Mapping[str, Any]) -> str:
    """Render a template."""
    return environment().get_template(template).render(facts)


def render_part(part: Part) -> str:
    """Render a live part."""
    return render(part.template, {"id": part.id, **part.facts}).strip()


def live(piece: Live) -> Markup:
    """Render a live part within a page; for Rows only the children."""
    from markupsafe import Markup

    rows = piece.rows if isinstance(piece, Rows) else (piece,)
    return Markup("\n".join(render_part(row) for row in rows))  # noqa: S704  rendered by templates, escaped


def in_coarse(seconds: float | None) -> str:
    """Format a duration, with seconds only below two minutes, so that it changes rarely."""
    if seconds is None:
        return NONE
    whole = int(seconds)
    if whole < 120:
        return f"{whole} s"
    if whole < 7200:
        return f"{whole // 60} min"
    return f"{whole // 3600} h" if whole < 172800 else f"{whole // 86400} d"


def as_segment(text: str) -> str:
    """Encode text as one segment of a path."""
    return quote(text, safe="")


def _known(text_of: Callable[[Any], str]) -> Callable[[Any], str]:
    """Return a filter that shows values, and NONE for an unknown one."""
    return lambda value: NONE if value is None else text_of(value)


def _rate(value: float) -> str:
    """Format a rate per second: `0.25`, `31`; `0` below 0.005."""
    if value < 0.005:
        return "0"
    return f"{value:,.0f}" if value >= 10 else f"{value:.2f}" if value < 1 else f"{value:.1f}"


def _clock(text: str | None) -> str:
    """Format an ISO time as the time of day, with the date if it is not today."""
    if not text:
        return NONE
    when = datetime.fromisoformat(text)
    today = datetime.now().astimezone().date()
    return when.strftime("%H:%M:%S" if when.date() == today else "%Y-%m-%d %H:%M:%S")
