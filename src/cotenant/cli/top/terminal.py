"""The terminal of `cotenant top`, with ANSI codes and no library."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import sys
import termios
import tty
from collections.abc import Sequence
from types import FrameType, TracebackType
from typing import Any, Final

from cotenant.cli.top.frame import Line, Style

_SEQUENCES: Final = {
    b"\x1b[A": "up",
    b"\x1b[B": "down",
    b"\x1bOA": "up",
    b"\x1bOB": "down",
    b"\x1b[5~": "page up",
    b"\x1b[6~": "page down",
    b"\x1b": "escape",
    b"\r": "enter",
    b"\n": "enter",
    b"\x7f": "backspace",
    b"\x08": "backspace",
    b"\x03": "quit",
}
_CODES: Final = {Style.PLAIN: "", Style.BOLD: "1", Style.DIM: "2", Style.REVERSE: "7", Style.BAD: "1;31"}
_WITHOUT_COLOUR: Final = {**_CODES, Style.BAD: "1"}
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
        self._codes = _CODES if has_colour() else _WITHOUT_COLOUR
        self._unicode = "utf" in (sys.stdout.encoding or "").lower()
        self.ended = False

    def __enter__(self) -> Terminal:
        self._saved = termios.tcgetattr(self._input)
        tty.setcbreak(self._input)
        for number, handler in ((signal.SIGWINCH, self._resized), (signal.SIGTERM, self._terminated)):
            self._handlers[number] = signal.signal(number, handler)
        self._write("\x1b[?1049h\x1b[?25l\x1b[2J")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
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

    def _resized(self, number: int, at: FrameType | None) -> None:
        self.wake()

    def _terminated(self, number: int, at: FrameType | None) -> None:
        self.ended = True
        self.wake()


def keys(typed: bytes) -> list[str]:
    """Decode the input of a terminal: names of special keys, else characters."""
    found: list[str] = []
    while typed:
        sequence = next(
            (each for each in sorted(_SEQUENCES, key=len, reverse=True) if typed.startswith(each)), None
        )
        if sequence == b"\x1b" and typed[1:2] in (b"[", b"O"):
            # An unknown special key: its letters are no commands.
            end = next((i for i, byte in enumerate(typed[2:], 2) if 0x40 <= byte <= 0x7E), len(typed) - 1)
            typed = typed[end + 1 :]
            continue
        if sequence is not None:
            found.append(_SEQUENCES[sequence])
            typed = typed[len(sequence) :]
            continue
        length = 1 if typed[0] < 0x80 else 2 if typed[0] < 0xE0 else 3 if typed[0] < 0xF0 else 4
        character = typed[:length].decode("utf-8", "ignore")
        if character.isprintable() and character:
            found.append(character)
        typed = typed[length:]
    return found


def plain(text: str) -> str:
    """Convert text to ASCII, for a terminal without Unicode."""
    return text.translate(str.maketrans("×·…↑↓°", "x.~^v ")).encode("ascii", "replace").decode()
