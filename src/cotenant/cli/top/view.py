"""The state of `cotenant top`: the daemon's last answers and the user's choices."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from string import ascii_letters
from typing import Any


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The daemon's answers at one time; `problem` says why there are no newer ones."""

    models: Sequence[Mapping[str, Any]] = ()
    devices: Sequence[Mapping[str, Any]] = ()
    fragmentation: Mapping[str, Any] | None = None
    tokens_per_s: Mapping[str, float] = field(default_factory=dict)
    alerts: Sequence[Mapping[str, Any]] = ()
    decisions: Sequence[Mapping[str, Any]] = ()
    taken_at: str = ""
    problem: str | None = None

    @property
    def letters(self) -> Mapping[str, str]:
        """A letter for each loaded model, while there are letters."""
        resident = [model["name"] for model in self.models if model.get("devices")]
        return dict(zip(resident, ascii_letters, strict=False))

    def holdings(self, uuid: str) -> Sequence[tuple[str, int]]:
        """Return the planned bytes of each model on a device."""
        return [
            (model["name"], _planned_bytes(model, uuid))
            for model in self.models
            if uuid in model.get("devices", ())
        ]


def _planned_bytes(model: Mapping[str, Any], uuid: str) -> int:
    placement = model.get("placement") or {}
    for share in placement.get("devices", ()):
        if share.get("uuid") == uuid:
            return sum(count or 0 for part, count in share["planned"].items() if part != "total")
    # While a model loads, only the sum is known.
    return int(model.get("predicted_bytes") or 0) // max(1, len(model["devices"]))


@dataclass(slots=True)
class Choices:
    """The user's choices. `page` are the lines of a text shown instead of the tables, if there is one."""

    selected: str | None = None
    filter: str = ""
    typing: bool = False
    question: str | None = None
    message: str = ""
    page: Sequence[str] | None = None
    page_top: int = 0

    def shown(self, snapshot: Snapshot) -> Sequence[Mapping[str, Any]]:
        """Return the models that match the filter."""
        wanted = self.filter.casefold()
        return [model for model in snapshot.models if wanted in model["name"].casefold()]

    def model(self, snapshot: Snapshot) -> Mapping[str, Any] | None:
        """Return the selected model, by default the first one."""
        shown = self.shown(snapshot)
        return next((model for model in shown if model["name"] == self.selected), shown[0] if shown else None)

    def move(self, snapshot: Snapshot, step: int) -> None:
        """Move the selection, or scroll the text."""
        if self.page is not None:
            self.page_top = max(0, self.page_top + step)
            return
        names = [model["name"] for model in self.shown(snapshot)]
        current = self.model(snapshot)
        if current is not None:
            at = names.index(current["name"]) + step
            self.selected = names[max(0, min(at, len(names) - 1))]
