"""What the scheduler decides in seeded worlds, as it was recorded: most changes are to alter nothing of it.

A change of a rule alters them: `python -m tests.simulation.test_digests` records them anew.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from cotenant.scheduling.commands import (
    Command,
    Grant,
    PublishDecision,
    Refuse,
    StartEngine,
    StopEngine,
    WakeAt,
)
from cotenant.simulation.machine import NO_FAULTS
from tests.simulation.seeded import ALL_FAULTS, seeded_world

_RECORD = Path(__file__).with_name("digests.json")
_SEEDS = range(5_000, 5_024)


def told(command: Command) -> str:
    """Return a command as text that does not depend on how Python shows objects."""
    match command:
        case Grant(ticket, lease, residency):
            return f"grant {ticket} {lease} {residency}"
        case Refuse(ticket, code, text, again_s, _):
            return f"refuse {ticket} {code.value} {text} {again_s}"
        case StartEngine(residency, model, placement):
            shares = [(str(share.device.id), share.parts.total) for share in placement.used_shares]
            return f"start {residency} {model} {shares}"
        case StopEngine(residency, cuts_requests):
            return f"stop {residency} {cuts_requests}"
        case WakeAt(at):
            return f"wake {at}"
        case PublishDecision(decision):
            return f"decide {decision.number} {decision.kind.value} {decision.model} {decision.text}"


def digest(seed: int) -> str:
    """Return a digest of all commands of a world, with all faults for even seeds."""
    seeded = seeded_world(seed, NO_FAULTS if seed % 2 else ALL_FAULTS)
    scheduler, found = seeded.world.scheduler, hashlib.sha256()
    handle, release = scheduler.handle, scheduler.release

    def seen(commands: Sequence[Command]) -> None:
        found.update("".join(f"{told(command)}\n" for command in commands).encode())

    def handling(event):  # type: ignore[no-untyped-def]
        commands = handle(event)
        seen(commands)
        return commands

    def releasing(lease, at):  # type: ignore[no-untyped-def]
        commands = release(lease, at)
        seen(commands)
        return commands

    scheduler.handle, scheduler.release = handling, releasing  # type: ignore[method-assign]
    seeded.run()
    return found.hexdigest()[:16]


@pytest.mark.parametrize("seed", _SEEDS)
def test_the_same_is_decided_as_was_recorded(seed: int) -> None:
    recorded = json.loads(_RECORD.read_text(encoding="utf-8"))
    assert digest(seed) == recorded[str(seed)], "the commands have changed; if they should, record them anew"


if __name__ == "__main__":
    text = json.dumps({str(seed): digest(seed) for seed in _SEEDS}, indent=1)
    _RECORD.write_text(text + "\n", encoding="utf-8")
