import asyncio
import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from cotenant.domain.engine_kinds import EngineKind
from cotenant.domain.engines import Endpoint, EngineOptions
from cotenant.domain.errors import EngineLoadFailed
from cotenant.domain.units import GIB, MIB
from cotenant.engines.ollama.client import ModelFacts, OllamaClient, default_context, same_tag
from cotenant.engines.ollama.engine import OllamaEngine, OllamaHost
from cotenant.interfaces import EngineOrder
from tests.engines.contract import complete, of_kind, running
from tests.support.engines.fake_programs import ask, ollama_daemon
from tests.support.engines.orders import host_order

pytestmark = pytest.mark.slow


@pytest.fixture
def address() -> Iterator[Endpoint]:
    with ollama_daemon() as port:
        yield Endpoint("127.0.0.1", port)


def ordered(address: Endpoint, tag: str) -> EngineOrder:
    return of_kind(host_order(Path("-")), EngineKind.OLLAMA, EngineOptions(address=address, model=tag))


async def test_a_hub_tells_what_it_has_and_what_it_has_loaded(address: Endpoint) -> None:
    hub = OllamaClient(address)
    models = await hub.models()
    assert models is not None
    tiny = models[0]
    assert (tiny.tag, tiny.file_bytes, tiny.family, tiny.quantisation) == (
        "tiny:latest",
        300 * MIB,
        "llama",
        "Q4_K_M",
    )
    assert await hub.loaded() == ()
    await hub.keep("tiny", -1, timeout_s=5)
    (loaded,) = await hub.loaded() or ()
    assert (loaded.tag, loaded.gpu_bytes) == ("tiny:latest", 300 * MIB)
    assert loaded.expires_at is not None


async def test_an_estimate_counts_the_file_the_cache_of_its_context_and_a_margin(address: Endpoint) -> None:
    facts = await OllamaClient(address).facts("tiny")
    assert facts is not None
    row = 2 * 2 * (256 // 4) * 4
    assert facts.estimate_bytes(300 * MIB, default_ctx=4096) == 300 * MIB + 2048 * row * 2 + 512 * MIB


def test_without_a_context_of_its_own_a_model_gets_ollamas_default_as_far_as_it_was_trained() -> None:
    assert ModelFacts(token_bytes=1000).estimate_bytes(0, 32768) == 32768 * 1000 + 512 * MIB
    assert ModelFacts(token_bytes=1000, n_ctx_train=8192).estimate_bytes(0, 32768) == 8192 * 1000 + 512 * MIB


@pytest.mark.parametrize(
    ("version", "gpus", "n_ctx"),
    [
        ("0.17.4", 0, 4096),
        ("0.17.4", 12 * GIB, 4096),
        ("0.17.4", 24 * GIB, 32768),
        ("0.15.5-rc1", 80 * GIB, 262144),
        ("0.15.4", 80 * GIB, 4096),
        ("0.0.0", 80 * GIB, 262144),
        ("unknown", 80 * GIB, 262144),
    ],
)
def test_the_default_context_depends_on_the_gpus_since_0_15_5(version: str, gpus: int, n_ctx: int) -> None:
    assert default_context(version, gpus) == n_ctx


async def test_what_does_not_answer_as_ollama_does_is_not_known() -> None:
    hub = OllamaClient(Endpoint("127.0.0.1", 1))
    assert await hub.models() is None
    assert await hub.loaded() is None
    assert await hub.version() is None


async def test_a_model_that_is_loaded_by_another_name_of_its_weights_is_found(address: Endpoint) -> None:
    url = address.url
    await asyncio.to_thread(post, f"{url}/api/copy", {"source": "tiny", "destination": "twin"})
    ask(f"{url}/api/generate", {"model": "twin", "keep_alive": -1})
    async with running(OllamaHost(poll_every_s=0.02), ordered(address, "tiny")) as engine:
        assert [m["name"] for m in ask(f"{url}/api/ps")["models"]] == ["twin:latest"]
        report = engine.report()
        assert report is not None
        assert sum(device.parts.total for device in report.devices) == 300 * MIB
        exited = asyncio.create_task(engine.wait_exit())
        ask(f"{url}/api/generate", {"model": "embedder", "keep_alive": 0})
        ask(f"{url}/api/embed", {"model": "embedder"})
        ask(f"{url}/api/generate", {"model": "twin", "keep_alive": 0})
        async with asyncio.timeout(60):
            assert "unloaded by Ollama or another client" in (await exited).why


async def test_an_embedding_model_is_loaded_too(address: Endpoint) -> None:
    async with running(OllamaHost(), ordered(address, "embedder")):
        assert [m["name"] for m in ask(f"{address.url}/api/ps")["models"]] == ["embedder:latest"]
    assert ask(f"{address.url}/api/ps")["models"] == []


async def test_it_stays_loaded_though_another_client_sets_a_keep_alive_of_its_own(
    address: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cotenant.engines.ollama.engine._RENEW_BEFORE_S", 1000.0)
    async with running(OllamaHost(poll_every_s=0.02), ordered(address, "tiny")) as engine:
        kept = ask(f"{address.url}/api/ps")["models"][0]["expires_at"]
        await complete(engine)
        assert expires_at(address) > kept, "a request without one keeps ours"
        ask(f"{address.url}/api/generate", {"model": "tiny", "keep_alive": 200})
        async with asyncio.timeout(60):
            while await asyncio.to_thread(expires_at, address) < kept:
                await asyncio.sleep(0.02)


async def test_what_we_unload_is_not_told_as_another_clients_doing(
    address: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(OllamaHost(poll_every_s=0.001), ordered(address, "tiny")) as engine:
        look = OllamaEngine._loaded_now

        async def late(self: OllamaEngine) -> object:
            await asyncio.sleep(0.1)
            return await look(self)

        monkeypatch.setattr(OllamaEngine, "_loaded_now", late)
        await engine.stop(2)
        assert (await engine.wait_exit()).why == "tiny was stopped"


def post(url: str, body: dict[str, str]) -> None:
    """Send what has an empty answer."""
    data = json.dumps(body).encode()
    urllib.request.urlopen(urllib.request.Request(url, data), timeout=60).close()


def expires_at(address: Endpoint) -> str:
    return str(ask(f"{address.url}/api/ps")["models"][0]["expires_at"])


async def test_a_model_that_it_does_not_have_is_refused_in_its_own_words(address: Endpoint) -> None:
    engine = await OllamaHost().start(ordered(address, "absent"))
    with pytest.raises(EngineLoadFailed, match="model 'absent' not found") as failed:
        await engine.wait_ready(60)
    assert "ollama pull absent" in failed.value.hint


async def test_a_daemon_that_is_not_there_is_named() -> None:
    engine = await OllamaHost().start(ordered(Endpoint("127.0.0.1", 1), "tiny"))
    with pytest.raises(EngineLoadFailed, match=r"no Ollama answers at http://127\.0\.0\.1:1"):
        await engine.wait_ready(60)


def test_latest_may_be_left_out() -> None:
    assert same_tag("tiny", "tiny:latest")
    assert not same_tag("tiny:1b", "tiny")
