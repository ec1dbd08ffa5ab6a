"""The numbers papers report of a corpus: turns, words a message, vocabulary.

>>> from baize_lib.dialogue import Message
>>> found = statistics([Dialogue((Message("user", "Who won?"), Message("assistant", "We did.")))])
>>> found.mean_turns, found.mean_words("assistant")
(1.0, 2.0)
"""

import statistics as numbers
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from baize_lib.corpus.formats import dialogues_in
from baize_lib.dialogue import Dialogue
from baize_lib.text import words

__all__ = ["statistics"]


@dataclass(slots=True)
class Statistics:
    """Counts over a set of dialogues."""

    num_dialogues: int = 0
    turns: Counter[int] = field(default_factory=Counter)  # dialogues with that many
    lengths: dict[str, list[int]] = field(default_factory=dict)  # role -> words of each message
    vocabulary: Counter[str] = field(default_factory=Counter)  # word -> times used

    @property
    def mean_turns(self) -> float:
        return sum(n * times for n, times in self.turns.items()) / max(self.num_dialogues, 1)

    def mean_words(self, role: str) -> float:
        """Words in a message of `role`, on average."""
        return numbers.fmean(self.lengths.get(role) or [0])

    def rows(self) -> list[dict[str, Any]]:
        """One row a role: messages, words: sum, mean, median, and what 95 of 100 stay within."""
        return [
            {
                "role": role, "messages": len(lengths), "words": sum(lengths),
                "mean": round(self.mean_words(role), 1), "median": numbers.median_low(lengths),
                "p95": sorted(lengths)[int(0.95 * (len(lengths) - 1) + 0.5)],
            }
            for role, lengths in self.lengths.items()
        ]  # fmt: skip


def statistics(dialogues: Iterable[Dialogue]) -> Statistics:
    """Count dialogues, turns, words and vocabulary in one pass."""
    found = Statistics()
    for dialogue in dialogues_in(dialogues):
        found.num_dialogues += 1
        found.turns[dialogue.num_turns] += 1
        for message in dialogue.messages:
            said = words(message.content)
            found.lengths.setdefault(message.role, []).append(len(said))
            found.vocabulary.update(said)
    return found
