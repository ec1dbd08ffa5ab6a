"""seeds.seed: moved."""

from collections import Counter
from dataclasses import dataclass, field

__all__ = [
    "Seed",
    "Tally",
    "BUILT_IN",
    "CHINESE",
]


BUILT_IN = ("general", "programming", "medical", "unsafe", "harmless")
CHINESE = ("chinese",)  # built in as well, and written in Chinese


@dataclass(frozen=True, slots=True)
class Seed:
    """One first message, and the source it comes from."""

    id: str
    text: str
    source: str


@dataclass(slots=True)
class Tally:
    """What was dropped on the way: a count and a first example for each reason, and the faults.

    `problems` names the place of what could not be read; each is counted as "unreadable" too.
    """

    dropped: Counter = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def drop(self, reason: str, example: str = "") -> None:
        self.dropped[reason] += 1
        self.examples.setdefault(reason, example)

    def broken(self, place: str, fault: object) -> None:
        self.drop("unreadable", f"{place}: {fault}")
        self.note(f"{place}: {fault}")

    def note(self, problem: str) -> None:
        if len(self.problems) < 1000:  # a gigabyte of faults must not fill the memory
            self.problems.append(problem)
