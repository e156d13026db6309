"""Models: recipe, shape and memory."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

from cotenant.domain.engine_kinds import DEFAULT_KIND, EngineKind
from cotenant.domain.errors import BadRecipe
from cotenant.domain.settings import setting, settings_of


class CacheType(StrEnum):
    """Element type of the KV cache, by the engine's name."""

    F32 = "f32"
    F16 = "f16"
    BF16 = "bf16"
    Q8_0 = "q8_0"
    Q5_1 = "q5_1"
    Q5_0 = "q5_0"
    Q4_1 = "q4_1"
    Q4_0 = "q4_0"
    IQ4_NL = "iq4_nl"

    @property
    def quantised(self) -> bool:
        """Whether rows are stored in blocks of 32 with a scale."""
        return self not in (CacheType.F32, CacheType.F16, CacheType.BF16)


class FlashAttention(StrEnum):
    """Whether the engine uses flash attention."""

    ON = "on"
    OFF = "off"
    AUTO = "auto"


class SplitMode(StrEnum):
    """How the engine spreads one model over several devices."""

    LAYER = "layer"
    ROW = "row"
    NONE = "none"


class SplitPolicy(StrEnum):
    """What a split over several devices aims for."""

    FILL = "fill"
    BALANCE = "balance"
    SPEED = "speed"


