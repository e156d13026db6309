"""`cotenant services`: a real gateway on a real socket, a service operator over plain values."""

import contextlib
import io
import json
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cotenant.cli.main import main
from cotenant.domain.errors import GeneratedFileFailed
from cotenant.services.model import ApplyState, Assignment, ProgressState, Strategy
from tests.cli.test_daemon_commands import running
from tests.support.daemon.plain_operator import PlainOperator
from tests.support.daemon.plain_service_operator import A400, PlainServices
from tests.support.waiting import wait_until

WARNING = "ai-enrichment VRAM budget (6.8 GB) exceeds GPU 1 (4 GB). Auto-adjusted to 2.3 GB."


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("COTENANT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("cotenant.cli.services.command._POLL_S", 0.01)


@pytest.fixture
def services(monkeypatch: pytest.MonkeyPatch) -> Iterator[PlainServices]:
    found = PlainServices()
    with running(PlainOperator(), services=found) as address:
        monkeypatch.setenv("COTENANT_ADDRESS", address)
        yield found


def run(*argv: str) -> int:
    return main(["services", *argv])


@contextlib.contextmanager
def meanwhile(services: PlainServices, act: Callable[[], None]) -> Iterator[None]:
    """Act once an apply has begun, while the command under test waits for it."""
    before = len(services.applies)

    def wait_and_act() -> None:
        wait_until(lambda: len(services.applies) > before)
        act()

    thread = threading.Thread(target=wait_and_act)
    thread.start()
    try:
        yield
    finally:
        thread.join()


def test_list_shows_where_services_are_within_eighty_columns(services, capsys):
    assert run("list") == 0
    first, head, llm, *_ = capsys.readouterr().out.splitlines()
    assert first == "Strategy: vram_based   Saved: never   Applied: never"
    assert head.split() == ["SERVICE", "MODEL", "NEEDS", "GPU", "BUDGET"]
    assert "not pinned" in llm
    assert run("set", "--strategy", "vram_based") == 0
    capsys.readouterr()
    assert run("list") == 0
    lines = capsys.readouterr().out.splitlines()
    tables = [line for line in lines if not line.startswith(("Warning", "Not applied"))]
    assert max(map(len, tables)) <= 80
    enrichment = next(line for line in lines if line.startswith("ai-enrichment"))
    assert enrichment.split()[-5:] == ["1", "RTX", "A400", "2.3", "GB"]
    assert f"Warning: {WARNING}" in lines
    assert lines[-1].startswith("Not applied yet: ai-llm, ")


def test_reads_print_the_daemons_answers_as_json(services, capsys):
    run("set", "ai-llm=0")
    run("apply", "--no-wait")
    capsys.readouterr()
    for command, key in (
        (["list"], "strategies"),
        (["preview", "--strategy", "balanced"], "diff"),
        (["status"], "containers"),
        (["history", "--limit", "1"], "history"),
    ):
        assert run(*command, "--json") == 0
        assert key in json.loads(capsys.readouterr().out)


def test_a_service_is_set_on_several_gpus_all_of_them_or_a_number(services, capsys):
    assert run("set", "ai-clip=1,0", "ai-llm=ALL", "ai-enrichment=count=2:3.5", "ai-yolo26=1") == 0
    out = capsys.readouterr().out
    assert "ai-clip: GPU 0 RTX A5500, 1 RTX A400\n" in out
    assert "ai-llm: GPU 0 RTX A5500, 1 RTX A400 (all)\n" in out
    assert "ai-enrichment: GPU 0 RTX A5500, 1 RTX A400, budget 3.5 GB" in out
    # Those that are not named keep their GPUs.
    assert run("set", "ai-yolo26=0") == 0
    kept = {each.service: (each.indices, each.count) for each in services.saved[-1].assignments}
    assert kept["ai-clip"] == ((0, 1), None)
    assert kept["ai-llm"] == ((0, 1), "all")
    assert kept["ai-enrichment"] == ((0, 1), 2)
    capsys.readouterr()
    assert run("history") == 0
    assert "ai-llm=0,1 ai-yolo26=0" in capsys.readouterr().out
    assert run("preview", "--strategy", "manual") == 0
    for wrong in ("ai-clip=0,", "ai-clip=0,x", "ai-clip=count=0", "ai-clip=count=", "ai-clip=all,0"):
        assert run("set", wrong) == 2
        assert "is not an assignment" in capsys.readouterr().err


def test_preview_shows_the_difference_and_how_full_gpus_get(services, capsys):
    assert run("preview", "--strategy", "vram_based") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "Strategy: vram_based"
    enrichment = next(line for line in lines if line.startswith("ai-enrichment"))
    assert enrichment.split() == [
        *("ai-enrichment", "6.8", "GiB", "1", "RTX", "A400", "2.3", "GB"),
        *("not", "pinned", "->", "GPU", "1"),
    ]
    assert "GPU 1 RTX A400: 2 services, 3.5 GiB; 329 MiB others', of 4.0 GiB" in lines
    assert f"Warning: {WARNING}" in lines
    assert services.saved == []


def test_preview_is_of_the_strategy_in_force_unless_told(services, capsys):
    run("set", "--strategy", "balanced")
    capsys.readouterr()
    assert run("preview") == 0
    assert capsys.readouterr().out.startswith("Strategy: balanced")


def test_set_keeps_what_is_not_named(services, capsys):
    assert run("set", "ai-llm=0", "ai-enrichment=1:2.5", "ai-clip=none") == 0
    assert run("set", "ai-clip=1") == 0
    saved = {each.service: each for each in services.saved[-1].assignments}
    assert services.saved[-1].strategy is Strategy.MANUAL
    assert saved["ai-llm"].gpu_index == 0
    assert saved["ai-enrichment"].vram_budget_gb == 2.5
    assert (saved["ai-clip"].gpu_index, saved["ai-florence"].gpu_index) == (1, None)
    told = capsys.readouterr().out
    assert "ai-enrichment: GPU 1 RTX A400, budget 2.5 GB" in told
    assert told.endswith("Saved. `cotenant services apply` recreates the containers.\n")


def test_set_with_a_strategy_places_what_is_not_named(services):
    run("set", "ai-llm=1")
    assert run("set", "ai-yolo26=1", "--strategy", "vram_based") == 0
    saved = {each.service: each for each in services.saved[-1].assignments}
    assert services.saved[-1].strategy is Strategy.VRAM_BASED
    assert (saved["ai-yolo26"].gpu_index, saved["ai-llm"].gpu_index) == (1, 0)


def test_set_while_a_gpu_is_gone_keeps_its_services_for_its_return(services):
    run("set", "ai-enrichment=1")
    services.cards.remove(A400)
    assert run("set", "ai-llm=0") == 0
    saved = {each.service: each for each in services.saved[-1].assignments}
    assert saved["ai-enrichment"] == Assignment("ai-enrichment", None, A400.id, 3.5)


def test_user_assigns_same_gpu_to_all(services, capsys):
    assert run("set", *(f"{service.name}=0" for service in services.services)) == 0
    assert {each.gpu_index for each in services.saved[-1].assignments} == {0}
    assert "Warning: Combined VRAM" in capsys.readouterr().out


@pytest.mark.parametrize(
    "text", ["ai-llm", "=0", "ai-llm=", "ai-llm=x", "ai-llm=-1", "ai-llm=0:", "ai-llm=0:nan", "ai-llm=0:-3"]
)
def test_an_assignment_that_is_none_is_wrong_usage(text, capsys):
    assert run("set", "--", text) == 2
    assert "is not an assignment" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["set"], "nothing to set"),
        (["set", "--strategy", "best"], "'best' is not a strategy"),
        (["preview", "--strategy", "best"], "'best' is not a strategy"),
        (["rollback", "x"], "'x' is not a number of the history"),
    ],
)
def test_wrong_usage_is_one_line_and_a_hint(argv, says, capsys):
    assert run(*argv) == 2
    told = capsys.readouterr().err
    assert says in told
    assert told.count("\n") == 2


