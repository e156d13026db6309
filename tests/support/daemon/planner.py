"""A planner over two described cards, a served model of real dimensions, and a folder of files."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from cotenant.clock import ManualClock
from cotenant.config.configuration import Configuration, DeviceSettings, ModelEntry
from cotenant.daemon.plans import Plans
from cotenant.domain.decisions import DeviceStatus, ModelStatus
from cotenant.domain.devices import Inventory
from cotenant.domain.models import Recipe
from cotenant.domain.nodes import FileState, LoadCost
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


def over_machines() -> tuple[Plans, ModelStatus]:
    """A planner over three machines of equal cards, of which b loads the model soonest, and c not at all."""
    cards = inventory().on_node("a"), inventory().on_node("b"), inventory().on_node("c")
    found = replace(
        cards[0],
        devices=tuple(card for each in cards for card in each.devices),
        readings={id_: reading for each in cards for id_, reading in each.readings.items()},
    )
    costs = {
        "a": LoadCost(160.0, FileState.ABSENT),
        "b": LoadCost(4.0, FileState.WARM),
        "c": LoadCost(None, FileState.ABSENT, "no file /models/llama-70b.gguf"),
    }
    status = ModelStatus("llama-70b", "cold", load_costs=costs)
    devices = [
        DeviceStatus(card.id, 0, card.name, card.total_bytes, card.total_bytes, 0, 0, card.total_bytes or 0)
        for card in found.devices
    ]
    plans = planner(entry(), cards=found, statuses=devices, told=[status])
    return plans, status
