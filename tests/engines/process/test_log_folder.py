import os
from pathlib import Path

from cotenant.engines.process.log_folder import RotatingLog


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
