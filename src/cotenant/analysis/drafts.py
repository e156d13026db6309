"""Whether one model can guess tokens for another."""

from typing import Final

from cotenant.domain.models import ModelKind, ModelShape

_MOST_TOKENS_APART: Final = 128
"""`SPEC_VOCAB_MAX_SIZE_DIFFERENCE` of llama.cpp's `common/speculative.cpp`."""


def draft_problem(shape: ModelShape, draft: ModelShape) -> str | None:
    """Return why llama.cpp would load a draft and not use it, as far as headers say; None if it would."""
    if draft.kind is not ModelKind.TEXT or shape.kind is not ModelKind.TEXT:
        return "cannot be a draft: both models have to generate text"
    if abs(shape.n_vocab - draft.n_vocab) > _MOST_TOKENS_APART:
        counts = f"{draft.n_vocab:,} tokens, that of the model {shape.n_vocab:,}"
        return f"cannot be a draft: its vocabulary has {counts}"
    return None
