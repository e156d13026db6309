"""`cotenant models`: the configured models, their memory, and whether all of them fit at once."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from cotenant.cli.flags import file_path, kept_to, measured, read_inventory, switch
from cotenant.cli.table import Column, attributes, print_result, table_lines
from cotenant.domain.devices import DeviceKind
from cotenant.domain.errors import BadSetting, UnknownDevice, UsageError
from cotenant.domain.placements import Placement
from cotenant.domain.records import PastRuns
from cotenant.domain.units import format_bytes, format_count, format_duration

if TYPE_CHECKING:
    from cotenant.config.configuration import Configuration
    from cotenant.daemon.capacity import ModelOutlook, Peak


def register(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments to its parser."""
    _add_options(parser, default=None)
    parser.add_argument("--json", action="store_true", help="print the models as JSON")
    parser.add_argument(
        "--csv", action="store_true", help="print CSV, with what each model leaves on each GPU"
    )
    switch(parser, "--use-fit-params", False, "plan as `serve` does with it")
    parser.add_argument(
        "--check", action="store_true", help="check the configuration and list everything wrong with it"
    )
    actions = parser.add_subparsers(metavar="ACTION")
    remove = actions.add_parser("rm", help="delete the files of a model of models_dir")
    remove.add_argument("name", metavar="NAME", help="the model's name")
    remove.add_argument("--yes", action="store_true", help="do not ask")
    # Suppressed, so that their defaults do not overwrite flags given before `rm`.
    _add_options(remove, default=argparse.SUPPRESS)
    remove.set_defaults(run=run_remove)


def _add_options(parser: argparse.ArgumentParser, *, default: str | None) -> None:
    parser.add_argument(
        "--config",
        type=file_path,
        metavar="FILE",
        default=default,
        help="configuration (default: $COTENANT_CONFIG, ./cotenant.yaml, ~/.config/cotenant/cotenant.yaml)",
    )
    for flag, metavar, text in (
        ("--models-dir", "FOLDER", "every GGUF in it is served"),
        ("--gpus", "SPEC", "describe GPUs in place of this machine's"),
        ("--devices", "LIST", "plan on these devices only"),
    ):
        parser.add_argument(flag, metavar=metavar, default=default, help=text)


def run(args: argparse.Namespace) -> int:
    """Print the table, or with --check the errors of the configuration."""
    if args.check:
        return _check(args)
    from cotenant.daemon.capacity import peak
    from cotenant.daemon.past_runs import learned, planned_by

    configuration = _read(args)
    past = read_past_runs(configuration)
    configuration = learned(configuration, past)
    devices = configuration.devices
    inventory = read_inventory(argparse.Namespace(gpus=devices.gpus, devices=list(devices.use)))
    if configuration.ollama is not None:
        import asyncio

        from cotenant.daemon.monitors.ollama_models import with_ollama_models

        configuration = asyncio.run(with_ollama_models(configuration, inventory.devices))
    configuration = replace(configuration, models=tuple(planned_by(m, past) for m in configuration.models))
    together = peak(configuration, inventory, use_fit_params=args.use_fit_params)
    models = {
        row.model.name: _model_json(row, past.errors.get(row.model.on_engine)) for row in together.alone
    }
    value = {
        "configuration": configuration.path and str(configuration.path),
        "models": [*models.values()],
        "peak": {
            **attributes(together, "needed_bytes offered_bytes together waiting nowhere warnings"),
            "left_bytes": together.left[-1] if together.left else None,
        },
        "problems": [{"path": str(each.path), "text": each.text} for each in configuration.problems],
    }
    return print_result(args, value, _as_text(configuration, together, past), _csv_rows(models, together))


def _as_text(configuration: Configuration, peak: Peak, past: PastRuns) -> Iterator[str]:
    yield f"Configuration: {configuration.path or 'none; the environment and flags are used'}"
    if peak.alone:
        yield from table_lines(_columns(past, several=configuration.nodes is not None), peak.alone)
        yield ""
        yield from _peak_lines(peak)
    else:
        advice = (
            "" if configuration.models_dir or configuration.ollama else ": give `models:` or `models_dir:`"
        )
        yield f"No model is configured{advice}."
    yield from (f"Warning: {warning}" for warning in peak.warnings)
    yield from (f"Problem: {problem}" for problem in configuration.problems)


