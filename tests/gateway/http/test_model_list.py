"""Names as people type them: without regard to case where it is plain what they mean, in every dialect."""

import pytest

from cotenant.domain.keys import ApiKey, key_digest
from cotenant.domain.models import ModelKind
from cotenant.domain.requests import RequestRules, ServedModel
from tests.gateway.harness import SlotRouter, fetch, post, serving
from tests.gateway.stub import StubEngine
from tests.support.daemon.plain_operator import PlainOperator

MESSAGES = [{"role": "user", "content": "Hi"}]
LLAMA = ServedModel("Llama-3.2", ModelKind.TEXT, created_at=1, aliases=("GPT-4o",))
OTHER = ServedModel("llama-3.2", ModelKind.TEXT, created_at=2, aliases=("gpt-4O:LATEST", "mini"))
ASKS = (
    ("POST", "/v1/chat/completions", {"messages": MESSAGES}),
    ("POST", "/v1/completions", {"prompt": "a"}),
    ("POST", "/v1/responses", {"input": "a"}),
    ("POST", "/v1/messages", {"messages": MESSAGES}),
    ("POST", "/tokenize", {"content": "a"}),
    ("POST", "/api/chat", {"messages": MESSAGES, "stream": False}),
    ("POST", "/api/show", {}),
    ("GET", "/v1/models/{name}", None),
    ("GET", "/api/models/{name}", None),
    ("GET", "/upstream/{name}/props", None),
)


async def ask(port: int, name: str, method: str, path: str, body: dict | None, **headers: str):
    if method == "POST":
        return await post(port, {**(body or {}), "model": name}, path, **headers)
    return await fetch(port, method, path.replace("{name}", name), b"", **headers)


async def statuses(name: str, *models: ServedModel, words: str = "", **headers: str) -> set[int]:
    found = set()
    keys = [ApiKey("k", key_digest("k"), models=(LLAMA.name,))] if headers else []
    async with (
        StubEngine() as engine,
        serving(SlotRouter(engine.endpoint, models=models), PlainOperator(), api_keys=keys) as port,
    ):
        for method, path, body in ASKS:
            if headers and path.startswith(("/api/models", "/upstream")):
                continue
            reply = await ask(port, name, method, path, body, **headers)
            assert words.encode() in reply.body, (path, reply.body)
            # A stub's answer is none of Ollama's, which is another matter.
            found.add(200 if b"stream ended before" in reply.body else reply.status)
        assert bool(engine.calls) == (found == {200})
    return found


@pytest.mark.parametrize(
    "name", ["Llama-3.2", "LLAMA-3.2", "llama-3.2:latest", "gpt-4O", "library/Gpt-4o:Latest"]
)
async def test_a_name_or_alias_in_another_case_means_the_only_model_that_it_can_mean(name):
    plain = name if "/" not in name else name.removeprefix("library/")
    assert await statuses(plain, LLAMA) == {200}


@pytest.mark.parametrize(
    ("name", "either"),
    [("LLAMA-3.2", "Llama-3.2 or llama-3.2"), ("Gpt-4O", "GPT-4o or gpt-4O:LATEST")],
)
async def test_a_name_that_may_mean_two_models_is_refused_with_both(name, either):
    assert await statuses(name, LLAMA, OTHER, words=either) == {400}


@pytest.mark.parametrize("name", ["Llama-3.2", "llama-3.2", "GPT-4o", "gpt-4O:LATEST", "MINI"])
async def test_as_it_is_written_it_is_never_ambiguous(name):
    assert await statuses(name, LLAMA, OTHER) == {200}


async def test_models_that_a_key_may_not_use_make_no_name_ambiguous():
    assert await statuses("LLAMA-3.2", LLAMA, OTHER, Authorization="Bearer k") == {200}


RULES = RequestRules(set={"temperature": 0.5})
VARIED = ServedModel(
    "Qwen",
    ModelKind.TEXT,
    created_at=3,
    variants={"Qwen:fast": RULES, "Qwen:think": RULES, "Qwen:Think": RULES},
)


@pytest.mark.parametrize("name", ["qwen:FAST", "QWEN:fast:latest", "Qwen:think", "Qwen:Think"])
async def test_variants_too_may_be_written_in_any_case_that_means_one(name):
    assert await statuses(name, VARIED) == {200}


async def test_a_name_that_may_mean_two_variants_is_refused_with_both():
    assert await statuses("qwen:THINK", VARIED, words="Qwen:Think or Qwen:think") == {400}
