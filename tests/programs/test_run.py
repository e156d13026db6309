"""Programs that end, fail, hang, print without end, or leave others running."""

import asyncio
import contextlib
import os
import tempfile

import pytest

from cotenant.programs.run import Finished, run_async, run_program
from tests.support.waiting import DEADLINE_S, alive, until, wait_until

SHORT_S = 0.05


def sh(script: str, **options) -> Finished:
    return run_program(["sh", "-c", script], DEADLINE_S, **options)


def test_status_and_output_are_returned():
    assert sh("echo out; echo err >&2; exit 3") == Finished(3, "out\nerr\n")
    assert sh("echo out; echo err >&2", merge_errors=False) == Finished(0, "out\n", "err\n")


def test_input_environment_and_folder_are_given(tmp_path):
    done = sh("cat; echo $WORD; pwd", input_text="line\n", env={**os.environ, "WORD": "x"}, cwd=tmp_path)
    assert done.output == f"line\nx\n{tmp_path}\n"


def test_no_disk_is_needed(monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", "/proc/full")
    assert sh("cat", input_text="line\n") == Finished(0, "line\n")


def test_without_input_a_program_that_reads_ends():
    assert sh("cat").ok


@pytest.mark.parametrize(
    ("done", "reason"),
    [
        (Finished(1, "first\n last \n\n"), "last"),
        (Finished(1, "out", "err"), "err"),
        (Finished(2), "status 2"),
        (Finished(None, "out", problem="it did not answer"), "it did not answer"),
    ],
)
def test_a_failure_has_a_reason(done, reason):
    assert not done.ok
    assert done.reason == reason


def test_only_the_end_of_a_long_output_is_kept():
    done = sh("head -c 6000000 /dev/zero | tr '\\0' x; echo end")
    assert len(done.output) == 4 << 20
    assert done.output.endswith("xend\n")


@pytest.mark.parametrize("argv", [["/no/such/program"], ["/etc/hostname"]])
async def test_a_program_that_cannot_be_started_is_a_problem(argv):
    for done in (run_program(argv, DEADLINE_S), await run_async(argv, DEADLINE_S)):
        assert done.status is None
        assert str(done.problem).startswith("it cannot be started: ")


async def test_a_program_that_hangs_is_killed_at_its_limit():
    argv = ["sh", "-c", "trap '' TERM; sleep 60 & sleep 60"]
    for done in (run_program(argv, SHORT_S), await run_async(argv, SHORT_S)):
        assert (done.status, done.problem) == (None, "it did not answer within 0.05 s")


def left_behind(done: Finished) -> int:
    """Return the process that the script below has left running."""
    assert done.ok
    return int(done.output)


LEAVES = "sleep 60 & echo $!"


async def test_what_a_program_leaves_running_is_killed():
    for done in (sh(LEAVES), await run_async(["sh", "-c", LEAVES], DEADLINE_S)):
        pid = left_behind(done)
        wait_until(lambda pid=pid: not alive(pid))


def test_a_daemon_may_be_left_running():
    pid = left_behind(sh(LEAVES, kill_children=False))
    try:
        assert alive(pid)
    finally:
        os.kill(pid, 9)


async def test_a_program_ends_with_the_task_that_runs_it(tmp_path):
    file = tmp_path / "pid"
    task = asyncio.create_task(
        run_async(["sh", "-c", f"echo $$ > {file}.new; mv {file}.new {file}; sleep 60"], 60)
    )
    await until(file.exists)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    assert not alive(int(file.read_text()))
