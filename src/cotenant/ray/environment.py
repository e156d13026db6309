"""The environment variables that Ray is started with, why, and which of them a node lacks."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final


@dataclass(frozen=True, slots=True)
class Variable:
    """A variable of `ray start`, and what happens without it; some matter on the `head` only.

    Any value will do if `value` is None, or, if it is a number with `at_least`, a larger one.
    """

    name: str
    value: str | None
    without: str
    head: bool = False
    at_least: bool = False

    def holds(self, environment: Mapping[str, str]) -> bool:
        """Whether an environment has it."""
        found = environment.get(self.name)
        if found is None or self.value is None:
            return found is not None
        if self.at_least:
            try:
                return float(found) >= float(self.value)
            except ValueError:
                return False
        return found == self.value


_RECONNECT: Final = (
    "when the head is away for 60 s, every node ends its processes, and the daemon loses its way to them"
)
_HEALTH: Final = "Ray gives up a node that the network cut off, and kills what runs there once it is back"
_STORAGE: Final = "a head that is started again has forgotten the cluster, and every node ends its processes"
TOKEN_PATH: Final = "RAY_AUTH_TOKEN_PATH"  # noqa: S105
TOKEN_MODE: Final = "token mode"  # noqa: S105
STORAGE_PATH: Final = "RAY_gcs_storage_path"
VARIABLES: Final = (
    Variable("RAY_AUTH_MODE", "token", "whoever reaches a port of Ray can run any program as this user"),
    Variable("RAY_gcs_rpc_server_reconnect_timeout_s", "3600", _RECONNECT, at_least=True),
    Variable("RAY_worker_niceness", "0", "agents and engines run at the lowest priority but for root"),
    Variable(
        "RAY_worker_oom_score_adjustment",
        "0",
        "agents and engines are the first that the kernel kills, but for root",
    ),
    Variable("RAY_memory_monitor_refresh_ms", "0", "Ray kills agents when the host's RAM is nearly full"),
    Variable("RAY_USAGE_STATS_ENABLED", "0", "Ray sends statistics to its makers"),
    Variable("RAY_gcs_storage", "rocksdb", _STORAGE, head=True),
    Variable(STORAGE_PATH, None, _STORAGE, head=True),
    Variable("RAY_health_check_period_ms", "10000", _HEALTH, head=True, at_least=True),
    Variable("RAY_health_check_timeout_ms", "10000", _HEALTH, head=True, at_least=True),
    Variable("RAY_health_check_failure_threshold", "60", _HEALTH, head=True, at_least=True),
)
"""Ray dies patiently with these: death is noticed by our own heartbeats, and ends nothing before its time."""


def lacking(environment: Mapping[str, str], *, head: bool) -> list[Variable]:
    """Return what a node's environment lacks; Redis stands for RocksDB on the head."""
    missing = [each for each in VARIABLES if (head or not each.head) and not each.holds(environment)]
    if environment.get("RAY_REDIS_ADDRESS"):
        missing = [each for each in missing if each.without is not _STORAGE]
    return missing


def warnings(node: str, environment: Mapping[str, str], *, head: bool) -> list[str]:
    """Return a sentence for each thing that a node was not started with, or that others can read."""
    found = [
        f"{'the head ' if head else ''}{node} was started without {each.name}"
        f"{'' if each.value is None else '=' + each.value}: {each.without}"
        for each in lacking(environment, head=head)
    ]
    if int(environment.get(TOKEN_MODE, "0"), 8) & 0o077:
        path = environment.get(TOKEN_PATH)
        found.append(
            f"other users can read Ray's token {path} there: whoever has it can run any program as its user "
            "on every machine"
        )
    return found


def token_mode(environment: Mapping[str, str]) -> dict[str, str]:
    """Return who may read the token's file, as a variable; nothing if there is none."""
    path = environment.get(TOKEN_PATH)
    try:
        return {} if path is None else {TOKEN_MODE: f"{Path(path).stat().st_mode & 0o777:o}"}
    except OSError:
        return {}


def to_start_with(head: bool, token: Path, storage: Path) -> dict[str, str]:
    """Return the variables for `ray start` of the head, or of another node."""
    paths = {TOKEN_PATH: str(token), **({STORAGE_PATH: str(storage)} if head else {})}
    fixed = {e.name: e.value for e in VARIABLES if e.value is not None and (head or not e.head)}
    return {**fixed, **paths}


def agent_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of an agent: what Ray adds to that of its workers is left out.

    RAY_AUTH_TOKEN is the key to the whole cluster. OMP_NUM_THREADS=1 would slow an engine down.
    """
    added = ("OMP_NUM_THREADS", "PYTHONBREAKPOINT", "PYTHONUNBUFFERED", "LD_PRELOAD")
    return {k: v for k, v in environment.items() if not k.startswith(("RAY_", "__RAY")) and k not in added}
