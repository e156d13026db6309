"""What the gateway does with a body, beside the standard library: parses it, gives the model another name."""

import json
import timeit
from collections.abc import Callable

from bench.rows import Row, print_table
from cotenant.gateway.inference.request import encoded, parse, renamed

_REPEATS = 9
_SECONDS = 0.02
_TURN = "The quick brown fox jumps over the lazy dog, and says: \u201cé\u201d.\n"


def main() -> list[Row]:
    """Measure a short question and a long conversation."""
    rows = []
    for what, turns in (("0.3 KB", 1), ("100 KB", 300)):
        body = _body(turns)
        request = parse(body)
        standard = _us(lambda body=body: json.loads(body.decode()))
        parsing = _us(lambda body=body: parse(body))
        dumping = _us(
            lambda request=request: json.dumps({**request, "model": "own"}, ensure_ascii=False).encode()
        )
        encoding = _us(lambda request=request: encoded({**request, "model": "own"}))
        renaming = _us(lambda request=request, body=body: renamed(request, body, "own"))
        rows.append(Row(f"parse {what}", parsing, "us", "json", parsing / standard))
        rows.append(Row(f"rename {what} by encoding it anew", encoding, "us", "json", encoding / dumping))
        rows.append(Row(f"rename {what} in its bytes", renaming, "us", "json", renaming / dumping))
    return rows


def _body(turns: int) -> bytes:
    messages = [{"role": "user" if turn % 2 else "assistant", "content": _TURN * 4} for turn in range(turns)]
    request = {"messages": messages, "model": "m", "temperature": 0.7, "stream": True, "max_tokens": 256}
    return json.dumps(request, ensure_ascii=False, separators=(",", ":")).encode()


def _us(call: Callable[[], object]) -> float:
    """Return the least microseconds of a call."""
    timer = timeit.Timer(call)
    number = max(1, round(_SECONDS / max(timer.timeit(1), 1e-7)))
    return min(timer.repeat(_REPEATS, number)) / number * 1e6


if __name__ == "__main__":
    print_table(main())
