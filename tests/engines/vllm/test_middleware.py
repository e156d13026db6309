import importlib
from typing import Any

import pytest

from cotenant.engines.vllm_middleware import cotenant_key


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ([(b"authorization", b"Bearer s3cret")], 200),
        ([(b"host", b"x"), (b"authorization", b"Bearer wrong")], 401),
        ([(b"authorization", b"Bearer ")], 401),
        ([], 401),
    ],
)
@pytest.mark.parametrize("path", ["/v1/completions", "/invocations", "/sleep", "/health"])
async def test_every_route_of_vllm_needs_the_key(
    headers: list[tuple[bytes, bytes]], status: int, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "s3cret")
    module = importlib.reload(cotenant_key)
    sent: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200})

    async def receive() -> Any:
        return {"type": "http.request"}

    async def send(message: Any) -> None:
        sent.append(message)

    await module.RequireKey(app)({"type": "http", "path": path, "headers": headers}, receive, send)
    assert sent[0]["status"] == status
