"""A book of machines over plain values."""

from collections.abc import Sequence

from cotenant.domain.decisions import NodeState, NodeStatus
from cotenant.domain.errors import BadRequest, UnknownNode
from cotenant.domain.moves import MoveMethod, MovePlan
from cotenant.domain.units import GIB

READY = NodeStatus(
    "a",
    NodeState.READY,
    since_s=3600.0,
    silent_s=0.4,
    address="10.0.0.1",
    cards=2,
    free_bytes=10 * GIB,
    engines=1,
    lease_left_s=59.0,
    link_s=0.002,
    version="1.0",
)
SILENT = NodeStatus(
    "b", NodeState.SUSPECT, since_s=1.0, silent_s=4.0, cards=1, warnings=("its clock is 3 s ahead",)
)


class PlainNodes:
    """Machines that are drained and forgotten at once, and notes of what was ordered."""

    def __init__(self, *nodes: NodeStatus) -> None:
        self.known = {node.name: node for node in nodes}
        self.orders: list[str] = []

    def nodes(self) -> Sequence[NodeStatus]:
        return tuple(self.known.values())

    def plan_drain(self, name: str) -> Sequence[MovePlan]:
        self._find(name)
        return (MovePlan("llama", MoveMethod.UNLOAD, f"is unloaded from {name} GPU 0 once it is idle"),)

    async def drain(self, name: str, drained: bool) -> None:
        self._find(name)
        self.orders.append(f"{'drain' if drained else 'undrain'} {name}")

    def forget(self, name: str) -> None:
        if self._find(name).state is not NodeState.LOST:
            raise BadRequest(f"{name} answers", hint="Only a lost machine is forgotten.")
        del self.known[name]

    def _find(self, name: str) -> NodeStatus:
        if name not in self.known:
            raise UnknownNode(f"there is no machine {name!r}", hint=f"There are: {', '.join(self.known)}.")
        return self.known[name]
