"""The pages by path, the smallest of them, and the fragments that pages load."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import unquote

from cotenant.console import analyse, gpu_configuration, model, overview
from cotenant.console.live_updates import Part, Rows, View
from cotenant.console.page_request import PageRequest
from cotenant.console.view_data import decision_part

Show = Callable[[PageRequest], Awaitable[View]]
_NAME: Final = "{name}"
_DECISIONS: Final = 300
_LEVELS: Final = ("problem", "warning", "unknown", "ok")


async def _events(request: PageRequest) -> View:
    """Show decisions, newest first, and alerts. Raises ApiFault."""
    decisions = (await request.api.get(f"/api/decisions?limit={_DECISIONS}"))["decisions"]
    alerts = await request.api.find("/api/alerts", {"active": [], "recent": []})
    recent = [
        Part(f"was-{number}", "alert_row.html", {"alert": alert})
        for number, alert in reversed(list(enumerate(alerts["recent"])))
    ]
    return View(
        "events.html",
        {"kinds": sorted({str(each["kind"]) for each in decisions})},
        {
            "events": Rows("events", [decision_part(each, "e") for each in reversed(decisions)]),
            "alerts": Rows("alert-history", recent),
        },
    )


async def _doctor(request: PageRequest) -> View:
    """Show the page; the findings take seconds and are requested separately."""
    return View("doctor.html")


async def _doctor_findings(request: PageRequest) -> View:
    """Check the daemon's machine and show the findings by area, the worst first. Raises ApiFault."""
    report = await request.api.get("/api/doctor")
    areas: dict[str, list[Mapping[str, Any]]] = {finding["area"]: [] for finding in report["findings"]}
    for finding in sorted(report["findings"], key=lambda each: _LEVELS.index(each["level"])):
        areas[finding["area"]].append(finding)
    return View("doctor_findings.html", {"counts": report["counts"], "areas": areas.items()})


@dataclass(frozen=True, slots=True)
class Page:
    """A page: `path` may end in `{name}`, which matches the rest, including slashes.

    `label` is its entry in the navigation, None for none. `show` is called for the page and, for every open
    tab, once a second for its live parts.
    """

    path: str
    label: str | None
    show: Show


PAGES: Final[tuple[Page, ...]] = (
    Page("/", "Overview", overview.show),
    Page("/models/{name}", None, model.show),
    Page("/analyse", "Analyse", analyse.show),
    Page("/gpu-configuration", "GPU configuration", gpu_configuration.show),
    Page("/events", "Events", _events),
    Page("/doctor", "Doctor", _doctor),
)

FRAGMENTS: Final[dict[tuple[str, str], Show]] = {
    ("GET", "/ui/fragments/doctor"): _doctor_findings,
    ("POST", "/ui/fragments/analyse"): analyse.plan,
    ("POST", "/ui/fragments/gpu-configuration"): gpu_configuration.change,
    **{
        ("POST", f"/ui/fragments/gpu-configuration/{order}"): gpu_configuration.order
        for order in gpu_configuration.ORDERS
    },
}
"""Parts that pages load separately, by method and path; the parts of their View are not updated."""


def find_page(raw_path: str) -> tuple[Page, str] | None:
    """Return the page at an undecoded path, and the name in the path; None if there is none."""
    for page in PAGES:
        prefix, has_name, _ = page.path.partition(_NAME)
        if raw_path == page.path or (has_name and raw_path.startswith(prefix) and raw_path != prefix):
            return page, unquote(raw_path.removeprefix(prefix))
    return None
