"""Parses responses of engines, which are OpenAI's streams, for Ollama's API."""

import codecs
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from cotenant.domain.errors import UpstreamFailed
from cotenant.gateway.http.problems import reason_in, reason_of
from cotenant.gateway.inference.deltas import ToolCalls

_READ: Final = (b"data:", b"error:")
"""Fields of an event that are read; older releases of llama.cpp send errors in one of their own."""
_MAX_EVENT_LINES: Final = 256
_DONE: Final = b"[DONE]"
_NORM_ERROR: Final = 1e-5


@dataclass(frozen=True, slots=True)
class StreamPiece:
    """What an event adds to the answer, to the thinking, and to the token probabilities."""

    answer: str = ""
    thoughts: str = ""
    probabilities: list[dict[str, Any]] = field(default_factory=list)


@dataclass(slots=True)
class StreamReader:
    """Parses an engine's event stream, piece by piece.

    If the stream failed, `error` is the error message and `cause` is why the engine ended.
    """

    error: str | None = None
    cause: str | None = None
    finish_reason: str | None = None
    usage: Mapping[str, Any] = field(default_factory=dict)
    timings: Mapping[str, Any] = field(default_factory=dict)
    _rest: bytes = b""
    _lines: list[bytes] = field(default_factory=list)
    _calls: ToolCalls = field(default_factory=ToolCalls)

    def read(self, piece: bytes, *, last: bool = False) -> list[StreamPiece]:
        """Parse a piece; return what each event adds. The last piece may lack the end of its line.

        Raises UpstreamFailed for events of an unknown shape.
        """
        *lines, self._rest = (self._rest + piece).split(b"\n")
        if last:
            lines += [self._rest, b""]
        try:
            return [found for line in lines if (found := self._line(line))]
        except (TypeError, AttributeError, LookupError, ValueError, RecursionError):
            said = reason_in(b" ".join(self._lines))
            what = "the engine's stream has events of an unknown shape"
            raise UpstreamFailed(f"{what}: {said}" if said else what) from None

    def calls(self) -> list[dict[str, Any]]:
        """Return the tool calls, after the end of the stream. Raises UpstreamFailed for invalid JSON."""
        try:
            return [_call(index, call) for index, call in enumerate(self._calls.finish())]
        except (ValueError, RecursionError):
            raise UpstreamFailed("the model called a tool with arguments that are not JSON") from None

    def _line(self, line: bytes) -> StreamPiece | None:
        line = line.strip().removeprefix(codecs.BOM_UTF8)
        if self._lines and not line:
            raise ValueError("an event that is not JSON")
        if not line.startswith(_READ):
            return None
        data = line.partition(b":")[2].strip()
        if data == _DONE:
            # Some servers give no other reason.
            self.finish_reason = self.finish_reason or "stop"
            return None
        if not data:
            return None
        self._lines.append(data)
        try:
            event = json.loads(b"\n".join(self._lines))
        except ValueError:
            # An event may have several lines; a blank one ends it.
            if len(self._lines) > _MAX_EVENT_LINES:
                raise
            return None
        self._lines.clear()
        return self._take(event) if isinstance(event, dict) else None

    def _take(self, event: dict[str, Any]) -> StreamPiece | None:
        choices = [choice for choice in event.get("choices") or () if choice]
        failed = next((each for each in (event, *choices) if each.get("error")), None)
        if failed is None and "choices" not in event and reason_of(event):
            failed = event  # as vLLM's `{"object": "error", "message": …}`
        if failed is not None:
            error = failed.get("error")
            self.error = reason_of(failed) or str(error)
            self.cause = error.get("cause") if isinstance(error, dict) else None
            return None
        self.usage = event.get("usage") or self.usage
        self.timings = event.get("timings") or self.timings
        answer = thoughts = ""
        probabilities: list[dict[str, Any]] = []
        for choice in choices:
            self.finish_reason = choice.get("finish_reason") or self.finish_reason
            delta = choice.get("delta") or choice.get("message") or {}
            answer += (choice.get("text") or "") + _text(delta.get("content"), "text")
            # vLLM's name since 0.12, OpenRouter's and LM Studio's is `reasoning`; some send both.
            thoughts += delta.get("reasoning_content") or delta.get("reasoning") or ""
            if isinstance(delta.get("content"), list):
                thoughts += _text(delta["content"], "thinking")
            probabilities += map(_log_probability, (choice.get("logprobs") or {}).get("content") or ())
            for call in filter(None, delta.get("tool_calls") or ()):
                self._calls.add(call)
        return StreamPiece(answer, thoughts, probabilities) if answer or thoughts or probabilities else None


def _text(content: Any, kind: str) -> str:
    """Return the text of a message's content, of which a list has parts of several kinds."""
    if not isinstance(content, list):
        return content or ""
    return "".join(_text(part[kind], "text") for part in content if part["type"] == kind)


def _call(index: int, call: dict[str, Any]) -> dict[str, Any]:
    """Return a tool call in Ollama's form. Raises ValueError for arguments that are not JSON."""
    function, number = call["function"], call.get("id")
    arguments = json.loads(function["arguments"] or "{}")
    described = {"index": index, "name": function.get("name", ""), "arguments": arguments}
    return {**({"id": number} if number else {}), "function": described}


def _log_probability(token: dict[str, Any]) -> dict[str, Any]:
    """Convert a token probability to Ollama's form, without llama.cpp's additional fields."""
    found = {name: token[name] for name in ("token", "logprob", "bytes") if token.get(name) is not None}
    others = token.get("top_logprobs")
    return {**found, "top_logprobs": list(map(_log_probability, others))} if others else found


def counts(
    reader: StreamReader, began_at: float, waited_s: float, first_at: float | None, now: float
) -> dict[str, int]:
    """Return token counts and nanoseconds: those that the engine reports, else those measured here.

    Times are in seconds of the event loop's clock; `waited_s` is the wait for the model.
    """
    timings, usage = reader.timings, reader.usage
    first_at = now if first_at is None else first_at
    prompt = usage.get("prompt_tokens") or (timings.get("prompt_n") or 0) + (timings.get("cache_n") or 0)
    return {
        "total_duration": _ns(now - began_at),
        "load_duration": _ns(waited_s),
        "prompt_eval_count": prompt,
        "prompt_eval_duration": _reported_ns(timings.get("prompt_ms"), first_at - began_at - waited_s),
        "eval_count": usage.get("completion_tokens") or timings.get("predicted_n") or 0,
        "eval_duration": _reported_ns(timings.get("predicted_ms"), now - first_at),
    }


def vectors(answer: Mapping[str, Any], dimensions: int | None) -> list[list[float]]:
    """Return the vectors of a response of /v1/embeddings, in order, cut to `dimensions`, normalised to 1.

    Raises UpstreamFailed if the response has another shape.
    """
    try:
        rows = sorted(answer["data"], key=lambda row: row["index"])
        found = [[float(number) for number in row["embedding"]] for row in rows]
    except (TypeError, AttributeError, LookupError, ValueError):
        found = []
    if not found:
        raise UpstreamFailed("the engine's embeddings have an unknown shape")
    return [_normed(vector[:dimensions]) for vector in found]


def _normed(vector: list[float]) -> list[float]:
    norm = math.hypot(*vector)
    return [number / norm for number in vector] if norm and abs(norm - 1) > _NORM_ERROR else vector


def _reported_ns(ms: float | None, seen_s: float) -> int:
    return _ns(seen_s) if ms is None else round(ms * 1_000_000)


def _ns(seconds: float) -> int:
    return max(0, round(seconds * 1_000_000_000))
