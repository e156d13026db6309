"""Memory that a daemon leases to commands of others, as users run it."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.daemon.api import get, port_of
from tests.support.daemon.serving import Serving
from tests.support.gpus.paper_machine import PaperMachine, fake_fleet
from tests.support.http.client import post
from tests.support.models.gguf_models import build_tiny_llama
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow

MIB = 1 << 20
GUEST = """
import sys
from tests.support.engines.fake_card import take
machine, *sizes = sys.argv[1:]
for size in sizes:
    print(take(machine, int(size), name="guest") or "", flush=True)
    sys.stdin.readline()
"""
"""Takes memory of a card on paper, each time that it is told to."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("leases")


@pytest.fixture(scope="module")
def paper(folder: Path) -> PaperMachine:
    return PaperMachine(folder, total_mib=1000)


@pytest.fixture(scope="module")
def daemon(folder: Path, paper: PaperMachine) -> Iterator[Serving]:
    takes = {"FAKE_CARD": paper.path, "FAKE_TAKES_MIB": 300}
    model = build_tiny_llama(folder / "model.gguf")
    with fake_fleet(folder, model, str(paper.path), {"m": takes}) as serving:
        yield serving


@contextlib.contextmanager
def leased(daemon: Serving, *argv: str) -> Iterator[subprocess.Popen[str]]:
    """Run `cotenant lease`; it must have ended, or is killed."""
    command = [sys.executable, "-m", "cotenant.cli.main", "lease", "--address", daemon.address(), *argv]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def guest(paper: PaperMachine, *sizes: int) -> list[str]:
    # A shell in between, and in a session of its own: only its family tells whose it is.
    argv = [sys.executable, "-c", GUEST, str(paper.path), *map(str, sizes)]
    return ["--", "setsid", "--wait", *argv]


def leases(daemon: Serving) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = get(daemon, "/api/leases")["leases"]
    return found


def ask(daemon: Serving) -> int:
    body = {"model": "m", "prompt": "x", "max_tokens": 2}
    return asyncio.run(post(port_of(daemon), "/v1/completions", body)).status


def send(daemon: Serving, body: dict[str, object], path: str = "/api/leases", method: str = "POST") -> Any:
    data, kind = json.dumps(body).encode(), {"content-type": "application/json"}
    request = urllib.request.Request(daemon.address() + path, data, kind, method=method)
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return json.load(response)
    except urllib.error.HTTPError as error:
        return json.load(error)["error"]


def test_a_command_gets_its_memory_which_counts_once_and_is_back_at_its_end(
    daemon: Serving, paper: PaperMachine
) -> None:
    assert ask(daemon) == 200
    wait_until(lambda: paper.card()["used_mib"] == 300)

    def card() -> dict[str, Any]:
        (found,) = get(daemon, "/api/devices")["devices"]
        return found

    with leased(daemon, "700MiB", *guest(paper, 500, 250)) as command:
        assert command.stdin
        assert command.stdout
        assert command.stdout.readline() == "\n", "the model was in its way and is evicted"
        (lease,) = leases(daemon)
        assert (lease["state"], lease["bytes_by_device"]) == ("leased", {"GPU-paper": 700 * MIB})
        wait_until(lambda: leases(daemon)[0]["measured_bytes"] == 500 * MIB)
        shown, why = card(), f"/api/models/{lease['name']}/why"
        assert shown["residents"] == [lease["name"]]
        assert shown["foreign_bytes"] == 0
        assert shown["processes"] == []
        assert shown["plannable_bytes"] == 200 * MIB, "less the reserve of 100 MiB"
        assert f'lease="{lease["name"]}"' in get(daemon, "/metrics", as_text=True)
        ps = [sys.executable, "-m", "cotenant.cli.main", "ps", "--address", daemon.address()]
        assert lease["name"] in subprocess.check_output(ps, text=True)
        assert get(daemon, why)["decisions"][0]["text"].startswith("leases 700 MiB of GPU 0 paper")
        command.stdin.write("more\n")
        command.stdin.flush()
        assert command.stdout.readline() == "\n"
        wait_until(lambda: card()["foreign_bytes"] == 50 * MIB)
        assert "it holds 50 MiB more than it leases" in get(daemon, why)["decisions"][-1]["text"]
        command.stdin.write("end\n")
        command.stdin.flush()
        assert command.wait() == 0
    wait_until(lambda: card()["plannable_bytes"] == 900 * MIB)
    assert ask(daemon) == 200


