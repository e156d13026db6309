"""Readers of what strangers write, each as a function of bytes, for coverage-guided fuzzing.

    pip install atheris
    python -m tests.support.fuzz gguf FOLDER -max_total_time=600

FOLDER keeps what was found; further arguments are libFuzzer's. A reader may raise its declared errors.
Another error, more than a second, or an answer of 500 is a finding, which becomes a test of that reader.
"""

import asyncio
import contextlib
import gc
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import FunctionType, SimpleNamespace
from typing import Any, Final

import uvicorn

from cotenant.analysis.gguf import read_gguf
from cotenant.analysis.safetensors import parse_json_object, read_safetensors, safetensors_shape
from cotenant.analysis.shape import model_shape
from cotenant.config.settings import read_configuration
from cotenant.config.yaml_document import parse_document
from cotenant.domain.engines import Endpoint
from cotenant.domain.errors import BadSetting, ComposeFileError, CotenantError, ModelFileError, UpstreamFailed
from cotenant.gateway import server
from cotenant.gateway.http.limits import Limits
from cotenant.gateway.inference.assembly import assemble
from cotenant.gateway.plans.headers import join_headers, read_header
from cotenant.http.connection import Connection
from cotenant.services.compose.importing import import_services
from tests.gateway.harness import SlotRouter
from tests.support.daemon.plain_gateway import plain_gateway
from tests.support.daemon.planner import planner
from tests.support.models.byte_sources import BytesSource

_LARGE: Final = 1 << 40
_LONGEST_S: Final = 1.0
_HANGS_S: Final = 60.0
_INSTRUMENTED: Final = ("cotenant", "yaml", "uvicorn")
_SPLIT: Final = b"\0"
"""Between the texts of an input that has two."""


def gguf(data: bytes) -> None:
    """The header of a model file."""
    with contextlib.suppress(ModelFileError):
        model_shape(read_gguf(BytesSource(data, size=_LARGE)))


def safetensors(data: bytes) -> None:
    """A folder's tensors, and its config.json."""
    tensors, _, config = data.partition(_SPLIT * 4)
    length = struct.pack("<Q", len(tensors))
    with contextlib.suppress(ModelFileError):
        safetensors_shape(parse_json_object(config, "config.json"), [], "model")
    with contextlib.suppress(ModelFileError):
        # Eight bytes of data follow, as the first input has it.
        header = read_safetensors(BytesSource(length + tensors, size=8 + len(tensors) + 8))
        safetensors_shape(parse_json_object(config, "config.json"), [header], "model")


def configuration(data: bytes) -> None:
    """cotenant.yaml."""
    with contextlib.suppress(BadSetting):
        document = parse_document(data.decode(errors="replace"), "cotenant.yaml")
        read_configuration(document, environment={"NAME": "value"})


def compose(data: bytes) -> None:
    """A compose file, and the `.env` next to it."""
    text, _, variables = data.partition(_SPLIT)
    folder = _folder()
    (folder / "compose.yaml").write_bytes(text)
    (folder / ".env").write_bytes(variables)
    with contextlib.suppress(ComposeFileError):
        import_services([folder / "compose.yaml"])


def header(data: bytes) -> None:
    """The beginning of a model file that a client uploads, once or as two parts."""
    with contextlib.suppress(CotenantError):
        join_headers([read_header("a.gguf", _LARGE, part) for part in data.split(b"\0GGUF\0")])


def request(data: bytes) -> None:
    """What a client sends on a connection."""
    config, state = _gateway()
    answer = _loop().run_until_complete(_answer_to(data, config, state))
    if b"HTTP/1.1 500 " in answer:
        raise AssertionError(f"answered {answer[:400]!r}")


def answer(data: bytes) -> None:
    """What an engine answers: a head, and a stream of events."""
    transport, connection = _Transport(), Connection(_loop())
    transport.carry(connection)
    connection.begin(b"", b"")
    connection.data_received(data)
    body = connection.take()
    transport.close()
    _loop().run_until_complete(asyncio.sleep(0))
    for path in (b"/v1/chat/completions", b"/v1/responses", b"/v1/messages"):
        with contextlib.suppress(UpstreamFailed):
            assemble(path, body)


