"""Embeddings in Ollama's API, of texts cut to what the model takes.

POST /api/embed         of one text or several
POST /api/embeddings    the older form, of one
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final

from cotenant.asgi import send_json
from cotenant.domain.errors import BadRequest, UpstreamFailed
from cotenant.domain.models import ModelKind
from cotenant.domain.requests import ServedModel
from cotenant.gateway.http.request import ApiRequest
from cotenant.gateway.inference.dialects import EMBEDDINGS, Target
from cotenant.gateway.inference.proxy import Proxy
from cotenant.gateway.ollama.exchange import Kept, exchange
from cotenant.gateway.ollama.fields import Fields, switch, text
from cotenant.gateway.ollama.requests import embed_dimensions, embed_request, embed_texts
from cotenant.gateway.ollama.responses import vectors

_TOKENS: Final = Target(b"/tokenize", frozenset({ModelKind.EMBEDDING}))
_BATCH: Final = re.compile(r"too large to process.*batch size: (\d{1,9})\)")
_OK: Final = 200
_MOST_TRIES: Final = 3

Hold = Callable[[ApiRequest, Fields, ServedModel], Awaitable[bool]]
"""Has a model loaded, or let go, as a request without a question asks; False if the client left."""


class Embedder:
    """Answers both forms for a model that a request names."""

    def __init__(self, proxy: Proxy, hold: Hold) -> None:
        self._proxy = proxy
        self._hold = hold

    async def embed(self, request: ApiRequest, fields: Fields, model: ServedModel) -> None:
        """Answer /api/embed. Texts that are too long are cut, unless it says `truncate: false`."""
        name, texts, dimensions = text(fields, "model"), embed_texts(fields), embed_dimensions(fields)
        if not texts:
            if await self._hold(request, fields, model):
                await send_json(request.send, _OK, {"model": name, "embeddings": []})
            return
        now = asyncio.get_running_loop().time
        began_at = now()
        embedding = _EmbeddingRequest(self._proxy, request, fields, model)
        answer = await embedding.embeddings(texts, cut=switch(fields, "truncate", True))
        if answer is None:
            return
        told = {
            "model": name,
            "embeddings": vectors(answer, dimensions),
            "total_duration": round((now() - began_at) * 1e9),
            "load_duration": round(embedding.waited_s * 1e9),
            "prompt_eval_count": (answer.get("usage") or {}).get("prompt_tokens", 0),
        }
        await send_json(request.send, _OK, told)

    async def embed_one(self, request: ApiRequest, fields: Fields, model: ServedModel) -> None:
        """Answer /api/embeddings, which refuses what is too long."""
        prompt = text(fields, "prompt")
        if not prompt:
            if await self._hold(request, fields, model):
                await send_json(request.send, _OK, {"embedding": []})
            return
        answer = await _EmbeddingRequest(self._proxy, request, fields, model).embeddings([prompt], cut=False)
        if answer is not None:
            await send_json(request.send, _OK, {"embedding": vectors(answer, None)[0]})


class _EmbeddingRequest:
    """One request on its way, in as many steps as it takes; `waited_s` is the wait for the model."""

    def __init__(self, proxy: Proxy, request: ApiRequest, fields: Fields, model: ServedModel) -> None:
        self._proxy = proxy
        self._request = request
        self._fields = fields
        self._model = model
        self.waited_s = 0.0

    async def embeddings(self, texts: Sequence[str], *, cut: bool) -> dict[str, Any] | None:
        """Return the engine's answer; None if it was passed on as it is, or the client left.

        The engine says itself what is too long for it: most texts are not, and are sent at once. Raises
        BadRequest for what is, if it must not be `cut` or its engine has no way to.
        """
        given: list[str | list[int]] = list(texts)
        for _ in range(_MOST_TRIES):
            kept = await self._asked(EMBEDDINGS, embed_request(self._fields, self._model.name, given))
            if kept.status == _OK:
                return kept.payload()
            most = _most_tokens(kept.body)
            if most is None:
                await kept.pass_on(self._request.send)
                return None
            if not cut or not self._has_tokens():
                break
            cut_texts = await self._cut(texts, most)
            if cut_texts is None:
                return None
            given = cut_texts
        raise BadRequest("the input length exceeds the context length", hint="Send shorter texts.")

    async def _cut(self, texts: Sequence[str], most: int) -> list[str | list[int]] | None:
        """Put the tokens of long texts in their place, `most` of each; None if the client left."""
        frame = await self._tokens("")
        if frame is None:
            return None
        found: list[str | list[int]] = []
        for each in texts:
            if len(each.encode()) + len(frame) <= most:
                found.append(each)
                continue
            tokens = await self._tokens(each)
            if tokens is None:
                return None
            # What models for embeddings are trained to end with, they end with here.
            last = tokens[-1:] if frame and tokens[-1:] == frame[-1:] else []
            found.append(tokens if len(tokens) <= most else tokens[: most - len(last)] + last)
        return found

    async def _tokens(self, content: str) -> list[int] | None:
        """Return the tokens of a text, those included that the model begins and ends with."""
        engine_request = {"model": self._model.name, "content": content, "add_special": True}
        kept = await self._asked(_TOKENS, engine_request)
        if kept.status != _OK:
            await kept.pass_on(self._request.send)
            return None
        tokens = kept.payload().get("tokens")
        if not isinstance(tokens, list) or any(type(token) is not int for token in tokens):
            raise UpstreamFailed("the engine's tokens have no shape that is known")
        return tokens

    async def _asked(self, target: Target, engine_request: Mapping[str, Any]) -> Kept:
        kept = Kept()
        asked = exchange(self._proxy, self._request, target, engine_request, kept)
        await asked.run()
        self.waited_s += asked.waited_s
        return kept

    def _has_tokens(self) -> bool:
        recipe = self._model.recipe
        return recipe is None or recipe.engine.traits.tokenizes


def _most_tokens(body: bytes) -> int | None:
    """Return how many tokens an engine takes that found a text too long; None for any other fault."""
    try:
        error = json.loads(body).get("error")
    except (ValueError, RecursionError, AttributeError):
        return None
    if not isinstance(error, dict):
        return None
    most = error.get("n_ctx") if error.get("type") == "exceed_context_size_error" else None
    if isinstance(most, int) and most > 0:
        return most
    batch = _BATCH.search(str(error.get("message")))
    return int(batch[1]) if batch else None
