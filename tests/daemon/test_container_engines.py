"""The whole daemon with engines in containers of a real podman."""

import contextlib
import json
import os
import signal
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.containers.container_bed import ContainerBed, container_bed
from tests.support.containers.engine_images import SERVER, shell_image
from tests.support.daemon.serving import Serving
from tests.support.models.gguf_models import build_tiny_llama
from tests.support.waiting import alive, wait_until

pytestmark = pytest.mark.slow


@pytest.fixture
def bed(monkeypatch: pytest.MonkeyPatch) -> ContainerBed:
    found = container_bed()
    if isinstance(found, str):
        pytest.skip(found)
    for name, value in found.environment.items():
        monkeypatch.setenv(name, value)
    shell_image(found)
    return found


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = build_tiny_llama(tmp_path_factory.mktemp("model") / "tiny.gguf")
    path.chmod(0o644)
    return path


@contextlib.contextmanager
def daemon(folder: Path, bed: ContainerBed, model: Path) -> Iterator[Serving]:
    image = shell_image(bed)
    server = SERVER.replace("$PORT", "{port}").replace("$MODEL", "{path}")
    models = [
        {"name": "tiny", "path": str(model), "image": image},
        {
            "name": "shell",
            "engine": "command",
            "command": ["sh", "-c", server],
            "path": str(model),
            "memory": "8MiB",
            "image": image,
            "launcher": "podman",
        },
        {"name": "gone", "path": str(model), "image": "localhost/nowhere:1", "launcher": "podman"},
    ]
    (folder / "cotenant.yaml").write_text(json.dumps({"models": models}))
    argv = ["serve", "--config", str(folder / "cotenant.yaml"), "--port", "0"]
    with Serving(argv, folder / "state", bed.environment) as running:
        yield running


def post(url: str) -> dict[str, Any]:
    request = urllib.request.Request(url, data=b"{}", method="POST")
    request.add_header("Content-Type", "application/json")
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            told = json.loads(answer.read())
    except urllib.error.HTTPError as error:
        with error:
            told = json.loads(error.read())
    assert isinstance(told, dict)
    return told


def containers(bed: ContainerBed) -> list[str]:
    return bed.podman("ps", "-a", "--filter", "label=cotenant.engine", "--format", "{{.Names}}").split()


def pids(bed: ContainerBed) -> list[int]:
    return [int(bed.podman("inspect", "--format", "{{.State.Pid}}", name)) for name in containers(bed)]


def test_models_in_images_are_loaded_told_of_and_gone_with_the_daemon(
    bed: ContainerBed, model: Path, tmp_path: Path
) -> None:
    with daemon(tmp_path, bed, model) as running:
        address = running.address()
        for name in ("tiny", "shell"):
            told = post(f"{address}/api/models/{name}/load")
            assert "error" not in told, told
        assert sorted(name.split("-")[1] for name in containers(bed)) == ["shell", "tiny"]
        refused = json.dumps(post(f"{address}/api/models/gone/load"))
        assert "podman has no image localhost/nowhere:1" in refused
        assert "podman pull localhost/nowhere:1" in refused
        assert "error" not in post(f"{address}/api/models/tiny/unload")
        assert [name.split("-")[1] for name in containers(bed)] == ["shell"]
        assert running.terminate() == 0
    assert containers(bed) == []
    assert "begins as 65534" in next((tmp_path / "state").rglob("shell.log")).read_text()


def test_kill_9_of_the_daemon_takes_engines_in_containers_with_it(
    bed: ContainerBed, model: Path, tmp_path: Path
) -> None:
    with daemon(tmp_path, bed, model) as running:
        post(f"{running.address()}/api/models/tiny/load")
        (pid,) = pids(bed)
        running.process.kill()
        running.process.wait()
        wait_until(lambda: not alive(pid))
        wait_until(lambda: containers(bed) == [])


def test_what_a_kill_of_everything_left_is_gone_after_the_next_start(
    bed: ContainerBed, model: Path, tmp_path: Path
) -> None:
    with daemon(tmp_path, bed, model) as running:
        post(f"{running.address()}/api/models/shell/load")
        (pid,) = pids(bed)
        family = Path(f"/proc/{running.process.pid}/task/{running.process.pid}/children").read_text()
        supervisors = [
            c for c in family.split() if "container_supervisor" in Path(f"/proc/{c}/cmdline").read_text()
        ]
        os.kill(int(supervisors[0]), signal.SIGSTOP)
        running.process.kill()
        running.process.wait()
        os.kill(int(supervisors[0]), signal.SIGKILL)
        assert alive(pid)
    with daemon(tmp_path, bed, model) as running:
        running.address()
        wait_until(lambda: containers(bed) == [])
        assert not alive(pid)
        running.wait_for("removed the container cotenant-shell-")


def test_an_engine_that_dies_in_its_container_is_loaded_anew(
    bed: ContainerBed, model: Path, tmp_path: Path
) -> None:
    with daemon(tmp_path, bed, model) as running:
        address = running.address()
        post(f"{address}/api/models/tiny/load")
        (pid,) = pids(bed)
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: containers(bed) == [])
        # The daemon hears of it a moment after the container has gone.
        wait_until(lambda: "error" not in post(f"{address}/api/models/tiny/load") and containers(bed) != [])
        assert pids(bed) != [pid]
        assert running.terminate() == 0
