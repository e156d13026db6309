"""`cotenant top`: its picture, its keys, and the whole in a real terminal (tmux) before a real daemon."""

import contextlib
import json
import queue
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cotenant.cli.client import Daemon
from cotenant.cli.main import main
from cotenant.cli.top.command import _Session
from cotenant.cli.top.feed import Feed
from cotenant.cli.top.frame import KEYS, Style, frame
from cotenant.cli.top.terminal import Terminal, has_colour, keys, plain
from cotenant.cli.top.view import Choices, Snapshot
from cotenant.domain.units import GIB
from tests.support.daemon.serving import Serving
from tests.support.debian import installed
from tests.support.models.gguf_models import build_tiny_llama
from tests.support.waiting import wait_until

ADDRESS = "http://127.0.0.1:8080"


def device(index: int | None = 0, **more: Any) -> dict[str, Any]:
    found = {
        "uuid": f"GPU-{index}",
        "index": index,
        "name": "NVIDIA GeForce RTX 3090" if index is not None else "host RAM",
        "total_bytes": 24 * GIB,
        "free_bytes": 10 * GIB,
        "foreign_bytes": 6 * GIB,
        "overcommitted": False,
    }
    return {**found, **more}


def model(name: str, *uuids: str, **more: Any) -> dict[str, Any]:
    found = {
        "name": name,
        "state": "ready" if uuids else "cold",
        "devices": uuids,
        "predicted_bytes": 8 * GIB if uuids else None,
        "in_flight": 1 if uuids else 0,
        "slots": 4,
        "queued": 0,
        "requests_per_s": 0.5,
        "idle_s": 3.0,
        "keep_alive_left_s": 290.0 if uuids else None,
    }
    return {**found, **more}


def decision(number: int, text: str) -> dict[str, Any]:
    return {"number": number, "time": "2026-11-21T07:05:13.720+00:00", "model": "llama", "text": text}


SNAPSHOT = Snapshot(
    models=[model("llama", "GPU-0"), model("qwen", "GPU-0", "GPU-1"), model("cold")],
    devices=[device(0, utilisation_percent=93.0, temperature_c=71.0, power_w=312.0), device(1)],
    tokens_per_s={"llama": 81.4},
    decisions=[decision(n, f"decision {n}") for n in range(9)],
    taken_at="07:05:14",
)


def picture(
    snapshot: Snapshot = SNAPSHOT, choices: Choices | None = None, width: int = 80, height: int = 24
) -> str:
    lines = frame(snapshot, choices or Choices(), ADDRESS, width, height)
    assert len(lines) == height
    assert all(len(line.text) <= width for line in lines)
    return "\n".join(line.text for line in lines)


def test_a_card_s_bar_is_split_by_model_others_and_free_and_tells_what_is_known() -> None:
    shown = picture()

    first = next(line for line in shown.splitlines() if line.startswith("GPU 0"))
    bar = first.partition("[")[2].partition("]")[0]
    assert 0 < bar.count("a") - bar.count("b") <= bar.count("a")
    assert bar == "a" * bar.count("a") + "b" * bar.count("b") + "×" * bar.count("×") + "·" * bar.count("·")
    assert first.endswith("14.0/24.0 GiB 93% 71°C 312W")
    assert "%" not in next(line for line in shown.splitlines() if line.startswith("GPU 1"))


def test_free_memory_that_no_model_could_use_is_hatched() -> None:
    found = {"by_device": {"GPU-1": {"ratio": 1.0, "stranded_bytes": 6 * GIB}}}
    shown = picture(replace(SNAPSHOT, fragmentation=found))
    second = next(line for line in shown.splitlines() if line.startswith("GPU 1"))
    bar = second.partition("[")[2].partition("]")[0]
    assert bar.count("/") == round(len(bar) / 4)
    assert bar.endswith("·" * bar.count("·") + "/" * bar.count("/"))


