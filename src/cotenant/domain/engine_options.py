"""The operator's settings for a model's engine beyond its recipe."""

from dataclasses import dataclass

from cotenant.domain.engines import Endpoint


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """Each kind of engine reads those that its traits name as `keys`.

    `command` starts it and `stop` ends it: both may hold the words in braces that `docs/engines.md` lists;
    without `stop` it gets SIGTERM. `health_path` answers 200 once it serves. `address` is a server that
    others run, with its key. `model` is the model's name on the server, None if it is the same.
    `sleep` is the level at which it sleeps instead of stopping, 0 for never: at level 1 the weights stay in
    host RAM; at level 2 they are discarded and read again.
    """

    command: tuple[str, ...] = ()
    stop: tuple[str, ...] = ()
    health_path: str = "/health"
    address: Endpoint | None = None
    model: str | None = None
    sleep: int = 0


NO_OPTIONS = EngineOptions()
