"""From what was collected to what is kept: every drop is counted, and paid for by the rest.

    filtered = apply_filters(read_dialogues(run.self_chat, statuses=None))
    filtered.rows()                              # what each filter took, in order
    filtered.cost()                              # USD and tokens per *accepted* dialogue

A filter is a named function that says True for "drop". What was paid for dropped and failed
dialogues belongs to the price of the accepted ones.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

from baize_lib.config import BaizeError
from baize_lib.corpus.defects import WRITTEN, defects_for
from baize_lib.corpus.formats import NO_USAGE, dialogues_in
from baize_lib.dialogue import Dialogue
from baize_lib.teacher.prices import Price, Usage
from baize_lib.text import near_duplicates

__all__ = ["default_filters", "whole_turns", "apply_filters"]

Filter = Callable[[Dialogue], Any]  # truthy: drop the dialogue


def default_filters(language: str = "en") -> dict[str, Filter]:
    """The filters used unless others are given, name -> function, in the order of `defects.toml`.

    Refusals stay: for an unsafe request a refusal is the right answer. `language` is "en" or "zh".
    """
    checks = defects_for(language)
    return {name: checks[name] for name in WRITTEN["filtered"]}


def whole_turns(dialogue: Dialogue) -> Dialogue:
    """The dialogue up to its first reply cut by `max_tokens`: a cut reply teaches to stop midway.
    Map it over dialogues before filtering, to keep the turns before the cut."""
    cut = getattr(dialogue, "cut_turns", ())
    if not cut or min(cut) == 0:
        return dialogue
    has_system = dialogue.messages[0].role == "system"
    kept = dialogue.messages[: 2 * min(cut) + has_system]
    return replace(dialogue, messages=kept, cut_turns=())


@dataclass(frozen=True, slots=True)
class Filtered:
    """What `apply_filters` kept, and where the rest went."""

    kept: list[Dialogue]
    dropped: Counter[str]  # filter -> dialogues charged to it, in order, zeros included
    usage: Usage = NO_USAGE  # of everything seen, dropped and failed included; cost_usd too
    cost_usd: float = 0.0

    @property
    def num_seen(self) -> int:
        return len(self.kept) + self.dropped.total()

    def rows(self) -> list[dict[str, Any]]:
        """One row a filter: how many it dropped, their share of all, how many were left."""
        seen, gone = self.num_seen, accumulate(self.dropped.values())
        return [
            {"filter": name, "dropped": n, "share": n / max(seen, 1), "left": seen - so_far}
            for (name, n), so_far in zip(self.dropped.items(), gone, strict=True)
        ]

    def cost(self, shadow: Price | None = None) -> dict[str, Any]:
        """Dialogues seen and accepted, USD and tokens for each accepted one (None where none was);
        with `shadow` also what the same tokens would have cost at that price."""

        def each(amount: float) -> float | None:
            return amount / len(self.kept) if self.kept else None

        row: dict[str, Any] = {
            "seen": self.num_seen, "accepted": len(self.kept), "usd": self.cost_usd,
            "usd_per_1000_accepted": each(1000 * self.cost_usd),
            "tokens": self.usage.total, "tokens_per_accepted": each(self.usage.total),
        }  # fmt: skip
        if shadow:
            usd = shadow.cost(self.usage)
            row |= {"shadow_price": shadow.model, "shadow_usd": usd,
                    "shadow_usd_per_1000_accepted": each(1000 * usd)}  # fmt: skip
        return row


def apply_filters(
    dialogues: Iterable[Dialogue],
    filters: Mapping[str, Filter] | None = None,
    *,
    near_duplicate: float | None = 0.7,
) -> Filtered:
    """Drop what a filter names; each dropped dialogue is charged to the first filter that fires.

    Args:
        filters: name -> function, in the order they run; None takes `default_filters()`.
        near_duplicate: last, drop what resembles an earlier kept dialogue this much (likeness of
            first question and reply, 0 to 1); None keeps them.
    """
    filters = default_filters() if filters is None else filters
    if not isinstance(filters, Mapping) or not all(map(callable, filters.values())):
        raise BaizeError(f"filters={filters!r:.80}: give a dict, name -> function of a dialogue")
    kept: list[Dialogue] = []
    dropped = Counter(dict.fromkeys(filters, 0))
    usage, cost_usd = NO_USAGE, 0.0
    for dialogue in dialogues_in(dialogues):
        usage += getattr(dialogue, "usage", NO_USAGE)
        cost_usd += getattr(dialogue, "cost_usd", 0.0)
        reason = next((name for name, fires in filters.items() if fires(dialogue)), None)
        if reason:
            dropped[reason] += 1
        else:
            kept.append(dialogue)
    if near_duplicate is not None:
        repeats = {i for g in near_duplicates(map(opening, kept), near_duplicate) for i in g[1:]}
        dropped["near_duplicate"] = len(repeats)
        kept = [dialogue for i, dialogue in enumerate(kept) if i not in repeats]
    return Filtered(kept, dropped, usage, cost_usd)


def opening(dialogue: Dialogue) -> str:
    """The first question and reply: what near-duplicates are compared by."""
    return "\n".join((*dialogue.by("user")[:1], *dialogue.by("assistant")[:1]))
