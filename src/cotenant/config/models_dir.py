"""The models in a folder: every GGUF file in it and in the folders below it, a few levels down."""

import errno
import os
import re
from collections.abc import Iterator, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Final

from cotenant.config.configuration import Problem
from cotenant.config.model_file_cache import Library, ModelFile
from cotenant.domain.errors import ModelFileError
from cotenant.model_files import find_projectors
from cotenant.model_parts import SUFFIX, first_part, stem

_PRECISIONS: Final = ("f16", "bf16", "q8_0", "f32")
"""In order of preference: what llama.cpp's converter writes comes first."""
_FILLER_WORDS: Final = frozenset(["mmproj", "model", "", *_PRECISIONS])
DEPTH: Final = 4
"""Levels of folders below the folder: LM Studio uses two, the snapshots in the hub's cache three."""
_MOST_FOLDERS: Final = 2000
_MOST_DEEPER: Final = 100
_WORD_BREAK: Final = re.compile(r"[-. ]+")


@dataclass(frozen=True, slots=True)
class Found:
    """A model in the folder, with its projector."""

    model: ModelFile
    projector: ModelFile | None = None


@dataclass(frozen=True, slots=True)
class Catalogue:
    """The models in a folder, the top level first, then by path; and why other files are not served."""

    found: tuple[Found, ...] = ()
    problems: tuple[Problem, ...] = ()


def find_projector(model: Path, library: Library, unsettled: Set[Path] = frozenset()) -> ModelFile | None:
    """Return the projector in a model's own folder that `read_folder` gives it; None if there is none."""
    if find_projectors(model):
        with suppress(OSError):
            found = read_folder(model.parent, library, unsettled, depth=0).found
            return next((each.projector for each in found if each.model.path == model), None)
    return None


def read_folder(
    folder: Path, library: Library, unsettled: Set[Path] = frozenset(), *, depth: int = DEPTH
) -> Catalogue:
    """Read every model in a folder. `unsettled` are files still being written: new ones wait.

    Folders up to `depth` levels below it are read, too. An unusable file is a Problem, never an error. Raises
    OSError if the folder itself cannot be read, or if another folder without models is where it, or one below
    it, was: so it is where a disk is not mounted any more.
    """
    problems: list[Problem] = []
    paths = dict.fromkeys(Path(path) for path in gguf_files(str(folder), problems, depth))
    if depth:
        holding = {above for path in paths for above in path.parents if above.is_relative_to(folder)}
        for known, identity in library.folders.items():
            gone = known.is_relative_to(folder) and known not in holding and known.is_dir()
            if gone and not os.path.samestat(known.stat(), identity):
                raise OSError(errno.ENODEV, f"an empty folder is where {known} was", str(known))
        library.folders = {each: each.stat() for each in holding}
    opened: list[ModelFile] = []
    # Revisions in the hub's cache link to one file, and links of folders may lead to it twice.
    seen: set[tuple[str, str]] = set()
    for path in paths:
        first, same = first_part(path), (path.name, os.path.realpath(path))
        if (first != path and first in paths) or same in seen:
            continue
        seen.add(same)
        try:
            opened.append(library.open(path, unsettled))
        except ModelFileError as error:
            problems.append(Problem(path, error.message.removeprefix(f"{path} ")))
    if not paths:
        problems.append(Problem(folder, f"no GGUF file is in it, nor up to {depth} folders below it"))
    found: list[Found] = []
    for _, group in groupby(opened, key=lambda file: file.path.parent):
        here = list(group)
        models = [file for file in here if not file.is_projector]
        projectors = [file for file in here if file.is_projector]
        paired = [Found(model, _projector_of(model, models, projectors)) for model in models]
        found += paired
        problems += _unpaired(paired, projectors)
    return Catalogue(tuple(found), tuple(problems))


def gguf_files(folder: str, problems: list[Problem] | None = None, deepest: int = DEPTH) -> Iterator[str]:
    """List the GGUF files in a folder, then level by level those below it, sorted, without hidden ones.

    `problems` gets why not all are listed: folders that cannot be read, and files one level deeper. Raises
    OSError if the folder itself cannot be read.
    """
    last = deepest if problems is None or not deepest else deepest + 1
    problems = [] if problems is None else problems
    level, visited = [folder], set[tuple[int, int]]()
    for depth in range(deepest + 1):
        below: list[str] = []
        for path in level:
            if len(visited) == _MOST_FOLDERS:
                what = f"it has over {_MOST_FOLDERS:,} folders: {path} and later ones are not looked at"
                problems.append(Problem(Path(folder), what))
                return
            try:
                status, names = os.stat(path), sorted(os.listdir(path))
            except OSError as error:
                if depth == 0:
                    raise
                problems.append(Problem(Path(path), f"cannot be read: {error.strerror}"))
                continue
            # A link may lead to a folder above it.
            if (status.st_dev, status.st_ino) in visited:
                continue
            visited.add((status.st_dev, status.st_ino))
            for name in names:
                if name.startswith("."):
                    continue
                if name.lower().endswith(SUFFIX):
                    yield f"{path}/{name}"
                elif depth < last and os.path.isdir(f"{path}/{name}"):
                    below.append(f"{path}/{name}")
        level = below
    # What is left is below the last level.
    for path in level[:_MOST_DEEPER]:
        with suppress(OSError):
            if any(name.lower().endswith(SUFFIX) for name in os.listdir(path)):
                what = f"it is more than {deepest} folders down: the models in it are not served"
                problems.append(Problem(Path(path), what))


def _unpaired(found: list[Found], projectors: list[ModelFile]) -> Iterator[Problem]:
    used = {_subject(each.projector) for each in found if each.projector}
    for projector in projectors:
        if _subject(projector) in used:
            continue
        if found and not _subject(projector):
            why = "its name does not say which model in its folder it belongs to"
        else:
            why = "no model in its folder has the name that it belongs to"
        yield Problem(projector.path, f"{why}; name it under `mmproj:` of a model")


def _projector_of(
    model: ModelFile, others: Sequence[ModelFile], projectors: Sequence[ModelFile]
) -> ModelFile | None:
    """Return the projector of `model` among those in its folder; `others` are all models there.

    llama.cpp's converter writes `mmproj-NAME-F16.gguf`: it belongs to the models whose names begin with NAME.
    One without a name (`mmproj-F16.gguf`) belongs to all models in the folder, if they all have the same
    architecture and size.
    """
    words = tuple(_words(model))
    named = [p for p in projectors if (about := _subject(p)) and words[: len(about)] == about]
    if named:
        longest = max(len(_subject(projector)) for projector in named)
        return _preferred([projector for projector in named if len(_subject(projector)) == longest])
    nameless = [projector for projector in projectors if not _subject(projector)]
    shapes = {(other.shape.architecture, other.shape.n_embd, other.shape.n_layers) for other in others}
    return _preferred(nameless) if nameless and len(shapes) == 1 else None


def _subject(projector: ModelFile) -> tuple[str, ...]:
    """Return the words of a projector's file name that name its model."""
    return tuple(word for word in _words(projector) if word not in _FILLER_WORDS)


def _words(file: ModelFile) -> list[str]:
    return _WORD_BREAK.split(stem(file.path).lower())


def _preferred(projectors: Sequence[ModelFile]) -> ModelFile:
    def rank(projector: ModelFile) -> tuple[int, str]:
        words = _words(projector)
        return next(
            (n for n, p in enumerate(_PRECISIONS) if p in words), len(_PRECISIONS)
        ), projector.path.name

    return min(projectors, key=rank)
