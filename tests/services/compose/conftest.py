"""Real containers where they can be had."""

import pytest

from tests.support.containers.container_bed import ContainerBed, container_bed


@pytest.fixture
def bed(monkeypatch) -> ContainerBed:
    found = container_bed()
    if isinstance(found, str):
        pytest.skip(found)
    for name, value in found.environment.items():
        monkeypatch.setenv(name, value)
    return found
