"""API keys that `cotenant keys` made: a file in the state directory, with their hashes."""

import dataclasses
import fcntl
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cotenant.atomic_files import staged, sync_folder
from cotenant.domain.errors import BadSetting
from cotenant.domain.keys import ApiKey, KeyScope

NAME: Final = "keys.json"
_OWN_ONLY: Final = 0o600


@dataclass(frozen=True, slots=True)
class KeyFile:
    """The keys in a file; none if there is no file. Daemons of the same state directory accept them."""

    path: Path

    def read(self) -> tuple[ApiKey, ...]:
        """Return the keys. Raises BadSetting for a file that cannot be read: then no key can be told."""
        try:
            return tuple(_key(each) for each in json.loads(self.path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return ()
        except OSError as error:
            why = error.strerror or str(error)
        except (ValueError, TypeError, KeyError, AttributeError):
            why = "it is not what `cotenant keys` writes"
        raise BadSetting(
            f"{self.path} cannot be read: {why}", hint="Restore it, or delete it to have no keys."
        )

    def change(self, change: Callable[[Sequence[ApiKey]], Sequence[ApiKey]]) -> None:
        """Replace the keys by what `change` makes of them, one process at a time. Raises BadSetting."""
        folder = self.path.parent
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with open(self.path.with_suffix(".lock"), "ab") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                rows = [_row(key) for key in change(self.read())]
                replacement = staged(self.path, json.dumps(rows, indent=1).encode(), _OWN_ONLY)
                if os.geteuid() == 0:
                    # Root makes keys for the daemon's account, which has to read them.
                    owner = folder.stat()
                    os.chown(replacement, owner.st_uid, owner.st_gid)
                replacement.replace(self.path)
                sync_folder(folder)
        except OSError as error:
            what = f"{self.path} cannot be written: {error.strerror or error}"
            raise BadSetting(what, hint="Run it as the daemon's account, or as root.") from None


def _row(key: ApiKey) -> dict[str, Any]:
    return {**dataclasses.asdict(key), "digest": key.digest.hex()}


def _key(row: Any) -> ApiKey:
    values = {**row, "digest": bytes.fromhex(row["digest"]), "scope": KeyScope(row["scope"])}
    return ApiKey(**{**values, "models": tuple(row["models"])})
