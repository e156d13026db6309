"""`simulate --clients`: people and agents in place of a log."""

import math
from typing import Final

from cotenant.domain.errors import BadSetting, UsageError
from cotenant.domain.units import format_count, format_duration, parse_duration
from cotenant.simulation.closed_loop import HABITS, Clients

_HINT: Final = (
    f"Write HABIT=NUMBER, as bursts=5,agent=1,think=20s; the habits are {', '.join(HABITS)}, `think` is the "
    "usual time from an answer to the next request."
)
_THINK_S: Final = 20.0
_SPAN_S: Final = 3600.0
_MOST: Final = 10_000


def clients_of(text: str, until_s: float, speed: float) -> Clients:
    """Read HABIT=NUMBER[,HABIT=NUMBER…][,think=TIME]; without an end they ask for an hour.

    They think `speed` times as fast. Raises BadSetting.
    """
    counts: dict[str, int] = {}
    think_s = _THINK_S
    for word in filter(None, map(str.strip, text.split(","))):
        name, _, value = word.partition("=")
        if name == "think":
            think_s = parse_duration(value)
        elif name not in HABITS:
            raise BadSetting(f"--clients {text!r}: {name!r} is not known", hint=_HINT)
        elif not (value.isdecimal() and 0 < int(value[:9]) <= _MOST):
            raise BadSetting(f"--clients {text!r}: {value!r} is not a number from 1 to {_MOST}", hint=_HINT)
        else:
            counts[name] = int(value)
    if not counts:
        raise BadSetting(f"--clients {text!r} has no clients", hint=_HINT)
    if think_s <= 0:
        raise BadSetting(f"--clients {text!r}: the think time must be above 0", hint=_HINT)
    return Clients(counts, think_s / speed, _SPAN_S if math.isinf(until_s) else until_s)


def described(clients: Clients) -> str:
    """Describe the clients for people."""
    habits = ", ".join(f"{count} {name}" for name, count in clients.counts.items())
    count = format_count(sum(clients.counts.values()), "client")
    return f"{count} ({habits}), who think for {format_duration(clients.think_s)}"


def nothing_to_ask() -> UsageError:
    """Return what is wrong if clients have no models to ask."""
    return UsageError(
        "there are no models for the clients",
        hint="Give --config or --models-dir, or sizes: --model llama=20GiB --model embed=2GiB.",
    )
