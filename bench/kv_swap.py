"""What saved slots are worth: the first token of a long conversation after a swap. And nothing goes wrong.

`python -m bench.kv_swap [ROUNDS]`; a real llama.cpp engine on models of random weights that it writes itself.
"""

import asyncio
import json
import random
import sys
import tempfile
import time
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

from tests.engines.contract import inputs
from tests.support.daemon.serving import Serving
from tests.support.engines.orders import host_order

from bench.rows import Row, print_table
from cotenant import demo_model
from cotenant.domain.launching import SlotCache
from cotenant.domain.models import CacheType
from cotenant.engines.llama_cpp import engine as llama_engine
from cotenant.engines.llama_cpp import slots as llama_slots
from cotenant.engines.llama_cpp.engine import LlamaEngine, LlamaHost
from cotenant.engines.llama_cpp.host_facts import HostFacts
from cotenant.engines.process.slot_store import SlotStore, memory_folder
from cotenant.http.client import probe

_WORDS = 960
"""Of two syllables, a token each: with the template some 2,000 tokens."""
_TURNS = 4
_ROUNDS = 200
_LEAST_GAIN = 3.0
_SYLLABLES = [a + b for a in "bdfgklmn" for b in "aeiou"]
_LARGER: dict[str, Any] = {"N_LAYERS": 8, "N_EMBD": 512, "N_HEAD": 8, "N_HEAD_KV": 4, "N_FF": 1536}
_RECIPES: Sequence[Mapping[str, Any]] = (
    {},
    {"kv_unified": False},
    {"cache_type_k": CacheType.Q8_0, "cache_type_v": CacheType.Q8_0},
)
Message = dict[str, str]


def main(rounds: int = _ROUNDS) -> list[Row]:
    with tempfile.TemporaryDirectory() as folder:
        for name in "ab":
            with patch.multiple(demo_model, **_LARGER):
                demo_model.write_demo_model(Path(folder) / f"{name}.gguf")
        demo_model.write_demo_model(Path(folder) / "tiny.gguf")
        without, _ = _first_tokens(Path(folder), kept_mib=0)
        with_slots, tokens = _first_tokens(Path(folder), kept_mib=1024)
        share, rest = divmod(rounds, len(_RECIPES))
        wrong = found = 0
        for number, recipe in enumerate(_RECIPES):
            count = share + (number < rest)
            bad, hits = asyncio.run(_rounds(Path(folder), count, seed=number, recipe=recipe))
            wrong, found = wrong + bad, found + hits
    return [
        Row(
            f"first token of a conversation of {tokens:,} tokens after a swap, its slot kept",
            with_slots * 1000,
            "ms",
            baseline=f"{without * 1000:,.0f} ms without",
            ratio=without / with_slots,
            target=f">= {_LEAST_GAIN:.0f} x sooner",
            met=without >= _LEAST_GAIN * with_slots,
        ),
        Row(
            f"wrong answers in {rounds} swaps at temperature 0 ({found} found their prompt cached)",
            wrong,
            "",
            baseline="an engine that is never stopped",
            target="0",
            met=wrong == 0 and found >= rounds // 3,
        ),
    ]


def _first_tokens(folder: Path, kept_mib: int) -> tuple[float, int]:
    """Return the best time to the first token of a turn after a swap, in seconds, and the prompt's tokens."""
    config = folder / "cotenant.yaml"
    settings = {
        "warm": {"kv_mib": kept_mib},
        "defaults": {"ctx": 8192, "parallel": 2, "max_loaded": 1},
        "devices": {"reserve_mib": 100, "min_budget_mib": 0},
        "models": [{"name": name, "path": str(folder / f"{name}.gguf")} for name in "ab"],
    }
    config.write_text(json.dumps(settings), encoding="utf-8")
    rng = random.Random(7)
    talk = [_said(rng, _WORDS)]
    times = []
    with Serving(["serve", "--config", str(config), "--port", "0"], folder / f"state-{kept_mib}") as daemon:
        for turn in range(_TURNS):
            first_s, answer, tokens = _stream(daemon.address(), "a", talk)
            times += [first_s] if turn else []
            talk += [{"role": "assistant", "content": answer}, _said(rng, 3)]
            _stream(daemon.address(), "b", [_said(rng, 3)])
        daemon.terminate()
    return min(times), tokens


