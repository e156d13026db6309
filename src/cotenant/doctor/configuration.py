"""The configuration, and the port that it names."""

from __future__ import annotations

import http.client
import socket
from collections.abc import Iterator
from typing import Final

from cotenant.config.configuration import ServerSettings
from cotenant.doctor.findings import Area, Finding, ok, problem, warning
from cotenant.doctor.host_context import Patient
from cotenant.domain.errors import BadSetting

_ASK_WITHIN_S: Final = 1.0
_LOWEST_FREE_PORT: Final = 1024


def configuration(patient: Patient) -> Iterator[Finding]:
    """Look whether the configuration can be read, and what in it will not work."""
    if patient.refusal is not None:
        refusal = patient.refusal
        complaints = refusal.complaints if isinstance(refusal, BadSetting) else (refusal.message,)
        for number, complaint in enumerate(complaints):
            yield problem(
                Area.FILES,
                complaint,
                "The daemon does not start with this configuration.",
                # The hint is for the first mistake.
                "" if number else refusal.hint,
            )
        return
    told = patient.configuration
    if told is None or told.path is None:
        yield ok(Area.FILES, "no configuration file: `serve` takes what it is told by flags")
        return
    for each in told.problems:
        yield warning(Area.FILES, str(each), "It is left out.")
    if told.models_dir is not None and not told.models_dir.is_dir():
        yield problem(
            Area.FILES,
            f"the models' folder {told.models_dir} is not there",
            "No model in it is served.",
            f"mkdir -p {told.models_dir}",
        )
    yield ok(Area.FILES, f"{told.path} can be read; it names {len(told.models)} models")


def port(patient: Patient) -> Iterator[Finding]:
    """Look whether the port is free, or Cotenant's already."""
    server = patient.configuration.server if patient.configuration is not None else ServerSettings()
    if server.port == 0:
        yield ok(Area.FILES, "any free port will do")
        return
    where = f"{server.host} port {server.port}"
    refusal = _refusal(server.host, server.port)
    if refusal is None:
        yield ok(Area.FILES, f"{where} is free")
    elif _is_cotenant(server.host, server.port):
        yield ok(Area.FILES, f"a Cotenant daemon answers at {where}")
    elif isinstance(refusal, PermissionError):
        yield problem(
            Area.FILES,
            f"{where} may only be opened by root",
            "The daemon does not start.",
            f"Choose a port from {_LOWEST_FREE_PORT} on.",
        )
    else:
        yield problem(
            Area.FILES,
            f"{where} cannot be opened: {refusal.strerror or refusal}",
            "The daemon does not start.",
            f"ss -ltnp 'sport = :{server.port}'   # or choose another with `server.port`",
        )


def _refusal(host: str, number: int) -> OSError | None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family) as trial:
            # As the server does, so that a connection that lingers is no obstacle.
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind((host, number))
            trial.listen(1)
    except OSError as error:
        return error
    return None


def _is_cotenant(host: str, number: int) -> bool:
    reach = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104
    connection = http.client.HTTPConnection(reach, number, timeout=_ASK_WITHIN_S)
    try:
        connection.request("GET", "/health")
        answer = connection.getresponse()
        return answer.status in (200, 503) and b"status" in answer.read(4096)
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
