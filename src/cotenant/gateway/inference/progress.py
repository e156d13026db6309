"""What the client of a stream is told while its request waits: in comments, or as reasoning of the model."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from cotenant.asgi import encode_json
from cotenant.domain.decisions import WaitEstimate
from cotenant.domain.requests import WaitProgress
from cotenant.domain.units import format_duration
from cotenant.gateway.inference.dialects import CHAT, Target
from cotenant.gateway.inference.request_options import RequestOptions
from cotenant.gateway.inference.shared import Proxy

_SUFFIXES: Final = {1: "st", 2: "nd", 3: "rd"}
_ALIVE: Final = b": waiting\n\n"

Render = Callable[[WaitEstimate | None, int | None], bytes]
"""Renders an estimate, and the request's own place in the queue, as a part of an event stream."""


@dataclass(frozen=True, slots=True)
class ProgressReport:
    """When and how a client is told: `after_s` for the first time, then every `every_s` seconds."""

    render: Render
    after_s: float
    every_s: float


def progress_report(
    proxy: Proxy, options: RequestOptions, target: Target, model: str
) -> ProgressReport | None:
    """Return how a stream is told of its wait: as its client wishes, else as the daemon is configured.

    Only OpenAI's chats have reasoning; other streams get comments in its place.
    """
    timing, configured = proxy.timing, proxy.wait_progress
    if options.wait_comments:
        return ProgressReport(wait_comment, 0.0, timing.comment_s)
    if options.wait_comments is False or configured is WaitProgress.OFF:
        return None
    reasons = configured is WaitProgress.REASONING and target is CHAT
    render = ReasoningDeltas(model) if reasons else wait_comment
    return ProgressReport(render, timing.progress_after_s, timing.comment_s)


class ReasoningDeltas:
    """Renders a wait as reasoning in a chunk of an OpenAI chat; a comment while there is no news."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._said = ""

    def __call__(self, estimate: WaitEstimate | None, place: int | None) -> bytes:
        """Render one report."""
        text = wait_text(estimate, place)
        if text == self._said:
            return _ALIVE
        self._said = text
        delta = {"role": "assistant", "content": None, "reasoning_content": f"{text[0].upper()}{text[1:]}.\n"}
        chunk = {
            "id": "chatcmpl-waiting",
            "object": "chat.completion.chunk",
            "created": int(time.time()),
            "model": self._model,
            "choices": [{"index": 0, "delta": delta, "finish_reason": None}],
        }
        return b"data: " + encode_json(chunk) + b"\n\n"


def wait_comment(estimate: WaitEstimate | None, place: int | None) -> bytes:
    """Render `: waiting, 2nd in line, about 12.0 s (loading llama-7b)` with a blank line."""
    return f": {wait_text(estimate, place)}\n\n".encode()


def wait_text(estimate: WaitEstimate | None, place: int | None) -> str:
    """Say where a request is in the queue, how long it may take, and for what it waits, as far as known."""
    text = "waiting"
    if place:
        text += f", {_ordinal(place)} in line"
    if estimate is None:
        return text
    if estimate.eta_s is not None:
        text += f", about {format_duration(estimate.eta_s)}"
    if estimate.waits_for:
        text += f" ({' '.join(estimate.waits_for.split())})"
    return text


def _ordinal(number: int) -> str:
    if number % 100 in (11, 12, 13):
        return f"{number}th"
    return f"{number}{_SUFFIXES.get(number % 10, 'th')}"
