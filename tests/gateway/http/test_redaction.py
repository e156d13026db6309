import json

import pytest

from cotenant.domain.errors import EngineLoadFailed
from cotenant.gateway.http.problems import envelope
from cotenant.gateway.http.redaction import for_clients


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (
            "there is no such model file (failed to open '/home/me/models/m.gguf' (No such file))",
            "there is no such model file (failed to open '…/m.gguf' (No such file))",
        ),
        ("The engine's log is /var/lib/cotenant/logs/8080/m.log.", "The engine's log is …/m.log."),
        ("bad ~/models/a.gguf", "bad …/a.gguf"),
        ("it answers 404 at /health", "it answers 404 at /health"),
        ("it answers 404 at /v1/models/x", "it answers 404 at /v1/models/x"),
        ("connect to 'https://huggingface.co/org/name'", "connect to 'https://huggingface.co/org/name'"),
        (
            "died (Input prompt: 'the word is swordfish' is long | more)",
            "died (Input prompt: … is long | more)",
        ),
        ("died ({'content': 'swordfish', 'role': 'user'})", "died ({'content': …, 'role': 'user'})"),
        ("died (prompt_token_ids=[1, 2, 3], x)", "died (prompt_token_ids=…, x)"),
        ("died (prompt: swordfish and more) for 3 GiB/s", "died (prompt: …) for 3 GiB/s"),
    ],
)
def test_paths_and_prompts_are_cut(said: str, told: str) -> None:
    assert for_clients(said) == told


def test_a_client_reads_no_path_of_this_machine() -> None:
    error = EngineLoadFailed("m could not be loaded: /srv/models/m.gguf: x", hint="See /srv/logs/m.log.")
    told = json.loads(envelope(error))["error"]["message"]
    assert told == "m could not be loaded: …/m.gguf: x. See …/m.log."
