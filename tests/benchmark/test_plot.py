"""The picture of a report: what it says in words, and what it looks like in pixels."""

import re
import struct
from xml.etree import ElementTree

import pytest

from cotenant.benchmark.plot import WIDTH, svg
from cotenant.benchmark.png import png
from cotenant.benchmark.results import Load, MemorySample, ModelResult, Phase, Report, Wait

GIB = 1 << 30


def report(*names: str, memory: bool = True, kept: float = 0.5) -> Report:
    """Each alone for ten seconds at 100 tokens a second, then the first two."""
    sets = [*((name,) for name in names), *([names[:2]] if len(names) > 1 else [])]
    phases = tuple(
        Phase(
            each,
            10.0 * number,
            10.0 * number + 9,
            tuple(
                ModelResult(
                    name, 100 * (kept if len(each) > 1 else 1), 8, 0, share_kept=kept if each[1:] else None
                )
                for name in each
            ),
        )
        for number, each in enumerate(sets)
    )
    end = phases[-1].ended_at + 10
    samples = tuple(
        MemorySample(at / 2, dict.fromkeys(names, GIB)) for at in range(int(end) * 2 if memory else 0)
    )
    tokens = {name: tuple((at / 10, 10.0) for at in range(int(end) * 10)) for name in names}
    return Report("http://here", Load(2), phases, (Wait(names[0], 2.0),), samples, tokens)


def words(picture: str) -> list[str]:
    return [each.text or "" for each in ElementTree.fromstring(picture).iter() if each.tag.endswith("}text")]


def test_rates_alone_and_together_and_the_share_that_is_kept_stand_in_the_picture() -> None:
    said = words(svg(report("ada", "ben")))
    assert said.count("100") >= 3, "each alone, and both together"
    assert "ada 50 (50%)" in said
    assert "two together" in said
    assert "8 requests each, 2 at once, answers of at most 128 tokens; in brackets what a model keeps" in (
        " ".join(said)
    )


def test_those_who_do_not_see_it_are_told_the_same() -> None:
    described = ElementTree.fromstring(svg(report("ada", "ben"))).find("{*}desc")
    assert described is not None
    assert described.text == (
        "Alone: ada 100 tokens per second. Alone: ben 100 tokens per second. "
        "Two together: ada 50 (50% of alone), ben 50 (50% of alone) tokens per second."
    )


def test_one_model_has_no_share_and_the_picture_says_nothing_of_one() -> None:
    assert "brackets" not in svg(report("ada"))


def test_words_that_do_not_fit_are_shortened_or_left_out() -> None:
    name = "llama-3.1-8b-instruct-q4_k_m"
    said = words(svg(report(name, "b", kept=0.02)))
    assert any(each.startswith("llama-3.1-") and each.endswith("…") for each in said)
    assert not any("(2%)" in each for each in said), "the bar is narrower than the words"


def test_memory_that_rests_is_a_few_points_however_long() -> None:
    (area,) = re.findall(r'<polygon points="([^"]*)"', svg(report("ada", memory=True)))[1:]
    assert len(area.split()) == 4


@pytest.mark.parametrize("memory", [True, False])
def test_nothing_is_drawn_outside_the_paper(memory: bool) -> None:
    picture = ElementTree.fromstring(svg(report("ada", "ben", memory=memory)))
    height = float(picture.attrib["height"])
    for each in picture.iter("{*}rect"):
        assert 0 <= float(each.get("y", 0)) <= height - float(each.attrib["height"])
        assert 0 <= float(each.get("x", 0)) <= WIDTH - float(each.attrib["width"]) + 0.1
    assert all(0 < float(each.attrib["y"]) < height for each in picture.iter("{*}text"))


@pytest.mark.slow
def test_a_png_is_twice_as_large_and_has_its_words_without_a_font_of_the_machine() -> None:
    picture = svg(report("ada", "ben", memory=False))
    image = png(picture)
    height = int(ElementTree.fromstring(picture).attrib["height"])
    assert struct.unpack(">II", image[16:24]) == (2 * WIDTH, 2 * height)
    wordless = png(re.sub(r"<text.*?</text>", "", picture))
    assert len(wordless) < len(image) * 0.7, "most of what there is to see are words"
    assert png(picture.replace(">two together<", ">two tagether<")) != image, "letters, not boxes"


def test_a_png_is_light_whatever_the_picture_would_be_in_the_dark() -> None:
    paper = (
        '<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9">{}<rect {} width="9" height="9"/></svg>'
    )
    style = "<style>.p{fill:#fff}@media (prefers-color-scheme: dark){.p{fill:#000}}</style>"
    assert png(paper.format(style, 'class="p"')) == png(paper.format("", 'fill="#fff"'))
