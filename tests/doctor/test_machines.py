"""What the doctor says of Ray and of the other machines."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from cotenant.config.configuration import Configuration, ServerSettings
from cotenant.config.values.nodes import NodesSettings
from cotenant.doctor import machines
from cotenant.doctor.findings import Level
from cotenant.doctor.host_context import HostContext
from cotenant.doctor.runner import CHECKS, MACHINE_CHECKS
from cotenant.domain.decisions import NodeState
from tests.doctor.support import levels, machine, only
from tests.support.daemon.plain_nodes import READY, SILENT

WITH_NODES = Configuration(nodes=NodesSettings())


@pytest.fixture
def host(tmp_path: Path) -> HostContext:
    return machine(tmp_path, configuration=WITH_NODES)


@contextmanager
def daemon(answer: object, status: int = 200) -> Iterator[tuple[Configuration, list[str | None]]]:
    """Answer every request so; yield a configuration of it, and the keys that were sent."""
    keys: list[str | None] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            keys.append(self.headers.get("Authorization"))
            body = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        listens = ServerSettings(host="127.0.0.1", port=server.server_port)
        yield replace(WITH_NODES, server=listens), keys
        server.shutdown()
        thread.join()


def test_without_nodes_nothing_is_said_of_them(tmp_path: Path) -> None:
    alone = machine(tmp_path)
    assert not [*machines.ray(alone), *machines.machines(alone)]


def test_an_agent_checks_its_machine_and_not_what_the_daemon_has() -> None:
    names = {check.name for check in CHECKS} - {check.name for check in MACHINE_CHECKS}
    assert names >= {"the port", "the configuration", "keys", "Ray", "the other machines"}
    assert {"the driver", "engine builds", "disks", "the clock", "files of state"} <= {
        check.name for check in MACHINE_CHECKS
    }


@pytest.mark.parametrize(
    ("version", "level"),
    [(None, Level.PROBLEM), ("2.41.0", Level.WARNING), ("2.60.0", Level.OK), ("3.0.0rc1", Level.OK)],
)
def test_ray_has_to_be_there_and_recent(
    version: str | None, level: Level, host: HostContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machines, "installed_ray", lambda: version)
    assert levels(machines.ray(host))[0] is level


def test_the_token_is_to_be_there_and_secret(
    tmp_path: Path, host: HostContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machines, "installed_ray", lambda: "2.60.0")
    token = tmp_path / "token"

    def found(**variables: str) -> tuple[Level, str]:
        _, last = machines.ray(replace(host, environ={"HOME": str(tmp_path), **variables}))
        return last.level, last.seen

    assert found()[0] is Level.WARNING
    with_token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    assert found(**with_token) == (
        Level.PROBLEM,
        f"Ray's token {token} cannot be read: No such file or directory",
    )
    token.touch(mode=0o600)
    assert found(**with_token) == (Level.PROBLEM, f"Ray's token {token} is empty")
    token.write_text("abc")
    assert found(**with_token)[0] is Level.OK
    token.chmod(0o640)
    assert found(**with_token) == (Level.WARNING, f"Ray's token {token} can be read by other users")
    assert found(RAY_AUTH_MODE="token")[0] is Level.PROBLEM
    assert found(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="abc")[0] is Level.OK


def test_each_machine_is_a_line_and_what_is_wrong_with_it_another(host: HostContext) -> None:
    lost = replace(SILENT, name="c", state=NodeState.LOST, silent_s=None, warnings=())
    old = replace(READY, warnings=("it runs Cotenant 0.1, and the daemon 0.2",))
    told = {"nodes": [asdict(old), asdict(SILENT), asdict(lost)], "launcher": "ray", "problem": "no broker"}
    with daemon(told) as (configuration, keys):
        environ = {"COTENANT_API_KEY": "secret"}
        found = [*machines.machines(replace(host, configuration=configuration, environ=environ))]
    assert keys == ["Bearer secret"]
    assert [(each.level.value, each.seen.partition(":")[0]) for each in found] == [
        ("problem", "no machine can be reached through Ray"),
        ("ok", "a answers"),
        ("warning", "a"),
        ("warning", "b has not answered for 4.0 s"),
        ("warning", "b"),
        ("problem", "c has not answered since the daemon began"),
    ]
    assert found[2].seen == "a: it runs Cotenant 0.1, and the daemon 0.2"
    assert found[5].fix == "Start Ray there again, or: cotenant nodes forget c"


def test_the_daemon_is_asked_with_the_key_of_its_file(host: HostContext, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("# ours\n\nof-the-file\n")
    with daemon({"nodes": [], "launcher": "ray", "problem": None}) as (configuration, keys):
        server = replace(configuration.server, api_key_file=tmp_path / "keys")
        asked = replace(host, configuration=replace(configuration, server=server))
        assert [*machines.machines(asked)]
    assert keys == ["Bearer of-the-file"]


def test_where_the_daemon_does_not_say_the_doctor_says_so(host: HostContext) -> None:
    with daemon({}, 401) as (configuration, _):
        refused = only(machines.machines(replace(host, configuration=configuration)), Level.UNKNOWN)
    assert "it answers 401" in refused.seen
    assert refused.fix == "Set COTENANT_API_KEY."
    silent = replace(WITH_NODES, server=ServerSettings(port=0))
    assert (
        "no daemon answers"
        in only(machines.machines(replace(host, configuration=silent)), Level.UNKNOWN).seen
    )
    with daemon({"nodes": [], "launcher": "ray", "problem": None}) as (configuration, _):
        none = only(machines.machines(replace(host, configuration=configuration)), Level.WARNING)
    assert none.seen == "no machine has answered yet"
