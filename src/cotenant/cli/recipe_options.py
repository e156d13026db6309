"""Flags that say how a model runs and how memory is budgeted; each has its COTENANT_ variable."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from cotenant.domain.errors import BadRecipe
from cotenant.domain.models import (
    ALL_LAYERS,
    MOST_LAYERS,
    CacheType,
    FlashAttention,
    Recipe,
    SplitMode,
    SplitPolicy,
)
from cotenant.domain.profiles import Profile, recipe_values
from cotenant.domain.recipes import MAX_CTX, MAX_PARALLEL, check_recipe, with_micro_batch
from cotenant.domain.units import MIB
from cotenant.planning.budgets import BudgetRules
from cotenant.planning.manual_split import parse_split

_DEFAULT = Recipe()
_RULES = BudgetRules()


def add_recipe_options(parser: argparse.ArgumentParser) -> None:
    """Add every flag of a Recipe and of BudgetRules, device order aside."""
    member(
        parser,
        "--profile",
        Profile,
        None,
        "low-memory: small context, one slot, quantised cache, as many layers on GPUs as fit; "
        "whatever else is given wins",
    )
    _add_context(parser.add_argument_group("context"))
    _add_layout(parser.add_argument_group("layout"))
    _add_budget(parser.add_argument_group("budget"))
    host = parser.add_argument_group("host memory")
    switch(host, "--mmap", _DEFAULT.mmap, "map the file instead of reading it into memory")
    switch(host, "--mlock", _DEFAULT.mlock, "lock the model in RAM, so that it is never swapped out")


def _add_context(group: Any) -> None:
    flag(
        group,
        "--n-ctx",
        whole("--n-ctx", 1, MAX_CTX),
        _DEFAULT.n_ctx,
        "N",
        "context in tokens, of all slots together",
    )
    flag(
        group,
        "--parallel",
        whole("--parallel", 1, MAX_PARALLEL),
        _DEFAULT.parallel,
        "N",
        "requests served at once (slots)",
    )
    flag(
        group, "--n-batch", whole("--n-batch", 1), _DEFAULT.n_batch, "N", "tokens of a prompt taken at a time"
    )
    flag(
        group,
        "--n-ubatch",
        whole("--n-ubatch", 1),
        _DEFAULT.n_ubatch,
        "N",
        "tokens computed at a time; sizes the compute buffer",
    )
    for name in ("k", "v"):
        member(
            group,
            f"--cache-type-{name}",
            CacheType,
            CacheType.F16,
            f"element type of the {name.upper()} cache",
        )
    member(
        group,
        "--flash-attn",
        FlashAttention,
        _DEFAULT.flash_attention,
        "flash attention; auto is planned as on",
    )
    switch(
        group,
        "--kv-unified",
        _DEFAULT.kv_unified,
        "one KV stream shared by all slots, instead of one for each",
    )


def _add_layout(group: Any) -> None:
    flag(
        group,
        "--n-gpu-layers",
        _layers,
        ALL_LAYERS,
        "N|auto|-1",
        "layers on GPUs, the output layer being one; auto: the most that fit; -1: all",
    )
    flag(
        group,
        "--tensor-split",
        _split,
        (),
        "LIST",
        "split by hand, over devices in planned order: proportions (0.6,0.4) or layer counts (20,13)",
    )
    switch(
        group,
        "--smart-split",
        None,
        "compute the split from exact layer sizes (the default without --tensor-split); "
        "--no-smart-split: in proportion to free memory",
    )
    member(
        group, "--split-mode", SplitMode, _DEFAULT.split_mode, "how the engine splits a model; none: one GPU"
    )
    member(
        group,
        "--split-policy",
        SplitPolicy,
        _DEFAULT.split_policy,
        "fill: the fewest GPUs; balance: evenly; speed: the fastest memory first",
    )


def _add_budget(group: Any) -> None:
    for name, default, text in (
        ("--reserve-mib", _RULES.reserve_bytes, "MiB kept free on every device"),
        ("--min-budget-mib", _RULES.min_budget_bytes, "a GPU with less than this left is not used"),
        ("--overhead-mib", _RULES.overhead_bytes, "MiB per GPU for the CUDA context and its pools"),
    ):
        flag(group, name, whole(name, 0), default // MIB, "MIB", text)


def read_recipe(args: argparse.Namespace) -> Recipe:
    """Build the Recipe that the flags describe. Raises BadRecipe for flags at odds with each other."""
    if args.smart_split and args.tensor_split:
        raise BadRecipe(
            "--smart-split and --tensor-split exclude each other",
            hint="Leave --smart-split out to split by hand.",
        )
    told = _recipe_flags(args)
    by_profile = recipe_values(args.profile, {name: told[name] for name in told if _is_told(args, name)})
    recipe = with_micro_batch(replace(Recipe(), **{**told, **by_profile}))
    check_recipe(recipe)
    return recipe


def _recipe_flags(args: argparse.Namespace) -> dict[str, Any]:
    """Return the flags' values by the names of Recipe's fields."""
    return {
        "n_ctx": args.n_ctx,
        "parallel": args.parallel,
        "n_batch": args.n_batch,
        "n_ubatch": args.n_ubatch,
        "cache_type_k": args.cache_type_k,
        "cache_type_v": args.cache_type_v,
        "flash_attention": args.flash_attn,
        "kv_unified": args.kv_unified,
        "n_gpu_layers": args.n_gpu_layers,
        "split_mode": args.split_mode,
        "split_policy": args.split_policy,
        "tensor_split": args.tensor_split,
        "smart_split": args.smart_split is not False,
        "mmap": args.mmap,
        "mlock": args.mlock,
    }


def _is_told(args: argparse.Namespace, field: str) -> bool:
    """Whether a field of the recipe was set by its flag or its variable."""
    dest = "flash_attn" if field == "flash_attention" else field
    return dest in getattr(args, "given", ()) or bool(os.environ.get(variable(f"--{dest}")))


def read_rules(args: argparse.Namespace) -> BudgetRules:
    """Build the BudgetRules that the flags describe."""
    return BudgetRules(
        order=args.device_order,
        reserve_bytes=args.reserve_mib * MIB,
        min_budget_bytes=args.min_budget_mib * MIB,
        overhead_bytes=args.overhead_mib * MIB,
    )


class _Given(argparse.Action):
    """Stores a value, and that its flag was given: a flag beats a configuration file, a default does not."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option: str | None = None,
    ) -> None:
        setattr(namespace, self.dest, values)
        _note_given(namespace, self.dest)


