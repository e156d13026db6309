"""What saving would do, told before: the same as saving then does."""

from pathlib import Path

import pytest

from cotenant.domain.errors import BadAssignment
from cotenant.services.model import Assignment, Strategy
from tests.services.test_operator import setting

BY_HAND = (Assignment("ai-clip", 1), Assignment("ai-enrichment", 1, vram_budget_gb=2.5))


@pytest.mark.parametrize("strategy", Strategy)
async def test_saving_does_what_the_preview_told(strategy: Strategy, tmp_path: Path):
    async with setting(tmp_path) as at:
        tried, changes = await at.services.preview(strategy, BY_HAND)
        assert (await at.services.view()).saved is None
        assert await at.services.save(strategy, BY_HAND) == tried
        assert tuple((await at.services.view()).changes) == tuple(changes)


async def test_nothing_by_hand_is_not_what_is_saved(tmp_path: Path):
    async with setting(tmp_path) as at:
        await at.services.save(Strategy.MANUAL, BY_HAND)
        kept, _ = await at.services.preview(Strategy.MANUAL)
        emptied, _ = await at.services.preview(Strategy.MANUAL, ())
    assert [each.gpu_index for each in kept.assignments].count(1) == 2
    assert [each.gpu_index for each in emptied.assignments].count(1) == 0


async def test_what_cannot_be_saved_cannot_be_tried(tmp_path: Path):
    async with setting(tmp_path) as at:
        with pytest.raises(BadAssignment, match="there is no GPU 7"):
            await at.services.preview(Strategy.MANUAL, (Assignment("ai-llm", 7),))