def test_models_are_told_with_state_rates_and_time_left() -> None:
    row = next(line for line in picture().splitlines() if " llama " in line)

    assert row.split() == [">a", "llama", "ready", "0", "0.5", "81", "1/4", "0", "3s", "5m"]


def test_the_last_decisions_are_at_the_bottom_above_the_keys() -> None:
    lines = [line for line in picture().splitlines() if line]

    assert lines[-1] == KEYS
    assert lines[-2] == "07:05:13 llama: decision 8"


def test_many_cards_and_models_leave_room_for_each_other_and_the_selection() -> None:
    many = Snapshot(
        models=[model(f"model-{n}") for n in range(200)],
        devices=[device(n) for n in range(16)],
        decisions=SNAPSHOT.decisions,
    )

    shown = picture(many, Choices(selected="model-150"))

    assert ">  model-150" in shown
    assert "GPU 7 RTX 3090" in shown
    assert "… and 8 more" in shown, "of sixteen"
    assert "decision 8" in shown


def test_a_wide_terminal_tells_bytes_too() -> None:
    assert "planned" not in picture(width=80)
    assert "8.0G" in picture(width=140)
    assert "-G" not in picture(width=140)


def test_a_daemon_that_is_gone_is_told_above_the_last_figures() -> None:
    gone = Snapshot(SNAPSHOT.models, SNAPSHOT.devices, problem="no daemon answers; trying again")

    shown = picture(gone)

    assert "no daemon answers; trying again" in shown
    assert "llama" in shown


def test_alerts_are_told() -> None:
    alerted = Snapshot(alerts=[{"text": f"card {n} is full"} for n in range(5)])

    assert "! card 0 is full" in picture(alerted)
    assert "! and 2 more alerts" in picture(alerted)


def test_what_a_terminal_would_obey_is_not_passed_on() -> None:
    evil = Snapshot(decisions=[decision(1, "\x1b[2Jdied\x07\nof it")])

    assert "\x1b" not in picture(evil)
    assert "died" in picture(evil)


def test_a_load_tells_how_far_it_is() -> None:
    loading = model("llama", "GPU-0", state="loading", load={"read_bytes": 3, "total_bytes": 8})

    assert "load 37%" in picture(Snapshot(models=[loading], devices=[device()]))


def test_a_filter_leaves_models_that_contain_it() -> None:
    choices = Choices(filter="QWE")

    shown = picture(choices=choices)

    assert " qwen" in shown
    assert " cold " not in shown
    assert choices.model(SNAPSHOT) == SNAPSHOT.models[1]
    assert "no model matches" in picture(choices=Choices(filter="zzz"))


def test_the_selection_stops_at_both_ends() -> None:
    choices = Choices()
    for _ in range(9):
        choices.move(SNAPSHOT, 1)
    assert choices.selected == "cold"
    choices.move(SNAPSHOT, -99)
    assert choices.selected == "llama"


def test_a_page_is_wrapped_and_turned_no_further_than_its_end() -> None:
    choices = Choices(page=["Why?", *[f"line {n} " + "long " * 30 for n in range(20)]])
    choices.move(SNAPSHOT, 500)

    shown = picture(choices=choices)

    assert "line 19" in shown
    assert shown.splitlines()[0] == "Why?"


def test_the_selected_line_is_set_off_by_more_than_colour() -> None:
    lines = frame(SNAPSHOT, Choices(), ADDRESS, 80, 24)

    (chosen,) = [line for line in lines if line.style is Style.REVERSE]
    assert chosen.text.startswith(">")


_SNAPSHOTS = st.builds(
    Snapshot,
    models=st.lists(st.builds(model, st.text(max_size=40), st.sampled_from(["GPU-0", "GPU-9"])), max_size=30),
    devices=st.lists(
        st.builds(
            device,
            st.integers(0, 40),
            total_bytes=st.one_of(st.none(), st.integers(0, 2**40)),
            free_bytes=st.one_of(st.none(), st.integers(0, 2**40)),
            foreign_bytes=st.one_of(st.none(), st.integers(0, 2**40)),
        ),
        max_size=20,
    ),
    decisions=st.lists(st.builds(decision, st.integers(), st.text(max_size=200)), max_size=30),
    alerts=st.lists(st.fixed_dictionaries({"text": st.text(max_size=200)}), max_size=9),
    problem=st.one_of(st.none(), st.text(max_size=200)),
)


