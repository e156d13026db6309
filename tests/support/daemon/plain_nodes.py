"""A book of machines over plain values."""

from collections.abc import AsyncGenerator, Mapping, Sequence

from cotenant.domain.decisions import NodeState, NodeStatus
from cotenant.domain.engine_kinds import EngineKind
from cotenant.domain.engines import (
    EngineBuild,
    EngineDevice,
    FoundBuilds,
    InstallOrder,
    InstallStage,
    InstallStep,
)
from cotenant.domain.errors import BadRequest, CotenantError, UnknownNode
from cotenant.domain.hub import PullStep
from cotenant.domain.moves import MoveMethod, MovePlan
from cotenant.domain.nodes import NodeUnreachable
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


BUILD = EngineBuild(EngineKind.LLAMA_CPP, "xllamacpp", "/venv/python", "0.3", (EngineDevice("CUDA0", "A40"),))
REPORT = {
    "counts": {"problem": 1, "warning": 0, "unknown": 0, "ok": 0},
    "findings": [
        {"area": "machine", "level": "problem", "seen": "the disk is full", "matters": "", "mend": "df"}
    ],
}


class PlainNodes:
    """Machines that are drained and forgotten at once, and notes of what was ordered.

    One that is silent answers nothing else. What an install or a pull has not begun with, `ends` it.
    """

    def __init__(self, *nodes: NodeStatus, problem: str | None = None) -> None:
        self.known = {node.name: node for node in nodes}
        self.orders: list[str] = []
        self.problem = problem
        self.ends: CotenantError | None = None
        self.installed: list[InstallOrder] = []
        self.pulled: list[str] = []

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

    async def doctor(self, name: str) -> Mapping[str, object]:
        self._reach(name)
        return REPORT

    async def engines(self, name: str) -> FoundBuilds:
        self._reach(name)
        return FoundBuilds((BUILD,), True, 0)

    async def install(self, name: str, order: InstallOrder) -> AsyncGenerator[InstallStep, None]:
        self._reach(name)
        self.installed.append(order)
        flavour = order.flavour or "cuda"
        yield InstallStep(InstallStage.COMMAND, "python -m pip install xllamacpp", flavour)
        yield InstallStep(InstallStage.NOTE, "The wheel is not verified.", flavour)
        if order.dry_run:
            return
        yield InstallStep(InstallStage.OUTPUT, "Collecting xllamacpp", flavour)
        if self.ends is not None:
            raise self.ends
        yield InstallStep(InstallStage.INSTALLED, "xllamacpp 0.3", flavour, BUILD)

    async def pull(self, name: str, model: str) -> AsyncGenerator[PullStep, None]:
        self._reach(name)
        self.pulled.append(model)
        yield PullStep(f"{name} lacks 1 of 1 file of {model}")
        for done in (GIB, 2 * GIB):
            yield PullStep(f"{name} fetches m.gguf", "m.gguf", None, 4 * GIB, done)
        if self.ends is not None:
            raise self.ends
        yield PullStep("pulled", files=("/models/m.gguf",))

    def _reach(self, name: str) -> None:
        if self._find(name).silent_s is not None and self._find(name).state is not NodeState.READY:
            raise NodeUnreachable(f"the agent of {name} did not answer within 10 s")

    def _find(self, name: str) -> NodeStatus:
        if name not in self.known:
            raise UnknownNode(f"there is no machine {name!r}", hint=f"There are: {', '.join(self.known)}.")
        return self.known[name]
