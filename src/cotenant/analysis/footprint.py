"""Computes bytes per device and part from shape, recipe and split.

Sources, read in llama.cpp at commit 0c1e570 and checked against its logs:
weights, `src/llama-model.cpp` (layer → device) and `ggml-cuda.cu` (padding, applied in the shape already);
KV, `src/llama-context.cpp` (context padding), `llama-kv-cache.cpp`, `llama-kv-cache-iswa.cpp` (windows),
`llama-memory-recurrent.cpp` (states); compute, `llama_context::sched_reserve` (one worst-case graph).

A model is a row of *units*: its blocks 0 … L-1 and then the output layer, unit L. A device holds a contiguous
range of units, so its bytes are a function of the range and of a few facts about the whole split.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Final

from cotenant.analysis.ggml_types import GGML_TYPES
from cotenant.domain.models import (
    AttentionKind,
    CacheType,
    FlashAttention,
    LayerShape,
    ModelShape,
    Parts,
    Projector,
    Recipe,
)

_CONTEXT_PAD: Final = 256
_COPIES: Final = 4  # GGML_SCHED_MAX_COPIES, a build-time constant of llama.cpp
DRAFTED_TOKENS: Final = 3
"""Tokens that a draft guesses at a time, as llama.cpp has it by default."""
_F32: Final = 4
_F16: Final = 2

_TYPES: Final = {kind.name.lower(): kind for kind in GGML_TYPES.values()}


@dataclass(frozen=True, slots=True)
class CacheGeometry:
    """Cells of the KV cache: per stream for full and for sliding layers, and how many streams there are."""

    cells: int
    sliding_cells: int
    streams: int

    @property
    def n_ctx(self) -> int:
        """Tokens that the engine will report as its context."""
        return self.cells * self.streams

    def cells_of(self, layer: LayerShape) -> int:
        """Return the cells per stream of one layer's cache."""
        return self.sliding_cells if layer.attention is AttentionKind.SLIDING else self.cells


