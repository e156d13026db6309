"""Computes a ModelShape from a GGUF header: the bytes and the cache of each block."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from cotenant.analysis import architectures as arch
from cotenant.analysis.encoder import projector
from cotenant.analysis.ggml_types import FILE_TYPES
from cotenant.analysis.gguf import GgufHeader, TensorInfo
from cotenant.analysis.hyperparameters import MOST_BLOCKS, Hyperparameters
from cotenant.analysis.layer_memory import cached_layers
from cotenant.domain.errors import CorruptModelFile, UnsupportedModelFile
from cotenant.domain.models import LayerShape, ModelKind, ModelShape

_DEVICE_ALIGNMENT: Final = 128
_ROW_PADDING: Final = 512
_FILE_TYPE_GUESSED: Final = 1024
_POOLING_NONE: Final = 0
_POOLING_RANK: Final = 4

_BLOCK: Final = re.compile(r"(?:enc\.|dec\.)?blk\.(\d{1,9})\.(.+)")
_EXPERTS: Final = re.compile(r"ffn_(?:up|down|gate|gate_up)_(?:ch)?exps\.|ffn_(?:up|down|gate)\.\d+\.")
_DENSE_FFN: Final = re.compile(r"ffn_(?:up|down)\.(?:weight|bias)")
_READS_HIDDEN: Final = re.compile(r"\.(?:attn_[qkv]|ffn_(?:up|gate))\.weight\.lora_a$")
_INPUT: Final = frozenset(["token_embd", "position_embd", "token_types", "per_layer_token_embd"])
_FIRST_BLOCK: Final = frozenset(
    ["token_embd_norm", "per_layer_model_proj", "per_layer_proj_norm", "hrm.z_l_init", "nextn.pre_projection"]
)
_OUTPUT: Final = frozenset(
    """output output_norm cls cls.output cls.norm dense_2 dense_3 dec.output_norm enc.output_norm output_hc_fn
    output_hc_base output_hc_scale output_hc_norm output_hc_down output_hc_up output_res_score altup_proj
    altup_unembd_proj nextn.post_projection""".split()  # noqa: SIM905
)
_EVERY_DEVICE: Final = frozenset(["rope_freqs", "rope_factors_long", "rope_factors_short"])


def allocated_bytes(tensor: TensorInfo) -> int:
    """Return what a tensor takes on a CUDA device.

    Quantised rows that are not a multiple of 512 elements are padded, and every tensor starts at a
    multiple of 128 (`ggml-cuda.cu`, `get_alloc_size` and `get_alignment`).
    """
    size = tensor.n_bytes
    row = tensor.dims[0] if tensor.dims else 1
    if tensor.type.quantised and row % _ROW_PADDING:
        rest = _ROW_PADDING - row % _ROW_PADDING
        size += rest // tensor.type.block_elements * tensor.type.block_bytes
    return -(-size // _DEVICE_ALIGNMENT) * _DEVICE_ALIGNMENT


def model_shape(header: GgufHeader) -> ModelShape:
    """Describe the model of a header with all parts joined.

    Raises UnsupportedModelFile if it is not a model that can be planned (an adapter, a vocabulary, …) and
    CorruptModelFile if its numbers contradict each other.
    """
    hp = Hyperparameters(header)
    if hp.architecture == "clip" or hp.text("general.type") == "mmproj":
        return _projector_shape(hp)
    _refuse_other_files(hp)
    n_all = hp.required(".block_count")
    n_skipped = hp.count(".nextn_predict_layers", 0)
    if n_all > MOST_BLOCKS or n_skipped >= n_all:
        raise CorruptModelFile(
            f"{header.source_name} declares {n_all} blocks, {n_skipped} of them to skip",
            hint=f"llama.cpp takes at most {MOST_BLOCKS}: fetch the file again.",
        )
    return _text_shape(hp, n_all, n_all - n_skipped)


@dataclass(slots=True)
class _Shares:
    """Tensors by where the engine puts them."""

    blocks: list[list[TensorInfo]]
    input: list[TensorInfo] = field(default_factory=list)
    output: list[TensorInfo] = field(default_factory=list)
    every_device: list[TensorInfo] = field(default_factory=list)
    unplaced: list[str] = field(default_factory=list)


def _share_out(tensors: Iterable[TensorInfo], n_all: int, architecture: str) -> _Shares:
    """Assign tensors as llama.cpp does (LLM_TENSOR_INFOS in `llama-arch.cpp`), others with the output."""
    shares = _Shares([[] for _ in range(n_all)])
    for tensor in tensors:
        stem = tensor.name.rpartition(".")[0] or tensor.name
        match = _BLOCK.fullmatch(tensor.name)
        if match and int(match[1]) < n_all:
            shares.blocks[int(match[1])].append(tensor)
        elif stem in _INPUT:
            shares.input.append(tensor)
        elif stem in _EVERY_DEVICE:
            shares.every_device.append(tensor)
        elif stem in _FIRST_BLOCK and not (stem == "token_embd_norm" and architecture.startswith("lfm2")):
            shares.blocks[0].append(tensor)
        else:
            shares.output.append(tensor)
            if stem not in _OUTPUT and stem != "token_embd_norm":
                shares.unplaced.append(tensor.name)
    return shares


def _text_shape(hp: Hyperparameters, n_all: int, n_blocks: int) -> ModelShape:
    header = hp.header
    shares = _share_out(header.tensors, n_all, hp.architecture)
    cached, sliding_window = cached_layers(hp, n_all, n_blocks)
    embedding = next((t for t in shares.input if t.name == "token_embd.weight"), None)
    tied = (
        embedding is not None
        and hp.architecture not in arch.WITHOUT_OUTPUT
        and not any(tensor.name == "output.weight" for tensor in shares.output)
    )
    output_bytes = _sum(shares.output) + (allocated_bytes(embedding) if tied and embedding else 0)
    rows = embedding.dims[1] if embedding and len(embedding.dims) > 1 else 0
    pooling = hp.count(".pooling_type", _POOLING_NONE)
    embeds = pooling != _POOLING_NONE or hp.architecture in arch.WITHOUT_OUTPUT
    kind = ModelKind.EMBEDDING if embeds else ModelKind.TEXT
    if pooling == _POOLING_RANK:
        kind = ModelKind.RERANK
    n_expert = hp.count(".expert_count", 0)
    n_expert_used = max(hp.per_block(".expert_used_count", n_all) or [0])
    return ModelShape(
        name=hp.text("general.name") or header.source_name.rpartition("/")[2],
        architecture=hp.architecture,
        kind=kind,
        file_bytes=header.file_bytes,
        tensor_bytes=sum(tensor.n_bytes for tensor in header.tensors),
        parameters=sum(tensor.elements for tensor in header.tensors),
        quantisation=_quantisation(hp),
        layers=tuple(_layers(hp, shares, cached)),
        input_bytes=_sum(shares.input),
        output_bytes=output_bytes,
        shared_bytes=_sum(shares.every_device),
        tied=tied,
        n_embd=hp.required(".embedding_length"),
        n_vocab=hp.length("tokenizer.ggml.tokens") or hp.count(".vocab_size", rows),
        n_ctx_train=hp.count(".context_length"),
        sliding_window=sliding_window,
        n_expert=n_expert,
        n_expert_used=n_expert_used,
        n_ff_expert=_expert_width(hp, n_all) if n_expert else 0,
        chat_template=hp.has("tokenizer.chat_template"),
        causal=hp.flag(".attention.causal", hp.architecture not in arch.WITHOUT_CACHE),
        kv_exact=hp.architecture in arch.KV_EXACT,
        compute_known=hp.architecture in arch.COMPUTE_KNOWN and not n_expert,
        notes=tuple(_notes(hp, shares, n_all - n_blocks, pooling)),
    )


def _layers(hp: Hyperparameters, shares: _Shares, cached: list[LayerShape]) -> Iterable[LayerShape]:
    n_ff = hp.per_block(".feed_forward_length", len(cached)) or [0] * len(cached)
    for layer, tensors in zip(cached, shares.blocks, strict=True):
        if layer.skipped:
            yield layer
            continue
        experts = [tensor for tensor in tensors if _EXPERTS.search(tensor.name)]
        dense = not experts or any(_DENSE_FFN.search(tensor.name) for tensor in tensors)
        yield replace(
            layer,
            weight_bytes=_sum(tensors),
            expert_bytes=_sum(experts),
            largest_tensor_bytes=max((allocated_bytes(tensor) for tensor in tensors), default=0),
            n_ff=n_ff[layer.index] if dense else 0,
        )


def _projector_shape(hp: Hyperparameters) -> ModelShape:
    """Describe an mmproj: it has no blocks, and the engine chooses the device for all of it."""
    header = hp.header
    return ModelShape(
        name=hp.text("general.name") or header.source_name.rpartition("/")[2],
        architecture=hp.architecture,
        kind=ModelKind.PROJECTOR,
        file_bytes=header.file_bytes,
        tensor_bytes=sum(tensor.n_bytes for tensor in header.tensors),
        parameters=sum(tensor.elements for tensor in header.tensors),
        quantisation=_quantisation(hp),
        layers=(),
        input_bytes=0,
        output_bytes=_sum(header.tensors),
        shared_bytes=0,
        tied=False,
        n_embd=hp.count("clip.vision.embedding_length", hp.count("clip.audio.embedding_length", 0)),
        n_vocab=0,
        n_ctx_train=None,
        causal=False,
        projector=projector(hp),
        compute_known=False,
    )


def _refuse_other_files(hp: Hyperparameters) -> None:
    name, kind = hp.header.source_name, hp.text("general.type")
    what = arch.NOT_TEXT.get(hp.architecture) or arch.DRAFTS.get(hp.architecture)
    hint = "Give the GGUF file of the model itself."
    if kind == "adapter" or hp.has("adapter.type"):
        what, hint = "a LoRA adapter", "Give it as `lora:` of its model."
    elif hp.architecture == "controlvector":
        what, hint = "a control vector", "Give it as `control_vectors:` of its model."
    elif kind == "imatrix" or hp.has("imatrix.datasets"):
        what = "an importance matrix, used for quantising"
    elif not hp.architecture:
        what = "a GGUF file that names no architecture"
    elif not hp.header.tensors and hp.has("tokenizer.ggml.model"):
        what = "a vocabulary without weights"
    elif not hp.header.tensors:
        what = "a GGUF file without weights"
    if what:
        raise UnsupportedModelFile(
            f"{name} is {what}, not a model that can be served",
            hint=hint,
        )


def _quantisation(hp: Hyperparameters) -> str | None:
    """Return the file type's label, or the type of most elements if the file has no label."""
    number = hp.count("general.file_type")
    label = FILE_TYPES.get(number & ~_FILE_TYPE_GUESSED) if number is not None else None
    if label or not hp.header.tensors:
        return label
    elements: Counter[str] = Counter()
    for tensor in hp.header.tensors:
        elements[tensor.type.name] += tensor.elements
    return elements.most_common(1)[0][0]


