"""The schema of `services` in `cotenant.yaml`."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from cotenant.config import scalars, service_scalars
from cotenant.config.sections import As, Mib, PathText, Section, Switch, Text, Timeout, wrong
from cotenant.services.model import DeviceNames, OnFailure, ServiceRole, Strategy


class Compose(Section):
    """The compose files, and the command that starts them."""

    files: Annotated[tuple[str, ...], As(service_scalars.paths())] = Field(
        description="the compose files, in the order of their -f flags"
    )
    command: Annotated[tuple[str, ...], As(service_scalars.command(everything="auto"))] | None = Field(
        default=None, description="auto, or the compose command: a list of arguments, or one text"
    )
    project: Annotated[str, As(service_scalars.compose_project())] | None = Field(
        default=None, description="the compose project; default: by compose's own rule"
    )


class ServiceItem(Section):
    """One container that uses a GPU."""

    name: Annotated[str, As(service_scalars.compose_service())] = Field(
        description="its name in the compose file"
    )
    model: Text | None = Field(default=None, description="the model in it, for display")
    vram_mib: Mib | None = Field(default=None, description="MiB of GPU memory that it needs")
    vram: Annotated[int, As(service_scalars.size())] | None = Field(
        default=None, description="the same with a unit, such as 6.8GiB"
    )
    role: Annotated[ServiceRole, As(scalars.member(ServiceRole))] | None = None
    latency_critical: Switch | None = Field(default=None, description="it belongs on the fastest GPU")
    enabled: Switch | None = Field(default=None, description="false: leave it where it is")
    vram_budget_env: Annotated[str, As(service_scalars.variable_name())] | None = Field(
        default=None, description="environment variable with its VRAM budget in GB"
    )
    health: Annotated[str, As(service_scalars.health())] | None = Field(
        default=None, description="URL that answers when it is healthy, or its port"
    )
    health_timeout: Timeout | None = Field(default=None, description="longest time to become healthy")

    @model_validator(mode="after")
    def _one_size(self) -> Self:
        if self.vram is not None and self.vram_mib is not None:
            raise wrong("it has both vram and vram_mib, which are the same", "Keep one.")
        return self


class Services(Section):
    """Containers that are pinned to GPUs through an override of their compose files."""

    compose: Compose
    strategy: Annotated[Strategy, As(scalars.member(Strategy))] | None = Field(
        default=None, description="the rule that assigns services to GPUs"
    )
    items: list[ServiceItem] = Field(default_factory=list)
    output_dir: PathText | None = Field(
        default=None, description="folder for generated files; default: config next to the first compose file"
    )
    device_ids: Annotated[DeviceNames, As(scalars.member(DeviceNames))] | None = Field(
        default=None, description="how the override names GPUs"
    )
    on_failure: Annotated[OnFailure, As(scalars.member(OnFailure))] | None = Field(
        default=None, description="what to do if a service does not become healthy again"
    )
    parallel: Annotated[int, As(scalars.whole(1, 64))] | None = Field(
        default=None, description="services recreated at once, at most"
    )
    command_timeout: Timeout | None = Field(
        default=None, description="longest run of the compose command for one service"
    )
