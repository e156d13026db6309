"""What services cannot have of a card, by where its numbers come from."""

import json

from cotenant.clock import ManualClock
from cotenant.domain.units import GIB, MIB
from cotenant.hardware.gpus.inventory import probe
from cotenant.services.devices import service_devices


def test_a_model_on_a_card_that_is_only_described_is_added_to_what_it_holds():
    inventory = probe("RTX A5500:24564:1024", ManualClock()).inventory()
    (card,) = service_devices(inventory, {inventory.devices[0].id: 8 * GIB}, (), ())
    assert card.occupied_bytes == 9 * GIB


def test_a_model_on_a_card_that_a_file_follows_is_not_counted_twice(tmp_path):
    path = tmp_path / "machine.yaml"
    held = 8 * 1024 + 512
    card = {"name": "RTX A5500", "total_mib": 24564, "used_mib": held}
    path.write_text(json.dumps({"live": True, "gpus": [card]}))
    inventory = probe(str(path), ManualClock()).inventory()
    (seen,) = service_devices(inventory, {inventory.devices[0].id: 8 * GIB}, (), ())
    assert seen.occupied_bytes == held * MIB
