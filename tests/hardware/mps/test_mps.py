"""MPS's control daemon: a stand-in for its program in a process of its own and, with a GPU, the real one."""

import asyncio
import os
import signal
import stat
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from cotenant.domain.devices import Device, DeviceId, DeviceKind
from cotenant.domain.errors import MpsFailed, MpsMissing
from cotenant.domain.units import GIB, MIB
from cotenant.engines.process.process import ChildProcess, guarded
from cotenant.hardware.mps.control import MpsControl
from cotenant.hardware.mps.daemon import MpsDaemon, remove_orphans, start_manually, stop_manually
from cotenant.hardware.mps.directories import (
    MEMORY_VARIABLE,
    THREADS_VARIABLE,
    MpsDirectories,
)
from cotenant.hardware.mps.discovery import (
    FoundDaemon,
    daemon_statuses,
    find_daemon,
    find_daemons,
    is_of_mps,
    orphans_of,
    variables_of,
)
from cotenant.hardware.mps.program import VARIABLE, find_program, no_program
from tests.support.gpus.fake_mps import client, left_in_pipes, mps_processes, real_program, stand_in
from tests.support.waiting import wait_until

CARD = "GPU-aaaaaaaa-1111"
NOWHERE = {"CUDA_MPS_PIPE_DIRECTORY": "/nonexistent", "CUDA_MPS_LOG_DIRECTORY": "/nonexistent"}


def spawn(argv: Sequence[str], env: Mapping[str, str], output_fd: int) -> ChildProcess:
    return ChildProcess.start(guarded(argv), env=env, output_fd=output_fd)


class Place:
    """A state directory with a short path, as sockets need it, and a control program."""

    def __init__(self, folder: Path, program: Path, cards: tuple[str, ...]) -> None:
        self.state, self.program, self.cards = folder, program, cards
        self.directories = MpsDirectories.of_cards(folder, cards)
        self.control = MpsControl(program, self.directories)
        self.clients: list[subprocess.Popen[bytes]] = []

    async def start(self) -> MpsDaemon:
        return await MpsDaemon.start(self.program, self.directories, self.cards, spawn)

    def client(self, **variables: str) -> subprocess.Popen[bytes]:
        self.clients.append(client(self.directories.pipe, **variables))
        return self.clients[-1]

    def statuses(self):
        return [*daemon_statuses(self.program, self.state, NOWHERE)]


@pytest.fixture(params=["stand-in", pytest.param("real", marks=pytest.mark.gpu)])
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    with tempfile.TemporaryDirectory(prefix="mps-") as folder:
        if request.param == "real":
            cards = tuple(_real_cards())
            made = Place(Path(folder) / "s", real_program(), cards)
        else:
            made = Place(Path(folder) / "s", stand_in(Path(folder) / "bin"), (CARD,))
        yield made
        for process in made.clients:
            process.kill()
            process.wait()
        for pid in mps_processes(made.state):
            os.kill(pid, signal.SIGKILL)


def _real_cards() -> list[str]:
    listed = subprocess.run(["nvidia-smi", "--query-gpu=uuid", "--format=csv,noheader"], capture_output=True)
    return listed.stdout.decode().split()


@pytest.fixture
def stood_in(place: Place) -> Place:
    """Only with the stand-in, which can be told to misbehave and counts any process as a client."""
    if "STAND_IN" not in place.program.read_text(encoding="utf-8", errors="replace"):
        pytest.skip("the real program does not misbehave at will")
    return place


# A daemon of our own.


async def test_a_daemon_answers_and_goes_leaving_nothing(place: Place) -> None:
    daemon = await place.start()
    assert not daemon.adopted
    assert daemon.pid is not None
    assert is_of_mps(daemon.pid)
    assert place.control.answers()
    assert place.control.servers() == ()
    assert os.getpgid(daemon.pid) == daemon.pid, "it leads a group of its own"
    assert (variables_of(daemon.pid) or {})["CUDA_VISIBLE_DEVICES"] == ",".join(place.cards)
    await daemon.stop(60)
    assert not mps_processes(place.state)
    assert not left_in_pipes(place.state)
    assert not place.control.answers()