MAX_CTX = 1 << 24
MAX_PARALLEL = 256
"""`LLAMA_MAX_SEQ` of llama.cpp."""
MAX_BATCH = 1 << 20
ALL_LAYERS = "all"
MOST_LAYERS = "auto"
FEWEST_EXPERTS = "auto"


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a model runs.

    `n_ctx` is the engine's total context in tokens, shared by `parallel` slots. `n_gpu_layers` counts as
    llama.cpp does: the output layer is one, blocks are taken from the end; ALL_LAYERS or MOST_LAYERS (as many
    as fit) in place of a number. `tensor_split` is a manual split over the devices in planned order;
    without it, `smart_split` computes one from layer sizes, else layers go in proportion to free memory.
    `n_cpu_moe`: the routed experts of so many blocks, from the first, stay in host RAM, and the rest of these
    blocks is on GPUs; FEWEST_EXPERTS for the fewest blocks with which the model fits.
    `kv_unified`: one KV stream shared by all slots, or one per slot.
    """

    engine: EngineKind = DEFAULT_KIND
    n_ctx: int = setting(
        4096,
        "context in tokens, of all slots together",
        key="ctx",
        flag="n_ctx",
        least=1,
        most=MAX_CTX,
        group="context",
        label="Context",
    )
    parallel: int = setting(
        4,
        "requests served at once (slots)",
        least=1,
        most=MAX_PARALLEL,
        group="context",
        label="Slots",
        every_engine=True,
    )
    n_batch: int = setting(
        2048, "tokens of a prompt taken at a time", least=1, most=MAX_BATCH, group="context", label="Batch"
    )
    n_ubatch: int = setting(
        512,
        "tokens computed at a time; sizes the compute buffer",
        least=1,
        most=MAX_BATCH,
        group="context",
        label="Micro-batch",
    )
    cache_type_k: CacheType = setting(
        CacheType.F16, "element type of the K cache", group="context", label="K cache"
    )
    cache_type_v: CacheType = setting(
        CacheType.F16, "element type of the V cache", group="context", label="V cache"
    )
    flash_attention: FlashAttention = setting(
        FlashAttention.AUTO,
        "flash attention; auto is planned as on",
        key="flash_attn",
        group="context",
        label="Flash attention",
    )
    kv_unified: bool = setting(
        True,
        "one KV stream shared by all slots",
        help="one KV stream shared by all slots, instead of one for each",
        group="context",
        label="one KV stream for all slots",
    )
    n_gpu_layers: int | str = setting(
        ALL_LAYERS,
        "layers on GPUs: a number, auto for the most that fit, -1 for all",
        help="layers on GPUs, the output layer being one; auto: the most that fit; -1: all",
        reads="layers",
        group="layout",
        label="Layers on GPUs",
        metavar="N|auto|-1",
    )
    n_cpu_moe: int | str = setting(
        0,
        "blocks whose experts stay in host RAM, from the first: a number, or auto for the fewest that fit",
        help="mixture of experts: blocks whose experts stay in host RAM, from the first; auto: the fewest "
        "with which it fits",
        reads="expert_blocks",
        group="layout",
        label="Experts in RAM, of blocks",
        metavar="N|auto",
    )
    tensor_split: tuple[float, ...] = setting(
        (),
        "split by hand: proportions or layer counts, devices in planned order",
        help="split by hand, over devices in planned order: proportions (0.6,0.4) or layer counts (20,13)",
        reads="tensor_split",
        group="layout",
        metavar="LIST",
    )
    smart_split: bool = setting(
        True,
        "compute the split from exact layer sizes",
        help="compute the split from exact layer sizes; --no-smart-split: in proportion to free memory",
        group="layout",
        shown="on without --tensor-split",
    )
    split_mode: SplitMode = setting(
        SplitMode.LAYER,
        "how the engine splits a model; none and row: one GPU",
        group="layout",
        label="Split mode",
    )
    split_policy: SplitPolicy = setting(
        SplitPolicy.FILL,
        "fill: the fewest GPUs; balance: evenly; speed: the fastest memory first",
        group="layout",
        label="Split",
    )
    mmap: bool = setting(
        True, "map the file instead of reading it into memory", group="host memory", label="map the file"
    )
    mlock: bool = setting(
        False,
        "lock the model in RAM",
        help="lock the model in RAM, so that it is never swapped out",
        group="host memory",
        label="lock it in RAM",
    )


class AttentionKind(StrEnum):
    """What a layer caches for each token."""

    FULL = "full"
    SLIDING = "sliding"
    LATENT = "latent"
    NONE = "none"


class ModelKind(StrEnum):
    """What a model is for: by its file, or, for engines of the last four, by its entry."""

    TEXT = "text"
    EMBEDDING = "embedding"
    RERANK = "rerank"
    PROJECTOR = "projector"
    SPEECH = "speech"
    TRANSCRIPTION = "transcription"
    IMAGE = "image"
    ANY = "any"
    """Whatever its engine answers."""

    @property
    def pools(self) -> bool:
        """Whether it computes one vector or one score for a text, and generates no text."""
        return self in (ModelKind.EMBEDDING, ModelKind.RERANK)


@dataclass(frozen=True, slots=True)
class LayerShape:
    """One block of a model.

    `weight_bytes` is what its tensors occupy on a device, padding included; `expert_bytes` the part of it in
    routed experts, `largest_tensor_bytes` its largest single matrix. `k_elements` and `v_elements` are what
    one cached token takes (0 for a LATENT layer's V and for layers that reuse an earlier layer's cache);
    `state_elements` is the F32 state per sequence of a recurrent layer, which may also have attention. A
    `skipped` layer (next-token prediction) is counted but not loaded: its size is 0.
    """

    index: int
    weight_bytes: int
    expert_bytes: int = 0
    largest_tensor_bytes: int = 0
    attention: AttentionKind = AttentionKind.FULL
    n_head: int = 0
    k_elements: int = 0
    v_elements: int = 0
    state_elements: int = 0
    n_ff: int = 0
    skipped: bool = False


@dataclass(frozen=True, slots=True)
class Projector:
    """Bytes of an mmproj: weights, working memory for the largest image, more without flash attention.

    It encodes `images`, or `sounds`, or both, as one does whose file does not say.
    """

    weights: int = 0
    compute: int = 0
    scores: int = 0
    images: bool = True
    sounds: bool = True

    def parts(self, recipe: Recipe) -> Parts:
        """Return what it takes of the device that holds it."""
        without_flash = recipe.flash_attention is FlashAttention.OFF
        return Parts(weights=self.weights, compute=self.compute + self.scores * without_flash)


@dataclass(frozen=True, slots=True)
class ModelShape:
    """What a model file states, in bytes and counts, independent of the file format.

    `input_bytes` (the token embedding) stays in host RAM; `output_bytes` (output norm and matrix; for a tied
    model a second copy of the embedding) goes to the device of the last layer; `shared_bytes` (rope factors)
    goes to every device used. `n_ff_expert` and `n_expert_used` describe a mixture of experts.
    `adapter_elements` is what adapters add to a block's intermediate tensors, for each token at a time.
    `kv_exact` says that the formula for the KV cache is known to be exact for this architecture;
    `compute_known` says the same of the compute buffer. `notes` are sentences about what is not known.
    """

    name: str
    architecture: str
    kind: ModelKind
    file_bytes: int
    tensor_bytes: int
    parameters: int
    quantisation: str | None
    layers: tuple[LayerShape, ...]
    input_bytes: int
    output_bytes: int
    shared_bytes: int
    tied: bool
    n_embd: int
    n_vocab: int
    n_ctx_train: int | None
    sliding_window: int | None = None
    n_expert: int = 0
    n_expert_used: int = 0
    n_ff_expert: int = 0
    adapter_elements: int = 0
    chat_template: bool = False
    causal: bool = True
    projector: Projector | None = None
    kv_exact: bool = True
    compute_known: bool = True
    notes: tuple[str, ...] = ()

    @property
    def n_layers(self) -> int:
        """Number of blocks, skipped ones included, as the engine counts them."""
        return len(self.layers)


@dataclass(frozen=True, slots=True)
class Parts:
    """Bytes on one device, by purpose."""

    weights: int = 0
    kv: int = 0
    compute: int = 0
    overhead: int = 0

    @property
    def total(self) -> int:
        """Sum of the parts."""
        return self.weights + self.kv + self.compute + self.overhead

    def __add__(self, other: Parts) -> Parts:
        return Parts(
            self.weights + other.weights,
            self.kv + other.kv,
            self.compute + other.compute,
            self.overhead + other.overhead,
        )


_BOUNDED: Final = tuple(each for each in settings_of(Recipe) if each.type is int)


def with_micro_batch(recipe: Recipe, kind: ModelKind = ModelKind.TEXT) -> Recipe:
    """Return the recipe with the micro-batch that the engine uses for a model of this kind.

    llama.cpp cuts a micro-batch that is larger than the batch. A model that pools computes each text in one
    micro-batch and refuses a longer text, so its micro-batch is the whole batch.
    """
    return replace(recipe, n_ubatch=recipe.n_batch if kind.pools else min(recipe.n_ubatch, recipe.n_batch))


def check_fit_params(recipe: Recipe, of: str = "") -> None:
    """Raise BadRecipe if a recipe says what `--use-fit-params` leaves to the engine; `of` is its model."""
    layout = [each for each in settings_of(Recipe) if each.group == "layout"]
    own = [each for each in layout if getattr(recipe, each.name) not in (each.default, MOST_LAYERS)]
    if own:
        flags = (each.option.replace("--", "--no-" if each.default is True else "--", 1) for each in own)
        raise BadRecipe(
            f"{of and of + ': '}--use-fit-params leaves the layout to llama.cpp, and {' and '.join(flags)} "
            f"{'sets' if len(own) == 1 else 'set'} it",
            hint="Leave one of them out.",
        )


def check_recipe(recipe: Recipe) -> None:
    """Raise BadRecipe for values that are out of range or contradict each other."""
    for each in _BOUNDED:
        value = getattr(recipe, each.name)
        if not each.least <= value <= each.most:
            raise BadRecipe(
                f"{each.option} {value} is out of range", hint=f"From {each.least} to {each.most:,}."
            )
    if recipe.n_ubatch > recipe.n_batch:
        raise BadRecipe(
            f"--n-ubatch {recipe.n_ubatch} is more than --n-batch {recipe.n_batch}",
            hint="A batch is computed in micro-batches: raise --n-batch or lower --n-ubatch.",
        )
    if recipe.parallel > recipe.n_ctx:
        raise BadRecipe(
            f"--n-ctx {recipe.n_ctx} leaves no token for each of {recipe.parallel} slots",
            hint="The context is shared by the slots: raise --n-ctx or lower --parallel.",
        )
    if recipe.tensor_split and recipe.split_mode is not SplitMode.LAYER:
        raise BadRecipe(
            f"--split-mode {recipe.split_mode} puts a model on one GPU, and --tensor-split over several",
            hint="Leave one of them out.",
        )
    if recipe.cache_type_v.quantised and recipe.flash_attention is FlashAttention.OFF:
        raise BadRecipe(
            f"--cache-type-v {recipe.cache_type_v} needs flash attention, which is off",
            hint="Use --flash-attn on, or keep V in f16.",
        )
