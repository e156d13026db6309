"""Engines in containers of podman and docker."""

from __future__ import annotations

import glob
import os
import re
import secrets
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from cotenant.domain.devices import Device, launch_environment
from cotenant.domain.errors import EngineLoadFailed
from cotenant.domain.launching import LauncherKind
from cotenant.engines.launch.cards import card_options, real_cards
from cotenant.engines.launch.container_process import ContainerJob, ContainerProcess
from cotenant.engines.launch.plan import LaunchPlan
from cotenant.engines.process.owner import Owner
from cotenant.engines.process.process import ChildProcess

ENGINE_LABEL: Final = "cotenant.engine"
OWNER_LABEL: Final = "cotenant.daemon"
MODEL_LABEL: Final = "cotenant.model"

MPS_VARIABLE: Final = "CUDA_MPS_PIPE_DIRECTORY"
NOBODY: Final = 65534
_NO_RIGHTS: Final = ("--cap-drop=all", "--security-opt=no-new-privileges")


@dataclass(frozen=True, slots=True)
class RunAs:
    """The user of an engine in its container: the daemon's own, or nobody if that is root."""

    uid: int
    gid: int
    daemon_is_root: bool

    @classmethod
    def of_daemon(cls) -> RunAs:
        """Return the user for containers of this process."""
        if os.geteuid() == 0:
            return cls(NOBODY, NOBODY, daemon_is_root=True)
        return cls(os.geteuid(), os.getegid(), daemon_is_root=False)


class ContainerLauncher:
    """Starts engines in containers of one image, by podman's or docker's command line (`program`).

    The image must exist: it is not pulled, since that takes longer than a load may.
    """

    def __init__(self, kind: LauncherKind, program: str, image: str, *, user: RunAs | None = None) -> None:
        self._kind = kind
        self._program = program
        self._image = image
        self._user = user or RunAs.of_daemon()

    async def launch(self, plan: LaunchPlan, output_fd: int) -> ChildProcess:
        """Create a container and start it; return once its first process runs.

        Raises EngineLacksDevice for cards that it cannot give, EngineLoadFailed if the container cannot be
        created.
        """
        return await ContainerProcess.supervise(self.job(plan), output_fd)

    def command_in_image(self, argv: Sequence[str], name: str) -> list[str]:
        """Return the command line that runs `argv` in the image without network, devices or rights."""
        isolation = ("--network=none", *_NO_RIGHTS, f"--user={NOBODY}:{NOBODY}")
        run = [self._program, "run", "--rm", "--name", name, "--pull=never", *isolation]
        return [*run, "--entrypoint", argv[0], self._image, *argv[1:]]

    def job(self, plan: LaunchPlan) -> ContainerJob:
        """Return the container to create. Raises EngineLacksDevice, EngineLoadFailed for unreadable files."""
        _refuse_unreadable(plan, self._user)
        env = _environment(plan)
        rootless = not self._user.daemon_is_root
        shown = re.sub(r"[^a-zA-Z0-9_.-]+", "-", plan.name)[:40]
        name = f"cotenant-{shown}-{secrets.token_hex(4)}"
        create = [self._program, "create", "--name", name]
        labels = {ENGINE_LABEL: "1", OWNER_LABEL: Owner.here().label, MODEL_LABEL: plan.name}
        for label, value in labels.items():
            create += ["--label", f"{label}={value}"]
        create += self._isolation()
        create += card_options(
            plan.name, real_cards(plan.devices), self._kind.traits.cards, rootless=rootless
        )
        create += self._mounts(plan, env)
        create += ["--env-file", "{env_file}"]
        # A file of variables has one on each line: others come from the environment of the command.
        for variable in [variable for variable, value in env.items() if "\n" in value]:
            create += ["--env", variable]
        create += ["--entrypoint", plan.argv[0], self._image, *plan.argv[1:]]
        pull = f"If {self._image} is not here, run `{self._kind} pull {self._image}`"
        hint = f"{pull}; the output of {self._kind} is in the engine's log."
        lease = None if plan.lease is None else str(plan.lease)
        return ContainerJob(plan.name, hint, name, (self._program,), tuple(create), env, lease)

    def _isolation(self) -> Iterator[str]:
        """Yield the options that isolate it: it has only the rights that an engine needs.

        It has the host's network, since it listens on the loopback address only. Its output is stored once,
        in the engine's log.
        """
        yield from ("--pull=never", "--network=host", "--log-driver=none", *_NO_RIGHTS)
        yield f"--user={self._user.uid}:{self._user.gid}"
        if self._kind is LauncherKind.PODMAN:
            yield "--http-proxy=false"
            if not self._user.daemon_is_root:
                yield "--userns=keep-id"

    def _mounts(self, plan: LaunchPlan, env: Mapping[str, str]) -> Iterator[str]:
        yield from (f"--mount={_mount(path)},readonly" for path in readable_files(plan.reads))
        pipes = env.get(MPS_VARIABLE)
        if pipes is None:
            # Engines on several cards pass tensors through it; the default limit of 64 MB is too small.
            yield "--shm-size=8g"
            return
        if self._user.daemon_is_root:
            raise EngineLoadFailed(
                f"{plan.name} cannot be loaded: its card is shared through root's MPS daemon, which a "
                "container that is not root cannot use",
                hint="Run Cotenant as an ordinary user, or give the model `launcher: host`.",
            )
        # MPS passes memory between processes of one IPC namespace only.
        yield "--ipc=host"
        yield f"--mount={_mount(Path(pipes))}"


