"""Hugging Face folders: weights from safetensors headers, the rest from config.json.

Format: https://github.com/huggingface/safetensors#format.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NoReturn, cast

from cotenant.analysis.magic import describe_magic
from cotenant.analysis.source import ByteSource
from cotenant.domain.errors import CorruptModelFile, NotAModelFile, UnsupportedModelFile
from cotenant.domain.models import AttentionKind, LayerShape, ModelKind, ModelShape
from cotenant.domain.units import format_bytes

HEADER_LIMIT: Final = 32 << 20
CONFIG_LIMIT: Final = 4 << 20
_MOST_LAYERS: Final = 4096
_MOST_DIMS: Final = 16
_MOST_VALUES: Final = 4_000_000
_MOST: Final = 1 << 53
_MOST_SCALING: Final = 1 << 20
_AGAIN: Final = "Fetch the file again."

_DTYPE_BITS: Final = {
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8,
    "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16,
    "I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64, "C64": 64,
}  # fmt: skip

_LAYER: Final = re.compile(r"(?:^|\.)(?:layers|h|blocks?)\.(\d{1,9})\.")
_NOT_TEXT: Final = re.compile(r"(?:^|\.)(?:vision|visual|audio|speech|image|multi_modal|mm_|vit)")
_INPUT: Final = re.compile(r"(?:^|\.)(?:embed_tokens|wte|wpe|word_embeddings|embed_in|embeddings)\.")
_STATEFUL: Final = ("linear_attention", "mamba", "recurrent", "conv")

JsonObject = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor of a safetensors file."""

    name: str
    dtype: str
    elements: int
    n_bytes: int


@dataclass(frozen=True, slots=True)
class SafetensorsHeader:
    """Everything before the data of one file."""

    source_name: str
    tensors: tuple[StoredTensor, ...]
    file_bytes: int


