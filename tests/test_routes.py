"""The table of other servers' routes in docs/http.md, walked."""

import re
from pathlib import Path

import pytest

from cotenant.console.app import Console
from tests.gateway.harness import SlotRouter, connected, serving
from tests.gateway.stub import StubEngine

_SERVERS = ("OpenAI", "Anthropic", "Ollama", "llama-server", "llama-swap")
_ROW = re.compile(r"^\| (\S+) \| (`.+`) \| (.+) \|$", re.MULTILINE)
_DOCUMENT = Path(__file__).parent.parent / "docs" / "http.md"
_ROUTES = [
    (server, *route.split(" "), outcome)
    for server, routes, outcome in _ROW.findall(_DOCUMENT.read_text().partition("### Every route")[2])
    for route in re.findall(r"`([^`]+)`", routes)
]


def test_the_table_has_the_routes_of_all() -> None:
    assert {server for server, *_ in _ROUTES} == {
        "OpenAI",
        "Anthropic",
        "Ollama",
        "llama-server",
        "llama-swap",
    }
    assert len(_ROUTES) > 100


@pytest.mark.parametrize("server", _SERVERS)
async def test_every_route_gets_what_the_table_says(server):
    async with (
        StubEngine() as engine,
        serving(SlotRouter(engine.endpoint), console=Console) as port,
    ):
        for _, method, template, outcome in (route for route in _ROUTES if route[0] == server):
            path = template.replace("{model}", "llama").replace("{id}", "x")
            before = len(engine.calls)
            async with connected(port) as client:
                client.send(method, path, b'{"model":"llama"}' if method == "POST" else None)
                status, headers = await client.head()
                size = int(headers.get("content-length", 0))
                body = (await client.reader.readexactly(size)).decode()
            what = f"{method} {path}: {status} {body[:200]}"
            if outcome != "served":
                assert (len(engine.calls) > before) == (outcome == "passed"), what
            if outcome in ("passed", "served"):
                assert status not in (404, 405), what
            else:
                refusal, words = re.fullmatch(r"(\d+) \*(.+)\*", outcome).groups()
                assert status == int(refusal), what
                assert words in body, what
