"""`cotenant advise`: replays a log of requests with other settings, and says what to change."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from typing import Any, Final

from cotenant.cli.flags import whole
from cotenant.cli.simulate.command import matched
from cotenant.cli.simulate.models import (
    HERE,
    add_model_options,
    all_stated,
    configuration_of,
    inventory_of,
    learned_configuration,
)
from cotenant.cli.table import Column, print_result, progress_line, table_lines
from cotenant.domain.errors import BadSetting
from cotenant.domain.units import format_count, format_duration

_MOST_MODELS: Final = 20
Json = Mapping[str, Any]


def register(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments to its parser."""
    parser.epilog = "It changes nothing. docs/advise.md says how it searches, and what it does not model."
    parser.add_argument(
        "--log",
        metavar="LOG",
        action="append",
        help="requests, as for `simulate`; several are merged (default: server.request_log of the "
        "configuration, its last 4 MiB)",
    )
    parser.add_argument("--gpus", metavar="SPEC", default=HERE, help="cards, as for `simulate`")
    add_model_options(parser)
    parser.add_argument(
        "--seed",
        type=whole("--seed", 0, 10**18),
        metavar="N",
        default=0,
        help="draws the spread of load times and the resamples (default: 0)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON: seconds, shares from 0 to 1")


def run(args: argparse.Namespace) -> int:
    """Search and print. Raises BadSetting, BadTrace, BadDeviceSpec."""
    from cotenant.daemon.workload import Workload, advice_as_json, read_logs, recorded
    from cotenant.simulation.advise import advise

    stated = all_stated(args)
    given = configuration_of(args.config, args.models_dir, stated=bool(stated))
    kept = given.server.request_log
    trace = read_logs(args.log) if args.log else recorded(kept) if kept is not None else None
    if trace is None:
        raise BadSetting(
            "there is no log of requests" if kept is None else f"{kept} has no requests yet",
            hint="Give one with --log, or have the daemon keep one: request_log: FILE under server:.",
        )
    configuration, past, problem = learned_configuration(given)
    tenants, requests, left_out = matched([], stated, [*trace.requests], configuration)
    inventory = inventory_of(args.gpus, configuration)
    workload = Workload(requests, configuration, inventory, past, tuple(tenants))
    number = count(1)
    with progress_line() as show:
        advice = advise(
            workload.variant,
            workload.dimensions,
            requests,
            seed=args.seed,
            progress=lambda: show(f"replay {next(number)}"),
        )
    found = advice_as_json(advice, workload, left_out)
    return print_result(args, found, _lines(found, problem))


def _lines(found: Json, problem: str | None) -> Iterator[str]:
    yield (
        f"{format_count(found['requests'], 'request')} over {format_duration(found['span_s'])}; "
        f"{format_count(found['replays'], 'replay')}; seed {found['seed']}"
    )
    yield found["text"]
    if found["changes"]:
        yield from ("", *found["yaml"].splitlines(), "")
        for each in found["changes"]:
            gain = each["gain"]
            low, high = (format_duration(-gain[name]) for name in ("high_s", "low_s"))
            yield f"{each['setting']}: {format_duration(-gain['mean_s'])} a request ({low} to {high})"
    if found["present"] is not None:
        yield ""
        states = [("present", found["present"]), ("proposed", found["proposed"])]
        yield from table_lines(_COLUMNS, [state for state in states if state[1] is not None])
    if found["proposed"] is not None:
        yield ""
        yield from table_lines(_MODEL_COLUMNS, found["models"][:_MOST_MODELS])
    if found["left_out"]:
        others = sum(found["left_out"].values())
        yield f"Left out: {format_count(others, 'request')} for unknown models. --model NAME=SIZE adds one."
    if problem is not None:
        yield f"Note: {problem}"


def _seconds(value: float) -> str:
    return format_duration(value) if value > 1e-6 else "0 s"


def _wait(heading: str, key: str) -> Column[tuple[str, Json]]:
    return Column(heading, lambda row: _seconds(row[1]["waits"][key]), right=True)


def _count(heading: str) -> Column[tuple[str, Json]]:
    return Column(heading, lambda row: f"{row[1][heading]:,}", right=True)


_COLUMNS: Final[Sequence[Column[tuple[str, Json]]]] = (
    Column("", lambda row: row[0]),
    _wait("mean wait", "mean_s"),
    _wait("p95", "p95_s"),
    _wait("p99", "p99_s"),
    *map(_count, ("loads", "evictions", "refused")),
    Column("memory held", lambda row: f"{row[1]['held_share']:.0%}", right=True),
)
_MODEL_COLUMNS: Final[Sequence[Column[Json]]] = (
    Column("model", lambda row: row["model"]),
    Column("requests", lambda row: f"{row['requests']:,}", right=True),
    Column("mean wait", lambda row: _seconds(row["present_wait_s"]), right=True),
    Column("proposed", lambda row: _seconds(row["proposed_wait_s"]), right=True),
)
