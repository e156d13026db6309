"""The page of recent decisions and alerts."""

from typing import Final

from cotenant.console.live_updates import Part, Rows, View
from cotenant.console.page_request import PageRequest
from cotenant.console.view_data import decision_part

_DECISIONS: Final = 300


async def show(request: PageRequest) -> View:
    """Show decisions, newest first, and alerts. Raises ApiFault."""
    decisions = (await request.api.get(f"/api/decisions?limit={_DECISIONS}"))["decisions"]
    alerts = await request.api.find("/api/alerts", {"active": [], "recent": []})
    kinds = sorted({str(each["kind"]) for each in decisions})
    recent = [
        Part(f"was-{number}", "alert_row.html", {"alert": alert})
        for number, alert in reversed(list(enumerate(alerts["recent"])))
    ]
    return View(
        "events.html",
        {"kinds": kinds},
        {
            "events": Rows("events", [decision_part(each, "e") for each in reversed(decisions)]),
            "alerts": Rows("alert-history", recent),
        },
    )
