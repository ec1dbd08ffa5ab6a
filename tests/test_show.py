"""What a reader sees: figures are opaque and described, and a model's text never becomes markup."""

import io

import pytest
from matplotlib.colors import to_rgba
from PIL import Image

from baize_lib.config import BaizeError
from baize_lib.course import plots
from baize_lib.course.show import bubbles, side_by_side, table, verdicts
from baize_lib.dialogue import Message

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(1)>"


def drawn():
    hues = {"a": "user", "b": "assistant"}
    yield plots.bars({"a": 3, "b": 0}, title="t", unit="u", colour=hues)
    yield plots.bars({}, title="nothing yet", unit="u")
    yield plots.stacked_bars(["1", "2"], {"good": [1, 2], "bad": [3, 4]}, title="t", unit="u")
    yield plots.histogram({"a": [1, 2, 3], "b": []}, title="t", unit="u", colours=hues)
    yield plots.histogram({"a": [0.5, 2]}, title="t", unit="u")
    yield plots.histogram({}, title="t", unit="u")
    yield plots.curves({"a": {}, "b": {0: 3.1, 3: 1.4}}, title="nothing yet", x="x", y="y")
    yield plots.curves({"a": {1: 3.0, 2: 2.0}, "b": {2: 2.1}}, title="t", x="x", y="y", wide=["a"],
                       marks={1.5: "killed"})  # fmt: skip
    yield plots.dots({"x": {"a": [1, 2], "b": [3]}}, title="t", unit="u", ranges={"x": (-9, 9)},
                     colours=hues)  # fmt: skip
    yield plots.intervals({"unsafe": {"base": (0.1, 0, 0.3)}, "harmless": {"base": (0, 0, 0.2)}},
                          title="t", unit="u")  # fmt: skip
    yield plots.dots({"x": {"a": [1]}, "y": {"a": [9.5]}}, title="t", unit="u", form="{:.1f}")

    rows = [("Why? " * 60, {"a": ("good", "$1 and $2: 好 " + HOSTILE * 9), "b": ("", "")})]
    yield plots.comparison(rows, title="t", note="n", colours=hues)
    yield plots.comparison([], title="t", note="n", colours=hues)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("figure", drawn())
def test_every_figure_draws_on_an_opaque_ground(figure):
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    assert Image.open(buffer).convert("RGBA").getpixel((0, 0)) == (255, 255, 255, 255)


def test_a_shown_figure_carries_its_alt_text_and_is_saved_where_asked(tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", shown.append)
    monkeypatch.setenv("BAIZE_FIGURES", str(tmp_path))
    plots.show(plots.bars({"a": 1}, title="t", unit="u"), "one", "One bar")
    assert shown[0]._repr_mimebundle_()[1]["image/png"]["alt"] == "One bar"
    assert (tmp_path / "one.png").read_bytes().startswith(b"\x89PNG")


def test_dots_and_intervals_of_nothing_say_what_to_give():
    look = {"title": "t", "unit": "u"}
    for nothing in ({}, {"x": {"a": []}}, {"x": {"a": [1]}, "y": {"b": [1]}}):
        with pytest.raises(BaizeError, match="nothing to draw, .*: give panel -> name -> values"):
            plots.dots(nothing, **look)
    for nothing in ({}, {"x": {"a": (1, 1, 1)}, "y": {}}):
        with pytest.raises(BaizeError, match=r"nothing to draw, .*name -> \(share, low, high\)"):
            plots.intervals(nothing, **look)


def test_whole_numbers_get_whole_bins_of_one_width():
    counts = [3] * 5 + [4] * 5 + [27] * 2 + list(range(3, 28))
    axes = plots.histogram({"general": counts}, title="t", unit="words").axes[0]
    edges = {round(bar.get_x(), 3) for bar in axes.patches}
    widths = {round(bar.get_width(), 3) for bar in axes.patches}
    assert widths == {1.0}
    assert all(edge % 1 == 0.5 for edge in edges)
    assert sum(bar.get_height() for bar in axes.patches) == len(counts)


def test_models_sets_and_verdicts_have_colours_of_their_own_everywhere():
    named = ("user", "assistant", "base", "own layout", "tuned", "recorded", "teacher", "published")
    named += ("general", "programming", "medical", "good", "partly", "bad")
    assert len({plots.COLOURS[name].lower() for name in named}) == len(named)
    bars = plots.bars({"base": 1, "tuned": 2}, title="t", unit="u").axes[0].patches
    assert [bar.get_facecolor() for bar in bars] == [
        to_rgba(plots.COLOURS[name]) for name in ("base", "tuned")
    ]


def test_no_line_runs_through_a_legend():
    series = {"a": {x: 100 - x for x in range(50)}, "b": {x: x for x in range(50)}}
    drawn = plots.curves(series, title="t", x="x", y="y")
    drawn.savefig(io.BytesIO(), format="png")
    inside = drawn.axes[0].get_window_extent()
    names = [text for text in drawn.axes[0].texts if text.get_text() in series]
    assert len(names) == 2
    assert all(name.get_window_extent().y0 >= inside.y1 for name in names)


def test_what_a_model_wrote_is_escaped():
    said = [Message("user", HOSTILE), Message("assistant", HOSTILE)]
    hostile = {HOSTILE: [HOSTILE, {HOSTILE: 1}], "n": 1}
    for shown in (
        bubbles(said, title=HOSTILE),
        side_by_side({HOSTILE: HOSTILE}, title=HOSTILE),
        table([hostile], caption=HOSTILE, form={"n": HOSTILE + "{}"}),
        verdicts([hostile], caption=HOSTILE),
    ):
        markup = shown._repr_html_()
        assert "&lt;script" in markup
        assert "<script" not in markup
        assert "<img" not in markup


def test_a_dialogue_also_prints_as_text():
    assert repr(bubbles([Message("user", "Hi"), Message("assistant", "Hello")], "One")) == (
        "One\nHuman  Hi\nAI     Hello"
    )


def test_a_long_answer_is_cut_and_says_so():
    rows = [("Why?", {"a": ("bad", "word " * 300), "b": ("good", "Because.")})]
    drawn = plots.comparison(rows, title="t", note="n", colours={"a": "base", "b": "tuned"})
    texts = [text.get_text() for text in drawn.axes[0].texts]
    (cut,) = [text for text in texts if text.startswith("word")]
    assert cut.endswith(" …") and cut.count("\n") == 5
    assert {"✓", "✗", "Because.", "Why?"} < set(texts)


def test_verdicts_become_marks_in_their_own_colours_and_the_rest_stays_text():
    rows = [{"prompt": f"good {HOSTILE}", "base": "bad", "tuned": "good", "x": "", "n": None}]
    shown = verdicts(rows)
    markup = shown._repr_html_()
    assert f'{plots.COLOURS["bad"]} 50%,currentColor);font-weight:bold">✗<' in markup
    assert ">✓<" in markup and ">bad<" not in markup
    assert "✗" in repr(shown)


def test_a_table_formats_numbers_and_shows_what_is_missing():
    shown = table([{"a": 1.234, "b": "x"}, {"a": None, "b": "y"}], form={"a": "{:.1f}"})
    markup = shown._repr_html_()
    assert ">1.2</td>" in markup and ">–</td>" in markup
    assert (
        '<td style="text-align:right">1.2' in markup and '<td style="text-align:left">x' in markup
    )
    assert table([])._repr_html_().count("<td") == 0
