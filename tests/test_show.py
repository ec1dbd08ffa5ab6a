"""What a reader sees: figures are opaque and described, and a model's text never becomes markup."""

import io

import pytest
from PIL import Image

from baize_lib.course import plots
from baize_lib.course.show import bubbles, side_by_side, table, verdicts
from baize_lib.dialogue import Message

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(1)>"


def drawn():
    hues = {"a": "user", "b": "assistant"}
    yield plots.pipeline([("Seeds", "questions", "data/"), ("Self-chat", "two voices", "x.jsonl")])
    yield plots.bars({"a": 3, "b": 0}, title="t", unit="u", colour=hues)
    yield plots.bars({}, title="nothing yet", unit="u")
    yield plots.stacked_bars(["1", "2"], {"a": [1, 2], "b": [3, 4]}, title="t", unit="u",
                             colours=hues)  # fmt: skip
    yield plots.histogram({"a": [1, 2, 3], "b": []}, title="t", unit="u", colours=hues)
    yield plots.loss_curve([1, 2, 3], [3.0, 2.0, 1.5], {0: 3.1, 3: 1.4}, title="t")
    yield plots.resumed_curve([3, 2, 1], [3, 2, 1], saved=1, killed_after=2, title="t")
    yield plots.dots({"x": {"a": [1, 2], "b": [3]}}, title="t", unit="u", ranges={"x": (-9, 9)},
                     colours=hues)  # fmt: skip
    yield plots.scatter_labels({"a": (1, 2), "b": (3, 1)}, title="t", x="x", y="y", colours=hues)

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


def test_what_a_model_wrote_is_escaped():
    said = [Message("user", HOSTILE), Message("assistant", HOSTILE)]
    for markup in (
        bubbles(said, title=HOSTILE)._repr_html_(),
        side_by_side({"base": HOSTILE}, title=HOSTILE)._repr_html_(),
        table([{"reply": HOSTILE}]).to_html(),
    ):
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


def test_verdicts_become_marks_and_the_rest_stays_text():
    import pandas as pd

    frame = pd.DataFrame([{"prompt": f"good {HOSTILE}", "base": "bad", "tuned": "good", "x": ""}])
    markup = verdicts(frame).to_html()
    assert ">✗<" in markup and ">✓<" in markup and ">bad<" not in markup
    assert "good &lt;script" in markup and "<script" not in markup


def test_a_table_renders_the_same_twice():
    assert table([{"a": 1.234}], form={"a": "{:.1f}"}).to_html() == (
        table([{"a": 1.234}], form={"a": "{:.1f}"}).to_html()
    )
