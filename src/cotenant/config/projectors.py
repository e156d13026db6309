"""Which vision projector goes with which model of a folder."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from cotenant.config.model_file_cache import ModelFile, stem

_PRECISIONS: Final = ("f16", "bf16", "q8_0", "f32")
"""In the order in which one is chosen of several: what llama.cpp's converter writes comes first."""
_SAYS_NOTHING: Final = frozenset(["mmproj", "model", "", *_PRECISIONS])
_WORD_BREAK: Final = re.compile(r"[-. ]+")


def pair(model: ModelFile, beside: Sequence[ModelFile], projectors: Sequence[ModelFile]) -> ModelFile | None:
    """Return the projector of `model` among those of its folder; `beside` are all models there.

    llama.cpp's converter writes `mmproj-NAME-F16.gguf`: it belongs to the models whose names begin with NAME.
    One that names no model (`mmproj-F16.gguf`) belongs to all of the folder, if they are of one making.
    """
    words = tuple(_words(model))
    named = [p for p in projectors if (about := subject(p)) and words[: len(about)] == about]
    if named:
        longest = max(len(subject(projector)) for projector in named)
        return _preferred([projector for projector in named if len(subject(projector)) == longest])
    nameless = [projector for projector in projectors if not subject(projector)]
    makings = {(other.shape.architecture, other.shape.n_embd, other.shape.n_layers) for other in beside}
    return _preferred(nameless) if nameless and len(makings) == 1 else None


def subject(projector: ModelFile) -> tuple[str, ...]:
    """Return the words of a projector's name that say which model it is for."""
    return tuple(word for word in _words(projector) if word not in _SAYS_NOTHING)


def _words(file: ModelFile) -> list[str]:
    return _WORD_BREAK.split(stem(file.path).lower())


def _preferred(projectors: Sequence[ModelFile]) -> ModelFile:
    def rank(projector: ModelFile) -> tuple[int, str]:
        words = _words(projector)
        return next(
            (n for n, p in enumerate(_PRECISIONS) if p in words), len(_PRECISIONS)
        ), projector.path.name

    return min(projectors, key=rank)
