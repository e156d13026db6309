"""A request for another name of its model: the same request, and mostly the same bytes."""

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cotenant.domain.engine_kinds import EngineKind
from cotenant.domain.engines import Endpoint
from cotenant.gateway.inference.request import engine_body, parse, renamed

_TEXTS = st.one_of(
    st.sampled_from(["model", '"model": "x"', "\\", '\\"', "mod\u0065l", "é😀", '{"model":"x"}', "model\\"]),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
)
_VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), _TEXTS),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(_TEXTS, inner, max_size=3)),
    max_leaves=8,
)


@st.composite
def _bodies(draw: st.DrawFn) -> bytes:
    """An object in one of the forms that clients write, with or without a model among its keys."""
    fields = draw(st.dictionaries(_TEXTS, _VALUES, max_size=4))
    if draw(st.booleans()):
        fields["model"] = draw(_TEXTS)
    items = draw(st.permutations(sorted(fields.items())))
    text = json.dumps(
        dict(items),
        ensure_ascii=draw(st.booleans()),
        indent=draw(st.sampled_from([None, 2])),
        separators=draw(st.sampled_from([None, (",", ":"), (" ,", " : ")])),
    )
    if draw(st.booleans()):
        text = text.replace('"model"', '"mod\\u0065l"', 1)
    return text.encode()


@given(_bodies(), _TEXTS)
@example(b'{"a\\"model": 1, "mod\\u0065l": "m"}', "new")
@example(b'{"model": 1}', "new")
@example(b'{"model":"a","model":"b"}', "new")
def test_a_renamed_request_differs_in_its_model_alone(body: bytes, name: str) -> None:
    request = parse(body)
    assert json.loads(renamed(request, body, name)) == {**request, "model": name}


@pytest.mark.parametrize(
    "body",
    [
        '{"messages": [{"role": "user", "content": "1.0E2 é 😀 \\u00e9"}],  "model" :\n"m" , "seed": 1e3 }',
        '{"model":"m\\"n","x":[1.50, {"models": "model"}]}'.replace('"model"}', '"modal"}'),
    ],
)
def test_everything_else_keeps_the_bytes_of_the_client(body: str) -> None:
    old = json.dumps(json.loads(body)["model"])
    assert renamed(parse(body.encode()), body.encode(), "org/new").decode() == body.replace(old, '"org/new"')


def test_an_engine_gets_its_own_name_and_the_clients_numbers() -> None:
    endpoint = Endpoint("127.0.0.1", 1, model="own", kind=EngineKind.VLLM)
    body = b'{"model": "m", "temperature": 1.0E-1, "messages": []}'
    sent, _ = engine_body(b"/v1/chat/completions", parse(body), body, endpoint, translated=False)
    assert sent == b'{"model": "own", "temperature": 1.0E-1, "messages": []}'
    with_stay: dict[str, Any] = {**parse(body), "keep_alive": 5}
    sent, _ = engine_body(
        b"/v1/chat/completions", with_stay, json.dumps(with_stay).encode(), endpoint, translated=False
    )
    assert json.loads(sent) == {**parse(body), "model": "own"}
