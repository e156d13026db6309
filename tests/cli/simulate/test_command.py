"""`cotenant simulate`: logs, models with and without files, variants, and what is wrong."""

import gzip
import io
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from cotenant.cli.main import main
from cotenant.demo_model import write_demo_model

HEAD = "arrival_s,model,prompt_tokens,output_tokens\n"


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("COTENANT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("COTENANT_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "none"))
    monkeypatch.chdir(tmp_path)


def write_log(path: Path, names: Sequence[str], gap_s: float = 20.0) -> str:
    lines = [f"{gap_s * number},{name},10,60\n" for number, name in enumerate(names)]
    path.write_text(HEAD + "".join(lines), encoding="utf-8")
    return str(path)


def simulate(capsys: pytest.CaptureFixture[str], *flags: str) -> Any:
    assert main(["simulate", *flags, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def refused(capsys: pytest.CaptureFixture[str], *flags: str) -> str:
    try:
        status = main(["simulate", *flags])
    except SystemExit as end:
        status = int(end.code or 0)
    assert status == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert "hint: " in told.err
    return told.err


def test_variants_are_compared_with_the_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = write_log(tmp_path / "log.csv", "abcabcabc")
    sizes = ["--model", "*=10GiB,load=4s", "--gpus", "24GiB", "--gpus", "2x24GiB"]
    assert main(["simulate", log, *sizes, "--policy", "lru"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("9 requests for 3 models over 2 m 40 s; seed 0\n")
    first, second = (line.split() for line in text.splitlines() if line[:3] in ("A  ", "B  "))
    assert first[:5] == ["A", "24GiB,", "lru", "9", "0"]
    assert second[:5] == ["B", "2x24GiB,", "lru", "9", "0"]
    assert "B against A: loads 9 → 3 (×0.33, 0.33 to 0.33); mean wait " in text
    assert [line.split()[-2:] for line in text.splitlines() if line[:2] in ("a ", "b ", "c ")] == [
        ["3", "1"]
    ] * 3


def test_all_is_told_as_json_and_the_same_every_time(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = write_log(tmp_path / "log.csv", "abcabcabc" + "x")
    flags = [log, "--model", "a=10GiB", "--model", "b=10GiB,load=3s,slots=2,rate=30,keep_alive=forever"]
    flags += ["--model", "c=90GiB,timeout=5s,pinned", "--gpus", "24GiB", "--keep-alive", "5s"]
    flags += ["--keep-alive", "forever", "--seed", "7"]
    told = simulate(capsys, *flags)
    assert told == simulate(capsys, *flags)
    assert (told["requests"], told["left_out"], told["seed"]) == (9, {"x": 1}, 7)
    assert [variant["name"] for variant in told["variants"]] == ["keep-alive 5s", "keep-alive forever"]
    short, long = told["variants"]
    assert short["total"]["unloads"] == {"keep_alive": 6}
    assert (short["total"]["loads"], long["total"]["loads"]) == (6, 2)
    assert short["total"]["refused"] == {"does_not_fit": 3}
    assert [found["model"] for found in short["does_not_fit"]] == ["c"]
    assert [(m["slots"], m["keep_alive_s"], m["load_s"]) for m in long["models"][:2]] == [
        (4, None, 10.73741824), (2, None, 3.0),
    ]  # fmt: skip
    assert [device["usable_bytes"] for device in short["devices"]] == [24 << 30]


def test_what_the_draws_do_not_agree_on_is_not_called_a_difference(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [write_log(tmp_path / "log.csv", "abcacb" * 4, gap_s=4.0), "--model", "*=10GiB,load=3s"]
    flags += ["--gpus", "24GiB", "--policy", "lru", "--policy", "cost", "--policy", "clairvoyant"]
    assert main(["simulate", *flags, "--draws", "5"]) == 0
    text = capsys.readouterr().out
    assert "B against A: no clear difference in " in text
    assert "C against A: loads " in text
    told = simulate(capsys, *flags, "--draws", "2")
    assert [variant["policy"] for variant in told["variants"]] == ["lru", "cost", "clairvoyant"]
    assert [draw["seed"] for draw in told["variants"][0]["draws"]] == [0, 1]


def test_models_of_the_configuration_are_planned_by_their_files_and_found_by_aliases(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("ada", "ben"):
        write_demo_model(tmp_path / f"{name}.gguf")
    (tmp_path / "cotenant.yaml").write_text(
        "devices: {reserve_mib: 100, min_budget_mib: 100, gpus: 4GiB}\n"
        "defaults: {parallel: 2, timeout: 7s}\n"
        "models: [{name: ada, path: ada.gguf, aliases: [ann], preload: true}, {name: ben, path: ben.gguf}]\n",
        encoding="utf-8",
    )
    log = write_log(tmp_path / "log.csv", ["ben", "ada", "ann", "zoe"])
    flags = ["--model", "zoe=600MiB", "--gpus", "here", "--gpus", "700MiB", "--config", "cotenant.yaml"]
    told = simulate(capsys, log, *flags)
    roomy, tight = told["variants"]
    assert {m["name"]: (m["requests"], m["slots"]) for m in roomy["models"]} == {
        "ada": (2, 2), "ben": (1, 2), "zoe": (1, 2),
    }  # fmt: skip
    assert roomy["total"]["loads"] == 3
    assert roomy["models"][0]["waits"]["max_s"] == 0, "it was preloaded"
    assert tight["total"]["evictions"] == 3
    assert 500 << 20 < roomy["total"]["loaded_bytes"] / 3 < 700 << 20
    assert told["notes"] == []


def test_a_configuration_is_not_looked_for_where_sizes_are_stated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "cotenant.yaml").write_text("models: [{name: a, path: gone.gguf}]\n", encoding="utf-8")
    log = write_log(tmp_path / "log.csv", "a")
    assert simulate(capsys, log, "--model", "a=1GiB", "--gpus", "24GiB")["variants"][0]["total"]["loads"] == 1
    assert "gone.gguf" in refused(capsys, log, "--gpus", "24GiB")


def test_a_log_is_read_compressed_in_parts_and_from_standard_input(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [
        json.dumps({"at": 1e9 + n, "model": "a", "service_s": 0.5, "wait_s": n}) + "\n" for n in range(6)
    ]
    (tmp_path / "log").write_text("".join(lines[4:]), encoding="utf-8")
    with gzip.open(tmp_path / "log.1.gz", "wt", encoding="utf-8") as older:
        older.writelines(lines[2:4])
    monkeypatch.setattr("sys.stdin", io.StringIO("".join(lines[:2])))
    told = simulate(capsys, "log", "log.1.gz", "-", "--model", "a=1GiB", "--gpus", "8GiB", "--until", "4s")
    assert (told["requests"], told["span_s"]) == (5, 4.0)
    assert told["logged_waits"]["max_s"] == 4.0
    fast = simulate(
        capsys, "log", "log.1.gz", "--model", "a=1GiB", "--gpus", "8GiB", "--until", "2s", "--speed", "2"
    )
    assert (fast["requests"], fast["span_s"]) == (3, 1.0), "the part is of the log, not of the replay"


def test_sizes_may_be_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = write_log(tmp_path / "log.csv", "ab")
    sizes = tmp_path / "sizes.yaml"
    sizes.write_text("a: 1GiB,load=3s\nb: 2GiB\n", encoding="utf-8")
    told = simulate(capsys, log, "--sizes", str(sizes), "--model", "b=3GiB", "--gpus", "8GiB")
    assert told["variants"][0]["total"]["loaded_bytes"] == 4 << 30
    assert told["variants"][0]["models"][0]["load_s"] == 3.0
    sizes.write_text("a: 1GiB\nb: large\n", encoding="utf-8")
    assert f"{sizes} line 2: 'b=large': 'large' is not a size" in refused(capsys, log, "--sizes", str(sizes))
    sizes.write_text("a: {memory: 1GiB}\n", encoding="utf-8")
    assert f"{sizes} line 1: a has no size" in refused(capsys, log, "--sizes", str(sizes))


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["nowhere.csv"], "nowhere.csv cannot be read: No such file or directory"),
        (["."], ". cannot be read: Is a directory"),
        (["noise"], "noise is not text"),
        (["broken.gz"], "broken.gz cannot be read: Error -3 while decompressing"),
        (["wrong.csv"], "wrong.csv line 3: output_tokens is 'x'"),
        (["log.csv", "--until", "soon"], "'soon' is not a duration"),
        (["log.csv", "--speed", "0"], "--speed '0' is not a number above 0"),
        (["log.csv", "--speed", "nan"], "--speed 'nan' is not a number above 0"),
        (["log.csv", "--seed", "-1"], "--seed '-1' is not a whole number"),
        (["log.csv", "--draws", "0"], "--draws '0' is not a whole number"),
        (["log.csv", "--policy", "mru"], "--policy 'mru' is not known"),
        (["log.csv", "--keep-alive", "long"], "'long' is not a duration"),
        (["log.csv", "--gpus", "many"], "many"),
        (["log.csv", "--gpus", "1GiB"], "1GiB: no device can be used"),
        (["log.csv", "--model", "a"], "--model 'a' has no size"),
        (["log.csv", "--model", "a=0"], "--model 'a=0': the size must be above 0"),
        (["log.csv", "--model", "a=1GiB,fast"], "'fast' is not one of load, slots"),
        (["log.csv", "--model", "a=1GiB,slots=0"], "'0' is not a number of slots"),
        (["log.csv", "--model", "a=1GiB,rate=x"], "'x' is not a number of tokens per second"),
        (["log.csv", "--config", "gone.yaml"], "gone.yaml does not exist"),
        (["log.csv", "--gpus", "24GiB", *(f"--keep-alive={n}s" for n in range(27))], "27 combinations are"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_in_one_line(
    flags: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_log(tmp_path / "log.csv", "a")
    (tmp_path / "wrong.csv").write_text(f"{HEAD}1,a,1,2\n2,a,1,x\n", encoding="utf-8")
    (tmp_path / "noise").write_bytes(b"\xff\xfe\x00\x80")
    (tmp_path / "broken.gz").write_bytes(gzip.compress(b"")[:10] + b"\xff" * 20)
    known = [] if "--model" in flags else ["--model", "a=1GiB"]
    assert told in refused(capsys, *flags, *known)


def test_a_log_of_strangers_says_who_they_are_and_how_to_name_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = refused(capsys, write_log(tmp_path / "log.csv", "abcdefgg"))
    assert "unknown models: g, a, b, c, d and 2 more; known: none" in told
    assert "--model 'g=20GiB', --model '*=8GiB' for all" in told
    late = [write_log(tmp_path / "log.csv", "ab"), "--model", "b=1GiB", "--until", "1s"]
    assert "unknown models: a; known: b" in refused(capsys, *late)


SIZES = ("--model", "a=10GiB,load=4s", "--model", "b=10GiB,load=4s", "--gpus", "16GiB")


def test_clients_ask_again_only_after_their_answer(capsys: pytest.CaptureFixture[str]) -> None:
    spec = "alternating=2,agent=1,think=5s"
    assert main(["simulate", "--clients", spec, *SIZES, "--gpus", "24GiB"]) == 0
    text = capsys.readouterr().out
    first = "3 clients (2 alternating, 1 agent), who think for 5.0 s, ask 2 models for 1 h 0 m; seed 0"
    assert text.splitlines()[0] == first
    told = simulate(capsys, "--clients", spec, *SIZES, "--gpus", "24GiB", "--until", "20m")
    assert told == simulate(capsys, "--clients", spec, *SIZES, "--gpus", "24GiB", "--until", "20m")
    assert told["clients"]["until"] == 1200
    short, roomy = (variant["total"] for variant in told["variants"])
    assert short["waits"]["mean_s"] > roomy["waits"]["mean_s"]
    assert short["answered"] < roomy["answered"], "who waits asks less"
    other = simulate(capsys, "--clients", spec, *SIZES, "--until", "20m", "--seed", "1")
    assert other["variants"][0]["total"] != short
    faster = simulate(capsys, "--clients", spec, *SIZES, "--until", "20m", "--speed", "4")
    assert faster["variants"][0]["total"]["requests"] > short["requests"]


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--clients", "readers=1"], "'readers' is not known"),
        (["--clients", "bursts=0"], "'0' is not a number from 1 to 10000"),
        (["--clients", "bursts"], "'' is not a number"),
        (["--clients", "think=3s"], "has no clients"),
        (["--clients", "bursts=1,think=0s"], "the think time must be above 0"),
        (["--clients", "bursts=1,think=soon"], "soon"),
        (["--clients", "bursts=1", "log.csv"], "give a log or --clients, and not both"),
        ([], "there is no log to replay"),
        (["--clients", "bursts=1", "--policy", "clairvoyant"], "clairvoyant knows a log"),
        (["--clients", "bursts=1", "--model", "*=2GiB"], "* is every other name of a log"),
    ],
)
def test_clients_that_cannot_be_are_refused(
    flags: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert told in refused(capsys, *flags, *SIZES)


def test_clients_need_models(capsys: pytest.CaptureFixture[str]) -> None:
    assert "there are no models for the clients" in refused(capsys, "--clients", "agent=1", "--gpus", "16GiB")
