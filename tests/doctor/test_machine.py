import ctypes
import json
import os
import resource
import shutil
import socket
import sys
import time
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any

import pytest

from cotenant.config.configuration import Configuration, Problem, ServerSettings
from cotenant.doctor import cards, files, machine
from cotenant.doctor.findings import Level
from cotenant.domain.errors import BadSetting
from cotenant.domain.units import GIB
from tests.doctor.support import levels, only, program, write
from tests.doctor.support import machine as paper
from tests.support.engines.orders import fake_server
from tests.support.gpus.fake_nvml import PaperCard

MEMINFO = "MemTotal: {total} kB\nMemAvailable: {free} kB\n"


def with_memory(folder: Path, total_gib: int, free_gib: int, **changes: Any) -> Any:
    write(folder, "/proc/meminfo", MEMINFO.format(total=total_gib << 20, free=free_gib << 20))
    return paper(folder, **changes)


@pytest.mark.parametrize(
    ("free_gib", "warm_gib", "level"),
    [
        (48, None, Level.OK),
        (1, None, Level.WARNING),
        (48, 32, Level.OK),
        (16, 32, Level.WARNING),
        (48, 128, Level.PROBLEM),
    ],
)
def test_memory_is_held_against_the_warm_tier(
    tmp_path: Path, free_gib: int, warm_gib: int | None, level: Level
) -> None:
    told = Configuration(warm_ram_bytes=None if warm_gib is None else warm_gib * GIB)

    assert levels(machine.memory(with_memory(tmp_path, 64, free_gib, configuration=told))) == [level]


def test_memory_that_the_kernel_does_not_tell_is_unseen(tmp_path: Path) -> None:
    assert levels(machine.memory(paper(tmp_path))) == [Level.UNKNOWN]


@pytest.mark.parametrize(
    ("free", "level"), [(100 * GIB, Level.OK), (5 * GIB, Level.WARNING), (1000, Level.PROBLEM)]
)
def test_a_disk_that_fills_up_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, level: Level
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=free)
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda path: usage)
    host = paper(tmp_path, configuration=Configuration(models_dir=tmp_path / "models"))

    models, _ = machine.disks(host)
    assert models.level is level
    assert str(tmp_path / "models") in models.seen


@pytest.mark.parametrize(
    ("limits", "level"),
    [
        ((1024, 4096), Level.OK),
        ((1024, 1024), Level.WARNING),
        ((65536, 65536), Level.OK),
        ((resource.RLIM_INFINITY,) * 2, Level.OK),
    ],
)
def test_few_open_files_are_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limits: tuple[int, int], level: Level
) -> None:
    monkeypatch.setattr(machine.resource, "getrlimit", lambda which: limits)

    assert levels(machine.limits(paper(tmp_path))) == [level]


@pytest.mark.parametrize(("state", "level"), [(0, Level.OK), (5, Level.WARNING), (None, Level.UNKNOWN)])
def test_a_clock_that_nobody_sets_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: int | None, level: Level
) -> None:
    monkeypatch.setattr(machine, "_kernel_clock", lambda: state)

    assert levels(machine.clock(paper(tmp_path))) == [level]


def test_a_clock_of_1970_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.time, "time", lambda: 86_400.0)

    assert only(machine.clock(paper(tmp_path)), Level.PROBLEM).seen == "the clock shows 1970-01-02"


