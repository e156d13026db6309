import contextlib

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from cotenant.domain.errors import ComposeFileError
from cotenant.services.compose.compose_files import read_project
from cotenant.services.compose.importing import import_services
from cotenant.services.compose.interpolation import interpolated

_LAUGHS = "a0: &a0 [1]\n" + "".join(f"a{n + 1}: &a{n + 1} [{', '.join([f'*a{n}'] * 8)}]\n" for n in range(7))


def written(folder, text: str, name: str = "docker-compose.yml"):
    path = folder / name
    path.write_text(text)
    return path


def requests(folder, definition: dict) -> list[tuple[str, ...]]:
    path = written(folder, yaml.safe_dump({"services": {"a": definition}}))
    return [request.ids for request in read_project([path]).services["a"].gpus]


def reservation(**entry) -> dict:
    return {"deploy": {"resources": {"reservations": {"devices": [entry]}}}}


@pytest.mark.parametrize(
    ("definition", "expected"),
    [
        (reservation(driver="nvidia", count=2, capabilities=["gpu"]), [()]),
        (reservation(driver="nvidia", count="all", capabilities=["gpu"]), [()]),
        (reservation(driver="nvidia", capabilities=["gpu"]), [()]),
        (reservation(capabilities=["gpu"], device_ids=["0", "3"]), [("0", "3")]),
        (reservation(driver="other", capabilities=["tpu"]), []),
        ({"gpus": "all"}, [()]),
        ({"gpus": [{"driver": "nvidia", "count": 1}]}, [()]),
        ({"runtime": "nvidia"}, [()]),
        ({"runtime": "nvidia", "environment": ["NVIDIA_VISIBLE_DEVICES=1,2"]}, [("1", "2")]),
        ({"devices": ["/dev/video0", "nvidia.com/gpu=1"]}, [("1",)]),
        ({"devices": ["nvidia.com/gpu=all"]}, [()]),
        ({"image": "x"}, []),
    ],
)
def test_every_form_of_asking_for_a_gpu_is_read(tmp_path, definition, expected):
    assert requests(tmp_path, definition) == expected


def test_later_files_go_over_earlier_ones(tmp_path):
    first = written(
        tmp_path,
        "services: {a: {gpus: all, environment: {X: 1, Y: 2}, labels: [one=1]}, b: {image: y}}",
    )
    second = written(
        tmp_path,
        "services:\n  a:\n    gpus: !reset null\n    environment: [X=3]\n    labels: {two: '2'}\n"
        "  b: {devices: !override ['nvidia.com/gpu=0']}\n",
        "more.yml",
    )

    services = read_project([first, second]).services

    assert services["a"].gpus == ()
    assert services["a"].environment == {"X": "3", "Y": "2"}
    assert services["a"].labels == {"one": "1", "two": "2"}
    assert [request.ids for request in services["b"].gpus] == [("0",)]


def test_included_and_extended_services_are_found(tmp_path):
    written(tmp_path, "services: {base: {gpus: all, labels: {x: y}}}", "base.yml")
    path = written(tmp_path, "include: [base.yml]\nservices: {a: {extends: {file: base.yml, service: base}}}")

    services = read_project([path]).services

    assert set(services) == {"a", "base"}
    assert services["a"].labels == {"x": "y"}
    assert [request.ids for request in services["a"].gpus] == [()]


def test_the_project_is_named_as_compose_names_it(tmp_path, monkeypatch):
    folder = tmp_path / "My.Project"
    folder.mkdir()
    monkeypatch.delenv("COMPOSE_PROJECT_NAME", raising=False)
    plain = written(folder, "services: {}")
    assert read_project([plain]).name == "myproject"
    named = written(folder, "name: ${STAGE:-prod}-gpu\nservices: {}", "named.yml")
    assert read_project([named]).name == "prod-gpu"
    (folder / ".env").write_text("# comment\nSTAGE='test'\nCOMPOSE_PROJECT_NAME=fromenv\n")
    assert read_project([named]).name == "fromenv"
    assert read_project([named], "given").name == "given"


def test_published_ports_are_read_in_both_forms(tmp_path):
    path = written(
        tmp_path,
        "services: {a: {ports: ['127.0.0.1:8091:80', '9000:9000/udp', 7000, "
        "{published: 8092, target: 80}, '${P:-8093}:80']}}",
    )
    assert read_project([path]).services["a"].ports == (8091, 8092, 8093)


@pytest.mark.parametrize(
    ("text", "where", "what"),
    [
        ("services:\n  a: [\n", ":3", "not YAML"),
        ("- a\n", ":1", "top level"),
        ("services: [a]\n", ":1", "`services` is not a mapping"),
        ("services:\n  a: {image: x}\n  b: text\n", ":3", "service b"),
        ("services:\n  a:\n    extends: gone\n", ":2", "gone"),
        ("services:\n  a: {extends: b}\n  b: {extends: a}\n", ":", "back to itself"),
        ("a: &a [*a]\n", "", "aliases"),
        (_LAUGHS, "", "aliases"),
        ("\x00", "", "not YAML"),
        ("? [a]\n: b\n", ":1", "not YAML"),
        ("services: {a: {image: !!timestamp x}}\n", "", "not YAML"),
        ("services: {a: {image: !!bool x}}\n", "", "not YAML"),
        ("services: {a: {image: !!int x}}\n", "", "not YAML"),
    ],
)
def test_a_broken_file_is_named_with_its_line(tmp_path, text, where, what):
    path = written(tmp_path, text)
    with pytest.raises(ComposeFileError) as raised:
        read_project([path])
    assert raised.value.message.startswith(f"{path}{where}")
    assert what in raised.value.message
    assert "\n" not in raised.value.message
    assert raised.value.hint


