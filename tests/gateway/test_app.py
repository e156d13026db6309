import logging
from dataclasses import replace

import pytest

from cotenant.console.app import Console
from cotenant.domain.alerts import Alert, AlertKind
from cotenant.domain.decisions import ModelStatus
from cotenant.domain.devices import Device, DeviceId, DeviceKind
from cotenant.domain.engine_kinds import EngineKind
from cotenant.domain.engines import (
    Endpoint,
    EngineBuild,
    EngineForm,
    EngineReport,
    ReportedDevice,
)
from cotenant.domain.errors import EngineLoadFailed, QueueFull, WaitTimeout
from cotenant.domain.models import ModelKind, Parts, Recipe
from cotenant.domain.placements import Budget, Placement, Share
from cotenant.domain.requests import DEFAULT_TERMS, ModelFile, ServedModel
from cotenant.gateway.ollama.api import READING
from tests.gateway.harness import CHAT, MODEL, SlotRouter, connected, fetch, post, serving
from tests.gateway.stub import StubEngine
from tests.support.daemon.plain_gateway import NoAlerts
from tests.support.daemon.plain_operator import CARD, PlainOperator
from tests.support.daemon.plain_service_operator import PlainServices

NOWHERE = Endpoint("127.0.0.1", 1)
OTHER = ServedModel("org/bert", ModelKind.EMBEDDING, created_at=2, state="loading")
KEYS = ("first-key", "second-key")


def _router(*models: ServedModel) -> SlotRouter:
    return SlotRouter(NOWHERE, models=models)


async def test_health_tells_states_without_a_key_and_without_names():
    async with serving(_router(MODEL, OTHER), api_keys=KEYS) as port:
        reply = await fetch(port, "GET", "/health")
    assert reply.status == 200
    assert reply.json() == {"status": "ok", "models": {"ready": 1, "loading": 1}}


@pytest.mark.parametrize(
    ("left", "lost", "models", "status", "code"),
    [
        (2, 1, (MODEL,), "degraded", 200),
        (0, 2, (OTHER,), "unhealthy", 503),
        (0, 0, (OTHER,), "unhealthy", 503),
        (0, 2, (MODEL,), "degraded", 200),
    ],
)
async def test_health_tells_of_lost_devices(left, lost, models, status, code):
    alerts = NoAlerts()
    gone = [Alert(AlertKind.CARD_LOST, f"GPU {n}", 0.0, True, "gone") for n in range(lost)]
    alerts.active = lambda: (Alert(AlertKind.ENGINE_HUNG, "llama", 0.0, True, "hung"), *gone)
    operator = PlainOperator(devices=[CARD] * left)
    async with serving(_router(*models), operator, alerts=alerts) as port:
        reply = await fetch(port, "GET", "/health")
    assert (reply.status, reply.json()["status"]) == (code, status)
    assert reply.json()["reason"] == (
        "1 of 3 devices lost" if left else "no device is left that models can run on"
    )


async def test_models_are_listed_as_openai_lists_them():
    async with serving(_router(MODEL, OTHER)) as port:
        listed = (await fetch(port, "GET", "/v1/models")).json()
    assert listed["object"] == "list"
    assert [model["id"] for model in listed["data"]] == ["llama", "org/bert"]
    first = listed["data"][0]
    assert (first["object"], first["owned_by"], first["created"]) == ("model", "cotenant", 1_700_000_000)


async def test_what_a_model_can_is_listed_before_it_is_loaded():
    file = ModelFile("m.gguf", 4096, "llama", 7, "Q4", 2, 8192, 64, chat_template=True)
    read = ServedModel("eye", ModelKind.TEXT, 1, state="cold", recipe=Recipe(), file=file, vision=True)
    each_slot = replace(read, name="slots", recipe=Recipe(n_ctx=4096, parallel=4, kv_unified=False))
    plain = replace(read, name="plain", file=replace(file, chat_template=False), vision=False)
    remote = ServedModel("remote", ModelKind.TEXT, 1, recipe=Recipe(engine=EngineKind.REMOTE))
    models = (read, each_slot, plain, remote, replace(remote, name="x", kind=ModelKind.ANY), OTHER)
    async with serving(_router(*models)) as port:
        listed = (await fetch(port, "GET", "/v1/models")).json()["data"]
    names = ("modalities", "tools", "context_length", "size_bytes", "state")
    sees = {"input": ["text", "image"], "output": ["text"]}
    text = {"input": ["text"], "output": ["text"]}
    assert [[each["meta"][name] for name in names] for each in listed] == [
        [sees, True, Recipe().n_ctx, 4096, "cold"],
        [sees, True, 1024, 4096, "cold"],
        [text, False, Recipe().n_ctx, 4096, "cold"],
        [text, None, None, None, "ready"],
        [None, None, None, None, "ready"],
        [{"input": ["text"], "output": ["embedding"]}, False, None, None, OTHER.state],
    ]


