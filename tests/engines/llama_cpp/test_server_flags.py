import re
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from cotenant.domain.engines import Adapter
from cotenant.domain.errors import EngineMissing
from cotenant.domain.models import FlashAttention
from cotenant.engines.llama_cpp.arguments import LlamaArguments, arguments_for
from cotenant.engines.llama_cpp.host_facts import HostFacts
from cotenant.engines.llama_cpp.server_flags import ServerFlags, server_argv
from tests.support.engines.orders import gpu_order, host_order
from tests.support.models.known_model import real_server

FACTS = HostFacts(cores=4, has_amx=True)

COMMON = """\
----- common params -----

-h,    --help, --usage                  print usage and exit
-m,    --model FNAME                    model path to load
                                        (env: LLAMA_ARG_MODEL)
-a,    --alias STRING                   set alias
--host HOST                             address
--port PORT                             port
-c,    --ctx-size N                     size of the prompt context
-np,   --parallel N                     slots
-b,    --batch-size N                   batch
-ub,   --ubatch-size N                  micro-batch
-t,    --threads N                      number of CPU threads
--threads-http N                        HTTP threads
-ctk,  --cache-type-k TYPE              K type
-ctv,  --cache-type-v TYPE              V type
-ngl,  --gpu-layers, --n-gpu-layers N   max. number of layers to store in VRAM
-sm,   --split-mode {none,layer,row}    how to split
-ts,   --tensor-split N0,N1,N2,...      fraction of the model
-mg,   --main-gpu INDEX                 the GPU to use
-mm,   --mmproj FILE                    projector
--embedding, --embeddings               restrict to embeddings
--metrics                               enable metrics
"""
NEW = (
    COMMON
    + """\
-fa,   --flash-attn [on|off|auto]       set Flash Attention use
-kvu,  --kv-unified, -no-kvu, --no-kv-unified
                                        use single unified KV buffer
--repack, -nr, --no-repack              whether to enable weight repacking
-lm,   --load-mode MODE                 model loading mode (default: auto)
-fit,  --fit [on|off]                   whether to adjust unset arguments
-fitt, --fit-target MiB0,MiB1,MiB2,...  target margin
-lv,   --verbosity, --log-verbosity N   Set the verbosity threshold
                                         - 4: trace (more info)
-cram, --cache-ram N                    cache size in MiB
--rerank, --reranking                   enable reranking endpoint
--reuse-port                            allow sharing of the port
--slots, --no-slots                     slots monitoring endpoint
--ui,  --webui, --no-ui, --no-webui     web UI
--cors-origins ORIGINS                  allowed origins
"""
)
OLD = (
    COMMON
    + """\
-fa,   --flash-attn                     enable Flash Attention (default: disabled)
-kvu,  --kv-unified                     use single unified KV buffer
--mlock                                 force system to keep model in RAM
--no-mmap                               do not memory-map model
-lv,   --verbosity, --log-verbosity N   Set the verbosity threshold
--slots                                 slots monitoring endpoint
--no-webui                              disable the Web UI
"""
)


def of(help_text: str, arguments: LlamaArguments) -> list[str]:
    return server_argv(arguments, ServerFlags.parse(help_text))


def value(argv: list[str], flag: str) -> str:
    return argv[argv.index(flag) + 1]


def host_arguments(**recipe: object) -> LlamaArguments:
    return arguments_for(host_order(Path("m.gguf"), **recipe), FACTS, 8123)


def test_help_tells_switches_from_options_with_a_value() -> None:
    flags = ServerFlags.parse(NEW)
    assert {"-ngl", "--gpu-layers", "--n-gpu-layers", "-fa", "--tensor-split"} <= flags.valued
    assert {"--no-kv-unified", "-nr", "--no-repack", "--metrics", "--no-webui"} <= flags.known - flags.valued
    assert flags.names_log_levels
    assert not ServerFlags.parse(OLD).names_log_levels


def test_a_current_server_is_told_everything_explicitly() -> None:
    argv = of(NEW, arguments_for(gpu_order((20, 0, 13), kv_unified=False), FACTS, 8123))
    assert value(argv, "--tensor-split") == "20,13"
    assert value(argv, "--n-gpu-layers") == "33"
    assert value(argv, "--fit") == "off"
    assert value(argv, "--flash-attn") == "auto"
    assert value(argv, "--port") == "8123"
    assert value(argv, "--cache-ram") == "512"
    assert value(argv, "--cors-origins") == "localhost"
    assert value(argv, "--verbosity") == "4"
    assert {"--no-kv-unified", "--reuse-port", "--metrics", "--slots", "--no-ui"} <= set(argv)


def test_experts_stay_in_host_ram_by_the_flag_or_by_the_pattern_that_it_stands_for() -> None:
    arguments = arguments_for(gpu_order((20, 13), n_cpu_moe=14), FACTS, 8123)
    new = NEW + "-ncmoe, --n-cpu-moe N                   keep the experts of the first N layers\n"
    assert value(of(new, arguments), "--n-cpu-moe") == "14"
    older = NEW + "-ot, --override-tensor PATTERN=TYPE      override tensor buffer type\n"
    pattern, _, where = value(of(older, arguments), "--override-tensor").partition("=")
    assert where == "CPU"
    assert re.search(pattern, "blk.13.ffn_gate_up_exps.weight")
    assert not re.search(pattern, "blk.14.ffn_up_exps.weight")
    assert not re.search(pattern, "blk.1.ffn_up_shexp.weight")
    with pytest.raises(EngineMissing, match="does not know --override-tensor"):
        of(OLD, arguments)


