"""What differs between two writings of a piece, as a browser is told."""

import pytest

from cotenant.console.live_updates import changes, count_nodes, tokens_of

ROW = '<tr id="a" class="x"><td>1 <b>of</b> 2</td><td data-tip="a &amp; b">–</td></tr>'


def told(before: str, after: str):
    return changes(tokens_of(before), tokens_of(after))


def test_nothing_is_told_of_what_is_equal():
    assert told(ROW, ROW) == []


@pytest.mark.parametrize(
    ("before", "after", "change"),
    [
        ("1 <b>", "3 <b>", [(2, "3 ")]),
        (">of<", ">from<", [(4, "from")]),
        (" 2<", " &lt;4&gt; &amp; more<", [(5, " <4> & more")]),
        ("a &amp; b", "&#34;c&#34;", [(6, {"data-tip": '"c"'})]),
        (' class="x"', "", [(0, {"class": None})]),
        (' class="x"', ' class="y" hidden', [(0, {"class": "y", "hidden": ""})]),
        ("–", "1.5", [(7, "1.5")]),
    ],
)
def test_words_and_values_are_told_by_the_number_of_their_node(before: str, after: str, change: list):
    assert told(ROW, ROW.replace(before, after)) == change


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("<b>of</b>", ""),
        ("<b>of</b>", "<i>of</i>"),
        ("<b>", "<b hx-post='/x'>"),
        ('id="a"', 'id="b"'),
        ("<b>of</b>", "<b>of</b><b></b>"),
        ("1 <b>", "<b>"),
    ],
)
def test_what_takes_more_than_that_is_left_to_the_browser(before: str, after: str):
    assert told(ROW, ROW.replace(before, after)) is None


def test_an_attribute_that_scripts_set_is_left_to_them():
    before = '<tr data-client="hidden class" class="a">1</tr>'
    assert told(before, before.replace('class="a"', 'hidden class="b"').replace("1", "2")) == [(1, "2")]


def test_a_value_in_single_quotes_is_read_too():
    before = """<b title='{"number": 1}'>x</b>"""
    assert told(before, before.replace("1", "2")) == [(0, {"title": '{"number": 2}'})]


def test_nodes_are_elements_and_texts():
    assert count_nodes(tokens_of(ROW)) == 8
    assert count_nodes(tokens_of('<p>a<input value="1">b</p>')) == 4
