"""What an engine inherits, whatever started the agent; and that there is one agent."""

import asyncio
import os
from pathlib import Path

from cotenant.agent.environment import clean
from tests.support.agents import Daemon, agent
from tests.support.engines.orders import fake_server, host_order

OF_RAY = {
    "RAY_AUTH_TOKEN": "the key to the cluster",
    "RAY_JOB_ID": "1",
    "OMP_NUM_THREADS": "1",
    "PYTHONUNBUFFERED": "1",
    "PYTHONBREAKPOINT": "ray.util.rpdb.set_trace",
}


def _as_a_worker_of_ray() -> None:
    os.nice(15)
    Path("/proc/self/oom_score_adj").write_text("1000")


def _inherited(pid: int) -> tuple[set[str], int, str]:
    """The names of a process's variables, its niceness, and its OOM score."""
    names = {
        each.partition(b"=")[0].decode() for each in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    }
    return names, os.getpriority(os.PRIO_PROCESS, pid), Path(f"/proc/{pid}/oom_score_adj").read_text().strip()


async def test_an_engine_inherits_nothing_of_a_worker_of_ray(tmp_path: Path) -> None:
    flags = ("--llama-server", str(fake_server(tmp_path)))
    with agent(tmp_path, *flags, env=OF_RAY, preexec_fn=_as_a_worker_of_ray) as there:
        async with Daemon(there).connected() as daemon:
            engine = await daemon.host.start(host_order(tmp_path / "m.gguf"))
            await engine.wait_ready(60)
            assert engine.node_pid is not None
            names, niceness, oom_score = await asyncio.to_thread(_inherited, engine.node_pid)
            assert "PATH" in names
            assert not names & OF_RAY.keys()
            if os.geteuid() == 0:
                assert (niceness, oom_score) == (0, "0")
                assert not daemon.answer.problems
            else:
                # Only root may take them back; the operator is told what to start Ray with.
                told = " ".join(daemon.answer.problems)
                assert "RAY_worker_niceness=0" in told
                assert "RAY_worker_oom_score_adjustment=0" in told
            await engine.stop(0)


def test_variables_of_ray_alone_are_dropped() -> None:
    environ = {"RAY_X": "1", "PATH": "/bin"}
    clean(environ)
    assert environ == {"PATH": "/bin"}
