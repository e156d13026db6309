"""One request that crashes its engine, among honest ones, behind the daemon as users run it."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.daemon.test_misbehaving_engines import ROOM, ask, error_of
from tests.support.daemon.api import get
from tests.support.gpus.paper_machine import fake_fleet

pytestmark = pytest.mark.slow


def test_one_hostile_request_costs_two_crashes_and_locks_nobody_out(model: Path, tmp_path: Path) -> None:
    with fake_fleet(tmp_path, model, ROOM, {"m": {"FAKE_CRASH_ON": "poison"}}) as daemon:
        assert ask(daemon, "m").status == 200
        hostile = ask(daemon, "m", user="poison")
        assert (hostile.status, error_of(hostile)["code"]) == (422, "crashes_engine"), hostile.body
        assert ask(daemon, "m").status == 200
        loads = get(daemon, "/api/models/m")["loads"]
        assert loads == 3
        assert ask(daemon, "m", user="poison").status == 422
        assert get(daemon, "/api/models/m")["loads"] == loads


def test_honest_requests_beside_hostile_ones_are_answered(model: Path, tmp_path: Path) -> None:
    slow = {"FAKE_CRASH_ON": "poison", "FAKE_TOKEN_S": "0.01"}
    with fake_fleet(tmp_path, model, ROOM, {"m": slow}) as daemon, ThreadPoolExecutor() as pool:
        assert ask(daemon, "m").status == 200
        honest = [pool.submit(ask, daemon, "m", user=f"honest {number}") for number in range(20)]
        hostile = [pool.submit(ask, daemon, "m", user="poison") for _ in range(2)]
        assert {each.result().status for each in hostile} <= {422, 503}
        answers = [each.result() for each in honest]
        assert {reply.status for reply in answers} == {200}, [reply.body for reply in answers]
        assert ask(daemon, "m").status == 200
