"""A build whose repacked weights need an instruction that the processor lacks."""

import stat
from pathlib import Path

import pytest

from cotenant.domain.errors import EngineLoadFailed
from cotenant.domain.exit_causes import Cause
from cotenant.engines.llama_cpp import engine as llama_cpp
from cotenant.engines.llama_cpp.engine import LlamaHost
from cotenant.engines.llama_cpp.host_facts import HostFacts
from tests.engines.contract import inputs
from tests.support.engines.orders import fake_server, gpu_order, host_order, with_env

KNOWS_NO_REPACK = "-nr,   --no-repack                      do not repack weights\n"


@pytest.fixture
def build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write a server that dies of SIGILL unless told --no-repack, on a processor that hides its AMX."""
    monkeypatch.setattr(llama_cpp, "read_host_facts", lambda: HostFacts(2, has_amx=False))
    program = tmp_path / "needs-amx"
    program.write_text(
        "#!/bin/sh\n"
        'case "$*" in\n'
        f'  --help) printf "%s" "{KNOWS_NO_REPACK}" ;;\n'
        "  --version|--list-devices|*--no-repack*) ;;\n"
        '  *) echo "AMX is not ready to be used!" >&2; kill -ILL $$ ;;\n'
        "esac\n"
        f'exec {fake_server(tmp_path)} "$@"\n'
    )
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return program


async def test_after_an_illegal_instruction_the_next_attempt_does_not_repack(
    tmp_path: Path, build: Path
) -> None:
    host = LlamaHost(inputs(tmp_path, llama_server=build))
    order = host_order(Path("m.gguf"))

    first = await host.start(order)
    with pytest.raises(EngineLoadFailed) as failed:
        await first.wait_ready(60)
    assert failed.value.cause is Cause.ILLEGAL_INSTRUCTION

    for name in ("the same model", "any other"):
        engine = await host.start(order)
        try:
            await engine.wait_ready(60)
            assert not engine.ended, name
        finally:
            await engine.stop(2)


async def test_a_card_in_exclusive_mode_explains_a_death_without_a_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_DEVICES", "  CUDA0: NVIDIA GeForce RTX 3090 (24564 MiB, 19304 MiB free)")
    order = with_env(gpu_order((33,)), FAKE_SAYS="", FAKE_EXIT=1)
    card = order.placement.used_shares[0].device.id
    for exclusive, cause in ((frozenset({card}), Cause.DEVICE_BUSY), (frozenset(), Cause.UNKNOWN)):
        host = LlamaHost(inputs(tmp_path, llama_server=fake_server(tmp_path), exclusive=exclusive))
        engine = await host.start(order)
        with pytest.raises(EngineLoadFailed) as failed:
            await engine.wait_ready(60)
        assert failed.value.cause is cause
