"""API keys: their rights and what they have used; keys are made and revoked while the daemon runs."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final, Literal, Protocol

from pydantic import BaseModel, Field

from cotenant.domain import errors
from cotenant.domain.keys import ApiKey, KeyScope, KeyUse, KeyUses
from cotenant.gateway.http.bodies import RequestModel, ResponseModel, read_body
from cotenant.gateway.http.request import ApiRequest
from cotenant.gateway.http.routes import BODY_ERRORS, Body, Parameter, Reply, Route
from cotenant.gateway.telemetry.key_usage import KeyUsage

_EVERY_S: Final = 5.0
_NAME: Final = Parameter(
    "name", "the key's name", {"type": "string", "minLength": 1}, place="path", required=True, example="app"
)
_SHORT: Final = Field(min_length=1, max_length=200)


class KeyBook(Protocol):
    """Knows the keys that are accepted, stores those that are made, and remembers what all of them use."""

    async def keys(self) -> Sequence[tuple[ApiKey, bool]]:
        """The keys, each with whether it is stored, so that it can be revoked here."""

    async def uses(self) -> Mapping[str, KeyUses]:
        """What keys have used, by their names: today (in UTC), and in all."""

    def record(self, name: str, use: KeyUse) -> None:
        """Remember what a key has used. Never blocks."""

    async def add(self, name: str, rights: Mapping[str, Any]) -> str:
        """Make a key and return its text, which nobody can tell later. Raises BadRequest."""

    async def revoke(self, name: str) -> None:
        """Make a key void. Raises UnknownKey, or BadRequest for one that has to stay."""


class UseResponse(ResponseModel):
    """Requests that ended, tokens that engines counted, and seconds of waits for models."""

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    wait_s: float = 0.0


class KeyResponse(BaseModel):
    """A key, never its text or hash. All `models` if none is named; `expires_at` is Unix seconds.

    `origin` says where it is revoked: here if it is stored. `today` begins at midnight in UTC.
    """

    name: str
    scope: KeyScope
    models: Sequence[str]
    expires_at: float | None
    requests_at_once: int | None
    tokens_per_minute: int | None
    priority: int | None
    origin: Literal["configuration", "stored"]
    in_flight: int
    today: UseResponse
    total: UseResponse


class KeysResponse(BaseModel):
    """The keys that are accepted; none if no request needs one."""

    keys: list[KeyResponse]


class KeyRequest(RequestModel):
    """A key to make. `expires` is a day or an instant, or a duration from now, such as 30d."""

    name: Annotated[str, _SHORT]
    scope: KeyScope = KeyScope.INFER
    models: list[Annotated[str, _SHORT]] | None = None
    expires: Annotated[str, _SHORT] | None = None
    requests_at_once: int | None = None
    tokens_per_minute: int | None = None
    priority: int | None = None


class NewKeyResponse(BaseModel):
    """A key that was made: `key` is its text, which is told only now."""

    name: str
    key: str


class KeyRoutes:
    """Handles keys, and has `book` remember what `usages` count, by the names of keys."""

    def __init__(self, book: KeyBook, usages: Mapping[str, KeyUsage]) -> None:
        self._book = book
        self._usages = usages

    async def run(self) -> None:
        """Record every few seconds, until cancelled."""
        while True:
            await asyncio.sleep(_EVERY_S)
            self.record()

    def record(self) -> None:
        """Record what was used since the last call."""
        for name, usage in self._usages.items():
            if (use := usage.take()) is not None:
                self._book.record(name, use)

    @Route(
        "GET /api/keys",
        "List the API keys with their rights and what they have used",
        Reply(KeysResponse, "keys"),
        scope=KeyScope.ADMIN,
    )
    async def _list(self, request: ApiRequest) -> object:
        self.record()
        uses = await self._book.uses()
        return KeysResponse(
            keys=[
                self._response(key, uses.get(key.name, KeyUses()), stored=stored)
                for key, stored in await self._book.keys()
            ]
        )

    @Route(
        "POST /api/keys",
        "Make an API key, which is accepted at once; once there is one, every request needs one",
        Reply(NewKeyResponse, "the key"),
        BODY_ERRORS,
        body=Body(KeyRequest, required=True, examples={"an app": {"name": "app", "models": ["llama3.2"]}}),
        scope=KeyScope.ADMIN,
    )
    async def _add(self, request: ApiRequest) -> object:
        asked = read_body(KeyRequest, await request.body())
        rights = asked.model_dump(exclude={"name"}, exclude_none=True)
        return NewKeyResponse(name=asked.name, key=await self._book.add(asked.name, rights))

    @Route(
        "DELETE /api/keys/{name}",
        "Make an API key void, and end the browser sessions that began with it",
        Reply(KeysResponse, "the keys that are left"),
        (errors.UnknownKey, errors.BadRequest),
        (_NAME,),
        scope=KeyScope.ADMIN,
    )
    async def _revoke(self, request: ApiRequest) -> object:
        await self._book.revoke(request.name)
        return await self._list(request)

    def _response(self, key: ApiKey, uses: KeyUses, *, stored: bool) -> KeyResponse:
        usage = self._usages.get(key.name)
        return KeyResponse(
            name=key.name,
            scope=key.scope,
            models=key.models,
            expires_at=key.expires_at,
            requests_at_once=key.requests_at_once,
            tokens_per_minute=key.tokens_per_minute,
            priority=key.priority,
            origin="stored" if stored else "configuration",
            in_flight=0 if usage is None else usage.in_flight,
            today=UseResponse.model_validate(uses.day),
            total=UseResponse.model_validate(uses.total),
        )
