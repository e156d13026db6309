"""A model for all daemons of these tests."""

from pathlib import Path

import pytest

from tests.support.models.gguf_models import build_tiny_llama


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama, in a file that tests leave as it is."""
    return build_tiny_llama(tmp_path_factory.mktemp("model") / "tiny.gguf")
