"""The command line of llama.cpp for an order, on any build."""

import os

from cotenant.domain.engines import EngineBuild, EngineForm
from cotenant.engines.launch.plan import LaunchPlan
from cotenant.engines.llama_cpp.arguments import LlamaArguments
from cotenant.engines.llama_cpp.builds import server_flags
from cotenant.engines.llama_cpp.image_builds import image_build
from cotenant.engines.llama_cpp.server_flags import server_argv
from cotenant.interfaces import EngineOrder


def llama_plan(build: EngineBuild, order: EngineOrder, arguments: LlamaArguments) -> LaunchPlan:
    """Render `arguments` for one build. Raises EngineMissing if a llama-server does not know one of them."""
    embedded = build.form is EngineForm.EMBEDDED
    if embedded:
        worker = ("-P", "-m", "cotenant.engines.llama_cpp.worker", str(os.getpid()))
        words = [*worker, arguments.to_json()]
    else:
        flags = server_flags(build) if order.launch.image is None else image_build(order.launch)[1]
        words = server_argv(arguments, flags)
    return LaunchPlan.of(order, (build.program, *words), arguments.port, ends_with_parent=embedded)