class _GivenSwitch(argparse.BooleanOptionalAction):
    """Stores a yes or no, and that its flag was given."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option: str | None = None,
    ) -> None:
        super().__call__(parser, namespace, values, option)
        _note_given(namespace, self.dest)


def _note_given(namespace: argparse.Namespace, dest: str) -> None:
    namespace.given = {*getattr(namespace, "given", ()), dest}


def given_flags(args: argparse.Namespace) -> dict[str, object]:
    """Return the flags that were given, by name with underscores."""
    return {name: getattr(args, name) for name in sorted(getattr(args, "given", ()))}


def flag(
    group: Any, name: str, parse: Callable[[str], object], default: object, metavar: str, text: str
) -> None:
    """Add a flag with a value; its COTENANT_ variable, if set, is the default."""
    given = os.environ.get(variable(name))
    shown = f" (default: {default})" if isinstance(default, (int, str)) and default != "" else ""
    group.add_argument(
        name,
        action=_Given,
        type=parse,
        default=default if given is None else given,
        metavar=metavar,
        help=text + shown,
    )


def member(group: Any, name: str, kind: type[StrEnum], default: StrEnum | None, text: str) -> None:
    """Add a flag whose value is one of an enumeration's."""

    def parse(word: str) -> StrEnum:
        try:
            return kind(word)
        except ValueError:
            raise BadRecipe(f"{name} {word!r} is not known", hint=f"One of {', '.join(kind)}.") from None

    flag(group, name, parse, default, "|".join(kind) if len(kind) < 5 else "TYPE", text)


def switch(group: Any, name: str, default: bool | None, text: str) -> None:
    """Add a flag and its `--no-` twin."""
    given = os.environ.get(variable(name))
    if given is not None:
        words = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False}
        if given.lower() not in {*words, "off"}:
            raise BadRecipe(f"{variable(name)}={given!r} is neither yes nor no", hint="Use 1 or 0.")
        default = words.get(given.lower(), False)
    shown = "" if default is None else f" (default: {'on' if default else 'off'})"
    group.add_argument(name, action=_GivenSwitch, default=default, help=text + shown)


def variable(name: str) -> str:
    """Return the environment variable of a flag: `--n-ctx` is COTENANT_N_CTX."""
    return "COTENANT_" + name.removeprefix("--").replace("-", "_").upper()


def whole(name: str, least: int, most: int = 1 << 31) -> Callable[[str], int]:
    """Return a parser of whole numbers that names the flag when it refuses."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if not least <= value <= most:
            raise BadRecipe(
                f"{name} {text!r} is not a whole number from {least:,} to {most:,}",
                hint=f"{variable(name)} sets it too." if variable(name) in os.environ else "See --help.",
            )
        return value

    return parse


def file_path(text: str) -> Path:
    """Read a path, `~` expanded."""
    return Path(text).expanduser()


def _layers(text: str) -> int | str:
    if text in (ALL_LAYERS, "-1"):
        return ALL_LAYERS
    if text == MOST_LAYERS:
        return MOST_LAYERS
    if text.isdecimal():
        return int(text)
    raise BadRecipe(
        f"--n-gpu-layers {text!r} is not known", hint="A number, auto for the most that fit, or -1 for all."
    )


def _split(text: str) -> tuple[float, ...]:
    return parse_split(text)
