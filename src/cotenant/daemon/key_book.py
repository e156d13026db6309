"""The keys that the daemon accepts, and what is remembered of their use."""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from cotenant.config.fields import key_rights
from cotenant.daemon.core.active_configuration import ActiveConfiguration
from cotenant.domain.errors import BadRequest, BadSetting, UnknownKey
from cotenant.domain.keys import ApiKey, KeyScope, KeyUse, KeyUses, check_keys
from cotenant.domain.records import KeyUseRecord, day_of
from cotenant.store.key_file import KeyFile, new_key
from cotenant.store.store import SqlJournal


class StoredKeyBook:
    """The KeyBook of the daemon: the keys in force, the file of `cotenant keys`, and the journal."""

    def __init__(
        self,
        active: ActiveConfiguration,
        file: KeyFile,
        journal: SqlJournal,
        unix_now: Callable[[], float] = time.time,
    ) -> None:
        self._active = active
        self._file = file
        self._journal = journal
        self._now = unix_now

    async def keys(self) -> Sequence[tuple[ApiKey, bool]]:
        """Return the keys in force, those of the configuration first."""
        stored = await self._stored()
        return [(key, key in stored) for key in self._active.keys.current]

    async def uses(self) -> Mapping[str, KeyUses]:
        """Return what keys have used, today and in all."""
        return await self._journal.key_uses(self._today())

    def record(self, name: str, use: KeyUse) -> None:
        """Have the journal's thread add what a key used to its row of today."""
        self._journal.record(KeyUseRecord(self._today(), name, use))

    async def add(self, name: str, rights: Mapping[str, Any]) -> str:
        """Make a key, and accept it at once. Raises BadRequest."""
        current = self._active.keys.current
        try:
            text, key = new_key(name, key_rights(rights, self._now(), lambda each: each.key))
            check_keys([*current, key])
            if not _administered([*current, key]):
                raise BadSetting(
                    "the first key must have the scope admin",
                    hint="Every request needs a key from then on: without it, nobody could make others here.",
                )
            await asyncio.to_thread(self._file.add, key)
        except BadSetting as error:
            raise BadRequest(error.message, hint=error.hint) from None
        await self._active.reread_keys()
        return text

    async def revoke(self, name: str) -> None:
        """Make a stored key void at once. Raises UnknownKey or BadRequest."""
        current = self._active.keys.current
        if name not in {key.name for key in current}:
            raise UnknownKey(f"there is no API key {name[:80]!r}")
        if name not in {key.name for key in await self._stored()}:
            raise BadRequest(f"the API key {name!r} is of the configuration", hint="Take it out there.")
        if not _administered([key for key in current if key.name != name]):
            raise BadRequest(f"{name!r} is the last key of the scope admin", hint="Make another one first.")
        try:
            await asyncio.to_thread(self._file.revoke, name, others=True)
        except BadSetting as error:
            raise BadRequest(error.message, hint=error.hint) from None
        await self._active.reread_keys()

    async def _stored(self) -> Sequence[ApiKey]:
        try:
            return await asyncio.to_thread(self._file.read)
        except BadSetting:  # the daemon's log says so, and the keys in force stay
            return ()

    def _today(self) -> str:
        return day_of(self._now())


def _administered(keys: Sequence[ApiKey]) -> bool:
    return any(key.scope is KeyScope.ADMIN for key in keys)
