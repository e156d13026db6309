"""Rules about fields of requests, and variants."""

import pytest

from cotenant.config.changes import diff
from cotenant.domain.errors import BadSetting
from cotenant.domain.requests import RequestRules
from tests.config.conftest import Reader

MODEL = "models: [{path: models/tiny.gguf, name: a, %s}]"


def test_values_without_quotes_are_those_of_json(read: Reader) -> None:
    text = (
        "set: {temperature: 0.6, top_k: 20, text: '1', on: true, word: on, none: null, "
        "chat_template_kwargs: {deep: [1, {x: -2e3}], plain: 1:30}}, strip: [seed], limit: {max_tokens: 10}"
    )
    (model,) = read(MODEL % text).models
    assert model.rules == RequestRules(
        {
            "temperature": 0.6,
            "top_k": 20,
            "text": "1",
            "on": True,
            "word": "on",
            "none": None,
            "chat_template_kwargs": {"deep": [1, {"x": -2000.0}], "plain": "1:30"},
        },
        ("seed",),
        {"max_tokens": 10},
    )


def test_a_variables_value_may_be_a_number(read: Reader) -> None:
    (model,) = read(MODEL % "limit: {max_tokens: '${MOST}'}", {"MOST": "64"}).models
    assert model.rules.limit == {"max_tokens": 64}


def test_a_variant_has_the_models_rules_and_its_own_over_them(read: Reader) -> None:
    text = "set: {x: {a: 1, b: 2}, y: 1}, strip: [s], limit: {n: 2, m: 3}, variants: {v: {%s}}"
    (model,) = read(MODEL % text % "set: {x: {b: 3}}, strip: [s, t], limit: {n: 9}").models
    assert model.variants == {
        "a:v": RequestRules({"x": {"a": 1, "b": 3}, "y": 1}, ("s", "t"), {"n": 9, "m": 3})
    }
    assert model.names == ("a", "a:v")


@pytest.mark.parametrize(
    ("given", "what", "hint"),
    [
        ("set: {model: b}", "model is the client's to say", "Rules are about other fields."),
        ("strip: [messages]", "messages is the client's to say", ""),
        ("limit: {num_predict: 1}", "rules have one name for num_predict in every API", "Write max_tokens."),
        ("set: {think: false}", "one name for think", "chat_template_kwargs: {enable_thinking: false}"),
        ("limit: {temperature: hot}", "temperature: hot is not a number", "Write the most it may be."),
        ("limit: {max_tokens: 0}", "max_tokens: 0 is not a number of tokens", "Write 1 or more."),
        ("set: [temperature]", "is not a mapping", "Write it as {temperature: 0.6}."),
        ("set: {a b: 1}", "a b is not the name of a field", ""),
        ("set: {x: 1e999}", "1e999 is too large a number", ""),
        ("variants: {latest: {strip: [x]}}", "latest cannot be the name of a variant", ""),
        ("variants: {'a:b': {strip: [x]}}", "a:b cannot be the name of a variant", ""),
        ("variants: {b: {sett: {x: 1}}}", "models[0].variants.b.sett: unknown setting", "Did you mean set?"),
        ("variants: {b: 1}", "1 is not a mapping", ""),
        ("aliases: ['a:b'], variants: {b: {strip: [x]}}", "the name a:b is taken by models[0]", ""),
    ],
)
def test_what_is_wrong_is_said_with_its_key_and_what_to_do(
    read: Reader, given: str, what: str, hint: str
) -> None:
    with pytest.raises(BadSetting) as caught:
        read(MODEL % given)
    assert what in str(caught.value.problems[0])
    assert hint in (caught.value.hint or "")
    assert "line 1" in caught.value.message


def test_names_of_variants_are_taken_for_all_models(read: Reader) -> None:
    with pytest.raises(BadSetting, match=r"the name a:b is taken by models\[0\]"):
        read(
            "models: [{path: models/tiny.gguf, name: a, variants: {b: {strip: [x]}}},"
            " {path: models/tiny.gguf, name: 'a:b'}]"
        )


@pytest.mark.parametrize("given", ["set: {x: 1}", "strip: [x]", "variants: {b: {limit: {x: 1}}}"])
def test_a_change_loads_nothing_again(read: Reader, given: str) -> None:
    changes = diff(read(MODEL % "pinned: no"), read(MODEL % given))
    assert [model.name for model in changes.adjusted] == ["a"]
    assert not changes.reloaded
