"""The engine options of a model's entry, checked against the traits of its engine kind."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from cotenant.config.issues import KeyPath
from cotenant.config.schema import CheckedSettings, Model
from cotenant.domain.engine_arguments import refused_argument
from cotenant.domain.engine_kinds import EngineKind, EngineTraits, PlanMethod, keys_of_some_kinds
from cotenant.domain.engines import Endpoint, EngineOptions
from cotenant.domain.launching import LaunchOptions
from cotenant.domain.models import ALL_LAYERS, ModelKind, ModelShape, Recipe, SplitMode
from cotenant.domain.residencies import ONE_COPY
from cotenant.domain.settings import settings_of
from cotenant.domain.vendors import VENDOR_TRAITS

UNREAD_PERCENT: Final = 130
"""Assumed memory of a model whose file is not read, in percent of its file size, until it is measured."""
_RECIPE_KEYS: Final = frozenset(
    name
    for each in settings_of(Recipe)
    if not each.every_engine
    for name in (each.key, each.flag or each.key)
)
"""Recipe keys, in both spellings, that not every engine kind supports."""
_SHOWS_GPUS: Final = frozenset(
    name for each in VENDOR_TRAITS.values() for some in each.allotments for name in some.variables
) | {"NVIDIA_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL"}
"""Those of drivers, of NVIDIA's container runtime, and HIP's older one."""


_OF_OTHERS: Final = {
    (EngineKind.LLAMA_CPP, "command"): "Give its program as `llama_server:` and more arguments as `args:`; "
    "any other server is `engine: command`."
}


def entry_problems(model: Model, recipe: Recipe) -> list[tuple[KeyPath, str, str]]:
    """Return the keys that the entry's engine does not support, and those that are missing.

    Each is the key in the entry, what is wrong, and a hint.
    """
    kind, traits = recipe.engine, recipe.engine.traits
    recipe_keys = frozenset() if traits.whole_recipe else _RECIPE_KEYS
    found: list[tuple[KeyPath, str, str]] = [
        ((key,), f"{kind} takes no {key}", _OF_OTHERS.get((kind, key), "Leave it out."))
        for key in sorted((keys_of_some_kinds() - _RECIPE_KEYS | recipe_keys) - traits.keys)
        if model.value_of(key) is not None
    ]
    if traits.needs is not None and model.value_of(traits.needs) is None:
        found.append(((), f"it has no {traits.needs}, which {kind} needs", f"Add `{traits.needs}:`."))
    elif model.path is None and not (model.name or model.model):
        found.append(((), "it has no name", "Add `name:`."))
    copies = model.copies or ONE_COPY
    if copies.most > 1 and (traits.daemon_address or traits.planning is PlanMethod.NONE):
        what = f"{kind} models have one copy: another server decides where they run"
        found.append((("copies",), what, "Leave it out."))
    cache = {recipe.cache_type_k, recipe.cache_type_v}
    if traits.cache_types and (len(cache) > 1 or not cache <= set(traits.cache_types)):
        what = f"{kind} keeps no KV cache in {recipe.cache_type_k} and {recipe.cache_type_v}"
        hint = f"Give both as {', or both as '.join(traits.cache_types)}."
        found.append((("cache_type_k",), what, hint))
    if (refused := refused_argument(kind, model.args or (), model.env or {})) is not None:
        key = "env" if refused.is_variable else "args"
        found.append(((key,), f"{refused.word} {refused.why}", refused.hint))
    image, launcher = model.image, model.launcher
    runs_images = launcher is not None and launcher.traits.runs_images
    if image is None and runs_images:
        found.append((("launcher",), f"{launcher} needs an image", "Add `image:`."))
    elif image is not None and launcher is not None and not runs_images:
        found.append((("image",), f"launcher {launcher} runs no image", "Leave one of them out."))
    elif image is not None and (image.startswith("-") or image.split() != [image]):
        found.append((("image",), f"{image!r} cannot be an image", "Give its name, or a .sif file."))
    for variable in sorted(_SHOWS_GPUS & {*(model.env or {})}):
        what = "it would show the engine other GPUs than those that are planned: `gpus:` says which"
        found.append(
            (("env", variable), what, f"Write `gpus: [{(model.env or {})[variable]}]` in place of it.")
        )
    found += _across_problems(model, recipe)
    if model.address is not None and ((parts := urlsplit(model.address)).username or parts.fragment):
        hint = "Leave it out; a key is given by `api_key:` or `api_key_env:`."
        found.append((("address",), "it has a user, or a part after #, that no request would have", hint))
    if model.api_key is not None and model.api_key_env is not None:
        found.append((("api_key_env",), "it has both api_key and api_key_env", "Keep one."))
    return found


def _across_problems(model: Model, recipe: Recipe) -> Iterator[tuple[KeyPath, str, str]]:
    """Yield what a model cannot have that may be over several machines."""
    if not model.across_nodes:
        return
    may = recipe.engine is EngineKind.LLAMA_CPP
    layers = recipe.n_gpu_layers == ALL_LAYERS and recipe.n_cpu_moe == 0
    by_hand = recipe.tensor_split or not recipe.smart_split or recipe.split_mode is not SplitMode.LAYER
    for wrong, what in (
        (not may, f"{recipe.engine} models are on one machine: only llama.cpp models can be over several"),
        (may and model.image is not None, "an engine in a container cannot be over several machines"),
        (may and not layers, "only a model with all layers on GPUs can be over several machines"),
        (may and by_hand, "how layers are split over machines is computed: none can be given by hand"),
        (may and (model.copies or ONE_COPY).most > 1, "a model over several machines has one copy"),
    ):
        if wrong:
            yield (("across_nodes",), what, "Leave out `across_nodes`, or what contradicts it.")


def launch_of(model: Model, checked: CheckedSettings) -> LaunchOptions:
    """Return how an entry's engine is started; an image file is relative to the configuration."""
    options = LaunchOptions(model.launcher, model.image)
    if model.image is not None and options.by_image_file is not None:
        return replace(options, image=str(checked.absolute(os.path.expanduser(model.image))))
    return options


