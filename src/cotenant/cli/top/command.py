"""`cotenant top`: a live view of a running daemon, with keys that control it."""

import argparse
import shutil
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from cotenant.cli.client import Daemon, add_daemon_options, model_path
from cotenant.cli.top.feed import Feed
from cotenant.cli.top.frame import HELP, frame
from cotenant.cli.top.terminal import Terminal, plain
from cotenant.cli.top.view import Choices
from cotenant.domain.errors import BadSetting, CotenantError
from cotenant.domain.units import parse_duration

_INTERVAL_S: Final = 2.0
_LEAST_S: Final = 0.2
_MESSAGE_S: Final = 6.0
_PAGE: Final = 10


def register(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments to its parser."""
    parser.add_argument("--once", action="store_true", help="print one screen as text, and exit")
    parser.add_argument(
        "--interval",
        type=_interval,
        default=_INTERVAL_S,
        metavar="TIME",
        help="how often to poll (default: 2s)",
    )
    add_daemon_options(parser)


def _interval(text: str) -> float:
    seconds = parse_duration(text)
    if seconds < _LEAST_S:
        raise BadSetting(f"--interval {text} is too short", hint="Use 200ms or more.")
    return seconds


def run(args: argparse.Namespace) -> int:
    """Run until the user quits; print one screen if this is not a terminal. Raises DaemonSilent."""
    daemon = Daemon(args)
    if args.once or not (sys.stdin.isatty() and sys.stdout.isatty()):
        snapshot = Feed(daemon, args.interval, lambda: None).read()
        width = shutil.get_terminal_size((80, 24)).columns
        encoded = "utf" in (sys.stdout.encoding or "").lower()
        for line in frame(snapshot, Choices(), daemon.address, width, None):
            print(line.text if encoded else plain(line.text))
        return 0
    with Terminal() as terminal:
        feed = Feed(daemon, args.interval, terminal.wake)
        feed.start()
        try:
            _Session(daemon, feed, terminal).run()
        except KeyboardInterrupt:
            pass
        finally:
            feed.stop()
    return 0


class _Session:
    """The loop that handles keys and draws the screen."""

    def __init__(self, daemon: Daemon, feed: Feed, terminal: Terminal) -> None:
        self._daemon = daemon
        self._feed = feed
        self._terminal = terminal
        self._choices = Choices()
        self._message_until = 0.0
        self._on_yes: Callable[[], None] | None = None
        self._keys: Mapping[str, Callable[[], None]] = {
            "up": lambda: self._move(-1),
            "k": lambda: self._move(-1),
            "down": lambda: self._move(1),
            "j": lambda: self._move(1),
            "page up": lambda: self._move(-_PAGE),
            "page down": lambda: self._move(_PAGE),
            "l": lambda: self._order("load"),
            "u": self._unload,
            "p": self._pin,
            "w": self._why,
            "?": lambda: self._show(HELP),
            "/": self._filter,
            "escape": self._back,
        }

    def run(self) -> None:
        """Draw and handle keys until the user quits or the terminal is closed."""
        while not self._terminal.ended:
            if self._choices.message and time.monotonic() > self._message_until:
                self._choices.message = ""
            width, height = self._terminal.size
            self._terminal.draw(
                frame(self._feed.snapshot, self._choices, self._daemon.address, width, height)
            )
            for key in self._terminal.read(1.0):
                if not self._press(key):
                    return

    def _press(self, key: str) -> bool:
        """Handle a key; False to quit."""
        choices = self._choices
        if key == "quit":
            return False
        if choices.question is not None:
            choices.question, on_yes = None, self._on_yes
            if key in ("y", "Y") and on_yes is not None:
                on_yes()
        elif choices.typing:
            self._type(key)
        elif key == "q":
            if choices.page is None:
                return False
            choices.page = None
        elif key in self._keys:
            self._keys[key]()
        return True

    def _type(self, key: str) -> None:
        choices = self._choices
        if key == "enter":
            choices.typing = False
        elif key == "escape":
            choices.typing, choices.filter = False, ""
        elif key == "backspace":
            choices.filter = choices.filter[:-1]
        elif len(key) == 1:
            choices.filter += key

    def _move(self, step: int) -> None:
        self._choices.move(self._feed.snapshot, step)

    def _filter(self) -> None:
        if self._choices.page is None:
            self._choices.typing = True

    def _back(self) -> None:
        if self._choices.page is not None:
            self._choices.page = None
        else:
            self._choices.filter = ""

    def _show(self, lines: Sequence[str]) -> None:
        self._choices.page, self._choices.page_top = lines, 0

    def _chosen(self) -> Mapping[str, Any] | None:
        if self._choices.page is not None:
            return None
        model = self._choices.model(self._feed.snapshot)
        if model is not None:
            # From now on the selection follows this model, even if its row moves.
            self._choices.selected = model["name"]
        return model

    def _unload(self) -> None:
        model = self._chosen()
        if model is None:
            return
        busy = model.get("in_flight", 0)
        if not busy:
            self._order("unload")
            return
        requests = "1 request" if busy == 1 else f"{busy} requests"
        self._choices.question = f"{model['name']} is answering {requests}: unload it once they are answered?"
        self._on_yes = lambda: self._order("unload")

    def _pin(self) -> None:
        model = self._chosen()
        if model is not None:
            self._order("unpin" if model.get("pinned") else "pin")

    def _order(self, action: str) -> None:
        model = self._chosen()
        if model is None:
            return
        name = model["name"]

        def send() -> None:
            try:
                self._daemon.send(model_path(name, action) + "?wait=0")
                self._notify(f"{action} {name}: {'requested' if action.endswith('load') else 'done'}")
            except CotenantError as error:
                self._notify(f"{action} {name}: {error.message}")
            self._feed.refresh()
            self._terminal.wake()

        self._in_background(send)

    def _why(self) -> None:
        model = self._chosen()
        if model is None:
            return
        name = model["name"]

        def fetch() -> None:
            try:
                decisions = self._daemon.text(model_path(name, "why")).splitlines()
            except CotenantError as error:
                self._notify(f"why {name}: {error.message}")
            else:
                self._show(
                    [f"Why is {name} {model['state']}?", "", *(decisions or ["Nothing was decided yet."])]
                )
            self._terminal.wake()

        self._in_background(fetch)

    def _in_background(self, work: Callable[[], None]) -> None:
        """Run in a thread, so that a slow daemon does not block the keys."""
        threading.Thread(target=work, daemon=True).start()

    def _notify(self, message: str) -> None:
        self._choices.message, self._message_until = message, time.monotonic() + _MESSAGE_S
