"""One look for every figure: white ground, colour-blind-safe colours, labels on the data.

A name that is a key of `COLOURS` is drawn in its colour throughout the course, others in that of
"other" or as `colours` says. `show(figure, name, alt)` puts the picture into the notebook with its
alt text and, under `make render`, into `figures/`.

>>> figure = bars({"base": 3, "tuned": 8}, title="Replies that end", unit="replies")
>>> len(figure.axes[0].patches), hue("tuned")
(2, '#009E73')
"""

import io
import os
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from baize_lib.config import BaizeError
from baize_lib.evaluation.checks import MARKS
from baize_lib.files import write_atomic, written

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "show", "bars", "stacked_bars", "histogram", "curves", "dots", "intervals", "comparison",
]  # fmt: skip

COLOURS = written(__file__, "colours.toml")
COLOURS |= {grade: colour for grade, (_, colour) in MARKS.items()}
# A key of COLOURS for all names, or name -> key where it is not the name itself.
Colours = Mapping[str, str] | str | None


def hue(name: str, colours: Colours = None) -> str:
    """The colour of a name, a speaker, a model or a verdict."""
    key = colours if isinstance(colours, str) else (colours or {}).get(name, name)
    return COLOURS.get(key, COLOURS["other"])


def _figure(width: float, height: float, **options: Any) -> tuple["Figure", Any]:
    from matplotlib import style
    from matplotlib.figure import Figure

    with style.context(Path(__file__).with_name("course.mplstyle")):
        drawn = Figure(figsize=(width, height), layout="constrained")
        return drawn, drawn.subplots(**options)


def _beside(axes: "Axes", text: str, at: tuple, right: float, up: float, **look: Any) -> None:
    """Text so many points right of and above a place."""
    axes.annotate(text, at, xytext=(right, up), textcoords="offset points", **look)


def _label(axes: "Axes", title: str, x: str, y: str, legend: Mapping[str, str] | None = None):
    """Title, units, and between title and data the names in their colours, where no line runs."""
    names = list((legend or {}).items())
    axes.set(xlabel=x, ylabel=y)
    axes.set_title(title, loc="left", pad=8 + 15 * len(names))
    for row, (name, colour) in enumerate(reversed(names)):
        _beside(axes, name, (0, 1), 0, 4 + 15 * row, xycoords="axes fraction", color=colour)


def _are_whole(values: Iterable[float]) -> bool:
    return all(float(value).is_integer() for value in values)


def _names(groups: Mapping[str, Mapping[str, Sequence[float]]], form: str) -> list[str]:
    """The names in each group; a BaizeError where there is no group, or nothing for a name."""
    names = list(next(iter(groups.values()), ()))
    if not groups or not all(len(group.get(n, ())) for group in groups.values() for n in names):
        raise BaizeError(f"nothing to draw, or not for every name: give {form}, the same in each")
    return names


def show(drawn: "Figure", name: str, alt: str) -> None:
    """Display a figure with its alt text; save it as `<name>.png` where BAIZE_FIGURES points."""
    from IPython.display import Image, display

    buffer = io.BytesIO()
    drawn.savefig(buffer, format="png", dpi=110)
    if folder := os.environ.get("BAIZE_FIGURES"):
        write_atomic(Path(folder) / f"{name}.png", buffer.getvalue())
    display(Image(data=buffer.getvalue(), alt=alt, width=int(drawn.get_size_inches()[0] * 100)))


def bars(
    values: Mapping[str, float], *, title: str, unit: str, colour: Colours = None,
    form: str = "{:,.0f}",
) -> "Figure":  # fmt: skip
    """Horizontal bars, the first on top, each with its value written at its end."""
    drawn, axes = _figure(7.0, 0.8 + 0.36 * max(len(values), 1))
    names, lengths = list(values), list(values.values())
    placed = axes.barh(names, lengths, color=[hue(name, colour) for name in names], height=0.68)
    axes.bar_label(placed, labels=[form.format(v) for v in lengths], padding=4, fontsize=10.5)
    axes.invert_yaxis()
    _label(axes, title, unit, "")
    axes.xaxis.get_major_locator().set_params(integer=_are_whole(lengths))
    axes.margins(x=0.16)
    return drawn


