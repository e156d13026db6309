"""What is kept of unloaded models' caches, and what makes it go."""

import logging
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cotenant.analysis.footprint import restorable_token_bytes
from cotenant.config.configuration import FileSignature, ModelEntry
from cotenant.daemon.core.fleet import slot_cache
from cotenant.daemon.monitors.slot_keeper import SlotKeeper, open_slot_store
from cotenant.domain.engine_kinds import EngineKind
from cotenant.domain.engines import Adapter, Companions
from cotenant.domain.models import AttentionKind, CacheType, LayerShape, ModelKind, Recipe
from cotenant.engines.process.slot_store import SlotStore
from tests.support.models.shapes import dense, shape
from tests.support.waiting import until

SHAPE = dense(4, 1000, kv=64)
ENTRY = ModelEntry("m", Path("/m.gguf"), Recipe(), SHAPE, (FileSignature(1, 2, 3),), (Path("/m.gguf"),))


class View:
    """What the keeper asks of the fleet."""

    room: int | None = 1000
    in_ram = False
    waiting: tuple[str, ...] = ()

    def host_room(self) -> int | None:
        return self.room

    def holds_models_in_ram(self) -> bool:
        return self.in_ram

    def models_without_room(self) -> tuple[str, ...]:
        return self.waiting


def filled(store: SlotStore) -> None:
    for size in (10, 20):
        path = store.folder_of("k") / store.next_name()
        path.write_bytes(b"x")
        store.add("k", path, 1, size, 1.0)


@pytest.mark.parametrize(
    ("facts", "left"),
    [
        ({"room": 0}, 2),
        ({"room": None}, 2),
        ({"room": -5}, 1),
        ({"room": -25}, 0),
        ({"waiting": ("b",)}, 2),
        ({"waiting": ("b",), "in_ram": True}, 0),
    ],
)
async def test_slots_go_when_host_ram_is_short_or_wanted(
    tmp_path: Path, facts: dict[str, Any], left: int
) -> None:
    store, view = SlotStore.open(tmp_path, 100), View()
    loop = SimpleNamespace(saved_slots=None)
    keeper = SlotKeeper(store, view, loop, in_ram=True)  # type: ignore[arg-type]
    filled(store)
    for name, value in facts.items():
        setattr(view, name, value)
    keeper.measured(None)
    assert len(store.slots) == loop.saved_slots.kept == left
    await until(lambda: len([*store.folder.rglob("*.slot")]) == left)
    store.close()


def test_the_store_is_bounded_by_a_share_of_the_ram_and_off_by_0(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = open_slot_store(None, tmp_path / "new", 1600)
    assert store is not None
    assert store.most_bytes == 100
    store.close()
    assert open_slot_store(0, tmp_path, 1600) is None
    (tmp_path / "file").touch()
    with caplog.at_level(logging.WARNING):
        assert open_slot_store(10, tmp_path / "file", None) is None
    assert "KV caches are not kept over unloads" in caplog.text


def layer(**facts: Any) -> LayerShape:
    return LayerShape(0, 1000, k_elements=64, v_elements=32, **facts)


def test_a_tokens_bytes_are_those_of_all_its_rows() -> None:
    assert restorable_token_bytes(SHAPE, Recipe()) == 4 * (64 + 64) * 2
    q8 = Recipe(cache_type_k=CacheType.Q8_0, cache_type_v=CacheType.Q8_0)
    assert restorable_token_bytes(SHAPE, q8) == 4 * 2 * 68
    skipped = shape([layer(), LayerShape(1, 0, attention=AttentionKind.NONE, skipped=True)])
    assert restorable_token_bytes(skipped, Recipe()) == 96 * 2


@pytest.mark.parametrize(
    "wrong",
    [
        shape([layer(), layer(attention=AttentionKind.SLIDING)], sliding_window=512),
        shape([layer(), layer(attention=AttentionKind.NONE, state_elements=100)]),
        shape([layer()], kv_exact=False),
        shape([LayerShape(0, 1000, attention=AttentionKind.NONE)]),
    ],
    ids=["a window", "recurrent state", "an unknown cache", "no cache"],
)
def test_a_cache_that_holds_only_its_end_cannot_be_restored(wrong: Any) -> None:
    assert restorable_token_bytes(wrong, Recipe()) is None
    assert slot_cache(replace(ENTRY, shape=wrong), Recipe()) is None


@pytest.mark.parametrize(
    "entry",
    [
        replace(ENTRY, projector_path=Path("/mmproj.gguf")),
        replace(ENTRY, companions=Companions(draft="/draft.gguf")),
        replace(ENTRY, companions=Companions(adapters=(Adapter("/lora.gguf"),), by_request=True)),
        replace(ENTRY, shape=replace(SHAPE, kind=ModelKind.EMBEDDING)),
    ],
    ids=["a projector", "a draft", "an adapter", "embeddings"],
)
def test_models_whose_engine_cannot_restore_are_left_out(entry: ModelEntry) -> None:
    assert slot_cache(entry, Recipe()) is None
    assert slot_cache(ENTRY, Recipe(engine=EngineKind.VLLM)) is None


def test_a_slot_fits_the_same_files_recipe_and_arguments_wherever_the_layers_are() -> None:
    same = slot_cache(ENTRY, Recipe())
    assert same is not None
    assert slot_cache(ENTRY, Recipe(n_gpu_layers=3, tensor_split=(1.0, 2.0))) == same
    others = [
        slot_cache(ENTRY, Recipe(n_ctx=8192)),
        slot_cache(ENTRY, Recipe(cache_type_k=CacheType.Q8_0)),
        slot_cache(replace(ENTRY, signature=(FileSignature(1, 2, 4),)), Recipe()),
        slot_cache(replace(ENTRY, args=("--rope-freq-base", "1")), Recipe()),
        slot_cache(replace(ENTRY, env={"A": "1"}), Recipe()),
    ]
    assert same not in others
    assert len({each.identity for each in others if each}) == len(others)
