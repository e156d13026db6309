"""The `advisor` section: what it takes, and what is wrong between its parts."""

import pytest

from cotenant.config.changes import diff
from cotenant.config.configuration import AdvisorSettings
from cotenant.domain.advisors import AdvisorMode
from cotenant.domain.errors import BadSetting
from tests.config.conftest import Reader

MODEL = "models:\n- {path: models/tiny.gguf, aliases: [brain]}\n"


def test_it_is_off_unless_told_otherwise(read: Reader) -> None:
    assert read("").advisor == AdvisorSettings()
    assert read("advisor: {mode: off, model: nobody}").advisor.mode is AdvisorMode.OFF


def test_everything_can_be_told(read: Reader) -> None:
    text = (
        "advisor: {mode: shadow, address: 'https://example.org/v1', model: big, "
        "api_key: sesame, every: 5m, timeout: 10s}"
    )
    told = read(text).advisor
    assert told == AdvisorSettings(AdvisorMode.SHADOW, "https://example.org/v1", "big", "sesame", 300.0, 10.0)
    assert "sesame" not in repr(told)


def test_a_model_served_here_goes_by_any_of_its_names(read: Reader) -> None:
    configuration = read(f"{MODEL}advisor: {{mode: on, model: brain}}")
    assert configuration.advisor.model == "brain"
    assert not configuration.problems


def test_one_that_is_not_served_is_told_and_stops_nothing(read: Reader) -> None:
    (problem,) = read(f"{MODEL}advisor: {{mode: on, model: missing}}").problems
    assert str(problem) == "advisor: missing is not served here, so there is no advice"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{mode: on}", "there is no model to ask"),
        ("{mode: always, model: m}", "always is not known"),
        ("{mode: on, model: m, address: 'ftp://x'}", "it is not a URL"),
        ("{mode: on, model: m, address: 'http://x/v1?key=secret'}", "it is not the address of an API"),
        ("{mode: on, model: brain, api_key: secret}", "advisor.api_key: there is no address for this key"),
        ("{mode: on, model: m, every: 0}", "advisor.every"),
        ("{mode: on, model: m, pin: all}", "advisor.pin"),
    ],
)
def test_what_is_wrong_is_refused_with_its_place(read: Reader, text: str, told: str) -> None:
    with pytest.raises(BadSetting) as caught:
        read(f"{MODEL}advisor: {text}")
    assert told in caught.value.message
    assert "secret" not in caught.value.message


def test_another_mode_is_told_at_a_reload(read: Reader) -> None:
    old = read(f"{MODEL}advisor: {{mode: shadow, model: brain}}")
    new = read(f"{MODEL}advisor: {{mode: on, model: brain}}")
    assert diff(old, new).settings == ("advisor.mode",)