async def test_its_directories_are_their_owner_s_alone(place: Place) -> None:
    place.directories.pipe.mkdir(parents=True, mode=0o777)
    place.directories.pipe.chmod(0o777)
    daemon = await place.start()
    for folder in (place.directories.pipe, place.directories.log, place.directories.pipe.parent):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    await daemon.stop(60)


async def test_its_end_is_noticed_and_cleaned_up_after(place: Place) -> None:
    daemon = await place.start()
    assert daemon.pid is not None
    os.kill(daemon.pid, signal.SIGKILL)
    async with asyncio.timeout(60):
        await daemon.wait_end()
    await daemon.clean()
    assert not left_in_pipes(place.state)
    again = await place.start()
    assert again.pid != daemon.pid
    await again.stop(60)


@pytest.mark.slow
async def test_files_and_servers_of_a_killed_daemon_are_in_nobody_s_way(stood_in: Place) -> None:
    daemon = await stood_in.start()
    stood_in.client()
    await asyncio.to_thread(wait_until, lambda: stood_in.control.servers())
    (server,) = await asyncio.to_thread(stood_in.control.servers)
    assert daemon.pid is not None
    os.kill(daemon.pid, signal.SIGKILL)
    await daemon.wait_end()
    # As if Cotenant had been killed as well: nobody cleaned up.
    assert left_in_pipes(stood_in.state)
    os.close(daemon._lock)
    daemon._lock = None
    again = await stood_in.start()
    assert server not in mps_processes(stood_in.state)
    await again.stop(1)  # Its client stays.


async def test_the_second_who_starts_one_for_the_same_cards_uses_the_first_s(place: Place) -> None:
    first, second = await asyncio.gather(place.start(), place.start())
    mine, theirs = (second, first) if first.adopted else (first, second)
    assert theirs.adopted
    assert theirs.pid == mine.pid
    await theirs.stop(60)
    assert await asyncio.to_thread(place.control.answers), "an adopted one runs on"
    await mine.stop(60)


async def test_the_end_of_an_adopted_daemon_is_noticed(place: Place) -> None:
    mine, theirs = await place.start(), await place.start()
    assert mine.pid is not None
    waiting = asyncio.create_task(theirs.wait_end())
    os.kill(mine.pid, signal.SIGKILL)
    async with asyncio.timeout(60):
        await waiting
        await mine.wait_end()
    await mine.clean()