def _stream(address: str, model: str, talk: list[Message]) -> tuple[float, str, int]:
    """Return the seconds to the first token, the answer, and the tokens of the prompt."""
    payload = {"model": model, "messages": talk, "max_tokens": 8, "temperature": 0, "stream": True}
    payload["stream_options"] = {"include_usage": True}
    request = urllib.request.Request(
        f"{address}/v1/chat/completions", json.dumps(payload).encode(), {"Content-Type": "application/json"}
    )
    began_at, first_s, text, tokens = time.monotonic(), 0.0, "", 0
    with urllib.request.urlopen(request, timeout=300) as reply:
        for line in reply:
            if not line.startswith(b"data: {"):
                continue
            event = json.loads(line[6:])
            for choice in event["choices"]:
                if content := choice["delta"].get("content"):
                    first_s = first_s or time.monotonic() - began_at
                    text += content
            tokens = (event.get("usage") or {}).get("prompt_tokens", tokens)
    return first_s, text, tokens


async def _rounds(folder: Path, rounds: int, seed: int, recipe: Mapping[str, Any]) -> tuple[int, int]:
    """Swap after each answer; return how many differ from an engine's that never stops, and found a slot."""
    rng = random.Random(seed)
    store = SlotStore.open(memory_folder() or folder, 1 << 30)
    host = LlamaHost(inputs(folder, slots=store))
    order = host_order(folder / "tiny.gguf", n_ctx=8192, parallel=3, **recipe)
    order = replace(order, slot_cache=SlotCache(f"bench {seed}", 1024))

    async def started(**changes: Any) -> LlamaEngine:
        engine = await host.start(replace(order, **changes))
        assert isinstance(engine, LlamaEngine)
        await engine.wait_ready(60)
        return engine

    wrong = found = 0
    talks: list[list[Message]] = []
    # Its prompts are computed sooner than any file is worth: here all are saved. Two engines that each take
    # all cores would only wait for each other.
    one_core = patch.object(llama_engine, "read_host_facts", lambda: HostFacts(cores=1, has_amx=False))
    with one_core, patch.multiple(llama_slots, LEAST_PREFILL_S=0.0, _WORTH=0.0):
        steady, engine = await started(slot_cache=None), await started()
        for _ in range(rounds):
            talk = _next_talk(rng, talks)
            answer, cached = await _ask(engine, talk)
            expected, _ = await _ask(steady, talk)
            wrong += answer != expected
            found += cached > 0
            talk.append({"role": "assistant", "content": expected})
            await engine.stop(2)
            engine = await started()
        await engine.stop(0)
        await steady.stop(0)
    store.close()
    return wrong, found


def _next_talk(rng: random.Random, talks: list[list[Message]]) -> list[Message]:
    """Begin a conversation, go on with one, or with one from an earlier turn."""
    if not talks or rng.random() < 0.2:
        talk: list[Message] = []
        talks.append(talk)
        del talks[:-3]
    else:
        talk = rng.choice(talks)
        if rng.random() < 0.3:
            del talk[2 * rng.randrange(1 + len(talk) // 2) :]
    if sum(len(message["content"]) for message in talk) > 3000:
        talk.clear()
    talk.append(_said(rng, rng.randrange(3, 120)))
    return talk


async def _ask(engine: LlamaEngine, talk: list[Message]) -> tuple[str, int]:
    payload = {"messages": talk, "max_tokens": 12, "temperature": 0}
    reply = await probe(engine.endpoint, "/v1/chat/completions", payload, timeout_s=120)
    if reply is None or reply.status != 200:
        raise RuntimeError(f"the engine answers {reply and reply.body[:200]!r}")
    answer = json.loads(reply.body)
    return answer["choices"][0]["message"]["content"], answer["timings"]["cache_n"]


def _said(rng: random.Random, count: int) -> Message:
    words = ("".join(rng.choice(_SYLLABLES) for _ in range(2)) for _ in range(count))
    return {"role": "user", "content": " ".join(words)}


if __name__ == "__main__":
    print_table(main(*map(int, sys.argv[1:])))
