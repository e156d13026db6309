"""Form data: its fields found piece by piece, its files forwarded from disk."""

import asyncio
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cotenant.domain.engines import Endpoint
from cotenant.domain.errors import BadRequest
from cotenant.domain.models import ModelKind
from cotenant.domain.requests import ModelFile, ServedModel
from cotenant.gateway.http.limits import BodyMemory, Limits
from cotenant.gateway.inference.form import FormScanner, boundary_in
from tests.gateway import stub
from tests.gateway.harness import MODEL, SlotRouter, connected, fetch, serving
from tests.gateway.stub import StubEngine
from tests.support.waiting import until

PATH = "/v1/audio/transcriptions"
HEARER = ServedModel("hearer", ModelKind.TRANSCRIPTION, created_at=1)
FORM = {"Content-Type": "multipart/form-data; boundary=b-1"}


def form(*parts: tuple[str, bytes], boundary: bytes = b"b-1") -> bytes:
    body = b""
    for name, value in parts:
        file = b'; filename="x; name=\\"model\\""' if name == "file" else b""
        disposition = b'Content-Disposition: form-data; name="%b"%b' % (name.encode(), file)
        body += b"--%b\r\n%b\r\n\r\n%b\r\n" % (boundary, disposition, value)
    return body + b"--%b--\r\n" % boundary


@given(
    before=st.binary(max_size=60),
    pieces=st.lists(st.integers(1, 40), min_size=1, max_size=30),
    preamble=st.sampled_from([b"", b"a preamble\r\n"]),
)
def test_the_name_is_found_however_the_body_is_cut(before, pieces, preamble):
    file = before.replace(b"--b-1", b"") + b"\r\n--b-\r\n--b" + before.replace(b"--b-1", b"")
    body = preamble + form(("file", file), ("model", "wörter".encode()), ("stream", b"true"))
    scanner = FormScanner(b"b-1")
    at = turn = 0
    while at < len(body):
        size = pieces[turn % len(pieces)]
        scanner.feed(body[at : at + size])
        at, turn = at + size, turn + 1
    assert scanner.closed
    assert scanner.fields == {"model": "wörter", "stream": "true"}
    start, end = scanner.model_span
    assert body[start:end].decode() == "wörter"
    assert scanner.first_at == len(preamble)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (form(("model", b"a"), ("model", b"b")), "twice"),
        (form(("model", b"a" * 2000)), "longer than"),
        (form(("model", b"\xff")), "not UTF-8"),
        (b"--b-1\r\n" + b"x: y\r\n" * 10_000, "too long"),
    ],
)
def test_a_form_that_could_be_read_in_two_ways_is_refused(body, reason):
    with pytest.raises(BadRequest, match=reason):
        FormScanner(b"b-1").feed(body)


def test_only_form_data_has_a_boundary():
    assert boundary_in(b'Multipart/Form-Data; charset=utf-8; boundary="a b"') == b"a b"
    assert boundary_in(b"application/json") is None
    with pytest.raises(BadRequest, match="no boundary"):
        boundary_in(b"multipart/form-data")


