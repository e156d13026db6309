"""The log of requests: what it tells, what it never tells, and that it cannot grow or block."""

import asyncio
import json
import logging
from pathlib import Path
from typing import Any

import pytest

from cotenant.domain.requests import DEFAULT_TERMS, LeaseTerms
from cotenant.gateway.inference.request_log import RequestLog, RequestRecord
from tests.gateway import stub
from tests.gateway.harness import SlotRouter, connected, post, serving
from tests.gateway.stub import StubEngine
from tests.support.waiting import until

SECRET = "the words of a client"
ASK = {"model": "gpt-4o", "messages": [{"role": "user", "content": SECRET}]}


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def sizes(folder: Path) -> dict[str, int]:
    return {file.name: file.stat().st_size for file in folder.iterdir()}


def ended(number: float, terms: LeaseTerms = DEFAULT_TERMS) -> RequestRecord:
    return RequestRecord(number, number + 0.5, number + 2, "gpt-4o", 200, 3, 4, terms)


async def test_a_request_is_one_line_of_sizes_under_the_models_own_name(tmp_path: Path):
    path = tmp_path / "requests.jsonl"
    async with (
        StubEngine() as engine,
        serving(SlotRouter(engine.endpoint), request_log=RequestLog(path)) as port,
    ):
        assert (await post(port, ASK)).status == 200
        assert (await post(port, {**ASK, "stream": True})).status == 200
        assert (await post(port, ASK, x_cotenant_keep_alive="-1")).status == 200
        assert (await post(port, {**ASK, "model": SECRET})).status == 404
    plain, stream, kept = read(path)
    assert (plain["model"], plain["status"], stream["status"]) == ("llama", 200, 200)
    assert plain["at"] == pytest.approx(stream["at"], abs=5)
    assert plain["wait_s"] < plain["service_s"] + 1
    assert plain.keys() == {
        *("at", "model", "status", "wait_s", "service_s", "prompt_tokens", "output_tokens")
    }
    assert kept["keep_alive_s"] == "forever"
    assert SECRET not in path.read_text(encoding="utf-8"), "neither content nor names that nobody serves"
    assert path.stat().st_mode & 0o077 == 0


async def test_tokens_are_those_of_each_request_alone(tmp_path: Path):
    path = tmp_path / "requests.jsonl"
    answer = b'{"choices":[],"usage":{"completion_tokens":20,"prompt_tokens":7,"total_tokens":27}}'

    async def told(call: stub.Call) -> None:
        await call.send(stub.response(answer))

    async with (
        StubEngine(told) as engine,
        serving(SlotRouter(engine.endpoint), request_log=RequestLog(path)) as port,
    ):
        for _ in range(2):
            await post(port, ASK)
    assert [(line["prompt_tokens"], line["output_tokens"]) for line in read(path)] == [(7, 20), (7, 20)]


async def test_who_leaves_in_line_is_told_as_never_served(tmp_path: Path):
    path = tmp_path / "requests.jsonl"
    router = SlotRouter(None, slots=0)
    async with serving(router, request_log=RequestLog(path)) as port:
        async with connected(port) as client:
            client.post(ASK)
            await until(lambda: len(router.waiting) == 1)
            client.leave()
        await until(lambda: not router.waiting)
    (line,) = read(path)
    assert (line["status"], line["service_s"], line["output_tokens"]) == (499, None, None)


async def test_a_full_log_becomes_an_older_one_and_the_oldest_goes(tmp_path: Path):
    path = tmp_path / "requests.jsonl"
    log = RequestLog(path, max_bytes=300, kept=2)
    for number in range(8):
        log.add(ended(number))
        log.close()
    files = sizes(tmp_path)
    assert files.keys() == {"requests.jsonl", "requests.jsonl.1", "requests.jsonl.2"}
    assert max(files.values()) <= 300
    kept = [line["at"] for name in (".2", ".1", "") for line in read(Path(f"{path}{name}"))]
    assert kept == sorted(kept)


async def test_what_waits_is_bounded_and_what_is_lost_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    path = tmp_path / "requests.jsonl"
    log = RequestLog(path, max_waiting=3)
    for number in range(5):
        log.add(ended(number))
    with caplog.at_level(logging.WARNING):
        log.close()
    assert len(read(path)) == 3
    assert "lacks 2 requests" in caplog.text


async def test_a_folder_that_goes_away_costs_lines_and_one_complaint(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    path = tmp_path / "gone" / "requests.jsonl"
    log = RequestLog(path)
    for number in range(3):
        log.add(ended(number))
        log.close()
    assert caplog.text.count("cannot be written: No such file or directory") == 1
    path.parent.mkdir()
    log.add(ended(9))
    log.close()
    assert len(read(path)) == 1
    assert "lacks 3 requests" in caplog.text


async def test_lines_are_written_while_the_daemon_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("cotenant.gateway.inference.request_log._EVERY_S", 0.01)
    path = tmp_path / "requests.jsonl"
    log = RequestLog(path)
    log.add(ended(1, LeaseTerms(priority=2, timeout_s=5.0)))
    writing = asyncio.ensure_future(log.run())
    await until(lambda: path.exists() and path.stat().st_size > 0)
    writing.cancel()
    (line,) = read(path)
    assert (line["priority"], line["timeout_s"], line["wait_s"], line["service_s"]) == (2, 5.0, 0.5, 1.5)
