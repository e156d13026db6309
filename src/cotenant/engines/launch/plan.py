"""How an engine is started: the plan, and the Protocol of launchers."""

import os
import secrets
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, Self, runtime_checkable

from cotenant.domain.devices import Device, DeviceKind, launch_environment
from cotenant.domain.errors import EngineMissing
from cotenant.domain.launching import ON_HOST, LaunchOptions
from cotenant.domain.placements import Placement, Share
from cotenant.engines.process.process import ChildProcess, FamilyProcess, scrubbed
from cotenant.interfaces import EngineOrder


@dataclass(frozen=True, slots=True)
class LaunchPlan:
    """How one engine is started, by any launcher.

    `argv` begins with the program. `ends_with_parent` says that the program ends by itself with the process
    that starts it, and starts no other; other programs are started under a guard. `devices` are the GPUs that
    it may see, none for host RAM. `env` is added to the launcher's own variables. `reads` are the files and
    folders that it opens, at these paths. It listens on `port` of the loopback address and answers 200 at
    `health_path` once it serves; `shares_port` says that it binds the port with SO_REUSEPORT. It gets `key`
    in the variable `key_variable` and answers nobody without it. Variables of ours with a `withheld` value do
    not reach it. `launch` says where it runs; with an image, the program is in the image. It ends with the
    lease that the file `lease` states, if there is one (`engines.process.guard`).
    """

    name: str
    argv: tuple[str, ...]
    port: int
    devices: tuple[Device, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    reads: tuple[Path, ...] = ()
    health_path: str = "/health"
    ends_with_parent: bool = False
    shares_port: bool = True
    key_variable: str | None = None
    key: str | None = field(default=None, repr=False)
    withheld: frozenset[str] = field(default=frozenset(), repr=False)
    launch: LaunchOptions = ON_HOST
    lease: Path | None = None

    @classmethod
    def of(cls, order: EngineOrder, argv: Iterable[str], port: int, **more: Any) -> Self:
        """Return the plan for an order; `more` are the fields that do not follow from it."""
        files = (order.model_path, order.projector_path, *map(Path, order.companions.files()))
        reads = tuple(path for path in files if path is not None)
        fields = {"env": order.env, "reads": reads, "launch": order.launch, **more}
        return cls(order.name, tuple(argv), port, visible_devices(order), **fields)

    def with_key(self) -> Self:
        """Return the plan with a random key for an engine that takes one; the operator cannot set another."""
        if self.key_variable is None:
            return self
        key = secrets.token_urlsafe(32)
        return replace(self, key=key, env={**self.env, self.key_variable: key})


class Launcher(Protocol):
    """Starts engines on the host, or in containers of one kind."""

    async def launch(self, plan: LaunchPlan, output_fd: int) -> ChildProcess:
        """Start it with its output in `output_fd`, and return at once. It never outlives this process.

        Call it in the thread of the event loop. Raises EngineError or OSError.
        """
        ...


@runtime_checkable
class ImageLauncher(Protocol):
    """A launcher that can also run a short command in an image."""

    def command_in_image(self, argv: Sequence[str], name: str) -> list[str]:
        """Return the command line that runs `argv` once, without GPUs, in a container called `name`."""
        ...


class HostLauncher:
    """Starts engines as child processes."""

    async def launch(self, plan: LaunchPlan, output_fd: int) -> ChildProcess:
        """Start a process group that dies with this thread. Raises EngineMissing or OSError."""
        argv, env = host_command(plan)
        if plan.ends_with_parent:
            return ChildProcess.start(argv, env=env, output_fd=output_fd)
        return await FamilyProcess.start_family(argv, env=env, output_fd=output_fd, lease=plan.lease)


def host_command(plan: LaunchPlan) -> tuple[list[str], dict[str, str]]:
    """Return what to execute and its environment. Raises EngineMissing if there is no such program."""
    program, *rest = plan.argv
    found = shutil.which(program)
    if found is None:
        raise EngineMissing(
            f"{plan.name} cannot be loaded: there is no program {program}",
            hint="Install it, or give its full path.",
        )
    argv = [found, *rest]
    # With a backtrace an abort starts a debugger on the engine, whose output hides the reason.
    env = scrubbed(os.environ, plan.withheld) | {"GGML_NO_BACKTRACE": "1"} | launch_environment(plan.devices)
    return argv, {**env, **plan.env}


def visible_devices(order: EngineOrder) -> tuple[Device, ...]:
    """Return the GPUs of its machine that the engine may see, in planned order; none if it runs in host RAM.

    GPUs without layers are hidden: a visible GPU costs a context and pipeline copies.
    Described GPUs do not exist, so a placement on them runs in host RAM.
    """
    if runs_on_described(order.placement):
        return ()
    here = order.placement.on(order.placement.node)
    shares = fit_shares(here) if order.placement.by_engine else here.used_shares
    return tuple(share.device for share in shares if share.device.kind is not DeviceKind.HOST)


def runs_on_described(placement: Placement) -> bool:
    """Whether any GPU of the placement was described and not found."""
    return any(share.device.described for share in placement.used_shares)


def fit_shares(placement: Placement) -> Sequence[Share]:
    """Return the GPUs that an engine which fits itself may use, with or without layers."""
    return [
        share
        for share in placement.shares
        if share.budget.left_out is None and share.device.kind is not DeviceKind.HOST
    ]
