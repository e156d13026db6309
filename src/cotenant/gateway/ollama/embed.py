"""Embeddings in Ollama's API; texts are truncated to the model's limit."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from cotenant.domain.errors import BadRequest, UpstreamFailed
from cotenant.domain.models import ModelKind
from cotenant.domain.requests import ServedModel
from cotenant.gateway.http.model_list import served_name
from cotenant.gateway.http.problems import error_in
from cotenant.gateway.http.request import ApiRequest
from cotenant.gateway.inference.dialects import EMBEDDINGS, Target
from cotenant.gateway.inference.shared import Proxy
from cotenant.gateway.ollama.exchange import BufferedResponse, exchange
from cotenant.gateway.ollama.fields import Fields, text
from cotenant.gateway.ollama.requests import embed_request

_TOKENS: Final = Target(b"/tokenize", frozenset({ModelKind.EMBEDDING}))
_BATCH: Final = re.compile(r"too large to process.*batch size: (\d{1,9})\)")
_OK: Final = 200


@dataclass
class EmbeddingRequest:
    """One request for embeddings, in several steps; `waited_s` is the wait for the model."""

    _proxy: Proxy
    _request: ApiRequest
    _fields: Fields
    _model: ServedModel
    waited_s: float = 0.0

    async def embeddings(self, texts: Sequence[str], *, cut: bool) -> dict[str, Any] | None:
        """Return the engine's response; None if it was forwarded unchanged, or the client disconnected.

        All texts are sent first: few are too long, and the engine then returns an error. Raises BadRequest
        if texts must not be `cut`, or if the engine cannot tokenize.
        """
        given: list[str | list[int]] = list(texts)
        for _ in range(3):
            response = await self._send(EMBEDDINGS, embed_request(self._fields, self._model.name, given))
            if response.status == _OK:
                return response.payload()
            limit = _token_limit(response.body)
            if limit is None:
                await response.forward(self._request.send)
                return None
            recipe = self._model.recipe
            if not cut or (recipe is not None and not recipe.engine.traits.tokenizes):
                break
            cut_texts = await self._cut(texts, limit)
            if cut_texts is None:
                return None
            given = cut_texts
        raise BadRequest("the input length exceeds the context length", hint="Send shorter texts.")

    async def _cut(self, texts: Sequence[str], limit: int) -> list[str | list[int]] | None:
        """Replace long texts by their first `limit` tokens; None if the client disconnects."""
        frame = await self._tokens("")
        if frame is None:
            return None
        found: list[str | list[int]] = []
        for each in texts:
            if len(each.encode()) + len(frame) <= limit:
                found.append(each)
                continue
            tokens = await self._tokens(each)
            if tokens is None:
                return None
            # Keep the final special token: embedding models are trained with it.
            last = tokens[-1:] if frame and tokens[-1:] == frame[-1:] else []
            found.append(tokens if len(tokens) <= limit else tokens[: limit - len(last)] + last)
        return found

    async def _tokens(self, content: str) -> list[int] | None:
        """Return the tokens of a text, including the special tokens at its beginning and end."""
        engine_request = {"model": self._model.name, "content": content, "add_special": True}
        response = await self._send(_TOKENS, engine_request)
        if response.status != _OK:
            await response.forward(self._request.send)
            return None
        tokens = response.payload().get("tokens")
        if not isinstance(tokens, list) or any(type(token) is not int for token in tokens):
            raise UpstreamFailed("the engine's tokens have an unknown shape")
        return tokens

    async def _send(self, target: Target, engine_request: Mapping[str, Any]) -> BufferedResponse:
        response = BufferedResponse()
        # A variant has its own rules.
        name = served_name(text(self._fields, "model"), self._proxy.router)
        engine_request = {**engine_request, "model": name}
        forwarded = exchange(self._proxy, self._request, target, engine_request, response)
        await forwarded.run()
        self.waited_s += forwarded.waited_s
        return response


def _token_limit(body: bytes) -> int | None:
    """Return the token limit in an engine's error about a text that is too long; None for other errors."""
    error = error_in(body)
    if not isinstance(error, dict):
        return None
    limit = error.get("n_ctx") if error.get("type") == "exceed_context_size_error" else None
    if isinstance(limit, int) and limit > 0:
        return limit
    batch = _BATCH.search(str(error.get("message")))
    return int(batch[1]) if batch else None
