"""A cache of parsed model files: only files that changed are read again."""

import os
import stat
from collections.abc import Set
from dataclasses import dataclass
from pathlib import Path

from cotenant.config.configuration import FileSignature
from cotenant.domain.errors import ModelFileError, ModelFileMissing, UnsupportedModelFile
from cotenant.domain.models import ModelKind, ModelShape
from cotenant.model_files import load_model
from cotenant.model_parts import part_paths


@dataclass(frozen=True, slots=True)
class ModelFile:
    """A model file: `path` is its first part, `parts` are all parts, `shape` is their content."""

    path: Path
    parts: tuple[Path, ...]
    signature: tuple[FileSignature, ...]
    shape: ModelShape

    @property
    def is_projector(self) -> bool:
        """Whether it is a vision projector instead of a model."""
        return self.shape.kind is ModelKind.PROJECTOR


class Library:
    """Reads model files, each once until it changes. Not thread-safe.

    `folders` are those that held models at the last reading, as they were then.
    """

    def __init__(self) -> None:
        self.folders: dict[Path, os.stat_result] = {}
        self._read: dict[Path, tuple[tuple[FileSignature | None, ...], ModelFile | ModelFileError]] = {}

    def open(self, path: Path, unsettled: Set[Path] = frozenset(), *, is_folder: bool = False) -> ModelFile:
        """Return a GGUF file with the parts that its name implies. Raises ModelFileError.

        `is_folder`: a Hugging Face folder, whose parts are its weights. `unsettled` are files that are being
        written: one that is known stays what it was, so that what is served of it goes on.
        """
        parts = part_paths(path)
        if is_folder:
            parts = (path / "config.json", *sorted(path.glob("*.safetensors")))
        known = self._read.get(path)
        # While aria2 downloads a file, it has its full length from the beginning.
        if any(part in unsettled or os.path.lexists(f"{part}.aria2") for part in parts):
            if known is not None and isinstance(known[1], ModelFile):
                return known[1]
            raise ModelFileMissing(f"{path} is still being written", hint="Wait for it to be complete.")
        seen = tuple(map(signature, parts))
        if known is None or known[0] != seen:
            known = self._read[path] = (seen, _load(path, parts, seen, is_folder=is_folder))
        if isinstance(known[1], ModelFileError):
            raise known[1]
        return known[1]


def _load(
    path: Path, parts: tuple[Path, ...], seen: tuple[FileSignature | None, ...], *, is_folder: bool
) -> ModelFile | ModelFileError:
    try:
        if path.is_dir() and not is_folder:
            hint = "Give a GGUF file. A Hugging Face folder needs `engine: vllm`."
            raise UnsupportedModelFile(f"{path} is a directory", hint=hint)
        if is_folder and path.is_file():
            raise UnsupportedModelFile(
                f"{path} is a file",
                hint="vLLM needs a Hugging Face folder; for a GGUF file, leave out `engine:`.",
            )
        shape = load_model(path)
    except ModelFileError as error:
        return error.with_traceback(None)
    except OSError as error:
        return ModelFileMissing(f"{path} cannot be read: {error.strerror}", hint="Check the path.")
    found = tuple(each for each in seen if each is not None)
    if len(found) < len(seen):
        return ModelFileMissing(f"{path} is still being written", hint="Try again.")
    return ModelFile(path, parts, found, shape)


def signature(path: Path | str) -> FileSignature | None:
    """Return the signature of a regular file (of its target for a link); None if it is not accessible."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    if not stat.S_ISREG(status.st_mode):
        return None
    return FileSignature(status.st_ino, status.st_size, status.st_mtime_ns)
