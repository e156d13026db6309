"""What the operator says of a model's engine beyond its recipe, by kind; llama.cpp needs nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from cotenant.domain.engines import Endpoint


@dataclass(frozen=True, slots=True)
class VllmTerms:
    """`program` starts vLLM's server; `sleep` is the level at which it sleeps in place of ending, 0 never.

    At level 1 the weights wait in host RAM, at level 2 nowhere: they are read again.
    """

    program: tuple[str, ...] = ("vllm",)
    sleep: int = 0


@dataclass(frozen=True, slots=True)
class OllamaTerms:
    """A model `tag` of the Ollama daemon at `address`."""

    address: Endpoint
    tag: str


@dataclass(frozen=True, slots=True)
class CommandTerms:
    """Any server of OpenAI's API: what starts it, what tells that it is ready, what ends it.

    `argv` and `stop` may hold the words in braces that `docs/engines.md` lists. Without `stop` it gets
    SIGTERM. `model` is the name that it knows the model by, None for the model's own.
    """

    argv: tuple[str, ...]
    health_path: str = "/health"
    stop: tuple[str, ...] = ()
    model: str | None = None


@dataclass(frozen=True, slots=True)
class RemoteTerms:
    """A model of another server of OpenAI's API; `address` holds its name there, and the key."""

    address: Endpoint
    health_path: str = "/v1/models"


EngineTerms: TypeAlias = VllmTerms | OllamaTerms | CommandTerms | RemoteTerms