def test_what_the_daemon_refuses_is_told(services, capsys):
    assert run("set", "ai-lm=0") == 1
    assert "ai-lm is no service here" in capsys.readouterr().err
    services.edited = (Path("config/gpu-assignments.yml"),)
    assert run("set", "ai-llm=0") == 1
    assert "edited by hand" in capsys.readouterr().err
    assert run("set", "ai-llm=0", "--force") == 0


def test_apply_shows_each_step_and_ends_with_how_it_ended(services, capsys):
    run("set", "ai-llm=0,1", "ai-clip=1")
    capsys.readouterr()

    def act() -> None:
        services.step("ai-llm", ProgressState.HEALTHY)
        services.finish()

    with meanwhile(services, act):
        assert run("apply") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("Apply 1 running (started ")
    assert "ai-llm  pending on GPU 0,1" in lines
    assert "ai-clip  healthy on GPU 1" in lines
    assert lines[-1].startswith("Apply 1 succeeded (took 50.0 s, ended ")
    assert services.calls == ["apply force=False"]


def test_apply_on_a_terminal_draws_over_itself(services, capsys, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    run("set", "ai-llm=0")
    screen = Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    with meanwhile(services, services.finish):
        assert run("apply") == 0
    drawn = screen.getvalue().split("\x1b[2F\x1b[J")
    assert len(drawn) >= 2
    assert "pending" in drawn[0]
    assert "healthy on GPU 0" in drawn[-1]


def test_container_restart_fails(services, capsys):
    run("set", "ai-llm=0")

    def act() -> None:
        services.step("ai-llm", ProgressState.FAILED, "unresolvable CDI devices nvidia.com/gpu=0")
        services.finish(ApplyState.ROLLED_BACK, "ai-llm did not start; the old one is back")

    with meanwhile(services, act):
        assert run("apply") == 1
    told = capsys.readouterr()
    assert "ai-llm  failed on GPU 0: unresolvable CDI devices nvidia.com/gpu=0" in told.out
    assert "rolled back" in told.out.splitlines()[-1]
    assert "cotenant services rollback" in told.err


def test_apply_need_not_be_waited_for(services, capsys):
    run("set", "ai-llm=0")
    capsys.readouterr()
    assert run("apply", "--no-wait", "--force") == 0
    assert capsys.readouterr().out.startswith("Apply 1 has started")
    assert services.calls == ["apply force=True"]
    assert run("apply") == 1
    assert "an apply is going on" in capsys.readouterr().err


def test_an_apply_without_changes_says_so(services, capsys):
    run("set", "ai-llm=0")
    with meanwhile(services, services.finish):
        run("apply")
    capsys.readouterr()
    with meanwhile(services, services.finish):
        assert run("apply") == 0
    assert "Nothing had to be recreated" in capsys.readouterr().out


def test_podman_api_unavailable_and_saving_still_works(services, capsys):
    services.engine = False
    assert run("set", "ai-llm=0") == 0
    assert run("apply") == 1
    assert "no compose command works here" in capsys.readouterr().err


def test_config_file_write_fails(services, capsys):
    services.fault = GeneratedFileFailed("config/gpu-assignments.yml cannot be written: disk full")
    assert run("set", "ai-llm=0") == 1
    assert "cannot be written: disk full" in capsys.readouterr().err


def test_gpu_removed(services, capsys):
    run("set", "ai-enrichment=1")
    services.cards.remove(A400)
    capsys.readouterr()
    assert run("list") == 0
    told = capsys.readouterr().out
    assert "1, not here" in told
    assert re.search(r"Warning: .*GPU 1", told), told


def test_no_gpus_detected(capsys, monkeypatch):
    with running(PlainOperator(devices=()), services=PlainServices(devices=())) as address:
        assert run("list", "--address", address) == 0
    assert "Problem: No GPUs detected" in capsys.readouterr().out


def test_status_shows_the_apply_and_the_containers(services, capsys):
    assert run("status") == 0
    assert capsys.readouterr().out.startswith("Nothing was applied yet.\n")
    run("set", "ai-llm=0")
    with meanwhile(services, services.finish):
        run("apply")
    capsys.readouterr()
    assert run("status") == 0
    first, progress, empty, head, llm, *_ = capsys.readouterr().out.splitlines()
    assert first.startswith("Apply 1 succeeded")
    assert (progress, empty) == ("  ai-llm  healthy on GPU 0", "")
    assert head.split() == ["SERVICE", "CONTAINER", "STATE", "GPU", "BUDGET"]
    assert llm.split() == ["ai-llm", "c-ai-llm", "running", "0", "-"]


@pytest.mark.slow
def test_rollback_goes_back_and_the_history_tells_what_there_was(services, capsys):
    for gpu in "01":
        run("set", f"ai-llm={gpu}")
        with meanwhile(services, services.finish):
            run("apply")
    capsys.readouterr()
    with meanwhile(services, services.finish):
        assert run("rollback") == 0
    assert run("rollback", "1", "--no-wait") == 0
    assert services.calls[-2:] == ["rollback None", "rollback 1"]
    capsys.readouterr()
    assert run("history") == 0
    head, second, first = capsys.readouterr().out.splitlines()
    assert head.split() == ["NUMBER", "SAVED", "STRATEGY", "APPLY", "ASSIGNMENTS"]
    assert second.split()[0] == "2"
    assert "manual    succeeded  ai-llm=0" in first
    assert max(len(head), len(second), len(first)) <= 80


def test_nothing_to_roll_back_is_told(services, capsys):
    assert run("rollback") == 1
    assert "no earlier configuration was applied" in capsys.readouterr().err
    assert run("history") == 0
    assert capsys.readouterr().out == "Nothing was saved yet.\n"


@pytest.mark.parametrize("action", ["list", "preview", "status", "history", "apply", "rollback"])
def test_without_services_every_action_says_how_to_configure_some(action, capsys):
    with running(PlainOperator()) as address:
        assert run(action, "--address", address) == 1
    told = capsys.readouterr().err
    assert "no services are configured here" in told
    assert "cotenant services import" in told


def test_recommend_shows_every_strategy_side_by_side_and_why_one_is_best(services, capsys):
    assert run("recommend") == 0
    lines = capsys.readouterr().out.splitlines()
    head, *rows = (line.split() for line in lines[:6])
    assert head == ["STRATEGY", "SCORE", "FITS", "OVER", "LLM", "FREE", "CRITICAL", "MEMORY", "CHANGES"]
    assert [row[0] for row in rows] == list(Strategy)
    assert max(map(len, lines[:6])) <= 80
    assert lines[-2].startswith("Isolation-first is recommended, with 78.3 of 100 points: VRAM-based, which")
    assert lines[-1] == "No service's use was measured: their stated needs count."
    assert run("recommend", "--json") == 0
    assert json.loads(capsys.readouterr().out)["recommended"] == "isolation_first"
