"""How machines get the files that they lack before an engine starts there."""

import asyncio
import json
import urllib.error
import urllib.request
from dataclasses import replace
from pathlib import Path

import pytest

from cotenant.agent.events import EventLog
from cotenant.agent.files import statuses
from cotenant.agent.pulls import Puller
from cotenant.config.values.nodes import NodePull
from cotenant.daemon.nodes.file_server import FileServer
from cotenant.daemon.nodes.files import NodeFiles, files_of
from cotenant.domain.errors import ModelFileMissing, PullFailed
from cotenant.nodes.engine_host import NodeEngineHost
from cotenant.nodes.file_messages import Files, Pull
from cotenant.nodes.messages import FileProgress, GateAddress
from cotenant.nodes.protocol import Json, from_json, to_json
from tests.support.engines.orders import host_order
from tests.support.http.model_hub import StandInHub, standing_in
from tests.support.waiting import until

DATA = bytes(range(256)) * 4096


class OtherMachine:
    """A machine whose disk is a folder of its own: `/a/b/m.gguf` is `m.gguf` there."""

    def __init__(self, disk: Path) -> None:
        self._disk = disk
        self.host = NodeEngineHost("b", self, 1)
        self.host.gate = GateAddress("127.0.0.1", 9)
        self._asked: dict[Path, Path] = {}
        self._puller = Puller("b", _Forwarding(self._tell))

    async def call(self, node: str, method: str, params: Json, timeout_s: float) -> Json:
        if method == "files":
            paths = [Path(each) for each in params["paths"]]
            found = statuses([self._disk / path.name for path in paths])
            return to_json(
                Files(tuple(replace(each, path=path) for each, path in zip(found, paths, strict=True)))
            )
        asked = from_json(Pull, json.loads(json.dumps(params)))
        self._asked[self._disk / asked.path.name] = asked.path
        self._puller.pull(replace(asked, path=self._disk / asked.path.name))
        return {}

    def _tell(self, event: FileProgress) -> None:
        self.host.take(replace(event, path=self._asked[event.path]))


class _Forwarding(EventLog):
    def __init__(self, tell):  # type: ignore[no-untyped-def]
        super().__init__()
        self._to = tell

    def add(self, event):  # type: ignore[no-untyped-def]
        self._to(event)


@pytest.fixture
def there(tmp_path: Path) -> OtherMachine:
    (tmp_path / "disk").mkdir()
    return OtherMachine(tmp_path / "disk")


@pytest.fixture
def here(tmp_path: Path) -> Path:
    folder = tmp_path / "models" / "org--m"
    folder.mkdir(parents=True)
    path = folder / "m-Q8_0.gguf"
    path.write_bytes(DATA)
    return path


async def test_an_absent_file_is_a_reason_unless_it_may_be_fetched(there: OtherMachine, here: Path) -> None:
    files = NodeFiles(NodePull.NEVER)
    with pytest.raises(ModelFileMissing, match=f"b has no file {here}") as refused:
        await files.ensure(there.host, host_order(here))
    assert "`nodes.pull`" in refused.value.hint
    (there._disk / here.name).write_bytes(DATA)
    await files.ensure(there.host, host_order(here))


async def test_another_file_of_that_name_is_a_reason_whatever_may_be_fetched(
    there: OtherMachine, here: Path
) -> None:
    (there._disk / here.name).write_bytes(DATA[1:])
    files = NodeFiles(NodePull.DAEMON)
    with pytest.raises(ModelFileMissing, match=f"b has another file {here}") as refused:
        await files.ensure(there.host, host_order(here))
    assert "cotenant pull" in refused.value.hint
    assert (there._disk / here.name).read_bytes() == DATA[1:]


async def test_the_daemons_own_file_is_fetched_by_the_machine(there: OtherMachine, here: Path) -> None:
    files = NodeFiles(NodePull.DAEMON)
    await files.ensure(there.host, host_order(here))
    assert (there._disk / here.name).read_bytes() == DATA
    with pytest.raises(ModelFileMissing, match="neither b nor the daemon's machine has the file"):
        await files.ensure(there.host, host_order(here.with_name("none.gguf")))
    files.close()


