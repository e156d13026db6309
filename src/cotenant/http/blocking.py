"""The small client for callers without an event loop."""

import asyncio
import contextlib
from collections.abc import Iterator

from cotenant.http import client
from cotenant.http.client import Exchange, Limits, Request, Response


def fetch(request: Request, limits: Limits) -> Response:
    """Return the whole response to a request. Raises OSError."""
    return asyncio.run(client.fetch(request, limits))


@contextlib.contextmanager
def opened(request: Request, limits: Limits) -> Iterator[tuple[int, Iterator[bytes]]]:
    """Yield the status of the response, and its body as it arrives. Raises OSError, also while reading."""
    with (
        asyncio.Runner() as runner,
        contextlib.closing(runner.run(Exchange.connect(request.endpoint, limits))) as exchange,
    ):
        runner.run(exchange.send(request))
        yield exchange.status, iter(lambda: runner.run(exchange.read()), b"")
