"""The advisor in a whole daemon: what an address answers has a real model loaded."""

import json
import threading
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.support.daemon.serving import Serving
from tests.support.models.gguf_models import build_tiny_llama


class Expects(BaseHTTPRequestHandler):
    """Would have every cold model loaded ahead."""

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        state = json.loads(asked["messages"][1]["content"])
        hints = [
            {"id": model["id"], "keep_alive_factor": 1, "soft_pin_s": 0, "prefetch": True}
            for model in state["models"]
            if not model["loaded"]
        ]
        body = json.dumps({"choices": [{"message": {"content": json.dumps({"hints": hints})}}]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


@pytest.fixture
def address() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Expects)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.engine
@pytest.mark.slow
def test_a_model_is_loaded_ahead_for_the_advisor_and_the_metrics_tell(address: str, tmp_path: Path) -> None:
    model = build_tiny_llama(tmp_path / "tiny.gguf")
    config = tmp_path / "cotenant.yaml"
    config.write_text(
        f"models:\n- {{path: {model}, ctx: 256, parallel: 1}}\n"
        f"advisor: {{mode: on, address: '{address}', model: brain, every: 200ms}}\n"
    )
    with Serving(["serve", "--config", str(config), "--port", "0"], tmp_path / "state") as daemon:
        own = daemon.address()
        daemon.wait_for("advised model=tiny .* loaded ahead by the advisor")
        daemon.wait_for("ready model=tiny")
        with urllib.request.urlopen(f"{own}/metrics", timeout=60) as answer:
            told = answer.read().decode()
        assert "cotenant_advisor_decisions_total 1.0" in told
        assert "cotenant_advisor_broken 0.0" in told
        assert daemon.terminate() == 0
