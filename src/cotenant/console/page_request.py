"""A request for a page."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode

from cotenant.asgi import Receive
from cotenant.console.api import Api
from cotenant.console.memory_bar import Palette


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
    session: Mapping[str, Any] = field(default_factory=dict)
    form: Mapping[str, str] = field(default_factory=dict)

    @property
    def here(self) -> str:
        """The path of the page with its query."""
        return f"{self.path}?{urlencode(self.query, quote_via=quote)}" if self.query else self.path

    async def read_form(self) -> None:
        """Read the fields of a posted form; a form that is too long counts as empty."""
        body, more = b"", True
        while more:
            message = await self.receive()
            body += message.get("body", b"")
            if message["type"] == "http.disconnect" or len(body) > 65536:
                return
            more = message.get("more_body", False)
        self.form = first_values(body.decode("utf-8", "replace"))


def first_values(text: str) -> dict[str, str]:
    """Read a query or a form; the last one of repeated fields counts."""
    return dict(parse_qsl(text, keep_blank_values=True))
