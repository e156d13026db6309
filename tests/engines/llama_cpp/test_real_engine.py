import asyncio
import json
import os
import subprocess
import sys
import textwrap
import urllib.request
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cotenant.analysis.footprint import Costs
from cotenant.analysis.shape import adapter_sizes
from cotenant.domain.engines import Adapter, Companions
from cotenant.domain.errors import EngineLoadFailed, EngineMissing
from cotenant.domain.models import FlashAttention, ModelKind
from cotenant.domain.units import MIB
from cotenant.engines.llama_cpp.engine import LlamaEngine, LlamaHost
from cotenant.interfaces import EngineOrder
from cotenant.model_files import load_model, open_header
from tests.engines.contract import inputs
from tests.support.engines.orders import host_order
from tests.support.models.adapters import build_tiny_control_vector, build_tiny_lora
from tests.support.models.gguf_models import build_tiny_embedder, build_tiny_llama
from tests.support.models.known_model import KNOWN_PROMPT, KNOWN_TEXT, known_model, real_server
from tests.support.models.vision import build_tiny_projector
from tests.support.waiting import ends

pytestmark = [pytest.mark.engine, pytest.mark.slow]

ROOT = Path(__file__).resolve().parents[3]
LOAD_TIMEOUT_S = 60.0


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_llama(tmp_path_factory.mktemp("models") / "tiny.gguf")


@pytest.fixture(params=["embedded", "server"])
def configured(request: pytest.FixtureRequest) -> Path | None:
    """Each way to run llama.cpp: None is the embedded engine."""
    return real_server() if request.param == "server" else None


def run(
    logs: Path, configured: Path | None, order: EngineOrder, scenario: Callable[[LlamaEngine], Awaitable[Any]]
) -> Any:
    async def main() -> Any:
        engine = await LlamaHost(inputs(logs, llama_server=configured)).start(order)
        try:
            await engine.wait_ready(LOAD_TIMEOUT_S)
            return await scenario(engine)
        finally:
            await engine.stop(2)

    return asyncio.run(main())


