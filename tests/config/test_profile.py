"""The low-memory profile and the alerts of a configuration."""

import pytest

from cotenant.config.configuration import AlertSettings
from cotenant.domain.errors import BadSetting
from cotenant.domain.models import MOST_LAYERS, CacheType
from tests.config.conftest import Reader

LOW = "defaults: {profile: low-memory"


def test_a_profile_sets_what_no_one_else_does(read: Reader) -> None:
    text = f"{LOW}, ctx: 3000}}\nmodels: [{{path: models/tiny.gguf, parallel: 2}}]\n"

    configuration = read(text)

    (model,) = configuration.models
    recipe = model.recipe
    assert (recipe.n_ctx, recipe.parallel) == (3000, 2)
    assert (recipe.cache_type_k, recipe.cache_type_v) == (CacheType.Q8_0, CacheType.Q8_0)
    assert recipe.n_gpu_layers == MOST_LAYERS
    assert (model.keep_alive_s, configuration.scheduling.max_loaded) == (60.0, 1)


def test_what_the_file_says_of_keeping_and_counting_wins_over_the_profile(read: Reader) -> None:
    configuration = read(
        f"{LOW}, keep_alive: forever, max_loaded: 3}}\nmodels: [{{path: models/tiny.gguf}}]\n"
    )

    assert configuration.models[0].keep_alive_s is None
    assert configuration.scheduling.max_loaded == 3


def test_a_profile_is_taken_from_flag_and_variable_too(read: Reader) -> None:
    text = "models_dir: models\n"

    assert read(text, {"COTENANT_PROFILE": "low-memory"}).models[0].recipe.parallel == 1
    assert read(text, flags={"profile": "low-memory"}).models[0].recipe.parallel == 1


def test_an_unknown_profile_is_named_with_the_known_ones(read: Reader) -> None:
    with pytest.raises(BadSetting) as refused:
        read("defaults: {profile: low-memroy}\n")

    assert "low-memory" in f"{refused.value.message} {refused.value.hint}"
    assert "cotenant.yaml, line 1" in refused.value.message


def test_alerts_have_defaults_and_take_what_is_given(read: Reader) -> None:
    given = "alerts: {webhook: 'https://hooks.example.org/x', memory_percent: 80, for: 2m}\n"

    assert read("").alerts == AlertSettings(None, 90, 60.0)
    assert read(given).alerts == AlertSettings("https://hooks.example.org/x", 80, 120.0)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("alerts: {webhook: 'ftp://secret.example.org'}", "it is not a URL"),
        ("alerts: {webhook: 'http://'}", "it is not a URL"),
        ("alerts: {memory_percent: 101}", "1 to 100"),
        ("alerts: {for: soon}", "soon"),
        ("alerts: {form: 1m}", "for"),
        ("alerts: {for_: 1m}", "for"),
    ],
)
def test_wrong_alerts_are_refused_with_their_place(read: Reader, text: str, said: str) -> None:
    with pytest.raises(BadSetting) as refused:
        read(text + "\n")

    told = f"{refused.value.message} {refused.value.hint}"
    assert "cotenant.yaml, line 1" in told
    assert said in told
    assert "secret" not in told
