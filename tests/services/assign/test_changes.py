"""How two configurations differ."""

from dataclasses import replace

from cotenant.services.assign.changes import difference
from cotenant.services.model import Assignment, Change
from tests.services.assign.service_cases import A400, A5500, CLIP, ENRICHMENT, LLM, on


def test_only_what_changed_is_told_in_order() -> None:
    before = [on(LLM, A5500), on(CLIP, A5500), on(ENRICHMENT, A5500)]
    after = [on(ENRICHMENT, A400, 3.5), on(LLM, A5500), on(CLIP, A400)]
    assert difference(before, after) == (
        Change("ai-enrichment", before[2], after[0]),
        Change("ai-clip", before[1], after[2]),
    )
    assert difference(before, before) == ()


def test_a_budget_alone_is_a_change() -> None:
    assert difference([on(ENRICHMENT, A400, 3.5)], [on(ENRICHMENT, A400, 3.0)])


def test_the_same_card_under_another_index_is_no_change() -> None:
    assert difference([on(CLIP, A400)], [on(CLIP, replace(A400, index=5))]) == ()


def test_another_card_under_the_same_index_is_a_change() -> None:
    assert difference([on(CLIP, A400)], [on(CLIP, replace(A5500, index=1))])


def test_the_index_counts_where_one_side_knows_no_id() -> None:
    assert difference([Assignment("ai-clip", 1)], [on(CLIP, A400)]) == ()
    assert difference([Assignment("ai-clip", 0)], [on(CLIP, A400)])


def test_a_card_that_has_gone_is_a_change_although_its_id_is_remembered() -> None:
    assert difference([on(CLIP, A400)], [Assignment("ai-clip", None, A400.id)])


def test_services_that_come_and_go_are_told_unless_they_were_unpinned() -> None:
    pinned = on(CLIP, A400)
    assert difference([], [pinned]) == (Change("ai-clip", None, pinned),)
    assert difference([pinned], []) == (Change("ai-clip", pinned, None),)
    assert difference([], [Assignment("ai-clip")]) == difference([Assignment("ai-clip")], []) == ()
