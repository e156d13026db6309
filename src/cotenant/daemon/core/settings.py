"""Options of `serve` that are not in the configuration, and checks of address and keys."""

import ipaddress
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from cotenant.config.configuration import Configuration, ServerSettings
from cotenant.domain.engines import Endpoint
from cotenant.domain.errors import BadSetting, InsecureBind
from cotenant.domain.keys import ApiKey, check_keys, flat_key
from cotenant.scheduling.model_spec import SchedulerSettings
from cotenant.state_dir import state_dir
from cotenant.store.key_file import KeyFile


@dataclass(frozen=True, slots=True)
class DaemonOptions:
    """Options of `serve` that are not in the configuration.

    `grace_s` is what requests in flight get at shutdown.
    """

    llama_server: Path | None = None
    use_fit_params: bool = False
    load_timeout_s: float = 600.0
    grace_s: float = 30.0
    state_dir: Path = field(default_factory=lambda: state_dir())
    log_dir: Path = field(default_factory=lambda: state_dir() / "logs")


def check_address(host: str, port: int, api_keys: Sequence[object], *, insecure: bool) -> None:
    """Raise InsecureBind for a public address without a key, BadSetting for a port out of range."""
    if not 0 <= port <= 65535:
        raise BadSetting(f"port {port} is not a port", hint="Use 1 to 65535, or 0 for any free one.")
    if not api_keys and not insecure and not is_loopback(host):
        raise InsecureBind(
            f"{host} can be reached from other machines and no API key is set",
            hint="Give --api-key or --api-key-file, or --insecure if the network is trusted.",
        )


def is_loopback(host: str) -> bool:
    """Whether an address to listen on can only be reached from this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def address_of(sock: socket.socket) -> str:
    """Return the URL by which programs of this machine reach a listening socket."""
    host, port = sock.getsockname()[:2]
    return Endpoint({"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host), port).url  # noqa: S104


def read_api_keys(keys: list[str], key_file: Path | None) -> tuple[str, ...]:
    """Join keys given directly with those of a file, one a line. Raises BadSetting."""
    found = list(keys)
    if key_file is not None:
        try:
            lines = key_file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise BadSetting(
                f"--api-key-file {key_file} cannot be read: {error}", hint="Put one key on each line."
            ) from error
        from_file = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
        if not from_file:
            raise BadSetting(f"--api-key-file {key_file} holds no key", hint="Put one key on each line.")
        found += from_file
    if any(not key.strip() or not key.isascii() or not key.isprintable() for key in found):
        raise BadSetting(
            "an API key is empty or has characters that a header cannot carry",
            hint="Use printable ASCII.",
        )
    return tuple(found)


class ApiKeys:
    """The keys that clients must send, which may change while the daemon listens where it was `started`."""

    def __init__(self, started: ServerSettings, stored: Path | None = None) -> None:
        """Read the first keys, also those in the file `stored`. Raises BadSetting or InsecureBind."""
        self._started = started
        self.stored = stored
        self.current = self.read(started)

    def read(self, server: ServerSettings) -> tuple[ApiKey, ...]:
        """Return the keys of these settings. Raises BadSetting; InsecureBind for none where one is needed."""
        flat = read_api_keys(list(server.api_keys), server.api_key_file)
        stored = KeyFile(self.stored).read() if self.stored is not None else ()
        configured = (*map(flat_key, dict.fromkeys(flat)), *server.keys)
        taken = {each for key in configured for each in (key.name, key.digest)}
        # One that is configured, too, is as it is there: a clash must not keep others from being revoked.
        keys = (*configured, *(key for key in stored if taken.isdisjoint((key.name, key.digest))))
        check_keys(keys)
        check_address(self._started.host, self._started.port, keys, insecure=server.insecure)
        return keys

    def replace(self, keys: tuple[ApiKey, ...]) -> tuple[str, ...]:
        """Have these keys from now on; say what that changes."""
        before, after = ({key.digest: key for key in each} for each in (self.current, keys))
        self.current = keys
        revoked, added = before.keys() - after.keys(), after.keys() - before.keys()
        altered = [each for each in before.keys() & after.keys() if before[each] != after[each]]
        if not (revoked or added or altered):
            return ()
        text = f"API keys changed: {len(revoked)} revoked, {len(added)} added"
        return (text + (f", {len(altered)} with other rights" if altered else ""),)


def scheduler_settings(configuration: Configuration) -> SchedulerSettings:
    """Return the scheduler's settings under a configuration."""
    return replace(
        configuration.scheduling,
        reserve_bytes=configuration.devices.rules.reserve_bytes,
        machines_come=configuration.nodes is not None,
    )