def test_the_kernel_is_asked_for_its_clock_without_any_right(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []

    def buffer(size: int) -> Any:
        given.append(ctypes.create_string_buffer(size))
        return given[-1]

    monkeypatch.setattr(machine, "ctypes", SimpleNamespace(CDLL=ctypes.CDLL, create_string_buffer=buffer))
    state = machine._kernel_clock()
    if state is None:
        pytest.skip("this machine does not let a process without rights ask")
    # struct timex: `modes`, which orders a change, comes first; the time of day after eight longs.
    long = ctypes.sizeof(ctypes.c_long)
    assert given[0].raw[:4] == bytes(4)
    assert int.from_bytes(given[0].raw[9 * long : 10 * long], sys.byteorder) == pytest.approx(
        time.time(), abs=60
    )
    assert 0 <= state <= 5


@pytest.mark.parametrize(("answer", "state"), [(5, 5), (0, 0), (-1, None)])
def test_what_the_kernel_refuses_to_tell_is_not_known(
    monkeypatch: pytest.MonkeyPatch, answer: int, state: int | None
) -> None:
    library = SimpleNamespace(adjtimex=lambda buffer: answer)
    monkeypatch.setattr(machine.ctypes, "CDLL", lambda *_args, **_more: library)
    assert machine._kernel_clock() == state


def test_a_library_that_has_no_such_call_tells_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.ctypes, "CDLL", lambda *_args, **_more: SimpleNamespace())
    assert machine._kernel_clock() is None


def at(port: int) -> Configuration:
    return Configuration(server=ServerSettings(port=port))


def test_a_port_is_free_or_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_ASK_WITHIN_S", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        found = only(files.port(paper(tmp_path, configuration=at(port))), Level.PROBLEM)
        assert f"port {port} cannot be opened: Address already in use" in found.seen
        assert f"sport = :{port}" in found.fix
    assert levels(files.port(paper(tmp_path, configuration=at(port)))) == [Level.OK]
    assert levels(files.port(paper(tmp_path, configuration=at(0)))) == [Level.OK]


def test_a_port_that_cotenant_holds_is_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_ASK_WITHIN_S", 60)

    class Healthy(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'{"status":"ok"}')

        def log_message(self, *arguments: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Healthy) as server:
        Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        found = only(files.port(paper(tmp_path, configuration=at(server.server_port))), Level.OK)
        server.shutdown()
    assert found.seen.startswith("a Cotenant daemon answers")


def test_moves_that_let_a_model_fit_are_a_warning_and_no_daemon_is_no_finding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_ASK_WITHIN_S", 60)
    told = {"model": "org/big one", "moves": [{}], "text": "org/big one would fit if gemma moved to GPU 1"}

    class Daemon(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.headers["Authorization"] == "Bearer secret" else 401)
            self.end_headers()
            self.wfile.write(json.dumps(told).encode())

        def log_message(self, *arguments: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Daemon) as server:
        Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        configured = at(server.server_port)
        assert [*files.fragmentation(paper(tmp_path, configuration=configured))] == []
        configured = replace(configured, server=replace(configured.server, api_keys=("secret",)))
        found = only(files.fragmentation(paper(tmp_path, configuration=configured)), Level.WARNING)
        told = {"model": None, "moves": [], "text": "no model would gain by moves of others"}
        assert levels(files.fragmentation(paper(tmp_path, configuration=configured))) == [Level.OK]
        server.shutdown()
    assert found.seen.endswith("org/big one would fit if gemma moved to GPU 1")
    assert found.fix == "cotenant defrag 'org/big one' --apply"
    assert [*files.fragmentation(paper(tmp_path, configuration=configured))] == []


def test_every_mistake_of_a_configuration_is_a_problem(tmp_path: Path) -> None:
    refusal = BadSetting("2 mistakes", hint="See the docs.", problems=("c.yaml:1: no", "c.yaml:7: neither"))
    found = list(files.configuration(paper(tmp_path, configuration=None, refusal=refusal)))

    assert [each.seen for each in found] == ["c.yaml:1: no", "c.yaml:7: neither"]
    assert levels(found) == [Level.PROBLEM] * 2
    assert [each.fix for each in found] == ["See the docs.", ""]


def test_a_configuration_that_can_be_read_tells_what_is_left_out(tmp_path: Path) -> None:
    told = Configuration(
        path=tmp_path / "c.yaml", models_dir=tmp_path / "gone", problems=(Problem("m.gguf", "is damaged"),)
    )
    found = list(files.configuration(paper(tmp_path, configuration=told)))

    assert "is damaged" in only(found, Level.WARNING).seen
    assert only(found, Level.PROBLEM).fix == f"mkdir -p {tmp_path / 'gone'}"


