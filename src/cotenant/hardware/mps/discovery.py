"""MPS daemons that already run on this machine, started by Cotenant or not."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cotenant.domain.devices import Device
from cotenant.hardware.mps.control import MpsControl
from cotenant.hardware.mps.directories import MpsDirectories
from cotenant.hardware.mps.processes import is_of_mps, variables_of


@dataclass(frozen=True, slots=True)
class FoundDaemon:
    """A control daemon that answers.

    `cards` are the UUIDs, or their beginnings, that it was started with, None for every card. `problem` says
    why engines cannot use it, if so.
    """

    control: MpsControl
    pid: int | None
    cards: tuple[str, ...] | None
    problem: str | None = None

    @property
    def directories(self) -> MpsDirectories:
        """Where it listens and logs."""
        return self.control.directories

    def serves(self, device: Device) -> bool:
        """Whether its clients see a device."""
        if self.problem is not None:
            return False
        return self.cards is None or any(device.id.startswith(card) for card in self.cards)


def find_daemons(program: Path, state_dir: Path, environ: Mapping[str, str]) -> Iterator[FoundDaemon]:
    """Yield those in Cotenant's own directories, then the one that clients find by default.

    Asks each daemon, so do not call it in the thread of an event loop.
    """
    ours = [*MpsDirectories.all_ours(state_dir)]
    by_default = MpsDirectories.by_default(environ)
    others = [] if by_default.pipe in [each.pipe for each in ours] else [by_default]
    for directories in (*ours, *others):
        found = find_daemon(MpsControl(program, directories))
        if found is not None:
            yield found


def find_daemon(control: MpsControl) -> FoundDaemon | None:
    """Return the daemon that listens in these directories; None if none answers."""
    pid = control.directories.recorded_pid()
    if pid is None or not control.answers():
        return None
    known = pid if is_of_mps(pid) else None
    visible = (variables_of(pid) or {}).get("CUDA_VISIBLE_DEVICES") if known else None
    if visible is None:
        # Another user's environment cannot be read; a daemon for a whole machine is started without it.
        return FoundDaemon(control, known, control.directories.cards() or None)
    cards = tuple(word.strip() for word in visible.split(",") if word.strip())
    return FoundDaemon(control, known, cards, _problem(cards))


def _problem(cards: Sequence[str]) -> str | None:
    if all(card.startswith(("GPU-", "MIG-")) for card in cards):
        return None
    return (
        f"it was started with CUDA_VISIBLE_DEVICES={','.join(cards)}, so that it renumbers its "
        "clients' cards: it should be started with UUIDs"
    )
