"""The OpenAPI document: it describes every route, and the gateway does what it says."""

import asyncio
import contextlib
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import TypeAdapter

from cotenant.domain.decisions import Decision, DecisionKind, ModelStatus
from cotenant.domain.engines import Endpoint
from cotenant.domain.models import ModelKind
from cotenant.domain.requests import ServedModel
from cotenant.gateway.app import Gateway
from cotenant.gateway.server import bind, serve
from tests.gateway.harness import MODEL, SlotRouter, fetch, serving
from tests.support.daemon.plain_gateway import plain_gateway
from tests.support.daemon.plain_operator import PlainOperator
from tests.support.daemon.plain_service_operator import PlainServices
from tests.support.daemon.planner import entry, planner

NOWHERE = Endpoint("127.0.0.1", 1)
MODELS = (MODEL, ServedModel("org/bert", ModelKind.EMBEDDING, created_at=2, state="unloaded"))

FOUND = {
    "counts": {"ok": 1},
    "findings": [{"area": "machine", "level": "ok", "seen": "fine", "matters": "", "mend": ""}],
}


def operator(log: Path | None = None) -> PlainOperator:
    found = PlainOperator(ModelStatus("llama", "ready", devices=("GPU-a",)), ModelStatus("org/bert", "cold"))
    found.tell(Decision(1, 0.0, DecisionKind.EVICT, "llama", "idle", "event 7", {"idle_s": 312}))
    if log is not None:
        found.logs["llama"] = log
    return found


def gateway(log: Path | None = None) -> Gateway:
    return plain_gateway(
        SlotRouter(NOWHERE, models=MODELS),
        operator(log),
        services=PlainServices(),
        examine=lambda: FOUND,
        planner=planner(entry("llama")),
    )


async def document() -> dict[str, object]:
    async with serving(SlotRouter(NOWHERE), operator(), services=PlainServices()) as port:
        reply = await fetch(port, "GET", "/openapi.json")
    assert (reply.status, reply.headers["content-type"]) == (200, "application/json")
    return reply.json()


async def test_every_route_is_described_and_nothing_else_is():
    told = await document()
    routes = {(route.method, route.path) for route in gateway().routes}
    described = {(method.upper(), path) for path, methods in told["paths"].items() for method in methods}
    assert told["openapi"] == "3.1.0"
    assert described == routes


async def test_every_route_of_the_document_is_answered_by_more_than_nothing():
    """A template that no path reaches would be described in vain."""
    told = await document()
    async with serving(SlotRouter(NOWHERE, models=MODELS), operator(), services=PlainServices()) as port:
        for template, methods in told["paths"].items():
            path = template.replace("{name}", "llama")
            reply = await fetch(port, "PATCH", path)
            assert reply.status == 405, path
            allowed = set(reply.headers["allow"].split(", ")) - {"HEAD"}
            assert allowed == {method.upper() for method in methods}, path


async def test_without_operators_the_document_is_the_same():
    async with serving(SlotRouter(NOWHERE)) as port:
        assert (await fetch(port, "GET", "/openapi.json")).json() == await document()


async def test_the_document_is_behind_the_key_and_read_only():
    async with serving(SlotRouter(NOWHERE), api_keys=("key",)) as port:
        assert (await fetch(port, "GET", "/openapi.json")).status == 401
        reply = await fetch(port, "POST", "/openapi.json", b"", Authorization="Bearer key")
    assert (reply.status, reply.headers["allow"]) == (405, "GET, HEAD")


ROUTES = gateway().routes
EXAMPLES = [
    pytest.param(route.body.type, example, id=f"{route.method} {route.path}: {name}")
    for route in ROUTES
    if route.body
    for name, example in route.body.examples.items()
]


@pytest.mark.parametrize(("kind", "example"), EXAMPLES)
def test_every_example_is_what_it_stands_for(kind, example):
    adapter = TypeAdapter(kind)
    value = adapter.validate_json(json.dumps(example))
    shown = adapter.dump_python(value, mode="json", exclude_unset=True)
    assert shown == example


def test_every_example_of_a_response_is_one_of_its_type():
    made = [(reply.example(), reply.type) for route in ROUTES for reply in (route.reply,) if reply.example]
    assert len(made) >= 8
    assert all(type(example) is kind for example, kind in made)


async def test_identifiers_are_unique_and_every_reference_leads_somewhere():
    told = await document()
    operations = [each for methods in told["paths"].values() for each in methods.values()]
    identifiers = [each["operationId"] for each in operations]
    assert len(set(identifiers)) == len(identifiers)
    text = json.dumps(told)
    names = {piece.split('"')[0] for piece in text.split("#/components/schemas/")[1:]}
    assert names <= set(told["components"]["schemas"])
    assert not [name for name in told["components"]["schemas"] if "__" in name], "two types of one name"


@contextlib.contextmanager
def served(app: Gateway) -> Iterator[str]:
    """Serve in a thread, its endless streams ended from the start; yield the address."""
    ready, stop = threading.Event(), asyncio.Event()
    loop = asyncio.new_event_loop()
    sock = bind("127.0.0.1", 0)

    async def run() -> None:
        app.end_streams()
        await serve(app, sock, stop=stop, grace_s=1.0, on_ready=ready.set)

    thread = threading.Thread(target=loop.run_until_complete, args=(run(),))
    thread.start()
    try:
        assert ready.wait(10)
        yield f"http://127.0.0.1:{sock.getsockname()[1]}"
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)
        loop.close()


CONFIGURATION = """
seed = 1

[warnings]
fail-on = true

# What a schema cannot say: a service is one of those configured and named once, a GPU one of those here.
[[operations]]
include-path = "/api/system/gpu-config"
include-method = "PUT"
checks.positive_data_acceptance.expected-statuses = ["2xx", "409", "422"]

[[operations]]
include-name = "POST /api/system/gpu-config/preview"
checks.positive_data_acceptance.expected-statuses = ["2xx", "422"]

# Nor that there is such a machine.
[[operations]]
include-path-regex = "/api/nodes/.+"
warnings = false

# Nor that no key has the name yet.
[[operations]]
include-name = "POST /api/keys"
checks.positive_data_acceptance.expected-statuses = ["2xx", "400"]

# Nor that one model is named, that GPUs are described, and that octets are a header, as long as is said.
[[operations]]
include-name = ["POST /api/plan", "POST /api/plan/headers"]
warnings = false
checks.positive_data_acceptance.expected-statuses = ["2xx", "400", "404", "416", "422"]
"""


@pytest.mark.slow
def test_schemathesis_finds_nothing(tmp_path: Path) -> None:
    (tmp_path / "schemathesis.toml").write_text(CONFIGURATION)
    (tmp_path / "llama.log").write_text("loaded\n")
    with served(gateway(tmp_path / "llama.log")) as address:
        ran = subprocess.run(
            [
                *(sys.executable, "-m", "schemathesis.cli", "run", f"{address}/openapi.json"),
                *("--max-examples", "10", "--checks", "all", "--no-color", "--suppress-health-check", "all"),
                *("--phases", "examples,coverage,fuzzing,stateful"),
            ],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=540,
        )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    # It leaves out the route from which it took the document.
    assert f"Tested: {len(ROUTES) - 1}" in ran.stdout
