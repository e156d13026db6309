"""Which files make the model that was asked for."""

import pytest

from cotenant.domain.errors import BadHubName, NotOnHub
from cotenant.domain.hub import HubName, hub_name, quant_of
from cotenant.hub.choice import HubFile, choose

SEVERAL = [
    "README.md",
    "imatrix.gguf",
    "Model-Q8_0.gguf",
    "Model-Q4_K_M.gguf",
    "Model-IQ2_XXS.gguf",
    "BF16/Model-BF16-00001-of-00002.gguf",
    "BF16/Model-BF16-00002-of-00002.gguf",
    "mmproj-Model-f32.gguf",
    "mmproj-Model-f16.gguf",
]


def chosen(name: str, paths: list[str]) -> list[str]:
    return [file.path for file in choose(HubName.parse(name), [HubFile(path) for path in paths])]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("hf.co/org/repo", "hf.co/org/repo"),
        ("huggingface.co/org/repo:latest", "hf.co/org/repo"),
        ("https://hf.co/Org/Re.po-GGUF:Q4_K_M", "hf.co/Org/Re.po-GGUF:Q4_K_M"),
    ],
)
def test_names_are_read_and_told(text, told):
    assert str(HubName.parse(text)) == told


@pytest.mark.parametrize(
    "text",
    [
        "",
        "llama3.2",
        "org/repo",
        "hf.co/org",
        "hf.co/org/repo/more",
        "hf.co/../etc",
        "hf.co/a/b:c d",
        "hf.co/a/b:",
    ],
)
def test_a_name_that_means_nothing_is_refused(text):
    with pytest.raises(BadHubName, match="can be pulled"):
        HubName.parse(text)


@pytest.mark.parametrize(
    ("file", "quant"),
    [
        ("Model-Q4_K_M.gguf", "Q4_K_M"),
        ("qwen2.5-0.5b-instruct-q4_k_m.gguf", "Q4_K_M"),
        ("Model.IQ2_XXS.gguf", "IQ2_XXS"),
        ("Model-UD-Q2_K_XL.gguf", "UD-Q2_K_XL"),
        ("BF16/Model-BF16-00001-of-00002.gguf", "BF16"),
        ("gpt-oss-20b-mxfp4.gguf", "MXFP4"),
        ("Model.gguf", None),
        ("FaqQ8.gguf", None),
    ],
)
def test_the_quantisation_is_read_off_a_files_name(file, quant):
    assert quant_of(file) == quant


def test_the_usual_one_is_taken_unless_another_is_asked_for_and_a_projector_goes_with_it():
    assert chosen("hf.co/o/r", SEVERAL) == ["mmproj-Model-f16.gguf", "Model-Q4_K_M.gguf"]
    assert chosen("hf.co/o/r:q8_0", SEVERAL)[-1] == "Model-Q8_0.gguf"
    assert chosen("hf.co/o/r:model-iq2_xxs", SEVERAL)[-1] == "Model-IQ2_XXS.gguf"
    assert chosen("hf.co/o/r", ["only.gguf"]) == ["only.gguf"]


def test_all_parts_come_the_first_one_last():
    assert chosen("hf.co/o/r:BF16", SEVERAL)[1:] == [
        "BF16/Model-BF16-00002-of-00002.gguf",
        "BF16/Model-BF16-00001-of-00002.gguf",
    ]


@pytest.mark.parametrize(
    ("name", "paths", "why", "hint"),
    [
        ("hf.co/o/r", ["model.safetensors"], "no GGUF file", "-GGUF"),
        ("hf.co/o/r:Q3_K_S", SEVERAL, "has no Q3_K_S", "Q8_0"),
        ("hf.co/o/r:Q4_0", ["a-Q4_0.gguf", "b-Q4_0.gguf"], "several models of Q4_0", "a-Q4_0, b-Q4_0"),
        ("hf.co/o/r:BF16", SEVERAL[:6], "1 of the 2 parts", "another"),
    ],
)
def test_what_is_not_there_is_told_with_what_is(name, paths, why, hint):
    with pytest.raises(NotOnHub, match=why) as refused:
        chosen(name, paths)
    assert hint in refused.value.hint


def test_a_pulled_file_tells_its_name_on_the_hub():
    assert str(hub_name("org--re--po", "Model-Q4_K_M.gguf")) == "hf.co/org/re--po:Q4_K_M"
    assert hub_name("models", "Model-Q4_K_M.gguf") is None
