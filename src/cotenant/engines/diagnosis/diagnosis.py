"""Finds out why an engine ended, from its exit status and its log."""

import re
import signal
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Final

from cotenant.domain.devices import Device
from cotenant.domain.engines import LOG_MARK
from cotenant.domain.exit_causes import Cause, Diagnosis, Lacking
from cotenant.domain.units import parse_bytes
from cotenant.engines.diagnosis.remedies import REMEDIES
from cotenant.engines.diagnosis.signatures import BENIGN, STRONG, UNINFORMATIVE, WEAK, Signature
from cotenant.engines.diagnosis.specific import SPECIFIC

_READ_CHARS: Final = 1 << 20
_LINE_CHARS: Final = 1000
_EVIDENCE_CHARS: Final = 240
_LAST_LINES: Final = 3
_SHELL_OFFSET: Final = 128

_ESCAPE: Final = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|[\x00-\x08\x0e-\x1f\x7f]")
_PREFIXES: Final = tuple(
    re.compile(pattern)
    for pattern in (
        r"[\w.-]{1,60}\s{1,4}\| ",
        r"[A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d \S{1,60} \S{1,60}: ",
        r"\[\d{1,9}\] ",
        r"\([\w .=-]{1,80}\) ",
        r"[A-Z]{4,8} \d\d-\d\d \d\d:\d\d:\d\d ",
        r"\[?[\w/]{1,60}\.py:\d{1,6}\] ",
        r"(?:\d{1,9}\.){1,3}\d{1,9} (?=[A-Z] )",
        r"[EWID]\s{1,6}(?=\S)",
        r"(?:srv|cmn|slot|que)\s{1,20}",
        r"(?:[a-z_][\w(]{2,60}:\s{1,8}){1,3}(?:error loading model: )?",
    )
)
_ERROR: Final = re.compile(
    r"(?:\[\d{1,9}\] )?(?:(?:\d{1,9}\.){1,3}\d{1,9} )?E\s"
    r"|\([\w-]{1,40} pid=\d{1,9}\) ERROR .{1,80}\] \w{1,80}(?:Error|Exception): "
)
_WHERE: Final = re.compile(r"current device: \d+, in function \w+")
_OWN_NUMBER: Final = re.compile(r"\b(?:CUDA|ROCm|cuda:|hip:|(?:[Dd]evice|GPU):? )(\d{1,2})\b")
"""How engines name GPUs: by numbers that begin at 0 with the first that they may see."""
_LACKING: Final = re.compile(r"its (?:device (\d{1,2})|GPU) has no room for another ([\d.]+ [KMG]iB)")
_SECRET: Final = re.compile(
    r"(--?[\w-]{1,80}=|(?i:--?[\w-]{0,40}(?:key|token|secret|password)[\w-]{0,40}) )\S+"
)

