"""On a real card: predicted bytes, the engine's report and NVML's count (`make gpu-check`)."""

import json
import os
import urllib.request
from pathlib import Path

import openai
import pytest

from cotenant.clock import SystemClock
from cotenant.domain.devices import Inventory
from cotenant.domain.units import MIB
from cotenant.domain.vendors import InventorySource
from cotenant.hardware.gpus.inventory import probe
from tests.support.daemon.serving import serving
from tests.support.models.gguf_models import REAL_SHAPES
from tests.support.waiting import alive, wait_until

pytestmark = [pytest.mark.gpu, pytest.mark.engine, pytest.mark.slow]


def inventory() -> Inventory:
    found = probe(None, SystemClock()).inventory()
    assert found.source is InventorySource.NVML, found.problems
    return found


def used_bytes(uuid: str) -> int:
    found = inventory()
    used = next(found.reading(device).used_bytes for device in found.devices if device.id == uuid)
    assert used is not None
    return used


@pytest.mark.parametrize(
    ("name", "flags"),
    [
        ("llama-8b", ["--n-ctx", "16384"]),
        ("llama-8b", ["--n-ctx", "16384", "--cache-type-k", "q8_0", "--cache-type-v", "q8_0"]),
        ("llama-8b", ["--n-ctx", "8192", "--n-gpu-layers", "20"]),
        ("gemma3-12b", ["--n-ctx", "8192"]),
        ("qwen3-30b-a3b", ["--n-ctx", "8192"]),
    ],
)
def test_predicted_against_reported_against_measured(
    name: str, flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = REAL_SHAPES[name](tmp_path / f"{name}.gguf")
    engine = os.environ.get("COTENANT_TEST_LLAMA_SERVER")
    if engine:
        flags = [*flags, "--llama-server", engine]
    before = {device.id: used_bytes(device.id) for device in inventory().devices}
    with serving(model, tmp_path, "--flash-attn", "on", *flags) as running:
        address = running.address()
        with openai.OpenAI(base_url=f"{address}/v1", api_key="none") as client:
            client.completions.create(model="local", prompt="x " * 600, max_tokens=4)
        with urllib.request.urlopen(f"{address}/api/models", timeout=60) as response:
            placement = json.load(response)["models"][0]["placement"]
        (device,) = placement["devices"]
        measured = used_bytes(device["uuid"]) - before[device["uuid"]]
        pid = running.engine_pid()
        assert running.terminate() == 0
    wait_until(lambda: not alive(pid))
    planned, reported = device["planned"], device["reported"]
    with capsys.disabled():
        print(f"\n{name} {' '.join(flags[:6])} (MiB)")
        for part in ("weights", "kv", "compute"):
            print(
                f"  {part:<10} planned {planned[part] / MIB:>10,.2f}  engine {reported[part] / MIB:>10,.2f}"
            )
        rest = measured - reported["total"]
        print(f"  {'overhead':<10} planned {planned['overhead'] / MIB:>10,.2f}  NVML   {rest / MIB:>10,.2f}")
        print(f"  {'total':<10} planned {planned['total'] / MIB:>10,.2f}  NVML   {measured / MIB:>10,.2f}")
    assert abs(planned["weights"] - reported["weights"]) < MIB
    assert abs(planned["kv"] - reported["kv"]) < MIB
    assert measured <= planned["total"] + 1024 * MIB, "more than the plan and its reserve"
