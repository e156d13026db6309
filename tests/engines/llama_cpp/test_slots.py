"""Slots saved before an unload and restored after the load: by a real engine, and one that hangs."""

import asyncio
import json
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cotenant.domain.engines import Endpoint
from cotenant.domain.launching import SlotCache
from cotenant.domain.models import CacheType, Parts
from cotenant.domain.units import MIB
from cotenant.engines.llama_cpp import slots as llama_slots
from cotenant.engines.llama_cpp.arguments import PROMPT_CACHE_MIB
from cotenant.engines.llama_cpp.engine import LlamaEngine, LlamaHost
from cotenant.engines.llama_cpp.slots import EngineSlots
from cotenant.engines.process.slot_store import SavedSlot, SlotStore
from cotenant.http.client import probe
from cotenant.interfaces import EngineOrder
from tests.engines.contract import inputs
from tests.support.daemon.eager_slots import patch_slots
from tests.support.engines.orders import host_order
from tests.support.models.gguf_models import build_tiny_llama
from tests.support.models.known_model import real_server

CACHE = SlotCache("tiny", 4096)
SYLLABLES = [a + b for a in "bdfgkl" for b in "aeiou"]


async def ask(engine: LlamaEngine, messages: list[dict[str, str]], n_tokens: int = 8) -> tuple[str, int]:
    """Return the answer, and how many tokens of the prompt the engine had already."""
    body = {"messages": messages, "max_tokens": n_tokens, "temperature": 0}
    reply = await probe(engine.endpoint, "/v1/chat/completions", body, timeout_s=60)
    assert reply is not None
    answer = json.loads(reply.body)
    return answer["choices"][0]["message"]["content"], answer["timings"]["cache_n"]


def words(rng: random.Random, count: int) -> dict[str, str]:
    return {"role": "user", "content": " ".join(rng.choice(SYLLABLES) for _ in range(count))}


class Bed:
    """Starts engines of one model, one after another, which hand their slots on."""

    def __init__(self, folder: Path, server: Path | None, *, large: bool = False, **recipe: Any) -> None:
        self.store = SlotStore.open(folder / "store", 1 << 30)
        self.host = LlamaHost(inputs(folder, llama_server=server, slots=self.store))
        model = build_tiny_llama(folder / "tiny.gguf")
        self.order: EngineOrder = replace(
            host_order(model, **{"n_ctx": 4096, "parallel": 2, **recipe}), slot_cache=CACHE
        )
        if large:
            # By its plan, the cache of prompts has no room for what slots hold.
            kv = Parts(kv=PROMPT_CACHE_MIB * MIB + 1)
            self.order = replace(self.order, placement=replace(self.order.placement, host=kv))

    async def start(self, **changes: Any) -> LlamaEngine:
        engine = await self.host.start(replace(self.order, **changes))
        await engine.wait_ready(60)
        return engine


