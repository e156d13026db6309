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

from cotenant.cli.flags import add_llama_server_option
from cotenant.cli.table import attributes, print_result
from cotenant.domain.errors import CotenantError

if TYPE_CHECKING:
    from cotenant.config.configuration import Configuration
    from cotenant.doctor.findings import Finding

_INDENT: Final = 11
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


def run(args: argparse.Namespace) -> int:
    """Print the findings. Returns 1 if there is a problem; warnings alone are not a failure."""
    from cotenant.config.layers import find_configuration
    from cotenant.config.settings import read_configuration
    from cotenant.daemon.core.settings import state_dir
    from cotenant.doctor.findings import Level
    from cotenant.doctor.host_context import HostContext
    from cotenant.doctor.runner import WITHIN_S, WITHIN_WITH_CONTAINERS_S, run_checks

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
    findings = run_checks(host, within_s=WITHIN_WITH_CONTAINERS_S if host.containers else WITHIN_S)
    colours = sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    print_result(args, as_json(findings), as_text(findings, colours=colours))
    return 1 if any(finding.level is Level.PROBLEM for finding in findings) else 0


def machine_checks(llama_server: Path | None) -> Callable[[Configuration], Mapping[str, Any]]:
    """Return the checks for the machine of a daemon; they run no containers."""

    def run_all(configuration: Configuration) -> Mapping[str, Any]:
        from cotenant.daemon.core.settings import state_dir
        from cotenant.doctor.host_context import HostContext
        from cotenant.doctor.runner import run_checks

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
