"""A real daemon whose card fills up and is lost: what it tells to whom."""

import json
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.daemon.alerting.test_alerts import Receiver, receiver
from tests.support.daemon.serving import Serving
from tests.support.models.gguf_models import build_tiny_llama

__all__ = ["receiver"]

pytestmark = [pytest.mark.engine, pytest.mark.slow]


def describe(path: Path, *used_mib: int) -> None:
    gpus = [
        {"name": f"Card {n}", "uuid": f"GPU-{n:08d}", "total_mib": 10000, "used_mib": used}
        for n, used in enumerate(used_mib)
    ]
    beside = path.with_suffix(".new")
    beside.write_text(yaml.safe_dump({"live": True, "gpus": gpus}))
    beside.replace(path)


def fetch(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=60) as response:
        answer: bytes = response.read()
        return answer


def test_a_card_that_fills_up_and_one_that_is_lost_are_told_to_webhook_log_and_metrics(
    tmp_path: Path, receiver: Receiver
) -> None:
    build_tiny_llama(tmp_path / "tiny.gguf")
    describe(tmp_path / "gpus.yaml", 1000, 1000)
    (tmp_path / "cotenant.yaml").write_text(
        f"server: {{port: 0}}\ndevices: {{gpus: gpus.yaml}}\nalerts: {{webhook: '{receiver.url}', for: 0s}}\n"
        "models: [{path: tiny.gguf, preload: true, pinned: true}]\n"
    )
    argv = ["serve", "--config", str(tmp_path / "cotenant.yaml")]
    with Serving(argv, tmp_path / "state") as daemon:
        address = daemon.address()
        daemon.wait_for("ready after")

        describe(tmp_path / "gpus.yaml", 1000, 9500)
        (full,) = receiver.wait_for(1)
        describe(tmp_path / "gpus.yaml", 1000)
        over, lost = receiver.wait_for(3)[1:]
        describe(tmp_path / "gpus.yaml", 1000, 1000)
        back = receiver.wait_for(4)[3]

        told = [(each["alert"], each["state"], each["subject"]) for each in (full, over, lost, back)]
        assert told == [
            ("memory_high", "active", "GPU 1 Card 1"),
            ("memory_high", "over", "GPU 1 Card 1"),
            ("card_lost", "active", "GPU 1 Card 1"),
            ("card_lost", "over", "GPU 1 Card 1"),
        ]
        alerts: dict[str, Any] = json.loads(fetch(f"{address}/api/alerts"))
        assert alerts["active"] == []
        assert len(alerts["recent"]) == 4
        assert b'cotenant_alerts_total{alert="card_lost"} 1.0' in fetch(f"{address}/metrics")
        daemon.wait_for("card_lost begins: GPU 1 Card 1 does not answer any more")
        assert daemon.terminate() == 0
