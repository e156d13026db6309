"""Engines in Apptainer or Singularity images."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from cotenant.domain.devices import launch_environment
from cotenant.domain.errors import EngineLoadFailed
from cotenant.domain.launching import CardStyle
from cotenant.engines.launch.cards import card_options, real_cards
from cotenant.engines.launch.container import MPS_VARIABLE, RunAs, readable_files
from cotenant.engines.launch.plan import LaunchPlan
from cotenant.engines.process.process import ChildProcess, FamilyProcess, scrubbed


class ApptainerLauncher:
    """Starts engines in an image file. Its containers are child processes of the daemon's user."""

    def __init__(self, program: str, image: str, *, user: RunAs | None = None) -> None:
        self._program = program
        self._image = image
        self._user = user or RunAs.of_daemon()

    async def launch(self, plan: LaunchPlan, output_fd: int) -> ChildProcess:
        """Start it. Raises EngineLoadFailed as root or without the image."""
        if self._user.daemon_is_root:
            raise EngineLoadFailed(
                f"{plan.name} cannot be loaded: Apptainer would run it as root",
                hint="Run Cotenant as an ordinary user, or choose another `launcher:`.",
            )
        if not os.path.isfile(self._image):  # noqa: ASYNC240  one stat
            raise EngineLoadFailed(
                f"{plan.name} cannot be loaded: there is no image {self._image}",
                hint="Make it with `apptainer pull`, or correct `image:`.",
            )
        argv, variables = command_line(plan, self._program, self._image)
        env = {**scrubbed(os.environ, plan.withheld), **variables}
        return await FamilyProcess.start_family(argv, env=env, output_fd=output_fd, lease=plan.lease)

    def command_in_image(self, argv: Sequence[str], name: str) -> list[str]:
        """Return the command line that runs `argv` in the image without devices."""
        return [self._program, "exec", "--cleanenv", "--no-home", self._image, *argv]


def command_line(plan: LaunchPlan, program: str, image: str) -> tuple[list[str], dict[str, str]]:
    """Return the command to run, and its own variables.

    Apptainer cannot choose devices: variables hide the others.
    """
    cards = real_cards(plan.devices)
    env = {"GGML_NO_BACKTRACE": "1", **launch_environment(cards), **plan.env}
    argv = [program, "exec", "--cleanenv", "--no-home", "--pwd", "/tmp"]  # noqa: S108  the image's own
    argv += card_options(plan.name, cards, CardStyle.SWITCH, rootless=True)
    argv += _binds(plan, env.get(MPS_VARIABLE))
    # `--env` splits its value at commas, which lists of cards have.
    prefix = {"apptainer": "APPTAINERENV_", "singularity": "SINGULARITYENV_"}[Path(program).name]
    return [*argv, image, *plan.argv], {f"{prefix}{name}": value for name, value in env.items()}


def _binds(plan: LaunchPlan, pipes: str | None) -> Iterator[str]:
    binds = [(path, ":ro") for path in readable_files(plan.reads)] + ([(Path(pipes), "")] if pipes else [])
    for path, how in binds:
        if any(sign in str(path) for sign in ",:\n"):
            raise EngineLoadFailed(
                f"{path} cannot be bound in a container: a comma, colon or line break is in its name",
                hint="Rename it.",
            )
        yield from ("--bind", f"{path}:{path}{how}")