def test_state_that_others_may_change_is_a_problem(tmp_path: Path) -> None:
    host = paper(tmp_path)
    assert levels(files.state(host)) == [Level.OK]

    (tmp_path / "state" / "cotenant.db").touch()
    (tmp_path / "state" / "cotenant.db").chmod(0o666)
    found = only(files.state(host), Level.PROBLEM)
    assert "cotenant.db is writable by every user" in found.seen
    assert found.fix == f"chmod -R o-w {tmp_path / 'state'}"


def test_links_are_no_danger_however_much_state_there_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = paper(tmp_path)
    monkeypatch.setattr(files, "_MOST_FILES", 5)
    for number in range(9):
        (tmp_path / "state" / f"libggml.so.{number}").symlink_to("libggml.so")
        (tmp_path / "state" / f"log.{number}").touch()
    assert levels(files.state(host)) == [Level.OK]


def test_state_that_root_left_behind_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host = paper(tmp_path)
    monkeypatch.setattr(files.os, "getuid", lambda: 65_000)

    found = only(files.state(host), Level.PROBLEM)
    assert "belongs to another user" in found.seen
    assert found.fix == f"sudo chown -R 65000 {tmp_path / 'state'}"


def test_a_state_directory_that_is_yet_to_come_is_well(tmp_path: Path) -> None:
    host = replace(paper(tmp_path), state_dir=tmp_path / "not" / "yet")

    assert only(files.state(host), Level.OK).seen.endswith("will be created")


def test_keys_for_everybody_to_read_are_a_warning(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("secret\n")
    host = paper(tmp_path, configuration=Configuration(server=ServerSettings(api_key_file=keys)))
    keys.chmod(0o644)
    assert only(files.keys(host), Level.WARNING).fix == f"chmod 600 {keys}"
    keys.chmod(0o600)
    assert levels(files.keys(host)) == [Level.OK]
    keys.unlink()
    assert levels(files.keys(host)) == [Level.PROBLEM]


def test_engines_that_see_no_gpu_are_a_problem_where_there_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cotenant.engines.llama_cpp.builds.embedded_build", lambda: None)
    monkeypatch.setenv("FAKE_DEVICES", "  (none)")
    server = fake_server(tmp_path)
    blind = paper(tmp_path, PaperCard("GPU-a"), llama_server=server)
    assert only(cards.builds(blind), Level.PROBLEM).fix == "cotenant engine install cuda"
    assert levels(cards.builds(paper(tmp_path, llama_server=server))) == [Level.OK]

    monkeypatch.setenv("FAKE_DEVICES", "  CUDA0: NVIDIA GeForce RTX 3090 (24564 MiB, 19304 MiB free)")
    os.utime(server, (time.time() + 9, time.time() + 9))
    assert levels(cards.builds(blind)) == [Level.OK]


def test_a_configured_engine_that_is_not_there_is_a_problem(tmp_path: Path) -> None:
    host = paper(tmp_path, llama_server=tmp_path / "no-server")

    assert "no-server" in only(cards.builds(host), Level.PROBLEM).seen


def test_exclusive_cards_without_the_program_of_mps_are_a_warning(tmp_path: Path) -> None:
    exclusive = PaperCard("GPU-a", mode=3)
    assert (
        "nvidia-cuda-mps-control"
        in only(cards.control_daemons(paper(tmp_path, exclusive)), Level.WARNING).seen
    )
    assert list(cards.control_daemons(paper(tmp_path, PaperCard("GPU-a")))) == []


def test_what_a_dead_mps_daemon_left_is_found(tmp_path: Path) -> None:
    program(tmp_path, "nvidia-cuda-mps-control", "exit 1")
    write(tmp_path, "/proc/self", "")
    host = paper(tmp_path, PaperCard("GPU-a"))
    assert levels(cards.control_daemons(host)) == [Level.OK]

    pipe = tmp_path / "pipe"
    pipe.mkdir()
    (pipe / "nvidia-cuda-mps-control.pid").write_text("2147480000\n")
    assert only(cards.control_daemons(host), Level.WARNING).fix == f"rm -r {pipe}"