def _expert_width(hp: Hyperparameters, n_all: int) -> int:
    widths = hp.per_block(".expert_feed_forward_length", n_all)
    return max(widths or hp.per_block(".feed_forward_length", n_all) or [0])


def _notes(hp: Hyperparameters, shares: _Shares, n_skipped: int, pooling: int) -> Iterable[str]:
    if hp.architecture in arch.INDEXED:
        yield f"{hp.architecture} keeps an index next to its KV cache, which is not counted."
    elif hp.architecture not in arch.KV_EXACT:
        yield f"The KV cache of {hp.architecture} is taken for plain attention, which has not been checked."
    if n_skipped:
        blocks = "1 block" if n_skipped == 1 else f"{n_skipped} blocks"
        yield f"{blocks} for next-token prediction stay unloaded."
    if pooling == _POOLING_RANK:
        yield "It ranks documents; it makes no text."
    if shares.unplaced:
        first, more = shares.unplaced[0], len(shares.unplaced) - 1
        others = f" and {more} more" if more else ""
        yield f"Counted with the output, since their place is unknown: {first}{others}."


def _sum(tensors: Iterable[TensorInfo]) -> int:
    return sum(allocated_bytes(tensor) for tensor in tensors)


@dataclass(frozen=True, slots=True)
class AdapterSizes:
    """Bytes of a LoRA adapter, by the tensors of the model that they go with, padded as on a device.

    llama.cpp puts both matrices of a pair where the tensor is (`llama-adapter.cpp`); those of the output
    layer and of the token embedding are apart. `experts` are the part of `blocks` in routed experts. `n_embd`
    is the width of the model that it is for, None if no matrix tells.
    """

    architecture: str
    blocks: Mapping[int, int]
    experts: Mapping[int, int]
    input_bytes: int
    output_bytes: int
    tensor_bytes: int
    n_embd: int | None = None

    def on(self, shape: ModelShape) -> ModelShape:
        """Return a model's shape with the adapter in it. Raises UnsupportedModelFile if it is not of it."""
        last = max(self.blocks, default=0)
        if self.architecture != shape.architecture or last >= shape.n_layers:
            raise UnsupportedModelFile(
                f"the adapter is for {self.architecture} of {last + 1} blocks or more, and the model "
                f"{shape.architecture} of {shape.n_layers}",
                hint="Give an adapter that was trained for this model.",
            )
        if self.n_embd not in (None, shape.n_embd):
            raise UnsupportedModelFile(
                f"the adapter is for a model of {self.n_embd:,} elements, and the model has {shape.n_embd:,}",
                hint="Give an adapter that was trained for this model.",
            )
        layers = tuple(
            replace(
                layer,
                weight_bytes=layer.weight_bytes + self.blocks.get(layer.index, 0),
                expert_bytes=layer.expert_bytes + self.experts.get(layer.index, 0),
            )
            for layer in shape.layers
        )
        return replace(
            shape,
            layers=layers,
            input_bytes=shape.input_bytes + self.input_bytes,
            output_bytes=shape.output_bytes + self.output_bytes,
            tensor_bytes=shape.tensor_bytes + self.tensor_bytes,
            # What is added to a matrix's result is computed apart: at most as wide as the widest one.
            adapter_elements=shape.n_embd + max((layer.n_ff for layer in shape.layers), default=0),
            compute_known=False,
        )


