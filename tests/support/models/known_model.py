"""A trained model with a known answer, and a llama-server, where this machine has them."""

import os
import shutil
from pathlib import Path

import pytest

KNOWN_PROMPT = "Once upon a time"
KNOWN_TEXT = ", there was a little girl named Lily. She loved to play outside in the park."


def known_model() -> Path:
    """Return stories260K.gguf from COTENANT_TEST_MODELS or beside the checkout; skip without it."""
    beside = Path(__file__).resolve().parents[4] / "shared" / "models"
    for folder in (Path(os.environ.get("COTENANT_TEST_MODELS", beside)), beside):
        if (folder / "stories260K.gguf").is_file():
            return folder / "stories260K.gguf"
    pytest.skip("stories260K.gguf is not here: set COTENANT_TEST_MODELS to its folder")


def real_server() -> Path:
    """Return a llama-server from COTENANT_TEST_LLAMA_SERVER or PATH; skip without one."""
    found = shutil.which(os.environ.get("COTENANT_TEST_LLAMA_SERVER") or "llama-server")
    if found is None:
        pytest.skip("no llama-server: set COTENANT_TEST_LLAMA_SERVER to one")
    return Path(found)
