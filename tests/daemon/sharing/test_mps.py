"""Cards in Exclusive_Process mode, through the daemon as users run it, with a stand-in for MPS's program."""

import json
import os
import signal
import stat
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cotenant.engines.process import guard
from cotenant.engines.process.guard import descendants
from cotenant.hardware.mps.daemon import start_manually
from cotenant.hardware.mps.directories import MpsDirectories
from cotenant.hardware.mps.discovery import variables_of
from tests.support.daemon.serving import Serving
from tests.support.engines.orders import fake_server
from tests.support.gpus.fake_mps import control_daemon, left_in_pipes, mps_processes, stand_in
from tests.support.waiting import alive, wait_until

pytestmark = pytest.mark.slow

CARD = "GPU-aaaaaaaa-1111"


class Machine:
    """A described machine with exclusive cards, two models and a daemon that may be started again."""

    def __init__(self, folder: Path, model: Path) -> None:
        self.folder, self.model = folder, model
        self.state = folder / "s"
        self.program = stand_in(folder / "bin")
        self.gpus = folder / "gpus.yaml"
        self.cards(1)

    def cards(self, count: int) -> None:
        entry = "- {{name: RTX 3090, total_mib: 8000, compute_mode: exclusive_process, uuid: {}}}\n"
        uuids = [CARD, "GPU-bbbbbbbb-2222"][:count]
        self.gpus.write_text("".join(entry.format(uuid) for uuid in uuids))

    def configure(self, mps: str, **models: str) -> Path:
        config = self.folder / "cotenant.yaml"
        lines = [f"devices: {{gpus: {self.gpus}, reserve_mib: 0, {mps}}}", "models:"]
        for name, more in models.items():
            lines.append(f"- {{name: {name}, path: {self.model}, {more}}}")
        config.write_text("\n".join(lines))
        return config

    def serving(self, mps: str = "mps: auto", env: dict[str, str] | None = None, **models: str) -> Serving:
        told = models or {"a": "mps_threads: 30%", "b": "ctx: 512"}
        config = self.configure(mps, **told)
        argv = ["serve", "--config", str(config), "--port", "0"]
        argv += ["--llama-server", str(fake_server(self.folder))]
        program = {} if env is not None and "PATH" in env else {"COTENANT_MPS_CONTROL": str(self.program)}
        none_by_default = {"CUDA_MPS_PIPE_DIRECTORY": str(self.folder / "nobody")}
        return Serving(argv, self.state, {**none_by_default, **program, **(env or {})})


@pytest.fixture
def machine(model: Path) -> Iterator[Machine]:
    # Short, since a socket's path has 107 characters at most.
    with tempfile.TemporaryDirectory(prefix="mps-") as folder:
        made = Machine(Path(folder), model)
        yield made
        for pid in mps_processes(made.state):
            os.kill(pid, signal.SIGKILL)


def ask(daemon: Serving, name: str) -> dict[str, str]:
    """Have a model answer, and return the environment of its engine."""
    body = json.dumps({"model": name, "prompt": "x"}).encode()
    request = urllib.request.Request(f"{daemon.address()}/v1/completions", body)
    with urllib.request.urlopen(request, timeout=60) as answer:
        assert json.load(answer)["choices"]
    return variables_of(engine_of(daemon, name)) or {}


def engine_of(daemon: Serving, name: str) -> int:
    """Find the engine of a model below the daemon."""
    for pid in descendants(daemon.process.pid):
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
        except FileNotFoundError:  # It has just gone.
            continue
        if guard.__file__ not in words and "--alias" in words and words[words.index("--alias") + 1] == name:
            return pid
    raise AssertionError(f"no engine runs {name}")


def refusal(daemon: Serving, name: str) -> str:
    with pytest.raises(urllib.error.HTTPError) as caught:
        ask(daemon, name)
    with caught.value as answer:
        return json.load(answer)["error"]["message"]


def states(daemon: Serving) -> dict[str, str]:
    with urllib.request.urlopen(f"{daemon.address()}/api/models", timeout=60) as answer:
        return {model["name"]: model["state"] for model in json.load(answer)["models"]}


def why(daemon: Serving, name: str) -> str:
    with urllib.request.urlopen(f"{daemon.address()}/api/models/{name}/why", timeout=60) as answer:
        return "\n".join(decision["text"] for decision in json.load(answer)["decisions"])