def options_of(
    model: Model, traits: EngineTraits, daemon: str | None, environment: Mapping[str, str]
) -> EngineOptions:
    """Return the options of an entry that has no `entry_problems`.

    `daemon` is the address for entries without an `address`, None for the default of the kind.
    """
    address = model.address or (traits.daemon_address and (daemon or traits.daemon_address))
    key = model.api_key or environment.get(model.api_key_env or "") or None
    return EngineOptions(
        command=tuple(model.command or traits.command),
        stop=tuple(model.stop or ()),
        health_path=model.health or traits.health_path,
        address=replace(endpoint(address), key=key) if address else None,
        model=model.model,
        sleep=model.sleep or 0,
    )


def endpoint(address: str) -> Endpoint:
    """Parse a URL."""
    return Endpoint.at(urlsplit(address))


def unread_shape(
    name: str, kind: ModelKind, file_bytes: int = 0, quantisation: str | None = None
) -> ModelShape:
    """Describe a model whose file is not read."""
    return ModelShape(
        name=name,
        architecture="unknown",
        kind=kind,
        file_bytes=file_bytes,
        tensor_bytes=0,
        parameters=0,
        quantisation=quantisation,
        layers=(),
        input_bytes=0,
        output_bytes=0,
        shared_bytes=0,
        tied=False,
        n_embd=0,
        n_vocab=0,
        n_ctx_train=None,
    )


def weights_bytes(path: Path) -> int:
    """Return the size in bytes of a file, or of the files in a folder; 0 if it cannot be read."""
    try:
        if path.is_dir():
            return sum(each.stat().st_size for each in path.iterdir() if each.is_file())
        return path.stat().st_size
    except OSError:
        return 0
