"""The cache of each block of a model: attention, elements per token, recurrent state."""

from cotenant.analysis import architectures as arch
from cotenant.analysis.hyperparameters import Hyperparameters
from cotenant.domain.models import AttentionKind, LayerShape


def cached_layers(hp: Hyperparameters, n_all: int, n_blocks: int) -> tuple[list[LayerShape], int | None]:
    """Return what the first `n_blocks` of `n_all` blocks cache, and the window of the sliding ones.

    The other blocks, for next-token prediction, are skipped; no weights are filled in.
    Sources: `llama_hparams` (`n_embd_k_gqa`, `n_embd_r`, `n_embd_s`, `has_kv`) and `create_memory`.
    """
    heads = hp.per_block(".attention.head_count", n_all) or [0] * n_all
    kv_heads = hp.per_block(".attention.head_count_kv", n_all) or heads
    recurrent = _recurrent_blocks(hp, n_all, n_blocks, kv_heads)
    attending = _attending_blocks(hp, n_all, n_blocks, recurrent)
    window, sliding = _sliding_blocks(hp, n_blocks, recurrent)
    n_with_kv = _blocks_with_kv(hp, n_all)
    state = _state_elements(hp, heads[0])
    widths = _head_widths(hp, heads[0])
    blocks = []
    for index in range(n_blocks):
        kind, k, v = AttentionKind.NONE, 0, 0
        if attending[index] and kv_heads[index]:
            kind = AttentionKind.SLIDING if sliding[index] else AttentionKind.FULL
            kind = kind if kind in widths else AttentionKind.LATENT
            if index < n_with_kv:
                k, v = (kv_heads[index] * width for width in widths[kind])
        kept = state if recurrent[index] else 0
        blocks.append(LayerShape(index, 0, 0, 0, kind, heads[index], k, v, kept))
    skipped = range(n_blocks, n_all)
    blocks += [LayerShape(index, 0, attention=AttentionKind.NONE, skipped=True) for index in skipped]
    return blocks, window


def _head_widths(hp: Hyperparameters, n_head: int) -> dict[AttentionKind, tuple[int, int]]:
    """Return the elements of one head's K and V, by the kinds of attention that the model may have."""
    default = hp.count(".embedding_length", 0) // n_head if n_head else 0
    k = hp.count(".attention.key_length", default)
    v = hp.count(".attention.value_length", default)
    k_sliding = hp.count(".attention.key_length_swa", k)
    v_sliding = hp.count(".attention.value_length_swa", v)
    of_latent = (".attention.key_length_mla", ".attention.value_length_mla")
    if hp.architecture in arch.LATENT and all(hp.count(key, 0) for key in of_latent):
        return {AttentionKind.LATENT: (k, 0)}
    return {AttentionKind.FULL: (k, v), AttentionKind.SLIDING: (k_sliding, v_sliding)}


def _sliding_blocks(
    hp: Hyperparameters, n_blocks: int, recurrent: list[bool]
) -> tuple[int | None, list[bool]]:
    rule = arch.SLIDING.get(hp.architecture)
    none = [False] * n_blocks
    if rule is None or (rule.only_blocks is not None and rule.only_blocks != n_blocks):
        return None, none
    window = hp.count(".attention.sliding_window", rule.window or 0)
    if not window:
        return None, none
    if rule.fixed and rule.window:
        window = rule.window
    if rule.period == 0:
        return window, [not is_recurrent for is_recurrent in recurrent]
    listed = hp.array(".attention.sliding_window_pattern")
    if listed is not None:
        return window, [index < len(listed) and bool(listed[index]) for index in range(n_blocks)]
    period = hp.count(".attention.sliding_window_pattern", rule.period or 0)
    full_at = 0 if rule.dense_first else period - 1
    return window, [not period or index % period != full_at for index in range(n_blocks)]


def _recurrent_blocks(hp: Hyperparameters, n_all: int, n_blocks: int, kv_heads: list[int]) -> list[bool]:
    name = hp.architecture
    if name in arch.RECURRENT or name in arch.RECURRENT_AND_ATTENDING:
        return [True] * n_blocks
    if name in arch.RECURRENT_WHERE_NO_KV_HEADS:
        without_ffn = _without_feed_forward(hp, n_all)
        return [kv_heads[index] == 0 and without_ffn[index] for index in range(n_blocks)]
    interval = arch.RECURRENT_BY_INTERVAL.get(name)
    if interval is None:
        return [False] * n_blocks
    listed = hp.array(".attention.recurrent_layers")
    if listed is not None:
        return [index < len(listed) and bool(listed[index]) for index in range(n_blocks)]
    interval = hp.count(".full_attention_interval", interval) or 1
    return [(index + 1) % interval != 0 for index in range(n_blocks)]


def _attending_blocks(hp: Hyperparameters, n_all: int, n_blocks: int, recurrent: list[bool]) -> list[bool]:
    name = hp.architecture
    if name in arch.WITHOUT_CACHE or name in arch.RECURRENT:
        return [False] * n_blocks
    if name in arch.RECURRENT_AND_ATTENDING:
        return [True] * n_blocks
    without_ffn = _without_feed_forward(hp, n_all)
    return [not recurrent[index] and without_ffn[index] for index in range(n_blocks)]


def _without_feed_forward(hp: Hyperparameters, n_all: int) -> list[bool]:
    """Return which blocks have no feed-forward part: relevant for nemotron_h only, elsewhere all True."""
    if hp.architecture not in ("nemotron_h", "nemotron_h_moe"):
        return [True] * n_all
    return [width == 0 for width in hp.per_block(".feed_forward_length", n_all) or [0] * n_all]


def _blocks_with_kv(hp: Hyperparameters, n_all: int) -> int:
    if hp.architecture == "gemma3n":
        return arch.GEMMA3N_BLOCKS_WITH_KV
    if hp.architecture == "gemma4":
        return n_all - hp.count(".attention.shared_kv_layers", 0)
    return n_all


def _state_elements(hp: Hyperparameters, n_head: int) -> int:
    """Return the elements of a recurrent block per sequence: rolling inputs and state."""
    n_embd = hp.count(".embedding_length", 0)
    if wkv := hp.count(".wkv.head_size", 0):
        return hp.count(".token_shift_count", 2) * n_embd + n_embd * wkv
    kernel = hp.count(".ssm.conv_kernel", 0)
    d_inner, d_state = hp.count(".ssm.inner_size", 0), hp.count(".ssm.state_size", 0)
    if cached := hp.count(".shortconv.l_cache", 0):
        return n_embd * (cached - 1) + d_state * d_inner
    if kda := hp.count(".kda.head_dim", 0):
        return 3 * (kernel - 1 if kernel else 3) * n_head * kda + kda * kda * n_head
    groups = 0 if hp.architecture in arch.WITHOUT_STATE_GROUPS else hp.count(".ssm.group_count", 0)
    rolling = max(kernel - 1, 0) * (d_inner + 2 * groups * d_state)
    if hp.architecture == "minimax-01":
        width = hp.count(".attention.key_length", n_embd // n_head if n_head else 0)
        return rolling + width * width * n_head
    return rolling + d_state * d_inner
