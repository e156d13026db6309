"""The kinds of engines, and what the rest of the program must know about each (docs/extending.md).

A new kind is a member and an entry of ENGINE_TRAITS here, a folder of `engines/` and a line in
`engines/hosts.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class EngineKind(StrEnum):
    """The program that runs a model."""

    LLAMA_CPP = "llama.cpp"
    VLLM = "vllm"
    OLLAMA = "ollama"
    COMMAND = "command"
    REMOTE = "remote"

    @property
    def traits(self) -> EngineTraits:
        """What the rest of the program must know about this kind."""
        return ENGINE_TRAITS[self]


OLLAMA_ADDRESS: Final = "http://127.0.0.1:11434"
DEFAULT_KIND: Final = EngineKind.LLAMA_CPP
"""The kind of a model whose entry names none."""


class PlanMethod(StrEnum):
    """How a model's memory is planned; `planning/planner.py` has a function for each."""

    PER_LAYER = "per layer"
    TENSOR_PARALLEL = "tensor parallel"
    WHOLE = "whole"
    """On one device, by bytes that the operator states or that were measured before."""
    NONE = "none"
    """It takes no memory of this machine."""


class ModelFormat(StrEnum):
    """The files that describe a model before it is loaded."""

    GGUF = "gguf"
    FOLDER = "folder"
    """A Hugging Face folder."""
    NOTHING = "nothing"


@dataclass(frozen=True, slots=True)
class EngineTraits:
    """The properties of one kind of engine.

    `keys` are the keys of a model's entry that it accepts, among those that some kinds do not accept; `needs`
    is the one that an entry must have. With `whole_recipe` it accepts every key of a recipe. `command` starts
    it if the entry has no `command:`, and `health_path` answers 200 once it serves. `daemon_address` is the
    usual address of the daemon that runs all models of this kind, None for kinds without one. `cache_types`
    are the types of KV cache that it supports, K and V alike; empty for no limit. `tokenizes` says that it
    answers `/tokenize`, and `learns_from_readings` that its measured memory is planned for its next load.
    With `counts_streams`, every release takes `stream_options`. With `outruns_clients`, it notices late
    that the client of a plain request has disconnected, so long ones are sent as streams.
    """

    planning: PlanMethod
    reads: ModelFormat
    keys: frozenset[str]
    needs: str | None = None
    whole_recipe: bool = False
    command: tuple[str, ...] = ()
    health_path: str = "/health"
    daemon_address: str | None = None
    cache_types: tuple[str, ...] = ()
    tokenizes: bool = False
    learns_from_readings: bool = False
    counts_streams: bool = False
    outruns_clients: bool = False

    @property
    def follows_recipe(self) -> bool:
        """Whether the recipe decides its context and its memory, so that both are known before it runs."""
        return self.planning in (PlanMethod.PER_LAYER, PlanMethod.TENSOR_PARALLEL)


_PROCESS: Final = frozenset(
    ["path", "gpus", "env", "args", "mps_threads", "mps_memory_margin_mib", "image", "launcher"]
)
"""Keys of engines that are processes of ours."""
_CONTEXT: Final = frozenset(["ctx", "n_ctx"])
_CACHE: Final = frozenset(["n_batch", "cache_type_k", "cache_type_v"])
_SERVER: Final = frozenset(["address", "api_key", "api_key_env"])
"""Keys of servers that others run."""

ENGINE_TRAITS: Final[Mapping[EngineKind, EngineTraits]] = {
    EngineKind.LLAMA_CPP: EngineTraits(
        PlanMethod.PER_LAYER,
        ModelFormat.GGUF,
        keys=_PROCESS | {"mmproj", "llama_server", "draft", "lora", "control_vectors"},
        needs="path",
        whole_recipe=True,
        tokenizes=True,
        counts_streams=True,
        outruns_clients=True,
    ),
    EngineKind.VLLM: EngineTraits(
        PlanMethod.TENSOR_PARALLEL,
        ModelFormat.FOLDER,
        keys=_PROCESS | _CONTEXT | _CACHE | {"command", "sleep"},
        needs="path",
        command=("vllm",),
        cache_types=("f16", "q8_0"),
        counts_streams=True,
    ),
    EngineKind.OLLAMA: EngineTraits(
        PlanMethod.WHOLE,
        ModelFormat.NOTHING,
        keys=_SERVER | {"model", "memory", "kind", "gpus"},
        daemon_address=OLLAMA_ADDRESS,
        counts_streams=True,
    ),
    EngineKind.COMMAND: EngineTraits(
        PlanMethod.WHOLE,
        ModelFormat.NOTHING,
        keys=_PROCESS | _CONTEXT | {"command", "stop", "health", "model", "memory", "kind"},
        needs="command",
        learns_from_readings=True,
    ),
    EngineKind.REMOTE: EngineTraits(
        PlanMethod.NONE,
        ModelFormat.NOTHING,
        keys=_SERVER | {"model", "health", "kind"},
        needs="address",
        health_path="/v1/models",
    ),
}


def keys_of_some_kinds() -> frozenset[str]:
    """Return the keys of a model's entry that not every kind of engine takes."""
    return frozenset().union(*(traits.keys for traits in ENGINE_TRAITS.values()))
