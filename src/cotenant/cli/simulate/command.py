"""`cotenant simulate`: replays a log of requests on other GPUs or by other rules, with the same scheduler."""

from __future__ import annotations

import argparse
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import product
from typing import TYPE_CHECKING, Final

from cotenant.cli.flags import whole
from cotenant.cli.simulate.models import (
    EVERY_OTHER,
    HERE,
    StatedModel,
    add_model_options,
    all_stated,
    configuration_of,
    configured_tenants,
    inventory_of,
    keep_alive,
    stated_tenants,
)
from cotenant.cli.table import print_result, progress_line
from cotenant.domain.errors import UsageError
from cotenant.domain.units import parse_duration
from cotenant.scheduling.policy import POLICIES

if TYPE_CHECKING:
    from cotenant.config.configuration import Configuration
    from cotenant.domain.devices import Device
    from cotenant.simulation.closed_loop import Clients
    from cotenant.simulation.models import Request
    from cotenant.simulation.variant import Tenant, Variant

_POLICIES: Final = (*POLICIES, "clairvoyant")
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
    parser.add_argument("logs", metavar="LOG", nargs="*", help="requests; several files are merged")
    parser.add_argument(
        "--clients",
        metavar="SPEC",
        help="in place of a log: people and agents who ask again only after their answer, as "
        "bursts=5,agent=1,think=20s; the habits are steady, alternating, bursts and agent",
    )
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
    add_model_options(parser)
    replay = parser.add_argument_group("replay")
    replay.add_argument(
        "--until",
        metavar="TIME",
        help="only the first part of the log, as 2h; with --clients how long they ask (default: 1h)",
    )
    replay.add_argument(
        "--speed",
        metavar="FACTOR",
        default="1",
        help="requests arrive, or clients think, so many times as fast",
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
    from cotenant.cli.simulate.clients import clients_of
    from cotenant.cli.simulate.table import Study, as_json, lines
    from cotenant.daemon.workload import read_logs

    seed, speed = args.seed, _speed(args.speed)
    until_s = math.inf if args.until is None else parse_duration(args.until)
    stated = all_stated(args)
    for name in args.policy or ():
        if name not in _POLICIES:
            raise UsageError(f"--policy {name!r} is not known", hint=f"One of {', '.join(_POLICIES)}.")
    if bool(args.logs) == (args.clients is not None):
        raise UsageError(
            "give a log or --clients, and not both" if args.logs else "there is no log to replay",
            hint="`cotenant serve --request-log FILE` writes one; --clients bursts=5 does without.",
        )
    clients = None if args.clients is None else clients_of(args.clients, until_s, speed)
    if clients is not None and "clairvoyant" in (args.policy or ()):
        raise UsageError(
            "clairvoyant knows a log, and not what clients will ask",
            hint="Leave it out, or replay a log in place of --clients.",
        )
    if clients is not None and any(model.name == EVERY_OTHER for model in stated):
        raise UsageError(
            f"{EVERY_OTHER} is every other name of a log, and --clients has none",
            hint="Name each model: --model llama=20GiB --model embed=2GiB.",
        )
    given = configuration_of(args.config, args.models_dir, stated=bool(stated))
    trace = read_logs(args.logs, stretch=1 / speed)
    requests = [request for request in trace.requests if request.at <= until_s / speed]
    configuration, configured, problem = configured_tenants(given)
    tenants, requests, left_out = matched(configured, stated, requests, configuration, clients)
    variants = list(_variants(args, configuration, tenants))
    notes = [] if problem is None else [problem]
    study = Study(requests, trace.guessed, left_out, seed, speed, notes, clients)
    draws = args.draws or (3 if len(variants) > 1 else 1)
    for number, variant in enumerate(variants, start=1):
        with progress_line() as show:
            what = f"{number} of {len(variants)}: {variant.name}"

            def progress(share: float, what: str = what, show: Callable[[str], None] = show) -> None:
                show(f"{math.floor(100 * share):3} % of {what}")

            results = [variant.run(requests, clients, seed=seed + n, progress=progress) for n in range(draws)]
        study.results.append((variant, results))
    return print_result(args, as_json(study), lines(study, every_model=args.all_models))


def matched(
    configured: list[Tenant],
    stated: Sequence[StatedModel],
    requests: list[Request],
    configuration: Configuration,
    clients: Clients | None = None,
) -> tuple[list[Tenant], list[Request], Counter[str]]:
    """Return the models, their requests by canonical name, and the number of other requests, by name.

    Raises UsageError if no request is for a known model, or there is none for the `clients`.
    """
    from cotenant.cli.simulate.clients import nothing_to_ask
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
    if clients is not None and not tenants:
        raise nothing_to_ask()
    if clients is None and not kept:
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
    from cotenant.daemon.workload import usable_cards
    from cotenant.simulation.variant import Variant

    rules = configuration.devices.rules
    machines = {
        spec: usable_cards(inventory_of(spec, configuration), rules, spec) for spec in args.gpus or [HERE]
    }
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


def _machine_name(spec: str, cards: Sequence[Device]) -> str:
    if spec != HERE:
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
