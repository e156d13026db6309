"""Runs coroutine tests on uvloop, as the daemon runs; says at the end what this machine could not test."""

import asyncio
import functools
import inspect
import subprocess
from collections import Counter

import pytest
import uvloop
from hypothesis import HealthCheck, settings

# The same examples each time, however slow the machine; `--hypothesis-profile explore` draws others.
_PATIENT = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("explore", _PATIENT)
settings.register_profile("same", _PATIENT, derandomize=True)
settings.load_profile("same")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """Skip tests of real GPUs where there is none; `make gpu-check`, which selects them, fails there."""
    if item.get_closest_marker("gpu") and item.config.option.markexpr != "gpu" and not _has_gpu():
        pytest.skip("real GPUs cannot be tested here: nvidia-smi shows none")


@functools.cache
def _has_gpu():
    try:
        return subprocess.run(["nvidia-smi", "-L"], capture_output=True, check=False).stdout.startswith(
            b"GPU "
        )
    except OSError:
        return False


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem):
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    arguments = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(pyfuncitem.obj(**arguments))
    return True


def pytest_terminal_summary(terminalreporter):
    """Tell, in red, the reasons of skips that say "cannot be tested here", whichever process met them.

    So are the properties "not tested" of tests that did not test all that they could.
    """
    reasons = Counter(
        report.longrepr[2].removeprefix("Skipped: ")
        for report in terminalreporter.getreports("skipped")
        if "cannot be tested here" in report.longrepr[2]
    )
    for report in terminalreporter.getreports("passed"):
        reasons.update(why for name, why in report.user_properties if name == "not tested")
    if reasons:
        terminalreporter.section("NOT TESTED", red=True, bold=True)
        for reason, tests in reasons.most_common():
            terminalreporter.write_line(f"{reason} (tests: {tests})", red=True)
