"""The sparse models as read, each written and read once."""

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from cotenant.analysis.gguf import GgufHeader
from cotenant.domain.models import ModelShape
from cotenant.model_files import load_model, open_header
from tests.support.models.gguf_models import REAL_SHAPES


@cache
def real(name: str) -> tuple[GgufHeader, ModelShape]:
    with TemporaryDirectory() as folder:
        path = REAL_SHAPES[name](Path(folder) / f"{name}.gguf")
        return open_header(path), load_model(path)


def real_shape(name: str) -> ModelShape:
    return real(name)[1]
