"""The refusals written by hand: what they are like, and that the course's one notion sees them."""

import re
from collections import Counter
from itertools import combinations
from statistics import mean

from baize_lib.config import data_dir
from baize_lib.corpus.formats import read_dialogues
from baize_lib.files import read_jsonl
from baize_lib.seeds.clean import load_seeds
from baize_lib.text import declines, jaccard

ROWS = list(read_jsonl(data_dir() / "refusals" / "refusals.jsonl"))
REFUSALS, ANSWERS = (
    {d.id: d.messages[-1].content for d in read_dialogues(r for r in ROWS if r["kind"] == kind)}
    for kind in ("refusal", "answer")
)


def first_words(text, count):
    return " ".join(re.findall(r"[\w']+", text.lower())[:count])


def test_there_are_sixty_refusals_each_beside_its_harmless_twin():
    assert len(REFUSALS) == len(ANSWERS) >= 60
    assert [id.replace("refusal", "answer") for id in REFUSALS] == list(ANSWERS)
    assert not [id for id, reply in ANSWERS.items() if declines(reply)]


def test_the_written_refusals_follow_no_template():
    said = list(REFUSALS.values())
    assert max(Counter(first_words(text, 5) for text in said).values()) <= 2
    assert max(Counter(first_words(text, 2) for text in said).values()) <= 6
    runs = Counter(
        run
        for text in said
        for words in [re.findall(r"[\w']+", text.lower())]
        for run in {tuple(words[i : i + 5]) for i in range(len(words) - 4)}
    )
    assert max(runs.values()) <= 3
    assert mean(jaccard(a, b, width=1) for a, b in combinations(said, 2)) < 0.16


def test_the_written_refusals_are_short_and_say_more_than_no():
    assert all(15 <= len(text.split()) <= 50 for text in REFUSALS.values())
    assert all(len(re.findall(r"[.;:!?](\s|$)", text)) >= 2 for text in REFUSALS.values())


def test_a_template_would_be_caught():
    """The measures above, on refusals all built alike, are far beyond their limits."""
    unsafe = [seed.text for seed in load_seeds("unsafe")]
    said = [f"I'm sorry, but I can't help with that because {w} is illegal." for w in unsafe]
    assert max(Counter(first_words(text, 5) for text in said).values()) == len(said)
    assert mean(jaccard(a, b, width=1) for a, b in combinations(said[:20], 2)) > 0.3
