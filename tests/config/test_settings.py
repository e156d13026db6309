import grp
import math
import os
import pwd
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cotenant.analysis.drafts import draft_problem
from cotenant.config import scalars
from cotenant.config.configuration import Configuration
from cotenant.config.environment import notes
from cotenant.config.layers import find_configuration
from cotenant.config.schema import Settings
from cotenant.config.settings import check, read_configuration
from cotenant.config.yaml_document import parse_document
from cotenant.domain.devices import DeviceOrder
from cotenant.domain.engines import Adapter
from cotenant.domain.errors import BadSetting
from cotenant.domain.models import ALL_LAYERS, CacheType, FlashAttention, ModelKind
from cotenant.domain.units import MIB
from tests.config.conftest import Reader
from tests.support.models.adapters import build_tiny_control_vector, build_tiny_lora
from tests.support.models.gguf_models import build_tiny_embedder, build_tiny_llama, projector
from tests.support.models.real_shapes import real_shape

DOCS = Path(__file__).parents[2] / "docs"
TINY = "models: [{path: models/tiny.gguf}]\n"

WHOLE = """
server: {host: 0.0.0.0, port: 9000, api_keys: [one, two], insecure: yes, allowed_hosts: [m.example]}
devices:
  use: [0, GPU-abc]
  order: index
  reserve_mib: 500
  min_budget_mib: 600
  overhead_mib: 300
  gpus: fleet.yaml
defaults: {keep_alive: 2m, parallel: 2, ctx: 8192, timeout: 1h, max_loaded: 3, n_gpu_layers: -1}
scheduling:
  policy: gdsf
  overdue: 1m
  min_residency: 3s
  drain_share: 0.2
  drain_limit: 20
  reclaim_bound: 500ms
  max_queue: 7
  max_queue_total: 8
  prefetch: true
warm: {ram_mib: 4096}
models:
  - name: small
    path: models/tiny.gguf
    aliases: [gpt-4o-mini, org/small]
    engine: llama.cpp
    ctx: 2048
    cache_type_k: q8_0
    flash_attn: on
    kv_unified: no
    tensor_split: [3, 2]
    gpus: [1]
    keep_alive: forever
    preload: true
    pinned: true
    priority: -5
    timeout: 30s
    env: {A: 1, B: "two words", C: ""}
    args: [--threads, 8]
"""


def test_the_whole_file_is_understood(read: Reader, folder: Path) -> None:
    configuration = read(WHOLE)
    server, devices, scheduling = configuration.server, configuration.devices, configuration.scheduling
    assert server.allowed_hosts == ("m.example",)
    assert (server.host, server.port, server.api_keys, server.insecure) == (
        "0.0.0.0",
        9000,
        ("one", "two"),
        True,
    )
    assert devices.use == ("0", "GPU-abc")
    assert devices.gpus == str(folder / "fleet.yaml")
    rules = devices.rules
    assert (rules.order, rules.reserve_bytes) == (DeviceOrder.INDEX, 500 * MIB)
    assert (rules.min_budget_bytes, rules.overhead_bytes) == (600 * MIB, 300 * MIB)
    assert (scheduling.policy, scheduling.overdue_s, scheduling.min_residency_s) == (
        "gdsf",
        60,
        3,
    )
    assert (scheduling.drain_share, scheduling.drain_limit_s, scheduling.reclaim_bound_s) == (0.2, 20, 0.5)
    assert (scheduling.max_queue, scheduling.max_queue_total, scheduling.max_loaded) == (7, 8, 3)
    assert scheduling.prefetch
    assert configuration.warm_ram_bytes == 4096 * MIB
    (model,) = configuration.models
    assert (model.name, model.path) == ("small", folder / "models" / "tiny.gguf")
    assert model.aliases == ("gpt-4o-mini", "org/small")
    recipe = model.recipe
    assert (recipe.n_ctx, recipe.parallel, recipe.n_gpu_layers) == (2048, 2, ALL_LAYERS)
    assert (recipe.cache_type_k, recipe.cache_type_v) == (CacheType.Q8_0, CacheType.F16)
    assert (recipe.flash_attention, recipe.kv_unified) == (FlashAttention.ON, False)
    assert recipe.tensor_split == (3.0, 2.0)
    assert (model.gpus, model.keep_alive_s, model.timeout_s, model.priority) == (("1",), None, 30, -5)
    assert model.preload
    assert model.pinned
    assert model.env == {"A": "1", "B": "two words", "C": ""}
    assert model.args == ("--threads", "8")


