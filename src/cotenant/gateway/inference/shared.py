"""What all requests to models share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from typing import Any

from cotenant.domain.keys import ApiKey
from cotenant.domain.models import ModelKind
from cotenant.domain.requests import WaitProgress
from cotenant.gateway.http.limits import Limits, Timing
from cotenant.gateway.inference.allowed_models import AllowedModels
from cotenant.gateway.inference.dialects import Target
from cotenant.gateway.inference.disconnects import DisconnectWatch
from cotenant.gateway.inference.engine_connections import Pool
from cotenant.gateway.inference.model_kinds import ModelKinds
from cotenant.gateway.inference.request_log import CLIENT_CLOSED_REQUEST, RequestLog, RequestRecord
from cotenant.gateway.inference.suspects import Suspects
from cotenant.gateway.telemetry.counters import RequestCounters
from cotenant.gateway.telemetry.key_usage import KeyUsage
from cotenant.interfaces import Router


class Proxy:
    """What all requests share: the router, the limits, the connections, the counters.

    `key` is the key of the requests, None if they need none; `of` has what they share for each. `usages` are
    what the keys have used, by name, whatever becomes of their rights.
    """

    def __init__(
        self,
        router: Router,
        limits: Limits,
        timing: Timing,
        request_log: RequestLog | None = None,
        media_hosts: Sequence[str] = (),
        wait_progress: WaitProgress = WaitProgress.OFF,
    ) -> None:
        self.router = router
        self.media_hosts = frozenset(host.lower() for host in media_hosts)
        self.request_log = request_log
        self.wait_progress = wait_progress
        self.limits = limits
        self.timing = timing
        self.pool = Pool()
        self.counters = RequestCounters(router)
        self.watch = DisconnectWatch()
        self.kinds = ModelKinds(router)
        self.suspects = Suspects()
        self.key: ApiKey | None = None
        self.usage = KeyUsage()
        self.usages: dict[str, KeyUsage] = {}
        self._by_key: dict[bytes, Proxy] = {}

    def of(self, key: ApiKey | None) -> Proxy:
        """Return what requests with a key share: all of this, but only the models that the key may use."""
        if key is None:
            return self
        found = self._by_key.get(key.digest)
        if found is None or found.key is not key:
            found = self._by_key[key.digest] = copy(self)
            found.key = key
            found.usage = self.usages.setdefault(key.name, KeyUsage())
            if key.models:
                found.router = AllowedModels(self.router, key.models)
        return found

    def admit(self, target: Target, request: Mapping[str, Any], size: int, now: float) -> int:
        """Return the tokens that a request reserves of its key's quota. Raises QuotaExceeded."""
        if self.key is None:
            return 0
        answers = target.streams and ModelKind.TEXT in target.kinds
        return self.usage.admit(self.key, request, size, now, answers=answers)

    def record(self, record: RequestRecord, reserved: int) -> None:
        """Record the end of a request that was admitted."""
        if self.key is not None:
            left, granted_at = record.status == CLIENT_CLOSED_REQUEST, record.granted_at
            self.usage.end(
                0 if left else record.status,
                (record.prompt_tokens, record.output_tokens),
                reserved,
                record.ended_at,
                wait_s=(record.ended_at if granted_at is None else granted_at) - record.begun_at,
                answered=granted_at is not None and (left or record.status < 400),
            )
        if self.request_log is not None:
            self.request_log.add(record)
