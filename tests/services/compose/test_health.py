import json
from pathlib import Path

import pytest

from cotenant.services.compose.container_engine import ContainerEngine
from cotenant.services.compose.health import GIVEN_UP, HealthWatch
from cotenant.services.model import Service
from tests.services.compose.harness import answering
from tests.support.containers.fake_docker import install

pytestmark = pytest.mark.slow


def watch(folder: Path, *, logs: str = "", **told) -> HealthWatch:
    """A watch over one container, of which docker tells always the same."""
    config = {"Labels": {"com.docker.compose.service": "a"}, **told.pop("config", {})}
    state = {"Status": "running", "Running": True, "StartedAt": "now", **told.pop("state", {})}
    container = {"Id": "a0", "State": state, "Config": config, **told}
    docker = install(
        folder,
        {"ps -aq": {"out": "a0\n"}, "inspect": {"out": json.dumps([container])}, "logs": {"out": logs}},
    )
    return HealthWatch(ContainerEngine([str(docker)], "p"), 0.01)


async def wait(health: HealthWatch, url: str | None = None, *, timeout_s: float = 0.2) -> str | None:
    return await health.wait(Service("a", health_url=url, health_timeout_s=timeout_s), lambda: False)


@pytest.mark.parametrize(("status", "well"), [(200, True), (204, True), (404, False), (503, False)])
async def test_an_answer_below_400_is_well(tmp_path, status, well):
    with answering(status) as url:
        complaint = await wait(watch(tmp_path), url)
    assert (complaint is None) is well
    if not well:
        assert complaint == f"it was not healthy within 0.2 s: {url} answers {status}"


async def test_a_port_that_nobody_listens_on_is_not_well(tmp_path):
    with answering(200) as url:
        pass
    assert "Connection refused" in str(await wait(watch(tmp_path), url))


async def test_only_http_is_asked(tmp_path):
    assert "is not an HTTP address" in str(await wait(watch(tmp_path), "file:///etc/hostname"))


async def test_dockers_own_verdict_counts_for_a_container_with_a_check(tmp_path):
    check = {"Healthcheck": {"Test": ["CMD", "true"]}}
    assert await wait(watch(tmp_path, config=_config(check), state={"Health": {"Status": "healthy"}})) is None
    ill = watch(tmp_path, config=_config(check), state={"Health": {"Status": "unhealthy"}})
    assert await wait(ill) == "it was not healthy within 0.2 s: its check says unhealthy"


def _config(more: dict) -> dict:
    return {"Labels": {"com.docker.compose.service": "a"}, **more}


async def test_one_that_ended_for_want_of_memory_says_so(tmp_path):
    state = {"Status": "exited", "Running": False, "ExitCode": 137, "OOMKilled": True}
    wrong = await wait(watch(tmp_path, state=state, logs="loading weights\n"), timeout_s=60)
    assert wrong == "its container ended with status 137 because host memory ran out: loading weights"


async def test_one_that_is_started_again_has_its_time(tmp_path):
    state = {"Status": "restarting", "Running": True, "Restarting": True}
    policy = {"RestartPolicy": {"Name": "always"}}
    wrong = await wait(watch(tmp_path, state=state, HostConfig=policy, logs="CUDA error: out of memory\n"))
    assert wrong == (
        "it was not healthy within 0.2 s: its container is restarting: CUDA error: out of memory"
    )


async def test_waiting_ends_when_it_is_given_up(tmp_path):
    state = {"Status": "paused", "Running": False}
    given_up = await watch(tmp_path, state=state).wait(Service("a"), lambda: True)
    assert given_up == GIVEN_UP
