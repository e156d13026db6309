"""The terminal of `cotenant top`, with ANSI codes and no library."""

import contextlib
import os
import re
import select
import shutil
import signal
import sys
import termios
import tty
from collections.abc import Sequence
from typing import Any, Final, Self

from cotenant.cli.top.frame import Line, Style

_NAMES: Final = {
    "\x1b[A": "up",
    "\x1b[B": "down",
    "\x1bOA": "up",
    "\x1bOB": "down",
    "\x1b[5~": "page up",
    "\x1b[6~": "page down",
    "\x1b": "escape",
    "\r": "enter",
    "\n": "enter",
    "\x7f": "backspace",
    "\x08": "backspace",
    "\x03": "quit",
}
_KEY: Final = re.compile(r"\x1b[\[O][^@-~]*[@-~]?|.", re.DOTALL)
"""A special key, which ends with a letter or `~`, or a character."""
_CODES: Final = {Style.PLAIN: "", Style.BOLD: "1", Style.DIM: "2", Style.REVERSE: "7", Style.BAD: "1;31"}
_READ_BYTES: Final = 1024


def has_colour() -> bool:
    """Whether the terminal supports colours and the user wants them (no-color.org)."""
    return not os.environ.get("NO_COLOR") and os.environ.get("TERM", "dumb") not in ("dumb", "vt100")


class Terminal:
    """The full screen, during a `with` block; afterwards it is restored.

    `read` returns on keys, on a change of size, and on `wake`, which any thread may call.
    """

    def __init__(self) -> None:
        self._input = sys.stdin.fileno()
        self._saved: list[Any] = []
        self._woken, self._waking = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._handlers: dict[signal.Signals, Any] = {}
        self._codes = _CODES if has_colour() else {**_CODES, Style.BAD: "1"}
        self._unicode = "utf" in (sys.stdout.encoding or "").lower()
        self.ended = False

    def __enter__(self) -> Self:
        self._saved = termios.tcgetattr(self._input)
        tty.setcbreak(self._input)
        self._handlers[signal.SIGWINCH] = signal.signal(signal.SIGWINCH, lambda *_: self.wake())
        self._handlers[signal.SIGTERM] = signal.signal(signal.SIGTERM, self._terminated)
        self._write("\x1b[?1049h\x1b[?25l\x1b[2J")
        return self

    def __exit__(self, *error: object) -> None:
        self._write("\x1b[0m\x1b[?25h\x1b[?1049l")
        termios.tcsetattr(self._input, termios.TCSADRAIN, self._saved)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    @property
    def size(self) -> tuple[int, int]:
        """The number of columns and of lines."""
        found = shutil.get_terminal_size((80, 24))
        # Ask the terminal: COLUMNS does not follow a change of size.
        with contextlib.suppress(OSError):
            found = os.get_terminal_size(sys.stdout.fileno())
        return max(20, found.columns), max(6, found.lines)

    def wake(self) -> None:
        """Wake a waiting `read`."""
        # A full pipe wakes it anyway.
        with contextlib.suppress(BlockingIOError):
            os.write(self._waking, b".")

    def read(self, timeout_s: float) -> Sequence[str]:
        """Wait for an event, and return the keys that were pressed, if any."""
        ready, _, _ = select.select([self._input, self._woken], [], [], timeout_s)
        if self._woken in ready:
            os.read(self._woken, _READ_BYTES)
        if self._input not in ready:
            return ()
        typed = os.read(self._input, _READ_BYTES)
        if not typed:
            self.ended = True
        return keys(typed)

    def draw(self, lines: Sequence[Line]) -> None:
        """Replace the screen, in one write to avoid flicker."""
        drawn = "\r\n".join(self._drawn(line) for line in lines)
        self._write(f"\x1b[?2026h\x1b[H{drawn}\x1b[J\x1b[?2026l")

    def _drawn(self, line: Line) -> str:
        code = self._codes[line.style]
        text = line.text if self._unicode else plain(line.text)
        return f"\x1b[{code}m{text}\x1b[0m\x1b[K" if code else f"{text}\x1b[K"

    def _write(self, text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()

    def _terminated(self, *_: object) -> None:
        self.ended = True
        self.wake()


def keys(typed: bytes) -> list[str]:
    """Decode the input of a terminal: names of special keys, else characters.

    An unknown special key is ignored: its letters are no commands.
    """
    typed_keys = _KEY.findall(typed.decode("utf-8", "ignore"))
    return [_NAMES.get(key, key) for key in typed_keys if key in _NAMES or key.isprintable()]


def plain(text: str) -> str:
    """Convert text to ASCII, for a terminal without Unicode."""
    return text.translate(str.maketrans("×·…↑↓°", "x.~^v ")).encode("ascii", "replace").decode()
