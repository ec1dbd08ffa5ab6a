"""What a seed is, and a list of them that knows what became of the others.

>>> [seed.source for seed in as_seeds(["What is LoRA?", Seed("b", "What is a token?", "me")])]
['typed', 'me']
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from baize_lib.config import BaizeError
from baize_lib.files import text_hash

__all__ = ["Seed", "BUILT_IN"]

BUILT_IN = ("general", "programming", "medical", "unsafe", "harmless")
CHINESE = ("chinese",)  # built in as well, and written in Chinese


@dataclass(frozen=True, slots=True)
class Seed:
    """One first message, and the source it comes from."""

    id: str
    text: str
    source: str


class Seeds(list[Seed]):
    """The seeds that were kept, and why the others were not."""

    def __init__(self, seeds: Iterable[Seed] = ()) -> None:
        super().__init__(seeds)
        self.dropped: Counter[str] = Counter()  # reason -> questions; "unreadable": the faults
        self.examples: dict[str, str] = {}  # reason -> the first text dropped for it
        self.problems: list[str] = []  # places that could not be read, and why

    def drop(self, reason: str, example: str = "") -> None:
        self.dropped[reason] += 1
        self.examples.setdefault(reason, example)

    def broken(self, place: str, fault: object) -> None:
        self.drop("unreadable", str(fault))
        if len(self.problems) < 1000:  # a gigabyte of faults must not fill the memory
            self.problems.append(f"{place}: {fault}")

    def table(self):
        """A pandas DataFrame: what became of the questions read, how many, an example of each."""
        import pandas as pd

        rows = [("kept", len(self), self[0].text if self else "")]
        rows += [(why, n, self.examples[why]) for why, n in self.dropped.most_common()]
        frame = pd.DataFrame(rows, columns=["outcome", "questions", "for example"])
        share = frame["questions"] / max(1, frame["questions"].sum())
        frame.insert(2, "share", share.map("{:.1%}".format))
        return frame.assign(**{"for example": frame["for example"].str.slice(0, 70)})


def as_seeds(questions: Iterable[Seed | str]) -> Iterator[Seed]:
    """Seeds as they are; a plain text becomes one, its id the hash of its text."""
    if isinstance(questions, str | bytes | Seed) or not isinstance(questions, Iterable):
        raise BaizeError(f"{questions!r:.60} is no list of questions: put it in brackets, [...]")
    for number, seed in enumerate(questions, start=1):
        if isinstance(seed, str):
            yield Seed(text_hash(seed), seed, "typed")
        elif isinstance(seed, Seed) and isinstance(seed.text, str):
            yield seed
        else:
            raise BaizeError(
                f"item {number} of the list is {seed!r:.60}, not a question: give a text, or "
                "Seed(id, text, source)"
            )