def test_files_that_extend_each_other_in_a_circle_are_refused(tmp_path):
    written(tmp_path, "services: {b: {extends: {file: docker-compose.yml, service: a}}}", "b.yml")
    path = written(tmp_path, "services: {a: {extends: {file: b.yml, service: b}}}")
    with pytest.raises(ComposeFileError, match="leads back to itself"):
        read_project([path])


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ComposeFileError, match=r"gone\.yml: the compose file cannot be read: No such file"):
        read_project([tmp_path / "gone.yml"])
    with pytest.raises(ComposeFileError, match="no compose file"):
        read_project([])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("$A ${A} ${A:-x}", "1 1 1"),
        ("${B:-x} ${B-y} ${EMPTY:-z} ${EMPTY-z}", "x y z "),
        ("${A:+there} ${B:+there}", "there "),
        ("$$A costs 5$", "$A costs 5$"),
        ("${B:?why}", ""),
        ("${B:-$A} ${A:+${A}1} ${A:-$B}", "1 11 1"),
        ("${B:-${C:-${A}-stack}}s", "1-stacks"),
        ("${B:-{}} ${B:-a$$b}", "{} a$b"),
    ],
)
def test_variables_are_put_in_as_the_specification_has_them(text, expected):
    assert interpolated(text, {"A": "1", "EMPTY": ""}) == expected


_KEYS = [
    "services",
    "include",
    "name",
    "extends",
    "deploy",
    "resources",
    "reservations",
    "devices",
    "gpus",
    "runtime",
    "environment",
    "labels",
    "ports",
    "healthcheck",
    "driver",
    "device_ids",
    "count",
    "capabilities",
    "file",
    "service",
    "published",
    "protocol",
    "source",
    "path",
    "a",
    "b",
]
_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-1, 70000)
    | st.floats(allow_nan=False)
    | st.sampled_from(
        ["a", "b", "all", "nvidia", "nvidia.com/gpu=0", "${A:-b}", "$", "8091:80", "x=y", "", "gpu"]
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(_KEYS), inner, max_size=4),
    max_leaves=15,
)


@pytest.mark.slow
@given(st.dictionaries(st.sampled_from(_KEYS), _VALUES, max_size=5), _VALUES, _VALUES)
def test_no_shape_of_a_file_is_a_crash(tmp_path_factory, definition, other, include):
    path = tmp_path_factory.getbasetemp() / "shapes.yml"
    path.write_text(yaml.safe_dump({"services": {"a": definition, "b": other}, "include": include}))
    with contextlib.suppress(ComposeFileError):
        import_services([path])


MANY = ",".join(f"A{number}=b" for number in range(20_000))
BOMBS = {
    "a long list": f"services: {{a: {{image: x, environment: [{MANY},{MANY}]}}}}",
    "empty keys": "x: {" + "? ," * 349_000 + "}",
    "many services": "services:\n" + "".join(f"  s{number}: {{gpus: all}}\n" for number in range(40_000)),
    "aliases": "x: &a {b: 1}\ny: [" + "*a," * 340_000 + "]",
    "extends": f"services:\n  s: {{environment: [{MANY}]}}\n"
    + "".join(f"  s{number}: {{extends: s}}\n" for number in range(2_000)),
}


@pytest.mark.parametrize("shape", BOMBS)
def test_a_file_with_very_many_values_is_refused_before_they_are_all_read(tmp_path, shape):
    file = written(tmp_path, BOMBS[shape], "bomb.yml")
    assert file.stat().st_size <= 1 << 20
    with pytest.raises(ComposeFileError, match=r"over 30,000 values|too long for compose files"):
        read_project([file])


def test_included_files_share_one_bound(tmp_path):
    for number in range(8):
        written(tmp_path, f"services: {{s{number}: {{environment: [{MANY}]}}}}", f"b{number}.yml")
    file = written(tmp_path, "include: [" + ",".join(f"b{number}.yml" for number in range(8)) + "]", "a.yml")
    with pytest.raises(ComposeFileError, match="too long for compose files"):
        read_project([file])


def test_a_text_of_very_many_variables_without_an_end_is_refused(tmp_path):
    file = written(tmp_path, 'services: {a: {image: "' + "${A:-" * 200_000 + '"}}', "bomb.yml")
    with pytest.raises(ComposeFileError, match="too many variables"):
        read_project([file])
    assert interpolated("${A:-x}" * 1_000, {}) == "x" * 1_000
