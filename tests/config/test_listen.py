"""`listen` of a model."""

import pytest

from cotenant.config.changes import diff
from cotenant.domain.engines import Endpoint
from cotenant.domain.errors import BadSetting
from tests.config.conftest import Reader

MODEL = "{name: %s, kind: any, engine: command, command: [x], memory: 1GiB, listen: %s}"


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("8188", Endpoint("127.0.0.1", 8188)),
        ("'0.0.0.0:8188'", Endpoint("0.0.0.0", 8188)),
        ("'[::1]:7860'", Endpoint("::1", 7860)),
    ],
)
def test_a_port_is_one_of_loopback_unless_a_host_is_written_out(
    read: Reader, text: str, address: Endpoint
) -> None:
    read_entry = read(f"server: {{host: 0.0.0.0, insecure: yes}}\nmodels: [{MODEL % ('a', text)}]").models[0]
    assert read_entry.listen == address


def test_another_port_loads_nothing_anew(read: Reader) -> None:
    before, after = (read(f"models: [{MODEL % ('a', port)}]") for port in (8188, 8189))
    assert diff(before, after).sentences() == ("a has new rules: it stays loaded",)


@pytest.mark.parametrize("text", ["0", "70000", "here", "'[::1]'", "'a b:80'", "[80]"])
def test_what_is_no_address_is_refused(read: Reader, text: str) -> None:
    with pytest.raises(BadSetting, match="listen"):
        read(f"models: [{MODEL % ('a', text)}]")


@pytest.mark.parametrize(
    ("models", "told"),
    [
        (f"[{MODEL % ('a', '8080')}]", "port 8080 is the server's own"),
        (f"[{MODEL % ('a', '8188')}, {MODEL % ('b', 8188)}]", r"port 8188 is taken by models\[0\]"),
        ("[{path: models/tiny.gguf, listen: 8188}]", "only a model of kind any"),
        ("[{name: a, engine: command, command: [x], listen: 8188}]", "only a model of kind any"),
        ("[{name: a, engine: ollama, model: m, listen: 8188}]", "only a model of kind any"),
    ],
)
def test_what_cannot_have_that_port_is_told_at_its_line(read: Reader, models: str, told: str) -> None:
    with pytest.raises(BadSetting, match=told):
        read(f"models: {models}")
