"""A machine on paper that changes while it is served: what its daemon sees of it."""

import asyncio
from pathlib import Path

import pytest

from tests.support.daemon.api import get, port_of
from tests.support.engines.fake_card import opened
from tests.support.gpus.paper_machine import PaperMachine, fake_fleet
from tests.support.http.client import post
from tests.support.models.gguf_models import build_tiny_llama
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow


def test_how_busy_a_card_is_and_what_an_engine_holds_are_seen_as_they_change(tmp_path: Path) -> None:
    machine = PaperMachine(tmp_path, total_mib=1000)
    model = build_tiny_llama(tmp_path / "model.gguf")

    def tell(**facts: object) -> None:
        with opened(machine.path) as written:
            written["gpus"][0] |= facts

    tell(utilisation_percent=0, temperature_c=40)
    takes = {"FAKE_CARD": machine.path, "FAKE_TAKES_MIB": 300}
    with fake_fleet(tmp_path, model, str(machine.path), {"m": takes}) as daemon:

        def card() -> dict[str, object]:
            (found,) = get(daemon, "/api/devices")["devices"]
            return {name: found[name] for name in ("utilisation_percent", "temperature_c", "power_w")}

        assert card() == {"utilisation_percent": 0, "temperature_c": 40, "power_w": None}
        ask = {"model": "m", "prompt": "x", "max_tokens": 2}
        assert asyncio.run(post(port_of(daemon), "/v1/completions", ask)).status == 200
        tell(utilisation_percent=85, temperature_c=66, power_w=301.5)
        wait_until(lambda: card() == {"utilisation_percent": 85, "temperature_c": 66, "power_w": 301.5})
        wait_until(lambda: get(daemon, "/api/models/m")["measured_bytes"] == 300 << 20)
        text = get(daemon, "/metrics", as_text=True)
        assert "\ncotenant_gpu_utilization_ratio{" in text
        assert any(
            line.startswith("DCGM_FI_DEV_GPU_UTIL{") and line.endswith(" 85.0") for line in text.split("\n")
        )
