"""The commands that ask a running daemon: a real gateway, a real socket, an operator over plain values."""

import asyncio
import contextlib
import json
import os
import socket
import struct
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from cotenant.cli.main import main
from cotenant.clock import SystemClock
from cotenant.domain.decisions import (
    Decision,
    DecisionKind,
    LoadProgress,
    ModelStatus,
    SlotStatus,
    WarmStatus,
)
from cotenant.domain.errors import BadSetting, DoesNotFit
from cotenant.domain.fragmentation import (
    Defragmentation,
    DeviceFragmentation,
    Fragmentation,
    ModelMove,
    SizedModel,
)
from cotenant.domain.models import ModelKind
from cotenant.domain.nodes import FileFetch, FileState, LoadCost
from cotenant.domain.requests import ServedModel
from cotenant.domain.units import GIB
from tests.gateway.harness import SlotRouter, serving
from tests.support.daemon.plain_operator import CARD, PlainOperator

MODELS = (
    ServedModel("org/llama", ModelKind.TEXT, 1, aliases=("gpt",)),
    ServedModel("cold", ModelKind.TEXT, 1),
)


@contextlib.contextmanager
def running(
    operator: PlainOperator, *, models: Sequence[ServedModel] = MODELS, **options: object
) -> Iterator[str]:
    """Serve in a thread, as the command under test blocks this one; yield the address."""
    ready, stop = threading.Event(), asyncio.Event()
    port: list[int] = []
    loop = asyncio.new_event_loop()

    async def run() -> None:
        async with serving(SlotRouter(None, models=models), operator, **options) as found:
            port.append(found)
            ready.set()
            await stop.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(run(),))
    thread.start()
    try:
        assert ready.wait(10)
        yield f"http://127.0.0.1:{port[0]}"
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)
        loop.close()


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("COTENANT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")


@pytest.fixture
def operator() -> PlainOperator:
    return PlainOperator(
        ModelStatus(
            "org/llama",
            "ready",
            pinned=True,
            queued=3,
            idle_s=12.0,
            keep_alive_left_s=288.0,
            requests_per_s=0.5,
            devices=("GPU-a",),
            predicted_bytes=8 * GIB,
            measured_bytes=7 * GIB,
        ),
        ModelStatus("cold", "unloaded"),
    )


def test_ps_shows_models_and_whose_the_memory_is(operator, capsys, monkeypatch):
    with running(operator) as address:
        monkeypatch.setenv("COTENANT_ADDRESS", address)
        assert main(["ps"]) == 0
        head, hot, cold, empty, card, host, legend = capsys.readouterr().out.splitlines()
        assert main(["ps", "--json"]) == 0
        shown = json.loads(capsys.readouterr().out)
    assert head.split()[:6] == ["model", "state", "GPU", "predicted", "measured", "in"]
    said = [
        "org/llama",
        "ready,",
        "pinned",
        "0",
        "8.0",
        "GiB",
        "7.0",
        "GiB",
        "-",
        "0.50",
        "0",
        "3",
        "12.0",
        "s",
    ]
    assert hot.split() == [*said, "4", "m", "48", "s"]
    assert cold.split() == ["cold", "unloaded", "-", "-", "-", "-", "0.00", "0", "0", "-", "-"]
    assert (empty, card.count("█"), card.count("×"), card.count("·")) == ("", 13, 10, 17)
    assert card.startswith("GPU 0 RTX 3090")
    assert "8.0 GiB ours, 6.0 GiB others', 10.0 GiB free of 24.0 GiB" in card
    assert "unknown others'" in host
    assert "ours" in legend
    assert [model["name"] for model in shown["models"]] == ["org/llama", "cold"]
    assert shown["devices"][0]["uuid"] == "GPU-a"