def cache_geometry(recipe: Recipe, sliding_window: int | None) -> CacheGeometry:
    """Return the padded cache that llama.cpp allocates for a recipe."""
    if recipe.kv_unified:
        streams, cells = 1, _pad(recipe.n_ctx)
    else:
        streams, cells = recipe.parallel, _pad(_pad(recipe.n_ctx) // recipe.parallel)
    sharers = recipe.parallel if recipe.kv_unified else 1
    window = min(cells, (sliding_window or cells) * sharers + recipe.n_ubatch)
    return CacheGeometry(cells=cells, sliding_cells=_pad(window), streams=streams)


def layer_kv_bytes(layer: LayerShape, recipe: Recipe, geometry: CacheGeometry, v_elements_max: int) -> int:
    """Return the cache of one layer for all sequences: attention cells and recurrent state.

    Without flash attention V is stored transposed, and every layer's V is as wide as the widest.
    """
    if layer.skipped:
        return 0
    state = _F32 * recipe.parallel * layer.state_elements
    if layer.attention is AttentionKind.NONE or not layer.k_elements:
        return state
    cells = geometry.cells_of(layer)
    v_elements = layer.v_elements
    if v_elements and recipe.flash_attention is FlashAttention.OFF:
        v_elements = v_elements_max
    row = _row_bytes(recipe.cache_type_k, layer.k_elements) + _row_bytes(recipe.cache_type_v, v_elements)
    return state + cells * geometry.streams * row


def draft_recipe(recipe: Recipe, n_ctx: int) -> Recipe:
    """Return how llama.cpp runs a draft, given the context of the model that verifies.

    `common_base_params_to_speculative`: as that model, on as many tokens, with a cache of its own types.
    """
    f16 = CacheType.F16
    return replace(recipe, n_ctx=n_ctx, n_cpu_moe=0, cache_type_k=f16, cache_type_v=f16)


def restorable_token_bytes(shape: ModelShape, recipe: Recipe) -> int | None:
    """Return the bytes of cache that a token takes; None for a cache that no engine can go on with later.

    Of a window, and of recurrent state, an engine keeps only the end, which fits a prompt that continues
    right there and no other (`server-context.cpp`, checkpoints). Where the formula is not known to be
    exact, neither is what the cache holds.
    """
    layers = [layer for layer in shape.layers if not layer.skipped]
    whole = all(each.attention is not AttentionKind.SLIDING and not each.state_elements for each in layers)
    if not whole or not shape.kv_exact:
        return None
    one = CacheGeometry(cells=1, sliding_cells=1, streams=1)
    widest_v = max((layer.v_elements for layer in layers), default=0)
    return sum(layer_kv_bytes(layer, recipe, one, widest_v) for layer in layers) or None


class Costs:
    """What any range of units needs on a device, for one shape and one recipe, in constant time.

    `begin` is the first unit that leaves host RAM: 0 for full offload, `n_layers + 1` for none. The experts
    of the recipe's first `n_cpu_moe` blocks stay there, too (llama.cpp's `--n-cpu-moe`: the tensors that
    `LLM_FFN_EXPS_REGEX` of `common/common.h` names), so such a model has no pipeline copies.
    `projector` and `draft`, a smaller model that guesses tokens, are charged to the first device. Compute
    sizes are exact unless `compute_estimated`.
    """

    def __init__(
        self,
        shape: ModelShape,
        recipe: Recipe,
        *,
        begin: int = 0,
        projector: Projector | None = None,
        draft: ModelShape | None = None,
    ) -> None:
        self.shape = shape
        self.recipe = recipe
        self.begin = begin
        self.geometry = cache_geometry(recipe, shape.sliding_window)
        self.n_units = shape.n_layers + 1
        self.draft = None if draft is None else Costs(draft, draft_recipe(recipe, self.geometry.n_ctx))
        self.projector = projector.parts(recipe) if projector else Parts()
        self.first = self.projector
        if self.draft is not None:
            self.first += self.draft.parts(0, self.draft.n_units, many=False)
        widest_v = max((layer.v_elements for layer in shape.layers), default=0)
        self.kv = [layer_kv_bytes(layer, recipe, self.geometry, widest_v) for layer in shape.layers] + [0]
        self.experts_of = recipe.n_cpu_moe if isinstance(recipe.n_cpu_moe, int) else 0
        self._hosted = [
            layer.expert_bytes if begin <= layer.index < self.experts_of else 0 for layer in shape.layers
        ]
        self.weights = [
            layer.weight_bytes - hosted for layer, hosted in zip(shape.layers, self._hosted, strict=True)
        ] + [shape.output_bytes]
        self._kv_before = list(accumulate(self.kv, initial=0))
        self._weights_before = list(accumulate(self.weights, initial=0))
        peaks = [self._layer_compute(layer) for layer in shape.layers]
        self._peaks = _RangeMaximum([*peaks, self._output_compute()])
        self._inputs_single = self._mask_bytes()
        self._inputs_many = self._mask_bytes()
        self._pipelined = begin == 0 and not self.experts_of
        if self._pipelined:
            self._inputs_many = self._pipeline_bytes()
            if any(layer.state_elements for layer in shape.layers):
                # Mamba 2.8B over three devices was seen 40 MiB over one set of copies: what those of the
                # hidden state take on the second and the third. They are planned twice: an upper bound.
                self._inputs_many += _COPIES * self._hidden_bytes()
        self._first_extra_compute = self._offloaded_matrix_bytes()

    @property
    def hosted_experts(self) -> int:
        """Bytes of experts that stay in host RAM while the rest of their blocks is on GPUs."""
        return sum(self._hosted)

    @property
    def compute_estimated(self) -> bool:
        """Whether the compute formula is used beyond the cases for which it was checked."""
        quantised = self.recipe.cache_type_k.quantised or self.recipe.cache_type_v.quantised
        if self.draft is not None and self.draft.compute_estimated:
            return True
        return not self.shape.compute_known or self.begin > 0 or quantised or self.projector.compute > 0

    def parts(self, start: int, stop: int, *, many: bool, overhead_bytes: int = 0) -> Parts:
        """Return the bytes of a device that holds units [start, stop); `many` if others hold the rest."""
        if start >= stop:
            return Parts()
        first = start == self.begin
        weights = self._weights_before[stop] - self._weights_before[start] + self.shape.shared_bytes
        compute = self._peaks(start, stop) + (self._inputs_many if many else self._inputs_single)
        if first:
            compute += self._first_extra_compute
        own = Parts(
            weights=weights,
            kv=self._kv_before[stop] - self._kv_before[start],
            compute=compute,
            overhead=overhead_bytes,
        )
        return own + self.first if first else own

    def total(self, start: int, stop: int, many: bool) -> int:
        """Return `parts(…).total` without overhead, fast: searches call it."""
        if start >= stop:
            return 0
        total = self._weights_before[stop] - self._weights_before[start] + self.shape.shared_bytes
        total += self._kv_before[stop] - self._kv_before[start] + self._peaks(start, stop)
        total += self._inputs_many if many else self._inputs_single
        if start == self.begin:
            total += self.first.total + self._first_extra_compute
        return total

    def read_bytes(self, start: int, stop: int) -> int:
        """Return the bytes that one generated token reads from units [start, stop)."""
        weights = self._weights_before[stop] - self._weights_before[start]
        experts = sum(
            layer.expert_bytes - hosted
            for layer, hosted in zip(self.shape.layers[start:stop], self._hosted[start:stop], strict=True)
        )
        return weights - self._idle(experts) + self._kv_before[stop] - self._kv_before[start]

    def read_on_host(self) -> int:
        """Return the bytes of host RAM that one generated token reads: units before `begin`, and experts."""
        resident = min(self.begin, self.n_units)
        return self.read_bytes(0, resident) + self.hosted_experts - self._idle(self.hosted_experts)

    def host(self, *, many: bool) -> Parts:
        """Return what stays in host RAM: the input layer, units before `begin`, and the graph's inputs."""
        resident = min(self.begin, self.n_units)
        if resident == self.n_units:
            return self.all_on_host()
        compute = self._hidden_bytes()
        if resident:
            compute += self._peaks(0, resident) + self._mask_bytes()
        elif many and self._pipelined:
            compute += self._pipeline_bytes()
        else:
            compute += self._hidden_bytes() + self._mask_bytes()
        if self.hosted_experts:
            compute += _F32 * self._tokens() * self._expert_width()
        own = Parts(
            weights=self.shape.input_bytes + self._weights_before[resident] + self.hosted_experts,
            kv=self._kv_before[resident],
            compute=compute,
        )
        return own if self.draft is None else own + self.draft.host(many=False)

    def all_on_host(self) -> Parts:
        """Return the bytes of the whole model in host RAM; there a tied output needs no second copy."""
        # A skipped layer is in the file but not loaded; a tied output is loaded once but not in the file.
        loaded = self.shape.input_bytes + self._weights_before[-1] + self.shape.shared_bytes
        weights = min(self.shape.tensor_bytes, loaded) + self.projector.weights
        compute = self._peaks(0, self.n_units) + self._hidden_bytes() + self._mask_bytes()
        compute += self.projector.compute
        own = Parts(weights=weights, kv=self._kv_before[-1], compute=compute)
        return own if self.draft is None else own + self.draft.all_on_host()

    def _idle(self, expert_bytes: int) -> int:
        """Return what one token does not read of the bytes of so many experts."""
        n_expert = self.shape.n_expert
        return expert_bytes * (n_expert - self.shape.n_expert_used) // n_expert if n_expert else 0

    def _tokens(self) -> int:
        return min(self.geometry.n_ctx, self.recipe.n_ubatch)

    def _hidden_bytes(self) -> int:
        return _F32 * self._tokens() * self.shape.n_embd

    def _mask_bytes(self) -> int:
        kinds = {layer.attention for layer in self.shape.layers if layer.k_elements and not layer.skipped}
        cells = self.geometry.cells if kinds & {AttentionKind.FULL, AttentionKind.LATENT} else 0
        cells += self.geometry.sliding_cells if AttentionKind.SLIDING in kinds else 0
        element = _F32 if self.recipe.flash_attention is FlashAttention.OFF else _F16
        return element * self._tokens() * cells

    def _pipeline_bytes(self) -> int:
        """Return the inputs of a graph on several devices: every device holds four copies of each."""
        return _COPIES * (self._mask_bytes() + self._hidden_bytes())

    def _layer_compute(self, layer: LayerShape) -> int:
        """Return the peak of one block's intermediate tensors: in its feed-forward part or in its attention.

        Dense: `4·ub·(3·ff + 3·embd)`, exact for Llama 8B and 70B. Mixture of experts:
        `4·ub·(k·(3·ff_expert + embd) + 3·embd)`, exact for Qwen3-Next and 3.5 % low for Qwen3-30B. A layer
        that is only recurrent: `4·ub·12·embd`, as measured on Mamba 2.8B.
        """
        if layer.skipped:
            return 0
        embd = self.shape.n_embd
        width = 3 * layer.n_ff + 3 * embd
        if layer.state_elements and not layer.n_ff and not layer.expert_bytes:
            width = 12 * embd
        if layer.expert_bytes:
            width = max(width, self._expert_width() + 3 * embd)
        width += self.shape.adapter_elements
        return max(_F32 * self._tokens() * width, self._attention_compute(layer))

    def _expert_width(self) -> int:
        """Return the elements per token of what the experts of one block compute.

        In host RAM it is an upper bound: up to 45 MiB over on five models under a micro-batch of 512.
        """
        return self.shape.n_expert_used * (3 * self.shape.n_ff_expert + self.shape.n_embd)

    def _attention_compute(self, layer: LayerShape) -> int:
        """Return the peak of one block's attention.

        Without flash attention `4·ub·(heads·cells + 4·embd + k + v)`, exact for Llama 70B. With it and a
        quantised cache, one layer's cache is expanded to F16 (llama.cpp PR 23907): an upper bound. A latent
        cache is queried by every head at its full width: `4·ub·(heads·5/2·k + 3·embd)`, 2 % over DeepSeek-V3.
        """
        if layer.attention is AttentionKind.NONE or not layer.k_elements:
            return 0
        cells = self.geometry.cells_of(layer)
        row = layer.k_elements + layer.v_elements
        width = 4 * self.shape.n_embd + row
        if layer.attention is AttentionKind.LATENT:
            width = layer.n_head * layer.k_elements * 5 // 2 + 3 * self.shape.n_embd
        needed = _F32 * self._tokens() * width
        if self.recipe.flash_attention is FlashAttention.OFF:
            return needed + _F32 * self._tokens() * layer.n_head * cells
        if self.recipe.cache_type_k.quantised or self.recipe.cache_type_v.quantised:
            return needed + _F16 * cells * self.geometry.streams * row
        return needed

    def _output_compute(self) -> int:
        """Return logits and normed state: one row per slot for a server, all states for embeddings.

        With a draft there is a row more for each token that is guessed (`server_output_limits`).
        """
        if self.shape.kind.pools:
            return 2 * self._hidden_bytes()
        rows = self.recipe.parallel * (1 if self.draft is None else 1 + DRAFTED_TOKENS)
        return _F32 * rows * (self.shape.n_vocab + self.shape.n_embd)

    def _offloaded_matrix_bytes(self) -> int:
        """Return the bytes on the first GPU for a weight that stays in RAM: large batches multiply it there.

        llama.cpp (`ggml-backend.cpp`, op offload) copies one such matrix at a time.
        """
        if self.begin >= self.n_units:
            return 0
        on_host = (
            layer.largest_tensor_bytes
            for layer, hosted in zip(self.shape.layers, self._hosted, strict=True)
            if layer.index < self.begin or hosted
        )
        return max(on_host, default=0)


class _RangeMaximum:
    """The maximum of any range of fixed values, in constant time, by tables of power-of-two windows."""

    __slots__ = ("_tables",)

    def __init__(self, values: Sequence[int]) -> None:
        self._tables = [list(values)]
        width = 1
        while 2 * width <= len(values):
            last = self._tables[-1]
            self._tables.append([max(last[i], last[i + width]) for i in range(len(last) - width)])
            width *= 2

    def __call__(self, start: int, stop: int) -> int:
        level = (stop - start).bit_length() - 1
        table = self._tables[level]
        return max(table[start], table[stop - (1 << level)])


def _pad(count: int) -> int:
    return -(-count // _CONTEXT_PAD) * _CONTEXT_PAD


def _row_bytes(kind: CacheType, elements: int) -> int:
    stored = _TYPES[kind]
    return -(-elements // stored.block_elements) * stored.block_bytes
