"""On which devices something has changed lately, without a look at all of them."""

from collections import OrderedDict

from cotenant.domain.devices import DeviceId


class Changes:
    """Devices, each with the last step at which something changed there, the latest last."""

    def __init__(self) -> None:
        self._steps: OrderedDict[DeviceId, int] = OrderedDict()

    def note(self, device: DeviceId, step: int) -> None:
        """Record a change."""
        self._steps[device] = step
        self._steps.move_to_end(device)

    def any_since(self, step: int) -> bool:
        """Whether something has changed at a step or after it."""
        latest = next(reversed(self._steps), None)
        return latest is not None and self._steps[latest] >= step

    def since(self, step: int) -> list[DeviceId]:
        """Return where something has changed at a step or after it, the latest first."""
        found = []
        for device in reversed(self._steps):
            if self._steps[device] < step:
                break
            found.append(device)
        return found
