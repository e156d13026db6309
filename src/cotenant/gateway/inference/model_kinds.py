"""Checks that a model supports a path: an embedding model cannot chat, a chat model cannot rank."""

from collections.abc import Collection

from cotenant.domain.engine_kinds import ModelFormat
from cotenant.domain.errors import WrongKind
from cotenant.domain.models import ModelKind
from cotenant.domain.requests import ServedModel
from cotenant.gateway.http.model_list import find_model
from cotenant.gateway.inference.dialects import CHAT, EMBEDDINGS, IMAGES, SPEECH, TRANSCRIPTIONS, Target
from cotenant.interfaces import Router

_PURPOSES = {
    ModelKind.TEXT: ("text", CHAT),
    ModelKind.EMBEDDING: ("embeddings", EMBEDDINGS),
    ModelKind.RERANK: ("ranking documents", None),
    ModelKind.SPEECH: ("speech", SPEECH),
    ModelKind.TRANSCRIPTION: ("transcription", TRANSCRIPTIONS),
    ModelKind.IMAGE: ("images", IMAGES),
}
_LACKING = {
    "image": ("images", "Put its vision projector (mmproj) next to its file."),
    "audio": ("audio", "Put a projector (mmproj) that encodes sounds next to its file."),
    "video": ("video", "Put its vision projector (mmproj) next to its file."),
    "file": ("files", "Send their text, or their pages as images."),
}
_STATED = frozenset({ModelKind.SPEECH, ModelKind.TRANSCRIPTION, ModelKind.IMAGE})
"""What only the operator can say of a model."""


class ModelKinds:
    """The kinds of models by name, where their files or their entries say it.

    The cache is used only to accept requests: before one is refused, its model is looked up again, since its
    file may have changed.
    """

    def __init__(self, router: Router) -> None:
        self._router = router
        self._known: dict[str, frozenset[ModelKind]] = {}

    def check(self, name: str, target: Target, media: Collection[str]) -> None:
        """Check that a model supports a request that has `media`, before it is loaded. Raises WrongKind."""
        if media:
            _check_media_support(find_model(name, self._router), media)
        known = self._known.get(name)
        if known is not None and not known.isdisjoint(target.kinds):
            return
        model = find_model(name, self._router)
        kind = model.kind
        hears = [ModelKind.TRANSCRIPTION] if model.hearing else []
        self._known[name] = frozenset([kind, *hears] if is_read(model) or kind in _STATED else ModelKind)
        if self._known[name] & target.kinds:
            return
        purpose, path = _PURPOSES.get(kind, (kind.value, None))
        raise WrongKind(
            f"{name} is a model for {purpose}, which does not support {target.path.decode()}",
            hint=f"Use {path.path.decode() if path else '/v1/rerank'}, or another model.",
        )


def _check_media_support(model: ServedModel, media: Collection[str]) -> None:
    """Check that a model takes what a request has besides text. Raises WrongKind."""
    if not is_read(model):
        return
    takes = {"image": model.vision, "video": model.vision, "audio": model.hearing}
    for each in media:
        if not takes.get(each):
            what, hint = _LACKING[each]
            raise WrongKind(f"{model.name} does not support {what}", hint=hint)


def is_read(model: ServedModel) -> bool:
    """Whether a model's file says what it supports: only a GGUF does; other engines check it themselves."""
    return model.file is not None and (
        model.recipe is None or model.recipe.engine.traits.reads is ModelFormat.GGUF
    )
