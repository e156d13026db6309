"""A benchmark of a small server on a real socket: what is asked of it, and what is made of its answers."""

import socket

import pytest

from cotenant.benchmark.results import Load, Report
from cotenant.benchmark.run import NothingToMeasure, run_benchmark
from cotenant.cli.bench import lines
from cotenant.clock import Clock, ManualClock, SystemClock
from cotenant.http.addresses import api_endpoint
from tests.support.http.chat_site import ChatSite, running

QUICK = Load(requests=2, prompt_tokens=20, max_tokens=6, timeout_s=60)


async def measured(site: ChatSite, *models: str, load: Load = QUICK, clock: Clock | None = None) -> Report:
    async with running(site):
        return await run_benchmark(
            api_endpoint(site.url, "key"), models, load, clock or SystemClock(), lambda *_: None
        )


async def test_each_is_measured_alone_then_two_together_then_three() -> None:
    report = await measured(ChatSite())
    assert [phase.models for phase in report.phases] == [("a",), ("b",), ("c",), ("a", "b"), ("a", "b", "c")]
    assert all(result.requests >= QUICK.requests for phase in report.phases for result in phase.results)
    assert [result.share_kept is None for phase in report.phases for result in phase.results] == [
        True, True, True, False, False, False, False, False,
    ]  # fmt: skip


@pytest.mark.slow
async def test_a_server_that_serves_one_at_a_time_keeps_about_half_of_each_of_two() -> None:
    clock = ManualClock()
    site = ChatSite(("a", "b"), one_at_a_time=True, token_s=0.016, clock=clock)
    load = Load(requests=2, prompt_tokens=8, max_tokens=20, timeout_s=60)
    report = await measured(site, load=load, clock=clock)
    shares = [result.share_kept for result in report.phases[-1].results]
    assert shares == [pytest.approx(0.5, abs=0.25)] * 2


async def test_tokens_are_those_that_the_server_counted_though_a_piece_holds_two() -> None:
    (phase,) = (await measured(ChatSite(("a",)))).phases
    tokens = phase.tokens_per_s * (phase.ended_at - phase.begun_at)
    assert phase.results[0].usage
    assert tokens == pytest.approx(QUICK.requests * QUICK.max_tokens)


async def test_pieces_count_where_the_server_does_not_and_the_table_says_so() -> None:
    report = await measured(ChatSite(("a",), usage=False))
    assert not report.phases[0].results[0].usage
    assert any("chunks of the stream" in line for line in lines(report))


async def test_prompts_are_as_long_as_asked_for_in_the_servers_tokens() -> None:
    site = ChatSite(("a",))
    await measured(site)
    words = [len(asked["messages"][0]["content"].split()) for asked in site.asked]
    assert words[-1] == pytest.approx(QUICK.prompt_tokens / 2, abs=1), "two tokens to a word"


async def test_no_two_prompts_begin_alike_so_that_no_cache_helps() -> None:
    site = ChatSite(("a", "b"))
    await measured(site)
    first_words = [asked["messages"][0]["content"].split()[0] for asked in site.asked]
    assert len({*first_words}) == len(first_words)


async def test_as_many_are_asked_at_once_as_the_user_wants() -> None:
    site = ChatSite(("a",), token_s=0.05)
    await measured(site, load=Load(concurrency=3, requests=6, prompt_tokens=8, max_tokens=8, timeout_s=60))
    assert site.most_at_once == {"a": 3}


async def test_a_model_that_fails_is_left_out_and_named_and_the_others_are_measured() -> None:
    report = await measured(ChatSite(failing={"b"}))
    assert [phase.models for phase in report.phases] == [("a",), ("c",), ("a", "c")]
    assert "b does not answer: status 500: b is broken" in report.left_out


async def test_where_nothing_answers_at_all_that_is_the_fault() -> None:
    with pytest.raises(NothingToMeasure, match="a is broken"):
        await measured(ChatSite(("a",), failing={"a"}))
    with pytest.raises(NothingToMeasure, match="no chat model"):
        await measured(ChatSite(()))


async def test_a_daemon_that_is_told_to_stop_in_the_middle_is_the_fault() -> None:
    told = iter([b'{"models": [{"name": "a", "state": "cold"}]}', b'{"data": [{"id": "a"}]}'])

    def answer(_path: str) -> bytes:
        body = next(told, None)
        if body is None:
            stopping = b'{"error": {"message": "the daemon is shutting down"}}'
            return b"HTTP/1.1 503 No\r\nContent-Length: %d\r\n\r\n%b" % (len(stopping), stopping)
        return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)

    with pytest.raises(NothingToMeasure, match="no longer reports its models: the daemon is shutting down"):
        await measured(ChatSite(raw=answer))


async def test_an_address_where_nobody_listens_is_an_os_error() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        site = api_endpoint(f"http://127.0.0.1:{closed.getsockname()[1]}")
        with pytest.raises(ConnectionRefusedError):
            await run_benchmark(site, (), QUICK, SystemClock(), lambda *_: None)


async def test_a_peer_without_our_api_is_measured_without_cold_starts_and_told_so() -> None:
    report = await measured(ChatSite(("a",)))
    assert not report.waits
    assert not report.memory
    assert any("cold start and swap" in text for text in report.left_out)


async def test_the_key_goes_with_every_request() -> None:
    site = ChatSite(("a",))
    await measured(site)
    assert site.keys == {"Bearer key"}


async def test_json_holds_every_phase_with_its_figures() -> None:
    told = (await measured(ChatSite(("a", "b")))).as_json()
    assert [phase["models"] for phase in told["phases"]] == [["a"], ["b"], ["a", "b"]]
    assert told["phases"][0]["results"][0]["first_token"]["p50_s"] > 0


@pytest.mark.parametrize(
    ("raw", "told"),
    [
        (b"SSH-2.0-x\r\n", "not HTTP"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nx", "closed the connection"),
        (b"HTTP/1.1 200 OK\r\n\r\ndata: {nonsense\n\n", "not JSON"),
        (b"HTTP/1.1 200 OK\r\n\r\ndata: [DONE]\n\n", "no text"),
        (b'HTTP/1.1 200 OK\r\n\r\ndata: {"error": {"message": "out of slots"}}\n\n', "out of slots"),
        (b"HTTP/1.1 200 OK\r\n\r\ndata: " + b"x" * (2 << 20), "is too long"),
        (b"HTTP/1.1 302 F\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n", "status 302"),
    ],
)
async def test_whatever_a_server_answers_is_one_clear_reason(raw: bytes, told: str) -> None:
    no_api = b"HTTP/1.1 404 N\r\nContent-Length: 0\r\n\r\n"
    site = ChatSite(raw=lambda path: no_api if path.startswith("/api") else raw)
    with pytest.raises(NothingToMeasure, match=told):
        await measured(site, "a")
