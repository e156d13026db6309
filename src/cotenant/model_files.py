"""Model files on disk: open them, find the parts of one model, and read their headers."""

import contextlib
import os
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self, TypeVar

from cotenant.analysis.gguf import GgufHeader, read_gguf
from cotenant.analysis.safetensors import (
    CONFIG_LIMIT,
    HEADER_LIMIT,
    JsonObject,
    parse_json_object,
    read_safetensors,
    safetensors_shape,
    shard_names,
)
from cotenant.analysis.shape import model_shape
from cotenant.analysis.split_files import join_parts, part_names
from cotenant.domain.errors import CorruptModelFile, ModelFileMissing, NotAModelFile, SplitPartMissing
from cotenant.domain.models import ModelShape
from cotenant.domain.units import format_count

_Header = TypeVar("_Header")
_INDEX = "model.safetensors.index.json"


class FileSource:
    """A file as a ByteSource; a context manager. Opening raises ModelFileMissing."""

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        try:
            # O_NONBLOCK: do not wait for a writer if it is a pipe.
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise _missing(path, error) from None
        status = os.fstat(self._fd)
        self.size = status.st_size
        if not stat.S_ISREG(status.st_mode):
            os.close(self._fd)
            what = "a directory" if stat.S_ISDIR(status.st_mode) else "not a regular file"
            raise ModelFileMissing(f"{path} is {what}", hint="Give the model file itself.")

    def read_at(self, offset: int, n: int) -> bytes:
        """Return `n` bytes from `offset`, fewer at the end. Raises ModelFileMissing if reading fails."""
        try:
            return os.pread(self._fd, n, offset)
        except OSError as error:
            raise _missing(Path(self.name), error) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)


def load_model(path: Path) -> ModelShape:
    """Read what a GGUF file (the first part, if split) or a Hugging Face folder holds; headers only.

    Raises the subclasses of ModelFileError, each naming the file.
    """
    return _folder_shape(path) if path.is_dir() else model_shape(open_header(path))


def open_header(path: Path) -> GgufHeader:
    """Read the joined header of a GGUF file and its other parts in the same folder. Raises ModelFileError."""
    first = _header(path, read_gguf)
    others = [path.with_name(name) for name in part_names(path.name, first)[1:]]
    _check_there(others, f"{path.name} is the first of {len(others) + 1} parts")
    return join_parts([first, *(_header(part, read_gguf) for part in others)])


def find_projectors(path: Path) -> tuple[Path, ...]:
    """List the multimodal projectors in a model's folder, by the names of llama.cpp's converter."""
    with contextlib.suppress(OSError):
        return tuple(
            other
            for other in sorted(path.parent.iterdir())
            if other.suffix.lower() == ".gguf" and "mmproj" in other.name.lower() and other.name != path.name
        )
    return ()


def _header(path: Path, read: Callable[[FileSource], _Header]) -> _Header:
    with FileSource(path) as source:
        return read(source)


def _folder_shape(folder: Path) -> ModelShape:
    config = _read_json_if_there(folder / "config.json")
    shards = _shards(folder)
    if config is None or not shards:
        ggufs = sorted(path.name for path in folder.glob("*.gguf"))
        raise NotAModelFile(
            f"{folder} is a directory without {'safetensors files' if config else 'config.json'}",
            hint=f"Give one of its GGUF files: {', '.join(ggufs[:5])}."
            if ggufs
            else "Give a GGUF file or a Hugging Face folder.",
        )
    headers = [_header(shard, read_safetensors) for shard in shards]
    sentence = _read_json_if_there(folder / "sentence_bert_config.json")
    return safetensors_shape(config, headers, str(folder), sentence=sentence)


def _shards(folder: Path) -> Sequence[Path]:
    index = folder / _INDEX
    if not index.exists():
        return sorted(folder.glob("*.safetensors"))
    shards = [folder / name for name in shard_names(_read_json(index, HEADER_LIMIT), str(index))]
    _check_there(shards, f"{_INDEX} names {format_count(len(shards), 'file')}")
    return shards


def _check_there(parts: Sequence[Path], why: str) -> None:
    for part in parts:
        if not part.exists():
            raise SplitPartMissing(f"{part.name} is missing: {why}", hint=f"Put it in {part.parent}.")


def _read_json(path: Path, limit: int) -> JsonObject:
    with FileSource(path) as source:
        if source.size > limit:
            raise CorruptModelFile(f"{path} is too large: {source.size} bytes", hint="Fetch the file again.")
        return parse_json_object(source.read_at(0, source.size), str(path))


def _read_json_if_there(path: Path) -> JsonObject | None:
    return _read_json(path, CONFIG_LIMIT) if path.exists() else None


def _missing(path: Path, error: OSError) -> ModelFileMissing:
    if isinstance(error, FileNotFoundError):
        return ModelFileMissing(f"{path} does not exist", hint="Check the path.")
    if isinstance(error, PermissionError):
        return ModelFileMissing(f"{path} may not be read by this user", hint="Change its permissions.")
    return ModelFileMissing(f"{path} cannot be read: {error.strerror}", hint="Check the path and the disk.")
