"""What putting a streamed answer together costs, beside only parsing its events."""

import json
import timeit

from bench.rows import Row, print_table
from cotenant.gateway.inference.assembly import assemble

_TOKENS, _RUNS, _REPEATS = 1000, 5, 7


def main() -> list[Row]:
    events = [_event(" word") for _ in range(_TOKENS)] + [_event("", "stop")]
    stream = b"".join(b"data: " + event + b"\n\n" for event in events) + b"data: [DONE]\n\n"
    parsing = min(timeit.repeat(lambda: [json.loads(e) for e in events], number=_RUNS, repeat=_REPEATS))
    ours = min(
        timeit.repeat(lambda: assemble(b"/v1/chat/completions", stream), number=_RUNS, repeat=_REPEATS)
    )
    return [
        Row(
            name="assembling a plain answer, per token",
            value=ours / _RUNS / _TOKENS * 1e6,
            unit="us",
            baseline="parsing its events",
            ratio=ours / parsing,
        )
    ]


def _event(text: str, finish: str | None = None) -> bytes:
    choice = {"finish_reason": finish, "index": 0, "delta": {"content": text}}
    event = {
        "choices": [choice],
        "created": 1795210446,
        "id": "chatcmpl-QvaJqXeCUsC8o4yA97SsbLiAXccEpAns",
        "model": "model",
        "system_fingerprint": "b1-0c1e570",
        "object": "chat.completion.chunk",
    }
    return json.dumps(event).encode()


if __name__ == "__main__":
    print_table(main())