def run_remove(args: argparse.Namespace) -> int:
    """Delete a model's files after confirmation."""
    from cotenant.config.delete_model import plan_removal

    removal = plan_removal(_read(args), args.name)
    print(f"{removal.name}: {format_count(len(removal.files), 'file')}, {format_bytes(removal.frees_bytes)}:")
    for path in removal.files:
        print(f"  {path}" + (" (a link: its target stays)" if path in removal.links else ""))
    if not args.yes:
        if not sys.stdin.isatty():
            raise UsageError(
                "cannot ask for confirmation: standard input is not a terminal",
                hint="Give --yes to delete these files.",
            )
        with contextlib.suppress(EOFError):
            args.yes = input("Delete them? [y/N] ").strip().lower() in ("y", "yes")
    if not args.yes:
        print("Nothing was deleted.")
        return 1
    removal.carry_out()
    print(f"Deleted; {format_bytes(removal.frees_bytes)} are free again.")
    return 0


def _read(args: argparse.Namespace) -> Configuration:
    from cotenant.config.layers import find_configuration
    from cotenant.config.settings import read_configuration

    path = find_configuration(args.config, os.environ)
    flags = {name: getattr(args, name) for name in ("gpus", "devices", "models_dir")}
    configuration = read_configuration(path, flags=flags)
    if path is None and configuration.models_dir is None:
        raise BadSetting(
            "there is no configuration: no cotenant.yaml here or in ~/.config/cotenant",
            hint="Give --config FILE, or --models-dir FOLDER.",
        )
    return configuration


def _check(args: argparse.Namespace) -> int:
    wrong: tuple[str, ...] = ()
    try:
        configuration = _read(args)
    except BadSetting as error:
        configuration, wrong = error.partial, error.problems
    if configuration is not None:
        wrong += tuple(_absent_devices(configuration))
    if wrong:
        print(*wrong, sep="\n")
        return 2
    count = format_count(len(configuration.models), "model")
    print(f"{configuration.path or 'The environment'} is valid: {count}.")
    for problem in configuration.problems:
        print(f"Problem: {problem}")
    return 0


def _absent_devices(configuration: Configuration) -> Iterator[str]:
    """Say which devices are named that are not there; nothing on a machine without GPUs, where none are."""
    devices = configuration.devices
    where = f"{configuration.path or 'the environment'}: "
    try:
        inventory = measured(devices.gpus)
        if inventory.has_gpus:
            inventory = kept_to(inventory, list(devices.use), described=devices.gpus)
    except UsageError as error:
        yield f"{where}devices: {error.message} ({error.hint})"
        return
    # Of other machines the command line knows nothing.
    for model in configuration.models if inventory.has_gpus and configuration.nodes is None else ():
        try:
            inventory.select(model.gpus)
        except UnknownDevice as error:
            yield f"{where}gpus of {model.name}: {error.message} ({error.hint})"


def read_past_runs(configuration: Configuration) -> PastRuns:
    """Return what the journal has of past runs; nothing if there is none. Raises StoreError."""
    from cotenant.state_dir import default_database
    from cotenant.store import past_runs

    where = configuration.database or default_database()
    return past_runs.read_past_runs(where, configuration.devices.rules.overhead_bytes)


