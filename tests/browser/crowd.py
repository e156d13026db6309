"""A machine of hypothetical size behind the real gateway and console: many models that never rest, many GPUs,
many services. No engine runs: it is for what a browser has to do."""

import asyncio
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from cotenant.console.app import Console
from cotenant.domain.decisions import Decision, DecisionKind, DeviceStatus, ModelStatus
from cotenant.domain.devices import DeviceId
from cotenant.domain.engines import Endpoint
from cotenant.domain.models import ModelKind
from cotenant.domain.requests import ServedModel
from cotenant.domain.units import GIB
from cotenant.services.model import Service, ServiceDevice
from tests.gateway.harness import SlotRouter, serving
from tests.support.daemon.plain_operator import PlainOperator
from tests.support.daemon.plain_service_operator import PlainServices

_FAMILIES = (
    "llama-3.1-8b-instruct-q4_k_m",
    "qwen3-30b-a3b-q4_k_m",
    "gemma-3-12b-it-q4_k_m",
    "phi-4-mini-instruct-q8_0",
    "mistral-small-3.2-24b-instruct-2506-q4_k_m-with-a-name-that-goes-on",
)
_STATES = ("ready", "ready", "ready", "loading", "draining", "cold")
_CHANGING = 2
EVERY_S = 0.25


class Crowd:
    """The machine, drawn from a seed. It rests while `at_rest` is set."""

    def __init__(self, n_models: int = 200, n_gpus: int = 16, n_services: int = 50) -> None:
        self._random = random.Random(11)
        self.at_rest = threading.Event()
        self.names = [f"{_FAMILIES[n % len(_FAMILIES)]}-{n}" for n in range(n_models)]
        self.gpus = [f"GPU-{n:04d}" for n in range(n_gpus)]
        self.operator = PlainOperator(
            *(self._model(name) for name in self.names),
            devices=[self._device(n) for n in range(n_gpus)],
        )
        served = tuple(ServedModel(name, ModelKind.TEXT, created_at=1_700_000_000) for name in self.names)
        self.router = SlotRouter(Endpoint("127.0.0.1", 1), models=served)
        services = [Service(f"service-{n}", f"Model {n}", (1 + n % 7) * GIB) for n in range(n_services)]
        cards = [
            ServiceDevice(DeviceId(uuid), n, "NVIDIA RTX 6000 Ada Generation", 48 * GIB)
            for n, uuid in enumerate(self.gpus)
        ]
        self.services = PlainServices(services, cards)
        self._number = 0

    def stir(self) -> None:
        """Change every model's numbers and every GPU's, the state of a few, and decide something."""
        for name, model in self.operator.models.items():
            self.operator.models[name] = self._busy(model)
        for name in self._random.sample(self.names, min(_CHANGING, len(self.names))):
            self.operator.models[name] = self._model(name)
        self.operator.cards = tuple(self._device(n) for n in range(len(self.gpus)))
        self._number += 1
        name = self._random.choice(self.names)
        text = f"{name}: loaded on GPU 3 in 4.2 s, 6.1 GiB"
        self.operator.tell(Decision(self._number, float(self._number), DecisionKind.READY, name, text))

    def _busy(self, model: ModelStatus) -> ModelStatus:
        draw = self._random
        return replace(
            model,
            in_flight=draw.randrange(model.slots + 1) if model.devices else 0,
            queued=draw.randrange(3),
            idle_s=draw.random() * 100,
            keep_alive_left_s=draw.random() * 300,
            requests_per_s=draw.random() * 9,
        )

    def _model(self, name: str) -> ModelStatus:
        draw = self._random
        state = draw.choice(_STATES)
        gpu = draw.choice(self.gpus)
        size = draw.randrange(GIB, 6 * GIB)
        loaded = state != "cold"
        return ModelStatus(
            name,
            state,
            pinned=draw.random() < 0.1,
            in_flight=draw.randrange(4) if loaded else 0,
            queued=draw.randrange(3),
            slots=4,
            idle_s=draw.random() * 100,
            keep_alive_left_s=draw.random() * 300,
            requests_per_s=draw.random() * 9,
            loads=draw.randrange(50),
            devices=(gpu,) if loaded else (),
            bytes_by_device={gpu: size} if loaded else {},
            predicted_bytes=size,
            measured_bytes=size - draw.randrange(GIB // 4) if loaded else None,
        )

    def _device(self, number: int) -> DeviceStatus:
        draw = self._random
        return DeviceStatus(
            self.gpus[number],
            number,
            "NVIDIA RTX 6000 Ada Generation",
            48 * GIB,
            draw.randrange(2 * GIB, 12 * GIB),
            30 * GIB,
            4 * GIB,
            3 * GIB,
            utilisation_percent=float(draw.randrange(101)),
            temperature_c=float(draw.randrange(40, 88)),
            power_w=float(draw.randrange(40, 300)),
        )


@contextmanager
def crowded(crowd: Crowd) -> Iterator[str]:
    """Serve the machine from a thread of its own, stirred at each look; yield the address."""
    addresses: list[str] = []
    ready, stop = threading.Event(), threading.Event()

    async def serve() -> None:
        router = crowd.router
        options = {"services": crowd.services, "console": lambda api: Console(api, EVERY_S)}
        async with serving(router, crowd.operator, **options) as port:
            addresses.append(f"http://127.0.0.1:{port}")
            ready.set()
            while not stop.is_set():
                if not crowd.at_rest.is_set():
                    crowd.stir()
                await asyncio.sleep(EVERY_S)

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    try:
        assert ready.wait(20), "it did not begin to serve"
        yield addresses[0]
    finally:
        stop.set()
        thread.join()