@pytest.mark.parametrize(
    ("path", "name"),
    [("llama", "llama"), ("gpt-4o", "llama"), ("org/bert", "org/bert"), ("org%2Fbert", "org/bert")],
)
async def test_one_model_is_found_by_its_name_or_alias(path, name):
    async with serving(_router(MODEL, OTHER)) as port:
        assert (await fetch(port, "GET", f"/v1/models/{path}")).json()["id"] == name
        assert (await fetch(port, "GET", f"/api/models/{path}")).json()["name"] == name


async def test_local_means_the_one_model_served_and_nothing_when_there_are_two():
    async with serving(_router(MODEL)) as port:
        assert (await fetch(port, "GET", "/v1/models/local")).json()["id"] == "llama"
    async with serving(_router(MODEL, OTHER)) as port:
        assert (await fetch(port, "GET", "/v1/models/local")).status == 404


async def test_an_unknown_model_is_answered_with_those_served():
    async with serving(_router(MODEL, OTHER)) as port:
        replies = [
            await fetch(port, "GET", "/v1/models/nope"),
            await fetch(port, "GET", "/api/models/nope"),
            await post(port, {"model": "nope", "messages": []}),
        ]
    for reply in replies:
        assert reply.status == 404
        assert reply.error["code"] == "model_not_found"
        assert reply.error["param"] == "model"
        assert "'nope'" in reply.error["message"]
        assert "llama, org/bert" in reply.error["message"]


async def test_head_is_get_without_a_body():
    async with serving(_router(MODEL)) as port:
        for path in ("/health", "/v1/models", "/v1/models/llama", "/api/models"):
            head = await fetch(port, "HEAD", path)
            get = await fetch(port, "GET", path)
            assert head.status == 200
            assert head.headers == get.headers


async def test_head_ends_on_every_route_that_can_be_read_also_where_a_get_would_not():
    operator, pages = PlainOperator(ModelStatus("llama", "ready")), ("/", "/login", "/ui/stream?at=/")
    async with serving(_router(MODEL), operator, console=Console, services=PlainServices()) as port:
        document = (await fetch(port, "GET", "/openapi.json")).json()
        readable = [path for path, methods in document["paths"].items() if "get" in methods]
        for path in (*readable, *pages, *READING, "/api/models/llama/logs?follow=1", "/nowhere", CHAT):
            async with connected(port) as client:
                client.send("HEAD", path.replace("{name}", "llama"))
                head = await client.reply(bodiless=True)
                client.send("GET", "/health")
                assert (await client.reply()).json()["status"] == "ok", path
            assert head.status < 500, path


async def test_an_unknown_path_is_404_and_a_wrong_method_405_with_the_right_ones():
    async with serving(_router(MODEL)) as port:
        unknown = await fetch(port, "GET", "/v2/chat")
        read_of_write = await fetch(port, "GET", CHAT)
        write_of_read = await post(port, {}, "/v1/models")
        options = await fetch(port, "OPTIONS", CHAT, Origin="http://evil.example")
    assert (unknown.status, unknown.error["code"]) == (404, "unknown_route")
    assert (read_of_write.status, read_of_write.headers["allow"]) == (405, "POST")
    assert (write_of_read.status, write_of_read.headers["allow"]) == (405, "GET, HEAD")
    assert options.status == 405
    assert not [name for name in options.headers if name.startswith("access-control")]


@pytest.mark.parametrize(
    "path", [f"/{CHAT}", CHAT.replace("/chat", "//chat"), f"{CHAT}/", "///v1/chat/completions//"]
)
async def test_a_base_url_with_a_slash_too_many_means_the_same(path):
    async with StubEngine() as engine, serving(SlotRouter(engine.endpoint)) as port:
        assert (await post(port, {"model": "llama"}, path)).status == 200
        assert (await fetch(port, "GET", "//v1/models/")).json()["object"] == "list"
        assert (await fetch(port, "GET", "//v1/models/llama")).json()["id"] == "llama"


