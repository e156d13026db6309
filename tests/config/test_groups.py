"""`groups`: names for several models."""

import pytest

from cotenant.config.changes import diff
from cotenant.domain.errors import BadSetting
from cotenant.domain.requests import GroupUse, ModelGroup, RequestRules
from tests.config.conftest import Reader

MODELS = """models:
- {path: models/tiny.gguf, name: a, aliases: [first]}
- {path: models/tiny.gguf, name: b}
"""


def test_a_group_has_members_by_name_or_alias_and_rules_of_its_own(read: Reader) -> None:
    text = "groups: [{name: g, members: [b, first, a], use: first, spill_over: 4, strip: [seed]}]"
    (group,) = read(MODELS + text).groups
    assert group == ModelGroup("g", ("b", "a"), GroupUse.FIRST, 4, RequestRules(strip=("seed",)))
    (group,) = read(f"{MODELS}groups: [{{name: g, members: [a]}}]").groups
    assert group == ModelGroup("g", ("a",))


@pytest.mark.parametrize(
    ("group", "told"),
    [
        ("{name: g, members: [c]}", "no model is named c"),
        ("{name: g, members: []}", "members"),
        ("{members: [a]}", "name"),
        ("{name: b, members: [a]}", "the name b is taken"),
        ("{name: first, members: [a]}", "the name first is taken"),
        ("{name: g, members: [a], use: best}", "best is not known"),
        ("{name: g, members: [a], spill_over: 0}", "0 is not a whole number"),
        ("{name: g, members: [a]}, {name: g, members: [b]}", "the name g is taken"),
    ],
)
def test_what_is_no_group_is_refused(read: Reader, group: str, told: str) -> None:
    with pytest.raises(BadSetting, match="groups") as caught:
        read(f"{MODELS}groups: [{group}]")
    assert told in f"{caught.value.message} {caught.value.problems}"


def test_a_changed_group_changes_at_once_and_reloads_no_model(read: Reader) -> None:
    before, after = (read(f"{MODELS}groups: [{{name: g, members: [{of}]}}]") for of in "ab")
    changes = diff(before, after)
    assert changes.sentences() == ("groups changed",)