def test_ps_tells_free_memory_that_no_model_could_use(operator, capsys):
    operator.fragmented = Fragmentation(
        ratio=0.5,
        free_bytes=20 * GIB,
        stranded_bytes=6 * GIB,
        largest=SizedModel("cold", 4 * GIB),
        largest_in_one_piece=SizedModel("llama-70b", 18 * GIB),
        by_device={"GPU-a": DeviceFragmentation(1.0, 6 * GIB)},
    )
    with running(operator) as address:
        assert main(["ps", "--address", address]) == 0
        card, _, _, share, largest = capsys.readouterr().out.splitlines()[-5:]
        assert main(["ps", "--address", address, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["fragmentation"]["stranded_bytes"] == 6 * GIB
    assert (card.count("█"), card.count("×"), card.count("·"), card.count("/")) == (13, 10, 7, 10)
    assert share == "The next model cannot use 50% of 20.0 GiB free; 6.0 GiB no model could."
    assert largest == (
        "The largest that fits: cold (4.0 GiB); with the free memory in one piece: llama-70b (18.0 GiB)."
    )


def test_ps_shows_what_of_the_files_is_in_ram(operator, capsys):
    operator.models["cold"] = ModelStatus("cold", "cold", warm_bytes=3 * GIB)
    operator.kept = WarmStatus(8 * GIB, 3 * GIB, {"cold": 3 * GIB}, "org/llama is loading")
    operator.slots = SlotStatus(4 * GIB, 2, GIB)
    with running(operator) as address:
        assert main(["ps", "--address", address]) == 0
        _, _, cold, kept, slots, *_ = capsys.readouterr().out.splitlines()
        assert main(["ps", "--address", address, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["warm"]["kept_bytes"] == 3 * GIB
    assert cold.split()[:7] == ["cold", "cold", "-", "-", "-", "3.0", "GiB"]
    paused = "nothing is read ahead now: org/llama is loading"
    assert kept == f"Model files kept in host RAM: 3.0 GiB, at most 8.0 GiB; {paused}"
    assert slots == "KV caches kept of unloaded models: 1.0 GiB of 2 conversations"


def test_ps_tells_how_far_a_load_is_and_how_busy_a_card(operator, capsys):
    far = LoadProgress(running_s=12.0, expected_s=40.0, read_bytes=3 * GIB, total_bytes=18 * GIB)
    new = LoadProgress(running_s=0.4, expected_s=40.0)
    operator.models["org/llama"] = ModelStatus("org/llama", "loading", load=far)
    operator.models["cold"] = ModelStatus("cold", "loading", load=new)
    operator.cards = (replace(CARD, utilisation_percent=37),)
    with running(operator) as address:
        assert main(["ps", "--address", address]) == 0
    _, _, _, first, second, _, card, _ = capsys.readouterr().out.splitlines()
    assert first == "org/llama is loading: 3.0 GiB of 18.0 GiB read, 12.0 s of about 40.0 s"
    assert second == "cold is loading: 400 ms of about 40.0 s"
    assert card.endswith("free of 24.0 GiB, 37% busy")


def test_ps_tells_what_a_machine_fetches_for_a_load(operator, capsys):
    fetch = FileFetch("b", "m.gguf", GIB, 4 * GIB)
    other = FileFetch("c", "m.gguf", 2 * GIB, 4 * GIB)
    load = LoadProgress(12.0, 160.0, fetching=fetch)
    operator.models["cold"] = ModelStatus("cold", "loading", load=load, fetches=(fetch, other))
    with running(operator) as address:
        assert main(["ps", "--address", address]) == 0
    told = "cold is loading: b fetches m.gguf: 1.0 GiB of 4.0 GiB, 12.0 s of about 2 m 40 s"
    lines = capsys.readouterr().out.splitlines()
    assert told in lines
    assert [line for line in lines if " fetches m.gguf of " in line] == [
        "c fetches m.gguf of cold: 2.0 GiB of 4.0 GiB"
    ]


def test_moves_that_let_a_model_fit_are_shown_and_made(operator, capsys):
    operator.proposed = Defragmentation(
        "cold",
        True,
        (
            ModelMove("org/llama", ("GPU-a",), "host", 8 * GIB, live=True),
            ModelMove("b", ("GPU-gone",), "GPU-a", GIB, live=False),
        ),
        2,
        "cold would fit if org/llama moved to GPU 1",
    )
    with running(operator) as address:
        at = ("--address", address)
        assert main(["defrag", *at]) == 0
        said, head, first, second = capsys.readouterr().out.splitlines()
        assert main(["defrag", "cold", "--dry-run", "--json", *at]) == 0
        assert json.loads(capsys.readouterr().out)["moves"][0]["to"] == "host"
        assert not [call for call in operator.calls if call.startswith("defragment")]
        assert main(["defrag", "cold", "--apply", *at]) == 0
        made, *_ = capsys.readouterr().out.splitlines()
        assert "defragment cold" in operator.calls
        assert main(["why", "cold", *at]) == 0
        why = capsys.readouterr().out
        operator.proposed = Defragmentation("cold", False, (), None, "no moves make room for cold")
        assert main(["defrag", "cold", *at]) == 3
        assert main(["defrag", "none", *at]) == 1
    assert said == "cold would fit if org/llama moved to GPU 1."
    assert head.split() == ["model", "from", "GPU", "to", "GPU", "bytes", "how"]
    assert first.split() == ["org/llama", "0", "host", "8.0", "GiB", "live"]
    assert second.split() == ["b", "GPU-gone", "0", "1.0", "GiB", "reload:", "unloaded", "first"]
    assert made == "Made 2 moves for cold:"
    assert why == "now: cold would fit if org/llama moved to GPU 1\n"


def test_orders_are_carried_out_and_say_how_the_model_stands(operator, capsys):
    with running(operator) as address:
        for argv in (["load", "cold"], ["unload", "gpt"], ["pin", "cold"], ["pin", "--off", "org/llama"]):
            assert main([*argv, "--address", address]) == 0
    assert operator.calls == ["load cold", "statuses", "unload org/llama", "statuses", "statuses", "statuses"]
    assert capsys.readouterr().out.splitlines() == [
        "cold is ready",
        "org/llama is unloaded and pinned: its next load stays (`cotenant pin --off` ends that)",
        "cold is pinned (ready)",
        "org/llama is not pinned (unloaded)",
    ]


def test_why_tells_the_story(operator, capsys):
    operator.tell(
        Decision(1, SystemClock().now(), DecisionKind.EVICT, "org/llama", "idle 312 s; frees 3 GiB")
    )
    with running(operator) as address:
        assert main(["why", "gpt", "--address", address]) == 0
        assert main(["why", "cold", "--address", address]) == 0
        assert main(["why", "org/llama", "--json", "--address", address]) == 0
    story, nothing, *rest = capsys.readouterr().out.splitlines()
    assert story.split(maxsplit=1)[1] == "evict         idle 312 s; frees 3 GiB"
    assert nothing == "Nothing has been decided about cold yet."
    assert json.loads("\n".join(rest))["decisions"][0]["number"] == 1


def test_why_tells_where_the_files_of_a_model_are(operator, capsys):
    costs = {
        "c": LoadCost(160.0, FileState.ABSENT),
        "d": LoadCost(None, FileState.ABSENT, "no file /m.gguf"),
        "b": LoadCost(4.0, FileState.WARM),
    }
    operator.models["org/llama"] = replace(operator.models["org/llama"], load_costs=costs)
    with running(operator) as address:
        assert main(["why", "gpt", "--address", address]) == 0
        assert main(["why", "gpt", "--json", "--address", address]) == 0
    line, *rest = capsys.readouterr().out.splitlines()
    assert line == "where its files are: b: warm, 4.0 s; c: absent, 2 m 40 s; d: absent"
    assert json.loads("\n".join(rest))["load_costs"]["b"] == {"seconds": 4.0, "state": "warm", "why": ""}


def test_logs_are_copied(operator, tmp_path: Path, capfdbinary):
    operator.logs["org/llama"] = tmp_path / "llama.log"
    operator.logs["org/llama"].write_text("one\ntwo\nthree\n")
    with running(operator) as address:
        assert main(["logs", "org/llama", "-n", "2", "--address", address]) == 0
    assert capfdbinary.readouterr().out == b"two\nthree\n"


def test_a_reload_says_what_changed_or_what_is_wrong_with_the_file(operator, capsys):
    with running(operator) as address:
        assert main(["reload", "--address", address]) == 0
        assert capsys.readouterr().out == "llama: keep_alive 5m -> 10m\n"
        operator.fault = BadSetting("nodes: lease: engines would end", hint="Give 10s or more.")
        assert main(["reload", "--address", address]) == 2
    assert "nodes: lease: engines would end. Give 10s or more." in capsys.readouterr().err


def test_what_the_daemon_refuses_ends_the_command_with_the_fitting_status(operator, capsys):
    with running(operator, api_keys=("right",)) as address:
        assert main(["ps", "--address", address]) == 1
        assert "--api-key" in capsys.readouterr().err
        key = ["--address", address, "--api-key", "right"]
        assert main(["why", "nope", *key]) == 1
        assert "'nope' is not served here" in capsys.readouterr().err
        operator.fault = DoesNotFit("cold needs 9.0 GiB more")
        assert main(["load", "cold", *key]) == 3
        assert "9.0 GiB more" in capsys.readouterr().err


@pytest.mark.parametrize(
    "command", [["ps"], ["load", "x"], ["unload", "x"], ["pin", "x"], ["why", "x"], ["logs", "x"], ["reload"]]
)
def test_a_daemon_that_does_not_run_is_one_clear_line_and_a_hint(command, capsys):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        assert main([*command, "--address", address]) == 1
    told = capsys.readouterr().err.splitlines()
    assert told[0] == f"cotenant: error: no daemon answers at http://{address}: Connection refused"
    assert "cotenant serve" in told[1]
    assert len(told) == 2


@pytest.mark.parametrize("address", ["ftp://x", "http://", "http://[::1", "http://x:99999"])
def test_an_address_that_is_none_is_wrong_usage(address, capsys):
    assert main(["ps", "--address", address]) == 2
    assert "is not an address" in capsys.readouterr().err


@contextlib.contextmanager
def answering(answer: bytes, *, reset: bool = False) -> Iterator[str]:
    """Answer whoever comes with these bytes, and hang up."""

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                with client:
                    client.recv(65536)
                    client.sendall(answer)
                    if reset:
                        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(10)


HEAD = b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n"


@pytest.mark.parametrize(
    ("answer", "reset", "told"),
    [
        (b"SSH-2.0-OpenSSH_9.2\r\n", False, "is not Cotenant"),
        (HEAD + b'{"models"', False, "did not finish its answer: the server closed the connection"),
        (HEAD + b'{"models"', True, "did not finish its answer: the server reset the connection"),
        (b"HTTP/1.1 503 Unavailable\r\ncontent-length: 99\r\n\r\n{", False, "did not finish its answer"),
    ],
)
def test_an_answer_that_is_none_or_breaks_off_is_one_clear_line(answer, reset, told, capsys):
    with answering(answer, reset=reset) as address:
        assert main(["ps", "--address", address]) == 1
    said = capsys.readouterr().err
    assert told in said
    assert "internal error" not in said


def test_a_followed_log_says_when_the_daemon_is_gone(capfd):
    chunk = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n"
    with answering(chunk) as address:
        assert main(["logs", "-f", "llama", "--address", address]) == 1
    told = capfd.readouterr()
    assert told.out == "hello"
    assert "did not finish its answer" in told.err