async def test_the_hubs_file_is_fetched_by_the_machine(
    there: OtherMachine, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with standing_in(StandInHub({"org/m": {"sub/m-Q8_0.gguf": DATA}})) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.address)
        monkeypatch.setenv("HF_TOKEN", "secret")
        await NodeFiles(NodePull.HUB).ensure(there.host, host_order(here))
        assert (there._disk / here.name).read_bytes() == DATA
        with pytest.raises(ModelFileMissing, match="was not pulled from a hub"):
            await NodeFiles(NodePull.HUB).ensure(there.host, host_order(Path("/elsewhere/x.gguf")))
        hub.lies.add("sub/m-Q8_0.gguf")
        (there._disk / here.name).unlink()
        with pytest.raises(PullFailed, match="has another checksum"):
            await NodeFiles(NodePull.HUB).ensure(there.host, host_order(here))


async def test_the_progress_of_a_fetch_is_that_of_the_load_and_its_speed_is_learned(
    there: OtherMachine, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with standing_in(StandInHub({"org/m": {"m-Q8_0.gguf": DATA}})) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.address)
        hub.stalls["m-Q8_0.gguf"] = 500_000
        files = NodeFiles(NodePull.HUB)
        learned: list[tuple[str, int]] = []
        files.fetched = lambda node, size, _: learned.append((node, size))
        order = host_order(here)
        assert files.fetching(order.name, "b") is None
        loading = asyncio.create_task(files.ensure(there.host, order))

        def received() -> int:
            found = files.fetching(order.name, "b")
            assert found is None or (found.node, found.file, found.total_bytes) == ("b", here.name, len(DATA))
            return 0 if found is None else found.received_bytes

        await until(lambda: received() > 0)
        assert received() <= 500_000
        assert files.fetching(order.name, "c") is None
        hub.go_on.set()
        await loading
        assert files.fetching(order.name, "b") is None
        assert learned == [("b", len(DATA))]


async def test_an_operator_has_a_machine_fetch_a_file_whatever_loads_may_do(
    there: OtherMachine, here: Path
) -> None:
    files, other = NodeFiles(NodePull.NEVER), here.with_name("n-Q8_0.gguf")
    (there._disk / other.name).write_bytes(DATA)
    steps = [step async for step in files.order(there.host, "m", [here, other])]
    assert steps[0].what == "b lacks 1 of 2 files of m"
    assert steps[-1].files == (str(here), str(other))
    assert (there._disk / here.name).read_bytes() == DATA
    again = [step async for step in files.order(there.host, "m", [here])]
    assert [step.what for step in again] == ["b lacks 0 of 1 file of m", "pulled"]
    with pytest.raises(ModelFileMissing, match="neither b nor the daemon's machine has the file"):
        [step async for step in files.order(there.host, "m", [here.with_name("none.gguf")])]
    files.close()


def test_a_file_is_served_by_its_token_for_as_long_as_it_is_offered(here: Path) -> None:
    server = FileServer()

    def got(url: str, **headers: str) -> tuple[int, bytes]:
        request = urllib.request.Request(url, headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            error.close()
            return error.code, b""

    with server.offering(here, None) as (url, headers):
        assert got(url, **headers) == (200, DATA)
        assert got(url, **headers, Range="bytes=1000000-") == (206, DATA[1_000_000:])
        assert got(url, **headers, Range=f"bytes={len(DATA) + 5}-")[0] == 416
        assert got(url, Authorization="Bearer wrong")[0] == 404
        assert got(url)[0] == 404
    assert got(url, **headers)[0] == 404
    server.close()


def test_all_parts_of_a_split_model_are_its_files() -> None:
    order = replace(host_order(Path("/m/a-00001-of-00003.gguf")), projector_path=Path("/m/p.gguf"))
    names = [path.name for path in files_of(order)]
    assert names == [*(f"a-0000{n}-of-00003.gguf" for n in (1, 2, 3)), "p.gguf"]
