"""`cotenant bench`: measures each model alone, and several at once."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from cotenant.cli.client import Daemon, add_daemon_options
from cotenant.cli.flags import whole
from cotenant.cli.table import Column, print_result, progress_line, table_lines
from cotenant.domain.errors import BadSetting, DaemonSilent, UnknownModel

if TYPE_CHECKING:
    from cotenant.benchmark.results import Load, ModelResult, Percentiles, Phase, Report
    from cotenant.domain.engines import Endpoint

_BAR: Final = 24
_KINDS: Final = (".svg", ".png")


def register(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments to its parser."""
    parser.add_argument("models", metavar="MODEL", nargs="*", help="names to measure (default: all listed)")
    for name, default, metavar, text in (
        ("--concurrency", 1, "N", "requests at once per model"),
        ("--requests", 8, "N", "requests per model and phase"),
        ("--prompt-tokens", 128, "N", "length of prompts"),
        ("--max-tokens", 128, "N", "length of answers"),
        ("--timeout", 300, "SECONDS", "longest wait for an answer"),
    ):
        parser.add_argument(name, type=whole(name, 1, 1_000_000), default=default, metavar=metavar, help=text)
    parser.add_argument(
        "--ignore-eos",
        action="store_true",
        help="generate exactly --max-tokens per answer (llama.cpp and vLLM support it; others may refuse)",
    )
    parser.add_argument(
        "--keep-loaded", action="store_true", help="unload nothing: no cold start and no swap is measured"
    )
    parser.add_argument("--json", action="store_true", help="print JSON: seconds, bytes, null for unknown")
    parser.add_argument(
        "--plot", type=Path, metavar="FILE", help="plot rates and memory into a file, .svg or .png"
    )
    add_daemon_options(parser)


def run(args: argparse.Namespace) -> int:
    """Measure and print. Raises BadSetting, DaemonSilent or UnknownModel."""
    import asyncio

    from cotenant.benchmark.results import Load
    from cotenant.benchmark.run import NothingToMeasure
    from cotenant.http.addresses import api_endpoint
    from cotenant.http.client import describe

    _check_plot(args.plot)
    load = Load(
        args.concurrency, args.requests, args.prompt_tokens, args.max_tokens, args.ignore_eos, args.timeout
    )
    try:
        endpoint = api_endpoint(Daemon(args).address, args.api_key)
    except ValueError as error:
        raise BadSetting(str(error), hint="See --address and --api-key.") from None
    try:
        report = asyncio.run(_measure(endpoint, args, load))
    except NothingToMeasure as error:
        raise UnknownModel(str(error), hint="`cotenant models` lists what is served.") from None
    except OSError as error:
        raise DaemonSilent(
            f"nothing answers at {endpoint.url}: {describe(error)}",
            hint="Start a daemon with `cotenant serve`, or name it with --address or COTENANT_ADDRESS.",
        ) from None
    if args.plot is not None:
        _draw(report, args.plot)
    return print_result(args, report.as_json(), lines(report))


def _draw(report: Report, path: Path) -> None:
    from cotenant.benchmark.plot import picture

    content = picture(report, path.suffix.lower().removeprefix("."))
    try:
        path.write_bytes(content)
    except OSError as error:
        raise BadSetting(
            f"--plot {path} cannot be written: {error.strerror}", hint="Give another file."
        ) from None


async def _measure(endpoint: Endpoint, args: argparse.Namespace, load: Load) -> Report:
    from cotenant.benchmark.run import run_benchmark
    from cotenant.clock import SystemClock

    with progress_line() as show:

        def progress(what: str, done: int, of: int) -> None:
            filled = round(_BAR * done / of)
            show(f"{'█' * filled}{'·' * (_BAR - filled)} {done}/{of} {what}")

        return await run_benchmark(
            endpoint, args.models, load, SystemClock(), progress, keep_loaded=args.keep_loaded
        )


def _check_plot(path: Path | None) -> None:
    """Check the plot file before the benchmark, which takes minutes. Raises BadSetting."""
    if path is None:
        return
    if path.suffix.lower() not in _KINDS:
        raise BadSetting(
            f"--plot {path} is neither SVG nor PNG", hint=f"Give a name that ends in {' or '.join(_KINDS)}."
        )
    if find_spec("matplotlib") is None:
        raise BadSetting(
            f"--plot {path} needs matplotlib, which is not installed",
            hint="Run `pip install 'cotenant[plot]'`, or leave --plot away.",
        )
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise BadSetting(f"--plot {path} cannot be written", hint="Give a file in a folder that exists.")


class _Row(NamedTuple):
    """One model of a phase; all its models together if `result` is None."""

    phase: Phase
    result: ModelResult | None
    first: bool = False


def lines(report: Report) -> Iterator[str]:
    """Render a report for people."""
    load = report.load
    yield (
        f"{report.address}: {load.requests} requests each, {load.concurrency} at once, "
        f"prompts of about {load.prompt_tokens} tokens, answers of at most {load.max_tokens}"
    )
    rows = []
    for phase in report.phases:
        rows += [_Row(phase, result, number == 0) for number, result in enumerate(phase.results)]
        rows += [_Row(phase, None)] if len(phase.models) > 1 else []
    yield from table_lines(_COLUMNS, rows)
    for wait in report.waits:
        how = f"swap, {wait.instead_of} unloaded first" if wait.instead_of else "cold start"
        yield f"{wait.model}: first token after {_seconds(wait.seconds)} ({how})"
    for phase in report.phases:
        if phase.note:
            yield f"Unreliable result of {' + '.join(phase.models)}: {phase.note}"
    if any(not result.usage for phase in report.phases for result in phase.results if result.requests):
        yield "The server did not count tokens; chunks of the stream were counted instead."
    for text in report.left_out:
        yield f"Left out: {text}"


def _of_result(heading: str, cell: Callable[[ModelResult], str], right: bool = True) -> Column[_Row]:
    return Column(heading, lambda row: "" if row.result is None else cell(row.result), right)


def _times(what: str, of: Callable[[ModelResult], Percentiles | None]) -> Sequence[Column[_Row]]:
    return (
        _of_result(f"{what} p50", lambda result: "-" if (s := of(result)) is None else _seconds(s.p50_s)),
        _of_result("p95", lambda result: "-" if (s := of(result)) is None else _seconds(s.p95_s)),
    )


_COLUMNS: Final[Sequence[Column[_Row]]] = (
    Column("together", lambda row: str(len(row.phase.models)) if row.first else ""),
    Column("model", lambda row: row.result.model if row.result else "all"),
    Column("tokens/s", lambda row: f"{(row.result or row.phase).tokens_per_s:,.1f}", right=True),
    _of_result("of alone", lambda r: "" if r.share_kept is None else f"{r.share_kept:.0%}"),
    *_times("first token", lambda result: result.first_token),
    *_times("per token", lambda result: result.per_token),
    *_times("answer", lambda result: result.total),
    _of_result("failed", lambda result: str(result.failures) if result.failures else ""),
)


def _seconds(value: float) -> str:
    return f"{value:.2f} s" if value >= 1 else f"{value * 1000:.3g} ms"
