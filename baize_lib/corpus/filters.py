"""From a ledger to a training set: filter with every drop counted, split without leaks, export.

    filtered = apply_filters(read_dialogues(run.ledger, statuses=None))
    filtered.rows()                              # what each filter took, in order
    filtered.cost()                              # USD and tokens per *accepted* dialogue
    export(run, filtered)                        # corpus/train.jsonl, validation.jsonl, card.json

A filter is a named function that says True for "drop". They run in the order of `FILTERS`, and a
dialogue is charged to the first that drops it. What was paid for dropped and failed dialogues
belongs to the price of the accepted ones.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from baize_lib.corpus.defects import defects_for
from baize_lib.dialogue import Dialogue
from baize_lib.teacher.prices import Price, Usage
from baize_lib.text import near_duplicates, words

__all__ = [
    "FILTERS",
    "default_filters",
    "whole_turns",
    "Filtered",
    "apply_filters",
    "opening",
    "prompt_matcher",
    "asks_a_prompt",
]


NO_USAGE = Usage()
Filter = Callable[[Dialogue], Any]  # truthy: drop the dialogue


def default_filters(language: str = "en") -> dict[str, Filter]:
    """The filters used unless others are given, in order; name -> function.

    Refusals stay: for an unsafe request a refusal is the right answer. So do short replies and
    replies that ask back; add their `DEFECTS` entry to drop them.

    Raises:
        BaizeError: a language the course does not speak.
    """
    names = (
        "failed", "role_order", "empty_turn", "dangling_tag", "both_voices", "broken_characters",
        "cut_reply", "loop", "question_repeated", "reply_repeated", "as_an_ai", "personal_data",
        "other_language",
    )  # fmt: skip
    checks = defects_for(language)
    return {name: checks[name] for name in names}


FILTERS = default_filters()


def whole_turns(dialogue: Dialogue) -> Dialogue:
    """The dialogue up to its first reply cut by `max_tokens`: a cut reply teaches to stop midway.

    Map it over dialogues before filtering, to keep the turns before the cut.
    """
    cut = getattr(dialogue, "cut_turns", ())
    if not cut or min(cut) == 0:
        return dialogue
    has_system = dialogue.messages[0].role == "system"
    kept = dialogue.messages[: 2 * min(cut) + has_system]
    return replace(dialogue, messages=kept, cut_turns=())


@dataclass(frozen=True, slots=True)
class Filtered:
    """What `apply_filters` kept, and where the rest went.

    Attributes:
        dropped: filter -> dialogues charged to it, in the order the filters ran, zeros included.
        examples: filter -> the first three dialogues it dropped.
        usage, cost_usd: tokens and USD of everything seen, dropped and failed included.
    """

    kept: list[Dialogue]
    dropped: Counter[str]
    examples: dict[str, list[Dialogue]]
    usage: Usage = NO_USAGE
    cost_usd: float = 0.0

    @property
    def num_seen(self) -> int:
        return len(self.kept) + self.dropped.total()

    def rows(self) -> list[dict[str, Any]]:
        """One row a filter: how many it dropped, their share of all, how many were left."""
        left, rows = self.num_seen, []
        for name, dropped in self.dropped.items():
            left -= dropped
            share = dropped / max(self.num_seen, 1)
            rows.append({"filter": name, "dropped": dropped, "share": share, "left": left})
        return rows

    def cost(self, shadow: Price | None = None) -> dict[str, Any]:
        """Dialogues seen and accepted, USD and tokens for each accepted one.

        Args:
            shadow: also what the same tokens would have cost at this price, where the teacher
                was free.
        """
        accepted = len(self.kept)
        row: dict[str, Any] = {
            "seen": self.num_seen, "accepted": accepted, "usd": self.cost_usd,
            "usd_per_1000_accepted": _per(1000 * self.cost_usd, accepted),
            "tokens": self.usage.total, "tokens_per_accepted": _per(self.usage.total, accepted),
        }  # fmt: skip
        if shadow:
            usd = shadow.cost(self.usage)
            row |= {"shadow_price": shadow.model, "shadow_usd": usd,
                    "shadow_usd_per_1000_accepted": _per(1000 * usd, accepted)}  # fmt: skip
        return row


def _per(amount: float, count: int) -> float | None:
    return amount / count if count else None


def apply_filters(
    dialogues: Iterable[Dialogue],
    filters: dict[str, Filter] = FILTERS,
    *,
    near_duplicate: float | None = 0.7,
) -> Filtered:
    """Drop what a filter names; each dropped dialogue is charged to the first filter that fires.

    Args:
        near_duplicate: last, drop what resembles an earlier kept dialogue this much (Jaccard
            similarity of first question and reply, 0 to 1); None keeps them.
    """
    kept: list[Dialogue] = []
    dropped = Counter(dict.fromkeys(filters, 0))
    examples: dict[str, list[Dialogue]] = defaultdict(list)
    usage, cost_usd = NO_USAGE, 0.0

    def drop(name: str, dialogue: Dialogue) -> None:
        dropped[name] += 1
        if len(examples[name]) < 3:
            examples[name].append(dialogue)

    for dialogue in dialogues:
        usage += getattr(dialogue, "usage", NO_USAGE)
        cost_usd += getattr(dialogue, "cost_usd", 0.0)
        reason = next((name for name, fires in filters.items() if fires(dialogue)), None)
        if reason:
            drop(reason, dialogue)
        else:
            kept.append(dialogue)
    if near_duplicate is not None:
        dropped["near_duplicate"] = 0
        repeats = {i for g in near_duplicates(map(opening, kept), near_duplicate) for i in g[1:]}
        for i in sorted(repeats):
            drop("near_duplicate", kept[i])
        kept = [dialogue for i, dialogue in enumerate(kept) if i not in repeats]
    return Filtered(kept, dropped, dict(examples), usage, cost_usd)


def opening(dialogue: Dialogue) -> str:
    """The first question and reply: what near-duplicates are compared by."""
    return "\n".join((*dialogue.by("user")[:1], *dialogue.by("assistant")[:1]))


def asks_a_prompt(prompts: Iterable[str], threshold: float = 0.7) -> Filter:
    """A filter: some question of the dialogue repeats one of the evaluation prompts."""
    match = prompt_matcher(prompts, threshold)
    return lambda dialogue: any(map(match, dialogue.by("user")))


def prompt_matcher(
    prompts: Iterable[str], threshold: float = 0.7
) -> Callable[[str], tuple[str, float] | None]:
    """A function that says which prompt a text repeats, if any, and how closely (0 to 1).

    Compared are the sets of content words: their Jaccard similarity, or 1 where a text holds every
    content word of the prompt and at most as many others.
    """
    prompts = list(prompts)
    find = _matcher([_content_words(prompt) for prompt in prompts], threshold, _repeats)

    def match(text: str) -> tuple[str, float] | None:
        found = find(_content_words(text))
        return (prompts[found[0]], found[1]) if found else None

    return match


def _matcher(
    sets: list[frozenset], threshold: float, likeness: Callable[[frozenset, frozenset], float]
) -> Callable[[frozenset], tuple[int, float] | None]:
    """A function from a set to (position, likeness) of the most alike of `sets`, if any is.

    Exact and quick: a set of Jaccard similarity t with another of n members holds one at least of
    any (1 - t) n + 1 of them, so each is looked for under its rarest (prefix filtering; Chaudhuri,
    Ganti & Kaushik 2006).
    """
    commonness = Counter(member for members in sets for member in members)
    under: dict[Any, list[int]] = defaultdict(list)
    for i, members in enumerate(sets):
        rarest = sorted(members, key=lambda member: (commonness[member], member))
        for member in rarest[: int((1 - threshold) * len(members)) + 1]:
            under[member].append(i)

    def find(wanted: frozenset) -> tuple[int, float] | None:
        near = {i for member in wanted if member in under for i in under[member]}
        value, i = max(((likeness(sets[i], wanted), -i) for i in near), default=(0.0, 0))
        return (-i, value) if value >= threshold else None

    return find


def _jaccard(one: frozenset, other: frozenset) -> float:
    shared = len(one & other)
    return shared / (len(one) + len(other) - shared)


def _repeats(prompt: frozenset, said: frozenset) -> float:
    return 1.0 if prompt <= said and len(said) <= 2 * len(prompt) else _jaccard(prompt, said)


def _runs(text: str) -> frozenset[tuple[str, ...]]:
    said = words(text)
    return frozenset(zip(said, said[1:], said[2:], strict=False)) or frozenset({said})


# Words that say little about what a question is about; one Chinese character is one word.
_FUNCTION_WORDS = frozenset(
    words(
        "a an the of and to in is are was were be been do does did can could will would should may "
        "i me my you your we our it its this that these those what which who when where why how "
        "what's for with on at by from as or if so please tell explain there about into not have "
        "has had 的是了吗呢吧啊哪什么怎样如何请一个在有和与我你您它他她们可以能会这那为解释告诉说"
    )
)


def _content_words(text: str) -> frozenset[str]:
    said = frozenset(words(text))
    return said - _FUNCTION_WORDS or said