@pytest.mark.slow
@given(_SNAPSHOTS, st.integers(20, 200), st.integers(6, 60))
def test_every_picture_fits_its_terminal(snapshot: Snapshot, width: int, height: int) -> None:
    picture(snapshot, width=width, height=height)


@pytest.mark.parametrize(
    ("typed", "found"),
    [
        (b"\x1b[A\x1b[B\x1bOA", ["up", "down", "up"]),
        (b"\x1b", ["escape"]),
        (b"q\r\x7f", ["q", "enter", "backspace"]),
        (b"\x1b[15~u", ["u"]),
        (b"\x1b[3;5~", []),
        ("é".encode(), ["é"]),
        (b"\xff\xfe\x00", []),
        (b"\x1b[", []),
    ],
)
def test_keys_are_read_as_terminals_send_them(typed: bytes, found: list[str]) -> None:
    assert keys(typed) == found


@given(st.binary(max_size=40))
def test_whatever_is_typed_is_no_fault(typed: bytes) -> None:
    keys(typed)


def test_colours_are_left_out_where_they_are_not_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert has_colour()
    monkeypatch.setenv("NO_COLOR", "1")
    assert not has_colour()
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("TERM", "dumb")
    assert not has_colour()


def test_a_terminal_that_knows_ascii_alone_gets_no_more() -> None:
    assert plain("[a×·] 71°C ↑↓ …é") == "[ax.] 71 C ^v ~?"


def test_without_a_daemon_one_picture_is_one_line_of_fault(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["top", "--once", "--address", "http://127.0.0.1:9"]) == 1
    assert "no daemon answers at http://127.0.0.1:9" in capsys.readouterr().err


def test_an_interval_that_is_too_short_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["top", "--interval", "10ms"]) == 2
    assert "too short" in capsys.readouterr().err


class Screen:
    """`cotenant top` in a terminal of tmux's."""

    def __init__(self, folder: Path, address: str) -> None:
        self._tmux = ["tmux", "-S", str(folder / "tmux"), "-f", "/dev/null"]
        command = f"{sys.executable} -m cotenant.cli.main top --interval 200ms --address {address}"
        self._run("new-session", "-d", "-x", "80", "-y", "24", command)

    def _run(self, *words: str) -> str:
        done = subprocess.run([*self._tmux, *words], capture_output=True, text=True, timeout=60, check=True)
        return done.stdout

    @property
    def text(self) -> str:
        return self._run("capture-pane", "-p")

    def press(self, *names: str) -> None:
        self._run("send-keys", *names)

    def resize(self, columns: int, lines: int) -> None:
        self._run("resize-window", "-x", str(columns), "-y", str(lines))

    def wait_for(self, condition: Callable[[str], object], within_s: float = 60) -> str:
        deadline = time.monotonic() + within_s
        while not condition(shown := self.text):
            assert time.monotonic() < deadline, shown
            time.sleep(0.05)
        return shown

    def ended(self) -> bool:
        done = subprocess.run([*self._tmux, "has-session"], capture_output=True, timeout=60)
        return done.returncode != 0

    def close(self) -> None:
        subprocess.run([*self._tmux, "kill-server"], capture_output=True, timeout=60)


@contextlib.contextmanager
def watching(folder: Path, address: str) -> Iterator[Screen]:
    screen = Screen(folder, address)
    try:
        yield screen
    finally:
        screen.close()


def row_of(shown: str, name: str) -> list[str]:
    rows = [line.lstrip("> ").split() for line in shown.splitlines()]
    return next((row for row in rows if name in row[:2]), [])


