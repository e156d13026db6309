"""What all requests to models share."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy

from cotenant.domain.keys import ApiKey
from cotenant.gateway.http.limits import Limits, Timing
from cotenant.gateway.inference.allowed_models import AllowedModels
from cotenant.gateway.inference.disconnects import DisconnectWatch
from cotenant.gateway.inference.engine_connections import Pool
from cotenant.gateway.inference.model_kinds import ModelKinds
from cotenant.gateway.inference.request_log import RequestLog
from cotenant.gateway.inference.suspects import Suspects
from cotenant.gateway.telemetry.counters import RequestCounters
from cotenant.interfaces import Router


class Proxy:
    """What all requests share: the router, the limits, the connections, the counters.

    `key` is the key of the requests, None if they need none; `of` has what they share for each.
    """

    def __init__(
        self,
        router: Router,
        limits: Limits,
        timing: Timing,
        request_log: RequestLog | None = None,
        media_hosts: Sequence[str] = (),
    ) -> None:
        self.router = router
        self.media_hosts = frozenset(host.lower() for host in media_hosts)
        self.request_log = request_log
        self.limits = limits
        self.timing = timing
        self.pool = Pool()
        self.counters = RequestCounters(router)
        self.watch = DisconnectWatch()
        self.kinds = ModelKinds(router)
        self.suspects = Suspects()
        self.key: ApiKey | None = None
        self._by_key: dict[bytes, Proxy] = {}

    def of(self, key: ApiKey | None) -> Proxy:
        """Return what requests with a key share: all of this, but only the models that the key may use."""
        if key is None:
            return self
        found = self._by_key.get(key.digest)
        if found is None or found.key is not key:
            found = self._by_key[key.digest] = copy(self)
            found.key = key
            if key.models:
                found.router = AllowedModels(self.router, key.models)
        return found
