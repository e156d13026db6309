"""Deleting a model's files, and nothing else."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from cotenant.config.configuration import Configuration, ModelEntry
from cotenant.config.issues import nearest
from cotenant.domain.errors import ModelFileError, UsageError


@dataclass(frozen=True, slots=True)
class Removal:
    """The files to delete; `links` of them are links, whose targets stay. `frees_bytes` counts the others."""

    name: str
    files: tuple[Path, ...]
    links: tuple[Path, ...]
    frees_bytes: int

    def carry_out(self) -> None:
        """Delete the files, the first part last, so that an interrupted removal can be repeated.

        Raises ModelFileError.
        """
        for path in reversed(self.files):
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                raise ModelFileError(
                    f"{path} cannot be deleted: {error.strerror}",
                    hint="Change the permissions of its folder.",
                ) from None


def plan_removal(configuration: Configuration, name: str) -> Removal:
    """Return what deleting a model would delete: all its parts, and a projector that is its alone.

    Raises UsageError for a name that is not served, an entry of its own, or a file outside of `models_dir`.
    """
    entry = _entry(configuration, name)
    folder = configuration.models_dir
    if not entry.from_folder or folder is None:
        raise UsageError(
            f"{name} has an entry of its own in {configuration.path}, which would then name no file",
            hint="Delete the entry first; then its file goes by the name that `cotenant models` shows, if it "
            "is in models_dir.",
        )
    files = [*entry.parts]
    others = (other for other in configuration.models if other is not entry)
    if entry.projector_path and all(other.projector_path != entry.projector_path for other in others):
        files.append(entry.projector_path)
    for path in files:
        _refuse_outside(path, folder)
    links = tuple(path for path in files if path.is_symlink())
    frees = sum(path.stat().st_size for path in files if path not in links)
    return Removal(entry.name, tuple(files), links, frees)


def _entry(configuration: Configuration, name: str) -> ModelEntry:
    for entry in configuration.models:
        if name == entry.name:
            return entry
    names = [entry.name for entry in configuration.models]
    hint = nearest(name, names) if names else "No model is served."
    raise UsageError(f"no model is called {name!r}", hint=hint)


def _refuse_outside(path: Path, folder: Path) -> None:
    """Refuse a file whose folder, links followed, is not in `models_dir`; the file may be a link itself."""
    inside = os.path.realpath(folder)
    holder = os.path.realpath(path.parent)
    if os.path.commonpath((inside, holder)) != inside:
        raise UsageError(
            f"{path} is in {holder}, outside of models_dir {folder}",
            hint="Delete it by hand, if it is to go.",
        )
