"""One look for every figure: white ground, colour-blind-safe colours, labels on the data.

The same colour means the same speaker or model throughout the course. `show(figure, name, alt)`
puts the picture into the notebook with its alt text and, under `make render`, into `figures/`.

>>> COLOURS["assistant"]
'#D55E00'
"""

import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from baize_lib.files import write_atomic

__all__ = [
    "COLOURS",
    "figure",
    "show",
    "pipeline",
    "bars",
    "stacked_bars",
    "histogram",
    "loss_curve",
    "resumed_curve",
    "scatter_labels",
    "dots",
    "intervals",
    "comparison",
]


if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's palette (2008), readable with every common colour blindness.
COLOURS = {
    "user": "#0072B2", "assistant": "#D55E00", "base": "#6E6E6E", "tuned": "#009E73",
    "teacher": "#CC79A7", "published": "#E69F00", "other": "#56B4E9", "ink": "#222222",
    "good": "#1F4E9C", "partly": "#B8860B", "bad": "#B2182B",
}  # fmt: skip


def figure(width: float = 7.0, height: float = 3.2, **options: Any) -> tuple["Figure", Any]:
    """A new figure and its axes in the course's style; sizes in inches."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(_STYLE):
        new = Figure(figsize=(width, height), layout="constrained")
        axes = new.subplots(**options)
    return new, axes


_STYLE = {
    "figure.facecolor": "white", "axes.facecolor": "white", "savefig.facecolor": "white",
    "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": "#888888",
    "axes.labelcolor": COLOURS["ink"], "axes.titlesize": 12,
    "axes.labelsize": 11, "xtick.labelsize": 10.5, "ytick.labelsize": 10.5,
    "xtick.color": "#444444", "ytick.color": "#444444", "font.size": 11,
}  # fmt: skip


def show(drawn: "Figure", name: str, alt: str) -> None:
    """Display a figure with its alt text; save it as `<name>.png` where BAIZE_FIGURES points."""
    from IPython.display import Image, display

    buffer = io.BytesIO()
    drawn.savefig(buffer, format="png", dpi=110)
    if folder := os.environ.get("BAIZE_FIGURES"):
        write_atomic(Path(folder) / f"{name}.png", buffer.getvalue())
    display(Image(data=buffer.getvalue(), alt=alt, width=int(drawn.get_size_inches()[0] * 100)))


def pipeline(steps: Sequence[tuple[str, str, str]]) -> "Figure":
    """Boxes joined by arrows. Each step is (title, what happens, file it leaves)."""
    from matplotlib.patches import FancyBboxPatch

    drawn, axes = figure(9.6, 2.2)
    axes.set_axis_off()
    axes.set(xlim=(-0.05, len(steps) - 0.15), ylim=(0, 1))
    hues = ["other", "user", "published", "assistant", "tuned", "teacher"]
    for i, (title, what, file) in enumerate(steps):
        colour = COLOURS[hues[i % len(hues)]]
        box = FancyBboxPatch(
            (i, 0.3), 0.72, 0.52, boxstyle="round,pad=0.02,rounding_size=0.05",
            facecolor=f"{colour}22", edgecolor=colour, linewidth=1.6,
        )  # fmt: skip
        axes.add_patch(box)
        axes.text(i + 0.36, 0.68, title, ha="center", va="center", fontsize=12.5, weight="bold")
        axes.text(i + 0.36, 0.45, what, ha="center", va="center", fontsize=9.5)
        axes.text(i + 0.36, 0.14, file, ha="center", va="center", fontsize=9, family="monospace")
        if i + 1 < len(steps):
            axes.annotate(
                "", (i + 0.98, 0.56), (i + 0.745, 0.56),
                arrowprops={"arrowstyle": "-|>", "color": "#555555", "lw": 1.6},
            )  # fmt: skip
    return drawn


def bars(
    values: Mapping[str, float],
    *,
    title: str,
    unit: str,
    colour: str | Mapping[str, str] = "other",
    form: str = "{:,.0f}",
    log: bool = False,
) -> "Figure":
    """Horizontal bars, the first on top, each with its value written at its end."""
    drawn, axes = figure(7.0, 0.8 + 0.36 * max(len(values), 1))
    names, lengths = list(values), list(values.values())
    hues = [COLOURS[colour if isinstance(colour, str) else colour[name]] for name in names]
    placed = axes.barh(names, lengths, color=hues, height=0.68)
    axes.bar_label(placed, labels=[form.format(v) for v in lengths], padding=4, fontsize=10.5)
    axes.invert_yaxis()
    axes.set_xscale("log" if log else "linear")
    _label(axes, title, unit, "")
    if not log and all(float(v).is_integer() for v in lengths):
        axes.xaxis.get_major_locator().set_params(integer=True)
    axes.margins(x=0.16)
    return drawn


def stacked_bars(
    labels: Sequence[str], parts: Mapping[str, Sequence[float]], *, title: str, unit: str,
    colours: Mapping[str, str],
) -> "Figure":  # fmt: skip
    """One vertical bar a label, built of named parts; each part is labelled once, at the right."""
    drawn, axes = figure(7.0, 3.4)
    floor = [0.0] * len(labels)
    for name, heights in parts.items():
        axes.bar(labels, heights, bottom=floor, color=COLOURS[colours[name]], width=0.7)
        if labels and heights[-1]:
            middle = floor[-1] + heights[-1] / 2
            axes.annotate(
                name, (len(labels) - 0.6, middle), color=COLOURS[colours[name]],
                va="center", fontsize=11, annotation_clip=False,
            )  # fmt: skip
        floor = [low + high for low, high in zip(floor, heights, strict=True)]
    axes.set_xlim(-0.6, len(labels) + 0.5)
    _label(axes, title, "", unit)
    return drawn


def histogram(
    values: Mapping[str, Sequence[float]], *, title: str, unit: str, colours: Mapping[str, str],
    bins: int = 24,
) -> "Figure":  # fmt: skip
    """Outlined histograms on one axis, each labelled with its name and median."""
    drawn, axes = figure(7.0, 3.0)
    everything = [value for series in values.values() for value in series]
    limits = (min(everything, default=0), max(everything, default=1))
    for i, (name, series) in enumerate(values.items()):
        colour = COLOURS[colours[name]]
        axes.hist(series, bins=bins, range=limits, color=f"{colour}55", edgecolor=colour)
        middle = sorted(series)[len(series) // 2] if series else 0
        axes.text(
            0.98, 0.94 - 0.11 * i, f"{name}: median {middle:,.0f}", color=colour,
            transform=axes.transAxes, ha="right", va="top",
        )  # fmt: skip
    _label(axes, title, unit, "count")
    return drawn


def loss_curve(
    steps: Sequence[int], losses: Sequence[float], held_out: Mapping[int, float], *, title: str
) -> "Figure":
    """Training loss a step, with the held-out loss at the steps it was measured."""
    drawn, axes = figure(7.0, 3.2)
    axes.plot(steps, losses, color=COLOURS["other"], lw=1.2, alpha=0.7)
    smooth = _running_mean(losses, 0.8)
    axes.plot(steps, smooth, color=COLOURS["user"], lw=2)
    where, what = list(held_out), list(held_out.values())
    axes.plot(where, what, "o--", color=COLOURS["assistant"], lw=1.4, ms=7)
    for x, y in held_out.items():
        axes.annotate(f"{y:.2f}", (x, y), textcoords="offset points", xytext=(4, 8),
                      color=COLOURS["assistant"])  # fmt: skip
    _label(axes, title, "optimizer step", "loss, nats a token")
    if steps:
        axes.text(0.99, 0.97, "training batches (smoothed)", color=COLOURS["user"], va="top",
                  ha="right", transform=axes.transAxes)  # fmt: skip
        axes.text(0.99, 0.88, "held-out dialogues", color=COLOURS["assistant"], va="top",
                  ha="right", transform=axes.transAxes)  # fmt: skip
    axes.margins(x=0.06, y=0.18)
    return drawn


def resumed_curve(
    whole: Sequence[float], killed: Sequence[float], *, saved: int, killed_after: int, title: str
) -> "Figure":
    """The loss of a killed and resumed run over that of an uninterrupted one.

    Args:
        whole, killed: loss by step; killed has those before `saved` from its first life.
        saved: the last step in the checkpoint; `killed_after`: the last one finished before.
    """
    drawn, axes = figure(7.0, 3.4)
    axes.plot(range(1, len(whole) + 1), whole, color=COLOURS["other"], lw=9, alpha=0.5,
              solid_capstyle="round")  # fmt: skip
    lives = {"user": range(1, saved + 1), "assistant": range(saved + 1, len(killed) + 1)}
    for hue, steps in lives.items():
        axes.plot(steps, [killed[i - 1] for i in steps], "o-", color=COLOURS[hue], lw=1.6, ms=5)
    axes.axvline(killed_after + 0.5, color=COLOURS["ink"], lw=1.2, ls="--")
    axes.text(killed_after + 0.4, 0.02, "killed", ha="right", transform=axes.get_xaxis_transform())
    for row, (hue, text) in enumerate(
        [
            ("other", "uninterrupted"),
            ("user", f"first life, saved up to step {saved}"),
            ("assistant", f"second life, from step {saved + 1}"),
        ]
    ):
        axes.text(0.99, 0.97 - 0.09 * row, text, color=COLOURS[hue], va="top", ha="right",
                  transform=axes.transAxes, bbox={"facecolor": "white", "lw": 0, "pad": 1.5},
                  )  # fmt: skip
    _label(axes, title, "optimizer step", "loss, nats a token")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.margins(x=0.06, y=0.25)
    return drawn


def scatter_labels(
    points: Mapping[str, tuple[float, float]], *, title: str, x: str, y: str,
    colours: Mapping[str, str],
) -> "Figure":  # fmt: skip
    """Named points, each labelled beside its dot; dots that touch share one label."""
    drawn, axes = figure(7.0, 3.4)
    spans = [max(v) - min(v) or 1 for v in zip(*points.values(), strict=True)] or [1, 1]
    groups: list[list[str]] = []
    for name in sorted(points, key=lambda name: points[name]):
        across, up = points[name]
        axes.plot(across, up, "o", ms=9, color=COLOURS[colours[name]])
        for group in groups:
            last = points[group[-1]]
            if max(abs(across - last[0]) / spans[0], abs(up - last[1]) / spans[1]) < 0.08:
                group.append(name)
                break
        else:
            groups.append([name])
    for group in groups:
        axes.annotate(
            ", ".join(group), points[group[-1]], textcoords="offset points", xytext=(8, -4),
            color=COLOURS[colours[group[-1]]],
        )  # fmt: skip
    _label(axes, title, x, y)
    axes.margins(x=0.3, y=0.2)
    return drawn


def dots(
    panels: Mapping[str, Mapping[str, Sequence[float]]],
    *,
    title: str,
    unit: str,
    ranges: Mapping[str, tuple[float, float]] | None = None,
    colours: Mapping[str, str] | None = None,
) -> "Figure":
    """Values by name as dots on lines, the first on top; one panel beside the other.

    Args:
        panels: panel -> name -> values; the same names in each. The mean is written beside.
        ranges: panel -> (low, high), shaded; a wide one is cut off, not the dots squeezed.
    """
    names = list(next(iter(panels.values())))
    drawn, all_axes = figure(
        9.6, 1.3 + 0.36 * len(names), ncols=len(panels), sharey=True, squeeze=False
    )
    for axes, (panel, values) in zip(all_axes[0], panels.items(), strict=True):
        for y, name in enumerate(names):
            hue = COLOURS[(colours or {}).get(name, "other")]
            axes.plot(values[name], [y] * len(values[name]), "o", color=hue, ms=8, alpha=0.8)
            mean = sum(values[name]) / len(values[name])
            axes.annotate(
                f"{mean:.3f}", (max(values[name]), y), textcoords="offset points", xytext=(9, 0),
                va="center", fontsize=10.5,
            )  # fmt: skip
        axes.margins(x=0.3, y=0.12)
        limits = axes.get_xlim()
        if ranges and panel in ranges:
            axes.axvspan(*ranges[panel], color=COLOURS["base"], alpha=0.18, lw=0)
        axes.set(xlim=limits, yticks=range(len(names)), yticklabels=names)
        axes.grid(axis="y", color="#dddddd", lw=0.8)
        axes.set_axisbelow(True)
        _label(axes, panel, unit, "")
    all_axes[0][0].invert_yaxis()
    drawn.suptitle(title, x=0.01, ha="left", fontsize=12, weight="bold")
    return drawn


def intervals(
    series: Mapping[str, Mapping[str, tuple[float, float, float]]], *, title: str, unit: str,
    colours: Mapping[str, str],
) -> "Figure":  # fmt: skip
    """Shares as dots with their intervals as lines, the first name on top.

    Args:
        series: what is counted -> name -> (share, low, high), each 0 to 1; the same names in each.
        colours: series -> name of a colour.
    """
    names = list(next(iter(series.values())))
    drawn, axes = figure(7.0, 1.5 + 0.62 * len(names))
    for i, (label, values) in enumerate(series.items()):
        hue = COLOURS[colours[label]]
        shift = 0.3 * (i - (len(series) - 1) / 2)
        for y, name in enumerate(names):
            share, low, high = (100 * value for value in values[name])
            axes.plot([low, high], [y + shift] * 2, color=hue, lw=3, alpha=0.45)
            axes.plot(share, y + shift, "o", color=hue, ms=8)
            axes.annotate(f"{share:.0f}%", (high, y + shift), textcoords="offset points",
                          xytext=(6, 0), va="center", fontsize=10, color=hue)  # fmt: skip
        axes.text(0, 1.09 - 0.075 * i, label, color=hue, va="bottom", transform=axes.transAxes)
    axes.set(xlim=(-3, 108), ylim=(len(names) - 0.45, -0.55))
    axes.set(yticks=range(len(names)), yticklabels=names)
    _label(axes, title, unit, "")
    axes.set_title(title, loc="left", pad=8 + 16 * len(series))
    return drawn


def comparison(
    rows: Sequence[tuple[str, Mapping[str, tuple[str, str]]]], *, title: str, note: str,
    colours: Mapping[str, str], most_lines: int = 6,
) -> "Figure":  # fmt: skip
    """Answers side by side, one band a question and one column a model, to be passed on.

    Args:
        rows: (question, {model: (verdict, answer)}) each; a verdict is "good", "partly", "bad" or
            "". Every row has the same models.
        note: one line under the title: which models these are, and how they were asked.
        colours: model -> name of a colour.
        most_lines: a longer answer is cut there, and ends in "…".
    """
    import textwrap

    models = list(rows[0][1]) if rows else []
    width = round(132 / max(len(models), 1))  # letters a line of a column
    cells = [
        {
            model: _cut([w for line in text.splitlines() for w in textwrap.wrap(line, width)],
                        most_lines)
            for model, (_, text) in answers.items()
        }
        for _, answers in rows
    ]  # fmt: skip
    heights = [0.42 + 0.155 * max(2, *map(len, row.values())) for row in cells]
    drawn, axes = figure(9.6, 1.35 + sum(heights))
    axes.set_axis_off()
    axes.set(xlim=(0, 1), ylim=(1.35 + sum(heights), 0))

    def say(x: float, y: float, text: str, **look: Any) -> None:
        axes.text(x, y, _drawable(text), va="top", parse_math=False,
                  **{"color": COLOURS["ink"]} | look)  # fmt: skip

    say(0, 0.05, title, fontsize=15, weight="bold")
    say(0, 0.45, note, fontsize=9.5, color="#555555")
    top, step = 1.2, 1 / max(len(models), 1)
    for i, model in enumerate(models):
        say(
            i * step + 0.012, 0.85, model, fontsize=12, weight="bold", color=COLOURS[colours[model]]
        )
    for (question, answers), lines, height in zip(rows, cells, heights, strict=True):
        axes.axhspan(top, top + 0.26, color="#F0F0F0")
        say(0.006, top + 0.05, _cut([question], 1, 125)[0], fontsize=9.5, weight="bold")
        for i, (model, (verdict, _)) in enumerate(answers.items()):
            edge = [i * step + 0.004] * 2
            axes.plot(edge, [top + 0.31, top + height - 0.05], color=COLOURS[colours[model]], lw=3)
            mark, hue = _MARKS.get(verdict, ("", "#555555"))
            say(i * step + 0.012, top + 0.3, mark, fontsize=11, color=hue, weight="bold")
            text = "\n".join(lines[model]) or "(empty)"
            say(i * step + 0.036, top + 0.315, text, fontsize=8.6, linespacing=1.25)
        top += height
    return drawn


def _drawable(text: str) -> str:
    """The text with a box for each character that the figures' font does not have."""
    from matplotlib import font_manager

    font = font_manager.get_font(font_manager.findfont("DejaVu Sans"))
    return "".join(c if c.isspace() or font.get_char_index(ord(c)) else "□" for c in text)


_MARKS = {"good": ("✓", "#00664b"), "partly": ("◐", "#7a5200"), "bad": ("✗", "#a93500")}


def _cut(lines: list[str], most: int, letters: int = 0) -> list[str]:
    """At most so many lines (of so many letters); what was cut ends in "…"."""
    kept = [line if not letters or len(line) <= letters else f"{line[:letters]}…" for line in lines]
    return kept if len(kept) <= most else [*kept[: most - 1], f"{kept[most - 1]} …"]


def _label(axes: Any, title: str, x: str, y: str) -> None:
    axes.set_title(title, loc="left", pad=10)
    axes.set(xlabel=x, ylabel=y)


def _running_mean(values: Sequence[float], keep: float) -> list[float]:
    smooth, total, weight = [], 0.0, 0.0
    for value in values:
        total, weight = keep * total + (1 - keep) * value, keep * weight + (1 - keep)
        smooth.append(total / weight)
    return smooth
