"""Checks of access to Cotenant's files."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from cotenant.doctor.findings import Observation, ok, problem, warning
from cotenant.doctor.host_context import HostContext

_MOST_FILES: Final = 2000


def state(host: HostContext) -> Iterator[Observation]:
    """Check that this user, and no other, can use the state directory."""
    folder = host.state_dir
    if not folder.exists():
        parent = next(each for each in folder.parents if each.exists())
        if os.access(parent, os.W_OK | os.X_OK):
            yield ok(f"the state directory {folder} will be created")
        else:
            yield problem(
                f"the state directory {folder} cannot be created: {parent} is not writable",
                "The daemon keeps its logs and its history there.",
                f"sudo install -d -o {os.getuid()} {folder}   # or set COTENANT_STATE_DIR",
            )
        return
    if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        yield problem(
            f"the state directory {folder} is not writable by this user",
            "The daemon keeps its logs and its history there.",
            f"sudo chown -R {os.getuid()} {folder}",
        )
        return
    found = _below(folder)
    foreign = [path for path, status in found if status.st_uid != os.getuid()]
    open_to_all = [path for path, status in found if status.st_mode & stat.S_IWOTH]
    if foreign:
        yield problem(
            f"{foreign[0]} belongs to another user{_and_more(foreign)}",
            "The daemon cannot write it. A daemon that ran as root may have created it.",
            f"sudo chown -R {os.getuid()} {folder}",
        )
    if open_to_all:
        yield problem(
            f"{open_to_all[0]} is writable by every user{_and_more(open_to_all)}",
            "A user who changes it controls the daemon.",
            f"chmod -R o-w {folder}",
        )
    if not foreign and not open_to_all:
        yield ok(f"the state directory {folder} is writable by this user only")


def keys(host: HostContext) -> Iterator[Observation]:
    """Check that others cannot read the API keys."""
    server, path_of_keys = host.settings.server, host.settings.path
    for path in filter(None, (server.api_key_file, path_of_keys if server.api_keys else None)):
        try:
            mode = path.stat().st_mode
        except OSError as error:
            yield problem(
                f"the key file {path} cannot be read: {error.strerror}",
                "The daemon does not start without it.",
            )
            continue
        if mode & stat.S_IROTH:
            yield warning(
                f"{path} holds API keys and is readable by every user",
                "Anyone who has a key can use and control the daemon.",
                f"chmod 600 {path}",
            )
        else:
            yield ok(f"the API keys in {path} are not readable by every user")


def _below(folder: Path) -> list[tuple[Path, os.stat_result]]:
    found = [(folder, folder.stat())]
    for base, folders, names in os.walk(folder):
        for name in (*folders, *names):
            path = Path(base) / name
            try:
                status = path.lstat()
            except FileNotFoundError:
                continue
            # A link is always writable; its target counts.
            if not stat.S_ISLNK(status.st_mode):
                found.append((path, status))
            if len(found) == _MOST_FILES:
                return found
    return found


def _and_more(paths: list[Path]) -> str:
    return f" (and {len(paths) - 1} more)" if len(paths) > 1 else ""
