"""Pulls from a stand-in for the hub, each in a process of its own."""

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from cotenant.domain.errors import HubSilent, NoRoomOnDisk, NotOffered, NotOnHub, PullFailed, QueueFull
from cotenant.domain.hub import HubName, PullStep
from cotenant.hub import fetch
from cotenant.hub.choice import HubFile
from cotenant.hub.client import Redirects
from cotenant.hub.puller import HubPuller
from tests.support.http.model_hub import StandInHub, sha256, standing_in
from tests.support.waiting import until

pytestmark = pytest.mark.slow

SMALL = bytes(range(256)) * 40
LARGE = os.urandom(1024) * 1500
REPOSITORY = {
    "README.md": b"hello",
    "Model-Q4_K_M.gguf": LARGE,
    "Q8_0/Model-Q8_0-00001-of-00002.gguf": SMALL,
    "Q8_0/Model-Q8_0-00002-of-00002.gguf": SMALL[::-1],
    "mmproj-Model-F16.gguf": SMALL[1:],
}


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with standing_in(StandInHub({"org/repo": REPOSITORY})) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.address)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        yield hub


async def pull(models: Path, name: str, **options) -> list[PullStep]:
    return [step async for step in HubPuller(lambda: models, **options).pull(name)]


async def test_a_model_comes_whole_with_its_projector_and_is_told_of_on_the_way(hub, tmp_path):
    models = tmp_path / "models"
    arrived = []

    async def note() -> None:
        arrived.append(sorted(path.name for path in models.rglob("*.gguf")))

    steps = await pull(models, "hf.co/org/repo", arrived=note)
    folder = models / "org--repo"
    assert (folder / "Model-Q4_K_M.gguf").read_bytes() == LARGE
    assert (folder / "mmproj-Model-F16.gguf").read_bytes() == SMALL[1:]
    assert arrived == [["Model-Q4_K_M.gguf", "mmproj-Model-F16.gguf"]]
    assert steps[-1].files == (str(folder / "mmproj-Model-F16.gguf"), str(folder / "Model-Q4_K_M.gguf"))
    last = [step for step in steps if step.what == "pulling Model-Q4_K_M.gguf"][-1]
    assert (last.completed_bytes, last.total_bytes) == (len(LARGE), len(LARGE))
    assert last.sha256 == sha256(LARGE)
    assert not list((models / fetch.STAGING).rglob("*.part"))


async def test_parts_of_a_folder_come_into_one_folder_and_are_not_fetched_twice(hub, tmp_path):
    await pull(tmp_path, "hf.co/org/repo:Q8_0")
    names = sorted(path.name for path in (tmp_path / "org--repo").iterdir())
    assert names == [
        "Model-Q8_0-00001-of-00002.gguf",
        "Model-Q8_0-00002-of-00002.gguf",
        "mmproj-Model-F16.gguf",
    ]
    asked = len(hub.asked)
    steps = await pull(tmp_path, "hf.co/org/repo:Q8_0")
    assert len(hub.asked) == asked
    assert any(step.what.startswith("checking") for step in steps)


async def test_a_connection_that_breaks_is_taken_up_where_it_broke(hub, tmp_path):
    hub.cuts["Model-Q4_K_M.gguf"] = 500_000
    await pull(tmp_path, "hf.co/org/repo")
    ranges = [asked for path, asked in hub.asked if path == "Model-Q4_K_M.gguf"]
    assert ranges == [None, "bytes=500000-"]
    assert (tmp_path / "org--repo" / "Model-Q4_K_M.gguf").read_bytes() == LARGE


async def test_one_of_a_file_whose_size_the_hub_does_not_tell_is_taken_up_too(hub, tmp_path):
    hub.untold.add("Model-Q4_K_M.gguf")
    hub.cuts["Model-Q4_K_M.gguf"] = 500_000
    await pull(tmp_path, "hf.co/org/repo")
    assert (tmp_path / "org--repo" / "Model-Q4_K_M.gguf").read_bytes() == LARGE


