"""Checks of the configuration and of its port."""

import socket
from collections.abc import Iterator
from typing import Final

from cotenant.doctor.findings import Observation, ok, problem, warning
from cotenant.doctor.host_context import HostContext
from cotenant.domain.engines import Endpoint
from cotenant.domain.errors import BadSetting
from cotenant.domain.units import format_count
from cotenant.http import blocking
from cotenant.http.client import Limits, Request

_ASK_WITHIN_S: Final = 1.0
_LOWEST_FREE_PORT: Final = 1024


def configuration(host: HostContext) -> Iterator[Observation]:
    """Check whether the configuration can be read and works."""
    if host.refusal is not None:
        refusal = host.refusal
        problems = refusal.problems if isinstance(refusal, BadSetting) else (refusal.message,)
        for number, text in enumerate(problems):
            yield problem(
                text,
                "The daemon does not start with this configuration.",
                # The hint is for the first mistake.
                "" if number else refusal.hint,
            )
        return
    configuration = host.configuration
    if configuration is None or configuration.path is None:
        yield ok("no configuration file: `serve` uses its flags")
        return
    for each in configuration.problems:
        yield warning(str(each), "It is ignored.")
    if configuration.models_dir is not None and not configuration.models_dir.is_dir():
        yield problem(
            f"the models folder {configuration.models_dir} does not exist",
            "No model in it is served.",
            f"mkdir -p {configuration.models_dir}",
        )
    yield ok(f"{configuration.path} can be read; it names {format_count(len(configuration.models), 'model')}")


def port(host: HostContext) -> Iterator[Observation]:
    """Check whether the port is free or used by Cotenant."""
    server = host.settings.server
    if server.port == 0:
        yield ok("any free port is used")
        return
    where = f"{server.host} port {server.port}"
    refusal = _refusal(server.host, server.port)
    if refusal is None:
        yield ok(f"{where} is free")
    elif _is_cotenant(server.host, server.port):
        yield ok(f"a Cotenant daemon answers at {where}")
    elif isinstance(refusal, PermissionError):
        yield problem(
            f"{where} may only be opened by root",
            "The daemon does not start.",
            f"Choose a port from {_LOWEST_FREE_PORT} on.",
        )
    else:
        yield problem(
            f"{where} cannot be opened: {refusal.strerror or refusal}",
            "The daemon does not start.",
            f"ss -ltnp 'sport = :{server.port}'   # or choose another with `server.port`",
        )


def _refusal(host: str, number: int) -> OSError | None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family) as trial:
            # As the server does, so that a closed connection in TIME_WAIT does not block the port.
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind((host, number))
            trial.listen(1)
    except OSError as error:
        return error
    return None


def _is_cotenant(host: str, number: int) -> bool:
    reach = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104
    limits = Limits(_ASK_WITHIN_S, whole_s=_ASK_WITHIN_S)
    try:
        response = blocking.fetch(Request(Endpoint(reach, number), "GET", "/health"), limits)
    except OSError:
        return False
    return response.status in (200, 503) and b"status" in response.body