def _model(alignment: int = 32) -> bytes:
    """The header of a small model: two keys and one tensor."""

    def text(value: bytes) -> bytes:
        return struct.pack("<Q", len(value)) + value

    keys: Mapping[bytes, bytes] = {
        b"general.architecture": struct.pack("<I", 8) + text(b"llama"),
        b"llama.block_count": struct.pack("<II", 4, 1),
        b"llama.embedding_length": struct.pack("<II", 4, 32),
        b"llama.attention.head_count": struct.pack("<IIQ2I", 9, 4, 2, 4, 4),
        b"tokenizer.ggml.tokens": struct.pack("<IIQ", 9, 8, 1) + text(b"a"),
        b"general.alignment": struct.pack("<II", 4, alignment),
    }
    tensor = text(b"blk.0.ffn_up.weight") + struct.pack("<I2QIQ", 2, 32, 1, 0, 0)
    return struct.pack("<4sIQQ", b"GGUF", 3, 1, len(keys)) + b"".join(map(_pair, keys.items())) + tensor


def _pair(pair: tuple[bytes, bytes]) -> bytes:
    return struct.pack("<Q", len(pair[0])) + pair[0] + pair[1]


def _post(path: str, body: str) -> bytes:
    head = f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    return f"{head}content-length: {len(body)}\r\n\r\n{body}".encode()


_TENSORS: Final = b'{"model.layers.0.w":{"dtype":"F16","shape":[2,2],"data_offsets":[0,8]}}'
_CONFIG: Final = b'{"num_hidden_layers":1,"hidden_size":2,"layer_types":["full_attention"],"rope_scaling":{}}'
_CHAT: Final = (
    '{"model":"llama","messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"data:,"}}]}],'
    '"stream":true,"keep_alive":"5m","response_format":{"type":"json_schema","json_schema":{"schema":{}}}}'
)
_EVENTS: Final = (
    b'HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5e\r\ndata: {"choices":[{"index":0,'
    b'"delta":{"content":"a","tool_calls":[{"id":"1"}]},"finish_reason":"stop"}]}\n\n\r\n0\r\n\r\n'
)