def stacked_bars(
    labels: Sequence[str], parts: Mapping[str, Sequence[float]], *, title: str, unit: str,
    colours: Colours = None,
) -> "Figure":  # fmt: skip
    """One vertical bar a label, built of named parts, the first at the bottom."""
    drawn, axes = _figure(7.0, 3.2 + 0.2 * len(parts))
    floor = [0.0] * len(labels)
    for name, heights in parts.items():
        axes.bar(labels, heights, bottom=floor, color=hue(name, colours), width=0.7)
        floor = [low + high for low, high in zip(floor, heights, strict=True)]
    _label(axes, title, "", unit, {name: hue(name, colours) for name in reversed(parts)})
    return drawn


def histogram(
    values: Mapping[str, Sequence[float]], *, title: str, unit: str, colours: Colours = None
) -> "Figure":
    """Outlined histograms of whole numbers on one axis, named with their medians."""
    import numpy as np

    drawn, axes = _figure(7.0, 3.0 + 0.15 * len(values))
    every = [value for series in values.values() for value in series] or [0, 1]
    low, high = min(every), max(every)
    step = max(1, round((high - low + 1) / 24))
    edges = np.arange(low - 0.5, high + step, step)
    names = {}
    for name, series in values.items():
        colour, median = hue(name, colours), np.median(series) if series else 0
        axes.hist(series, edges, color=f"{colour}55", edgecolor=colour)
        names[f"{name}: median {median:,.0f}"] = colour
    _label(axes, title, unit, "count", names)
    return drawn


def curves(
    series: Mapping[str, Mapping[float, float]], *, title: str, x: str, y: str,
    colours: Colours = None, wide: Sequence[str] = (), marks: Mapping[float, str] | None = None,
) -> "Figure":  # fmt: skip
    """Lines by name, each from x to y; few points are shown as dots, very few with their values.

    Names in `wide` are drawn broad and pale, for others to lie on; `marks` says what happened
    at an x.
    """
    drawn, axes = _figure(7.0, 3.0 + 0.2 * len(series))
    for name, points in series.items():
        look = {"lw": 9, "alpha": 0.45} if name in wide else {"lw": 1.8}
        dotted = "o-" if len(points) <= 30 and name not in wide else "-"
        axes.plot(list(points), list(points.values()), dotted, color=hue(name, colours), **look)
        for at in points.items() if len(points) <= 3 else ():
            _beside(axes, f"{at[1]:.2f}", at, 4, 8, color=hue(name, colours))
    for at, what in (marks or {}).items():
        axes.axvline(at, color="#222222", lw=1.2, ls="--")
        axes.text(at, 0.02, f"{what} ", ha="right", transform=axes.get_xaxis_transform())
    _label(axes, title, x, y, {name: hue(name, colours) for name in series})
    whole = _are_whole(at for points in series.values() for at in points)
    axes.xaxis.get_major_locator().set_params(integer=whole)
    axes.margins(x=0.06, y=0.2)
    return drawn


def dots(
    panels: Mapping[str, Mapping[str, Sequence[float]]], *, title: str, unit: str,
    ranges: Mapping[str, tuple[float, float]] | None = None, colours: Colours = None,
    form: str = "{:.3f}",
) -> "Figure":  # fmt: skip
    """Values by name as dots on lines with their mean, the first on top; panels beside each other.

    `panels` is panel -> name -> values, the same names in each; `ranges` is panel -> (low, high),
    shaded. A wide one is cut off, not the dots squeezed.
    """
    names = _names(panels, "panel -> name -> values")
    size = 9.6, 1.3 + 0.36 * len(names)
    drawn, all_axes = _figure(*size, ncols=len(panels), sharey=True, squeeze=False)
    for axes, (panel, values) in zip(all_axes[0], panels.items(), strict=True):
        for y, name in enumerate(names):
            found = values[name]
            axes.plot(found, [y] * len(found), "o", color=hue(name, colours), ms=8, alpha=0.8)
            mean = form.format(sum(found) / len(found))
            _beside(axes, mean, (max(found), y), 9, 0, va="center", fontsize=10.5)
        axes.margins(x=0.3, y=0.12)
        limits = axes.get_xlim()
        if ranges and panel in ranges:
            axes.axvspan(*ranges[panel], color=COLOURS["base"], alpha=0.18, lw=0)
        axes.set(xlim=limits, yticks=range(len(names)), yticklabels=names)
        axes.grid(axis="y")
        _label(axes, panel, unit, "")
    all_axes[0][0].invert_yaxis()
    drawn.suptitle(title, x=0.01, ha="left", fontsize=12, weight="bold")
    return drawn