@pytest.mark.slow
@pytest.mark.engine
def test_in_a_terminal_models_are_loaded_explained_filtered_and_unloaded_by_keys(tmp_path: Path) -> None:
    if installed("tmux") is None:
        pytest.skip("Keys in a terminal cannot be tested here: no tmux: `apt-get install tmux`")
    for name in ("alpha", "beta"):
        build_tiny_llama(tmp_path / f"{name}.gguf")
    (tmp_path / "cotenant.yaml").write_text(
        "server: {port: 0}\ndevices: {gpus: 'RTX 3090:24576:6000,RTX A400:4094:329'}\n"
        "models: [{path: alpha.gguf}, {path: beta.gguf}]\n"
    )
    argv = ["serve", "--config", str(tmp_path / "cotenant.yaml")]
    with Serving(argv, tmp_path / "state") as daemon, watching(tmp_path, daemon.address()) as screen:
        shown = screen.wait_for(lambda text: "0 of 2 models loaded" in text and "beta" in text)
        assert "GPU 0 RTX 3090 [" in shown
        assert "GPU 1 RTX A400 [" in shown

        screen.press("Down", "l")
        shown = screen.wait_for(lambda text: "ready" in row_of(text, "beta"))
        assert row_of(shown, "alpha")[1] == "cold"
        screen.wait_for(lambda text: "beta: ready after" in text)
        assert "[a" in screen.text

        screen.press("p")
        screen.wait_for(lambda text: "pinned" in row_of(text, "beta"))
        screen.press("p")
        screen.wait_for(lambda text: "pinned" not in row_of(text, "beta"))

        screen.press("w")
        screen.wait_for(lambda text: "Why is beta ready?" in text and "by the operator" in text)
        screen.press("q")
        screen.wait_for(lambda text: "models loaded" in text)

        screen.press("/", "a", "l", "p", "Enter")
        screen.wait_for(lambda text: "only 'alp'" in text and not row_of(text, "beta"))
        screen.press("Escape")
        screen.wait_for(lambda text: row_of(text, "beta"))

        screen.press("?")
        screen.wait_for(lambda text: "unload it; asks first" in text)
        screen.press("Escape")
        screen.resize(140, 30)
        screen.wait_for(lambda text: "planned" in text and "measured" in text)
        screen.resize(60, 12)
        screen.wait_for(lambda text: "planned" not in text and "alpha" in text)

        screen.press("u")
        screen.wait_for(lambda text: "cold" in row_of(text, "beta"))

        daemon.process.kill()
        screen.wait_for(lambda text: "retrying" in text and "alpha" in text)
        screen.press("q")
        wait_until(screen.ended)


class _NoTerminal:
    """What the loop of keys asks of a terminal, beside keys."""

    def wake(self) -> None:
        pass


class _Daemon:
    """A daemon that writes down what it is told."""

    def __init__(self) -> None:
        self.told: queue.Queue[str] = queue.Queue()

    def send(self, path: str) -> object:
        self.told.put(path)
        return {}


def test_a_busy_model_is_unloaded_only_after_a_yes() -> None:
    daemon = _Daemon()
    feed = Feed(cast(Daemon, daemon), 1.0, lambda: None)
    feed.snapshot = SNAPSHOT
    watching = _Session(cast(Daemon, daemon), feed, cast(Terminal, _NoTerminal()))

    watching._press("u")
    assert watching._choices.question == "llama is answering 1 request: unload it once they are answered?"
    assert "(y/n)" in picture(choices=watching._choices)
    watching._press("n")
    assert watching._choices.question is None
    watching._press("u")
    watching._press("y")

    assert daemon.told.get(timeout=60) == "/api/models/llama/unload?wait=0"
    assert daemon.told.empty()


def test_what_is_shown_once_can_be_had_as_json(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = Snapshot(models=[{"name": "llama"}], taken_at="12:00:00")
    monkeypatch.setattr("cotenant.cli.top.command.Feed.read", lambda feed: shown)
    assert main(["top", "--json", "--address", "http://127.0.0.1:9"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["models"], found["taken_at"], found["alerts"]) == ([{"name": "llama"}], "12:00:00", [])
