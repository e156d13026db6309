"""Checks of the configuration, its port, and access to Cotenant's files."""

import contextlib
import json
import os
import shlex
import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from cotenant.doctor.findings import Observation, ok, problem, warning
from cotenant.doctor.host_context import HostContext
from cotenant.domain.engines import Endpoint
from cotenant.domain.errors import BadSetting
from cotenant.domain.units import format_count
from cotenant.http import blocking
from cotenant.http.client import Limits, Request, Response

_MOST_FILES: Final = 2000
_ASK_WITHIN_S: Final = 1.0


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


def configuration(host: HostContext) -> Iterator[Observation]:
    """Check whether the configuration can be read and works."""
    if host.refusal is not None:
        refusal = host.refusal
        problems = refusal.problems if isinstance(refusal, BadSetting) else (refusal.message,)
        for number, text in enumerate(problems):
            hint = "" if number else refusal.hint  # which is for the first mistake
            yield problem(text, "The daemon does not start with this configuration.", hint)
        return
    configuration = host.configuration
    if configuration is None or configuration.path is None:
        yield ok("no configuration file: `serve` uses its flags")
        return
    for each in configuration.problems:
        yield warning(str(each), "It is ignored.")
    if configuration.models_dir is not None and not configuration.models_dir.is_dir():
        yield problem(
            f"the models folder {configuration.models_dir} does not exist",
            "No model in it is served.",
            f"mkdir -p {configuration.models_dir}",
        )
    yield ok(f"{configuration.path} can be read; it names {format_count(len(configuration.models), 'model')}")


def port(host: HostContext) -> Iterator[Observation]:
    """Check whether the port is free or used by Cotenant."""
    server = host.settings.server
    if server.port == 0:
        yield ok("any free port is used")
        return
    where = f"{server.host} port {server.port}"
    refusal = _refusal(server.host, server.port)
    if refusal is None:
        yield ok(f"{where} is free")
    elif _is_cotenant(server.host, server.port):
        yield ok(f"a Cotenant daemon answers at {where}")
    elif isinstance(refusal, PermissionError):
        yield problem(
            f"{where} may only be opened by root",
            "The daemon does not start.",
            "Choose a port from 1024 on.",
        )
    else:
        yield problem(
            f"{where} cannot be opened: {refusal.strerror or refusal}",
            "The daemon does not start.",
            f"ss -ltnp 'sport = :{server.port}'   # or choose another with `server.port`",
        )


def fragmentation(host: HostContext) -> Iterator[Observation]:
    """Check whether a model would fit if the daemon moved others; nothing without a daemon that answers."""
    server = host.settings.server
    found = ask(server.host, server.port, "/api/defragmentation", operators_key(host))
    if found is None or found.status != 200:
        return
    gain = json.loads(found.body)
    if gain["moves"]:
        yield warning(
            f"free GPU memory is in pieces: {gain['text']}",
            "Until then it waits, or others are evicted for it.",
            f"cotenant defrag {shlex.quote(gain['model'])} --apply",
        )
    else:
        yield ok(gain["text"])


def operators_key(host: HostContext) -> str | None:
    """Return a key with which the daemon may be asked here, None if none is known in clear."""
    server = host.settings.server
    given = host.environ.get("COTENANT_API_KEY") or next(iter(server.api_keys), None)
    if given is None and server.api_key_file is not None:
        with contextlib.suppress(OSError, UnicodeDecodeError):
            lines = server.api_key_file.read_text(encoding="utf-8").splitlines()
            given = next((line.strip() for line in lines if line.strip() and not line.startswith("#")), None)
    return given


def _refusal(host: str, number: int) -> OSError | None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family) as trial:
            # As the server does, so that a closed connection in TIME_WAIT does not block the port.
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind((host, number))
            trial.listen(1)
    except OSError as error:
        return error
    return None


def _is_cotenant(host: str, number: int) -> bool:
    response = ask(host, number, "/health")
    return response is not None and response.status in (200, 503) and b"status" in response.body


def ask(host: str, number: int, path: str, key: str | None = None) -> Response | None:
    """Return what a daemon answers that listens here, None if none does."""
    reach = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104
    limits = Limits(_ASK_WITHIN_S, whole_s=_ASK_WITHIN_S)
    try:
        return blocking.fetch(Request(Endpoint(reach, number, key=key), "GET", path), limits)
    except OSError:
        return None