def test_the_example_of_the_documentation_is_right() -> None:
    text = (DOCS / "configuration.md").read_text()
    example = text.split("```yaml\n")[1].split("```")[0]
    given = check(parse_document(example, "docs/configuration.md"), {}, {})
    assert len(given.settings.models) == 2


def test_every_setting_is_documented() -> None:
    text = (DOCS / "configuration.md").read_text()
    schema = Settings.model_json_schema()
    sections = [schema, *schema["$defs"].values()]
    missing = {key for section in sections for key in section["properties"] if f"`{key}" not in text}
    assert not missing


def test_an_empty_file_and_no_file_are_all_defaults(read: Reader) -> None:
    assert read("").models == ()
    assert read("server:\nmodels:\nwarm: off\n").server == Configuration().server
    assert read_configuration(None, environment={}) == Configuration()


WRONG = [
    ("modles: []", 1, "modles: unknown setting", "Did you mean models?"),
    ("server:\n  prot: 1", 2, "server.prot: unknown setting", "Did you mean port?"),
    (TINY + "server:\n\n  port: x", 4, "server.port: x is not a whole number from 0 to 65,535", "digits"),
    ("server: {port: 70000}", 1, "server.port: 70000 is not a whole number", "digits"),
    ("server: 5", 1, "server: 5 is not a mapping", "docs/configuration.md"),
    ("server: {api_keys: secret}", 1, "server.api_keys: secret is not a list", "docs/configuration.md"),
    ("server: {api_keys: ['ü']}", 1, "server.api_keys[0]: a key has characters", "ASCII"),
    ("server: {api_key_file: none.txt}", 1, "none.txt does not exist", "one key on each line"),
    ("devices:\n  reserve_mib: 1GiB", 2, "devices.reserve_mib: 1GiB is not a whole number", "digits"),
    ("devices: {order: best}", 1, "devices.order: best is not known", "Known here: free_desc"),
    ("devices: {mps: maybe}", 1, "devices.mps: maybe is not known", "Known here: auto, off, required"),
    ("devices: {mps_group: two}", 1, "devices.mps_group: two is not known", "Known here: all, card"),
    ("\nservices: {}", 2, "services: it has no compose", "Add `compose:`."),
    ("defaults: {keep_alive: soon}", 1, "defaults.keep_alive: 'soon' is not a duration", "30s, 5m or 1h"),
    ("defaults: {keep_alive: five}", 1, "defaults.keep_alive: 'five' is not a duration", "30s, 5m or 1h"),
    ("defaults: {timeout: 0}", 1, "defaults.timeout: 0 is too short", "30s"),
    ("defaults: {ctx: 10, n_ctx: 10}", 1, "defaults: it has both ctx and n_ctx", "Keep one."),
    (
        "defaults:\n  ctx: 2",
        1,
        "defaults: n_ctx 2 leaves no token for each of 4 slots",
        "raise n_ctx or lower",
    ),
    ("scheduling: {drain_share: 2}", 1, "scheduling.drain_share: 2 is not a share from 0 to 1", "0.1"),
    ("scheduling: {policy: fifo}", 1, "scheduling.policy: fifo is not known", "cost, gdsf, lru"),
    ("warm: {ram_mib: [1]}", 1, "warm.ram_mib: it is a list where one value is expected", "examples"),
    ("models_dir: nowhere", 1, "nowhere cannot be read: No such file or directory", "folder of GGUF"),
    ("models:\n  path: x", 1, "models: {'path': 'x'} is not a list", "docs/configuration.md"),
    ("models:\n  - name: x", 2, "models[0]: it has no path", "Add `path:`."),
    ("models:\n  -\n", 2, "models[0]: None is not a mapping", "docs/configuration.md"),
    ("models:\n- path: gone.gguf", 2, "gone.gguf does not exist", "Check the path."),
    ("models:\n- {path: models}", 2, "models is a directory", "Give a GGUF file."),
    ("models:\n- path: cotenant.yaml", 2, "is not a GGUF file", ""),
    (
        "models:\n- path: models/tiny.gguf\n  engine: vllm",
        2,
        "tiny.gguf is a file",
        "Hugging Face folder",
    ),
    (
        "models:\n- path: models/tiny.gguf\n  engine: llama.cp",
        3,
        "models[0].engine: llama.cp is not known",
        "llama.cpp",
    ),
    ("models:\n- path: models/tiny.gguf\n  name: a b", 3, "models[0].name: a b cannot be a name", "letters"),
    (
        "models:\n- path: models/tiny.gguf\n  mmproj: models/tiny.gguf",
        3,
        "is not a vision projector",
        "mmproj",
    ),
    (
        "models:\n- path: models/tiny.gguf\n  env: {a=b: 1}",
        3,
        "models[0].env.a=b: it is not a variable",
        "NAME",
    ),
    ("models:\n- path: models/tiny.gguf\n  args: --x", 3, "models[0].args: --x is not a list", "docs"),
    ("models:\n- path: models/tiny.gguf\n  gpus: [0, '']", 3, "models[0].gpus: ", ""),
    (
        "models:\n- path: models/tiny.gguf\n  smart_split: on\n  tensor_split: '1,2'",
        2,
        "models[0]: smart_split and tensor_split exclude each other",
        "Keep one.",
    ),
    (
        "models:\n- {path: models/tiny.gguf, name: a}\n- path: models/tiny.gguf\n  aliases:\n  - b\n  - a",
        6,
        "models[1].aliases[1]: the name a is taken by models[0]",
        "own names",
    ),
    ("server: {host: a}\nserver: {host: b}", 2, "server: it is given twice, first on line 1", "Keep one."),
    ("server: {}\na: [", 2, "it is not YAML", "docs/configuration.md"),
    ("[1, 2]", 1, "it is not a mapping of settings", "docs/configuration.md"),
    ("models: &m [*m]", 1, "nested too deep", "docs/configuration.md"),
    ('server: {host: "a\\0"}', 1, "server.host: it has a character that is not allowed", "Retype"),
]


