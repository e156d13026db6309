import json
import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cotenant.cli.main import main
from cotenant.domain.vendors import Vendor
from cotenant.hardware.gpus.described import DescribedProbe
from cotenant.hardware.mps import daemon
from cotenant.hardware.mps.program import VARIABLE
from tests.support.gpus.fake_mps import client, mps_processes, stand_in
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow

CARDS = """\
- {name: RTX 3090, compute_mode: exclusive_process, uuid: GPU-aaaa}
- {name: RTX 3090, compute_mode: exclusive_process, uuid: GPU-bbbb}
- {name: RTX 3090, uuid: GPU-cccc}
"""
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    # Short, since a socket's path has 107 characters at most.
    monkeypatch.setattr(daemon, "_GONE_WITHIN_S", 60)
    with tempfile.TemporaryDirectory(prefix="mps-") as name:
        made = Path(name)
        (made / "gpus.yaml").write_text(CARDS)
        monkeypatch.setenv("COTENANT_STATE_DIR", str(made / "s"))
        monkeypatch.setenv(VARIABLE, str(stand_in(made / "bin")))
        monkeypatch.setenv("CUDA_MPS_PIPE_DIRECTORY", str(made / "nobody"))
        described = {Vendor.NVIDIA: lambda clock: DescribedProbe(clock, str(made / "gpus.yaml"))}
        monkeypatch.setattr("cotenant.hardware.gpus.inventory.PROBES", described)
        yield made
        for pid in mps_processes(made / "s"):
            os.kill(pid, signal.SIGKILL)


@pytest.fixture
def run(folder: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*words: str) -> tuple[int, str, str]:
        status = main(["mps", *words])
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return run


def test_a_daemon_is_started_shown_and_ended(run: Run, folder: Path) -> None:
    status, out, _ = run("start")
    assert status == 0
    assert "serves GPU 0 RTX 3090, GPU 1 RTX 3090." in out
    assert f"CUDA_MPS_PIPE_DIRECTORY={folder}/s/mps/cards-" in out
    told = json.loads(run("status", "--json")[1])["daemons"]
    assert [daemon["cards"] for daemon in told] == [["GPU-aaaa", "GPU-bbbb"]]
    assert "no server: it starts with the first client" in run("status")[1]
    assert "Start; cards GPU-aaaa,GPU-bbbb" in run("logs")[1]
    assert run("stop")[1].startswith("Ended process ")
    assert not mps_processes(folder / "s")
    assert run("status")[1] == "No MPS daemon is running that this user can reach.\n"
    assert run("stop")[1] == "No MPS daemon started by Cotenant is running.\n"


def test_each_card_can_have_a_daemon_and_be_named(run: Run, folder: Path) -> None:
    run("start", "--group", "card", "--devices", "1,2")
    told = json.loads(run("status", "--json")[1])["daemons"]
    assert sorted(daemon["cards"] for daemon in told) == [["GPU-bbbb"], ["GPU-cccc"]]
    run("stop", "--devices", "1")
    told = json.loads(run("status", "--json")[1])["daemons"]
    assert [daemon["cards"] for daemon in told] == [["GPU-cccc"]]


def test_a_second_start_is_refused(run: Run) -> None:
    run("start")
    status, _, err = run("start")
    assert status == 1
    assert "error: an MPS daemon runs for GPU-aaaa, GPU-bbbb already, as process " in err


def test_a_card_gets_no_second_daemon(run: Run, folder: Path) -> None:
    run("start", "--devices", "0,1")
    status, _, err = run("start", "--devices", "1,2")
    assert status == 1
    assert "error: an MPS daemon runs for GPU-bbbb already, as process " in err
    assert run("start", "--devices", "1")[0] == 1
    assert len(json.loads(run("status", "--json")[1])["daemons"]) == 1
    assert run("start", "--devices", "2")[0] == 0


def test_a_daemon_in_use_is_ended_by_force_only(run: Run, folder: Path) -> None:
    started = json.loads(run("start", "--json")[1])
    user = client(Path(started["pipe"]), COTENANT_MODEL="llama", CUDA_MPS_ACTIVE_THREAD_PERCENTAGE="25")
    try:
        wait_until(lambda: "1 clients" in run("status")[1])
        shown = run("status")[1]
        assert f"{user.pid:<8} llama" in shown
        assert "memory unlimited, SMs 25 %" in shown
        status, _, err = run("stop")
        assert status == 1
        assert f"1 clients use the MPS daemon at {started['pipe']}: llama ({user.pid})" in err
        assert "--force" in err
        assert json.loads(run("stop", "--force", "--within", "1s", "--json")[1])["ended"]
        assert not mps_processes(folder / "s")
    finally:
        user.kill()
        user.wait()


def test_what_a_killed_daemon_left_is_removed(run: Run, folder: Path) -> None:
    pid = json.loads(run("start", "--json")[1])["pid"]
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not mps_processes(folder / "s"))
    assert "not running" in run("status")[1]
    assert run("stop")[1].startswith("Removed leftovers at ")
    assert run("status")[1] == "No MPS daemon is running that this user can reach.\n"


def test_without_an_exclusive_card_it_says_how_to_name_some(run: Run, folder: Path) -> None:
    (folder / "gpus.yaml").write_text("- {name: RTX 3090}\n")
    status, _, err = run("start")
    assert status == 1
    assert "no card is in Exclusive_Process mode" in err
    assert "--devices" in err


@pytest.mark.parametrize("action", ["start", "stop", "status", "logs"])
def test_described_cards_are_refused(run: Run, folder: Path, action: str) -> None:
    status, _, err = run(action, "--gpus", "24GiB")
    assert status == 1
    assert err.startswith("cotenant: error: MPS shares this machine's cards, not described ones")
    assert not mps_processes(folder / "s")


def test_without_a_control_program_orders_are_refused_and_what_is_seen_is_told(
    run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pid = json.loads(run("start", "--json")[1])["pid"]
    monkeypatch.setenv(VARIABLE, "/nonexistent/mps")
    status, out, _ = run("status")
    assert status == 0
    assert f"process {pid}, Cotenant’s\n  cards: GPU-aaaa, GPU-bbbb\n" in out
    assert "its servers and clients are not known: COTENANT_MPS_CONTROL names /nonexistent/mps" in out
    assert "Start; cards GPU-aaaa,GPU-bbbb" in run("logs")[1]
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not mps_processes(folder / "s"))
    assert "not running" in run("status")[1]
    for action in ("start", "stop"):
        status, _, err = run(action)
        assert status == 1
        assert "COTENANT_MPS_CONTROL names /nonexistent/mps, which cannot be run" in err
        assert "Traceback" not in err