def _columns(past: PastRuns, *, several: bool) -> Sequence[Column[ModelOutlook]]:
    """Return the columns of the models; with `several` machines, on which each may run."""
    nodes: list[Column[ModelOutlook]] = [
        Column("NODES", lambda row: ", ".join(row.model.nodes) or "any")
    ] * several
    shares = {model: f"{error:.1%}" for model, error in past.errors.items()}
    return (
        Column("NAME", lambda row: row.model.name),
        Column("QUANT", lambda row: row.model.shape.quantisation or "?"),
        Column("FILE", lambda row: format_bytes(row.model.shape.file_bytes), right=True),
        Column("NEEDS", lambda row: format_bytes(row.needed_bytes), right=True),
        Column("OFF BY", lambda row: shares.get(row.model.on_engine, "-"), right=True),
        *nodes,
        Column("WHERE ALONE", _where),
        Column("KEEP-ALIVE", _keep_alive),
        Column("", lambda row: " ".join(w for w in ("pinned", "preload") if getattr(row.model, w))),
    )


def _keep_alive(row: ModelOutlook) -> str:
    seconds = row.model.keep_alive_s
    if not seconds:
        return "forever" if seconds is None else "none"
    return format_duration(seconds).removesuffix(" 0 s").removesuffix(" 0 m")


def _where(row: ModelOutlook) -> str:
    if not isinstance(row.result, Placement):
        short = f"{format_bytes(row.missing_bytes)} short" if row.missing_bytes else row.result.reason
        return f"nowhere: {short}"
    shares = row.result.used_shares
    if any(share.device.kind is DeviceKind.HOST for share in shares) or not shares:
        return "host RAM"
    if len(shares) == 1:
        return shares[0].device.label
    counted = [f"{share.device.label} ({share.count})" for share in shares]
    return f"{' + '.join(counted)} layers"


def _peak_lines(peak: Peak) -> Iterator[str]:
    needed, offered = format_bytes(peak.needed_bytes), format_bytes(peak.offered_bytes)
    count = len(peak.together) + len(peak.waiting) + len(peak.nowhere)
    subject = "The model needs" if count == 1 else f"All {count} models loaded at once need"
    yield f"{subject} {needed}; {offered} may be planned on {peak.devices}."
    if peak.waiting:
        yield (
            f"{len(peak.together)} fit at once ({', '.join(peak.together) or 'none'}); "
            f"{', '.join(peak.waiting)} must wait until others are unloaded."
        )
    elif peak.together:
        yield "It fits." if count == 1 else f"{'They all' if not peak.nowhere else 'The others'} fit at once."
    if peak.left:
        left = ", ".join(f"{format_bytes(count)} on {label}" for label, count in peak.left[-1].items())
        yield f"What fits at once leaves {left}."
    if peak.nowhere:
        yield f"Too large even alone: {', '.join(peak.nowhere)}. `cotenant plan` says what would fit."


def _csv_rows(models: dict[str, dict[str, Any]], peak: Peak) -> Iterator[dict[str, object]]:
    """Yield the models, those that fit at once first, and what may be planned on each device after each."""
    after = dict(zip(peak.together, peak.left, strict=True))
    for name in (*peak.together, *peak.waiting, *peak.nowhere):
        plain = {key: value for key, value in models[name].items() if not isinstance(value, (list, tuple))}
        left = {f"left_bytes {label}": after.get(name, {}).get(label) for label in (peak.left or [{}])[0]}
        yield {**plain, "devices": " ".join(each["uuid"] for each in models[name]["devices"]), **left}


def _model_json(row: ModelOutlook, error: float | None) -> dict[str, Any]:
    model, placed = row.model, row.result if isinstance(row.result, Placement) else None
    return {
        "name": model.name,
        "aliases": model.aliases,
        "variants": list(model.variants),
        "path": model.path and str(model.path),
        "projector_path": model.projector_path and str(model.projector_path),
        "companions": asdict(model.companions),
        "engine": model.recipe.engine,
        **attributes(model.shape, "kind quantisation file_bytes"),
        "needed_bytes": row.needed_bytes,
        "estimate_error": error,
        "fits": placed is not None,
        "devices": [
            {"index": share.device.index, "uuid": share.device.id, "planned_bytes": share.parts.total}
            for share in (placed.used_shares if placed else ())
        ],
        "refusal": None if isinstance(row.result, Placement) else row.result.reason,
        **attributes(model.recipe, "n_ctx parallel"),
        **attributes(model, "keep_alive_s preload pinned priority timeout_s from_folder"),
    }
