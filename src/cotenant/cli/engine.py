"""`cotenant engine`: the programs that run models here, and installing one for this machine's GPUs."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING

from cotenant.cli.flags import add_llama_server_option, measured
from cotenant.cli.table import attributes, print_result
from cotenant.domain.devices import DeviceKind, Inventory
from cotenant.domain.engines import EngineBuild
from cotenant.domain.errors import EngineError

if TYPE_CHECKING:
    from cotenant.engines.llama_cpp.builds import Builds

_FLAVOURS = ("cuda", "rocm", "vulkan", "cpu")


def register(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments to its parser."""
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    listing = actions.add_parser("list", help="show what can run models and which GPUs each sees")
    listing.add_argument("--json", action="store_true", help="print JSON")
    add_llama_server_option(listing)
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
    installing.set_defaults(run=_install)


def _list(args: argparse.Namespace) -> int:
    from cotenant.engines.llama_cpp.builds import choose, discover

    # Described devices do not decide what runs here or must be installed.
    builds, inventory = discover(args.llama_server), measured(None)
    gpus = [device for device in inventory.devices if device.kind is not DeviceKind.HOST]
    chosen, refusal = None, None
    try:
        chosen = choose(builds, gpus, cuda_version=inventory.cuda_version)
    except EngineError as error:
        refusal = error
    value = {
        "engines": [
            {
                **attributes(build, "form version program problem"),
                "chosen": build is chosen,
                "devices": [asdict(device) for device in build.devices],
            }
            for build in builds.all
        ],
        "problem": refusal and attributes(refusal, "message hint"),
    }
    return print_result(args, value, _as_text(builds, inventory, chosen, refusal))


def _install(args: argparse.Namespace) -> int:
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


def _as_text(
    builds: Builds, inventory: Inventory, chosen: EngineBuild | None, refusal: EngineError | None
) -> Iterator[str]:
    for build in builds.all:
        mark = "*" if build is chosen else " "
        yield f"{mark} {build.form} {build.version}: {build.problem or _devices_text(build)}"
        yield f"    {build.program}"
    if refusal is not None:
        yield f"None would be used: {refusal.message}."
        yield f"  hint: {refusal.hint}"
    else:
        where = "this machine's GPUs" if inventory.has_gpus else "the CPU of this machine, which has no GPU"
        yield f"* runs models on {where}."


def _devices_text(build: EngineBuild) -> str:
    if not build.sees_gpus:
        return "sees no GPU: CPU only"
    return "sees " + ", ".join(device.label for device in build.devices)
