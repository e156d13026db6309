"""Compressed bodies of requests."""

import gzip
import json
import zlib

import pytest

from cotenant.domain.errors import BadRequest, RequestTooLarge, UnsupportedMediaType
from cotenant.gateway.http.codings import decoded
from cotenant.gateway.http.limits import Limits
from tests.gateway.harness import CHAT, SlotRouter, fetch, serving
from tests.gateway.stub import StubEngine

TEXT = b'{"a": "' + b"x" * 1000 + b'"}'
LIMITS = Limits(body_bytes=2000)


def gz(data: bytes) -> bytes:
    """Compress without the time, which would be in the names of tests: each worker must find the same."""
    return gzip.compress(data, mtime=0)


def raw(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(data) + packer.flush()


@pytest.mark.parametrize(
    ("coding", "body"),
    [
        ("gzip", gz(TEXT)),
        ("X-GZIP", gz(TEXT)),
        ("gzip", gz(TEXT[:9]) + gz(TEXT[9:])),
        ("deflate", zlib.compress(TEXT)),
        ("deflate", raw(TEXT)),
        ("deflate, gzip", gz(zlib.compress(TEXT))),
        ("identity", TEXT),
        ("", TEXT),
    ],
)
def test_known_codings_are_undone(coding, body):
    assert decoded(body, [(b"content-encoding", coding.encode())], LIMITS) == TEXT


@pytest.mark.parametrize("coding", ["zstd", "br", "gzip, zstd"])
def test_another_coding_is_named(coding):
    with pytest.raises(UnsupportedMediaType, match=coding.rpartition(" ")[2]):
        decoded(b"\x28\xb5\x2f\xfd", [(b"content-encoding", coding.encode())], LIMITS)


@pytest.mark.parametrize("body", [b"plain", gz(TEXT)[:-5], gz(TEXT) + b"rest"])
def test_a_body_that_is_not_what_it_says_is_refused(body):
    with pytest.raises(BadRequest, match="gzip"):
        decoded(body, [(b"content-encoding", b"gzip")], LIMITS)


def test_neither_members_without_end_nor_codings_are_followed():
    with pytest.raises(BadRequest, match="members"):
        decoded(gzip.compress(b"") * 100_000, [(b"content-encoding", b"gzip")], LIMITS)
    with pytest.raises(UnsupportedMediaType):
        decoded(TEXT, [(b"content-encoding", b", ".join([b"gzip"] * 1000))], LIMITS)


@pytest.mark.parametrize("parts", [1, 60])
def test_a_body_that_expands_over_the_limit_is_refused(parts):
    body = gzip.compress(b"x" * (300_000_000 // parts if parts == 1 else 100)) * parts
    with pytest.raises(RequestTooLarge):
        decoded(body, [(b"content-encoding", b"gzip")], LIMITS)


@pytest.mark.parametrize("path", [CHAT, "/v1/messages", "/api/chat"])
async def test_the_engine_gets_a_compressed_request_as_it_is_without(path):
    asked = {"model": "llama", "max_tokens": 2, "messages": [{"role": "user", "content": "é"}]}
    async with StubEngine() as engine, serving(SlotRouter(engine.endpoint)) as port:
        for body, coding in (
            (json.dumps(asked).encode(), "identity"),
            (gzip.compress(json.dumps(asked).encode()), "gzip"),
        ):
            await fetch(port, "POST", path, body, Content_Encoding=coding)
        plain, unpacked = engine.calls
        assert unpacked.body == plain.body
        assert b"content-encoding" not in unpacked.headers
        assert (await fetch(port, "POST", path, b"x", Content_Encoding="zstd")).status == 415


async def test_the_operators_api_takes_them_too():
    async with StubEngine() as engine, serving(SlotRouter(engine.endpoint), api_keys=["k"]) as port:
        body = gzip.compress(b'{"key": "k"}')
        headers = {"Content_Encoding": "gzip", "Content_Type": "application/json"}
        assert (await fetch(port, "POST", "/api/session", body, **headers)).status == 200


async def test_a_coding_of_the_transfer_counts_as_one_of_the_content():
    packed = gzip.compress(TEXT)
    assert decoded(packed, [(b"transfer-encoding", b"gzip, chunked")], LIMITS) == TEXT
    assert decoded(TEXT, [(b"transfer-encoding", b"chunked")], LIMITS) == TEXT
    with pytest.raises(UnsupportedMediaType):
        decoded(TEXT, [(b"transfer-encoding", b"br, chunked")], LIMITS)


@pytest.mark.parametrize("path", [CHAT, "/api/chat"])
async def test_a_byte_order_mark_is_no_part_of_a_body(path):
    asked = {"model": "llama", "max_tokens": 2, "messages": [{"role": "user", "content": "é"}]}
    async with StubEngine() as engine, serving(SlotRouter(engine.endpoint)) as port:
        await fetch(port, "POST", path, b"\xef\xbb\xbf" + json.dumps(asked).encode())
        (call,) = engine.calls
    assert json.loads(call.body)["messages"] == asked["messages"]
