"""What `serve` is told."""

from __future__ import annotations

import ipaddress
import os
from dataclasses import dataclass, field
from pathlib import Path

from cotenant.domain.errors import BadSetting, InsecureBind
from cotenant.domain.models import Recipe
from cotenant.planning.budgets import BudgetRules


def state_dir() -> Path:
    """Return where logs and state live: `$COTENANT_STATE_DIR`, else the user's XDG state directory."""
    given = os.environ.get("COTENANT_STATE_DIR")
    if given:
        return Path(given).expanduser()
    base = os.environ.get("XDG_STATE_HOME")
    return (Path(base) if base else Path.home() / ".local" / "state") / "cotenant"


@dataclass(frozen=True, slots=True)
class ServeSettings:
    """One model behind one address.

    `max_queue` bounds the requests that wait for a slot, `wait_timeout_s` how long each does;
    `grace_s` is what requests in flight get at shutdown.
    """

    model_path: Path
    name: str
    recipe: Recipe
    rules: BudgetRules
    host: str = "127.0.0.1"
    port: int = 8080
    api_keys: tuple[str, ...] = ()
    insecure: bool = False
    projector_path: Path | None = None
    llama_server: Path | None = None
    use_fit_params: bool = False
    load_timeout_s: float = 600.0
    wait_timeout_s: float = 600.0
    grace_s: float = 30.0
    max_queue: int = 256
    log_dir: Path = field(default_factory=lambda: state_dir() / "logs")

    def check(self) -> None:
        """Raise InsecureBind for a public address without a key, BadSetting for numbers that cannot be."""
        if not 0 <= self.port <= 65535:
            raise BadSetting(f"port {self.port} is not a port", hint="Use 1 to 65535, or 0 for any free one.")
        if not self.api_keys and not self.insecure and not is_loopback(self.host):
            raise InsecureBind(
                f"{self.host} can be reached from other machines and no API key is set",
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
