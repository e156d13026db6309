"""Machines that are network namespaces on a bridge of their own, each with its own machine-id.

Where namespaces are not allowed they are addresses of the loopback range: nothing can be cut off there.
"""

import contextlib
import functools
import os
import re
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.waiting import alive

_NETNS = Path("/etc/netns")
_PREFIX = "ct"


@functools.cache
def namespaces_allowed() -> bool:
    """Whether this user may make network namespaces, and link them; COTENANT_TEST_LOOPBACK says no."""
    if os.environ.get("COTENANT_TEST_LOOPBACK") or os.geteuid() != 0 or shutil.which("ip") is None:
        return False
    name = f"{_PREFIX}{os.getpid()}try"
    made = _ip("netns", "add", name, check=False)
    if made:
        _ip("netns", "del", name)
    return made


def cutting_needs_namespaces() -> None:
    """Skip the test, loudly, where no machine can be cut off."""
    if not namespaces_allowed():
        pytest.skip("partitions of a network cannot be tested here: no network namespaces")


@dataclass(slots=True)
class Machine:
    """One of them: its processes run by `command`, with `environment` in addition to ours."""

    name: str
    address: str
    folder: Path
    namespace: str | None
    environment: dict[str, str]

    def port(self, usual: int) -> int:
        """Return the usual port, or any that is free if the machine shares its ports with others."""
        if self.namespace:
            return usual
        with socket.socket() as sock:
            sock.bind((self.address, 0))
            found: int = sock.getsockname()[1]
            return found

    def command(self, argv: Sequence[str]) -> list[str]:
        """Return the command that runs another on this machine."""
        return [*(("ip", "netns", "exec", self.namespace) if self.namespace else ()), *argv]

    def start(self, argv: Sequence[str], env: Mapping[str, str], log: Path) -> subprocess.Popen[bytes]:
        """Start a program on this machine."""
        with log.open("ab") as file:
            return subprocess.Popen(
                self.command(argv),
                env={**env, **self.environment},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )

    def pids(self, pattern: str) -> list[int]:
        """Return this machine's processes whose command line matches."""
        return [pid for pid in self._all() if re.search(pattern, _command_line(pid))]

    def kill(self, pattern: str) -> list[int]:
        """Kill this machine's processes whose command line matches, and return them."""
        found = self.pids(pattern)
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return found

    def listening(self, pattern: str) -> list[int]:
        """Return the TCP ports on which processes listen whose command line matches."""
        found = []
        for pid in self.pids(pattern):
            links = (os.readlink(each) for each in Path(f"/proc/{pid}/fd").iterdir())
            inodes = {link[8:-1] for link in links if link.startswith("socket:")}
            for row in Path(f"/proc/{pid}/net/tcp").read_text(encoding="ascii").splitlines()[1:]:
                _, local, _, state, *rest = row.split()
                if state == "0A" and rest[5] in inodes:
                    found.append(int(local.partition(":")[2], 16))
        return found

    def cut(self) -> None:
        """Pull the plug of its network."""
        cutting_needs_namespaces()
        _ip("link", "set", f"{self.namespace}v", "down")

    def mend(self) -> None:
        """Put the plug back in."""
        _ip("link", "set", f"{self.namespace}v", "up")

    def slow(self, *how: str) -> None:
        """Make its network slow: `delay 200ms loss 5%`; without arguments as before."""
        cutting_needs_namespaces()
        what = ("add", "dev", f"{self.namespace}v", "root", "netem", *how)
        gone = ("del", "dev", f"{self.namespace}v", "root")
        done = subprocess.run(
            ["tc", "qdisc", *(what if how else gone)], capture_output=True, check=False, text=True
        )
        if "qdisc kind is unknown" in done.stderr:
            pytest.skip("slow networks cannot be tested here: the kernel has no netem")
        assert done.returncode == 0, done.stderr

    def _all(self) -> list[int]:
        if self.namespace:
            listed = subprocess.run(
                ["ip", "netns", "pids", self.namespace], capture_output=True, check=False, text=True
            )
            return [pid for pid in map(int, listed.stdout.split()) if alive(pid)]
        mark = f"TEST_MACHINE={self.folder}".encode()
        pids = sorted(pid for pid in map(int, filter(str.isdecimal, os.listdir("/proc"))) if alive(pid))
        found = {pid for pid in pids if mark in _environment(pid)}
        # The environment of an engine is made anew: it is found by its parents.
        parents = {pid: _parent(pid) for pid in pids}
        while more := {pid for pid, parent in parents.items() if parent in found} - found:
            found |= more
        return sorted(found)


