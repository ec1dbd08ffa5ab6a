"""The numbers papers report of a corpus: turns, words a message, vocabulary, openings.

>>> from baize_lib.dialogue import Message
>>> found = statistics([Dialogue((Message("user", "Who won?"), Message("assistant", "We did.")))])
>>> found.mean_turns, found.mean_words("assistant")
(1.0, 2.0)
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from baize_lib.config import data_dir
from baize_lib.corpus.formats import dialogues_in
from baize_lib.dialogue import Dialogue
from baize_lib.text import words

__all__ = ["statistics", "beside_published"]


@dataclass(slots=True)
class Statistics:
    """Counts over a set of dialogues; keys of the dicts are roles.

    Attributes:
        turns: number of turns -> dialogues with that many.
        lengths: role -> (words in a message -> messages of that length).
        tokens: role -> tokens; empty without an encoder.
        vocabulary: word -> times used.
        openings: role -> (first two words -> messages that begin so).
    """

    num_dialogues: int = 0
    turns: Counter = field(default_factory=Counter)
    lengths: dict[str, Counter] = field(default_factory=dict)
    tokens: Counter = field(default_factory=Counter)
    vocabulary: Counter = field(default_factory=Counter)
    openings: dict[str, Counter] = field(default_factory=dict)

    @property
    def mean_turns(self) -> float:
        return _mean(self.turns)

    def mean_words(self, role: str) -> float:
        """Words in a message of `role`, on average."""
        return _mean(self.lengths.get(role, Counter()))

    def rows(self) -> list[dict[str, Any]]:
        """One row a role: messages, words (sum, mean, median, 95th percentile), tokens if any."""
        return [
            {
                "role": role, "messages": lengths.total(),
                "words": sum(n * times for n, times in lengths.items()),
                "mean": round(_mean(lengths), 1), "median": _quantile(lengths, 0.5),
                "p95": _quantile(lengths, 0.95),
            } | ({"tokens": self.tokens[role]} if self.tokens else {})
            for role, lengths in self.lengths.items()
        ]  # fmt: skip

    def opening_rows(self, role: str, n: int = 10) -> list[dict[str, Any]]:
        """The `n` most common first two words of `role`, with their share of its messages."""
        counts = self.openings.get(role, Counter())
        return [
            {"opening": opening, "messages": times, "share": times / counts.total()}
            for opening, times in counts.most_common(n)
        ]


def statistics(
    dialogues: Iterable[Dialogue], *, encode: Callable[[str], Any] | None = None
) -> Statistics:
    """Count dialogues, turns, words, vocabulary and openings in one pass.

    Args:
        encode: a tokenizer's `encode`, text -> tokens, to count those too.
    """
    found = Statistics()
    for dialogue in dialogues_in(dialogues):
        found.num_dialogues += 1
        found.turns[dialogue.num_turns] += 1
        for message in dialogue.messages:
            said, role = words(message.content), message.role
            found.lengths.setdefault(role, Counter())[len(said)] += 1
            found.vocabulary.update(said)
            glue = "" if said and said[0] >= "\u3040" else " "  # Chinese
            found.openings.setdefault(role, Counter())[glue.join(said[:2])] += 1
            if encode is not None:
                found.tokens[role] += len(encode(message.content))
    return found


def _mean(counts: Counter) -> float:
    total = counts.total()
    return sum(value * times for value, times in counts.items()) / total if total else 0.0


def _quantile(counts: Counter, q: float) -> int:
    """The smallest length that at least a share `q` of the messages do not exceed."""
    below = 0
    for value in sorted(counts):
        below += counts[value]
        if below >= q * counts.total():
            return value
    return 0


def beside_published(found: Statistics, name: str = "ours") -> list[dict[str, Any]]:
    """Rows of our corpus above the published ones (`data/published_corpora.json`, with source)."""
    ours = {
        "corpus": name, "dialogues": found.num_dialogues, "mean_turns": round(found.mean_turns, 1),
        "mean_reply_words": round(found.mean_words("assistant"), 1), "source": "counted here",
    }  # fmt: skip
    published = json.loads((data_dir() / "published_corpora.json").read_text(encoding="utf-8"))
    return [ours, *published["corpora"]]
