"""How dialogues, replies and tables look in a notebook; in a terminal they print as text.

Everything a model wrote is escaped: a reply is data, never markup.

>>> from baize_lib.dialogue import Message
>>> bubbles([Message("user", "Is 2 < 3?"), Message("assistant", "Yes.")])
Human  Is 2 < 3?
AI     Yes.
"""

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from baize_lib.course.plots import COLOURS
from baize_lib.dialogue import Message
from baize_lib.files import text_hash

__all__ = [
    "Shown",
    "bubbles",
    "side_by_side",
    "table",
    "verdicts",
]


@dataclass(frozen=True, slots=True)
class Shown:
    """Something with two faces: HTML for notebooks, text for terminals."""

    text: str
    markup: str

    def __repr__(self) -> str:
        return self.text

    def _repr_html_(self) -> str:
        return self.markup


_SPEAKER = {"user": "Human", "assistant": "AI", "system": "System"}


def bubbles(messages: Sequence[Message], title: str = "") -> Shown:
    """A dialogue as coloured blocks, one a message."""
    lines = [f"{_SPEAKER[m.role]:<5}  {m.content}" for m in messages]
    blocks = [_block(m.content, _SPEAKER[m.role], m.role) for m in messages]
    head = f"<div style='font-weight:600;margin:4px 0'>{html.escape(title)}</div>" if title else ""
    markup = f"<div style='max-width:46em'>{head}{''.join(blocks)}</div>"
    return Shown("\n".join([title, *lines] if title else lines), markup)


def side_by_side(replies: Mapping[str, str], title: str = "") -> Shown:
    """Several models' replies to one prompt, in columns. Keys are model names."""
    text = "\n".join([title, *(f"[{name}] {reply}" for name, reply in replies.items())])
    columns = "".join(
        f"<div style='flex:1;min-width:15em'>{_block(reply, name, name)}</div>"
        for name, reply in replies.items()
    )
    head = f"<div style='font-weight:600;margin:6px 0'>{html.escape(title)}</div>" if title else ""
    markup = f"{head}<div style='display:flex;gap:10px;flex-wrap:wrap'>{columns}</div>"
    return Shown(text.strip(), markup)


def _block(content: str, label: str, hue: str) -> str:
    colour = COLOURS.get(hue, COLOURS["other"])
    return (
        f"<div style='border-left:4px solid {colour};background:{colour}14;padding:4px 10px;"
        "margin:4px 0;white-space:pre-wrap;overflow-wrap:anywhere;text-align:left'>"
        f"<b style='color:{colour}'>{html.escape(label)}</b>  {html.escape(content)}</div>"
    )


def table(rows: Any, *, form: Mapping[str, str] | None = None, caption: str = "") -> Any:
    """A styled pandas table without its index; `form` maps a column to a format, e.g. "{:,.0f}"."""
    import pandas as pd

    frame = rows if isinstance(rows, pd.DataFrame) else pd.DataFrame(rows)
    styled = frame.style.hide(axis="index").format(form or {}, na_rep="–", escape="html")
    words = [c for c in frame.columns if not pd.api.types.is_numeric_dtype(frame[c])]
    styled = styled.set_properties(subset=words, **{"text-align": "left"})
    styled = styled.set_table_styles([{"selector": "th", "props": "text-align: left"}])
    styled = styled.set_uuid(text_hash(frame.to_csv())[:8])  # the same markup at every run
    return styled.set_caption(caption) if caption else styled


_MARKS = {"good": ("✓", "#00664b"), "partly": ("◐", "#7a5200"), "bad": ("✗", "#a93500")}


def verdicts(frame: Any, caption: str = "✓ good, ◐ partly, ✗ bad") -> Any:
    """A table whose cells "good", "partly" and "bad" are shown as one coloured mark each."""
    marks = {c: lambda v: _MARKS.get(v, (v,))[0] for c in frame.columns}
    styled = table(frame, caption=caption).format(marks, escape="html")
    return styled.map(lambda v: f"color: {_MARKS[v][1]}; font-weight: bold" if v in _MARKS else "")
