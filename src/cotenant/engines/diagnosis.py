"""Why an engine ended, in one sentence, with the log's own words."""

from __future__ import annotations

import re
import signal
from typing import Final

_PREFIX: Final = re.compile(r"^(?:\d+\.)+\d+ (?=[A-Z] )")
_ERROR_LINE: Final = re.compile(r"^E\s+(.*\S)")
_SOURCE: Final = re.compile(r"^(?:(?:srv|cmn|slot)\s+)?(?:[A-Za-z_(][\w(-]*:\s+)+(?:error loading model: )?")
_GENERIC: Final = re.compile(
    r"failed to (?:load|create_context|create context|initialize the context)(?: with)? model"
    r"|exiting due to|failed to load model|Failed to init server|encountered an error while trying to fit"
)
_MAX_EVIDENCE: Final = 240

_CAUSES: Final[tuple[tuple[re.Pattern[str], str], ...]] = tuple(
    (re.compile(pattern), sentence)
    for pattern, sentence in (
        (r"cannot be started: (?P<why>.+)", "its program cannot be started"),
        (r"invalid argument: (\S+)", "it does not know the argument {0}"),
        (r"worker: (\S+): the embedded engine has no such", "it does not know the argument {0}"),
        (r"(lib\S+): cannot open shared object file", "a library is missing on this machine: {0}"),
        (r"No module named '?xllamacpp", "the package xllamacpp is not installed"),
        (r"failed to open GGUF file.*No such file", "there is no such model file"),
        (r"failed to open GGUF file.*Permission denied", "the model file may not be read"),
        (r"invalid magic characters|failed to read magic", "the model file is not a GGUF file"),
        (r"unknown model architecture: '([^']*)'", "its build does not know the architecture {0!r}"),
        (
            r"not within the file bounds|model is corrupted or incomplete",
            "the model file is truncated or damaged",
        ),
        (r"gguf_init_from_reader|string length \d+ exceeds", "the header of the model file is damaged"),
        (r"missing tensor '([^']*)'", "the model file lacks the tensor {0}"),
        (
            r"allocating ([\d.]+) MiB on device (\d+): cudaMalloc failed",
            "its GPU {1} has no room for another {0} MiB",
        ),
        (r"(?i)CUDA error: out of memory|cudaMalloc failed|hipMalloc failed", "its GPU is out of memory"),
        (r"(?i)bad_alloc|failed to allocate|unable to allocate|out of memory", "it is out of memory"),
        (r"couldn't bind HTTP server socket.*port: (\d+)", "its port {0} is in use"),
        (r"quantized V cache requires flash_attn", "a quantised V cache needs flash attention"),
        (r"GGML_ASSERT\(|GGML_ABORT|ggml_abort", "it gave up on an internal check"),
    )
)

_SIGNALS: Final = {
    signal.SIGILL: "met an instruction that this processor does not have: its build is for another one",
    signal.SIGKILL: "was killed by signal 9 (SIGKILL), as the kernel does when memory runs out",
    signal.SIGABRT: "gave up (SIGABRT)",
    signal.SIGSEGV: "crashed (SIGSEGV)",
    signal.SIGBUS: "crashed (SIGBUS), as it does when a mapped file is cut short or the disk fails",
}


def explain_failure(returncode: int, log: str) -> str:
    """Say why an engine failed to load, without its name and without a full stop."""
    lines = [_PREFIX.sub("", line) for line in log.splitlines()]
    for pattern, sentence in _CAUSES:
        for line in lines:
            if match := pattern.search(line):
                return f"{sentence.format(*match.groups())} ({_evidence(line)})"
    if returncode < 0 and returncode != -signal.SIGABRT:
        return f"it {describe_exit(returncode)}"
    complaint = next((line for line in lines if _ERROR_LINE.match(line) and not _GENERIC.search(line)), None)
    how = f"it {describe_exit(returncode)}"
    return how if complaint is None else f"{how} ({_evidence(complaint)})"


def describe_exit(returncode: int) -> str:
    """Say how a process ended: `exited with status 1`, `was killed by signal 15 (SIGTERM)`."""
    if returncode >= 0:
        return f"exited with status {returncode}"
    number = -returncode
    try:
        known = signal.Signals(number)
    except ValueError:
        return f"was killed by signal {number}"
    return _SIGNALS.get(known, f"was killed by signal {number} ({known.name})")


def _evidence(line: str) -> str:
    text = _ERROR_LINE.sub(r"\1", line).strip()
    text = _SOURCE.sub("", text) or text
    return text if len(text) <= _MAX_EVIDENCE else f"{text[:_MAX_EVIDENCE]}…"
