from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from cotenant.config.configuration import Configuration
from cotenant.config.settings import read_configuration
from tests.support.models.gguf_models import build_tiny_llama

Reader = Callable[..., Configuration]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_llama(tmp_path_factory.mktemp("tiny") / "tiny.gguf")


@pytest.fixture
def folder(tmp_path: Path, tiny: Path) -> Path:
    """A folder with `models/tiny.gguf` in it, and room for a configuration."""
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "tiny.gguf").hardlink_to(tiny)
    return tmp_path


@pytest.fixture
def read(folder: Path) -> Reader:
    def read(
        text: str, environment: Mapping[str, str] | None = None, flags: Mapping[str, object] | None = None
    ) -> Configuration:
        path = folder / "cotenant.yaml"
        path.write_text(text)
        return read_configuration(path, environment=environment or {}, flags=flags)

    return read
