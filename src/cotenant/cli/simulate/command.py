"""`cotenant simulate`: replays a log of requests on other GPUs or by other rules, with the same scheduler."""

from __future__ import annotations

import argparse
import math
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Final, TextIO

from cotenant.cli.flags import file_path, kept_to, measured, whole
from cotenant.cli.simulate.models import (
    EVERY_OTHER,
    StatedModel,
    configuration_of,
    configured_tenants,
    keep_alive,
    stated_model,
    stated_models,
    stated_tenants,
)
from cotenant.cli.table import print_result, progress_line
from cotenant.domain.errors import BadSetting, UsageError
from cotenant.domain.units import parse_duration
from cotenant.scheduling.policy import POLICIES

if TYPE_CHECKING:
    from cotenant.config.configuration import Configuration
    from cotenant.domain.devices import Device
    from cotenant.simulation.models import Request
    from cotenant.simulation.variant import Tenant, Variant

_POLICIES: Final = (*POLICIES, "clairvoyant")
_HERE: Final = "here"
_MOST_VARIANTS: Final = 26
_NAMED: Final = 5
_EPILOG: Final = (
    "LOG is what `cotenant serve --request-log FILE` writes, or CSV with the columns "
    "arrival_s,model,prompt_tokens,output_tokens; .gz is read too, - is standard input. "
    "Not modelled: engines that slow each other down on one card, batching, loads that fail, and what "
    "others do with the cards. docs/simulate.md says more."
)