def test_two_models_share_an_exclusive_card_through_mps_within_their_limits(machine: Machine) -> None:
    with machine.serving() as daemon:
        first, second = ask(daemon, "a"), ask(daemon, "b")
        assert states(daemon) == {"a": "ready", "b": "ready"}
        pipe = Path(first["CUDA_MPS_PIPE_DIRECTORY"])
        assert second["CUDA_MPS_PIPE_DIRECTORY"] == str(pipe)
        assert first["CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"] == "30"
        assert "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE" not in second
        ordinal, _, ceiling = first["CUDA_MPS_PINNED_DEVICE_MEM_LIMIT"].partition("=")
        assert ordinal == "0"
        assert 1024 < int(ceiling.removesuffix("M")) < 4000, "its plan and a margin"
        for folder in (machine.state / "mps", pipe.parent, pipe, pipe.parent / "log"):
            assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        control = control_daemon(machine.state)
        assert control is not None
        environ = Path(f"/proc/{control}/environ").read_bytes()
        assert f"CUDA_VISIBLE_DEVICES={CARD}\0".encode() in environ
        assert daemon.terminate() == 0
    assert not mps_processes(machine.state)
    assert not left_in_pipes(machine.state)


def test_without_mps_two_models_take_turns_on_an_exclusive_card(machine: Machine) -> None:
    with machine.serving("mps: off") as daemon:
        daemon.address()
        assert "is for 2 models, one at a time: its compute mode is Exclusive_Process" in daemon.output
        assert "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE" not in ask(daemon, "a")
        ask(daemon, "b")
        assert states(daemon) == {"a": "cold", "b": "ready"}
        assert "for b" in why(daemon, "a")
        assert daemon.terminate() == 0
    assert not (machine.state / "mps").exists()


def test_without_mps_a_second_model_beside_a_pinned_one_is_refused_with_both_ways_out(
    machine: Machine,
) -> None:
    with machine.serving("mps: off", a="pinned: true", b="ctx: 512") as daemon:
        ask(daemon, "a")
        told = refusal(daemon, "b")
        assert "Exclusive_Process" in told
        assert "MPS is off: set `devices.mps: auto`" in told
        assert "`sudo nvidia-smi -i 0 -c DEFAULT`" in told
        assert "next to a (pinned)" in told
        assert "Traceback" not in daemon.output


def test_one_model_alone_needs_no_mps(machine: Machine) -> None:
    with machine.serving(a="ctx: 512") as daemon:
        ask(daemon, "a")
        assert control_daemon(machine.state) is None


def test_a_model_that_comes_later_has_mps_started_once_the_first_can_go(machine: Machine) -> None:
    with machine.serving(a="ctx: 512") as daemon:
        ask(daemon, "a")
        machine.configure("mps: auto", a="ctx: 512", b="ctx: 512")
        wait_until(lambda: len(states(daemon)) == 2)
        assert "CUDA_MPS_PINNED_DEVICE_MEM_LIMIT" in ask(daemon, "b")
        assert "CUDA_MPS_PINNED_DEVICE_MEM_LIMIT" in ask(daemon, "a")
        assert states(daemon) == {"a": "ready", "b": "ready"}


def test_a_killed_mps_daemon_is_replaced_after_its_engines_have_gone(machine: Machine) -> None:
    with machine.serving() as daemon:
        ask(daemon, "a")
        ask(daemon, "b")
        first = control_daemon(machine.state)
        assert first is not None
        engines = [engine_of(daemon, name) for name in "ab"]
        os.kill(first, signal.SIGKILL)
        wait_until(lambda: not any(map(alive, engines)))
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda name: ask(daemon, name), ["a", "b"]))
        second = control_daemon(machine.state)
        assert second not in (None, first)
        assert states(daemon) == {"a": "ready", "b": "ready"}
        assert f"the MPS daemon of its card, process {first}, died" in why(daemon, "a")
        assert daemon.terminate() == 0
        assert "Traceback" not in daemon.output
    assert not left_in_pipes(machine.state)


def test_a_killed_engine_comes_back_under_the_same_daemon(machine: Machine) -> None:
    with machine.serving() as daemon:
        ask(daemon, "a")
        ask(daemon, "b")
        control = control_daemon(machine.state)
        engine = engine_of(daemon, "a")
        os.kill(engine, signal.SIGKILL)
        wait_until(lambda: not alive(engine))
        assert ask(daemon, "a")["CUDA_MPS_PIPE_DIRECTORY"]
        assert control_daemon(machine.state) == control
        assert states(daemon) == {"a": "ready", "b": "ready"}


def test_killing_cotenant_leaves_no_process_and_the_next_start_finds_nothing_in_its_way(
    machine: Machine,
) -> None:
    with machine.serving() as daemon:
        ask(daemon, "a")
        control = control_daemon(machine.state)
        assert control is not None
        wait_until(lambda: len(mps_processes(machine.state)) == 2)
        daemon.process.kill()
        daemon.process.wait()
        wait_until(lambda: not alive(control))
        assert left_in_pipes(machine.state), "the stand-in leaves its files when killed, as the real one does"
    left = set(mps_processes(machine.state))
    with machine.serving() as daemon:
        ask(daemon, "a")
        ask(daemon, "b")
        assert not left & set(mps_processes(machine.state))
        assert states(daemon) == {"a": "ready", "b": "ready"}
        assert daemon.terminate() == 0
    assert not mps_processes(machine.state)
    assert not left_in_pipes(machine.state)


