"""What teachers and learners read beside the notebooks: the glossary, the timetable, the slides."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").rglob("[0-9]*.ipynb"))


def prose(path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return "\n\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")


# ---- The slides


def test_the_slides_have_the_notebooks_figures_with_their_texts_and_need_no_network(tmp_path):
    command = [sys.executable, ".ci/slides.py", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    page = (tmp_path / "slides.html").read_text(encoding="utf-8")
    text = (tmp_path / "slides.md").read_text(encoding="utf-8")
    main = [path for path in NOTEBOOKS if path.parent.name == "notebooks"]
    shown = {
        name
        for path in main
        for name in re.findall(r'plots\.show\([^"]*?\\"(\d\d_\w+)\\"', path.read_text("utf-8"))
        if (ROOT / "figures" / f"{name}.png").is_file()
    }
    assert len(shown) > 10
    pictures = dict(re.findall(r"!\[(.+)\]\(\S*/figures/(\w+)\.png\)", text))
    assert shown <= set(pictures.values())
    assert page.count("<section>") == text.count("\n---\n")
    alts = re.findall(r'<img src="data:image/png;base64,[^"]{99,}" alt="([^"]+)"', page)
    assert len(alts) == page.count("<img") >= len(shown)
    assert not re.search(r"""(src|href|url)[=(]["']?(https?:)?//""", page)


# ---- The glossary

WORDS = """
seed, random seed, teacher, student, self-chat, strategy, transcript, turns, rewritten, dialogue,
turn, call, corpus, adapter, loss mask, first attempt, tier, run, layout, base, own layout, tuned,
nat, epoch, logits, alpha, optimizer, greedy, dropout, p95, checkpoint, bfloat16, temperature,
token, prompt, fine-tuning, lora, rank, end token, defect, median, jaccard index, table of calls,
grammar, look, power, cluster, ablation, arm, model card, chat template, gguf, receipt
"""


def entries():
    """(English term, Chinese term, paragraphs below) of each heading."""
    text = (ROOT / "notebooks" / "glossary.md").read_text(encoding="utf-8")
    for part in text.split("\n## ")[1:]:
        heading, *paragraphs = [" ".join(p.split()) for p in part.strip().split("\n\n")]
        english, _, chinese = heading.partition(" · ")
        yield english, chinese, paragraphs


def anchor(heading):
    """The address a heading gets on GitHub."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("entry", entries(), ids=lambda entry: entry[0])
def test_a_term_is_explained_in_two_english_sentences_and_in_chinese(entry):
    english, chinese, (told, zh) = entry
    assert re.fullmatch(r"[ -~]+", english)
    assert re.search(r"[\u4e00-\u9fff]", chinese)
    assert len(re.findall(r"[.]( |$)", re.sub(r"llama\.cpp", "", told))) == 2
    assert re.search(r"[\u4e00-\u9fff]", zh) and zh.endswith("。")


def test_the_glossary_has_every_word_of_the_course_once_in_order():
    terms = [english.casefold() for english, *_ in entries()]
    assert terms == sorted(set(terms))
    assert {word.strip() for word in WORDS.split(",")} <= set(terms)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_terms_that_a_notebook_links_to_are_there(path):
    known = {anchor(f"{english} · {chinese}") for english, chinese, _ in entries()}
    for file, term in re.findall(r"\]\(([./]*glossary\.md)(?:#([^)]*))?\)", prose(path)):
        assert (path.parent / file).is_file()
        assert not term or term in known, term
