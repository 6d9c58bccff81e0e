"""Charts have axes with round numbers, and every value where it belongs."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ET

import pytest

from ptycho_torch.evaluation.report.charts import MOST_POINTS, Axis, Line, chart, short


def svg_of(markup: str) -> ET.Element:
    return ET.fromstring(re.match(r"<svg.*</svg>", markup, re.DOTALL).group())  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("low", "high", "logarithmic", "expected"),
    [
        (0, 1, False, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (1, 5, False, [1, 2, 3, 4, 5]),
        (-3, 97, False, [0, 20, 40, 60, 80]),
        (1e-4, 1, True, [1e-4, 1e-3, 1e-2, 0.1, 1]),
        (0.02, 0.3, True, [0.02, 0.05, 0.1, 0.2]),
        (0.041, 0.047, True, [0.042, 0.044, 0.046]),
        (4, 4, False, [4]),
    ],
)
def test_ticks_are_round_and_lie_within(
    low: float, high: float, logarithmic: bool, expected: list[float]
) -> None:
    assert Axis(low, high, 0, 100, logarithmic).ticks(5) == pytest.approx(expected)


def test_a_logarithmic_axis_puts_equal_ratios_at_equal_distances() -> None:
    axis = Axis(0.01, 100, 0, 400, True)
    assert [axis.at(value) for value in (0.01, 0.1, 1, 10, 100)] == [0, 100, 200, 300, 400]


def test_every_value_has_a_point_that_says_it() -> None:
    markup = chart([Line("train_loss", [1, 2, 3], [4.0, 2.0, 1.0])], "epoch", "loss", logarithmic=True)
    svg = svg_of(markup)
    assert svg.attrib["aria-label"] == "loss over epoch: train_loss from 4 to 1"
    titles = [title.text for title in svg.iter("title")]
    assert titles == ["train_loss, epoch 1: 4", "train_loss, epoch 2: 2", "train_loss, epoch 3: 1"]
    heights = [float(circle.attrib["cy"]) for circle in svg.iter("circle")]
    assert heights[1] - heights[0] == pytest.approx(heights[2] - heights[1], abs=0.2)
    assert "<b>1</b>" in markup


def test_names_are_escaped() -> None:
    markup = chart([Line("<i>&", [1, 2], [1, 2])], "<x>", "<y>", levels=[(1.5, "<half>")])
    assert svg_of(markup).attrib["aria-label"].startswith("<y> over <x>: <i>&")
    assert "<i>&" not in markup


def test_values_that_are_not_numbers_are_left_out_and_long_lines_thinned() -> None:
    line = Line("loss", range(5000), [math.nan if x % 2 else 1.0 + x for x in range(5000)])
    assert len(line.known) <= MOST_POINTS
    assert all(x % 2 == 0 for x, _ in line.known)
    assert chart([Line("loss", [1], [math.nan])], "epoch", "loss") == ""
    assert "h0" in chart([Line("loss", [1], [2.0])], "epoch", "loss"), "one epoch is a dot"


def test_values_below_zero_are_drawn_on_a_linear_axis() -> None:
    def drawn(values: list[float]) -> set[str]:
        lines = [Line("loss", [1, 2, 3], values)]
        return {text.text or "" for text in svg_of(chart(lines, "epoch", "loss", logarithmic=True)).iter()}

    assert "0" in drawn([-1.0, 2.0, 5.0])
    assert "0" not in drawn([1e-3, 2.0, 5.0]), "a logarithm has no zero"


def test_numbers_are_short() -> None:
    assert [short(value) for value in (0.123456, 1e-7, 2.0, 1.5e9)] == ["0.1235", "1e-7", "2", "1.5e9"]
