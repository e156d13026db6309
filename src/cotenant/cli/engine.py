"""`cotenant engine`: the programs that run models here, and installing one for this machine's GPUs."""

import argparse
import os
from collections.abc import Iterator
from dataclasses import asdict, fields
from typing import Final
from urllib.parse import quote

from cotenant.cli.client import Daemon, add_daemon_options
from cotenant.cli.flags import add_llama_server_option, measured
from cotenant.cli.table import attributes, print_result
from cotenant.domain.engines import EngineBuild, FoundBuilds, InstallOrder, InstallStage, InstallStep
from cotenant.domain.errors import DaemonSilent, UsageError

_FLAVOURS: Final = ("cuda", "rocm", "vulkan", "cpu")
_AGENT_WITHIN_S: Final = 130.0
_SEE: Final = "What came of it: cotenant engine list --node {}"


def register(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments to its parser."""
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    listing = actions.add_parser("list", help="show what can run models and which GPUs each sees")
    listing.add_argument("--json", action="store_true", help="print JSON")
    add_llama_server_option(listing)
    _add_node_options(listing)
    listing.set_defaults(run=_list)
    installing = actions.add_parser("install", help="install the embedded engine for this machine's GPUs")
    installing.add_argument(
        "flavour", nargs="?", choices=_FLAVOURS, help="what to compute on (default: what the GPUs here need)"
    )
    installing.add_argument("--dry-run", action="store_true", help="print the command and run nothing")
    installing.add_argument(
        "--index", metavar="URL|FOLDER", help="where to take the wheel from in place of upstream's index"
    )
    installing.add_argument(
        "--no-verify",
        dest="verify",
        action="store_false",
        help="take the tested version of the index also if the hash of its wheel is not known",
    )
    installing.add_argument(
        "--newest", action="store_true", help="take the newest version of the index, without a known hash"
    )
    _add_node_options(installing)
    installing.set_defaults(run=_install)


def _add_node_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--node", metavar="NODE", help="on another machine of the daemon (`nodes:`)")
    add_daemon_options(parser)


def _list(args: argparse.Namespace) -> int:
    """List the programs here, or on another machine. Raises DaemonSilent, UnknownNode or NodeUnreachable."""
    if args.node is None:
        from cotenant.engines.llama_cpp.builds import survey

        # Described devices do not decide what runs here or must be installed.
        found = survey(args.llama_server, measured(None))
    else:
        from cotenant.nodes.protocol import from_json

        if str(args.llama_server or "") != os.environ.get("COTENANT_LLAMA_SERVER", ""):
            raise UsageError(
                "--llama-server is about this machine, and --node about another one",
                hint="Its agent uses the COTENANT_LLAMA_SERVER of its machine.",
            )
        answer = Daemon(args).get(_path(args.node), _AGENT_WITHIN_S)
        found = from_json(FoundBuilds, answer)
    value = {
        "engines": [
            {
                **attributes(build, "form version program problem"),
                "chosen": number == found.chosen,
                "devices": [asdict(device) for device in build.devices],
            }
            for number, build in enumerate(found.builds)
        ],
        "problem": {"message": found.refusal, "hint": found.hint} if found.refusal else None,
    }
    return print_result(args, value, _as_text(found, args.node))


def _path(node: str) -> str:
    return f"/api/nodes/{quote(node, safe='')}/engines"


def _install(args: argparse.Namespace) -> int:
    if args.node is not None:
        return _install_there(args)
    from cotenant.engines.llama_cpp.install import Flavour, install, plan_install, read_system, shown

    inventory = measured(None)
    flavour = Flavour(args.flavour or (inventory.vendor.traits.backend if inventory.vendor else "cpu"))
    system = read_system(inventory.cuda_version)
    plan = plan_install(flavour, system, index_url=args.index, verify=args.verify, newest=args.newest)
    print(shown(plan.command), flush=True)
    for note in plan.notes:
        print(f"note: {note}", flush=True)
    if args.dry_run:
        return 0
    build = install(plan, say=lambda line: print(f"  {line}", flush=True))
    print(f"{build.form} {build.version} is installed and {_devices_text(build)}.")
    return 0 if build.sees_gpus or flavour is Flavour.CPU else 1


def _install_there(args: argparse.Namespace) -> int:
    """Install on another machine. Raises what an install raises, DaemonSilent or NodeUnreachable."""
    from cotenant.nodes.protocol import from_json

    order = InstallOrder(**{field.name: getattr(args, field.name) for field in fields(InstallOrder)})
    for line in Daemon(args).lines(f"{_path(args.node)}/install", asdict(order)):
        step = from_json(InstallStep, line)
        match step.stage:
            case InstallStage.COMMAND:
                print(f"{args.node}: {step.text}", flush=True)
            case InstallStage.NOTE:
                print(f"note: {step.text}", flush=True)
            case InstallStage.OUTPUT:
                print(f"  {step.text}", flush=True)
        if step.build is not None:
            print(f"{step.text} is installed on {args.node} and {_devices_text(step.build)}.")
            return 0 if step.build.sees_gpus or step.flavour == "cpu" else 1
    if args.dry_run:
        return 0
    raise DaemonSilent("the daemon did not say whether the engine was installed", hint=_SEE.format(args.node))


def _as_text(found: FoundBuilds, node: str | None) -> Iterator[str]:
    for number, build in enumerate(found.builds):
        mark = "*" if number == found.chosen else " "
        yield f"{mark} {build.form} {build.version}: {build.problem or _devices_text(build)}"
        yield f"    {build.program}"
    if found.refusal:
        yield f"None would be used: {found.refusal}."
        yield f"  hint: {found.hint}"
    else:
        machine = node or "this machine"
        where = f"{machine}'s GPUs" if found.has_gpus else f"the CPU of {machine}, which has no GPU"
        yield f"* runs models on {where}."


def _devices_text(build: EngineBuild) -> str:
    if not build.sees_gpus:
        return "sees no GPU: CPU only"
    return "sees " + ", ".join(device.label for device in build.devices)
