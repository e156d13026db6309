"""The port of a model that is a service of its own, through a daemon to another program."""

import contextlib
import json
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.daemon.api import get
from tests.support.daemon.serving import Serving
from tests.support.waiting import DEADLINE_S, wait_until

_ROOT = Path(__file__).parent.parent
_CONFIGURATION = """\
server: {{host: 127.0.0.1, port: 0}}
devices: {{gpus: '24GiB'}}
scheduling: {{unload_grace: 1s}}
models:
  - {{name: m, kind: any, engine: command, memory: 1GiB, keep_alive: 0s, parallel: 1, listen: {0},
     command: ['{python}', -m, tests.support.engines.line_server, '{{port}}'],
     env: {{PYTHONPATH: '{root}'}}}}
  - {{name: broken, kind: any, engine: command, memory: 1GiB, listen: {1}, command: ['false']}}
"""


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


class _Bed:
    """A daemon with a model `m` at the first of its ports and one that does not load at the second."""

    def __init__(self, folder: Path) -> None:
        self.ports = _free_ports(3)
        self.file = folder / "cotenant.yaml"
        self.configure(*self.ports)
        self.daemon = Serving(["serve", "--config", str(self.file)], folder / "state")

    def configure(self, *ports: int) -> None:
        self.file.write_text(_CONFIGURATION.format(*ports, python=sys.executable, root=_ROOT))

    def state(self) -> str:
        return str(get(self.daemon, "/api/models/m")["state"])

    def connected(self, port: int | None = None) -> socket.socket:
        return socket.create_connection(("127.0.0.1", port or self.ports[0]), timeout=DEADLINE_S)


def _is_open(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=DEADLINE_S).close()
    except ConnectionRefusedError:
        return False
    return True


@pytest.fixture
def bed(tmp_path: Path) -> Iterator[_Bed]:
    bed = _Bed(tmp_path)
    with bed.daemon:
        bed.daemon.address()
        yield bed


def _say(connection: socket.socket, text: bytes) -> bytes:
    connection.sendall(text)
    return connection.recv(4096)


@pytest.mark.slow
def test_who_connects_has_it_loaded_and_it_stays_until_the_last_leaves(bed: _Bed) -> None:
    assert bed.state() == "cold"
    with bed.connected() as one:
        # The one slot of the model is not a connection's, but that of all.
        with bed.connected() as other:
            assert (_say(one, b"a\n"), _say(other, b"b\n")) == (b"a\n", b"b\n")
            assert bed.state() == "ready"
            other.shutdown(socket.SHUT_WR)
            assert (other.recv(4096), other.recv(4096)) == (b"over\n", b"")
        assert _say(one, b"c\n") == b"c\n"
        much = b"".join(b"%0127d\n" % number for number in range(1 << 16))
        sending = threading.Thread(target=one.sendall, args=(much,))
        sending.start()
        said = bytearray()
        while len(said) < len(much):
            said += one.recv(1 << 20)
        sending.join()
        assert said == much
        assert get(bed.daemon, "/api/models/m")["in_flight"] == 1
    wait_until(lambda: bed.state() == "cold")
    with urllib.request.urlopen(f"http://127.0.0.1:{bed.ports[0]}/any", timeout=DEADLINE_S) as answer:
        assert answer.read() == b"ok"
    wait_until(lambda: bed.state() == "cold")

    with bed.connected() as one:
        assert _say(one, b"d\n") == b"d\n"
        request = urllib.request.Request(f"{bed.daemon.address()}/api/models/m/unload", method="POST")
        urllib.request.urlopen(request, timeout=DEADLINE_S).close()
        assert one.recv(4096) == b""

    assert bed.daemon.terminate() == 0


@pytest.mark.slow
def test_who_speaks_http_is_told_why_it_does_not_load_and_others_see_the_end(bed: _Bed) -> None:
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(f"http://127.0.0.1:{bed.ports[1]}/", timeout=DEADLINE_S)
    with caught.value:
        assert caught.value.code == 503
        assert "broken" in json.load(caught.value)["error"]["message"]
    with bed.connected(bed.ports[1]) as connection:
        assert _say(connection, b"no HTTP\n") == b""
    wait_until(lambda: bed.daemon.output.count("port of broken is refused") == 2)
    assert "Traceback" not in bed.daemon.output


@pytest.mark.slow
def test_ports_follow_the_configuration_without_a_load_and_close_before_their_connections(bed: _Bed) -> None:
    with bed.connected() as kept:
        assert _say(kept, b"a\n") == b"a\n"
        bed.configure(bed.ports[2], bed.ports[0])
        bed.daemon.wait_for(f"address=127.0.0.1:{bed.ports[2]} model=m")
        assert _say(kept, b"b\n") == b"b\n"
        with bed.connected(bed.ports[2]) as moved:
            assert _say(moved, b"c\n") == b"c\n"
        with bed.connected() as broken:
            assert _say(broken, b"d\n") == b""
        assert not _is_open(bed.ports[1])

        bed.daemon.process.terminate()
        wait_until(lambda: not _is_open(bed.ports[2]))
        assert _say(kept, b"e\n") == b"e\n"
    assert bed.daemon.finish() == 0


def test_a_port_in_use_is_told_at_start(tmp_path: Path) -> None:
    bed_file, state = tmp_path / "cotenant.yaml", tmp_path / "state"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ports = (taken.getsockname()[1], *_free_ports(1))
        bed_file.write_text(_CONFIGURATION.format(*ports, python=sys.executable, root=_ROOT))
        with Serving(["serve", "--config", str(bed_file)], state) as daemon:
            assert daemon.finish() != 0
    assert f"listen of m: 127.0.0.1 port {ports[0]} is in use" in daemon.output
    assert "Traceback" not in daemon.output


@pytest.mark.slow
def test_the_port_of_a_remote_model_is_passed_to_its_server(tmp_path: Path) -> None:
    there, here = _free_ports(2)
    file = tmp_path / "cotenant.yaml"
    file.write_text(
        "server: {host: 127.0.0.1, port: 0}\n"
        f"models: [{{name: far, kind: any, engine: remote, address: 'http://127.0.0.1:{there}', "
        f"listen: {here}}}]"
    )
    argv = [sys.executable, "-m", "tests.support.engines.line_server", str(there)]
    server = subprocess.Popen(argv, cwd=_ROOT)
    try:
        wait_until(lambda: _is_open(there))
        with Serving(["serve", "--config", str(file)], tmp_path / "state") as daemon:
            daemon.address()
            with socket.create_connection(("127.0.0.1", here), timeout=DEADLINE_S) as connection:
                assert _say(connection, b"a\n") == b"a\n"
                server.kill()
                assert connection.recv(4096) == b""
            assert daemon.terminate() == 0
    finally:
        server.kill()
        server.wait()
