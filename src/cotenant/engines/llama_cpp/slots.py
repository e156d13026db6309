"""Saves the slots of an engine before it ends, and restores those of its predecessor once it is ready.

A slot holds the KV cache of one conversation. The engine itself finds the slot whose tokens a request begins
with, so whoever sends the request need not know: a restored slot is found as if nothing had happened.
"""

import asyncio
import json
import logging
import re
from dataclasses import dataclass, field
from typing import Any, Final

from cotenant.domain.engines import Endpoint
from cotenant.domain.launching import SlotCache
from cotenant.domain.units import MIB, format_bytes, format_count, format_duration
from cotenant.engines.process.slot_store import SavedSlot, SlotStore, erase
from cotenant.http.client import probe, probe_ok

SAVE_WITHIN_S: Final = 2.0
"""The longest that an unload waits for its slots."""
RESTORE_WITHIN_S: Final = 2.0
"""The longest that a load waits for its slots."""
_ASK_WITHIN_S: Final = 0.5
"""The part of it in which it must say what its slots hold."""
LEAST_PREFILL_S: Final = 0.05
"""What is computed again sooner is not worth a file."""
_WORTH: Final = 3.0
"""By how much computing a slot must take longer than writing and reading it."""
_LEAST_TOKENS: Final = 64
"""Fewer tokens say nothing of the speed of prefill."""
_TOKENS: Final = re.compile(r"^llamacpp:prompt_tokens_total ([\d.e+]+)$", re.MULTILINE)
_SECONDS: Final = re.compile(r"^llamacpp:prompt_seconds_total ([\d.e+]+)$", re.MULTILINE)
_PER_TOKEN_BYTES: Final = 4
"""The token itself, which the file has too."""

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class EngineSlots:
    """The slots of one engine of a model `name`; those of another `key` do not fit it."""

    store: SlotStore
    key: str
    cache: SlotCache
    n_slots: int
    name: str
    _restored: dict[int, int] = field(default_factory=dict)
    """The tokens of slots by number that were restored: the engine tells of a slot only once it was used."""

    async def restore(self, endpoint: Endpoint) -> None:
        """Give the engine the slots that were saved last, as far as there is time."""
        loop = asyncio.get_running_loop()
        began_at = loop.time()
        taken = self.store.take(self.key, self.n_slots)
        restored: list[SavedSlot] = []
        try:
            for number, slot in enumerate(taken):
                left_s = began_at + RESTORE_WITHIN_S - loop.time()
                if left_s <= 0:
                    break
                if not slot.is_whole:
                    continue  # an engine dies of a file that is cut off
                action = f"/slots/{number}?action=restore"
                answer = await probe(endpoint, action, {"filename": slot.path.name}, timeout_s=left_s)
                found = None if answer is None else answer.json_object()
                if found is not None and found.get("n_restored") == slot.tokens:
                    restored.append(slot)
                    self._restored[number] = slot.tokens
        finally:
            await asyncio.to_thread(erase, [slot.path for slot in taken])
        self.store.restored(restored)
        if taken:
            took_s = loop.time() - began_at
            spared_s = sum(slot.prefill_s for slot in restored)
            _log.info(
                "%s: %s of %d restored in %s: %s tokens, which took %s to compute",
                self.name,
                format_count(len(restored), "saved slot"),
                len(taken),
                format_duration(took_s),
                f"{sum(slot.tokens for slot in restored):,}",
                format_duration(spared_s),
            )

    async def save(self, endpoint: Endpoint) -> None:
        """Save the slots that are worth it, those used last first, as far as there is time and room."""
        loop = asyncio.get_running_loop()
        began_at = loop.time()
        saved: list[tuple[int, int]] = []
        idle = await self._idle_slots(endpoint)
        per_token_s = await self._seconds_per_token(endpoint) if idle else None
        # What was used last gets the latest name, so that it is restored first.
        names = [self.store.next_name() for _ in idle]
        for number, tokens in idle if per_token_s is not None else ():
            name = names.pop()
            left_s = began_at + SAVE_WITHIN_S - loop.time()
            size = tokens * (self.cache.bytes_per_token + _PER_TOKEN_BYTES) + MIB
            prefill_s = tokens * (per_token_s or 0.0)
            if prefill_s < max(LEAST_PREFILL_S, _WORTH * 2 * size / self.store.bytes_per_s) or left_s <= 0:
                continue
            dropped = self.store.make_room(size, prefill_s)
            if dropped is None:
                continue
            await asyncio.to_thread(erase, [slot.path for slot in dropped])
            written = await self._save_one(endpoint, number, name, prefill_s / tokens, left_s)
            if written is not None:
                saved.append(written)
        if saved:
            _log.info(
                "%s: %s of %s tokens saved in %s: %s of host RAM",
                self.name,
                format_count(len(saved), "slot"),
                f"{sum(tokens for tokens, _ in saved):,}",
                format_duration(loop.time() - began_at),
                format_bytes(sum(size for _, size in saved)),
            )

    async def _save_one(
        self, endpoint: Endpoint, number: int, name: str, per_token_s: float, within_s: float
    ) -> tuple[int, int] | None:
        """Return the tokens and bytes of a slot that was saved; None if it was empty, or not in time."""
        loop = asyncio.get_running_loop()
        try:
            path = self.store.folder_of(self.key) / name
        except OSError as error:
            # The daemon ends, and has erased what was saved.
            _log.debug("%s: its slots are not saved: %s", self.name, error)
            return None
        began_at = loop.time()
        action = f"/slots/{number}?action=save"
        answer = await probe(endpoint, action, {"filename": path.name}, timeout_s=within_s)
        found = None if answer is None else answer.json_object()
        tokens, size = ((found or {}).get(key) for key in ("n_saved", "n_written"))
        if not isinstance(tokens, int) or not isinstance(size, int) or tokens <= 0:
            await asyncio.to_thread(erase, [path])
            return None
        self.store.bytes_per_s = size / max(1e-6, loop.time() - began_at)
        self.store.add(self.key, path, tokens, size, tokens * per_token_s)
        return tokens, size

    async def _idle_slots(self, endpoint: Endpoint) -> list[tuple[int, int]]:
        """Return the number and the tokens of each slot that does nothing, the last used first."""
        answer = await probe_ok(endpoint, "/slots", timeout_s=_ASK_WITHIN_S)
        try:
            slots: list[dict[str, Any]] = [] if answer is None else json.loads(answer.body)
            idle = [slot for slot in slots if not slot["is_processing"]]
            idle.sort(key=lambda slot: -slot.get("id_task", -1))
            tokens = {
                slot["id"]: slot.get("n_prompt_tokens", self._restored.get(slot["id"], 0)) for slot in idle
            }
            return [(int(number), int(count)) for number, count in tokens.items() if count]
        except (ValueError, KeyError, TypeError, AttributeError):
            return []

    async def _seconds_per_token(self, endpoint: Endpoint) -> float | None:
        """Return how long it, or an earlier engine, computed for each token of prompts; None if unknown."""
        answer = await probe_ok(endpoint, "/metrics", timeout_s=_ASK_WITHIN_S)
        text = "" if answer is None else answer.body.decode("utf-8", "replace")
        tokens, seconds = _TOKENS.search(text), _SECONDS.search(text)
        if tokens and seconds and float(tokens[1]) >= _LEAST_TOKENS:
            self.store.seconds_per_token[self.key] = float(seconds[1]) / float(tokens[1])
        return self.store.seconds_per_token.get(self.key)