@pytest.mark.parametrize(
    ("path", "meant"),
    [
        *(
            ("/chat/completions", CHAT),
            ("/v1/v1/chat/completions", CHAT),
            ("/v1//v1/chat/completions/", CHAT),
        ),
        *(("/v1/tokenize", "/tokenize"), ("/infill/", "/infill"), ("/embeddings", "/v1/embeddings")),
        *(("/v1/rerank", "/v1/rerank"), ("/rerank", "/v1/rerank"), ("/images/edits", "/v1/images/edits")),
    ],
)
async def test_a_base_url_with_v1_or_without_means_the_same(path, meant):
    async with StubEngine() as engine, serving(SlotRouter(engine.endpoint)) as port:
        assert (await post(port, {"model": "llama:latest"}, path)).status == 200
        assert engine.calls[0].path.decode() == meant
        for listed in ("/models", "/v1/v1/models"):
            assert (await fetch(port, "GET", listed)).json()["object"] == "list"
        assert (await fetch(port, "GET", "/v1/api/tags")).json()["models"]
        assert (await fetch(port, "GET", "/v1/v1/models/llama:latest")).json()["id"] == "llama"


@pytest.mark.parametrize(
    ("path", "headers", "where"),
    [
        ("/v1/messages/batches", {}, ("error", "message")),
        ("/v1/files", {"anthropic-version": "2023-06-01"}, ("error", "message")),
        ("/api/nowhere", {"User-Agent": "ollama-python/0.6"}, ("error",)),
        ("/api/nowhere", {}, ("error", "message")),
    ],
)
async def test_an_unknown_path_is_told_in_the_dialect_of_who_asks(path, headers, where):
    async with serving(_router(MODEL)) as port:
        reply = await fetch(port, "POST", path, b"{}", **headers)
    value = reply.json()
    assert (reply.status, value.get("type")) == (
        404,
        "error" if "messages" in path or "anth" in str(headers) else None,
    )
    for name in where:
        value = value[name]
    assert "there is nothing at" in value


@pytest.mark.parametrize(
    ("method", "path", "accept"),
    [
        *(("POST", "/v2/chat/completions", "text/html"), ("POST", "/v2/rerank", "*/*"), ("POST", "/", "*/*")),
        *(("GET", "/model", "application/json"), ("GET", "/v2/models", "*/*"), ("PUT", "/x", "text/html")),
    ],
)
async def test_an_unknown_path_is_told_in_json_to_whoever_is_no_browser(method, path, accept):
    async with serving(_router(MODEL)) as port:
        reply = await fetch(port, method, path, b"{}", Accept=accept)
    assert (reply.status, reply.error["code"]) == (404, "unknown_route")
    assert "OpenAI's API is under /v1" in reply.error["message"]


async def test_an_unknown_path_of_openais_api_names_those_that_there_are():
    async with serving(_router(MODEL)) as port:
        reply = await fetch(port, "POST", "/v1/videos", b"{}")
    assert "Offered are /v1/chat/completions, " in reply.error["message"]


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": "Bearer first-key"},
        {"authorization": "bearer second-key"},
        {"x-api-key": "second-key"},
    ],
)
async def test_a_key_opens_the_gateway(headers):
    async with serving(_router(MODEL), api_keys=KEYS) as port:
        assert (await fetch(port, "GET", "/v1/models", **headers)).status == 200


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer first-ke"},
        {"Authorization": "Basic first-key"},
        {"Authorization": "first-key"},
        {"x-api-key": "schlüssel"},
    ],
)
@pytest.mark.parametrize("path", ["/metrics", "/v1/models", "/api/models", "/v1/nowhere", "/api/nowhere"])
async def test_without_a_right_key_every_path_but_health_is_shut(headers, path):
    async with serving(_router(MODEL), api_keys=KEYS) as port:
        reply = await fetch(port, "GET", path, **headers)
    assert (reply.status, reply.error["code"]) == (401, "unauthorized")
    assert reply.headers["www-authenticate"].startswith("Bearer")
    assert "first-key" not in reply.error["message"]


@pytest.mark.parametrize(
    ("body", "what"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b'{"n": ' + b"9" * 5000 + b"}", "not JSON"),
        (b"[" * 100_000, "nested too deeply"),
        (b"[]", "not an object"),
        (b'"llama"', "not an object"),
        (b'{"model": 7}', "not a string"),
        (b'{"model": ["llama"]}', "not a string"),
    ],
)
async def test_a_malformed_body_is_a_400_that_says_what_is_wrong(body, what):
    async with serving(_router(MODEL)) as port:
        reply = await fetch(port, "POST", CHAT, body)
    assert (reply.status, reply.error["type"]) == (400, "invalid_request_error")
    assert what in reply.error["message"]


