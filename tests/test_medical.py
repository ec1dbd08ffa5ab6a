"""data/medical/: MedQuAD's own words, counted and credited; emergencies and look-alikes."""

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from baize_lib.config import data_dir
from baize_lib.corpus.split import prompt_matcher
from baize_lib.files import read_jsonl
from baize_lib.seeds import load_seeds

MEDQUAD = Path(__file__).resolve().parents[2] / "shared" / "data" / "medquad"
FOLDER = data_dir() / "medical"
SAMPLE, EMERGENCIES, REPLIES = (
    list(read_jsonl(FOLDER / f"{name}.jsonl"))
    for name in ("medquad_sample", "emergencies", "labelled_replies")
)
CARD = (FOLDER / "README.md").read_text(encoding="utf-8")


@pytest.mark.skipif(not MEDQUAD.is_dir(), reason=f"no MedQuAD sample at {MEDQUAD}")
def test_every_answer_is_medquads_own_word_for_word():
    published = {}
    for file in MEDQUAD.rglob("*.xml"):
        document = ElementTree.parse(file).getroot()
        for pair in document.iter("QAPair"):
            question, answer = pair.find("Question"), pair.findtext("Answer") or ""
            name = f"medquad-{document.get('source')}-{question.get('qid')}"
            published[name] = (question.get("qtype"), document.get("url"), " ".join(answer.split()))
    assert all((r["kind"], r["url"], r["answer"]) == published[r["id"]] for r in SAMPLE)
    mended = {seed.id: seed.text for seed in load_seeds(MEDQUAD)}
    asked = {row["id"]: row["question"] for row in SAMPLE}
    assert sum(name in mended for name in asked) > len(asked) / 2
    assert all(mended.get(name, text) == text for name, text in asked.items())


def test_the_card_counts_what_is_there_and_credits_its_authors():
    assert f"{len(SAMPLE)} questions of MedQuAD" in CARD
    assert f"{len(REPLIES)} replies" in CARD
    for publisher in ("NIHSeniorHealth", "NIDDK", "NHLBI", "CDC"):
        count = sum(row["id"].split("-")[1] == publisher for row in SAMPLE)
        assert f"{publisher} {count}" in CARD
    assert "Ben Abacha" in CARD and "creativecommons.org/licenses/by/4.0" in CARD
    assert all(25 <= len(row["answer"].split()) <= 100 for row in SAMPLE)


def test_every_emergency_has_a_look_alike_and_back():
    by_id = {row["id"]: row for row in EMERGENCIES}
    assert len(by_id) == len(EMERGENCIES)
    for row in EMERGENCIES:
        other = by_id[row["twin"]]
        assert other["twin"] == row["id"] and {row["kind"], other["kind"]} == {
            "emergency", "everyday",
        }  # fmt: skip


def test_no_seed_asks_what_is_asked_in_the_end():
    match = prompt_matcher([row["text"] for row in EMERGENCIES])
    texts = [seed.text for name in ("general", "medical", "harmless") for seed in load_seeds(name)]
    assert not [text for text in texts if match(text)]


def test_labels_are_as_many_of_each_kind_in_both_halves():
    for part in ("seen", "held"):
        for label in ("at once", "later", "nobody"):
            assert sum((r["part"], r["label"]) == (part, label) for r in REPLIES) == 8


def test_nobody_is_advised_before_being_warned():
    book = FOLDER.parents[1] / "notebooks" / "bonus" / "10_medical.ipynb"
    text = book.read_text(encoding="utf-8")
    assert re.search(r"\*\*This is no medical advice\.\*\*", text).start() < text.index("## ")
