import errno
import os
from pathlib import Path

import pytest

from cotenant.domain.units import MIB
from cotenant.engines.process.log_folder import LogFolder, RotatingLog


def test_a_rotation_keeps_what_was_written_and_lets_the_writer_go_on(tmp_path: Path) -> None:
    log = RotatingLog(tmp_path / "logs" / "a.log", max_bytes=10)
    output = log.open()
    os.write(output, b"first run of lines\n")
    assert log.overgrown
    log.rotate()
    os.write(output, b"second\n")
    os.close(output)
    assert log.path.read_text() == "second\n"
    assert (tmp_path / "logs" / "a.log.1").read_text() == "first run of lines\n"
    assert not log.overgrown


def test_no_more_than_the_kept_ones_are_kept(tmp_path: Path) -> None:
    log = RotatingLog(tmp_path / "a.log", max_bytes=1, kept=2)
    output = log.open()
    for text in (b"one", b"two", b"three", b"four"):
        os.write(output, text)
        log.rotate()
    os.close(output)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.log", "a.log.1", "a.log.2"]
    assert (tmp_path / "a.log.1").read_text() == "four"
    assert (tmp_path / "a.log.2").read_text() == "three"


def test_a_new_run_sets_the_last_one_aside(tmp_path: Path) -> None:
    log = RotatingLog(tmp_path / "a.log")
    for text in (b"before", b"now"):
        output = log.open()
        os.write(output, text)
        os.close(output)
    assert log.read(100) == "now"
    assert (tmp_path / "a.log.1").read_text() == "before"


def test_head_and_tail_are_bounded_and_bear_a_missing_file(tmp_path: Path) -> None:
    log = RotatingLog(tmp_path / "a.log")
    assert (log.read(5), log.read(5, from_end=True), log.overgrown) == ("", "", False)
    log.path.write_bytes(b"0123456789\xff")
    assert log.read(3) == "012"
    assert log.read(3, from_end=True) == "89\ufffd"


def test_only_the_last_bytes_are_kept_of_a_log_that_grew_much_too_large(tmp_path: Path) -> None:
    log = RotatingLog(tmp_path / "a.log", max_bytes=2 * MIB)
    os.close(log.open())
    log.path.write_bytes(b"x" * 3 * MIB + b"0123456789")
    log.rotate()
    assert (tmp_path / "a.log.1").read_bytes() == b"x" * (2 * MIB - 10) + b"0123456789"
    assert (tmp_path / "a.log.1").stat().st_mode & 0o777 == 0o640


def test_the_end_goes_over_a_rotation_of_this_run_and_no_further(tmp_path: Path) -> None:
    log = RotatingLog(tmp_path / "a.log", max_bytes=10)
    log.path.write_text("a run before")
    output = log.open()
    os.write(output, b"why it died")
    assert log.read(100, from_end=True) == "why it died"
    log.rotate()
    assert log.read(100, from_end=True) == "why it died"
    os.write(output, b", and so on")
    os.close(output)
    assert log.read(100, from_end=True) == "why it died, and so on"
    assert log.read(13, from_end=True) == "ed, and so on"


def test_on_a_full_disk_it_is_cut_without_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = RotatingLog(tmp_path / "a.log", max_bytes=10)
    os.close(log.open())
    log.path.write_text("too much of it")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(RotatingLog, "_shift", full)
    log.rotate()
    assert log.path.read_text() == ""


def test_a_loud_engine_is_looked_at_before_it_has_filled_its_log(tmp_path: Path) -> None:
    log = RotatingLog(tmp_path / "a.log", max_bytes=1000)
    os.close(log.open())
    assert log.next_look_s(1.0, 1.0) == 1.0
    log.path.write_bytes(b"x" * 900)
    assert log.next_look_s(1.0, 1.0) == pytest.approx(250 / 900)
    log.path.write_bytes(b"x" * 5000)
    assert log.next_look_s(0.1, 1.0) < 0.01 + 0.1 * 250 / 4100
    log.rotate()
    assert log.next_look_s(1.0, 1.0) == 1.0


def test_a_log_is_not_free_while_its_engine_is_still_being_launched(tmp_path: Path) -> None:
    folder = LogFolder(tmp_path)
    ended = False
    first = folder.log("m", lambda: ended)
    assert folder.log("m", lambda: True).path != first.path
    ended = True
    assert folder.log("m", lambda: True).path == first.path


def test_the_last_log_of_a_model_is_found_also_by_a_later_daemon(tmp_path: Path) -> None:
    folder = LogFolder(tmp_path)
    assert folder.latest("org/m:1b") is None
    paths = {
        name: folder.log(name, lambda: True).path for name in ("org/m:1b", "org_m:1b", "org%2Fm:1b", ".m")
    }
    assert len(set(paths.values())) == len(paths)
    for name, path in paths.items():
        path.write_text(name)
        assert folder.latest(name) == LogFolder(tmp_path).latest(name) == path


def test_a_header_is_the_first_line_also_after_a_rotation(tmp_path: Path) -> None:
    log = RotatingLog(tmp_path / "a.log", max_bytes=10)
    output = log.open(b"header\n")
    os.write(output, b"first run of lines\n")
    log.rotate()
    os.write(output, b"second\n")
    os.close(output)
    assert log.path.read_text() == "header\nsecond\n"