def adapter_sizes(header: GgufHeader) -> AdapterSizes:
    """Describe a LoRA adapter. Raises UnsupportedModelFile if the file is none."""
    hp = Hyperparameters(header)
    if hp.text("general.type") != "adapter" or hp.text("adapter.type") != "lora":
        raise UnsupportedModelFile(
            f"{header.source_name} is not a LoRA adapter",
            hint="Give a GGUF that llama.cpp's convert_lora_to_gguf.py has made.",
        )
    pairs = [
        replace(tensor, name=tensor.name.removesuffix(".lora_a").removesuffix(".lora_b"))
        for tensor in header.tensors
        if tensor.name.endswith((".lora_a", ".lora_b"))
    ]
    shares = _share_out(pairs, MOST_BLOCKS, hp.architecture)
    routed = ([each for each in tensors if _EXPERTS.search(each.name)] for tensors in shares.blocks)
    return AdapterSizes(
        hp.architecture,
        {index: _sum(tensors) for index, tensors in enumerate(shares.blocks) if tensors},
        {index: _sum(tensors) for index, tensors in enumerate(routed) if tensors},
        _sum(shares.input),
        _sum(shares.output),
        sum(tensor.n_bytes for tensor in pairs),
        next((t.dims[0] for t in header.tensors if _READS_HIDDEN.search(t.name)), None),
    )


def with_control_vectors(shape: ModelShape, headers: Iterable[GgufHeader]) -> ModelShape:
    """Return a model's shape with control vectors in it: their sum, an F32 row for each block but the first.

    `llama_adapter_cvec::init` of `llama-adapter.cpp`. Raises UnsupportedModelFile for a file that has none.
    """
    for header in headers:
        rows = [tensor for tensor in header.tensors if tensor.name.startswith("direction.")]
        if not rows or any(tensor.dims != (shape.n_embd,) for tensor in rows):
            raise UnsupportedModelFile(
                f"{header.source_name} has no control vector of {shape.n_embd:,} elements",
                hint="Give a GGUF that llama.cpp's cvector-generator has made for this model.",
            )
    row = -(-4 * shape.n_embd // _DEVICE_ALIGNMENT) * _DEVICE_ALIGNMENT
    layers = tuple(
        replace(layer, weight_bytes=layer.weight_bytes + row) if layer.index and not layer.skipped else layer
        for layer in shape.layers
    )
    added = sum(layer.weight_bytes for layer in layers) - sum(layer.weight_bytes for layer in shape.layers)
    return replace(shape, layers=layers, tensor_bytes=shape.tensor_bytes + added)
