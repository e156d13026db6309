"""What all requests to models share."""

from collections.abc import Sequence

from cotenant.gateway.http.limits import Limits, Timing
from cotenant.gateway.inference.disconnects import DisconnectWatch
from cotenant.gateway.inference.engine_connections import Pool
from cotenant.gateway.inference.model_kinds import ModelKinds
from cotenant.gateway.inference.request_log import RequestLog
from cotenant.gateway.inference.suspects import Suspects
from cotenant.gateway.telemetry.counters import RequestCounters
from cotenant.interfaces import Router


class Proxy:
    """What all requests share: the router, the limits, the connections, the counters."""

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