def intervals(
    series: Mapping[str, Mapping[str, tuple[float, float, float]]], *, title: str, unit: str,
    colours: Colours = None,
) -> "Figure":  # fmt: skip
    """Shares as dots with their intervals as lines, the first name on top.

    `series`: what is counted -> name -> (share, low, high), each 0 to 1; the same names in each.
    """
    names = _names(series, "what is counted -> name -> (share, low, high)")
    drawn, axes = _figure(7.0, 1.4 + 0.2 * len(series) + 0.25 * len(names) * (1 + len(series)))
    for i, (label, values) in enumerate(series.items()):
        colour, shift = hue(label, colours), 0.3 * (i - (len(series) - 1) / 2)
        for y, name in enumerate(names):
            share, low, high = (100 * value for value in values[name])
            axes.plot([low, high], [y + shift] * 2, color=colour, lw=3, alpha=0.45)
            axes.plot(share, y + shift, "o", color=colour, ms=8)
            look = {"va": "center", "fontsize": 10, "color": colour}
            _beside(axes, f"{share:.0f}%", (high, y + shift), 6, 0, **look)
    axes.set(xlim=(-3, 108), ylim=(len(names) - 0.45, -0.55))
    axes.set(yticks=range(len(names)), yticklabels=names)
    _label(axes, title, unit, "", {label: hue(label, colours) for label in series})
    return drawn


def comparison(
    rows: Sequence[tuple[str, Mapping[str, tuple[str, str]]]], *, title: str, note: str,
    colours: Colours = None,
) -> "Figure":  # fmt: skip
    """Answers side by side, one band a question and one column a model, to be passed on.

    A row is (question, {model: (verdict, answer)}), with the same models in each; `note` is a line
    under the title: which models these are, and how they were asked.
    """
    from matplotlib import font_manager

    models = list(rows[0][1]) if rows else []
    step = 1 / max(len(models), 1)
    cut = [[_wrapped(answer, round(140 * step) - 6, 6) for _, answer in answers.values()]
           for _, answers in rows]  # fmt: skip
    tall = [0.42 + 0.155 * max(2, *(answer.count("\n") + 1 for answer in row)) for row in cut]
    drawn, axes = _figure(9.6, 1.35 + sum(tall))
    axes.set_axis_off()
    axes.set(xlim=(0, 1), ylim=(1.35 + sum(tall), 0))

    font = font_manager.get_font(font_manager.findfont("DejaVu Sans"))

    def say(x: float, y: float, text: str, size: float, **look: Any) -> None:
        known = (c if c.isspace() or font.get_char_index(ord(c)) else "□" for c in text)
        axes.text(x, y, "".join(known), va="top", size=size, **look)

    say(0, 0.05, title, 15, weight="bold")
    say(0, 0.45, note, 9.5, color="#555555")
    for i, model in enumerate(models):
        say(i * step + 0.012, 0.85, model, 12, weight="bold", color=hue(model, colours))
    top = 1.2
    for (question, answers), row, height in zip(rows, cut, tall, strict=True):
        axes.axhspan(top, top + 0.26, color="#F0F0F0")
        say(0.006, top + 0.05, _wrapped(question, 125, 1), 9.5, weight="bold")
        for i, (model, (verdict, _)) in enumerate(answers.items()):
            left, (mark, colour) = i * step, MARKS.get(verdict, ("", None))
            axes.plot([left + 0.004] * 2, [top + 0.31, top + height - 0.05], lw=3,
                      color=hue(model, colours))  # fmt: skip
            say(left + 0.012, top + 0.3, mark, 11, color=colour, weight="bold")
            say(left + 0.036, top + 0.315, row[i], 8.6, linespacing=1.25)
        top += height
    return drawn


def _wrapped(text: str, width: int, most: int) -> str:
    """The text in lines of at most `width` letters and at most so many; what is cut ends in "…"."""
    lines = [line for part in text.splitlines() for line in textwrap.wrap(part, width)]
    return "\n".join([*lines[:most][:-1], f"{lines[most - 1]} …"] if len(lines) > most else lines)
