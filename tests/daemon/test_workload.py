"""What is read of the daemon's own log of requests: its end, whole lines, over rotated files."""

import json
from pathlib import Path

import pytest

from cotenant.daemon import workload
from cotenant.daemon.workload import recorded


def lines(first: int, count: int) -> str:
    return "".join(
        json.dumps({"at": 1e9 + n, "model": f"m{n}", "service_s": 1.0}) + "\n"
        for n in range(first, first + count)
    )


def names(log: Path) -> list[str]:
    found = recorded(log)
    return [] if found is None else [request.model for request in found.requests]


def test_rotated_files_are_read_and_a_line_that_is_being_written_is_not(tmp_path: Path):
    log = tmp_path / "requests.jsonl"
    assert recorded(log) is None
    log.write_text('{"at": 1')
    assert recorded(log) is None
    log.write_text(lines(5, 3) + '{"at": 1, "mo')
    (tmp_path / "requests.jsonl.1").write_text(lines(2, 3))
    (tmp_path / "requests.jsonl.2").write_text(lines(0, 2))
    assert names(log) == [f"m{n}" for n in range(8)]


def test_of_a_long_log_only_the_end_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    log = tmp_path / "requests.jsonl"
    log.write_text(lines(100, 10))
    (tmp_path / "requests.jsonl.1").write_text(lines(0, 100))
    monkeypatch.setattr(workload, "_LOG_BYTES", len(lines(100, 10)) + len(lines(95, 5)) + 7)
    assert names(log) == [f"m{n}" for n in range(95, 110)]
    monkeypatch.setattr(workload, "_LOG_BYTES", len(lines(107, 3)) + 1)
    assert names(log) == ["m107", "m108", "m109"]
