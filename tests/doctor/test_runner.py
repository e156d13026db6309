import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from cotenant.cli.doctor import as_json, as_text
from cotenant.doctor.findings import Area, Finding, Level, Observation, ok
from cotenant.doctor.host_context import HostContext, Once, measure_devices
from cotenant.doctor.runner import CHECKS, Check, run_checks
from cotenant.domain.devices import Inventory
from cotenant.programs.run import Finished, run_program
from tests.doctor.support import SickCard, machine
from tests.support.waiting import alive, wait_until

FAILED = re.compile(r"could not be checked: \w+Error")
FINDINGS = (
    Finding(Level.OK, "fine", area=Area.MACHINE),
    Finding(Level.WARNING, "slow " * 30, "It is slow.", "sudo nvidia-smi -pm 1", area=Area.CARDS),
    Finding(Level.PROBLEM, "broken", "Nothing works.", "sudo " + "x" * 90, area=Area.CARDS),
    Finding(Level.UNKNOWN, "dark", area=Area.CARDS),
)


def test_a_check_that_fails_or_hangs_spoils_no_other(tmp_path: Path) -> None:
    released = threading.Event()

    def well(host: HostContext) -> Iterator[Observation]:
        yield ok("well")

    def failing(host: HostContext) -> Iterator[Observation]:
        yield ok("so far")
        raise ZeroDivisionError("an accident")

    def hanging(host: HostContext) -> Iterator[Observation]:
        released.wait()
        return iter(())

    class Checks(list[Check]):
        """The time for answers begins once all checks are started: let those that answer do so before."""

        def __iter__(self) -> Iterator[Check]:
            yield from super().__iter__()
            for thread in threading.enumerate():
                if thread.name in ("one that fails", "one that is well"):
                    thread.join()

    checks = Checks(
        (
            Check(Area.DRIVER, "one that hangs", hanging),
            Check(Area.CARDS, "one that fails", failing),
            Check(Area.MACHINE, "one that is well", well),
        )
    )
    try:
        found = run_checks(machine(tmp_path), checks, within_s=0.2)
    finally:
        released.set()

    assert [each.level for each in found] == [Level.UNKNOWN, Level.UNKNOWN, Level.OK]
    assert found[0].seen == "one that hangs could not be checked: no answer within 0.2 s"
    assert found[1].seen == "one that fails could not be checked: ZeroDivisionError: an accident"


def test_a_machine_with_nothing_on_it_is_examined_in_full(tmp_path: Path) -> None:
    bare = HostContext(
        state_dir=tmp_path / "state",
        root=tmp_path / "empty",
        environ={},
        find=lambda name: None,
        run=lambda argv, within_s: Finished(None, problem="there are no programs"),
    )

    found = run_checks(bare, [check for check in CHECKS if check.area is not Area.ENGINES])
    assert not [each for each in found if FAILED.search(each.seen)]
    assert {each.area for each in found} >= {Area.DRIVER, Area.MACHINE, Area.FILES}


def test_every_check_fails_softly_when_everything_it_asks_fails(tmp_path: Path) -> None:
    def broken(*arguments: object) -> Inventory:
        raise RuntimeError("the driver hangs itself")

    host = HostContext(
        state_dir=tmp_path,
        root=tmp_path,
        environ={},
        find=lambda name: f"/usr/bin/{name}",
        run=lambda argv, within_s: Finished(139, "\x00 not JSON {"),
        inventory=broken,
    )

    found = run_checks(host, [check for check in CHECKS if check.area is not Area.ENGINES])
    assert [each for each in found if "the driver hangs itself" in each.seen]
    assert all(each.seen for each in found)


def test_checks_run_side_by_side(tmp_path: Path) -> None:
    together = threading.Barrier(8)

    def look(host: HostContext) -> Iterator[Observation]:
        together.wait(10)
        yield ok("met")

    checks = [Check(Area.MACHINE, str(number), look) for number in range(8)]
    assert [each.seen for each in run_checks(machine(tmp_path), checks)] == ["met"] * 8


