"""A planner over two described cards, a served model of real dimensions, and a folder of files."""

from collections.abc import Sequence
from pathlib import Path

from cotenant.clock import ManualClock
from cotenant.config.configuration import Configuration, DeviceSettings, ModelEntry
from cotenant.daemon.plans import Plans
from cotenant.domain.decisions import DeviceStatus, ModelStatus
from cotenant.domain.devices import Inventory
from cotenant.domain.models import Recipe
from cotenant.hardware.gpus.described import DescribedProbe
from tests.support.daemon.plain_operator import PlainOperator
from tests.support.models.real_shapes import real_shape

CARDS = "RTX 3090,RTX 3090"


def entry(name: str = "llama-70b", path: Path = Path("/models/llama-70b.gguf"), **more: object) -> ModelEntry:
    values: dict[str, object] = {"recipe": Recipe(), "shape": real_shape("llama-70b"), "signature": ()}
    return ModelEntry(name=name, path=path, **{**values, "parts": (path,), **more})  # type: ignore[arg-type]


def inventory(spec: str = CARDS) -> Inventory:
    return DescribedProbe(ManualClock(), spec).inventory()


def planner(
    *models: ModelEntry,
    models_dir: Path | None = None,
    cards: Inventory | None = None,
    statuses: Sequence[DeviceStatus] = (),
    pids: Sequence[int] = (),
    by_engine: bool = False,
    told: Sequence[ModelStatus] = (),
) -> Plans:
    configuration = Configuration(
        devices=DeviceSettings(), models_dir=models_dir, models=models or (entry(),)
    )
    found = inventory() if cards is None else cards
    operator = PlainOperator(*told, devices=statuses)
    return Plans(lambda: configuration, lambda: found, operator, lambda: pids, ManualClock(), by_engine)
