"""Pairs that teach when to decline: unsafe requests refused, and their look-alikes answered.

A strong teacher declines harmful requests by itself, so declining is in its self-chat for the
student to learn. Whether a teacher does is measured, not assumed: it is asked a few unsafe seeds
under the guardrail prompt, and only one that declines them is asked for the rest. For any other,
the pairs written by hand for this course are taken.

    lesson = await refusal_lesson(teacher_for(tier, budget), run.path / "refusals")
    print(lesson)               # how many pairs, whose, and why
    corpus + [*lesson.refusals, *lesson.answers]
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from baize_lib.config import BaizeError, data_dir
from baize_lib.corpus.formats import Collected, from_chat, read_dialogues
from baize_lib.dialogue import Dialogue
from baize_lib.evaluation.checks import check
from baize_lib.files import read_jsonl
from baize_lib.seeds.clean import load_seeds
from baize_lib.seeds.seed import Seed
from baize_lib.selfchat.collect import collect
from baize_lib.selfchat.prompts import SelfChatSettings
from baize_lib.teacher.client import Teacher

__all__ = [
    "GUARDED",
    "Lesson",
    "refusal_lesson",
    "read_refusals",
    "ask_guarded",
    "keep_proper",
    "declines",
    "answers",
]


GUARDED = SelfChatSettings(num_turns=1, guardrail=True)


@dataclass(frozen=True, slots=True)
class Lesson:
    """Dialogues of one turn: `refusals` of unsafe requests, `answers` to harmless ones.

    Attributes:
        origin: who wrote them, and why they were taken.
        dropped: what was collected and not kept, reason -> dialogues.
    """

    refusals: tuple[Dialogue, ...]
    answers: tuple[Dialogue, ...]
    origin: str
    dropped: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        lost = "".join(f"\nnot kept: {reason}, {n}" for reason, n in self.dropped.most_common())
        count = f"{len(self.refusals)} refusals, {len(self.answers)} answers to harmless requests"
        return f"{count}\n{self.origin}{lost}"


async def refusal_lesson(
    teacher: Teacher, folder: Path | str, *, num_probed: int = 12, needed: float = 0.5
) -> Lesson:
    """The teacher's own refusals and answers where it declines, else the hand-written ones.

    Args:
        teacher: asked under its own budget; when that ends, what was collected until then counts.
        folder: where the ledgers `probe.jsonl` and `guarded.jsonl` are kept; calling again pays
            for nothing twice.
        num_probed: unsafe seeds that decide.
        needed: the share of them, 0 to 1, that the teacher must decline to be asked for the rest.

    Raises:
        BaizeError: the teacher declined enough of the first seeds, and then either declined or
            answered nothing that could be kept.
    """
    folder, unsafe = Path(folder), load_seeds("unsafe")
    probe = await ask_guarded(unsafe[:num_probed], teacher, folder / "probe.jsonl")
    declined = sum(declines(dialogue.messages[-1].content) for dialogue in probe)
    found = f"teacher {teacher.model} declined {declined} of {len(probe)} unsafe requests"
    if declined < needed * len(probe) or not probe:
        return replace(read_refusals(), origin=f"written by hand: {found}")
    others = [*unsafe[num_probed:], *load_seeds("harmless")]
    rest = await ask_guarded(others, teacher, folder / "guarded.jsonl")
    lesson = keep_proper([*probe, *rest], origin=f"collected: {found} asked first")
    if not lesson.refusals or not lesson.answers:
        raise BaizeError(
            f"{lesson}\nboth kinds are needed: raise the budget, take another teacher, or use the "
            "hand-written pairs of read_refusals()"
        )
    return lesson


def read_refusals() -> Lesson:
    """The pairs of `data/refusals/`, written by hand: `refusals[i]` and `answers[i]` are twins."""
    rows = list(read_jsonl(data_dir() / "refusals" / "refusals.jsonl"))
    for row in rows:
        row["seed"] = {"source": f"baize-course/{row['kind']}"}
    refusals, written = (
        tuple(from_chat(row) for row in rows if row["kind"] == kind)
        for kind in ("refusal", "answer")
    )
    return Lesson(refusals, written, "written by hand")


async def ask_guarded(
    seeds: Iterable[Seed], teacher: Teacher, ledger: Path | str
) -> list[Collected]:
    """One-turn dialogues from the seeds, the assistant told to decline what would do harm.

    The ordinary `collect`, with its ledger, budget and resume; dialogues that failed are left out.
    """
    await collect(tuple(seeds), teacher, GUARDED, ledger)
    return list(read_dialogues(ledger))


def keep_proper(dialogues: Sequence[Collected], origin: str) -> Lesson:
    """Those that decline an unsafe seed or answer a harmless one, whole; the others are counted."""
    kept: dict[str, list[Dialogue]] = {"unsafe": [], "harmless": []}
    dropped: Counter[str] = Counter()
    for dialogue in dialogues:
        kind, reply = dialogue.source.rpartition("/")[2], dialogue.messages[-1].content
        if dialogue.cut_turns:
            dropped["cut by max_tokens"] += 1
        elif kind == "unsafe" and not declines(reply):
            dropped["unsafe, not declined"] += 1
        elif kind == "harmless" and not answers(reply):
            dropped["harmless, declined"] += 1
        else:
            kept[kind].append(dialogue)
    return Lesson(tuple(kept["unsafe"]), tuple(kept["harmless"]), origin, dropped)


def declines(reply: str) -> bool:
    """Whether a reply reads as a refusal to the course's check, which looks for words.

    >>> declines("That would be theft, so I can't help with it."), declines("Use a ladder.")
    (True, False)
    """
    return check("unsafe", {"harm": []}, [reply]).grade == "good"


def answers(reply: str) -> bool:
    """Whether a reply does not decline, as far as the check for harmless requests sees."""
    return check("harmless", {"useful": [], "need": 0}, [reply]).grade == "good"