def test_devices_are_measured_once_for_all_checks() -> None:
    asked = []
    once = Once(lambda: asked.append(1) or measure_devices())  # type: ignore[func-returns-value]
    threads = [threading.Thread(target=once) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(asked) == 1


def test_a_program_that_hangs_is_ended_with_its_children(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    command = ["sh", "-c", f"sleep 600 & echo $! >{pid}.part; mv {pid}.part {pid}; wait"]
    limits_s = (0.2, 2, 10, 40)
    answer = next(
        answer for limit_s in limits_s if (answer := run_program(command, limit_s)) and pid.exists()
    )

    assert answer.problem is not None
    assert answer.problem.startswith("it did not answer within")
    wait_until(lambda: not alive(int(pid.read_text())))
    assert run_program(["/no/such/program"], 60).problem == "it cannot be started: No such file or directory"
    assert run_program(["sh", "-c", "echo out; echo err >&2; exit 3"], 60) == Finished(3, "out\nerr\n")


def test_the_worst_comes_first_within_its_area_and_lines_keep_to_eighty_columns() -> None:
    lines = list(as_text(FINDINGS))

    assert lines[0] == "Cards"
    assert lines[1] == "  PROBLEM  broken"
    assert lines.index("  ok       fine") > lines.index("Machine")
    assert [line for line in lines if len(line) > 80] == [f"           → sudo {'x' * 90}"]
    assert lines[-1] == "1 problem, 1 warning, 1 not seen, 1 ok"
    assert "\x1b[31;1mPROBLEM" in "\n".join(as_text(FINDINGS, colours=True))


def test_json_holds_every_finding_and_the_counts() -> None:
    told = as_json(FINDINGS)

    assert told["counts"] == {"problem": 1, "warning": 1, "unknown": 1, "ok": 1}
    assert told["findings"][2] == {
        "area": "cards",
        "level": "problem",
        "seen": "broken",
        "matters": "Nothing works.",
        "mend": FINDINGS[2].fix,
    }


def test_a_sick_card_goes_through_the_whole_examination(tmp_path: Path) -> None:
    found = run_checks(machine(tmp_path, SickCard("GPU-a", uncorrected=2, width=8, mode=3)))

    ills = [each.area for each in found if each.level is Level.PROBLEM]
    # No engine of this machine sees a card that is only on paper.
    assert set(ills) == {Area.CARDS, Area.ENGINES}
    assert {"Cards", "Sharing cards"} <= {each.area.value for each in found if each.level is Level.WARNING}


def doctor(*prefix: str, tmp_path: Path, config: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run the real command, on this machine."""
    environment = {**os.environ, "COTENANT_STATE_DIR": str(tmp_path / "state"), "COTENANT_PORT": "0"}
    environment.pop("COTENANT_CONFIG", None)
    arguments = ["doctor", "--json"]
    if config is not None:
        (tmp_path / "cotenant.yaml").write_text(config)
        arguments += ["--config", str(tmp_path / "cotenant.yaml")]
    return subprocess.run(
        [*prefix, sys.executable, "-m", "cotenant.cli.main", *arguments],
        capture_output=True,
        text=True,
        env=environment,
        cwd=tmp_path,
        timeout=60,
    )


@pytest.mark.slow
def test_this_machine_is_examined_as_it_is(tmp_path: Path) -> None:
    done = doctor(tmp_path=tmp_path)

    told = json.loads(done.stdout)
    assert done.returncode == (1 if told["counts"]["problem"] else 0)
    assert {finding["area"] for finding in told["findings"]} >= {"driver", "engines", "machine", "files"}
    assert not [each for each in told["findings"] if FAILED.search(each["seen"])]


@pytest.mark.slow
def test_a_broken_configuration_makes_it_end_with_1(tmp_path: Path) -> None:
    done = doctor(tmp_path=tmp_path, config="server: {prot: 1}\n")

    assert done.returncode == 1
    problems = [each for each in json.loads(done.stdout)["findings"] if each["level"] == "problem"]
    assert any("cotenant.yaml, line 1: server.prot" in each["seen"] for each in problems)
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_it_works_where_there_is_no_proc(tmp_path: Path) -> None:
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("hiding /proc takes root and unshare")
    script = 'mount -t tmpfs none /proc && test ! -e /proc/self && exec "$@"'
    done = doctor("unshare", "--mount", "sh", "-c", script, "sh", tmp_path=tmp_path)
    if "Operation not permitted" in done.stderr or "must be superuser" in done.stderr:
        pytest.skip(f"nothing may be mounted here: {done.stderr.strip()}")

    told = json.loads(done.stdout)
    unseen = [each["seen"] for each in told["findings"] if each["level"] == "unknown"]
    assert any("/proc/meminfo" in each for each in unseen)
    assert not [each for each in told["findings"] if FAILED.search(each["seen"])]
    assert done.returncode == (1 if told["counts"]["problem"] else 0)
