"""A WebSocket through a running daemon to a server of another program."""

import asyncio
import sys
import urllib.request
from pathlib import Path

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from tests.support.daemon.api import get
from tests.support.daemon.serving import Serving

_CONFIGURATION = """\
server: {{host: 127.0.0.1, port: 0}}
devices: {{gpus: '24GiB'}}
scheduling: {{unload_grace: 1s}}
models:
  - {{name: m, kind: any, engine: command, memory: 1GiB, keep_alive: 0s,
     command: ['{python}', -m, tests.support.engines.websocket_server, '{{port}}'],
     env: {{PYTHONPATH: '{root}'}}}}
"""


def state(daemon: Serving) -> str:
    return str(get(daemon, "/api/models")["models"][0]["state"])


def unload(daemon: Serving) -> None:
    request = urllib.request.Request(f"{daemon.address()}/api/models/m/unload", method="POST")
    urllib.request.urlopen(request, timeout=60).close()


@pytest.mark.slow
async def test_it_loads_the_model_keeps_it_and_is_told_when_it_is_unloaded(tmp_path: Path) -> None:
    root = Path(__file__).parent.parent
    file = tmp_path / "cotenant.yaml"
    file.write_text(_CONFIGURATION.format(python=sys.executable, root=root))
    with Serving(["serve", "--config", str(file)], tmp_path / "state") as daemon:
        address = daemon.address()
        async with connect(f"{address.replace('http', 'ws')}/upstream/m/any", open_timeout=60) as client:
            await client.send("hello")
            assert await client.recv() == "hello"
            assert await asyncio.to_thread(state, daemon) == "ready"
            unloading = asyncio.create_task(asyncio.to_thread(unload, daemon))
            with pytest.raises(ConnectionClosed) as caught:
                await client.recv()
            assert caught.value.rcvd is not None
            assert (caught.value.rcvd.code, caught.value.rcvd.reason.partition(" before")[0]) == (
                1001,
                "m was unloaded",
            )
            await unloading
        assert await asyncio.to_thread(daemon.terminate) == 0
