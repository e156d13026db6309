"""The page Keys: who may do what, what each key has used, and keys that are made and revoked."""

import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

from cotenant.console.api import ApiFault
from cotenant.console.live_updates import Part, Rows, View
from cotenant.console.page_request import PageRequest
from cotenant.console.rendering import as_segment
from cotenant.console.view_data import Json

PATH: Final = "/api/keys"
_NUMBERS: Final = ("requests_at_once", "tokens_per_minute", "priority")
SCOPES: Final = {
    "infer": "infer: requests to models",
    "operate": "operate: also load, unload, move, and read the daemon's state",
    "admin": "admin: also pull, reload, pin services, and keys",
}


async def show(request: PageRequest) -> View:
    """Show the keys, and the form for another one. Raises ApiFault."""
    keys = (await request.api.get(PATH))["keys"]
    rows = [
        Part(f"key-{as_segment(key['name'])}", "key_row.html", {"key": _facts(key, time.time())})
        for key in keys
    ]
    return View("keys.html", {"scopes": SCOPES, "first": not keys}, {"rows": Rows("keys", rows)})


async def add(request: PageRequest) -> View:
    """Make the key of a form, and show its text, or what is wrong."""
    facts: dict[str, Any] = {"fault": None, "made": None}
    try:
        facts["made"] = await request.api.post(PATH, _asked(request.form))
    except ApiFault as fault:
        facts["fault"] = fault
    return View("key_made.html", facts)


def _asked(form: Mapping[str, str]) -> dict[str, Any]:
    """Return the request of a form, whose empty fields are left out. Raises ApiFault."""
    given = {name: text for name, value in form.items() if (text := value.strip())}
    asked: dict[str, Any] = {name: given[name] for name in ("scope", "expires") if name in given}
    asked["name"] = given.get("name", "")
    if "models" in given:
        asked["models"] = given["models"].replace(",", " ").split()
    for name in _NUMBERS:
        if name in given:
            try:
                asked[name] = int(given[name])
            except ValueError:
                label = name.replace("_", " ")
                text = f"{given[name][:40]!r} is not a whole number."
                raise ApiFault(422, "bad_request", f"{label.capitalize()}: {text}") from None
    return asked


def _facts(key: Json, now: float) -> dict[str, Any]:
    expires_at = key["expires_at"]
    return {
        **{name: key[name] for name in ("name", "scope", "models", "in_flight", "origin")},
        "expires": None
        if expires_at is None
        else datetime.fromtimestamp(expires_at, UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "expired": expires_at is not None and expires_at <= now,
        "bounds": [
            text
            for text in (
                _bound(key["requests_at_once"], "at once"),
                _bound(key["tokens_per_minute"], "tokens/min"),
                _bound(key["priority"], "priority", after=False),
            )
            if text
        ],
        **{part: _use(key[part]) for part in ("today", "total")},
    }


def _bound(value: int | None, what: str, *, after: bool = True) -> str:
    if value is None:
        return ""
    return f"{value:,} {what}" if after else f"{what} {value}"


def _use(use: Json) -> dict[str, Any]:
    tokens = {name: use[name] for name in ("prompt_tokens", "completion_tokens")}
    return {"requests": use["requests"], **tokens, "waited_s": round(use["wait_s"])}
