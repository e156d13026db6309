"""A PostgreSQL server of the tests' own, on a Unix socket, in a folder that goes with it."""

import atexit
import functools
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import psycopg

from tests.support import debian

_USER = "postgres"
_FAST = (
    "fsync=off",
    "full_page_writes=off",
    "listen_addresses=",
    "max_connections=40",
    "shared_buffers=16MB",
)


class NoPostgres(Exception):
    """None can be started here, with the reason."""


@dataclass
class Cluster:
    """A server whose files are in `folder`."""

    programs: Path
    folder: Path
    server: subprocess.Popen[bytes] | None = None
    names: Iterator[int] = field(default_factory=count)

    def start(self) -> None:
        """Start it, unless it runs, and wait until it answers."""
        if self.server is not None and self.server.poll() is None:
            return
        settings = [word for setting in _FAST for word in ("-c", setting)]
        data, sockets = str(self.folder / "data"), str(self.folder)
        # SIGINT is a fast shutdown: the server ends also when the tests are killed.
        as_postgres = _as_postgres("--pdeathsig", "INT")
        command = [*as_postgres, str(self.programs / "postgres"), "-D", data, "-k", sockets, *settings]
        with (self.folder / "log").open("wb") as log:
            self.server = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        deadline = time.monotonic() + 60
        while not self._answers():
            if self.server.poll() is not None or time.monotonic() > deadline:
                raise NoPostgres(f"the server does not start: {(self.folder / 'log').read_text()[-500:]}")
            time.sleep(0.02)

    def stop(self) -> None:
        if self.server is not None and self.server.poll() is None:
            self.server.send_signal(signal.SIGINT)
            self.server.wait(30)

    def new_database(self) -> str:
        """Make an empty database and return its URL."""
        name = f"t{next(self.names)}"
        self._execute(f"CREATE DATABASE {name}")
        return self.url(name)

    def new_schema(self) -> str:
        """Make an empty schema, as good as a database and quicker, and return a URL that means it."""
        name = f"t{next(self.names)}"
        self._execute(f"CREATE SCHEMA {name}")
        return f"{self.url('postgres')}&options=-csearch_path%3D{name}"

    def url(self, name: str) -> str:
        return f"postgresql+psycopg://{_USER}:secret@/{name}?host={self.folder}"

    def _execute(self, statement: str) -> None:
        with psycopg.connect(host=str(self.folder), user=_USER, autocommit=True) as connection:
            connection.execute(statement.encode())

    def _answers(self) -> bool:
        try:
            self._execute("SELECT 1")
        except psycopg.OperationalError:
            return False
        return True


@functools.cache
def cluster() -> Cluster | str:
    """Return the server of this run of the tests, installed and started if need be, or why there is none."""
    try:
        return _made()
    except (NoPostgres, OSError, subprocess.SubprocessError) as error:
        return f"PostgreSQL cannot be tested here: {error}"


@contextmanager
def stopped(server: Cluster) -> Iterator[None]:
    """Have the server away for a while."""
    server.stop()
    try:
        yield
    finally:
        server.start()


def _made() -> Cluster:
    programs = _programs() or _installed()
    folder = Path(tempfile.mkdtemp(prefix="cotenant-pg-"))
    made = Cluster(programs, folder)

    def end() -> None:
        made.stop()
        shutil.rmtree(folder, ignore_errors=True)

    atexit.register(end)
    if os.geteuid() == 0:
        shutil.chown(folder, _USER)
    folder.chmod(0o755)
    (folder / "log").touch()
    command = [*_as_postgres(), str(programs / "initdb"), "-D", str(folder / "data"), "-U", _USER]
    options = ["-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"]
    subprocess.run([*command, *options], check=True, capture_output=True, timeout=60, cwd=folder)
    made.start()
    return made


def _programs() -> Path | None:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: int(path.parts[-3]))
    if found:
        return found[-1].parent
    beside = shutil.which("postgres")
    return None if beside is None else Path(beside).resolve().parent


def _installed() -> Path:
    if not debian.may_install():
        raise NoPostgres("it is not installed, and only root can install Debian's package")
    said = debian.install(["postgresql"], lambda: _programs() is None)
    programs = _programs()
    if programs is None:
        raise NoPostgres(f"apt-get could not install it: {said}")
    return programs


def _as_postgres(*options: str) -> Sequence[str]:
    """Return the beginning of a command, by which root becomes another user: the server refuses root."""
    if os.geteuid() != 0:
        return ["setpriv", *options] if options else []
    try:
        user = pwd.getpwnam(_USER)
    except KeyError:
        raise NoPostgres(f"there is no user {_USER}") from None
    return ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups", *options]
