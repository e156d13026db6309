"""Descriptions of the models served: in OpenAI's form, and in that of the operator's API."""

from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any, Final

from cotenant.analysis.calibration import Comparison, compare
from cotenant.domain.engine_kinds import PlanMethod
from cotenant.domain.engines import EngineReport
from cotenant.domain.errors import BadRequest, UnknownModel
from cotenant.domain.models import ModelKind
from cotenant.domain.placements import Placement
from cotenant.domain.requests import ServedModel
from cotenant.interfaces import Router
from cotenant.planning.describe import parts_as_json

LATEST: Final = ":latest"
"""The tag that Ollama's names have if they have no other."""
_REGISTRY: Final = ("registry.ollama.ai/", "library/")


_MODALITIES: Final = {
    ModelKind.TEXT: ("text", "text"),
    ModelKind.EMBEDDING: ("text", "embedding"),
    ModelKind.RERANK: ("text", "score"),
    ModelKind.SPEECH: ("text", "audio"),
    ModelKind.TRANSCRIPTION: ("audio", "text"),
    ModelKind.IMAGE: ("text", "image"),
}
"""What a model of each kind takes and gives; of other kinds only their engines know."""


def served_name(name: str, router: Router) -> str:
    """Return the name, alias or variant that a client means, as it is served.

    Clients list models in one dialect and ask in another, so names in Ollama's form mean the same everywhere:
    with its default tag and registry, in upper or lower case. Raises UnknownModel, or BadRequest for a name
    that means several but for upper and lower case.
    """
    try:
        router.resolve(name)
    except UnknownModel:
        bare = name
        for part in _REGISTRY:
            bare = bare.removeprefix(part)
        for wanted in (bare, bare.removesuffix(LATEST)):
            with suppress(UnknownModel):
                router.resolve(wanted)
                return wanted
        plain = bare.lower().removesuffix(LATEST)
        found = {
            meant: each
            for model in router.models()
            for each, meant in _names(model)
            if each.lower().removesuffix(LATEST) == plain
        }
        if len(found) > 1:
            either = " or ".join(sorted(found.values()))
            hint = "Write one of them as it is."
            raise BadRequest(f"{name[:200]!r} may mean {either}", hint=hint) from None
        for each in found.values():
            return each
        raise
    return name


def _names(model: ServedModel) -> Iterator[tuple[str, str]]:
    """Yield each name of a model, with what it means: the model, or one of its variants."""
    yield from ((each, model.name) for each in (*model.aliases, model.name))
    yield from ((each, each) for each in model.variants)


def resolve(name: str, router: Router) -> str:
    """Return the own name of the model that a client's name means. Raises UnknownModel or BadRequest."""
    return router.resolve(served_name(name, router))


def resolve_copy(name: str, router: Router) -> str:
    """Return the own name of a model, or of one of its copies, `m#2` with any name of the model as `m`."""
    model, mark, number = name.partition("#")
    return f"{resolve(model, router)}{mark}{number}"


def find_model(name: str, router: Router) -> ServedModel:
    """Return the model with this name or alias, or with this variant. Raises UnknownModel."""
    own = resolve(name, router)
    return next(model for model in router.models() if model.name == own)


def with_variants(models: Iterable[ServedModel]) -> Iterator[tuple[str, ServedModel]]:
    """Yield the names under which models are listed, their variants' too, each with its model."""
    for model in models:
        yield from ((name, model) for name in (model.name, *model.variants))


def openai_model(name: str, model: ServedModel) -> dict[str, Any]:
    """Describe a model, or its variant of this name, in OpenAI's form; `meta` is our addition."""
    return {
        "id": name,
        "object": "model",
        "created": model.created_at,
        "owned_by": "cotenant",
        "meta": {
            "kind": model.kind,
            "state": model.state,
            "aliases": model.aliases if name == model.name else (),
            "variant_of": None if name == model.name else model.name,
            "modalities": _modalities(model),
            "tools": _takes_tools(model),
            "context_length": _context_length(model),
            "size_bytes": model.file.bytes if model.file else None,
        },
    }


def _modalities(model: ServedModel) -> dict[str, list[str]] | None:
    taken, given = _MODALITIES.get(model.kind, (None, None))
    if taken is None or given is None:
        return None
    more = [*(["image"] if model.vision else []), *(["audio"] if model.hearing else [])]
    return {"input": [taken, *more], "output": [given]}


def _takes_tools(model: ServedModel) -> bool | None:
    """Whether a model can be given tools: one that is made for chats; None if its file does not say."""
    if model.kind is not ModelKind.TEXT:
        return None if model.kind is ModelKind.ANY else False
    return model.file.chat_template if model.file else None


def _context_length(model: ServedModel) -> int | None:
    """Return the tokens that one request may have; None if the engine, and not the recipe, decides."""
    recipe = model.recipe
    if recipe is None or not recipe.engine.traits.follows_recipe:
        return None
    by_slot = recipe.engine.traits.planning is PlanMethod.PER_LAYER and not recipe.kv_unified
    return recipe.n_ctx // recipe.parallel if by_slot else recipe.n_ctx


def admin_model(model: ServedModel) -> dict[str, Any]:
    """Describe a model, its placement and its sizes in bytes; unknown values are None."""
    build = model.build
    return {
        "name": model.name,
        "aliases": model.aliases,
        "kind": model.kind,
        "state": model.state,
        "created_at": model.created_at,
        "engine": build
        and {"kind": build.kind, "form": build.form, "version": build.version, "program": build.program},
        "log_path": model.log_path,
        "log_node": model.log_node,
        "placement": model.placement and _placement(model.placement, model.report),
        "recipe": model.recipe,
        "file": model.file,
        "vision": model.vision,
        "hearing": model.hearing,
        "companions": model.companions,
        "rules": model.rules,
        "variants": model.variants,
    }


def _placement(placement: Placement, report: EngineReport | None) -> dict[str, Any]:
    *cards, host = compare(placement, report)
    return {
        "n_layers": placement.n_layers,
        "n_gpu_layers": placement.n_gpu_layers,
        "n_cpu_moe": placement.recipe.n_cpu_moe,
        "n_ctx": placement.recipe.n_ctx,
        "parallel": placement.recipe.parallel,
        "tensor_split": placement.tensor_split,
        "devices": [
            {
                "index": row.share.device.index,
                "name": row.share.device.own_name,
                "uuid": row.share.device.id,
                "layers": None if row.share.first is None else [row.share.first, row.share.last],
                **_compared(row),
            }
            for row in cards
            if row.share
        ],
        "host": _compared(host),
        "estimated": placement.estimated,
        "warnings": placement.warnings,
    }


def _compared(row: Comparison) -> dict[str, Any]:
    """Compare planned and reported bytes. An engine does not report the driver's overhead."""
    return {
        "planned": {**parts_as_json(row.planned), "total": row.planned.total},
        "reported": row.reported
        and {**parts_as_json(row.reported), "overhead": None, "total": row.reported.total},
        "difference_bytes": row.error_bytes,
    }