def test_a_draft_is_told_in_the_words_of_each_build() -> None:
    arguments = replace(
        arguments_for(gpu_order((20, 13)), FACTS, 1), draft_path="d.gguf", draft_device="CUDA0"
    )
    new = NEW + (
        "--spec-draft-model, -md, --model-draft FNAME    draft model\n"
        "--spec-type none,draft-simple                   types of speculative decoding\n"
        "--spec-draft-n-max N                            tokens to draft\n"
        "--spec-draft-ngl, -ngld, --gpu-layers-draft N   layers\n"
        "--spec-draft-device, -devd, --device-draft DEV  device\n"
    )
    argv = of(new, arguments)
    assert (value(argv, "--spec-draft-model"), value(argv, "--spec-type")) == ("d.gguf", "draft-simple")
    assert (value(argv, "--spec-draft-ngl"), value(argv, "--spec-draft-device")) == ("999", "CUDA0")
    assert value(argv, "--spec-draft-n-max") == "3"
    older = NEW + (
        "-md,   --model-draft FNAME              draft model\n"
        "--draft-max, --draft, --draft-n N       tokens to draft\n"
        "-ngld, --gpu-layers-draft N             layers\n"
        "-devd, --device-draft DEV               device\n"
    )
    argv = of(older, arguments)
    assert (value(argv, "--model-draft"), value(argv, "--draft-max")) == ("d.gguf", "3")
    assert value(of(older, replace(host_arguments(), draft_path="d.gguf")), "--gpu-layers-draft") == "0"
    with pytest.raises(EngineMissing, match="does not know --spec-draft-model"):
        of(NEW, arguments)


def test_adapters_and_control_vectors_are_told_with_their_scales() -> None:
    lora, vectors = (Adapter("/m/a.gguf", 0.5), Adapter("/m/b.gguf", 0)), (Adapter("/m/c.gguf", 2),)
    arguments = replace(host_arguments(), adapters=lora, control_vectors=vectors)
    argv = of(NEW + "--lora-scaled FNAME:SCALE,...\n--control-vector-scaled FNAME:SCALE,...\n", arguments)
    assert value(argv, "--lora-scaled") == "/m/a.gguf:0.5,/m/b.gguf:0"
    assert value(argv, "--control-vector-scaled") == "/m/c.gguf:2"
    words = " ".join(of(NEW + "--lora-scaled FNAME SCALE\n--control-vector-scaled FNAME SCALE\n", arguments))
    assert "--lora-scaled /m/a.gguf 0.5 --lora-scaled /m/b.gguf 0" in words
    assert "--control-vector-scaled /m/c.gguf 2" in words
    assert not any("lora" in word or "control" in word for word in of(NEW, host_arguments()))


def test_a_reranker_needs_a_server_that_can_rank() -> None:
    arguments = replace(host_arguments(), rerank=True)
    assert "--rerank" in of(NEW, arguments)
    with pytest.raises(EngineMissing, match="--rerank"):
        of(OLD, arguments)


def test_a_server_in_host_ram_is_kept_off_every_device() -> None:
    argv = of(NEW, host_arguments())
    assert (value(argv, "--split-mode"), value(argv, "--main-gpu")) == ("none", "-1")
    assert value(argv, "--n-gpu-layers") == "0"
    assert "--no-repack" in argv


@pytest.mark.parametrize(
    ("recipe", "new", "old"),
    [
        ({}, None, []),
        ({"mmap": False}, "none", ["--no-mmap"]),
        ({"mlock": True}, "mmap+mlock", ["--mlock"]),
        ({"mmap": False, "mlock": True}, "mlock", ["--no-mmap", "--mlock"]),
    ],
)
def test_the_load_mode_is_said_as_the_binary_knows_it(
    recipe: dict[str, bool], new: str | None, old: list[str]
) -> None:
    argv = of(NEW, host_arguments(**recipe))
    assert (value(argv, "--load-mode") if new else "--load-mode" in argv) == (new or False)
    assert [word for word in of(OLD, host_arguments(**recipe)) if word in ("--no-mmap", "--mlock")] == old


def test_an_old_server_gets_a_bare_flash_attention_switch_and_no_unknown_flags() -> None:
    on = of(OLD, host_arguments(flash_attention=FlashAttention.ON))
    assert on[on.index("--flash-attn") + 1].startswith("-")
    argv = of(OLD, host_arguments(flash_attention=FlashAttention.OFF))
    assert "--flash-attn" not in argv
    unknown = {"--fit", "--cache-ram", "--reuse-port", "--cors-origins", "--verbosity", "--no-repack"}
    assert not unknown & set(argv)
    assert "--no-webui" in argv


def test_a_server_that_cannot_be_told_something_that_matters_is_refused() -> None:
    without = NEW.replace("--n-gpu-layers", "--layers").replace("--gpu-layers", "--l").replace("-ngl", "-x")
    with pytest.raises(EngineMissing, match="does not know --n-gpu-layers"):
        of(without, host_arguments())


def test_the_operators_additions_come_last() -> None:
    argv = of(NEW, replace(host_arguments(), extra=("--parallel", "7")))
    assert argv[-2:] == ["--parallel", "7"]


@pytest.mark.engine
def test_a_real_server_knows_every_flag_that_it_is_told() -> None:
    program = real_server()
    shown = subprocess.run([program, "--help"], capture_output=True, text=True, check=True).stdout
    flags = ServerFlags.parse(shown)
    argv = server_argv(arguments_for(gpu_order((20, 13), mmap=False), FACTS, 8123), flags)
    assert [word for word in argv if word.startswith("--") and word not in flags.known] == []
