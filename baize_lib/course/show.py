"""How dialogues, replies and tables look in a notebook; in a terminal they print as text.

Everything a model wrote is escaped, by Jinja2: a reply is data, never markup.

>>> bubbles([{"role": "user", "content": "Is 2 < 3?"}, {"role": "assistant", "content": "Yes."}])
Human  Is 2 < 3?
AI     Yes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from baize_lib.course.plots import hue
from baize_lib.dialogue import Message, as_messages
from baize_lib.evaluation.checks import MARKS
from baize_lib.files import template

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["bubbles", "side_by_side", "table", "verdicts"]


@dataclass(frozen=True, slots=True)
class Shown:
    """Something with two faces: HTML for notebooks, text for terminals."""

    text: str
    markup: str

    def __repr__(self) -> str:
        return self.text

    def _repr_html_(self) -> str:
        return self.markup


_PAGE = Path(__file__).with_name("show.jinja")
_SPEAKER = {"user": "Human", "assistant": "AI", "system": "System"}


def bubbles(messages: Sequence[Message | Mapping[str, str]], title: str = "") -> Shown:
    """A dialogue as coloured blocks, one a message (`Message`s, or role and content in dicts)."""
    said = [(_SPEAKER[m.role], m.content, hue(m.role)) for m in as_messages(messages)]
    lines = [f"{speaker:<5}  {text}" for speaker, text, _ in said]
    markup = template(_PAGE).module.dialogue(title, said)
    return Shown("\n".join([title, *lines] if title else lines), markup)


def side_by_side(replies: Mapping[str, str], title: str = "") -> Shown:
    """Several models' replies to one prompt, in columns. Keys are model names."""
    text = "\n".join([title, *(f"[{name}] {reply}" for name, reply in replies.items())])
    said = [(name, reply, hue(name)) for name, reply in replies.items()]
    return Shown(text.strip(), template(_PAGE).module.columns(title, said))


def table(
    rows: "pd.DataFrame | Sequence[Mapping[str, Any]]", *, form: Mapping[str, str] | None = None,
    caption: str = "", marks: Mapping[str, tuple[str, str]] | None = None,
) -> Shown:  # fmt: skip
    """Rows as a table without an index; `form` maps a column to a format, e.g. "{:,.0f}".

    A cell that is a key of `marks` is shown as the sign there, in the colour there.
    """
    import pandas as pd

    frame = rows if isinstance(rows, pd.DataFrame) else pd.DataFrame(rows)
    numeric = pd.api.types.is_numeric_dtype
    sides = {c: "right" if numeric(frame[c]) else "left" for c in frame.columns}
    cells = [
        [_cell(row[c], (form or {}).get(c), marks or {}) for c in sides]
        for row in frame.to_dict("records")
    ]
    texts = pd.DataFrame([[text for text, _ in row] for row in cells], columns=list(sides))
    markup = template(_PAGE).module.table(caption, list(sides.items()), cells)
    return Shown(f"{caption}\n{texts.to_string(index=False)}".strip(), markup)


def verdicts(
    frame: "pd.DataFrame | Sequence[Mapping[str, Any]]", caption: str = "✓ good, ◐ partly, ✗ bad"
) -> Shown:
    """A table whose cells "good", "partly" and "bad" are shown as one coloured mark each."""
    return table(frame, caption=caption, marks=MARKS)


def _cell(value: Any, form: str | None, marks: Mapping[str, tuple[str, str]]) -> tuple[str, str]:
    """The text of a cell, and what CSS it adds."""
    if isinstance(value, str) and value in marks:
        sign, colour = marks[value]
        return sign, f";color:color-mix(in srgb,{colour} 50%,currentColor);font-weight:bold"
    if value is None or value != value:  # NaN is not equal to itself
        return "–", ""
    if form:
        return form.format(value), ""
    return f"{value:g}" if isinstance(value, float) else str(value), ""
