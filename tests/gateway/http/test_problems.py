import json

import pytest

from cotenant.domain import errors, nodes
from cotenant.domain.errors import CotenantError
from cotenant.domain.exit_causes import Cause
from cotenant.gateway.http.problems import HTTP_PROBLEMS, envelope, http_problem
from cotenant.gateway.inference.dialects import anthropic_error, ollama_error


def _leaves(kind: type[CotenantError]) -> set[type[CotenantError]]:
    below = kind.__subclasses__()
    return {kind} if not below else set().union(*map(_leaves, below))


OURS = {leaf for leaf in _leaves(CotenantError) if leaf.__module__ in (errors.__name__, nodes.__name__)}


def test_every_leaf_of_the_exception_tree_has_a_status_and_nothing_else_has():
    # EngineHung is an EngineDied too, with a status of its own, and AgentGone a NodeUnreachable.
    assert set(HTTP_PROBLEMS) == OURS | {errors.EngineDied, nodes.NodeUnreachable}


@pytest.mark.parametrize("leaf", sorted(OURS, key=lambda leaf: leaf.__name__))
def test_a_fault_is_told_in_the_envelope_of_openai(leaf):
    error = leaf("something happened", hint="Do this.")
    told = json.loads(envelope(error))["error"]
    of_an_engine = {"cause"} if issubclass(leaf, errors.EngineError) else set()
    assert set(told) == {"message", "type", "param", "code"} | of_an_engine
    assert told["message"] == "something happened. Do this."
    assert told["code"] == leaf.code
    assert (told["type"] == "server_error") <= (http_problem(error).status >= 500)


def test_what_ended_an_engine_is_a_word_beside_the_code():
    error = errors.EngineLoadFailed("its GPU is out of memory", cause=Cause.GPU_MEMORY_LOADING)
    told = envelope(error)
    assert json.loads(told)["error"]["cause"] == "gpu_memory_loading"
    assert json.loads(anthropic_error(503, told))["error"]["cause"] == "gpu_memory_loading"
    assert json.loads(ollama_error(503, told))["cause"] == "gpu_memory_loading"


def test_a_fault_that_is_none_of_ours_tells_nothing_of_itself():
    told = envelope(ValueError("the password is hunter2"))
    assert b"hunter2" not in told
    assert http_problem(ValueError()).status == 500


def test_a_full_queue_says_when_to_come_again():
    assert (b"retry-after", b"1") in http_problem(errors.QueueFull("full")).headers()


def test_what_will_not_get_better_is_not_to_be_repeated():
    assert (b"x-should-retry", b"false") in http_problem(errors.DoesNotFit("no")).headers()
