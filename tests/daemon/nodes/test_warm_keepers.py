"""Files of models that are wanted next are kept in the RAM of the machines where they are."""

from pathlib import Path

import pytest

from cotenant.domain.decisions import DecisionKind
from cotenant.hardware.model_cache.page_cache import drop, resident_bytes
from tests.daemon.nodes.test_load_costs import MODEL, costs, here, machines
from tests.support.nodes.agent_fleet import Running, daemon
from tests.support.waiting import until

__all__ = ["here"]

pytestmark = pytest.mark.slow


def kept(run: Running) -> int:
    status = run.parts.operator.warm()
    assert status is not None
    return status.by_model.get("m", 0)


async def use(run: Running) -> None:
    (await run.parts.router.lease("m")).release()
    await run.parts.operator.unload("m")


async def test_what_is_asked_for_is_kept_in_ram_where_it_is(tmp_path: Path) -> None:
    size = MODEL.stat().st_size
    with machines(tmp_path, "b", "c", having="b") as agents:
        async with daemon(agents, MODEL, warm_every_s=0.2) as run:
            await until(lambda: len(costs(run)) == 2)
            await use(run)
            await until(lambda: kept(run) == size)
            told = [d.text for d in run.parts.operator.why("m") if d.kind is DecisionKind.WARM]
            assert any("of its files are kept in the RAM of b" in text for text in told)
            file = tmp_path / "b" / MODEL.name
            drop(file)
            await until(lambda: resident_bytes(file) == size)
            await until(lambda: costs(run)["b"].state == "warm")
            assert not (tmp_path / "c" / MODEL.name).exists()
            status = run.parts.operator.warm()
            assert status is not None
            assert status.kept_bytes == size, "c has nothing to keep"


async def test_no_more_is_kept_than_the_configuration_says_on_each_machine(tmp_path: Path) -> None:
    with machines(tmp_path, "b", having="b") as agents:
        async with daemon(agents, MODEL, warm_every_s=0.2, warm_bytes=8192) as run:
            await until(lambda: len(costs(run)) == 1)
            await use(run)
            await until(lambda: kept(run) == 8192)
            status = run.parts.operator.warm()
            assert status is not None
            assert (status.budget_bytes, status.kept_bytes) == (8192, 8192)
            run.road.closed = True
            run.clock.ahead_s += 61
            await until(lambda: run.parts.operator.warm() is None)