@pytest.fixture(params=[10, 3_000_000], ids=["in memory", "on disk"])
def sound(request):
    return b"0123456789" * (request.param // 10)


async def test_a_body_reaches_the_engine_as_it_came(sound, tmp_path):
    body = form(("file", sound), ("model", b"hearer"))
    async with StubEngine() as engine, serving(SlotRouter(engine.endpoint, models=(HEARER,))) as port:
        reply = await fetch(port, "POST", PATH, body, **FORM)
        assert (reply.status, reply.body) == (200, stub.ANSWER)
        call = engine.calls[0]
        assert (call.body, call.headers[b"content-type"]) == (body, FORM["Content-Type"].encode())


async def test_a_body_without_the_name_gets_it_and_one_with_an_alias_the_own_one(sound):
    async with StubEngine() as engine, serving(SlotRouter(engine.endpoint, models=(HEARER,))) as port:
        assert (await fetch(port, "POST", PATH, form(("file", sound)), **FORM)).status == 200
        assert engine.calls[0].body == form(("file", sound))
        named = form(("file", sound), ("model", b"HEARER:latest"))
        assert (await fetch(port, "POST", PATH, named, **FORM)).status == 200
        assert engine.calls[1].body == form(("file", sound), ("model", b"hearer"))


async def test_the_engines_own_name_is_put_in(sound):
    async with StubEngine() as engine:
        endpoint = replace(engine.endpoint, model="whisper-1")
        async with serving(SlotRouter(endpoint, models=(HEARER,))) as port:
            await fetch(port, "POST", PATH, form(("file", sound)), **FORM)
            await fetch(port, "POST", PATH, form(("file", sound), ("model", b"hearer")), **FORM)
    assert engine.calls[0].body == form(("model", b"whisper-1"), ("file", sound))
    assert engine.calls[1].body == form(("file", sound), ("model", b"whisper-1"))


async def test_a_slot_is_taken_when_the_body_is_whole_and_a_client_that_leaves_frees_all():
    limits = Limits()
    async with (
        StubEngine() as engine,
        serving(router := SlotRouter(engine.endpoint, models=(HEARER,)), limits=limits) as port,
    ):
        async with connected(port) as client:
            client.send("POST", PATH, None, {**FORM, "Content-Length": "3000000"})
            client.writer.write(form(("file", b"x" * 2_000_000))[:-20])
            await until(lambda: limits.uploads.held_bytes > 1_900_000)
            assert not router.held
        await until(lambda: limits.uploads.held_bytes == 0)
        assert not engine.calls
        assert (await fetch(port, "POST", PATH, form(("file", b"x")), **FORM)).status == 200


async def test_a_retry_sends_the_whole_body_again(sound):
    body = form(("file", sound), ("model", b"hearer"))

    async def die_once(call: stub.Call) -> None:
        if len(engine.calls) > 1:
            await stub.answer(call)
        else:
            call.writer.transport.abort()

    async with (
        StubEngine(die_once) as engine,
        serving(SlotRouter(engine.endpoint, models=(HEARER,))) as port,
    ):
        assert (await fetch(port, "POST", PATH, body, **FORM)).status == 200
        assert [call.body for call in engine.calls] == [body, body]


async def test_an_engine_may_refuse_before_it_has_read_the_body():
    refusal = b'{"error":{"message":"too long a recording"}}'

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(stub.response(refusal, b"413 Content Too Large"))
        await writer.drain()
        await closed.wait()
        writer.close()

    closed = asyncio.Event()
    server = await asyncio.start_server(serve, "127.0.0.1", 0, limit=1 << 16)
    endpoint = Endpoint("127.0.0.1", server.sockets[0].getsockname()[1])
    async with serving(router := SlotRouter(endpoint, models=(HEARER,))) as port:
        reply = await fetch(port, "POST", PATH, form(("file", bytes(30_000_000))), **FORM)
        assert (reply.status, reply.body) == (413, refusal)
        assert not router.held
        closed.set()
    server.close()


@pytest.mark.parametrize(
    ("limits", "headers", "body", "status", "reason"),
    [
        (Limits(upload_bytes=1000), {}, form(("file", bytes(2000))), 413, "over the limit"),
        (Limits(uploads=BodyMemory(1_000_000)), {}, form(("file", bytes(2_000_000))), 429, "memory"),
        (Limits(), {"Content-Encoding": "gzip"}, form(), 415, "cannot be compressed"),
        (Limits(), {"Content-Type": "multipart/form-data"}, form(), 400, "no boundary"),
        (Limits(), {}, form(("model", b"hearer"))[:-6], 400, "before its last boundary"),
        (Limits(), {}, form(("model", b"nobody")), 404, "nobody"),
        (Limits(), {}, form(("model", b"llama")), 200, ""),
        (Limits(), {}, form(("file", b"x")), 400, "names no `model`"),
    ],
)
async def test_what_cannot_be_taken_is_refused(limits, headers, body, status, reason):
    async with (
        StubEngine() as engine,
        serving(SlotRouter(engine.endpoint, models=(HEARER, MODEL)), limits=limits) as port,
    ):
        reply = await fetch(port, "POST", PATH, body, **{**FORM, **headers})
    assert reply.status == status
    assert reason in reply.body.decode()
    assert limits.uploads.held_bytes == 0


@pytest.mark.parametrize(("hears", "status"), [(False, 400), (True, 200)])
async def test_a_file_with_a_projector_may_hear(hears, status):
    file = ModelFile("/models/a.gguf", 1, "llama", 1, None, 1, None)
    model = ServedModel("m", ModelKind.TEXT, created_at=1, file=file, vision=True, hearing=hears)
    async with StubEngine() as engine, serving(SlotRouter(engine.endpoint, models=(model,))) as port:
        assert (await fetch(port, "POST", PATH, form(("file", b"x")), **FORM)).status == status


@pytest.mark.parametrize(
    ("kind", "path", "status"),
    [
        (ModelKind.TRANSCRIPTION, "/v1/chat/completions", 400),
        (ModelKind.SPEECH, "/v1/audio/speech", 200),
        (ModelKind.IMAGE, "/v1/audio/speech", 400),
        (ModelKind.ANY, "/v1/chat/completions", 200),
        (ModelKind.ANY, "/v1/images/edits", 200),
    ],
)
async def test_a_kind_that_the_entry_states_decides_before_the_model_is_loaded(kind, path, status):
    model = ServedModel("m", kind, created_at=1)
    async with StubEngine() as engine, serving(SlotRouter(engine.endpoint, models=(model,))) as port:
        reply = await fetch(port, "POST", path, b'{"model":"m"}')
        assert reply.status == status
        assert bool(engine.calls) == (status == 200)
