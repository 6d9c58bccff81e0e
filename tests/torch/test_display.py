"""What a notebook shows of things is small, escaped, and says what is known."""

from __future__ import annotations

from ptycho_torch.display import facts_html, facts_text, new_figure


def test_facts_are_a_table_and_a_line_without_what_is_not_known() -> None:
    facts = {"R factor": 0.123456, "patterns": 64, "noise": None, "<b>": "<i>&"}
    html = facts_html("a <run>", facts)
    assert "a &lt;run&gt;" in html
    assert "&lt;b&gt;" in html
    assert "&lt;i&gt;&amp;" in html
    assert "0.1235" in html
    assert "noise" not in html
    assert facts_text("Run", facts) == "Run(R factor: 0.1235, patterns: 64, <b>: <i>&)"


def test_a_figure_is_an_image_of_its_own() -> None:
    figure = new_figure(2.0, 1.0)
    figure.add_subplot().plot([1, 2])
    assert figure.canvas.get_width_height() == (200, 100)