@pytest.mark.parametrize(("text", "line", "says", "hint"), WRONG, ids=lambda value: str(value)[:40])
def test_what_is_wrong_is_told_with_its_line_and_what_to_do(
    read: Reader, text: str, line: int, says: str, hint: str
) -> None:
    with pytest.raises(BadSetting) as caught:
        read(text)
    assert f"cotenant.yaml, line {line}: " in caught.value.message
    assert says in caught.value.message
    assert hint in caught.value.hint
    assert "\n" not in caught.value.message


def test_all_that_is_wrong_is_kept_beside_the_first_in_the_file(read: Reader) -> None:
    with pytest.raises(BadSetting) as caught:
        read("modles: []\nserver:\n  port: x\ndefaults: {parallel: 0}\n")
    assert caught.value.message.endswith("modles: unknown setting (and 2 more)")
    assert "cotenant models --check" in caught.value.hint
    lines = [complaint.partition(", line ")[2].partition(":")[0] for complaint in caught.value.problems]
    assert lines == ["1", "3", "4"]


def test_flags_win_over_the_environment_and_it_over_the_file(read: Reader) -> None:
    text = "server: {port: 1, host: file}\ndefaults: {parallel: 1, keep_alive: 1m}\n" + TINY
    environment = {"COTENANT_PORT": "2", "COTENANT_PARALLEL": "2"}
    configuration = read(text, environment, {"port": 3})
    assert (configuration.server.host, configuration.server.port) == ("file", 3)
    (model,) = configuration.models
    assert (model.recipe.parallel, model.keep_alive_s) == (2, 60)


def test_what_a_model_says_of_itself_wins_over_every_default(read: Reader) -> None:
    text = "models: [{path: models/tiny.gguf, parallel: 7}]"
    assert read(text, {"COTENANT_PARALLEL": "2"}, {"parallel": 3}).models[0].recipe.parallel == 7


def test_names_that_users_know_from_ollama_work_and_ours_go_before_them(read: Reader) -> None:
    environment = {
        "COTENANT_KEEP_ALIVE": "-1",
        "COTENANT_NUM_PARALLEL": "2",
        "COTENANT_MAX_LOADED_MODELS": "5",
        "COTENANT_GPU_LAYERS": "35",
    }
    configuration = read(TINY, environment)
    (model,) = configuration.models
    assert (model.keep_alive_s, model.recipe.parallel, model.recipe.n_gpu_layers) == (None, 2, 35)
    assert configuration.scheduling.max_loaded == 5
    assert read(TINY, environment | {"COTENANT_PARALLEL": "6"}).models[0].recipe.parallel == 6