def readable_files(reads: Sequence[Path]) -> list[Path]:
    """Return the paths that a container must have so that an engine can open `reads`.

    They include the other parts of a split file, and the targets of links in a folder: hubs store a model's
    files in another folder.
    """
    files: dict[Path, None] = {}
    for path in reads:
        files[path] = None
        if part := re.fullmatch(r"(.*)-\d{5}-of-(\d{5})\.gguf", path.name, re.DOTALL):
            parts = path.parent.glob(f"{glob.escape(part[1])}-?????-of-{part[2]}.gguf")
            files |= dict.fromkeys(sorted(parts))
        if path.is_dir():
            links = (entry for entry in sorted(path.iterdir()) if entry.is_symlink())
            files |= dict.fromkeys(Path(os.path.normpath(path / link.readlink())) for link in links)
    return list(files)


def _mount(path: Path) -> str:
    if any(sign in str(path) for sign in ',"\n'):
        raise EngineLoadFailed(
            f"{path} cannot be mounted in a container: a comma, quotation mark or line break is in its name",
            hint="Rename it.",
        )
    return f"type=bind,source={path},target={path}"


def _environment(plan: LaunchPlan) -> dict[str, str]:
    cards = renumbered(real_cards(plan.devices))
    # In most images its user has neither a home nor a name, and some engines need them.
    given = {"HOME": "/tmp", "USER": "cotenant", "GGML_NO_BACKTRACE": "1", **launch_environment(cards)}  # noqa: S108
    if not cards:
        # Many images request all cards, and some runtimes then give them.
        given["NVIDIA_VISIBLE_DEVICES"] = "void"
    return {**given, **plan.env}


def renumbered(cards: Sequence[Device]) -> list[Device]:
    """Return cards as a runtime names them if it sees no others: an index becomes the rank among them."""
    ranks = {card.id: rank for rank, card in enumerate(sorted(cards, key=lambda card: card.index or 0))}
    return [
        replace(card, runtime_name=str(ranks[card.id])) if (card.runtime_name or "").isdigit() else card
        for card in cards
    ]


def _refuse_unreadable(plan: LaunchPlan, user: RunAs) -> None:
    """Refuse files that the engine's user cannot read although the daemon, as root, can."""
    # Parent folders do not matter: they are not mounted.
    for path in readable_files(plan.reads) if user.daemon_is_root else ():
        try:
            mode = path.stat().st_mode
        except OSError as error:
            raise EngineLoadFailed(f"{plan.name} cannot be loaded: {path}: {error.strerror}") from error
        needed = stat.S_IROTH | (stat.S_IXOTH if stat.S_ISDIR(mode) else 0)
        if mode & needed != needed:
            raise EngineLoadFailed(
                f"{plan.name} cannot be loaded: engines in root's containers run as user {user.uid}, "
                f"which may not read {path}",
                hint=f"Run `chmod o+r{'x' if stat.S_ISDIR(mode) else ''} {path}`, or Cotenant as its owner.",
            )
