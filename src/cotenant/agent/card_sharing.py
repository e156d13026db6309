"""How the engines of an agent share cards through MPS, as the daemon wants it."""

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path

from cotenant.concurrency.background_tasks import BackgroundTasks
from cotenant.domain.devices import Device, DeviceId, Inventory, MpsGroup, MpsMode
from cotenant.interfaces import EngineOrder
from cotenant.nodes.messages import ShareCards
from cotenant.planning.compute_modes import ANY_NUMBER, Admission
from cotenant.sharing.mps import MpsRules, Sharing


class CardSharing:
    """Keeps the MPS daemons of a machine; nothing is shared before a daemon has said how.

    `changed` is called when other engines may be admitted. Another mode takes effect once no engine runs:
    engines of two modes cannot be on one card.
    """

    def __init__(self, state_dir: Path, changed: Callable[[], None]) -> None:
        self._state_dir = state_dir
        self._changed = changed
        self._wanting: Mapping[DeviceId, int] = {}
        self._rules: MpsRules | None = None
        # Until a daemon says otherwise, a card that admits one process gets one engine.
        self._sharing_rules = MpsRules(MpsMode.OFF, MpsGroup.ALL, None, state_dir)
        self._sharing = Sharing(self._sharing_rules)
        self._users: set[str] = set()
        self._tasks = BackgroundTasks()

    async def share(self, asked: ShareCards) -> None:
        """Share cards like this from now on. Raises MpsMissing if MPS is required and cannot be had."""
        self._wanting = asked.wanting
        key = (asked.mode, asked.group, asked.max_loaded)
        rules = self._rules
        if rules is None or (rules.mode, rules.group, rules.max_loaded) != key:
            self._rules = await asyncio.to_thread(MpsRules.of_machine, *key, self._state_dir)
            await self._adopt_rules()
        self._changed()

    def admissions(
        self, inventory: Inventory, ours: Mapping[int, str]
    ) -> tuple[Mapping[DeviceId, Admission], tuple[str, ...]]:
        """Return how many engines each device admits, where that is limited, and sentences about that."""

        def wanting(device: Device) -> int:
            return self._wanting.get(device.id, 0)

        found = self._sharing.admissions(inventory, ours, wanting)
        limited = {id_: each for id_, each in found.items() if each != ANY_NUMBER}
        return limited, self._sharing.warnings(inventory, ours, wanting)

    async def environment(self, id_: str, order: EngineOrder, fail: Callable[[str], None]) -> dict[str, str]:
        """Return the variables of an engine, as `Sharing.environment` does; `ended` follows."""
        self._users.add(id_)
        here = order.placement.on(order.placement.node)
        return await self._sharing.environment(id_, order.name, order.mps, here, fail)

    def ended(self, id_: str) -> None:
        """Note that nothing is left of an engine."""
        if id_ in self._users:
            self._users.discard(id_)
            self._sharing.ended(id_)
            if not self._users and self._sharing_rules is not self._rules:
                self._tasks.start(self._adopt_rules())

    async def close(self) -> None:
        """Stop the MPS daemons that were started; the engines have ended already."""
        await self._tasks.finished()
        await self._sharing.close()

    async def _adopt_rules(self) -> None:
        """Share by the rules that were last given, unless engines run under others."""
        if self._rules is None or self._users:
            return
        before = self._sharing
        self._sharing, self._sharing_rules = Sharing(self._rules), self._rules
        self._sharing.listeners.append(self._changed)
        await before.close()
        self._changed()