@pytest.mark.parametrize(
    ("environment", "flags", "source"),
    [({"COTENANT_PORT": "x"}, {}, "COTENANT_PORT"), ({"COTENANT_PORT": "1"}, {"port": "x"}, "--port")],
)
def test_a_wrong_variable_or_flag_is_blamed_by_its_name(
    read: Reader, environment: dict[str, str], flags: dict[str, object], source: str
) -> None:
    with pytest.raises(BadSetting) as caught:
        read("server: {port: 1}", environment, flags)
    assert caught.value.message.startswith(f"{source}: x is not a whole number")


def test_an_empty_section_hides_no_variable(read: Reader) -> None:
    assert read("server:\n", {"COTENANT_PORT": "2"}).server.port == 2


@pytest.mark.parametrize(
    ("text", "seconds"), [("0", 0.0), ("10m", 600.0), ("-1", None), ("forever", None), ("90", 90.0)]
)
def test_keep_alive_is_a_duration_nothing_or_for_ever(read: Reader, text: str, seconds: float | None) -> None:
    for where in (
        f"models: [{{path: models/tiny.gguf, keep_alive: {text}}}]",
        f"{TINY}defaults: {{keep_alive: {text}}}",
    ):
        assert read(where).models[0].keep_alive_s == seconds


def test_relative_paths_are_of_the_file_and_those_of_variables_of_where_one_is(
    read: Reader, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert read("models_dir: models").models_dir == folder / "models"
    monkeypatch.chdir(folder / "models")
    assert read("", {"COTENANT_MODELS_DIR": "."}).models_dir == folder / "models"


def test_the_home_directory_is_expanded(read: Reader, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder))
    assert read("models_dir: ~/models").models_dir == folder / "models"


def test_an_embedding_model_gets_a_micro_batch_as_large_as_its_batch(read: Reader, folder: Path) -> None:
    build_tiny_embedder(folder / "models" / "embed.gguf")
    embedder, text = read("models_dir: models\ndefaults: {n_batch: 1024}").models
    assert embedder.shape.kind is ModelKind.EMBEDDING
    assert (embedder.recipe.n_ubatch, text.recipe.n_ubatch) == (1024, 512)


def test_an_entry_wins_over_its_file_in_the_folder_even_through_a_link(read: Reader, folder: Path) -> None:
    (folder / "link.gguf").symlink_to(folder / "models" / "tiny.gguf")
    configuration = read("models_dir: models\nmodels: [{path: link.gguf, name: mine}]")
    assert [model.name for model in configuration.models] == ["mine"]


def test_a_name_that_is_taken_gets_a_number_and_that_is_told(read: Reader, folder: Path, tiny: Path) -> None:
    (folder / "models" / "sub").mkdir()
    (folder / "models" / "sub" / "tiny.gguf").hardlink_to(tiny)
    (folder / "other.gguf").write_bytes(tiny.read_bytes())
    configuration = read("models_dir: models\nmodels: [{path: other.gguf, aliases: [tiny]}]")
    assert [model.name for model in configuration.models] == ["other", "tiny-2", "tiny-3"]
    assert [problem.text for problem in configuration.problems] == [
        "it is served as tiny-2, since the name tiny is taken",
        "it is served as tiny-3, since the name tiny is taken",
    ]


def test_an_entry_takes_the_projector_beside_it_unless_told_not_to(read: Reader, folder: Path) -> None:
    mmproj = projector(folder / "models" / "mmproj-F16.gguf")
    (model,) = read(TINY).models
    assert model.projector_path == mmproj
    assert model.projector is not None
    assert model.projector.weights > 0
    assert read("models: [{path: models/tiny.gguf, mmproj: none}]").models[0].projector_path is None
    with pytest.raises(BadSetting, match="is a vision projector"):
        read("models: [{path: models/mmproj-F16.gguf}]")


