"""Installs a build of llama.cpp on an agent's machine."""

import logging

from cotenant.domain.devices import Inventory
from cotenant.domain.errors import BadRequest
from cotenant.engines.llama_cpp.install import Flavour, install, plan_install, read_system
from cotenant.nodes.messages import InstallEngine

_LOG = logging.getLogger(__name__)


def install_for(inventory: Inventory, asked: InstallEngine) -> None:
    """Install the build that was asked for; it takes minutes. Raises BadRequest or EngineInstallFailed."""
    flavour = asked.flavour or (inventory.vendor.traits.backend if inventory.vendor else Flavour.CPU)
    if flavour not in [*Flavour]:
        raise BadRequest(f"there is no build {flavour!r}", hint=f"There are {', '.join(Flavour)}.")
    system = read_system(inventory.cuda_version)
    plan = plan_install(
        Flavour(flavour), system, index_url=asked.index, verify=asked.verify, newest=asked.newest
    )
    for note in plan.notes:
        _LOG.warning("%s", note)
    install(plan, say=lambda line: _LOG.info("%s", line))