async def test_a_request_must_name_its_model_when_there_are_two():
    async with serving(_router(MODEL, OTHER)) as port:
        reply = await post(port, {"messages": []})
    assert reply.status == 400
    assert "llama, org/bert" in reply.error["message"]


class _Faulty(SlotRouter):
    def __init__(self, fault: Exception) -> None:
        super().__init__(NOWHERE)
        self.fault = fault

    def has_copies(self, name):
        return False

    def try_lease(self, name, terms=DEFAULT_TERMS):
        return None

    async def lease(self, name, terms=DEFAULT_TERMS):
        raise self.fault


@pytest.mark.parametrize(
    ("fault", "status"),
    [(QueueFull("too many wait"), 429), (WaitTimeout("too long"), 504), (EngineLoadFailed("died"), 503)],
)
async def test_a_router_that_has_no_slot_to_give_says_so_and_when_to_come_again(fault, status):
    async with serving(_Faulty(fault)) as port:
        reply = await post(port, {"model": "llama"})
    assert (reply.status, reply.error["code"]) == (status, fault.code)
    assert int(reply.headers["retry-after"]) > 0


async def test_an_unexpected_fault_is_logged_with_its_traceback_and_not_told(caplog):
    with caplog.at_level(logging.ERROR, "cotenant.gateway"):
        async with serving(_Faulty(ZeroDivisionError("secret"))) as port:
            reply = await post(port, {"model": "llama"})
            again = await fetch(port, "GET", "/health")
    assert (reply.status, reply.error["code"]) == (500, "internal")
    assert b"secret" not in reply.body
    assert "ZeroDivisionError: secret" in caplog.text
    assert again.status == 200


def _placed() -> ServedModel:
    def share(number: int, first: int, last: int, weights: int) -> Share:
        device = Device(
            DeviceId(f"GPU-{number}"), DeviceKind.GPU, "RTX", number, pci_bus_id=f"0000:0{number}:00.0"
        )
        parts = Parts(weights=weights, kv=10, compute=5, overhead=300)
        return Share(Budget(device, 10**9, 10**9), first, last, last - first + 1, number == 2, parts)

    placement = Placement(
        model="llama",
        recipe=Recipe(),
        n_layers=4,
        n_gpu_layers=5,
        shares=(share(3, 0, 1, 100), share(2, 2, 3, 200)),
        host=Parts(weights=50),
    )
    report = EngineReport(
        (
            ReportedDevice("CUDA0", "0000:03:00.0", Parts(weights=100, kv=10, compute=7)),
            ReportedDevice("CUDA1", None, Parts(weights=190, kv=10, compute=5)),
            ReportedDevice("CPU", None, Parts(weights=50, compute=1), on_host=True),
        )
    )
    build = EngineBuild(EngineKind.LLAMA_CPP, EngineForm.EMBEDDED, "/usr/bin/python3", "0.6.0")
    return ServedModel(
        "llama", ModelKind.TEXT, 1, placement=placement, build=build, report=report, log_path="/tmp/llama.log"
    )


async def test_the_operator_sees_planned_and_reported_bytes_of_each_device():
    async with serving(_router(_placed())) as port:
        model = (await fetch(port, "GET", "/api/models")).json()["models"][0]
    assert model["engine"]["version"] == "0.6.0"
    placement = model["placement"]
    assert placement["tensor_split"] == [2, 2]
    first, second = placement["devices"]
    assert (first["uuid"], first["layers"]) == ("GPU-3", [0, 1])
    assert first["planned"] == {"weights": 100, "kv": 10, "compute": 5, "overhead": 300, "total": 415}
    assert first["reported"] == {"weights": 100, "kv": 10, "compute": 7, "overhead": None, "total": 117}
    assert first["difference_bytes"] == 2
    assert second["difference_bytes"] == -10
    assert placement["host"]["difference_bytes"] == 1


async def test_what_is_not_known_of_a_model_is_null():
    async with serving(_router(MODEL)) as port:
        model = (await fetch(port, "GET", "/api/models/llama")).json()
    assert (model["placement"], model["engine"], model["log_path"]) == (None, None, None)
