"""A gateway whose collaborators are plain, but for those that a test brings."""

from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from typing import Any

from cotenant.asgi import Receive, Scope, Send
from cotenant.domain.alerts import Alert, AlertKind
from cotenant.domain.decisions import Decision, LeaseStatus
from cotenant.domain.errors import BadRequest, CannotMove, NotOffered, UnknownKey, UnknownLease, UnknownRoute
from cotenant.domain.hub import PullStep
from cotenant.domain.keys import ApiKey, KeyUse, KeyUses, flat_key
from cotenant.domain.moves import MoveMethod, MovePlan
from cotenant.domain.placements import PlanAnswer, PlanQuery
from cotenant.domain.requests import GuestTerms
from cotenant.gateway.app import Gateway
from cotenant.gateway.http.problems import send_problem
from cotenant.interfaces import Operator, Router
from tests.support.daemon.plain_operator import PlainOperator


class NoAlerts:
    """Nothing is ever wrong."""

    def active(self) -> Sequence[Alert]:
        return ()

    def recent(self) -> Sequence[Alert]:
        return ()

    def totals(self) -> Mapping[AlertKind, int]:
        return {}

    async def follow(self) -> AsyncIterator[Alert]:
        return
        yield


class NoPuller:
    """There is no folder to pull to."""

    async def pull(self, name: str) -> AsyncGenerator[PullStep, None]:
        raise NotOffered("there is no folder to pull models to", hint="Set models_dir in the configuration.")
        yield


class NoPlanner:
    """No model can be planned."""

    async def plan(self, asked: PlanQuery) -> PlanAnswer:
        raise NotImplementedError


class NoMover:
    """Nothing moves, and everything stays where it is drained."""

    def plan_move(self, name: str, gpus: Sequence[str]) -> MovePlan:
        return MovePlan(name, MoveMethod.LIVE, f"to {', '.join(gpus)}")

    async def move(self, name: str, gpus: Sequence[str]) -> MovePlan:
        raise CannotMove(f"{name} does not move")

    def cancel_move(self, name: str) -> None:
        pass

    def plan_drain(self, gpu: str) -> Sequence[MovePlan]:
        return ()

    async def drain(self, gpu: str, drained: bool) -> None:
        pass


class PlainLessor:
    """Grants everything, at once and under one name; lists what it is said to hold."""

    def __init__(self, *held: LeaseStatus) -> None:
        self._held = held

    def leases(self) -> Sequence[LeaseStatus]:
        return self._held

    async def lease(self, terms: GuestTerms) -> LeaseStatus:
        return LeaseStatus("lease~1", "leased", terms.bytes, 0.0)

    async def ended(self, name: str) -> str:
        self.why(name)
        return "it was given back"

    def end(self, name: str, why: str) -> None:
        self.why(name)

    def why(self, name: str) -> Sequence[Decision]:
        if name != "lease~1":
            raise UnknownLease(f"there is no lease {name!r}")
        return ()


class PlainKeys:
    """Lists the keys that it is given, all stored, and those that are made, and remembers what they use."""

    def __init__(self, *keys: ApiKey) -> None:
        self._keys = {key.name: key for key in keys}
        self.used: dict[str, KeyUse] = {}

    async def keys(self) -> Sequence[tuple[ApiKey, bool]]:
        return [(key, True) for key in self._keys.values()]

    async def uses(self) -> Mapping[str, KeyUses]:
        return {name: KeyUses(use, use) for name, use in self.used.items()}

    def record(self, name: str, use: KeyUse) -> None:
        self.used[name] = self.used.get(name, KeyUse()) + use

    async def add(self, name: str, rights: Mapping[str, Any]) -> str:
        if name in self._keys:
            raise BadRequest(f"two API keys are named {name!r}")
        self._keys[name] = ApiKey(name, name.encode())
        return f"text of {name}"

    async def revoke(self, name: str) -> None:
        if self._keys.pop(name, None) is None:
            raise UnknownKey(f"there is no API key {name!r}")


class NoPages:
    """A console without pages."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send_problem(send, UnknownRoute(f"there is no page at {scope['path']}"))

    def serves(self, scope: Scope) -> bool:
        return False

    def end_streams(self) -> None:
        pass


def flat_keys(*keys: str | ApiKey) -> tuple[ApiKey, ...]:
    """Return keys with all rights."""
    return tuple(flat_key(key) if isinstance(key, str) else key for key in keys)


def plain_gateway(router: Router, operator: Operator | None = None, **options: Any) -> Gateway:
    """Make a gateway; `options` are those of Gateway; keys that are texts have all rights."""
    plain: dict[str, Any] = {
        "alerts": NoAlerts(),
        "mover": NoMover(),
        "lessor": PlainLessor(),
        "puller": NoPuller(),
        "planner": NoPlanner(),
        "console": lambda api: NoPages(),
    }
    options["api_keys"] = flat_keys(*options.get("api_keys", ()))
    plain["keys"] = PlainKeys(*options["api_keys"])
    return Gateway(router, operator or PlainOperator(), **{**plain, **options})