async def test_a_file_that_nobody_can_know_to_be_whole_is_refused(hub, tmp_path):
    hub.untold.add("Model-Q4_K_M.gguf")
    hub.endless.add("Model-Q4_K_M.gguf")
    with pytest.raises(PullFailed, match=r"the length of Model-Q4_K_M\.gguf is unknown"):
        await pull(tmp_path, "hf.co/org/repo")
    assert not list(tmp_path.rglob("*.gguf"))


@pytest.mark.parametrize(
    ("status", "then"),
    [(429, "bytes=500000-"), (408, "bytes=500000-"), (503, "bytes=500000-"), (416, None)],
)
def test_what_has_come_is_kept_when_the_hub_asks_for_patience(hub, tmp_path, monkeypatch, status, then):
    """Only bytes that cannot be of the file are thrown away."""
    monkeypatch.setattr(fetch, "_RETRY_DELAY_S", 0.0)
    hub.cuts["Model-Q4_K_M.gguf"] = 500_000
    hub.refusals["Model-Q4_K_M.gguf"] = [None, status]
    fetch._pull(HubName.parse("hf.co/org/repo"), tmp_path, 15.0)
    ranges = [asked for path, asked in hub.asked if path == "Model-Q4_K_M.gguf"]
    assert ranges == [None, "bytes=500000-", then]
    assert (tmp_path / "org--repo" / "Model-Q4_K_M.gguf").read_bytes() == LARGE


