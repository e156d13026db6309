import pytest


@pytest.fixture(autouse=True)
def _containers_are_queried_at_each_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests change containers behind the back of the operator."""
    monkeypatch.setattr("cotenant.services.operator._FRESH_S", 0.0)
