"""Who may read and change what Cotenant keeps on disk."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from cotenant.doctor.findings import Area, Finding, ok, problem, warning
from cotenant.doctor.host_context import Patient

_OTHERS_MAY_WRITE: Final = stat.S_IWOTH
_OTHERS_MAY_READ: Final = stat.S_IROTH
_MOST_FILES: Final = 2000


def state(patient: Patient) -> Iterator[Finding]:
    """Look whether the state directory can be used, by this user and nobody else."""
    folder = patient.state_dir
    if not folder.exists():
        parent = next(each for each in folder.parents if each.exists())
        if os.access(parent, os.W_OK | os.X_OK):
            yield ok(Area.FILES, f"the state directory {folder} will be made")
        else:
            yield problem(
                Area.FILES,
                f"the state directory {folder} cannot be made: {parent} may not be written",
                "The daemon keeps its logs and its history there.",
                f"sudo install -d -o {os.getuid()} {folder}   # or set COTENANT_STATE_DIR",
            )
        return
    if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        yield problem(
            Area.FILES,
            f"the state directory {folder} may not be written by this user",
            "The daemon keeps its logs and its history there.",
            f"sudo chown -R {os.getuid()} {folder}",
        )
        return
    found = _below(folder)
    foreign = [path for path, status in found if status.st_uid != os.getuid()]
    open_to_all = [path for path, status in found if status.st_mode & _OTHERS_MAY_WRITE]
    if foreign:
        yield problem(
            Area.FILES,
            f"{foreign[0]} belongs to another user{_and_more(foreign)}",
            "The daemon cannot go on writing it, as after it was once run by root.",
            f"sudo chown -R {os.getuid()} {folder}",
        )
    if open_to_all:
        yield problem(
            Area.FILES,
            f"{open_to_all[0]} may be changed by everybody{_and_more(open_to_all)}",
            "Whoever changes it decides what the daemon believes.",
            f"chmod -R o-w {folder}",
        )
    if not foreign and not open_to_all:
        yield ok(Area.FILES, f"the state directory {folder} is this user's alone to change")


def keys(patient: Patient) -> Iterator[Finding]:
    """Look whether others may read the API keys."""
    told = patient.configuration
    if told is None:
        return
    secret = [told.server.api_key_file, told.path if told.server.api_keys else None]
    for path in (each for each in secret if each is not None):
        try:
            mode = path.stat().st_mode
        except OSError as error:
            yield problem(
                Area.FILES,
                f"the key file {path} cannot be read: {error.strerror}",
                "The daemon does not start without it.",
            )
            continue
        if mode & _OTHERS_MAY_READ:
            yield warning(
                Area.FILES,
                f"{path} holds API keys and may be read by everybody",
                "Whoever has a key may use and steer the daemon.",
                f"chmod 600 {path}",
            )
        else:
            yield ok(Area.FILES, f"the API keys in {path} are not for everybody to read")


def _below(folder: Path) -> list[tuple[Path, os.stat_result]]:
    found = [(folder, folder.stat())]
    for base, folders, names in os.walk(folder):
        for name in (*folders, *names):
            path = Path(base) / name
            try:
                status = path.lstat()
            except FileNotFoundError:
                continue
            # A link is open to all by nature; what it leads to counts.
            if not stat.S_ISLNK(status.st_mode):
                found.append((path, status))
            if len(found) == _MOST_FILES:
                return found
    return found


def _and_more(paths: list[Path]) -> str:
    return f" (and {len(paths) - 1} more)" if len(paths) > 1 else ""