@contextlib.contextmanager
def machines(folder: Path, names: Sequence[str] = ("a", "b", "c")) -> Iterator[dict[str, Machine]]:
    """Make machines, and end all that runs on them at the end."""
    # Two sets of machines at a time have names, and so networks, of their own.
    own_number = ord(names[0]) - ord("a")
    spaces, own = namespaces_allowed(), f"{_PREFIX}{os.getpid()}"
    network = f"10.{77 + os.getpid() % 100}.{(os.getpid() + own_number) % 251}"
    bridge, made = f"{own}{names[0]}", {}
    if spaces:
        _remove_abandoned()
        _ip("link", "add", bridge, "type", "bridge")
        _ip("addr", "add", f"{network}.254/24", "dev", bridge)
        _ip("link", "set", bridge, "up")
    try:
        for number, name in enumerate(names, start=1):
            home = folder / name
            home.mkdir()
            namespace = f"{own}{name}" if spaces else None
            address = f"{network}.{number}" if spaces else f"127.0.{own_number}.{number + 1}"
            machine_id = f"{os.getpid():016x}{own_number + number:016x}"
            environment = {
                "COTENANT_STATE_DIR": str(home / "state"),
                "TEST_MACHINE": str(home),
                "COTENANT_MACHINE_ID": machine_id,
                "COTENANT_NODE": name,
            }
            made[name] = Machine(name, address, home, namespace, environment)
            if namespace:
                _join(namespace, bridge, address, machine_id)
        yield made
    finally:
        for machine in made.values():
            machine.kill("")
            if machine.namespace:
                _remove(machine.namespace)
        if spaces:
            _ip("link", "del", bridge)


def _join(namespace: str, bridge: str, address: str, machine_id: str) -> None:
    # `ip netns exec` mounts the files of this folder over those of /etc.
    (_NETNS / namespace).mkdir(parents=True)
    (_NETNS / namespace / "machine-id").write_text(f"{machine_id}\n")
    _ip("netns", "add", namespace)
    _ip("link", "add", f"{namespace}v", "type", "veth", "peer", "name", "eth0", "netns", namespace)
    _ip("link", "set", f"{namespace}v", "master", bridge, "up")
    _ip("-n", namespace, "addr", "add", f"{address}/24", "dev", "eth0")
    for link in ("eth0", "lo"):
        _ip("-n", namespace, "link", "set", link, "up")


def _remove(namespace: str) -> None:
    # A namespace whose name is gone lives on with its processes, which nobody would find again.
    listed = subprocess.run(["ip", "netns", "pids", namespace], capture_output=True, check=False, text=True)
    for pid in map(int, listed.stdout.split()):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    # With the namespace it would go, too, but later.
    _ip("link", "del", f"{namespace}v", check=False)
    _ip("netns", "del", namespace, check=False)
    shutil.rmtree(_NETNS / namespace, ignore_errors=True)


def _remove_abandoned() -> None:
    """Remove the machines of tests that were killed, and what still runs there."""
    for path in Path("/run/netns").glob(f"{_PREFIX}*"):
        found = re.fullmatch(rf"{_PREFIX}(\d+)[a-z]+", path.name)
        if found and not alive(int(found[1])):
            _remove(path.name)
            _ip("link", "del", path.name, check=False)


def _ip(*arguments: str, check: bool = True) -> bool:
    done = subprocess.run(["ip", *arguments], capture_output=True, check=False, text=True)
    assert not (check and done.returncode), f"ip {' '.join(arguments)}: {done.stderr}"
    return done.returncode == 0


def _command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def _parent(pid: int) -> int | None:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[1])
    except OSError:
        return None


def _environment(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return []
