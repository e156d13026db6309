"""`cotenant doctor`: checks this machine and suggests fixes."""

from __future__ import annotations

import argparse
import os
import sys
import textwrap
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

from cotenant.cli.client import Daemon, add_daemon_options
from cotenant.cli.flags import add_llama_server_option
from cotenant.cli.table import attributes, print_result
from cotenant.domain.errors import CotenantError, DaemonSilent, UnknownNode, UsageError

if TYPE_CHECKING:
    from cotenant.config.configuration import Configuration
    from cotenant.doctor.findings import Finding

_INDENT: Final = 11
_AGENT_WITHIN_S: Final = 130.0
_MARKS: Final = {"problem": "PROBLEM", "warning": "warning", "unknown": "not seen", "ok": "ok"}
_COLOURS: Final = {"problem": "31;1", "warning": "33", "unknown": "36", "ok": "32"}


def register(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments to its parser."""
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")
    parser.add_argument(
        "--config",
        metavar="FILE",
        help="the configuration to check for (default: the one `serve` would read)",
    )
    add_llama_server_option(parser)
    parser.add_argument(
        "--containers",
        action="store_true",
        help="also run a container with a GPU, and check the GPU of each service's container",
    )
    parser.add_argument("--image", help="run that container with this local image (default: any local one)")
    parser.add_argument(
        "--node", metavar="NODE", help="check another machine of the daemon, by its agent (`nodes:`)"
    )
    add_daemon_options(parser)


def run(args: argparse.Namespace) -> int:
    """Print the findings. Returns 1 if there is a problem; warnings alone are not a failure."""
    if args.node is not None:
        return _print(args, _of_node(args))
    from cotenant.config.layers import find_configuration
    from cotenant.config.settings import read_configuration
    from cotenant.doctor.host_context import HostContext
    from cotenant.doctor.runner import WITHIN_S, WITHIN_WITH_CONTAINERS_S, run_checks
    from cotenant.state_dir import state_dir

    configuration, refusal = None, None
    try:
        configuration = read_configuration(find_configuration(args.config, os.environ))
    except CotenantError as error:
        refusal = error
    host = HostContext(
        state_dir=state_dir(),
        configuration=configuration,
        refusal=refusal,
        llama_server=args.llama_server,
        containers=args.containers or args.image is not None,
        image=args.image,
    )
    return _print(args, run_checks(host, within_s=WITHIN_WITH_CONTAINERS_S if host.containers else WITHIN_S))


def _of_node(args: argparse.Namespace) -> Sequence[Finding]:
    """Check another machine: what the daemon knows of it, and what its agent finds.

    Raises UsageError, DaemonSilent or UnknownNode.
    """
    from cotenant.doctor.findings import Area, Finding, Level, Observation, unknown
    from cotenant.doctor.machines import of_fleet

    program = str(args.llama_server or "")
    local = {
        "--config": args.config,
        "--containers": args.containers,
        "--image": args.image,
        "--llama-server": program != os.environ.get("COTENANT_LLAMA_SERVER", ""),
    }
    if given := [flag for flag, value in local.items() if value]:
        raise UsageError(
            f"{given[0]} is about this machine, and --node about another one",
            hint=f"Run `cotenant doctor {given[0]}` on {args.node}.",
        )
    daemon = Daemon(args)
    found = daemon.get("/api/nodes")
    known = [node for node in found["nodes"] if node["name"] == args.node]
    path = f"/api/nodes/{quote(args.node, safe='')}/doctor"
    seen: list[Observation] = [*of_fleet({**found, "nodes": known})] if known else []
    findings = [Finding(each.level, each.seen, each.matters, each.fix, area=Area.NODES) for each in seen]
    try:
        report = daemon.get(path, _AGENT_WITHIN_S)
    except (UnknownNode, DaemonSilent):
        raise
    except CotenantError as error:
        late = unknown(f"the agent of {args.node} could not check its machine: {error.message}")
        return [*findings, Finding(late.level, late.seen, area=Area.NODES)]
    return [
        *findings,
        *(
            Finding(
                Level(each["level"]),
                each["seen"],
                each["matters"],
                each["mend"],
                area=Area[each["area"].upper()],
            )
            for each in report["findings"]
        ),
    ]


def _print(args: argparse.Namespace, findings: Sequence[Finding]) -> int:
    from cotenant.doctor.findings import Level

    colours = sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    print_result(args, as_json(findings), as_text(findings, colours=colours))
    return 1 if any(finding.level is Level.PROBLEM for finding in findings) else 0


def machine_checks(llama_server: Path | None) -> Callable[[Configuration], Mapping[str, Any]]:
    """Return the checks for the machine of a daemon; they run no containers."""

    def run_all(configuration: Configuration) -> Mapping[str, Any]:
        from cotenant.doctor.host_context import HostContext
        from cotenant.doctor.runner import run_checks
        from cotenant.state_dir import state_dir

        host = HostContext(state_dir=state_dir(), configuration=configuration, llama_server=llama_server)
        return as_json(run_checks(host))

    return run_all


def as_json(findings: Sequence[Finding]) -> dict[str, Any]:
    """Return all findings and the count of each level."""
    return {
        "counts": _counts(findings),
        "findings": [
            {
                "area": finding.area.name.lower(),
                **attributes(finding, "level seen matters"),
                "mend": finding.fix,
            }
            for finding in findings
        ],
    }


def as_text(findings: Sequence[Finding], *, colours: bool = False) -> Iterator[str]:
    """Yield lines of at most 80 columns, by area, the worst first; commands are never wrapped."""
    from cotenant.doctor.findings import Area, Level

    levels, counts = list(Level), _counts(findings)
    for area in Area:
        of_area = [finding for finding in findings if finding.area is area]
        if of_area:
            yield area.value
        for finding in sorted(of_area, key=lambda each: levels.index(each.level)):
            yield from _lines(finding, colours=colours)
    yield ""
    yield ", ".join(
        f"{counts[level]} {one if counts[level] == 1 else many}"
        for level, one, many in (
            ("problem", "problem", "problems"),
            ("warning", "warning", "warnings"),
            ("unknown", "not seen", "not seen"),
            ("ok", "ok", "ok"),
        )
        if counts[level] or level in ("problem", "warning")
    )


def _lines(finding: Finding, *, colours: bool) -> Iterator[str]:
    mark = _MARKS[finding.level.value].ljust(_INDENT - 3)
    if colours:
        mark = f"\x1b[{_COLOURS[finding.level.value]}m{mark}\x1b[0m"
    first, *lines = _wrapped(finding.seen)
    yield f"  {mark} {first}"
    if finding.matters:
        lines += _wrapped(f"Why: {finding.matters}")
    if finding.fix:
        # A command must stay on one line to be copied. A sentence begins with a capital letter.
        lines += _wrapped(f"→ {finding.fix}") if finding.fix[0].isupper() else [f"→ {finding.fix}"]
    for line in lines:
        yield f"{' ' * _INDENT}{line}"


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, 80 - _INDENT, break_long_words=False, break_on_hyphens=False) or [""]


def _counts(findings: Sequence[Finding]) -> dict[str, int]:
    from cotenant.doctor.findings import Level

    counted = Counter(finding.level for finding in findings)
    return {level.value: counted[level] for level in Level}
