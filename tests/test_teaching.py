"""What teachers and learners read beside the notebooks: the glossary, the timetable, the slides."""

import itertools
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from baize_lib.course.cli import app

ROOT = Path(__file__).resolve().parent.parent
EVERY = sorted((ROOT / "notebooks").rglob("[0-9]*.ipynb"))
NOTEBOOKS = [path for path in EVERY if "zh" not in path.parts]


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
    assert len(shown) >= 10
    pictures = dict(re.findall(r"!\[(.+)\]\(\S*/figures/(\w+)\.png\)", text))
    assert shown <= set(pictures.values())
    assert page.count("<section>") == text.count("\n---\n")
    alts = re.findall(r'<img src="data:image/png;base64,[^"]{99,}" alt="([^"]+)"', page)
    assert len(alts) == page.count("<img") >= len(shown)
    assert not re.search(r"""(src|href|url)[=(]["']?(https?:)?//""", page)


# ---- The folder for teachers

TEACHERS = sorted((ROOT / "instructor").rglob("*.md"))


def timetables():
    """Each timetable: (minute of the day, what, minutes it takes) of each row."""
    text = (ROOT / "instructor" / "README.md").read_text(encoding="utf-8")
    for table in re.findall(r"\| at \|.*\n\|.*\n((?:\|.*\n)+)", text):
        rows = [[cell.strip() for cell in row.split("|")[1:4]] for row in table.splitlines()]
        hours = [[*map(int, at.split(":"))] for at, *_ in rows]
        yield [(60 * h + m, what, int(takes or 0))
               for (h, m), (_, what, takes) in zip(hours, rows, strict=True)]  # fmt: skip


def test_a_timetable_adds_up():
    tables = list(timetables())
    assert len(tables) == 3
    for rows in tables:
        for (at, what, takes), (then, *_) in itertools.pairwise(rows):
            assert at + takes == then, what
        assert rows[-1][1] == "end"


def test_each_timetable_gives_every_notebook_its_time_and_the_main_line_three_hours():
    half_day, *evenings = ({what: takes for _, what, takes in rows} for rows in timetables())
    two_evenings = evenings[0] | evenings[1]
    for plan in (half_day, two_evenings):
        slots = {what.split()[1]: t for what, t in plan.items() if what.startswith("notebook")}
        assert list(slots) == ["00", "01", "02", "03", "04", "05", "06"]
        assert sum(slots.values()) <= 180
        cards = {path.stem[:2]: minutes(path) for path in NOTEBOOKS if path.stem[:2] in slots}
        assert all(abs(slots[n] - cards[n]) <= 2 for n in slots), cards


def minutes(path):
    """A learner's minutes with the exercises, as the notebook's card has them."""
    card = re.search(r"\| your time \| (\d+) minutes, and (\d+) for the exercises", prose(path))
    return sum(map(int, card.groups()))


def test_the_quiz_has_ten_questions_with_an_answer_each():
    text = (ROOT / "instructor" / "quiz.md").read_text(encoding="utf-8")
    assert re.findall(r"^\*\*(\d+)\.\*\*", text, re.MULTILINE) == [str(n) for n in range(1, 11)]
    parts = re.split(r"^\*\*\d+\.\*\*", text, flags=re.MULTILINE)[1:]
    assert all(part.count("<details><summary>Answer</summary>\n\n") == 1 for part in parts)


@pytest.mark.parametrize("path", TEACHERS, ids=lambda path: path.name)
def test_what_teachers_are_told_to_type_or_open_is_there(path):
    text = path.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#:]+)", text):
        assert (path.parent / target).exists(), target
    known = {command.name for command in app.registered_commands}
    assert set(re.findall(r"[`/]baize ([a-z]+)", text)) <= known
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"`make ([a-z]+)", text):
        assert f"\n{target}:" in makefile, target
    library = "\n".join(p.read_text("utf-8") for p in (ROOT / "baize_lib").rglob("*.py"))
    for variable in re.findall(r"BAIZE_[A-Z]+", text):
        assert variable in library, variable


def test_every_notebook_has_a_part_in_what_goes_wrong():
    text = (ROOT / "instructor" / "steps.md").read_text(encoding="utf-8")
    main = [path for path in NOTEBOOKS if path.parent.name == "notebooks"]
    named = re.findall(r"^## (\d\d)", text, re.MULTILINE)
    assert named == sorted({path.stem[:2] for path in main if path.stem[0].isdigit()})


@pytest.mark.parametrize("name", ["05_qualitative_evaluation", "bonus/08_refusals"])
def test_hard_prompts_are_announced_before_they_are_shown(name):
    said = prose(ROOT / "notebooks" / f"{name}.ipynb")
    assert 0 < said.index("**Content note.**") < said.index("\n## ")


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


@pytest.mark.parametrize("path", EVERY, ids=lambda path: path.stem)
def test_the_terms_that_a_notebook_links_to_are_there(path):
    known = {anchor(f"{english} · {chinese}") for english, chinese, _ in entries()}
    for file, term in re.findall(r"\]\(([./]*glossary\.md)(?:#([^)]*))?\)", prose(path)):
        assert (path.parent / file).is_file()
        assert not term or term in known, term