_CLEAR_SIGNALS: Final = frozenset(
    {signal.SIGKILL, signal.SIGILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
)
_SIGNALS: Final = {
    signal.SIGILL: (
        Cause.ILLEGAL_INSTRUCTION,
        "met an instruction that this processor does not have: its build is for another one",
    ),
    signal.SIGKILL: (
        Cause.OOM_KILLED,
        "was killed by signal 9 (SIGKILL), as the kernel does when memory runs out",
    ),
    signal.SIGABRT: (Cause.CRASHED, "gave up (SIGABRT)"),
    signal.SIGSEGV: (Cause.CRASHED, "crashed (SIGSEGV)"),
    signal.SIGFPE: (Cause.CRASHED, "crashed (SIGFPE)"),
    # No request is to blame for it.
    signal.SIGBUS: (
        Cause.MAPPED_FILE,
        "crashed (SIGBUS), as it does when a mapped file is cut short or the disk fails",
    ),
}


def diagnose(
    returncode: int,
    log: str,
    *,
    was_ready: bool = False,
    exclusive: bool = False,
    devices: Sequence[Device] = (),
) -> Diagnosis:
    """Return the cause of an engine's end, with the lines that show it and what to do.

    `log` is the end of its output; the last MiB of it counts. `was_ready` distinguishes memory that ran out
    while serving from memory that ran out while loading. `exclusive` says that it ran on a card in
    Exclusive_Process mode, where a second process may die without a message. `devices` are the GPUs that it
    could see, in its order: where the log has its number of one, the driver's is added.
    """
    found = _diagnose(returncode, log, was_ready=was_ready, exclusive=exclusive)
    if match := _LACKING.search(found.summary):
        found = replace(found, lacking=Lacking(parse_bytes(match[2]), int(match[1] or 0)))

    def numbered(match: re.Match[str]) -> str:
        number = int(match[1])
        return f"{match[0]} (the driver's {devices[number].label})" if number < len(devices) else match[0]

    summary, *evidence = (_OWN_NUMBER.sub(numbered, text) for text in (found.summary, *found.evidence))
    return replace(found, summary=summary, evidence=tuple(evidence))


def _diagnose(returncode: int, log: str, *, was_ready: bool, exclusive: bool) -> Diagnosis:
    # Without blank lines and terminal codes, and cut to a readable length.
    plain = _ESCAPE.sub("", log[-_READ_CHARS:]).splitlines()
    lines = [line[:_LINE_CHARS] for line in plain if line.strip() and not line.startswith(LOG_MARK)]
    text = "\n".join(line for line in lines if not BENIGN.search(line))
    number = _signal(returncode)
    found = (
        _by_signature((*SPECIFIC, *STRONG), text, was_ready=was_ready)
        or (_by_signal(number, lines) if number is not None and number in _CLEAR_SIGNALS else None)
        or _by_signature(WEAK, text, was_ready=was_ready)
    )
    if found is not None:
        return found
    if number is not None:
        return _by_signal(number, lines)
    last = _last(lines)
    cause, why = Cause.UNKNOWN, f"for an unknown reason; {'its last lines' if last else 'it printed nothing'}"
    if exclusive:
        cause, why = Cause.DEVICE_BUSY, "without a message, on a GPU that admits one process at a time"
    return _diagnosis(cause, f"it {describe_exit(returncode)} {why}", last)


def describe_exit(returncode: int) -> str:
    """Describe how a process ended: `exited with status 1`, `was killed by signal 15 (SIGTERM)`."""
    number = _signal(returncode)
    if returncode >= 0:
        meaning = "" if number is None else f", as a shell does after signal {number:d} ({number.name})"
        return f"exited with status {returncode}{meaning}"
    if number in _SIGNALS:
        return _SIGNALS[number][1]
    return f"was killed by signal {-returncode}" + ("" if number is None else f" ({number.name})")


def _signal(returncode: int) -> signal.Signals | None:
    """Return the signal that a status means; shells and containers report 128 more than its number."""
    number = -returncode if returncode < 0 else returncode - _SHELL_OFFSET
    try:
        return signal.Signals(number)
    except ValueError:
        return None


def _by_signature(signatures: Iterable[Signature], text: str, *, was_ready: bool) -> Diagnosis | None:
    for signature in signatures:
        match = signature.pattern.search(text)
        if match is None:
            continue
        cause = signature.cause
        if cause is Cause.GPU_MEMORY_LOADING and was_ready:
            cause = Cause.GPU_MEMORY_RUNNING
        groups = [_shown(group) for group in match.groups() if group is not None]
        summary = signature.summary.format(*groups)
        found = _diagnosis(cause, summary, _around(text, match))
        return replace(found, remedy=signature.remedy) if signature.remedy else found
    return None


def _by_signal(number: signal.Signals, lines: list[str]) -> Diagnosis:
    cause = _SIGNALS[number][0] if number in _SIGNALS else Cause.KILLED
    return _diagnosis(cause, f"it {describe_exit(-number)}", _last(lines) if cause is Cause.CRASHED else ())


def _diagnosis(cause: Cause, summary: str, evidence: tuple[str, ...]) -> Diagnosis:
    return Diagnosis(cause, summary, evidence, REMEDIES[cause])


def _around(text: str, match: re.Match[str]) -> tuple[str, ...]:
    """Return the line of a match, and the place on the GPU if the next line has it."""
    line, _, rest = text[text.rfind("\n", 0, match.start()) + 1 :].partition("\n")
    where = _WHERE.search(rest.partition("\n")[0])
    return (_shown(line), where[0]) if where else (_shown(line),)


def _last(lines: list[str]) -> tuple[str, ...]:
    """Return the last lines with information, of errors if there are any."""
    useful = [line for line in lines if not UNINFORMATIVE.search(line)] or lines
    errors = [line for line in useful if _ERROR.match(line)]
    last: list[str] = []
    for line in reversed(errors or useful):
        shown = _shown(line)
        if shown and shown not in last:
            last.append(shown)
        if len(last) == _LAST_LINES:
            break
    return tuple(reversed(last))


def _shown(line: str) -> str:
    """Shorten a line for people: without its logger's prefix and without values of arguments."""
    text = line
    for prefix in _PREFIXES:
        if (match := prefix.match(text)) and match.end() < len(text):
            text = text[match.end() :]
    text = _SECRET.sub(r"\1…", text).strip()
    return text if len(text) <= _EVIDENCE_CHARS else f"{text[:_EVIDENCE_CHARS]}…"