async def test_one_that_ends_at_once_is_told_with_its_own_words(
    stood_in: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAND_IN_MPS_FAILS", "Cannot open /dev/nvidiactl")
    with pytest.raises(MpsFailed, match="ended with status 1: Cannot open /dev/nvidiactl"):
        await stood_in.start()
    assert not left_in_pipes(stood_in.state)


@pytest.mark.slow
async def test_one_that_never_listens_is_ended_within_a_bound(
    stood_in: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAND_IN_MPS_SILENT", "1")
    starting = MpsDaemon.start(
        stood_in.program, stood_in.directories, stood_in.cards, spawn, ready_within_s=0.3
    )
    with pytest.raises(MpsFailed, match="did not answer within 300 ms"):
        await starting
    assert not mps_processes(stood_in.state)


@pytest.mark.slow
async def test_one_that_hangs_on_quit_is_killed(stood_in: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAND_IN_MPS_HANGS_ON_QUIT", "1")
    daemon = await stood_in.start()
    async with asyncio.timeout(60):
        await daemon.stop(0.1)
    assert not mps_processes(stood_in.state)
    assert not left_in_pipes(stood_in.state)


async def test_a_program_that_cannot_run_is_one_clear_error(place: Place, tmp_path: Path) -> None:
    broken = tmp_path / "nvidia-cuda-mps-control"
    broken.write_text("#!/nonexistent/interpreter\n")
    broken.chmod(0o755)
    with pytest.raises(MpsFailed, match=r"cannot be started|ended with status"):
        await MpsDaemon.start(broken, place.directories, place.cards, spawn)


# Directories.


def test_a_path_too_long_for_a_socket_is_refused(tmp_path: Path) -> None:
    deep = tmp_path / ("x" * 100)
    with pytest.raises(MpsFailed, match="too long a path") as caught:
        MpsDirectories.of_cards(deep, [CARD]).create([CARD])
    assert "COTENANT_STATE_DIR" in caught.value.hint


def test_a_link_to_elsewhere_is_no_directory_of_ours(place: Place, tmp_path: Path) -> None:
    place.directories.pipe.parent.mkdir(parents=True)
    place.directories.pipe.symlink_to(tmp_path)
    with pytest.raises(MpsFailed, match="is not a folder of this user"):
        place.directories.create(place.cards)


def test_what_cannot_be_written_is_told() -> None:
    with tempfile.TemporaryDirectory(prefix="mps-") as folder:
        (Path(folder) / "mps").write_text("in the way")
        with pytest.raises(MpsFailed, match="cannot be made for MPS"):
            MpsDirectories.of_cards(Path(folder), [CARD]).create([CARD])


def test_each_set_of_cards_has_its_own_directories(tmp_path: Path) -> None:
    one = MpsDirectories.of_cards(tmp_path, ["GPU-a", "GPU-b"])
    assert one == MpsDirectories.of_cards(tmp_path, ["GPU-b", "GPU-a"])
    assert one != MpsDirectories.of_cards(tmp_path, ["GPU-a"])
    assert one != MpsDirectories.of_cards(tmp_path, ["GPU-a", "GPU-c"])


def test_another_s_directory_is_never_emptied(tmp_path: Path) -> None:
    directories = MpsDirectories.by_default({"CUDA_MPS_PIPE_DIRECTORY": str(tmp_path)})
    (tmp_path / "control").touch()
    with pytest.raises(ValueError, match="another daemon"):
        directories.remove_sockets()
    remove_orphans(directories)
    assert (tmp_path / "control").exists()


@pytest.mark.parametrize("content", ["", "x", "-3", "99999999999999999999", "0"])
def test_a_pid_file_that_names_no_process_means_no_daemon(place: Place, content: str) -> None:
    place.directories.create(place.cards)
    (place.directories.pipe / "nvidia-cuda-mps-control.pid").write_text(content)
    assert place.directories.recorded_pid() is None
    assert find_daemon(place.control) is None


# Daemons that run already.


def found_with(place: Place, **variables: str) -> FoundDaemon:
    """Start a daemon as an administrator would, and find it."""
    pipe, log = place.state / "by-root", place.state / "log"
    for folder in (pipe, log):
        folder.mkdir(parents=True)
    told = {"CUDA_MPS_PIPE_DIRECTORY": str(pipe), "CUDA_MPS_LOG_DIRECTORY": str(log)}
    plain = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    subprocess.run([place.program, "-d"], env={**plain, **told, **variables}, check=True, timeout=60)
    found: list[FoundDaemon] = []
    wait_until(lambda: found.extend(find_daemons(place.program, place.state, told)) or found)
    return found[0]


def card(uuid: str) -> Device:
    return Device(DeviceId(uuid), DeviceKind.GPU, "card", index=0)


def test_a_daemon_without_a_list_serves_every_card(place: Place) -> None:
    found = found_with(place)
    assert found.cards is None
    assert found.serves(card("GPU-any"))
    assert not found.directories.ours
    found.control.quit(1)


def test_a_daemon_with_uuids_serves_those_by_their_beginnings(stood_in: Place) -> None:
    found = found_with(stood_in, CUDA_VISIBLE_DEVICES="GPU-aaaa,GPU-cccc")
    assert found.serves(card(CARD))
    assert not found.serves(card("GPU-bbbb"))


def test_a_daemon_with_indices_numbers_cards_anew_and_is_not_used(stood_in: Place) -> None:
    found = found_with(stood_in, CUDA_VISIBLE_DEVICES="2")
    assert "CUDA_VISIBLE_DEVICES=2" in (found.problem or "")
    assert not found.serves(card(CARD))


def test_a_pid_file_left_by_a_crash_is_no_daemon(place: Place) -> None:
    place.directories.create(place.cards)
    (place.directories.pipe / "nvidia-cuda-mps-control.pid").write_text(str(os.getpid()))
    assert find_daemon(place.control) is None


# By hand.


def test_a_daemon_started_by_hand_runs_on_its_own_until_ended(place: Place) -> None:
    found = start_manually(place.program, place.directories, place.cards)
    assert found.pid is not None
    assert os.getsid(found.pid) != os.getsid(0), "no terminal takes it along"
    with pytest.raises(MpsFailed, match=f"already, as process {found.pid}"):
        start_manually(place.program, place.directories, place.cards)
    (status,) = place.statuses()
    assert (status.running, status.cards, status.ours) == (True, place.cards, True)
    stop_manually(place.control, 1)
    assert place.statuses() == []
    assert not mps_processes(place.state)


@pytest.mark.slow
def test_clients_are_shown_with_their_models_and_limits(stood_in: Place) -> None:
    start_manually(stood_in.program, stood_in.directories, stood_in.cards)
    told = stood_in.directories.client_variables("llama", [2 * GIB], 30)
    ours = stood_in.client(**told)
    stranger = stood_in.client()
    wait_until(lambda: stood_in.control.servers())
    (status,) = stood_in.statuses()
    (server,) = status.servers
    by_pid = {client.pid: client for client in server.clients}
    assert (by_pid[ours.pid].model, by_pid[ours.pid].memory, by_pid[ours.pid].threads) == (
        "llama",
        "0=2048M",
        "30",
    )
    assert (by_pid[stranger.pid].model, by_pid[stranger.pid].memory) == (None, None)
    assert server.state == "ACTIVE"
    stop_manually(stood_in.control, 1)


@pytest.mark.slow
def test_what_a_dead_daemon_left_is_shown_and_removed(stood_in: Place) -> None:
    found = start_manually(stood_in.program, stood_in.directories, stood_in.cards)
    assert found.pid is not None
    os.kill(found.pid, signal.SIGKILL)
    wait_until(lambda: not is_of_mps(found.pid or 0))
    (status,) = stood_in.statuses()
    assert not status.running
    assert "left something" in (status.problem or "")
    remove_orphans(stood_in.directories)
    assert stood_in.statuses() == []


# What is asked of the program, and what a client is told.


def test_a_daemon_that_is_not_there_refuses_every_command(place: Place) -> None:
    place.directories.create(place.cards)
    with pytest.raises(MpsFailed, match="refused 'get_server_list'"):
        place.control.servers()


def test_a_program_is_found_by_its_variable_or_on_the_path(tmp_path: Path) -> None:
    program = stand_in(tmp_path)
    assert find_program({VARIABLE: str(program)}) == program
    assert find_program({"PATH": str(tmp_path)}) == program
    assert find_program({"PATH": "/nonexistent"}) is None
    assert isinstance(no_program({}), MpsMissing)
    assert "/x/y, which cannot be run" in no_program({VARIABLE: "/x/y"}).message


@pytest.mark.parametrize(
    ("share", "memory", "threads"),
    [
        (("m",), None, None),
        (("m", [GIB]), "0=1024M", None),
        (("m", [GIB, 3 * MIB + 1], 100), "0=1024M,1=4M", "100"),
    ],
)
def test_limits_are_written_as_mps_reads_them(
    tmp_path: Path, share: tuple[Any, ...], memory: str | None, threads: str | None
) -> None:
    told = MpsDirectories.of_cards(tmp_path, [CARD]).client_variables(*share)
    assert (told.get(MEMORY_VARIABLE), told.get(THREADS_VARIABLE)) == (memory, threads)
    assert told["CUDA_MPS_PIPE_DIRECTORY"] == str(tmp_path / "mps" / CARD[:16] / "pipe")


def test_slices_of_old_drivers_have_a_folder_each(tmp_path: Path) -> None:
    card = "MIG-GPU-6e3d44b5-1dd6-4b05-a8d2-7a0d1e5dca25"
    slices = [f"{card}/{gpu}/0" for gpu in (1, 2, 11)]
    assert len({MpsDirectories.of_cards(tmp_path, [each]).pipe for each in slices}) == 3


def test_only_processes_of_mps_count_as_left_over(stood_in: Place) -> None:
    stood_in.directories.create(stood_in.cards)
    stood_in.client()
    assert [*orphans_of(stood_in.directories.pipe)] == []
