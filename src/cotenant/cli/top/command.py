"""`cotenant top`: a live view of a running daemon, with keys that control it."""

import argparse
import shutil
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Final

from cotenant.cli.client import Daemon, add_daemon_options, model_path
from cotenant.cli.table import print_result
from cotenant.cli.top.feed import Feed
from cotenant.cli.top.frame import HELP, frame
from cotenant.cli.top.terminal import Terminal, plain
from cotenant.cli.top.view import Choices
from cotenant.domain.errors import BadSetting, CotenantError
from cotenant.domain.units import parse_duration

_MESSAGE_S: Final = 6.0
_STEPS: Final = {"up": -1, "k": -1, "down": 1, "j": 1, "page up": -10, "page down": 10}


def register(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments to its parser."""
    parser.add_argument("--once", action="store_true", help="print one screen as text, and exit")
    parser.add_argument("--json", action="store_true", help="print what is shown once, as JSON")
    parser.add_argument(
        "--interval", type=_interval, default=2.0, metavar="TIME", help="how often to poll (default: 2s)"
    )
    add_daemon_options(parser)


def _interval(text: str) -> float:
    seconds = parse_duration(text)
    if seconds < 0.2:
        raise BadSetting(f"--interval {text} is too short", hint="Use 200ms or more.")
    return seconds


def run(args: argparse.Namespace) -> int:
    """Run until the user quits; print one screen if this is not a terminal. Raises DaemonSilent."""
    daemon = Daemon(args)
    if args.json:
        return print_result(args, asdict(Feed(daemon, args.interval, lambda: None).read()), ())
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
        self._on_yes: Callable[[], None] = lambda: None
        self._orders: Mapping[str, Callable[[Mapping[str, Any]], None]] = {
            "l": lambda model: self._order(model, "load"),
            "u": self._unload,
            "p": lambda model: self._order(model, "unpin" if model.get("pinned") else "pin"),
            "w": self._why,
        }

    def run(self) -> None:
        """Draw and handle keys until the user quits or the terminal is closed."""
        while not self._terminal.ended:
            if self._choices.message and time.monotonic() > self._message_until:
                self._choices.message = ""
            width, height = self._terminal.size
            lines = frame(self._feed.snapshot, self._choices, self._daemon.address, width, height)
            self._terminal.draw(lines)
            for key in self._terminal.read(1.0):
                if not self._press(key):
                    return

    def _press(self, key: str) -> bool:
        """Handle a key; False to quit."""
        choices, snapshot = self._choices, self._feed.snapshot
        if key == "quit":
            return False
        if choices.question is not None:
            choices.question = None
            if key in ("y", "Y"):
                self._on_yes()
        elif choices.typing:
            self._type(key)
        elif key in ("q", "escape") and choices.page is not None:
            choices.page = None
        elif key == "q":
            return False
        elif key == "escape":
            choices.filter = ""
        elif key == "/":
            choices.typing = choices.page is None
        elif key == "?":
            self._show(HELP)
        elif key in _STEPS:
            choices.move(snapshot, _STEPS[key])
        elif key in self._orders and choices.page is None and (model := choices.model(snapshot)) is not None:
            # From now on the selection follows this model, even if its row moves.
            choices.selected = model["name"]
            self._orders[key](model)
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

    def _show(self, lines: Sequence[str]) -> None:
        self._choices.page, self._choices.page_top = lines, 0

    def _unload(self, model: Mapping[str, Any]) -> None:
        busy = model.get("in_flight", 0)
        if not busy:
            self._order(model, "unload")
            return
        requests = "1 request" if busy == 1 else f"{busy} requests"
        self._choices.question = f"{model['name']} is answering {requests}: unload it once they are answered?"
        self._on_yes = lambda: self._order(model, "unload")

    def _order(self, model: Mapping[str, Any], action: str) -> None:
        name = model["name"]

        def send() -> None:
            try:
                self._daemon.send(model_path(name, action) + "?wait=0")
                self._notify(f"{action} {name}: {'requested' if action.endswith('load') else 'done'}")
            except CotenantError as error:
                self._notify(f"{action} {name}: {error.message}")
            self._feed.refresh()
            self._terminal.wake()

        # In a thread, so that a slow daemon does not block the keys.
        threading.Thread(target=send, daemon=True).start()

    def _why(self, model: Mapping[str, Any]) -> None:
        name = model["name"]

        def fetch() -> None:
            try:
                decisions = self._daemon.text(model_path(name, "why")).splitlines()
            except CotenantError as error:
                self._notify(f"why {name}: {error.message}")
            else:
                heading = f"Why is {name} {model['state']}?"
                self._show([heading, "", *(decisions or ["Nothing was decided yet."])])
            self._terminal.wake()

        threading.Thread(target=fetch, daemon=True).start()

    def _notify(self, message: str) -> None:
        self._choices.message, self._message_until = message, time.monotonic() + _MESSAGE_S
