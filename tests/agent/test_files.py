"""What an agent knows of model files, and how it fetches those that it lacks."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from cotenant.agent.events import EventLog
from cotenant.agent.files import FileWatch, statuses
from cotenant.agent.pulls import Puller
from cotenant.clock import SystemClock
from cotenant.domain.errors import BadRequest, NoRoomOnDisk, PullFailed
from cotenant.domain.nodes import FileState
from cotenant.hardware.model_cache.page_cache import drop
from cotenant.nodes.file_messages import Pull
from cotenant.nodes.messages import FileProgress, FilesSeen
from cotenant.nodes.protocol import error_from
from tests.support.http.model_hub import StandInHub, sha256, standing_in
from tests.support.waiting import DEADLINE_S

DATA = bytes(range(256)) * 8192


@pytest.fixture
def hub() -> Iterator[StandInHub]:
    with standing_in(StandInHub({"org/m": {"m.gguf": DATA, "n.gguf": DATA[::-1]}})) as running:
        yield running


def pull(hub: StandInHub, path: Path, name: str = "m.gguf", *, data: bytes = DATA) -> Pull:
    url = f"{hub.address}/org/m/resolve/main/{name}"
    return Pull(1, path, url, sha256(data), len(data), {"Authorization": "Bearer token"})


async def ended(events: EventLog, after: int, path: Path) -> FileProgress:
    """The last event about a file."""
    async with asyncio.timeout(DEADLINE_S):
        while True:
            found = await events.after(after, 60.0, lambda: 0.0)
            for event in found.events:
                after = event.seq
                if isinstance(event, FileProgress) and event.path == path and (event.done or event.error):
                    return event


async def pulled(asked: Pull) -> FileProgress:
    events = EventLog()
    after = events.last
    Puller("b", events).pull(asked)
    return await ended(events, after, asked.path)


async def test_an_absent_file_is_fetched_and_has_its_name_once_it_is_whole(
    hub: StandInHub, tmp_path: Path
) -> None:
    path = tmp_path / "models" / "m.gguf"
    assert [each.state for each in statuses([path])] == [FileState.ABSENT]
    assert (await pulled(pull(hub, path))).done
    assert path.read_bytes() == DATA
    (found,) = statuses([path])
    assert (found.state, found.size_bytes) in ((FileState.WARM, len(DATA)), (FileState.LOCAL, len(DATA)))
    assert hub.tokens == ["Bearer token"]
    assert (await pulled(pull(hub, path))).done
    assert len(hub.asked) == 1, "what is there is not fetched again"


async def test_a_cut_connection_goes_on_where_it_ended(hub: StandInHub, tmp_path: Path) -> None:
    hub.cuts["m.gguf"] = 700_000
    path = tmp_path / "m.gguf"
    assert (await pulled(pull(hub, path))).done
    assert path.read_bytes() == DATA
    ranges = [asked for _, asked in hub.asked]
    assert ranges[0] is None
    assert ranges[1] is not None
    assert ranges[1].startswith("bytes=")


async def test_another_file_under_that_name_is_never_used(hub: StandInHub, tmp_path: Path) -> None:
    hub.lies.add("m.gguf")
    path = tmp_path / "m.gguf"
    event = await pulled(pull(hub, path))
    assert event.error is not None
    assert "as b received it, has another checksum" in error_from(event.error).message
    assert not path.exists()
    assert not [*(tmp_path / ".pulls").iterdir()]


async def test_a_file_that_is_longer_than_told_is_refused(hub: StandInHub, tmp_path: Path) -> None:
    event = await pulled(pull(hub, tmp_path / "m.gguf", data=DATA[:1000]))
    assert event.error is not None
    assert "not 1000" in event.error.message


async def test_what_the_server_refuses_is_told(hub: StandInHub, tmp_path: Path) -> None:
    event = await pulled(pull(hub, tmp_path / "m.gguf", "none.gguf"))
    assert event.error is not None
    error = error_from(event.error)
    assert isinstance(error, PullFailed)
    assert error.message == "m.gguf cannot be fetched by b: the server answers 404"


async def test_a_full_disk_is_told_with_the_machine_before_anything_is_fetched(
    hub: StandInHub, tmp_path: Path
) -> None:
    asked = pull(hub, tmp_path / "m.gguf")
    event = await pulled(Pull(1, asked.path, asked.url, asked.sha256, 1 << 60))
    assert event.error is not None
    error = error_from(event.error)
    assert isinstance(error, NoRoomOnDisk)
    assert "does not fit on b: the disk of" in error.message
    assert not hub.asked


async def test_files_come_one_after_another_and_progress_is_told(hub: StandInHub, tmp_path: Path) -> None:
    hub.stalls["m.gguf"] = 500_000
    events = EventLog()
    after, puller = events.last, Puller("b", events)
    first, second = pull(hub, tmp_path / "m.gguf"), pull(hub, tmp_path / "n.gguf", "n.gguf", data=DATA[::-1])
    puller.pull(first)
    puller.pull(second)
    puller.pull(first)
    await asyncio.to_thread(hub.stalled.wait, DEADLINE_S)
    assert [name for name, _ in hub.asked] == ["m.gguf"]
    (begun,) = (await events.after(after, DEADLINE_S, lambda: 0.0)).events
    assert isinstance(begun, FileProgress)
    assert 0 < begun.received_bytes < begun.size_bytes == len(DATA)
    hub.go_on.set()
    assert (await ended(events, after, second.path)).done
    assert [name for name, _ in hub.asked] == ["m.gguf", "n.gguf"]
    assert (tmp_path / "n.gguf").read_bytes() == DATA[::-1]


@pytest.mark.parametrize(("path", "url"), [("m.gguf", "http://x"), ("/m.gguf", "file:///etc/passwd")])
async def test_what_is_no_file_to_fetch_is_refused(path: str, url: str) -> None:
    with pytest.raises(BadRequest):
        Puller("b", EventLog()).pull(Pull(1, Path(path), url, "", 1))


def test_files_are_warm_local_or_absent(tmp_path: Path) -> None:
    path, folder = tmp_path / "m.gguf", tmp_path / "folder"
    path.write_bytes(DATA)
    folder.mkdir()
    path.read_bytes()
    warm, missing, model_in_folder = statuses([path, tmp_path / "none", folder])
    if warm.warm_bytes is not None:
        assert (warm.state, warm.warm_bytes) == (FileState.WARM, len(DATA))
    assert (missing.state, model_in_folder.state) == (FileState.ABSENT, FileState.LOCAL)
    with path.open("rb") as file:
        file.flush()
    drop(path)
    (after,) = statuses([path])
    assert after.state in (FileState.LOCAL, FileState.WARM)
    assert (after.state is FileState.WARM) == ((after.warm_bytes or 0) >= 0.9 * len(DATA))


async def test_watched_files_are_reported_and_again_when_they_are_no_longer_as_they_were(
    tmp_path: Path,
) -> None:
    path, other = tmp_path / "m.gguf", tmp_path / "other.gguf"
    other.write_bytes(DATA)
    events = EventLog()
    watch = FileWatch(SystemClock(), events, every_s=0.01)
    running = asyncio.create_task(watch.run())
    after = events.last

    async def seen() -> dict[Path, FileState]:
        nonlocal after
        (event,) = (await events.after(after, DEADLINE_S, lambda: 0.0)).events
        assert isinstance(event, FilesSeen)
        after = event.seq
        return {each.path: each.state for each in event.files}

    try:
        watch.watch([path, other])
        found = await seen()
        assert found.keys() == {path, other}
        assert found[path] is FileState.ABSENT
        path.write_bytes(DATA)
        assert (await seen()).keys() == {path}
        path.unlink()
        assert await seen() == {path: FileState.ABSENT}, "of the other one nothing is new"
        watch.watch([other])
        assert (await seen()).keys() == {other}, "whoever asks anew has forgotten what it was told"
    finally:
        running.cancel()
        await asyncio.wait([running])


def test_what_came_of_an_absent_file_counts_as_room_for_it(tmp_path: Path) -> None:
    path, staging = tmp_path / "new" / "m.gguf", tmp_path / "new" / ".pulls"
    (nothing,) = statuses([path])
    assert nothing.room_bytes is not None
    staging.mkdir(parents=True)
    part = staging / "m.gguf.0123.part"
    with part.open("wb") as file:
        file.truncate(1 << 42)
    (begun,) = statuses([path])
    assert begun.room_bytes is not None
    assert begun.room_bytes > nothing.room_bytes + (1 << 41)
