"""Deletes the files of a model."""

import os
from dataclasses import dataclass
from pathlib import Path

from cotenant.config.configuration import Configuration
from cotenant.config.issues import nearest
from cotenant.domain.errors import ModelFileError, UsageError


@dataclass(frozen=True, slots=True)
class Removal:
    """The files to delete. `links` are symbolic links: their targets stay; `frees_bytes` is without them."""

    name: str
    files: tuple[Path, ...]
    links: tuple[Path, ...]
    frees_bytes: int

    def carry_out(self) -> None:
        """Delete the files, the first part last, so that an interrupted deletion can be repeated.

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
    """Return the files to delete: all parts of a model, and its projector if no other model uses it.

    Raises UsageError for a name that is not served, a model with an entry, or a file outside of `models_dir`.
    """
    entry = next((entry for entry in configuration.models if entry.name == name), None)
    if entry is None:
        names = [entry.name for entry in configuration.models]
        hint = nearest(name, names) if names else "No model is served."
        raise UsageError(f"no model is called {name!r}", hint=hint)
    folder = configuration.models_dir
    if not entry.from_folder or folder is None:
        raise UsageError(
            f"{name} has an entry in {configuration.path}, which would then refer to a missing file",
            hint="Delete the entry first; then, if its file is in models_dir, use the name that "
            "`cotenant models` shows.",
        )
    files = [*entry.parts]
    others = (other for other in configuration.models if other is not entry)
    if entry.projector_path and all(other.projector_path != entry.projector_path for other in others):
        files.append(entry.projector_path)
    inside = os.path.realpath(folder)
    for path in files:
        holder = os.path.realpath(path.parent)
        if os.path.commonpath((inside, holder)) != inside:
            raise UsageError(
                f"{path} is in {holder}, outside of models_dir {folder}",
                hint="Delete it yourself, if you want to.",
            )
    links = tuple(path for path in files if path.is_symlink())
    frees = sum(path.stat().st_size for path in files if path not in links)
    return Removal(entry.name, tuple(files), links, frees)
