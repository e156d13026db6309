"""The picture of a report: what it says in words, and what it looks like in pixels."""

import struct
from dataclasses import replace
from xml.etree import ElementTree

import pytest

from cotenant.benchmark.plot import picture
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


SAMPLED = report("ada")


def svg(drawn: Report) -> bytes:
    return picture(drawn, "svg")


def words(picture: bytes) -> list[str]:
    return [each.text or "" for each in ElementTree.fromstring(picture).iter() if each.tag.endswith("}text")]


def test_rates_alone_and_together_and_the_share_that_is_kept_stand_in_the_picture() -> None:
    said = words(svg(report("ada", "ben")))
    assert said.count("100") >= 3, "each alone, and both together"
    assert "ada 50 (50%)" in said
    assert "two together" in said
    assert "cold starts and swaps" in said
    assert "8 requests each, 2 at once, answers of at most 128 tokens; in brackets what a model keeps" in (
        " ".join(said)
    )


def test_those_who_do_not_see_it_are_told_the_same() -> None:
    picture = ElementTree.fromstring(svg(report("ada", "ben")))
    assert picture.findtext("{*}title") == "Tokens per second of ada, ben, alone and together"
    assert picture.findtext(".//{*}description") == (
        "Alone: ada 100 tokens per second. Alone: ben 100 tokens per second. "
        "Two together: ada 50 (50% of alone), ben 50 (50% of alone) tokens per second."
    )


def test_one_model_has_no_share_and_the_picture_says_nothing_of_one() -> None:
    assert "brackets" not in " ".join(words(svg(report("ada"))))


def test_words_that_do_not_fit_are_shortened_or_left_out() -> None:
    name = "llama-3.1-8b-instruct-q4_k_m"
    said = words(svg(report(name, "b", kept=0.02)))
    assert any(each.startswith("llama-3.1-") and each.endswith("…") for each in said)
    assert not any("(2%)" in each for each in said), "the bar is narrower than the words"


def test_a_name_is_no_formula_and_cannot_break_out_of_the_picture() -> None:
    name = '$a_1$<script>"&'
    assert name in words(svg(report(name)))


def test_memory_that_rests_is_a_few_points_however_long() -> None:
    few, many = (svg(replace(SAMPLED, memory=SAMPLED.memory * times)) for times in (1, 50))
    assert len(many) < len(few) * 1.01


@pytest.mark.parametrize("memory", [True, False])
def test_memory_is_drawn_where_it_is_known(memory: bool) -> None:
    said = words(svg(report("ada", "ben", memory=memory)))
    assert ("Memory held over time, GiB" in said) is memory


def test_an_svg_is_dark_where_the_viewer_prefers_that_and_a_png_is_not() -> None:
    drawn = report("ada", memory=False)
    assert b"prefers-color-scheme: dark" in svg(drawn)
    image = picture(drawn, "png")
    assert b"prefers-color-scheme" not in image
    assert image.startswith(b"\x89PNG")
    assert struct.unpack(">I", image[16:20]) == (1920,)