def post(engine: LlamaEngine, path: str, **body: object) -> Any:
    request = urllib.request.Request(
        engine.endpoint.url + path,
        json.dumps(body).encode(),
        {
            "Content-Type": "application/json",
            "Authorization": f"Bearer {engine.endpoint.key}",
        },
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def test_a_model_generates_and_reports_its_memory(
    tmp_path: Path, configured: Path | None, tiny: Path
) -> None:
    async def scenario(engine: LlamaEngine) -> None:
        answer = await asyncio.to_thread(post, engine, "/v1/completions", prompt="ba", max_tokens=5)
        assert answer["usage"]["completion_tokens"] == 5
        assert answer["model"] == "tiny"
        assert await engine.busy_slots() == 0
        report = engine.report()
        assert report is not None
        (host,) = report.devices
        assert host.on_host
        # 512 cells of two K and V heads of 64 halves in four blocks.
        assert host.parts.kv == 512 * 2 * 2 * 64 * 2 * 4
        assert 0.9 < host.parts.weights / tiny.stat().st_size < 1.1  # noqa: ASYNC240
        assert host.parts.compute > 0

    run(tmp_path, configured, host_order(tiny), scenario)


def test_a_draft_takes_what_is_planned_and_changes_no_answer(
    tmp_path: Path, configured: Path | None, tiny: Path
) -> None:
    async def scenario(engine: LlamaEngine) -> Any:
        asked = {"prompt": "Once upon", "max_tokens": 24, "temperature": 0, "n_probs": 0}
        answer = await asyncio.to_thread(post, engine, "/completion", **asked)
        return engine.report(), answer

    order = host_order(tiny, n_ctx=2048)
    with_draft = replace(order, companions=Companions(draft=str(tiny)))
    alone, text = run(tmp_path, configured, order, scenario)
    both, drafted = run(tmp_path, configured, with_draft, scenario)
    assert drafted["content"] == text["content"]
    assert drafted["timings"]["draft_n"] > 0
    shape = load_model(tiny)
    planned = Costs(shape, order.placement.recipe, begin=shape.n_layers + 1, draft=shape).all_on_host()
    found = both.devices[-1].parts
    assert found.kv == planned.kv == 2 * alone.devices[-1].parts.kv
    assert abs(found.weights - planned.weights) < MIB
    assert found.compute <= 1.2 * planned.compute


def test_adapters_take_what_is_planned_and_a_request_chooses_among_them(
    tmp_path: Path, configured: Path | None, tiny: Path
) -> None:
    first, second = (build_tiny_lora(tmp_path / f"{seed}.gguf", seed=seed) for seed in (1, 2))

    async def scenario(engine: LlamaEngine) -> Any:
        async def text(**more: object) -> str:
            asked = {"prompt": "Once upon", "max_tokens": 16, "temperature": 0, **more}
            answer = await asyncio.to_thread(post, engine, "/v1/completions", **asked)
            return str(answer["choices"][0]["text"])

        scales = ([1, 0], [0, 1], [0, 0])
        # Later, llama.cpp would continue what other adapters have computed of the prompt.
        by_default = await text()
        named = [await text(lora=[{"id": i, "scale": s} for i, s in enumerate(each)]) for each in scales]
        return engine.report(), named, by_default

    order = host_order(tiny)
    adapters = Adapter(str(first), 1.0), Adapter(str(second), 0.0)
    adapted = replace(order, companions=Companions(adapters=adapters))
    plain, (_, _, without), _ = run(tmp_path, configured, order, scenario)
    report, texts, by_default = run(tmp_path, configured, adapted, scenario)
    assert len({*texts}) == 3
    assert (texts[0], texts[2]) == (by_default, without)
    shape = load_model(tiny)
    for path in (first, second):
        shape = adapter_sizes(open_header(path)).on(shape)
    begin = shape.n_layers + 1
    planned = Costs(shape, order.placement.recipe, begin=begin).all_on_host()
    alone = Costs(load_model(tiny), order.placement.recipe, begin=begin).all_on_host()
    taken = report.devices[-1].parts.weights - plain.devices[-1].parts.weights
    assert abs(taken - (planned.weights - alone.weights)) < 0.02 * MIB
    grown = report.devices[-1].parts.compute - plain.devices[-1].parts.compute
    assert 0 <= grown <= planned.compute - alone.compute


def test_a_control_vector_changes_the_answers(tmp_path: Path, tiny: Path) -> None:
    vector = Adapter(str(build_tiny_control_vector(tmp_path / "cv.gguf")), 2.0)
    steered = replace(host_order(tiny), companions=Companions(control_vectors=(vector,)))

    async def scenario(engine: LlamaEngine) -> Any:
        asked = {"prompt": "Once upon", "max_tokens": 16, "temperature": 0}
        return await asyncio.to_thread(post, engine, "/completion", **asked)

    with pytest.raises(EngineMissing, match="the embedded engine has no control vectors"):
        run(tmp_path, None, steered, scenario)
    server = real_server()
    plain, changed = (run(tmp_path, server, order, scenario) for order in (host_order(tiny), steered))
    assert plain["content"] != changed["content"]


def test_the_working_memory_of_a_projector_is_within_its_plan(
    tmp_path: Path, configured: Path | None, tiny: Path
) -> None:
    mmproj = build_tiny_projector(tmp_path / "mmproj.gguf", image=448)

    def compute(order: EngineOrder) -> int:
        async def scenario(engine: LlamaEngine) -> int:
            report = engine.report()
            assert report is not None
            return report.devices[0].parts.compute

        reported = run(tmp_path, configured, order, scenario)
        assert isinstance(reported, int)
        return reported

    planned = load_model(mmproj).projector
    assert planned is not None
    order = host_order(tiny)
    reserved = compute(replace(order, projector_path=mmproj)) - compute(order)
    assert planned.compute / 2 < reserved <= planned.compute


def test_a_trained_model_gives_its_known_answer(tmp_path: Path, configured: Path | None) -> None:
    model = known_model()

    async def scenario(engine: LlamaEngine) -> Any:
        return await asyncio.to_thread(
            post, engine, "/v1/completions", prompt=KNOWN_PROMPT, max_tokens=40, temperature=0
        )

    answer = run(tmp_path, configured, host_order(model), scenario)
    assert answer["choices"][0]["text"].startswith(KNOWN_TEXT)


def test_an_embedding_model_embeds(tmp_path: Path, configured: Path | None) -> None:
    model = build_tiny_embedder(tmp_path / "embedder.gguf")

    async def scenario(engine: LlamaEngine) -> Any:
        return await asyncio.to_thread(post, engine, "/v1/embeddings", input="hello")

    order = replace(host_order(model), kind=ModelKind.EMBEDDING)
    answer = run(tmp_path, configured, order, scenario)
    assert len(answer["data"][0]["embedding"]) == 64


def test_settings_reach_the_engine(tmp_path: Path, configured: Path | None, tiny: Path) -> None:
    order = host_order(
        tiny,
        n_ctx=1536,
        parallel=3,
        n_batch=300,
        n_ubatch=200,
        kv_unified=False,
        flash_attention=FlashAttention.ON,
        mmap=False,
    )

    async def scenario(engine: LlamaEngine) -> str:
        return await asyncio.to_thread(engine.log_path.read_text)

    log = run(tmp_path, configured, replace(order, args=("--no-warmup",)), scenario)
    told = ("n_seq_max             = 3", "n_ctx                 = 1536", "n_ctx_seq             = 512")
    for line in (*told, "n_ubatch              = 200", "flash_attn            = enabled", "load_mode = none"):
        assert line in log
    assert "CPU_Mapped" not in log
    assert "warming up" not in log
    assert "fitting params" not in log


def test_ambient_llama_variables_are_ignored(
    tmp_path: Path, configured: Path | None, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLAMA_ARG_CTX_SIZE", "1024")
    monkeypatch.setenv("LLAMA_API_KEY", "secret")
    monkeypatch.setenv("LLAMA_ARG_N_PREDICT", "1")

    async def scenario(engine: LlamaEngine) -> None:
        answer = await asyncio.to_thread(post, engine, "/v1/completions", prompt="ba", max_tokens=3)
        assert answer["usage"]["completion_tokens"] == 3

    run(tmp_path, configured, host_order(tiny), scenario)


def truncated(model: bytes) -> bytes:
    return model[: len(model) // 2]


def corrupt(model: bytes) -> bytes:
    return model[:24] + bytes((byte * 7 + 13) & 255 for byte in model[24:400]) + model[400:]


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (None, "there is no such model file"),
        (truncated, "the model file is truncated or damaged"),
        (corrupt, "the header of the model file is damaged"),
        (lambda model: b"PK\3\4" + model[4:], "the model file is not a GGUF file"),
        (
            lambda model: model.replace(b"\5\0\0\0\0\0\0\0llama", b"\5\0\0\0\0\0\0\0llomo", 1),
            "its build does not know the architecture 'llomo'",
        ),
    ],
    ids=["missing", "truncated", "corrupt", "magic", "architecture"],
)
def test_a_useless_file_is_explained(
    tmp_path: Path,
    configured: Path | None,
    tiny: Path,
    damage: Callable[[bytes], bytes] | None,
    why: str,
) -> None:
    model = tmp_path / "useless.gguf"
    if damage is not None:
        model.write_bytes(damage(tiny.read_bytes()))

    async def scenario(engine: LlamaEngine) -> None:
        raise AssertionError("it loaded")

    with pytest.raises(EngineLoadFailed) as failed:
        run(tmp_path, configured, host_order(model), scenario)
    assert failed.value.message.startswith(f"tiny could not be loaded: {why} (")
    assert "\n" not in failed.value.message


def test_an_argument_that_the_engine_does_not_know_is_explained(
    tmp_path: Path, configured: Path | None, tiny: Path
) -> None:
    async def scenario(engine: LlamaEngine) -> None:
        raise AssertionError("it loaded")

    with pytest.raises(EngineLoadFailed, match="--no-such-setting"):
        run(tmp_path, configured, replace(host_order(tiny), args=("--no-such-setting", "1")), scenario)


@pytest.mark.parametrize("when", ["loading", "ready"])
def test_a_killed_daemon_leaves_no_engine(
    tmp_path: Path, configured: Path | None, tiny: Path, when: str
) -> None:
    daemon = f"""
        import asyncio, sys
        from pathlib import Path
        sys.path.insert(0, {str(ROOT)!r})
        from cotenant.engines.llama_cpp.engine import LlamaHost
        from tests.engines.contract import inputs
        from tests.support.engines.orders import host_order
        configured = {None if configured is None else str(configured)!r}

        async def main():
            llama_server = configured and Path(configured)
            host = LlamaHost(inputs(Path({str(tmp_path)!r}), llama_server=llama_server))
            engine = await host.start(host_order(Path({str(tiny)!r})))
            if {when == "ready"}:
                await engine.wait_ready(60)
            print(engine.pid, flush=True)
            await engine.wait_exit()

        asyncio.run(main())
    """
    command = [sys.executable, "-c", textwrap.dedent(daemon)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout
        pidfd = os.pidfd_open(int(parent.stdout.readline()))
        parent.kill()
        assert ends(pidfd)


def test_the_embedded_engine_logs_less_once_it_serves(tmp_path: Path, tiny: Path) -> None:
    async def scenario(engine: LlamaEngine) -> int:
        await asyncio.to_thread(post, engine, "/v1/completions", prompt="ba", max_tokens=1)
        before = await asyncio.to_thread(lambda: engine.log_path.stat().st_size)
        for _ in range(20):
            await asyncio.to_thread(post, engine, "/v1/completions", prompt="ba", max_tokens=1)
        return await asyncio.to_thread(lambda: engine.log_path.stat().st_size - before)

    written = run(tmp_path, None, host_order(tiny), scenario)
    assert 0 < written / 20 < 1500
