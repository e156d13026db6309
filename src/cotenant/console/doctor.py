"""The page of the doctor's findings on the daemon's machine."""

from collections.abc import Mapping
from typing import Any, Final

from cotenant.console.live_updates import View
from cotenant.console.page_request import PageRequest

_LEVELS: Final = ("problem", "warning", "unknown", "ok")


async def show(request: PageRequest) -> View:
    """Show the page; the findings take seconds and are requested separately. Raises ApiFault."""
    return View("doctor.html")


async def findings(request: PageRequest) -> View:
    """Check the machine and show the findings, the worst first. Raises ApiFault."""
    report = await request.api.get("/api/doctor")
    areas: dict[str, list[Mapping[str, Any]]] = {}
    for finding in sorted(report["findings"], key=lambda each: _LEVELS.index(each["level"])):
        areas.setdefault(finding["area"], []).append(finding)
    order = list(dict.fromkeys(finding["area"] for finding in report["findings"]))
    return View(
        "doctor_findings.html",
        {"counts": report["counts"], "areas": [(area, areas[area]) for area in order]},
    )
