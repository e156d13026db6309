"""What the gateway does with a body: parses it, and gives the model another name, with each JSON library."""

import importlib
import json
import timeit
from collections.abc import Callable

from bench.rows import Row, print_table
from cotenant.gateway.inference.request import encoded, parse, renamed

_REPEATS = 9
_SECONDS = 0.02
_TURN = "The quick brown fox jumps over the lazy dog, and says: \u201cé\u201d.\n"


def main() -> list[Row]:
    """Measure a short question and a long conversation; without orjson, its rows are left out."""
    try:
        orjson = importlib.import_module("orjson")
    except ImportError:
        orjson = None
    rows = []
    for what, turns in (("0.3 KB", 1), ("100 KB", 300)):
        body = _body(turns)
        request = parse(body)
        parsing = _us(lambda body=body: parse(body))
        dumping = _us(lambda request=request: encoded({**request, "model": "own"}))
        renaming = _us(lambda request=request, body=body: renamed(request, body, "own"))
        rows.append(Row(f"parse {what}", parsing, "us"))
        rows.append(Row(f"rename {what} by encoding it anew", dumping, "us", "parse", dumping / parsing))
        rows.append(Row(f"rename {what} in its bytes", renaming, "us", "encoding anew", renaming / dumping))
        if orjson is not None:
            theirs = _us(lambda body=body: orjson.loads(body))
            rows.append(Row(f"parse {what} with orjson", theirs, "us", "parse", theirs / parsing))
            theirs = _us(lambda request=request: orjson.dumps({**request, "model": "own"}))
            rows.append(Row(f"encode {what} with orjson", theirs, "us", "encoding anew", theirs / dumping))
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