def test_the_status_is_the_commands_and_faults_are_told(daemon: Serving) -> None:
    with leased(daemon, "100MiB", "--", "sh", "-c", "echo $CUDA_VISIBLE_DEVICES; exit 7") as command:
        out, err = command.communicate()
        # The card is only on paper: it is hidden.
        assert (command.returncode, out) == (7, "-1\n")
        assert "holds 100 MiB of GPU-paper" in err
    for argv, status, told in (
        (("3GiB", "--", "true"), 3, "does not fit: it needs 3.0 GiB"),
        (("1GiB", "--gpu", "4", "--", "true"), 2, "'4' is no GPU of this daemon"),
        (("many", "--", "true"), 2, "MEMORY: 'many' is not a size"),
        (("1GiB", "--for", "x", "--", "true"), 2, "--for: 'x' is not a duration"),
        (("100MiB", "--", "/no/such"), 127, "/no/such cannot be run: No such file"),
    ):
        with leased(daemon, *argv) as command:
            _, err = command.communicate()
            assert (command.returncode, told in err) == (status, True), err
    assert not leases(daemon)


def test_a_lease_ends_at_its_time_with_its_connection_or_by_an_order(daemon: Serving) -> None:
    with leased(daemon, "100MiB", "--for", "100ms", "--", "sleep", "600") as command:
        _, err = command.communicate()
        assert command.returncode == 128 + signal.SIGTERM
        assert "its time is over; frees 100 MiB on GPU 0 paper; the command is stopped" in err
    with leased(daemon, "100MiB", "--", "sh", "-c", "echo $$; exec sleep 600") as command:
        assert command.stdout
        child = int(command.stdout.readline())
        assert len(leases(daemon)) == 1
        command.kill()
        wait_until(lambda: not leases(daemon))
        os.kill(child, signal.SIGKILL)
    kept = send(daemon, {"bytes": 100 * MIB, "lasts_s": 600, "pid": os.getpid()})
    assert 590 < kept["left_s"] <= 600
    assert send(daemon, {"bytes": MIB, "pid": os.getpid()})["message"] == (
        f"process {os.getpid()} has a lease already: {kept['name']}"
    )
    assert send(daemon, {"bytes": 0})["code"] == "bad_assignment"
    assert send(daemon, {}, f"/api/leases/{kept['name']}", "DELETE") == {"name": kept["name"]}
    wait_until(lambda: not leases(daemon))
    assert send(daemon, {}, f"/api/leases/{kept['name']}", "DELETE")["code"] == "unknown_lease"


def test_who_waits_for_another_lease_gets_its_turn_and_nothing_if_he_leaves(daemon: Serving) -> None:
    first = send(daemon, {"bytes": 700 * MIB})
    with leased(daemon, "700MiB", "--wait", "1h", "--", "echo", "here") as command:
        wait_until(lambda: [each["state"] for each in leases(daemon)] == ["leased", "waiting"])
        with leased(daemon, "700MiB", "--", "true"):
            wait_until(lambda: len(leases(daemon)) == 3)
        wait_until(lambda: len(leases(daemon)) == 2)
        assert send(daemon, {"bytes": 700 * MIB, "wait_s": 0.1})["code"] == "wait_timeout"
        send(daemon, {}, f"/api/leases/{first['name']}", "DELETE")
        assert command.communicate()[0] == "here\n"
    wait_until(lambda: not leases(daemon))


def test_a_command_outlives_the_daemon_and_is_told(tmp_path: Path) -> None:
    model = build_tiny_llama(tmp_path / "model.gguf")
    argv = ["100MiB", "--", "sh", "-c", "echo; read line; exit 5"]
    with fake_fleet(tmp_path, model, "8GiB", {"m": {}}) as daemon, leased(daemon, *argv) as command:
        assert command.stdout
        command.stdout.readline()
        assert daemon.terminate() == 0
        _, err = command.communicate("go on\n")
        assert command.returncode == 5
        assert "the daemon has ended: the command goes on" in err