def register(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments to its parser."""
    parser.epilog = _EPILOG
    parser.add_argument("logs", metavar="LOG", nargs="+", help="requests; several files are merged")
    what = parser.add_argument_group(
        "what to compare; each may be given several times, the others are compared with the first"
    )
    what.add_argument(
        "--gpus",
        metavar="SPEC",
        action="append",
        help="2xRTX 3090, 24GiB,24GiB or a YAML file, as for `plan`; here: this machine's, or those of the "
        "configuration (default)",
    )
    for name, metavar, text in (
        ("--policy", "NAME", f"who is evicted: {', '.join(_POLICIES)}"),
        ("--keep-alive", "TIME", "how long models stay after a request, or forever"),
    ):
        what.add_argument(name, metavar=metavar, action="append", help=text)
    models = parser.add_argument_group("models")
    models.add_argument("--config", type=file_path, metavar="FILE", help="the configuration (cotenant.yaml)")
    models.add_argument("--models-dir", metavar="FOLDER", help="every GGUF in it is served")
    models.add_argument(
        "--model",
        metavar="NAME=SIZE",
        action="append",
        default=[],
        help="a model without its file: llama=20GiB, or llama=20GiB,load=8s,slots=4,rate=60 (tokens per "
        "second of a request); '*=8GiB' is every other name of the log",
    )
    models.add_argument(
        "--sizes", type=file_path, metavar="FILE", help="the same as YAML: `llama: 20GiB,load=8s`"
    )
    replay = parser.add_argument_group("replay")
    replay.add_argument("--until", metavar="TIME", help="only the first part of the log, as 2h")
    replay.add_argument(
        "--speed", metavar="FACTOR", default="1", help="requests arrive this many times as fast"
    )
    replay.add_argument(
        "--seed",
        type=whole("--seed", 0, 10**18),
        metavar="N",
        default=0,
        help="draws the spread of load times (default: 0)",
    )
    replay.add_argument(
        "--draws",
        type=whole("--draws", 1, 100),
        metavar="N",
        help="replays of each variant, by seeds from --seed on, which separate a difference from chance "
        "(default: 3 where variants are compared, else 1)",
    )
    parser.add_argument("--all-models", action="store_true", help="list every model, however many there are")
    parser.add_argument("--json", action="store_true", help="print JSON: seconds, bytes, shares from 0 to 1")


def run(args: argparse.Namespace) -> int:
    """Replay and print. Raises BadSetting, BadTrace, BadDeviceSpec."""
    from cotenant.cli.simulate.table import Study, as_json, lines
    from cotenant.simulation.trace import read_trace

    seed, speed = args.seed, _speed(args.speed)
    until_s = math.inf if args.until is None else parse_duration(args.until)
    stated = [*(stated_models(args.sizes) if args.sizes else ()), *map(stated_model, args.model)]
    for name in args.policy or ():
        if name not in _POLICIES:
            raise UsageError(f"--policy {name!r} is not known", hint=f"One of {', '.join(_POLICIES)}.")
    given = configuration_of(args.config, args.models_dir, stated=bool(stated))
    with ExitStack() as stack:
        trace = read_trace({name: _opened(stack, name) for name in args.logs}, stretch=1 / speed)
    requests = [request for request in trace.requests if request.at <= until_s / speed]
    configuration, configured, problem = configured_tenants(given)
    tenants, requests, left_out = _match(configured, stated, requests, configuration)
    variants = list(_variants(args, configuration, tenants))
    notes = [] if problem is None else [problem]
    study = Study(requests, trace.guessed, left_out, seed, speed, notes)
    draws = args.draws or (3 if len(variants) > 1 else 1)
    for number, variant in enumerate(variants, start=1):
        with progress_line() as show:
            what = f"{number} of {len(variants)}: {variant.name}"

            def progress(share: float, what: str = what, show: Callable[[str], None] = show) -> None:
                show(f"{math.floor(100 * share):3} % of {what}")

            results = [variant.run(requests, seed=seed + n, progress=progress) for n in range(draws)]
        study.results.append((variant, results))
    return print_result(args, as_json(study), lines(study, every_model=args.all_models))


def _opened(stack: ExitStack, name: str) -> Iterator[str]:
    """Yield the lines of a file. Raises BadSetting if it cannot be read."""
    try:
        yield from sys.stdin if name == "-" else stack.enter_context(_open(Path(name).expanduser()))
    except (OSError, EOFError, zlib.error) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise BadSetting(
            f"{name} cannot be read: {why}",
            hint="Give a log that `cotenant serve --request-log` writes, or CSV.",
        ) from None
    except UnicodeDecodeError:
        raise BadSetting(f"{name} is not text", hint="A request log and CSV are UTF-8.") from None


def _open(path: Path) -> TextIO:
    if path.suffix == ".gz":
        import gzip

        return gzip.open(path, "rt", encoding="utf-8", newline="")
    return path.open(encoding="utf-8-sig", newline="")


def _match(
    configured: list[Tenant],
    stated: Sequence[StatedModel],
    requests: list[Request],
    configuration: Configuration,
) -> tuple[list[Tenant], list[Request], Counter[str]]:
    """Return the models, their requests by canonical name, and the number of other requests, by name.

    Raises UsageError if no request is for a known model.
    """
    from cotenant.daemon.core.fleet import Fleet

    names = Fleet.of(configuration.models).names
    named = {model.name for model in stated}
    others = sorted({request.model for request in requests} - names.keys() - named)
    by_size = stated_tenants(stated, configuration.defaults, others)
    own = {tenant.spec.name for tenant in by_size}
    tenants = [*(tenant for tenant in configured if tenant.spec.name not in own), *by_size]
    canonical = {**names, **{name: name for name in own}}
    left_out = Counter(request.model for request in requests if request.model not in canonical)
    kept = [replace(r, model=canonical[r.model]) for r in requests if r.model in canonical]
    if not kept:
        raise _nothing_to_replay(left_out, tenants)
    return tenants, kept, left_out


def _nothing_to_replay(left_out: Counter[str], tenants: Sequence[Tenant]) -> UsageError:
    if not left_out:
        return UsageError("the log has no requests", hint="Is it empty, or cut off by --until?")
    first, *_ = asked = [name for name, _ in left_out.most_common(_NAMED)]
    more = f" and {len(left_out) - _NAMED} more" if len(left_out) > _NAMED else ""
    known = ", ".join(tenant.spec.name for tenant in tenants[:_NAMED]) or "none"
    return UsageError(
        f"the log has only requests for unknown models: {', '.join(asked)}{more}; known: {known}",
        hint=f"Give --config or --models-dir, or sizes: --model '{first}=20GiB', "
        f"--model '{EVERY_OTHER}=8GiB' for all.",
    )


def _variants(
    args: argparse.Namespace, configuration: Configuration, tenants: Sequence[Tenant]
) -> Iterator[Variant]:
    """Yield every combination to compare. Raises BadSetting, BadDeviceSpec."""
    from cotenant.daemon.core.settings import scheduler_settings
    from cotenant.simulation.variant import Variant

    machines = {spec: _cards(spec, configuration) for spec in args.gpus or [_HERE]}
    keep_alives = {text: keep_alive(text) if text else None for text in args.keep_alive or ("",)}
    combinations = [*product(machines, dict.fromkeys(args.policy or [None]), keep_alives)]
    if len(combinations) > _MOST_VARIANTS:
        raise UsageError(
            f"{len(combinations)} combinations are too many",
            hint=f"Compare at most {_MOST_VARIANTS} at a time.",
        )
    for spec, policy, kept in combinations:
        settings = scheduler_settings(configuration)
        clairvoyant = policy == "clairvoyant"
        if policy is not None:
            settings = replace(settings, policy="cost" if clairvoyant else policy)
        words = [_machine_name(spec, machines[spec])] if len(machines) > 1 or len(combinations) == 1 else []
        words += [policy] if policy is not None else []
        own = tuple(tenants)
        if kept:
            words.append(f"keep-alive {kept}")
            kept_s = None if keep_alives[kept] == math.inf else keep_alives[kept]
            own = tuple(replace(each, spec=replace(each.spec, keep_alive_s=kept_s)) for each in tenants)
        yield Variant(", ".join(words), machines[spec], settings, own, clairvoyant)


def _cards(spec: str, configuration: Configuration) -> tuple[Device, ...]:
    """Return the cards of a description with their usable memory, all of it for this machine's GPUs.

    Raises BadDeviceSpec, UnknownDevice, BadSetting.
    """
    from cotenant.planning.budgets import budgets

    devices = configuration.devices
    described = devices.gpus if spec == _HERE else spec
    inventory = measured(described)
    if spec == _HERE:
        inventory = kept_to(inventory, list(devices.use), described=described)
    if inventory.source.is_live:
        # The current use by engines and others does not matter for the replay.
        empty = {d.id: replace(inventory.reading(d), free_bytes=d.total_bytes) for d in inventory.devices}
        inventory = replace(inventory, readings=empty)
    found = budgets(inventory, devices.rules)
    cards = tuple(replace(b.device, total_bytes=b.free_bytes) for b in found if b.left_out is None)
    if not cards:
        raise BadSetting(
            f"{spec}: no device can be used: {'; '.join(str(b.left_out) for b in found)}",
            hint="`cotenant plan` shows the budgets; devices.reserve_mib and min_budget_mib set them.",
        )
    return cards


def _machine_name(spec: str, cards: Sequence[Device]) -> str:
    if spec != _HERE:
        return spec
    names = Counter(card.name for card in cards)
    return ", ".join(name if count == 1 else f"{count}x{name}" for name, count in names.items())


def _speed(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value <= 1e6:
        raise UsageError(
            f"--speed {text!r} is not a number above 0", hint="2 is twice as fast, 0.5 half as fast."
        )
    return value
