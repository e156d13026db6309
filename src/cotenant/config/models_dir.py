"""The models of a folder: every GGUF in it and in its folders, one level down."""

from __future__ import annotations

import os
from collections.abc import Iterator, Set
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from cotenant.config.configuration import Problem
from cotenant.config.model_file_cache import Library, ModelFile, first_part, part_paths
from cotenant.config.projectors import pair, subject
from cotenant.domain.errors import ModelFileError


@dataclass(frozen=True, slots=True)
class Found:
    """A model of the folder, with the projector that goes with it."""

    model: ModelFile
    projector: ModelFile | None = None


@dataclass(frozen=True, slots=True)
class Catalogue:
    """What a folder holds, the top level first, then by path; and what of it cannot be served, and why."""

    found: tuple[Found, ...] = ()
    problems: tuple[Problem, ...] = ()


def read_folder(folder: Path, library: Library, unsettled: Set[Path] = frozenset()) -> Catalogue:
    """Read every model of a folder. `unsettled` are files still being written: they are left for later.

    A file that is no use is a Problem, never an error. Raises OSError if the folder itself cannot be read.
    """
    paths = dict.fromkeys(Path(path) for path in gguf_files(str(folder)))
    opened: list[ModelFile] = []
    problems: list[Problem] = []
    for path in paths:
        first = first_part(path)
        if first != path and first in paths:
            continue
        if any(part in unsettled or _downloading(part) for part in part_paths(path)):
            problems.append(Problem(path, "it is still being written"))
            continue
        try:
            opened.append(library.open(path))
        except ModelFileError as error:
            problems.append(Problem(path, error.message.removeprefix(f"{path} ")))
    found: list[Found] = []
    for _, group in groupby(opened, key=lambda file: file.path.parent):
        here = list(group)
        models = [file for file in here if not file.is_projector]
        projectors = [file for file in here if file.is_projector]
        paired = [Found(model, pair(model, models, projectors)) for model in models]
        found += paired
        problems += _unpaired(paired, projectors)
    return Catalogue(tuple(found), tuple(problems))


def gguf_files(folder: str) -> Iterator[str]:
    """List the GGUF files of a folder, then of its folders, each in order of names; hidden ones left out.

    Raises OSError if the folder itself cannot be read; a folder in it that cannot be is left out.
    """
    below: list[str] = []
    for name in sorted(os.listdir(folder)):
        if name.startswith("."):
            continue
        path = f"{folder}/{name}"
        if name.endswith(".gguf"):
            yield path
        elif os.path.isdir(path):
            below.append(path)
    for inner in below:
        with suppress(OSError):
            names = sorted(os.listdir(inner))
            yield from (f"{inner}/{name}" for name in names if name.endswith(".gguf") and name[0] != ".")


def _downloading(path: Path) -> bool:
    """Whether aria2 has not done with a file, which it gives its full length at once."""
    return os.path.lexists(f"{path}.aria2")


def _unpaired(found: list[Found], projectors: list[ModelFile]) -> Iterator[Problem]:
    used = {subject(each.projector) for each in found if each.projector}
    for projector in projectors:
        if subject(projector) in used:
            continue
        if found and not subject(projector):
            why = "its name does not say which of the models beside it it is for"
        else:
            why = "no model beside it has the name that it is for"
        yield Problem(projector.path, f"{why}; name it under `mmproj:` of a model")
