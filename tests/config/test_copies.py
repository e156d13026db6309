"""`copies` of a model."""

import pytest

from cotenant.domain.errors import BadSetting
from cotenant.domain.residencies import Copies
from tests.config.conftest import Reader

MODEL = "models:\n- path: models/tiny.gguf\n"


@pytest.mark.parametrize(
    ("text", "copies"),
    [
        ("copies: 1", Copies()),
        ("copies: 3", Copies(3, 3)),
        ("copies: {max: 2}", Copies(1, 2)),
        ("copies: {min: 2, max: 4}", Copies(2, 4)),
    ],
)
def test_copies_are_a_number_or_bounds(read: Reader, text: str, copies: Copies) -> None:
    assert read(MODEL).models[0].copies == Copies(1, 1)
    assert read(f"{MODEL}  {text}").models[0].copies == copies


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("copies: 0", "0 is not a whole number from 1 to 64"),
        ("copies: many", "many is not a whole number"),
        ("copies: [1, 2]", "it is a list"),
        ("copies: {min: 1}", "copies has no max"),
        ("copies: {min: 3, max: 2}", "min 3 is more than max 2"),
        ("copies: {max: 99}", "99 is not a whole number from 1 to 64"),
        ("copies: {least: 1, max: 2}", "least is no key of copies"),
    ],
)
def test_what_is_no_number_of_copies_is_refused(read: Reader, text: str, told: str) -> None:
    with pytest.raises(BadSetting, match="copies") as caught:
        read(f"{MODEL}  {text}")
    assert told in caught.value.message


@pytest.mark.parametrize(
    "entry", ["engine: remote, address: 'http://there:1', model: m", "engine: ollama, model: m"]
)
def test_a_model_that_another_server_runs_has_one_copy(read: Reader, entry: str) -> None:
    assert read(f"models: [{{{entry}, copies: 1}}]")
    with pytest.raises(BadSetting, match="models have one copy: another server decides where they run"):
        read(f"models: [{{{entry}, copies: 2}}]")
