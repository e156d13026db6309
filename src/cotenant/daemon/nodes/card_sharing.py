"""Tells each machine how its cards are shared, and how many models want each."""

import logging

from cotenant.concurrency.background_tasks import BackgroundTasks
from cotenant.daemon.core.active_configuration import ActiveConfiguration
from cotenant.daemon.core.fleet import wanting
from cotenant.daemon.nodes.cards import NodeCards
from cotenant.daemon.nodes.hosts import NodeHosts
from cotenant.domain.errors import CotenantError

_LOG = logging.getLogger(__name__)


class NodeSharing:
    """Has the agents share cards as the `active` configuration says."""

    def __init__(self, hosts: NodeHosts, cards: NodeCards, active: ActiveConfiguration) -> None:
        self._hosts = hosts
        self._cards = cards
        self._active = active
        self._tasks = BackgroundTasks()

    def tell(self, node: str) -> None:
        """Tell a machine that has just greeted."""
        self._tasks.start(self._tell(node))

    def tell_all(self) -> None:
        """Tell all machines: the configuration has changed."""
        for node in self._hosts.by_node:
            self.tell(node)

    async def _tell(self, node: str) -> None:
        configuration, devices = self._active.configuration, self._cards.devices_of(node)
        count = wanting(configuration.models)
        rules, most = configuration.devices, configuration.scheduling.max_loaded
        by_device = {device.id: count(device) for device in devices}
        try:
            await self._hosts.of(node).share_cards(rules.mps, rules.mps_group, by_device, most)
        except CotenantError as error:
            # One that does not answer is told after its next greeting.
            _LOG.warning("%s shares its cards as before: %s", node, error.message)
