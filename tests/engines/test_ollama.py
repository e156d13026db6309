from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from cotenant.domain.engine_terms import OllamaTerms
from cotenant.domain.engines import Endpoint
from cotenant.domain.errors import EngineLoadFailed
from cotenant.domain.models import EngineKind
from cotenant.domain.units import MIB
from cotenant.engines.ollama import HubModel, OllamaHost, OllamaHub, same_tag
from cotenant.interfaces import EngineOrder
from tests.engines.contract import complete, of_kind, running
from tests.engines.support import host_order
from tests.support.stand_ins import ask, ollama_daemon

pytestmark = pytest.mark.slow


@pytest.fixture
def address() -> Iterator[Endpoint]:
    with ollama_daemon() as port:
        yield Endpoint("127.0.0.1", port)


def ordered(address: Endpoint, tag: str) -> EngineOrder:
    return of_kind(host_order(Path("-")), EngineKind.OLLAMA, OllamaTerms(address, tag))


async def test_a_hub_tells_what_it_has_and_what_it_has_loaded(address: Endpoint) -> None:
    hub = OllamaHub(address)
    models = await hub.models()
    assert models is not None
    assert HubModel("tiny:latest", 300 * MIB, "tiny:latest", "llama", "Q4_K_M") in models
    assert await hub.loaded() == ()
    await hub.keep("tiny", -1, timeout_s=5)
    (loaded,) = await hub.loaded() or ()
    assert (loaded.tag, loaded.gpu_bytes) == ("tiny:latest", 300 * MIB)
    assert loaded.expires_at is not None


async def test_an_estimate_counts_the_file_the_cache_of_its_context_and_a_margin(address: Endpoint) -> None:
    hub = OllamaHub(address)
    row = 2 * 2 * (256 // 4) * 4
    expected = 300 * MIB + 2048 * row * 2 + 512 * MIB
    assert await hub.estimate_bytes(HubModel("tiny:latest", 300 * MIB)) == expected


async def test_what_does_not_answer_as_ollama_does_is_not_known() -> None:
    hub = OllamaHub(Endpoint("127.0.0.1", 1))
    assert await hub.models() is None
    assert await hub.loaded() is None
    assert await hub.version() is None


async def test_an_embedding_model_is_loaded_too(address: Endpoint) -> None:
    async with running(OllamaHost(), ordered(address, "embedder")):
        assert [m["name"] for m in ask(f"{address.url}/api/ps")["models"]] == ["embedder:latest"]
    assert ask(f"{address.url}/api/ps")["models"] == []


async def test_it_stays_loaded_though_each_request_sets_ollamas_own_keep_alive(
    address: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cotenant.engines.ollama._RENEW_WITHIN_S", 1000.0)
    async with running(OllamaHost(look_every_s=0.02), ordered(address, "tiny")) as engine:
        kept = ask(f"{address.url}/api/ps")["models"][0]["expires_at"]
        await complete(engine)
        async with asyncio.timeout(10):
            while await asyncio.to_thread(expires_at, address) < kept:
                await asyncio.sleep(0.02)


def expires_at(address: Endpoint) -> str:
    return str(ask(f"{address.url}/api/ps")["models"][0]["expires_at"])


async def test_a_model_that_it_does_not_have_is_refused_in_its_own_words(address: Endpoint) -> None:
    engine = await OllamaHost().start(ordered(address, "absent"))
    with pytest.raises(EngineLoadFailed, match="model 'absent:latest' not found") as failed:
        await engine.wait_ready(5)
    assert "ollama pull absent" in failed.value.hint


async def test_a_daemon_that_is_not_there_is_named() -> None:
    engine = await OllamaHost().start(ordered(Endpoint("127.0.0.1", 1), "tiny"))
    with pytest.raises(EngineLoadFailed, match=r"no Ollama answers at http://127\.0\.0\.1:1"):
        await engine.wait_ready(5)


def test_latest_may_be_left_out() -> None:
    assert same_tag("tiny", "tiny:latest")
    assert not same_tag("tiny:1b", "tiny")