def test_a_draft_is_read_with_its_model(read: Reader, folder: Path) -> None:
    draft = build_tiny_llama(folder / "models" / "small.gguf")
    (model,) = read("models: [{path: models/tiny.gguf, draft: models/small.gguf}]").models
    assert model.companions.draft == str(draft)
    assert model.request.draft == model.draft == model.shape
    assert len(model.signature) == 2
    small = real_shape("llama-3b-tied")
    assert draft_problem(model.shape, small) == (
        f"cannot be a draft: its vocabulary has {small.n_vocab:,} tokens, that of the model 399"
    )
    projector(folder / "models" / "see.gguf")
    for entry, says in (
        ("draft: models/none.gguf", "does not exist"),
        ("draft: models/see.gguf", "both models have to generate text"),
    ):
        with pytest.raises(BadSetting, match=says):
            read(f"models: [{{path: models/tiny.gguf, {entry}}}]")
    with pytest.raises(BadSetting, match="vllm takes no draft"):
        read("models: [{engine: vllm, path: models, draft: models/small.gguf}]")


def test_adapters_and_control_vectors_are_read_with_their_model(read: Reader, folder: Path) -> None:
    models = folder / "models"
    first, second = (build_tiny_lora(models / f"{seed}.lora", seed=seed) for seed in (1, 2))
    vector = build_tiny_control_vector(models / "cv.gguf")
    (model,) = read(
        "models: [{path: models/tiny.gguf, lora: [models/1.lora, {path: models/2.lora, scale: 0.5}], "
        "control_vectors: [{path: models/cv.gguf, scale: -2}]}]"
    ).models
    assert model.companions.adapters == (Adapter(str(first), 1.0), Adapter(str(second), 0.5))
    assert model.companions.control_vectors == (Adapter(str(vector), -2.0),)
    assert [*model.companions.files()] == [str(first), str(second), str(vector)]
    assert len(model.signature) == 4
    assert model.request.shape.tensor_bytes > model.shape.tensor_bytes
    (one,) = read("models: [{path: models/tiny.gguf, lora: models/1.lora}]").models
    assert one.companions.adapters == (Adapter(str(first), 1.0),)
    for entry, says in (
        ("lora: [models/none.lora]", "does not exist"),
        ("lora: [models/tiny.gguf]", "is not a LoRA adapter"),
        ("lora: [{path: models/1.lora, scale: much}]", "is not a scale"),
        ("lora: [{file: models/1.lora}]", "is not a file"),
        ("lora: ['a:b.lora']", "takes no path with one of"),
        ("control_vectors: [models/1.lora]", "has no control vector of 256 elements"),
    ):
        with pytest.raises(BadSetting, match=says):
            read(f"models: [{{path: models/tiny.gguf, {entry}}}]")