@pytest.fixture(autouse=True)
def worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny model computes its prompts sooner than a file is worth, and a busy machine takes its time."""
    patch_slots(monkeypatch.setattr)


@pytest.mark.engine
@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "recipe"),
    [
        ("embedded", {}),
        ("embedded", {"kv_unified": False, "cache_type_k": CacheType.Q8_0, "cache_type_v": CacheType.Q8_0}),
        ("embedded", {"large": True}),
        ("server", {}),
    ],
)
def test_conversations_go_on_after_a_swap_as_if_nothing_had_happened(
    tmp_path: Path, kind: str, recipe: dict[str, Any]
) -> None:
    bed = Bed(tmp_path, real_server() if kind == "server" else None, **recipe)

    # A small cache for all slots keeps the last conversation only.
    kept = 1 if bed.order.placement.recipe.kv_unified and not recipe.get("large") else 2

    async def main() -> None:
        rng = random.Random(5)
        talks = [[words(rng, 150)], [words(rng, 200)]]
        steady = await bed.start(slot_cache=None)
        engine = await bed.start()
        try:
            for turn in range(2):
                for number, talk in enumerate(reversed(talks)):
                    answer, cached = await ask(engine, talk)
                    assert answer == (await ask(steady, talk))[0]
                    assert cached > 100 if turn and number < kept else cached < 50
                    talk += [{"role": "assistant", "content": answer}, words(rng, 5)]
                talks.reverse()
                await engine.stop(2)
                assert len(bed.store.slots) == kept
                assert all(path.stat().st_size == s.size for path, s in bed.store.slots.items())
                engine = await bed.start()
                assert not bed.store.slots
                assert not [*bed.store.folder.rglob("*.slot")]
        finally:
            await engine.stop(0)
            await steady.stop(0)

    asyncio.run(main())


@pytest.mark.engine
@pytest.mark.slow
def test_another_recipe_and_a_file_that_is_cut_off_give_nothing_and_a_kill_saves_nothing(
    tmp_path: Path,
) -> None:
    bed = Bed(tmp_path, None)

    async def main() -> None:
        engine = await bed.start()
        talk = [words(random.Random(1), 200)]
        await ask(engine, talk)
        await engine.stop(2)
        assert len(bed.store.slots) == 1
        other = await bed.start(slot_cache=replace(CACHE, identity="another"))
        assert (await ask(other, talk))[1] == 0
        await other.stop(0)
        assert len(bed.store.slots) == 1
        (path,) = bed.store.slots
        path.write_bytes(path.read_bytes()[:-100])
        # A file that was damaged is no slot: the engine refuses it, and computes the prompt again.
        engine = await bed.start()
        assert (await ask(engine, talk))[1] == 0
        await engine.stop(0)
        assert not [*bed.store.folder.rglob("*.slot")]

    asyncio.run(main())


METRICS = "llamacpp:prompt_tokens_total 1000\nllamacpp:prompt_seconds_total 100\n"


class Server:
    """Answers as a llama-server: /slots, /metrics, and saves, which it may never finish."""

    def __init__(self, slots: list[dict[str, Any]], *, hangs: bool = False) -> None:
        self.slots = slots
        self.hangs = hangs
        self.saved: list[int] = []
        self.done = asyncio.Event()

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        path = head.split(" ")[1]
        text = METRICS if path == "/metrics" else json.dumps(self.slots)
        if "action=save" in path:
            self.saved.append(int(path.split("/")[2].partition("?")[0]))
            if self.hangs:
                await self.done.wait()
            text = json.dumps({"n_saved": 500, "n_written": 1000})
        writer.write(f"HTTP/1.1 200 OK\r\nContent-Length: {len(text)}\r\n\r\n{text}".encode())
        await writer.drain()
        writer.close()


def saved_by(server: Server, store: SlotStore, *, bytes_per_token: int = 10) -> EngineSlots:
    return EngineSlots(store, "k" * 32, SlotCache("", bytes_per_token), 4, "m")


async def save(server: Server, slots: EngineSlots) -> float:
    """Save once; return how long it took."""
    listening = await asyncio.start_server(server.answer, "127.0.0.1", 0)
    loop = asyncio.get_running_loop()
    began_at = loop.time()
    try:
        await slots.save(Endpoint("127.0.0.1", listening.sockets[0].getsockname()[1]))
        return loop.time() - began_at
    finally:
        server.done.set()
        listening.close()


def slot(number: int, task: int, tokens: int, *, busy: bool = False) -> dict[str, Any]:
    return {"id": number, "id_task": task, "n_prompt_tokens": tokens, "is_processing": busy}


async def test_idle_slots_are_saved_the_last_used_first(tmp_path: Path) -> None:
    store = SlotStore.open(tmp_path, 1 << 30)
    server = Server(
        [slot(0, 3, 500), slot(1, 9, 500), slot(2, 11, 500, busy=True), {"id": 3, "is_processing": False}]
    )
    await save(server, saved_by(server, store))
    assert server.saved == [1, 0]
    assert {each.prefill_s for each in store.slots.values()} == {50.0}
    # The last used is restored first.
    first, second = store.take("k" * 32, 2)
    assert first.number > second.number


async def test_an_unload_does_not_wait_for_an_engine_that_never_saves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llama_slots, "SAVE_WITHIN_S", 0.2)
    store = SlotStore.open(tmp_path, 1 << 30)
    server = Server([slot(0, 1, 500), slot(1, 2, 500)], hangs=True)
    await asyncio.wait_for(save(server, saved_by(server, store)), 30)
    assert server.saved in ([1], [])
    assert not store.slots


async def test_what_is_computed_sooner_than_written_is_not_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llama_slots, "_WORTH", 3.0)
    store = SlotStore.open(tmp_path, 1 << 40)
    server = Server([slot(0, 1, 500)])
    # 50 s of prefill against 2 × 20 GB at 1 GB/s, three times; then of 2 × 5 GB.
    await save(server, saved_by(server, store, bytes_per_token=40_000_000))
    assert not server.saved
    store.most_bytes = 1 << 20
    server = Server([slot(0, 1, 500)])
    await save(server, saved_by(server, store, bytes_per_token=10_000))
    assert not server.saved


@pytest.mark.engine
@pytest.mark.slow
def test_a_restored_slot_that_nobody_asked_for_is_kept_over_the_next_swap(tmp_path: Path) -> None:
    bed = Bed(tmp_path, None, kv_unified=False)

    async def main() -> None:
        rng = random.Random(5)
        talks = [[words(rng, 150)], [words(rng, 200)]]
        engine = await bed.start()
        for talk in talks:
            await ask(engine, talk)
        for _ in range(2):
            await engine.stop(2)
            assert len(bed.store.slots) == 2
            engine = await bed.start()
            # Only of the second.
            assert (await ask(engine, talks[1]))[1] > 100
        assert (await ask(engine, talks[0]))[1] > 100
        await engine.stop(0)

    asyncio.run(main())


async def test_a_store_that_closes_meanwhile_saves_nothing(tmp_path: Path) -> None:
    class Closing(SlotStore):
        def make_room(self, size: int, prefill_s: float) -> Sequence[SavedSlot] | None:
            found = SlotStore.make_room(self, size, prefill_s)
            self.close()
            return found

    server, store = Server([slot(0, 1, 500)]), Closing.open(tmp_path / "store", 1 << 30)
    await save(server, saved_by(server, store))
    assert not server.saved
    assert not store.slots
    assert not store.folder.exists()
