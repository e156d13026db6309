"""The thread that owns the database, when the disk under it hangs."""

import threading
from pathlib import Path

import pytest

from cotenant.store.writer import Writer


@pytest.mark.parametrize("max_waiting", [10, 1], ids=["room in the line", "a full line"])
def test_a_disk_that_hangs_does_not_keep_the_daemon_from_ending(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, max_waiting: int
) -> None:
    writer = Writer(tmp_path / "cotenant.db", max_waiting=max_waiting)
    hangs, goes_on = threading.Event(), threading.Event()

    def hang(_session: object) -> None:
        hangs.set()
        assert goes_on.wait(60)

    stuck = writer.do(hang)
    assert hangs.wait(60)
    behind = writer.do(lambda _session: "done")
    try:
        writer.close(within_s=0.05)
        assert "cotenant.db does not respond: what was still to be written is lost" in caplog.text
    finally:
        goes_on.set()
        stuck.result(60)
    assert behind.result(60) == "done", "it was only given up, and came back"
    writer.close()
