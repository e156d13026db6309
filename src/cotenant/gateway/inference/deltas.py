"""Joins what a stream adds piece by piece to one message, in every form that servers of OpenAI's API send.

Null means nothing, a text is continued, a list is extended, an object is joined field by field. Servers
repeat names and ids, send them empty or null in later pieces, and leave out the index of a tool call.
"""

import json
from typing import Any, Final

_MOST_CALLS: Final = 4096
_ONCE: Final = frozenset({"role", "id", "type", "name", "index"})
"""Fields that a later piece does not continue: their first value that is not empty is kept."""


class Pieces(list[str]):
    """The pieces of a text; `finish` joins them."""


def join(whole: dict[str, Any], piece: dict[str, Any]) -> None:
    """Add a piece to a message or to a part of one. `finish` must follow the last one."""
    for name, value in piece.items():
        known = whole.get(name)
        if value is None:
            continue
        if name == "tool_calls":
            calls = whole.setdefault(name, ToolCalls())
            for call in value:
                calls.add(call)
        elif name in _ONCE:
            whole[name] = known or value
        elif isinstance(value, str):
            if type(known) is Pieces:
                known.append(value)
            elif isinstance(known, list):
                known.append({"type": "text", "text": value})
            else:
                whole[name] = Pieces([value])
        elif isinstance(value, list):
            if type(known) is Pieces:
                whole[name] = [*([{"type": "text", "text": "".join(known)}] if any(known) else ()), *value]
            elif isinstance(known, list):
                known.extend(value)
            else:
                whole[name] = value
        elif isinstance(value, dict):
            part = whole[name] = known if isinstance(known, dict) else {}
            join(part, value)
        else:
            whole[name] = value


def finish(whole: dict[str, Any]) -> dict[str, Any]:
    """Join the pieces of each text, in the object itself, and return it."""
    for name, value in whole.items():
        if type(value) is Pieces:
            whole[name] = "".join(value)
        elif isinstance(value, dict):
            finish(value)
        elif isinstance(value, ToolCalls):
            whole[name] = value.finish()
    return whole


class ToolCalls:
    """The tool calls of one message, joined of their pieces.

    A piece belongs to the call with its index, else with its id, else to the last call. One that brings
    another id and a name begins a call, whatever its index: some servers number every call 0.
    """

    def __init__(self) -> None:
        self._calls: list[tuple[int, dict[str, Any]]] = []
        self._known: dict[int | str, dict[str, Any]] = {}

    def add(self, piece: dict[str, Any]) -> None:
        """Add a piece. Raises an error of Python's for one of an impossible shape."""
        index, number = piece.get("index"), piece.get("id")
        name = (piece.get("function") or {}).get("name")
        if index is not None and not 0 <= index < _MOST_CALLS:
            raise ValueError(f"a tool call numbered {index}")
        last = self._calls[-1][1] if self._calls else None
        if index is not None:
            call = self._known.get(index)
        elif number:
            call = self._known.get(number)
        else:
            call = None if name and last is not None and last["function"].get("name") else last
        if call is not None and name and number and call.get("id", number) != number:
            call = None
        if call is None:
            call = {"function": {"arguments": Pieces()}}
            rank = len(self._calls) if index is None or index in self._known else index
            self._calls.append((rank, call))
        for key in (index, number):
            if key not in (None, ""):
                self._known[key] = call
        join(call, {name: value for name, value in piece.items() if name != "index"})

    def finish(self) -> list[dict[str, Any]]:
        """Return the calls in order, with their arguments as texts."""
        calls = [finish(call) for _, call in sorted(self._calls, key=lambda each: each[0])]
        for call in calls:
            arguments = call["function"]["arguments"]
            if not isinstance(arguments, str):
                call["function"]["arguments"] = json.dumps(arguments)
        return calls
