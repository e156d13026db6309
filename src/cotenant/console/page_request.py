"""A request for a page."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import parse_qs, quote

from cotenant.asgi import Receive
from cotenant.console.api import Api
from cotenant.console.model_colors import Palette

_MAX_FORM_BYTES: Final = 65536


@dataclass(slots=True)
class PageRequest:
    """A request for a page; `name` is the decoded `{name}` in its path, if it has one."""

    method: str
    path: str
    query: Mapping[str, str]
    api: Api
    receive: Receive
    palette: Palette
    name: str = ""
    csrf: str | None = None
    signed_in: bool = False
    form: Mapping[str, str] = field(default_factory=dict)

    @property
    def here(self) -> str:
        """The path of the page with its query."""
        pairs = "&".join(f"{quote(key)}={quote(value, safe='')}" for key, value in self.query.items())
        return f"{self.path}?{pairs}" if pairs else self.path

    async def read_form(self) -> None:
        """Read the fields of a posted form; a form that is too long counts as empty."""
        pieces: list[bytes] = []
        size, more = 0, True
        while more:
            message = await self.receive()
            if message["type"] == "http.disconnect":
                return
            piece = message.get("body", b"")
            size += len(piece)
            if size > _MAX_FORM_BYTES:
                return
            pieces.append(piece)
            more = message.get("more_body", False)
        self.form = first_values(b"".join(pieces).decode("utf-8", "replace"))


def first_values(text: str) -> dict[str, str]:
    """Read a query or a form; the last one of repeated fields counts."""
    return {name: values[-1] for name, values in parse_qs(text, keep_blank_values=True).items()}


def model_path(name: str, action: str = "") -> str:
    """Return the path of a model in the API."""
    return f"/api/models/{quote(name, safe='')}" + (f"/{action}" if action else "")