def test_a_daemon_that_hangs_on_quit_is_ended_within_a_bound(machine: Machine) -> None:
    with machine.serving(env={"STAND_IN_MPS_HANGS_ON_QUIT": "1"}) as daemon:
        ask(daemon, "a")
        assert daemon.terminate() == 0
        assert "had to be killed" in daemon.output
    assert not mps_processes(machine.state)
    assert not left_in_pipes(machine.state)


def test_where_mps_fails_to_start_models_take_turns_and_the_reason_is_told(machine: Machine) -> None:
    with machine.serving(env={"STAND_IN_MPS_FAILS": "no CUDA-capable device"}) as daemon:
        ask(daemon, "a")
        ask(daemon, "b")
        assert states(daemon) == {"a": "cold", "b": "ready"}
        assert "no CUDA-capable device" in why(daemon, "a")
        assert "each card takes one engine" in daemon.output or daemon.terminate() == 0


def test_required_without_a_control_program_refuses_to_start(machine: Machine) -> None:
    with machine.serving("mps: required", env={"PATH": "/nonexistent"}) as daemon:
        assert daemon.finish() == 1
        assert "error: nvidia-cuda-mps-control is not on the PATH" in daemon.output
        assert "hint: It comes with NVIDIA's driver" in daemon.output


def test_without_a_control_program_auto_leaves_one_engine_a_card(machine: Machine) -> None:
    with machine.serving(env={"PATH": "/usr/bin:/bin"}, a="pinned: true", b="ctx: 512") as daemon:
        ask(daemon, "a")
        assert "nvidia-cuda-mps-control is not on the PATH" in refusal(daemon, "b")


def test_required_has_cards_of_any_mode_shared_through_mps(machine: Machine) -> None:
    machine.gpus.write_text(f"- {{name: RTX 3090, total_mib: 8000, uuid: {CARD}}}\n")
    with machine.serving("mps: required", a="mps_memory_margin_mib: none") as daemon:
        env = ask(daemon, "a")
        assert env["CUDA_MPS_PIPE_DIRECTORY"].startswith(str(machine.state))
        assert "CUDA_MPS_PINNED_DEVICE_MEM_LIMIT" not in env


def test_each_card_has_its_own_daemon_where_that_is_asked_for(machine: Machine) -> None:
    machine.cards(2)
    with machine.serving("mps: auto, mps_group: card") as daemon:
        pipes = {ask(daemon, name)["CUDA_MPS_PIPE_DIRECTORY"] for name in "ab"}
        assert len(pipes) == 2
        assert len([words for words in mps_processes(machine.state).values() if "-f" in words]) == 2


def test_a_daemon_that_runs_already_is_used_shown_and_left_running(machine: Machine) -> None:
    environ = {
        **os.environ,
        "COTENANT_STATE_DIR": str(machine.state),
        "COTENANT_MPS_CONTROL": str(machine.program),
        "CUDA_MPS_PIPE_DIRECTORY": str(machine.folder / "nobody"),
    }

    def mps(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "cotenant.cli.main", "mps", *words]
        return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60)

    start_manually(machine.program, MpsDirectories.of_cards(machine.state, [CARD]), [CARD])
    control = control_daemon(machine.state)
    with machine.serving() as daemon:
        ask(daemon, "a")
        ask(daemon, "b")
        assert control_daemon(machine.state) == control
        wait_until(lambda: "2 clients" in mps("status").stdout)
        (told,) = json.loads(mps("status", "--json").stdout)["daemons"]
        clients = {client["model"]: client for client in told["servers"][0]["clients"]}
        assert clients["a"]["pid"] == engine_of(daemon, "a")
        assert clients["a"]["threads"] == "30"
        assert clients["b"]["memory"].startswith("0=")
        refused = mps("stop")
        assert refused.returncode == 1
        assert "2 clients use the MPS daemon" in refused.stderr
        assert daemon.terminate() == 0
    assert control_daemon(machine.state) == control
    assert mps("stop").returncode == 0
    assert not mps_processes(machine.state)


def test_devices_show_how_many_engines_they_admit(machine: Machine) -> None:
    with machine.serving() as daemon:
        with urllib.request.urlopen(f"{daemon.address()}/api/devices", timeout=60) as answer:
            (shown,) = json.load(answer)["devices"]
        assert (shown["compute_mode"], shown["max_engines"], shown["mps"]) == ("exclusive_process", 48, True)


def test_prohibited_cards_are_not_used(machine: Machine) -> None:
    machine.gpus.write_text("- {name: RTX 3090, total_mib: 8000, compute_mode: prohibited}\n")
    with machine.serving() as daemon:
        told = refusal(daemon, "a")
        assert "no device can be used" in told
        assert "its compute mode is Prohibited" in told
