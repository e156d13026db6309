"""Real containers where they can be had; elsewhere the run says at its end what it could not test."""

from __future__ import annotations

import pytest

from tests.support.container_bed import ContainerBed, container_bed

_untested: list[str] = []


@pytest.fixture
def bed(monkeypatch, request) -> ContainerBed:
    found = container_bed()
    if isinstance(found, str):
        _untested.append(f"{request.node.nodeid}: {found}")
        pytest.skip(found)
    for name, value in found.environment.items():
        monkeypatch.setenv(name, value)
    return found


def pytest_terminal_summary(terminalreporter):
    if _untested:
        terminalreporter.section("NOT TESTED: containers", yellow=True, bold=True)
        for line in _untested:
            terminalreporter.write_line(line, yellow=True)