def test_the_file_is_looked_for_where_it_was_told_then_here_then_at_home(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HOME", str(folder / "home"))
    assert find_configuration(None, {}) is None
    of_the_user = folder / "home" / ".config" / "cotenant" / "cotenant.yaml"
    of_the_user.parent.mkdir(parents=True)
    of_the_user.touch()
    assert find_configuration(None, {}) == of_the_user
    (folder / "cotenant.yaml").touch()
    assert find_configuration(None, {}) == Path("cotenant.yaml")
    (folder / "other.yaml").touch()
    assert find_configuration(None, {"COTENANT_CONFIG": "other.yaml"}) == Path("other.yaml")
    with pytest.raises(BadSetting, match=r"absent\.yaml does not exist"):
        find_configuration(Path("absent.yaml"), {})


@pytest.mark.parametrize("fault", ["file's owner", "folder's owner", "file's mode", "folder's mode", "link"])
def test_a_file_that_others_may_write_is_read_only_if_it_is_named(
    fault: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    here = folder / "cotenant.yaml"
    here.write_text("server: {port: 9}")
    here.chmod(0o600)
    folder.chmod(0o700)
    what, _, how = fault.partition("'s ")
    changed = here if what == "file" else folder
    if how == "mode":
        changed.chmod(0o777)
    elif how == "owner":
        own = Path.stat

        def stat(path: Path, **options: bool) -> os.stat_result:
            found = own(path, **options)
            if found.st_ino != own(changed).st_ino:
                return found
            return os.stat_result([*found[:4], os.geteuid() + 1, *found[5:]])

        monkeypatch.setattr(Path, "stat", stat)
        monkeypatch.setattr(Path, "lstat", lambda path: stat(path, follow_symlinks=False))
    else:
        here.rename(folder / "real.yaml")
        (folder / "real.yaml").chmod(0o602)
        here.symlink_to("real.yaml")
    with pytest.raises(BadSetting, match="is not read"):
        find_configuration(None, {})
    assert find_configuration(here, {}) == here
    assert find_configuration(None, {"COTENANT_CONFIG": "cotenant.yaml"}) == Path("cotenant.yaml")


@pytest.mark.parametrize("mode", [0o755, 0o1777])
def test_a_file_of_ones_own_is_read_also_where_everybody_may_add_files(
    mode: int, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    (folder / "cotenant.yaml").touch(0o644)
    folder.chmod(mode)
    assert find_configuration(None, {}) == Path("cotenant.yaml")


def test_a_group_of_the_owner_alone_may_write(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As umask 002 makes files on Debian and Fedora, where each user has a group."""
    monkeypatch.chdir(folder)
    here = folder / "cotenant.yaml"
    here.touch()
    here.chmod(0o660)
    owner = here.stat()
    users = [SimpleNamespace(pw_name="me", pw_gid=owner.st_gid)]
    monkeypatch.setattr(pwd, "getpwuid", lambda number: users[0])
    monkeypatch.setattr(pwd, "getpwall", lambda: users)
    group = SimpleNamespace(gr_gid=owner.st_gid, gr_mem=[])
    monkeypatch.setattr(grp, "getgrgid", lambda number: group)
    assert find_configuration(None, {}) == Path("cotenant.yaml")
    users.append(SimpleNamespace(pw_name="another", pw_gid=owner.st_gid))
    with pytest.raises(BadSetting, match="by the group"):
        find_configuration(None, {})
    del users[1]
    group.gr_mem.append("guest")
    with pytest.raises(BadSetting, match="by the group"):
        find_configuration(None, {})


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("${KEY}", "secret"),
        ("a-${KEY}-b", "a-secret-b"),
        ("${KEY:-other}", "secret"),
        ("${ABSENT:-other}", "other"),
        ("${ABSENT-}x", "x"),
        ("${EMPTY:-other}", "other"),
        ("${EMPTY-other}x", "x"),
        ("$${KEY}", "${KEY}"),
        ("x$KEY", "x$KEY"),
        ("$$", "$$"),
    ],
)
def test_variables_in_the_file_are_expanded(read: Reader, written: str, meant: str) -> None:
    given = {"KEY": "secret", "EMPTY": ""}
    assert read(f"server: {{api_keys: ['{written}']}}", given).server.api_keys == (meant,)


@pytest.mark.parametrize(
    "written",
    ["$KEY", "$(cat key)", "%KEY%", "{{ key }}", "os.environ/KEY", "env:KEY", "<your key>", "Bearer sk-5"],
)
@pytest.mark.parametrize(
    "text",
    [
        "server: {{api_keys: ['{}']}}",
        "models: [{{name: m, engine: remote, address: 'http://a/v1', api_key: '{}'}}]",
    ],
)
def test_what_only_stands_for_a_key_is_not_taken_as_one(read: Reader, text: str, written: str) -> None:
    with pytest.raises(BadSetting, match="named elsewhere") as raised:
        read(text.format(written), {"KEY": "secret"})
    assert "${NAME}" in (raised.value.hint or "")


def test_variables_are_expanded_everywhere_and_then_read_as_if_written(read: Reader) -> None:
    text = """
server: {port: "${PORT:-80}"}
models:
  - {name: "${NAME}", path: "${DIR}/tiny.gguf", env: {TOKEN: "${NAME}"}, args: ["--x=${NAME}"]}
"""
    configuration = read(text, {"NAME": "mine", "DIR": "models"})
    (model,) = configuration.models
    assert configuration.server.port == 80
    assert (model.name, model.env, model.args) == ("mine", {"TOKEN": "mine"}, ("--x=mine",))


def test_a_variable_that_is_not_set_is_named_with_its_line_and_nothing_else_is_said(read: Reader) -> None:
    with pytest.raises(BadSetting) as raised:
        read("server:\n  port: ${PORT}\n  api_keys: ['${A}', '${1}']\ndevices: {reserve_mib: '${}'}")
    line = r"cotenant\.yaml, line {}: {}: {}"
    for problem, pattern in zip(
        raised.value.problems,
        (
            line.format(2, r"server\.port", "the variable PORT is not set"),
            line.format(3, r"server\.api_keys\[0\]", "the variable A is not set"),
            line.format(3, r"server\.api_keys\[1\]", r"it has a \$\{ that begins no"),
            line.format(4, r"devices\.reserve_mib", r"it has a \$\{ that begins no"),
        ),
        strict=True,
    ):
        assert re.search(pattern, problem)


def test_merge_keys_and_places_for_anchors_are_read_as_yaml_has_them(read: Reader) -> None:
    models = read("""
x-shared: &shared {ctx: 512, parallel: 2}
x-more: &more
  <<: *shared
  parallel: 3
  pinned: true
models:
  - <<: *shared
    name: a
    path: models/tiny.gguf
    ctx: 1024
  - {<<: [*shared, *more], name: b, path: models/tiny.gguf}
  - {name: c, path: models/tiny.gguf, <<: *more}
""").models
    assert [(m.recipe.n_ctx, m.recipe.parallel, m.pinned) for m in models] == [
        (1024, 2, False),
        (512, 2, True),
        (512, 3, True),
    ]


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("x-a: &a {cxt: 1}\ndefaults:\n  <<: *a", "line 1: defaults.cxt: unknown setting"),
        ("defaults:\n  <<: 7", "line 2: defaults.<<: it is not a mapping"),
        ("x-a: &a\n  <<: *a", "nested too deep"),
        ("defaults: {x-a: 1}", "defaults.x-a: unknown setting"),
        ("'<<': {ctx: 1}", "<<: unknown setting"),
    ],
)
def test_what_cannot_be_merged_is_told(read: Reader, text: str, what: str) -> None:
    with pytest.raises(BadSetting) as raised:
        read(text)
    assert what in raised.value.message


def test_merges_that_multiply_are_refused_soon(read: Reader) -> None:
    lines = ["x-0: &m0 {a: 1}"]
    lines += [f"x-{n}: &m{n} {{<<: [{', '.join([f'*m{n - 1}'] * 9)}]}}" for n in range(1, 12)]
    with pytest.raises(BadSetting, match="nested too deep, or too long"):
        read("\n".join(lines))


def test_ollamas_own_variables_count_where_nothing_else_is_given_and_that_is_said(
    read: Reader, folder: Path
) -> None:
    ollama = {
        "OLLAMA_KEEP_ALIVE": "2m",
        "OLLAMA_NUM_PARALLEL": "3",
        "OLLAMA_MAX_LOADED_MODELS": "2",
        "OLLAMA_GPU_LAYERS": "5",
        "OLLAMA_HOST": "localhost:1234",
        "OLLAMA_MODELS": str(folder / "models"),
    }
    configuration = read("", ollama)
    (model,) = configuration.models
    assert (model.keep_alive_s, model.recipe.parallel, model.recipe.n_gpu_layers) == (120, 3, 5)
    assert configuration.scheduling.max_loaded == 2
    assert (configuration.server.host, configuration.server.port) == ("localhost", 1234)
    assert {str(each.path) for each in configuration.problems} == set(ollama)

    others = read("defaults: {keep_alive: 7}\nmodels_dir: models", {**ollama, "COTENANT_PARALLEL": "9"})
    assert (others.models[0].keep_alive_s, others.models[0].recipe.parallel) == (7, 9)
    for address, host, port in (
        *(("box", "box", 11434), ("http://[::1]:5", "::1", 5), (":6", "127.0.0.1", 6)),
        *(("::1", "::1", 11434), ("[::1]", "::1", 11434), ("https://box", "box", 11434)),
    ):
        server = read("", {"OLLAMA_HOST": address}).server
        assert (server.host, server.port) == (host, port)


@pytest.mark.parametrize(
    ("variable", "value", "what"),
    [
        ("OLLAMA_KEEP_ALIVE", "soon", "'soon' is not a duration"),
        ("OLLAMA_NUM_PARALLEL", "many", "not a whole number"),
        ("OLLAMA_HOST", "box:port", "not a whole number from 0 to 65,535"),
        ("OLLAMA_HOST", "box:99999", "not a whole number from 0 to 65,535"),
    ],
)
def test_what_is_wrong_in_a_variable_of_ollamas_is_told_by_its_name(
    read: Reader, variable: str, value: str, what: str
) -> None:
    with pytest.raises(BadSetting, match=f"^{variable}: .*{what}"):
        read("", {variable: value})
    with pytest.raises(BadSetting, match=r"line 1: defaults\.keep_alive: 'later'"):
        read("defaults: {keep_alive: later}", {"OLLAMA_KEEP_ALIVE": value})


def test_a_zero_in_ollamas_variables_leaves_it_to_the_program(read: Reader) -> None:
    zeros = {"OLLAMA_NUM_PARALLEL": "0", "OLLAMA_MAX_LOADED_MODELS": "0", "OLLAMA_KEEP_ALIVE": "0"}
    configuration = read(TINY, zeros)
    assert configuration.scheduling.max_loaded == read(TINY).scheduling.max_loaded
    assert configuration.models[0].keep_alive_s == 0
    assert [str(each.path) for each in configuration.problems] == ["OLLAMA_KEEP_ALIVE"]


def test_a_variable_of_ours_that_nothing_reads_is_named(read: Reader) -> None:
    variables = {
        "COTENANT_KEEPALIVE": "1",
        "COTENANT_STATE_DIR": "x",
        "COTENANT_N_CTX": "8",
        "COTENANT_ZZZZZZ": "1",
    }
    assert [str(each) for each in read("", variables).problems] == [
        "COTENANT_KEEPALIVE: nothing reads it: did you mean COTENANT_KEEP_ALIVE?",
        "COTENANT_ZZZZZZ: nothing reads it: docs/cli.md lists those that are",
    ]


def test_every_variable_that_the_program_names_is_known() -> None:
    source = Path(__file__).parents[2] / "src"
    names = re.compile(r"\bCOTENANT_[A-Z_]*[A-Z]\b")
    named = {name for path in source.rglob("*.py") for name in names.findall(path.read_text())}
    assert "COTENANT_STATE_DIR" in named
    assert [str(each) for each in notes(dict.fromkeys(named, "x"))] == []


def test_a_mistyped_key_shows_with_what_was_meant(read: Reader) -> None:
    with pytest.raises(BadSetting) as raised:
        read("models: [{path: models/tiny.gguf, gpu_layers: 35}]")
    assert raised.value.problems[0].endswith("gpu_layers: unknown setting (Did you mean n_gpu_layers?)")


KEYS = sorted(
    {key for section in Settings.model_json_schema()["$defs"].values() for key in section["properties"]}
    | set(Settings.model_fields)
    | {"<<"}
)
SCALARS = st.one_of(
    st.text(max_size=20),
    st.integers(),
    st.booleans(),
    st.none(),
    st.floats(),
    st.sampled_from(["-1", "all", "5m", "0"]),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS) | st.text(), inner, max_size=4)
    ),
    max_leaves=20,
)


def refusal_of(path: Path) -> BadSetting | None:
    try:
        read_configuration(path, environment={})
    except BadSetting as error:
        return error
    return None


@pytest.mark.slow
@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(document=st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=5).map(yaml.safe_dump) | st.text())
def test_any_text_is_read_or_refused(folder: Path, document: str) -> None:
    path = folder / "cotenant.yaml"
    path.write_bytes(document.encode("utf-8", "surrogatepass"))
    refused = refusal_of(path)
    if refused is not None:
        assert refused.message
        assert "\n" not in refused.message
        assert refused.hint


@pytest.mark.slow
@settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
@given(content=st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(folder: Path, content: bytes) -> None:
    path = folder / "cotenant.yaml"
    path.write_bytes(content)
    refusal_of(path)


@pytest.mark.slow
def test_commands_without_a_configuration_import_no_pydantic() -> None:
    code = "import sys; from cotenant.cli.main import main; main(['plan', '--gpus', '8GiB']); "
    code += "assert 'pydantic' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("-1", math.inf), (-1, math.inf), ("-1m", math.inf), ("-0", 0.0), (0, 0.0), ("5m30s", 330.0)],
)
def test_a_negative_keep_alive_means_for_ever_as_in_ollama(value, seconds):
    assert scalars.keep_alive.read(value) == seconds
