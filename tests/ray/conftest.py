"""Three machines with a Ray each, for all tests of this folder, and a model."""

import importlib.util
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.models.gguf_models import build_tiny_llama
from tests.support.nodes.ray_bed import RayBed, ray_bed


@pytest.fixture(scope="session")
def bed() -> Iterator[RayBed]:
    """Three machines; tests leave them as they found them."""
    if importlib.util.find_spec("ray") is None:
        pytest.skip("several machines cannot be tested here: Ray is not installed")
    # Not in pytest's folder: the paths of sockets must be short.
    with tempfile.TemporaryDirectory(prefix="ct") as folder, ray_bed(Path(folder)) as made:
        yield made


@pytest.fixture(scope="session")
def model(bed: RayBed) -> Path:
    """A tiny Llama, in a file that all machines have."""
    return build_tiny_llama(bed.folder / "tiny.gguf")