def parse_json_object(data: bytes, name: str) -> JsonObject:
    """Read a JSON object. Raises CorruptModelFile, naming `name`, on anything else or on repeated keys."""
    if data.count(b",") + data.count(b"[") + data.count(b"{") > _MOST_VALUES:
        raise CorruptModelFile(f"{name} holds over {_MOST_VALUES:,} values", hint=_AGAIN)
    try:
        value = json.loads(data, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise CorruptModelFile(f"{name} does not parse: {error}", hint=_AGAIN) from None
    if not isinstance(value, dict):
        raise CorruptModelFile(f"{name} holds no JSON object", hint=_AGAIN)
    return value


def read_safetensors(source: ByteSource) -> SafetensorsHeader:
    """Read the header. Raises NotAModelFile, or CorruptModelFile if it does not describe the file."""
    head = source.read_at(0, 512)
    length = int.from_bytes(head[:8], "little")
    if head[8:9] != b"{":
        what, hint = describe_magic(head)
        raise NotAModelFile(f"{source.name} is not a safetensors file: it is {what}", hint=hint)
    if length > HEADER_LIMIT or 8 + length > source.size:
        _fail(source, f"a header of {length} bytes in a file of {source.size}")
    entries = parse_json_object(source.read_at(8, length), f"the header of {source.name}")
    spans = [_tensor(source, name, entry) for name, entry in entries.items() if name != "__metadata__"]
    at = 0
    for begin, tensor in sorted(spans, key=lambda span: (span[0], span[1].n_bytes)):
        if begin != at:
            _fail(source, f"tensor {tensor.name} at offset {begin} where {at} is due")
        at += tensor.n_bytes
    missing = 8 + length + at - source.size
    if missing:
        what = "is cut off" if missing > 0 else "is longer than its header says"
        raise CorruptModelFile(f"{source.name} {what}, by {format_bytes(abs(missing))}", hint=_AGAIN)
    return SafetensorsHeader(source.name, tuple(tensor for _, tensor in spans), source.size)


def shard_names(index: JsonObject, name: str) -> tuple[str, ...]:
    """Return the files that `model.safetensors.index.json` names, in order. Raises CorruptModelFile."""
    weights = index.get("weight_map")
    if not isinstance(weights, dict) or not all(isinstance(shard, str) for shard in weights.values()):
        raise CorruptModelFile(f"{name} has no weight_map of file names", hint=_AGAIN)
    shards = sorted(set(cast("dict[str, str]", weights).values()))
    for shard in shards:
        if "/" in shard or "\\" in shard or shard in ("", ".", ".."):
            raise CorruptModelFile(f"{name} names a shard outside its folder: {shard!r}", hint=_AGAIN)
    return tuple(shards)


def safetensors_shape(
    config: JsonObject, headers: Sequence[SafetensorsHeader], name: str, *, sentence: JsonObject | None = None
) -> ModelShape:
    """Describe the model of a folder called `name`.

    `sentence` is the folder's sentence_bert_config.json, which limits the texts to embed further.
    Weights are as stored, without padding; a tied output is stored once and not counted again. Raises
    UnsupportedModelFile if config.json describes no language model.
    """
    text = _Config(config, name)
    n_layers = text.count("num_hidden_layers", "n_layer", "n_layers", "num_layers")
    n_embd = text.count("hidden_size", "n_embd", "d_model", "dim")
    if not n_layers or not n_embd or n_layers > _MOST_LAYERS:
        raise UnsupportedModelFile(
            f"{name}/config.json describes no language model: it has {n_layers} layers of width {n_embd}",
            hint="Give the folder of a language or embedding model.",
        )
    shares = _Shares(n_layers)
    for header in headers:
        for tensor in header.tensors:
            shares.put(tensor)
    layers, sliding_window, notes = _layers(text, shares, n_layers, n_embd)
    if shares.not_text:
        notes.append(f"{format_bytes(shares.not_text)} for images or sound are counted with the output.")
    architecture = text.words("architectures", config) or text.words("model_type", config) or "unknown"
    embeds = re.search(r"(For(CausalLM|ConditionalGeneration)|LMHeadModel)$", architecture) is None
    n_expert = text.count("num_experts", "num_local_experts", "n_routed_experts")
    longest = _Config(sentence or {}, name).count("max_seq_length") or text.longest()
    return ModelShape(
        name=name.rpartition("/")[2],
        architecture=architecture,
        kind=ModelKind.EMBEDDING if embeds else ModelKind.TEXT,
        file_bytes=sum(header.file_bytes for header in headers),
        tensor_bytes=sum(tensor.n_bytes for header in headers for tensor in header.tensors),
        parameters=sum(tensor.elements for header in headers for tensor in header.tensors),
        quantisation=_quantisation(config, headers),
        layers=layers,
        input_bytes=shares.input,
        output_bytes=shares.output + shares.not_text,
        shared_bytes=0,
        tied=bool(text.get("tie_word_embeddings")) and not shares.has_head,
        n_embd=n_embd,
        n_vocab=text.count("vocab_size"),
        n_ctx_train=longest or None,
        sliding_window=sliding_window,
        n_expert=n_expert,
        n_expert_used=text.count("num_experts_per_tok", "num_experts_per_token", "top_k_experts"),
        n_ff_expert=text.count("moe_intermediate_size", "intermediate_size") if n_expert else 0,
        causal=not embeds,
        kv_exact=not notes or all("images" in note for note in notes),
        compute_known=False,
        notes=tuple(notes),
    )


class _Config:
    """The part of config.json that is about text."""

    def __init__(self, config: JsonObject, name: str) -> None:
        self._name = name
        nested = (config.get(key) for key in ("text_config", "llm_config", "language_config"))
        inner = next((value for value in nested if isinstance(value, dict)), {})
        self._values = {**config, **inner}

    def get(self, key: str) -> object:
        return self._values.get(key)

    def count(self, *keys: str) -> int:
        """Return the value of the first key present, 0 if none. Raises CorruptModelFile on a non-count."""
        for key in keys:
            value = self._values.get(key)
            if value is None:
                continue
            if not isinstance(value, int) or not 0 <= value <= _MOST:
                raise CorruptModelFile(
                    f"{self._name}/config.json: {key} should be a count, not {value!r:.80}", hint=_AGAIN
                )
            return value
        return 0

    def kinds(self, n_layers: int) -> list[str]:
        """Return the kind of each layer, by Hugging Face's names."""
        listed = self._values.get("layer_types")
        if isinstance(listed, list) and len(listed) >= n_layers:
            return [str(kind) for kind in listed[:n_layers]]
        if not self.count("sliding_window") or self._values.get("use_sliding_window") is False:
            return ["full_attention"] * n_layers
        period = self.count("sliding_window_pattern")
        return [
            "full_attention" if period and (index + 1) % period == 0 else "sliding_attention"
            for index in range(n_layers)
        ]

    def longest(self) -> int:
        """Return the tokens of the longest text, 0 if unknown; most kinds of scaling are included."""
        tokens = self.count("max_position_embeddings", "n_positions")
        rope = self._values.get("rope_parameters") or self._values.get("rope_scaling")
        if isinstance(rope, dict) and rope.get("rope_type", rope.get("type")) in ("linear", "dynamic"):
            factor = rope.get("factor")
            if isinstance(factor, int | float) and 1 < factor <= _MOST_SCALING:
                return int(tokens * factor)
        return tokens

    @staticmethod
    def words(key: str, config: JsonObject) -> str:
        value = config.get(key)
        if isinstance(value, list) and value:
            value = value[0]
        return value if isinstance(value, str) else ""


class _Shares:
    """The bytes of the tensors, by place."""

    def __init__(self, n_layers: int) -> None:
        self.layers = [0] * n_layers
        self.experts = [0] * n_layers
        self.largest = [0] * n_layers
        self.beyond = 0
        self.input = self.output = self.not_text = 0
        self.has_head = False

    def put(self, tensor: StoredTensor) -> None:
        layer = _LAYER.search(tensor.name)
        if _NOT_TEXT.search(tensor.name):
            self.not_text += tensor.n_bytes
        elif layer and int(layer[1]) < len(self.layers):
            index = int(layer[1])
            self.layers[index] += tensor.n_bytes
            self.largest[index] = max(self.largest[index], tensor.n_bytes)
            self.experts[index] += tensor.n_bytes if ".experts." in tensor.name else 0
        elif layer:
            self.beyond += tensor.n_bytes
        elif _INPUT.search(tensor.name):
            self.input += tensor.n_bytes
        else:
            self.output += tensor.n_bytes
            self.has_head |= "lm_head" in tensor.name


def _layers(
    config: _Config, shares: _Shares, n_layers: int, n_embd: int
) -> tuple[tuple[LayerShape, ...], int | None, list[str]]:
    notes = []
    n_head = config.count("num_attention_heads", "n_head", "n_heads")
    n_head_kv = config.count("num_key_value_heads", "n_head_kv") or n_head
    head = config.count("head_dim") or (n_embd // n_head if n_head else 0)
    latent = config.count("kv_lora_rank")
    kinds = config.kinds(n_layers)
    if any(kind.startswith(_STATEFUL) for kind in kinds):
        notes.append("The state of its recurrent layers is not counted.")
    if shares.beyond:
        notes.append(f"{format_bytes(shares.beyond)} for next-token prediction stay unloaded.")
    layers = []
    for index, name in enumerate(kinds):
        kind, k, v = AttentionKind.FULL, head * n_head_kv, head * n_head_kv
        if name.startswith(_STATEFUL):
            kind, k, v = AttentionKind.NONE, 0, 0
        elif latent:
            kind, k, v = AttentionKind.LATENT, latent + config.count("qk_rope_head_dim"), 0
        elif name in ("sliding_attention", "chunked_attention"):
            kind = AttentionKind.SLIDING
        layers.append(
            LayerShape(
                index,
                weight_bytes=shares.layers[index],
                expert_bytes=shares.experts[index],
                largest_tensor_bytes=shares.largest[index],
                attention=kind,
                n_head=n_head,
                k_elements=k,
                v_elements=v,
                n_ff=config.count("intermediate_size", "n_inner", "ffn_dim"),
            )
        )
    slides = any(layer.attention is AttentionKind.SLIDING for layer in layers)
    window = config.count("sliding_window", "attention_chunk_size") if slides else 0
    return tuple(layers), window or None, notes


def _quantisation(config: JsonObject, headers: Sequence[SafetensorsHeader]) -> str | None:
    method = config.get("quantization_config")
    if isinstance(method, dict) and isinstance(method.get("quant_method"), str):
        return str(method["quant_method"])
    sizes: Counter[str] = Counter()
    for tensor in (tensor for header in headers for tensor in header.tensors):
        sizes[tensor.dtype] += tensor.n_bytes
    return max(sizes, key=lambda dtype: sizes[dtype], default=None)


def _tensor(source: ByteSource, name: str, entry: object) -> tuple[int, StoredTensor]:
    if not isinstance(entry, dict):
        _fail(source, f"tensor {name} as {entry!r:.80}")
    bits = _DTYPE_BITS.get(str(entry.get("dtype")))
    if bits is None:
        raise UnsupportedModelFile(
            f"{source.name} stores tensor {name} as {entry.get('dtype')!r:.40}, which is unknown",
            hint="The type may be newer than this version.",
        )
    dims, span = _counts(source, name, entry.get("shape")), _counts(source, name, entry.get("data_offsets"))
    elements = math.prod(dims)
    if len(span) != 2 or (span[1] - span[0]) * 8 != elements * bits:
        _fail(source, f"tensor {name} of shape {dims!r:.80} at {span!r:.80}")
    return span[0], StoredTensor(name, str(entry["dtype"]), elements, span[1] - span[0])


def _counts(source: ByteSource, name: str, value: object) -> list[int]:
    if (
        not isinstance(value, list)
        or len(value) > _MOST_DIMS
        or any(not isinstance(item, int) or not 0 <= item <= _MOST for item in value)
    ):
        _fail(source, f"tensor {name} with {value!r:.80} for a list of counts")
    return value


def _unique(pairs: Iterable[tuple[str, object]]) -> dict[str, object]:
    result: dict[str, object] = {}
    for key, value in pairs:
        if key in result:
            raise ValueError(f"the key {key!r:.80} comes twice")
        result[key] = value
    return result


def _fail(source: ByteSource, what: str) -> NoReturn:
    raise CorruptModelFile(f"{source.name} is damaged: it declares {what}", hint=_AGAIN)
