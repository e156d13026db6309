"""The log of a model's last engine is shown, however it ended, and after a restart of the daemon."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.daemon.api import get, port_of
from tests.support.daemon.serving import Serving
from tests.support.http.client import post
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow

SERVES = """
import http.server, os, sys
class Healthy(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
print(sys.argv[2], os.getpid(), flush=True)
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Healthy).serve_forever()
"""
FALLS = "import sys; sys.exit(f'{sys.argv[2]} gives up')"


def configure(folder: Path) -> Path:
    no_program = folder / "no-interpreter"
    no_program.write_text("#!/nonexistent/interpreter\n")
    no_program.chmod(0o755)
    serves, falls = ([sys.executable, "-c", text, "{port}"] for text in (SERVES, FALLS))
    models = [
        {"name": "org/serves:1b", "command": [*serves, "the first"]},
        {"name": "org_serves:1b", "command": [*serves, "the second"]},
        {"name": "falls", "command": [*falls, "it"]},
        {"name": "absent", "command": [str(no_program)]},
        {"name": "never", "command": [*serves, "never"]},
    ]
    for model in models:
        model |= {"path": str(folder), "engine": "command", "memory": "1MiB"}
    path = folder / "cotenant.yaml"
    path.write_text(json.dumps({"models": models}))
    return path


def logs(daemon: Serving, name: str) -> str:
    argv = [sys.executable, "-m", "cotenant.cli.main", "logs", name, "--address", daemon.address()]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    return done.stdout + done.stderr


def load(daemon: Serving, name: str) -> int:
    return asyncio.run(post(port_of(daemon), f"/api/models/{name.replace('/', '%2F')}/load", {})).status


def check(daemon: Serving) -> None:
    assert logs(daemon, "org/serves:1b").startswith("the first")
    assert logs(daemon, "org_serves:1b").startswith("the second")
    assert "it gives up" in logs(daemon, "falls")
    assert "No such file or directory" in logs(daemon, "absent")
    assert "no log yet" in logs(daemon, "never")


def test_logs_are_shown_of_engines_that_failed_or_were_killed_also_after_a_restart(tmp_path: Path) -> None:
    argv = ["serve", "--config", str(configure(tmp_path)), "--gpus", "4GiB", "--port"]
    with Serving([*argv, "0"], tmp_path / "state") as daemon:
        port = str(port_of(daemon))
        for name in ("org/serves:1b", "org_serves:1b"):
            assert load(daemon, name) == 200
            os.kill(int(logs(daemon, name).splitlines()[0].split()[-1]), signal.SIGKILL)
            path = f"/api/models/{name.replace('/', '%2F')}"
            wait_until(lambda path=path: get(daemon, path)["state"] == "cold")
        assert load(daemon, "falls") != 200
        assert load(daemon, "absent") != 200
        check(daemon)
    with Serving([*argv, port], tmp_path / "state") as daemon:
        daemon.address()
        check(daemon)
        assert daemon.terminate() == 0