TARGETS: Final[Mapping[Callable[[bytes], None], tuple[bytes, ...]]] = {
    gguf: (_model(),),
    header: (_model(), _model() + b"\0GGUF\0" + _model()),
    safetensors: (_TENSORS + _SPLIT * 4 + _CONFIG,),
    configuration: (
        b"server: {port: 80, api_keys: ['${NAME:-key}']}\ndevices: {gpus: 2x24GiB, reserve_mib: 1}\n"
        b"models: [{<<: &a {engine: remote}, name: a, address: 'http://a/v1', model: b, timeout: 1h}]\n"
        b"defaults: {n_ctx: 4096, tensor_split: '1,2', keep_alive: 5m}\n"
        b"services: {compose: {files: [a]}, items: [{name: b}]}\n",
    ),
    compose: (
        b"name: p\ninclude: [{path: other.yaml}]\nservices:\n  a: &x\n    <<: {gpus: all}\n"
        b"    extends: {service: b}\n"
        b"    environment: ['A=${B:-${C}}']\n    ports: ['1:2']\n  b: {deploy: {resources: {reservations: {"
        b"devices: !override [{driver: nvidia, device_ids: ['0']}]}}}, labels: {cotenant.vram_mib: 1}}\n"
        b"\0C='a' # b\nexport D=\"c\"\n",
    ),
    request: (
        _post("/v1/chat/completions", _CHAT),
        _post("/api/chat", '{"model":"llama","messages":[{"role":"tool","images":["aGk="]}],"options":{}}'),
        _post("/api/plan", '{"model":"llama","recipe":{"n_ctx":1},"gpus":"2x24GiB"}'),
        b"PUT /api/models/a%2Fb?lines=9&x HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: h2c\r\n"
        b"x-cotenant-timeout: 3s\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    ),
    answer: (_EVENTS,),
}
"""Each reader, with inputs to begin from."""


class _Transport:
    """The transport of a connection, which keeps what is written."""

    _socket: Final = SimpleNamespace(
        setsockopt=lambda *_: None,
        getsockname=lambda: ("127.0.0.1", 8080),
        getpeername=lambda: ("127.0.0.1", 9),
    )

    def __init__(self) -> None:
        self.written = bytearray()
        self._protocol: Any = None

    def carry(self, protocol: Any) -> None:
        self._protocol = protocol
        protocol.connection_made(self)

    def get_extra_info(self, name: str) -> Any:
        return self._socket if name == "socket" else None

    def write(self, data: bytes) -> None:
        if not self.is_closing():
            self.written += data

    def writelines(self, lines: Iterable[bytes]) -> None:
        self.write(b"".join(lines))

    def close(self) -> None:
        if not self.is_closing():
            _loop().call_soon(self._protocol.connection_lost, None)
            self._protocol = None

    def is_closing(self) -> bool:
        return self._protocol is None

    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...

    abort = close


_kept: dict[str, Any] = {}


def _loop() -> asyncio.AbstractEventLoop:
    if "loop" not in _kept:
        _kept["loop"] = asyncio.new_event_loop()
    return _kept["loop"]


def _folder() -> Path:
    if "folder" not in _kept:
        _kept["folder"] = tempfile.TemporaryDirectory()
        Path(_kept["folder"].name, "other.yaml").write_text("services: {c: {image: c}}")
    return Path(_kept["folder"].name)


def _gateway() -> tuple[uvicorn.Config, Any]:
    if "gateway" not in _kept:
        limits = Limits(connections=100)
        engine = _loop().run_until_complete(asyncio.start_server(_engine, "127.0.0.1", 0))
        router = SlotRouter(Endpoint("127.0.0.1", engine.sockets[0].getsockname()[1]))
        gateway = plain_gateway(router, planner=planner(), limits=limits)
        config = uvicorn.Config(gateway, interface="asgi3", ws="none", lifespan="off", log_config=None)
        config.load()
        _kept["gateway"] = config, server._State(limits)
    return _kept["gateway"]


async def _engine(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")
    writer.close()


async def _answer_to(data: bytes, config: uvicorn.Config, state: Any) -> bytes:
    transport, protocol = _Transport(), server._BoundedProtocol(config, state)
    transport.carry(protocol)
    half = len(data) // 2
    for part in (data[:half], data[half:]):
        if not transport.is_closing():
            protocol.data_received(part)
            await asyncio.sleep(0)
    # The client leaves once nothing has ended for a moment.
    while state.tasks and (await asyncio.wait(state.tasks, timeout=0.02))[0]:
        pass
    transport.close()
    async with asyncio.timeout(_HANGS_S):
        while state.tasks:
            await asyncio.wait(state.tasks)
    await asyncio.sleep(0)
    return bytes(transport.written)


def main() -> None:
    """Fuzz one reader."""
    if len(sys.argv) < 3:
        raise SystemExit(f"{__doc__}\nReaders: {', '.join(each.__name__ for each in TARGETS)}")
    import atheris

    name, folder = sys.argv[1], Path(sys.argv[2])
    target = next(each for each in TARGETS if each.__name__ == name)
    folder.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(TARGETS[target]):
        (folder / f"seed-{number}").write_bytes(seed)

    def once(data: bytes) -> None:
        began = time.process_time()
        target(data)
        if time.process_time() - began > _LONGEST_S:
            raise AssertionError("it takes more than a second")

    for each in gc.get_objects():
        if isinstance(each, FunctionType) and (each.__module__ or "").partition(".")[0] in _INSTRUMENTED:
            atheris.instrument_func(each)
    atheris.Setup([sys.argv[0], str(folder), "-rss_limit_mb=1024", "-timeout=20", *sys.argv[3:]], once)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