def test_a_refusal_leaves_what_has_come_for_the_next_pull(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(fetch, "_RETRY_DELAY_S", 0.0)
    hub.cuts["Model-Q4_K_M.gguf"] = 500_000
    hub.refusals["Model-Q4_K_M.gguf"] = [None, 401]
    with pytest.raises(NotOnHub, match="does not give"):
        fetch._pull(HubName.parse("hf.co/org/repo"), tmp_path, 15.0)
    fetch._pull(HubName.parse("hf.co/org/repo"), tmp_path, 15.0)
    assert hub.asked[-1] == ("Model-Q4_K_M.gguf", "bytes=500000-")


async def test_a_pull_that_is_given_up_ends_its_process_and_the_next_goes_on(hub, tmp_path):
    hub.stalls["Model-Q4_K_M.gguf"] = 700_000
    pulling = HubPuller(lambda: tmp_path).pull("hf.co/org/repo")
    async with contextlib.aclosing(pulling) as steps, asyncio.timeout(60):
        async for step in steps:
            if step.file == "Model-Q4_K_M.gguf":
                break
        await asyncio.to_thread(hub.stalled.wait, 60)
        incomplete = _incomplete(tmp_path)
        while incomplete.stat().st_size == 0:
            await asyncio.sleep(0.01)
    held = incomplete.stat().st_size
    assert not list(tmp_path.glob("org--repo/*Q4_K_M*"))
    hub.stalls.clear()
    hub.go_on.set()
    await pull(tmp_path, "hf.co/org/repo")
    assert hub.asked[-1] == ("Model-Q4_K_M.gguf", f"bytes={held}-")
    assert (tmp_path / "org--repo" / "Model-Q4_K_M.gguf").read_bytes() == LARGE


def _incomplete(models: Path) -> Path:
    (found,) = [path for path in (models / fetch.STAGING).rglob("*.part") if sha256(LARGE)[:16] in path.name]
    return found


async def test_bytes_of_another_checksum_are_never_served(hub, tmp_path):
    hub.lies.add("Model-Q4_K_M.gguf")
    with pytest.raises(PullFailed, match="the checksum of the hub"):
        await pull(tmp_path, "hf.co/org/repo")
    assert not list((tmp_path / "org--repo").glob("*.gguf"))
    hub.lies.clear()
    await pull(tmp_path, "hf.co/org/repo")
    assert (tmp_path / "org--repo" / "Model-Q4_K_M.gguf").read_bytes() == LARGE


async def test_a_file_of_the_same_size_but_other_bytes_is_fetched_again(hub, tmp_path):
    await pull(tmp_path, "hf.co/org/repo")
    (tmp_path / "org--repo" / "Model-Q4_K_M.gguf").write_bytes(bytes(len(LARGE)))
    await pull(tmp_path, "hf.co/org/repo")
    assert (tmp_path / "org--repo" / "Model-Q4_K_M.gguf").read_bytes() == LARGE


async def test_what_is_not_there_or_not_given_is_told(hub, tmp_path):
    hub.gated.add("org/closed")
    with pytest.raises(NotOnHub, match="no org/none on the hub"):
        await pull(tmp_path, "hf.co/org/none")
    with pytest.raises(NotOnHub, match="does not give org/closed to everyone"):
        await pull(tmp_path, "hf.co/org/closed")
    with pytest.raises(NotOnHub, match="has no Q2_K"):
        await pull(tmp_path, "hf.co/org/repo:Q2_K")
    with pytest.raises(NotOffered, match="no folder"):
        _ = [step async for step in HubPuller(lambda: None).pull("hf.co/org/repo")]


async def test_a_hub_that_is_silent_is_told_within_the_time_given(tmp_path, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(HubSilent, match="could not be queried for org/repo: timed out"):
            await pull(tmp_path, "hf.co/org/repo", list_within_s=0.3)
    with pytest.raises(HubSilent, match="refused"):
        await pull(tmp_path, "hf.co/org/repo")


async def test_two_pulls_of_one_repository_do_not_mix(hub, tmp_path):
    hub.stalls["Model-Q4_K_M.gguf"] = 100
    first = asyncio.ensure_future(pull(tmp_path, "hf.co/org/repo"))
    await asyncio.to_thread(hub.stalled.wait, 60)
    with pytest.raises(PullFailed, match="already being pulled"):
        await pull(tmp_path, "hf.co/org/repo:Q8_0")
    hub.go_on.set()
    assert (await first)[-1].files


async def test_the_token_goes_to_the_hub_and_not_to_where_it_sends_for_the_bytes(hub, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "secret")
    with standing_in(StandInHub({"org/repo": REPOSITORY})) as store:
        # Another host by name, as a store of files is.
        hub.moved_to = store.address.replace("127.0.0.1", "localhost")
        await pull(tmp_path, "hf.co/org/repo")
    assert set(hub.tokens) == {"Bearer secret"}
    assert store.tokens
    assert set(store.tokens) == {None}


async def test_a_folder_that_cannot_be_written_is_told(hub, tmp_path):
    (tmp_path / "models").write_text("no folder")
    with pytest.raises(PullFailed, match="cannot be written"):
        await pull(tmp_path / "models", "hf.co/org/repo")


def test_what_would_fill_the_disk_is_refused(tmp_path):
    with pytest.raises(NoRoomOnDisk, match=r"the pull needs .*, the disk"):
        fetch._check_room(tmp_path, tmp_path / "staging", [HubFile("a.gguf", 1000 << 40)])


def test_the_process_ends_with_whoever_started_it(hub, tmp_path):
    hub.stalls["Model-Q4_K_M.gguf"] = 100
    asked = {"name": "hf.co/org/repo", "models_dir": str(tmp_path), "list_within_s": 60}
    argv = [sys.executable, "-P", "-m", "cotenant.hub.fetch", json.dumps(asked)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as child:
        assert hub.stalled.wait(60)
        assert child.poll() is None
        assert child.stdin is not None
        child.stdin.close()
        assert child.wait(60) == 1


def listed(
    path: str = "a.gguf", size: object = 4, sha: object = "0" * 64, **more: object
) -> dict[str, object]:
    return {"rfilename": path, "size": size, "lfs": {"sha256": sha}, **more}


@pytest.mark.parametrize(
    "siblings",
    [
        [listed(sha="../../../../zz")],
        [listed(sha="A" * 64)],
        [listed(sha=5)],
        [listed(size="12")],
        [listed(size=-5)],
        [listed(size=2**62)],
        [listed(path="a\ud800.gguf")],
        [listed(path=7)],
        "no list",
        [7],
    ],
)
async def test_a_list_that_no_hub_sends_is_refused_before_a_path_is_made_of_it(hub, tmp_path, siblings):
    hub.lists["org/repo"] = {"sha": "0" * 40, "siblings": siblings}
    with pytest.raises(HubSilent, match="is not a known hub"):
        await pull(tmp_path, "hf.co/org/repo")
    assert not list(tmp_path.rglob("*.part"))


async def test_a_revision_that_is_a_path_is_refused(hub, tmp_path):
    hub.lists["org/repo"] = {"sha": "../../../x", "siblings": [{"rfilename": "a.gguf"}]}
    with pytest.raises(HubSilent, match="is not a known hub"):
        await pull(tmp_path, "hf.co/org/repo")


@pytest.mark.parametrize(
    "name",
    ["..gguf", ".gguf", ".hidden.gguf", "-rf.gguf", "a\x1b]0;x\x07.gguf", "a\0b.gguf", "a" * 300 + ".gguf"],
)
async def test_files_of_names_that_harm_are_not_chosen(hub, tmp_path, name):
    hub.lists["org/repo"] = {"sha": "0" * 40, "siblings": [listed(path=name)]}
    with pytest.raises(NotOnHub, match="has no GGUF file"):
        await pull(tmp_path, "hf.co/org/repo")


async def test_a_file_without_end_takes_no_more_than_its_size(hub, tmp_path):
    hub.lists["org/repo"] = {
        "sha": "0" * 40,
        "siblings": [{"rfilename": "Model-Q4_K_M.gguf", "size": 1000}],
    }
    hub.endless.add("Model-Q4_K_M.gguf")
    with pytest.raises(PullFailed, match=r"Model-Q4_K_M\.gguf has \d+ bytes, not 1000"):
        await pull(tmp_path, "hf.co/org/repo")
    assert not list(tmp_path.rglob("*.part"))


async def test_an_unexpected_fault_of_a_pull_says_what_it_was(hub, tmp_path):
    # A folder that no path can name: os.path raises ValueError for it.
    with pytest.raises(PullFailed, match="the pull failed: ValueError"):
        await pull(tmp_path / "a\0b", "hf.co/org/repo")


async def test_no_more_than_four_models_are_pulled_at_once(hub, tmp_path):
    hub.stalls["Model-Q4_K_M.gguf"] = 100
    for number in range(5):
        hub.repositories[f"org/repo{number}"] = REPOSITORY
    puller = HubPuller(lambda: tmp_path)

    async def run(number: int) -> list[PullStep]:
        return [step async for step in puller.pull(f"hf.co/org/repo{number}")]

    running = [asyncio.ensure_future(run(number)) for number in range(4)]
    await until(lambda: puller._running == 4)
    with pytest.raises(QueueFull, match="4 models are being pulled"):
        await run(4)
    running[0].cancel()  # its client left
    await asyncio.wait(running[:1])
    hub.go_on.set()
    assert (await run(4))[-1].files
    await asyncio.gather(*running[1:])


async def test_a_server_whose_operator_forbids_it_pulls_nothing(hub, tmp_path):
    with pytest.raises(NotOffered, match="this server pulls no models"):
        await pull(tmp_path, "hf.co/org/repo", allowed=lambda: False)


@pytest.mark.parametrize(
    ("to", "keeps"),
    [
        ("https://hub.example/file", True),
        ("https://other.example/file", False),
        ("http://hub.example/file", False),
        ("https://hub.example:8443/file", False),
    ],
)
def test_a_token_stays_with_the_hub_and_with_https(to: str, keeps: bool):
    asked = urllib.request.Request("https://hub.example/a", headers={"Authorization": "Bearer secret"})
    following = Redirects().redirect_request(asked, None, 302, "Found", {}, to)
    assert following is not None
    assert following.has_header("Authorization") is keeps
