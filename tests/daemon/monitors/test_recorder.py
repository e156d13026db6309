"""What is kept of a run for the next."""

import asyncio
import gc
from pathlib import Path
from types import SimpleNamespace

from cotenant.config.configuration import ModelEntry
from cotenant.daemon.monitors.recorder import Recorder
from cotenant.domain.decisions import Decision, DecisionKind
from cotenant.domain.models import Recipe
from cotenant.domain.records import DecisionRecord, LoadRecord, Record, Warmth
from cotenant.domain.units import GIB
from tests.support.models.shapes import dense


class Kept:
    """A journal that keeps all in lists."""

    def __init__(self) -> None:
        self.decisions: list[DecisionRecord] = []
        self.loads: list[LoadRecord] = []

    def record(self, record: Record) -> None:
        match record:
            case DecisionRecord():
                self.decisions.append(record)
            case LoadRecord():
                self.loads.append(record)


async def test_a_model_whose_file_goes_while_it_is_loaded_counts_as_cold_and_faults_nobody(
    tmp_path: Path,
) -> None:
    gone = tmp_path / "gone.gguf"
    entry = ModelEntry("a", gone, Recipe(), dense(1, GIB), (), (gone,))
    faults: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: faults.append(context))
    kept = Kept()
    view = SimpleNamespace(entry=lambda name: entry, file_state=lambda name: None)
    recorder = Recorder(kept, view)  # type: ignore[arg-type]
    recorder.decided(Decision(1, 0.0, DecisionKind.LOAD, "a", "loads"))
    await recorder._checks.finished()
    recorder.decided(Decision(2, 1.0, DecisionKind.READY, "a", "ready", facts={"load_s": 2.5}))

    assert [(load.seconds, load.warmth) for load in kept.loads] == [(2.5, Warmth.COLD)]
    assert len(kept.decisions) == 2
    del recorder
    gc.collect()
    assert not faults
