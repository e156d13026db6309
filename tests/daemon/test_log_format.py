"""The log as JSON: a record is one object on one line, whatever is in it."""

import json
import logging
import sys
from datetime import datetime
from pathlib import Path

import pytest

from cotenant.daemon.core.decision_feed import DecisionFeed
from cotenant.daemon.log_format import JsonLines
from cotenant.demo_model import write_demo_model
from cotenant.domain.decisions import Decision, DecisionKind
from tests.support.daemon.serving import Serving


def test_a_record_is_one_line_with_its_traceback_and_its_time() -> None:
    try:
        raise OSError("no\nspace")
    except OSError:
        error = sys.exc_info()
    record = logging.LogRecord("cotenant.x", logging.ERROR, "f", 1, "%s failed\n\x1b", ("é",), error)
    record.created = 1700000000.25

    line = JsonLines().format(record)

    assert "\n" not in line
    told = json.loads(line)
    assert told.pop("error").endswith("OSError: no\nspace")
    assert told == {
        "time": "2023-11-14T22:13:20.250+00:00",
        "level": "error",
        "logger": "cotenant.x",
        "message": "é failed\n\x1b",
    }


def test_a_decision_is_told_in_parts_and_what_is_no_json_as_text(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    facts: dict = {"bytes": 3, "where": Path("/x")}
    DecisionFeed().publish(Decision(7, 1.0, DecisionKind.LOAD, "m", "loading", "Asked", facts))

    told = json.loads(JsonLines().format(caplog.records[-1]))

    assert told["message"] == "7 load model=m cause=Asked: loading"
    assert told["decision"] == {
        "number": 7,
        "kind": "load",
        "model": "m",
        "cause": "Asked",
        "facts": {"bytes": 3, "where": "/x"},
    }


@pytest.mark.slow
@pytest.mark.engine
def test_a_daemon_writes_nothing_but_json(tmp_path: Path) -> None:
    model = tmp_path / "m.gguf"
    write_demo_model(model)
    argv = ["serve", str(model), "--port", "0"]
    with Serving(argv, tmp_path / "state", env={"COTENANT_LOG_FORMAT": "json"}) as daemon:
        daemon.wait_for("Serving m at http")
        assert daemon.terminate() == 0

    told = [json.loads(line) for line in daemon.printed]
    assert [each["decision"]["kind"] for each in told if "decision" in each][:2] == ["load", "ready"]
    times = [datetime.fromisoformat(each["time"]) for each in told]
    assert times == sorted(times)


def test_the_fault_that_ends_a_daemon_is_json_too_and_a_wrong_form_is_told(tmp_path: Path) -> None:
    argv = ["serve", str(tmp_path / "none.gguf"), "--log-format"]
    with Serving([*argv, "json"], tmp_path) as daemon:
        assert daemon.finish() == 1
    (line,) = daemon.printed
    told = json.loads(line)
    assert (told["level"], told["hint"]) == ("critical", "Check the path.")
    assert "none.gguf does not exist" in told["message"]

    with Serving([*argv, "xml"], tmp_path) as daemon:
        assert daemon.finish() == 2
    assert "--log-format 'xml' is neither text nor json" in daemon.output
