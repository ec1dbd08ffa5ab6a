"""notebooks/zh/: the same code and outputs as the English notebooks, and texts that keep up."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

from baize_lib.course import runner

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "notebooks"
ENGLISH = [*sorted(FOLDER.glob("[0-9]*.ipynb")), *sorted(FOLDER.glob("bonus/[0-9]*.ipynb"))]
FIRST = "00_start_here.ipynb"


def chinese(path):
    return FOLDER / "zh" / path.relative_to(FOLDER)


def cells(path):
    return json.loads(path.read_text(encoding="utf-8"))["cells"]


def texts(path):
    """(number, text) of each text cell."""
    return [
        (number, "".join(cell["source"]))
        for number, cell in enumerate(cells(path))
        if cell["cell_type"] == "markdown"
    ]


def links(text):
    text = re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.DOTALL)
    return re.findall(r"\]\(([^)\s#]+)", text)


def narrow(text):
    """Places set as English is: tight against Latin letters, half-width punctuation, wrapped."""
    han, latin = r"[\u4e00-\u9fff]", r"[A-Za-z0-9]"
    plain = re.sub(r"```.*?```|<[^>]+>|\]\([^)]*\)", " ", text, flags=re.DOTALL)
    outside = re.sub(r"“[^”]*”", "“”", re.sub(r"`[^`\n]+`", "`", plain))  # the article's own words
    return [
        *re.findall(f".?{han}{latin}.?|.?{latin}{han}.?|.?{han}`|`{han}.?", outside),
        *re.findall(rf".?{han}[,;:?!(].?|.?[,;:?!)]{han}.?|.?{han}\.(?:\s|$)", outside),
        *re.findall(rf"{han}\n{han}", outside),
    ]


def loose_stars(text):
    """Stars of bold type that a reader would see as stars."""
    shown = MarkdownIt("commonmark").render(text)
    shown = re.sub(r"<code.*?</code>", "", shown, flags=re.DOTALL)
    return re.findall(r".{,9}\*\*.{,9}", shown)


def check(folder):
    """What .ci/chinese.py says of a copy of the course, line by line."""
    command = [sys.executable, ".ci/chinese.py", "check"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, encoding="utf-8")
    assert done.returncode in (0, 1), done.stderr
    return [line for line in done.stdout.splitlines() if line]


def test_every_notebook_has_its_chinese_one():
    missing = [path.stem for path in ENGLISH if not chinese(path).is_file()]
    assert not missing, f"see CONTRIBUTING, The Chinese edition: {missing}"
    extra = {*FOLDER.glob("zh/**/*.ipynb")} - set(map(chinese, ENGLISH))
    assert not extra, "these have no English notebook"


def test_no_chinese_notebook_is_behind_its_english_one():
    behind = check(ROOT)
    assert not behind, "\n".join(behind)


@pytest.mark.parametrize("path", ENGLISH, ids=lambda path: path.stem)
class TestNotebook:
    def test_code_outputs_and_counts_are_the_english_ones(self, path):
        kept = ("cell_type", "id", "source", "outputs", "execution_count")
        ours, theirs = (
            [{k: c.get(k) for k in kept} for c in cells(p) if c["cell_type"] == "code"]
            for p in (path, chinese(path))
        )
        assert ours == theirs

    def test_every_text_is_in_chinese(self, path):
        for number, text in texts(chinese(path)):
            told = re.sub(r"```.*?```|`[^`\n]*`|<[^>]+>", "", text, flags=re.DOTALL)
            here = f"cell {number}: {text[:60]}"
            assert len(re.findall(r"[\u4e00-\u9fff]", told)) >= 2, here
            assert "（此处待译。）" not in text, here

    def test_solutions_tables_and_folds_are_those_of_the_english_cell(self, path):
        shapes = (r"```.*?```", r"^\|[-|:]+\|$", r"</?details>", r"^#+ ")
        for (number, ours), (_, theirs) in zip(texts(path), texts(chinese(path)), strict=True):
            for shape in shapes:
                wanted = re.findall(shape, ours, re.DOTALL | re.MULTILINE)
                found = re.findall(shape, theirs, re.DOTALL | re.MULTILINE)
                assert found == wanted, f"cell {number}: {theirs[:60]}"

    def test_each_link_leads_where_the_english_one_does_in_chinese_if_there_is_one(self, path):
        def leads(link, folder):
            if "://" in link:
                return re.sub("(/blob/[^/]+/notebooks/)zh/", r"\1", link)
            target = (folder / link).resolve().relative_to(FOLDER.parent).as_posix()
            return target.replace("notebooks/zh/", "notebooks/")

        for (number, ours), (_, theirs) in zip(texts(path), texts(chinese(path)), strict=True):
            wanted = {leads(link, path.parent) for link in links(ours)}
            found = {leads(link, chinese(path).parent) for link in links(theirs)}
            assert wanted <= found, f"cell {number}: {theirs[:60]}"
            for link in links(theirs):
                target = (chinese(path).parent / link).resolve()
                if "://" not in link and target.suffix == ".ipynb":
                    assert "zh" in target.parts, f"cell {number}: {link} leads to the English one"

    def test_links_and_pictures_are_there_in_both_languages(self, path):
        for edition in (path, chinese(path)):
            for number, text in texts(edition):
                for link in links(text):
                    there = "://" in link or (edition.parent / link).exists()
                    assert there, f"{edition}, cell {number}: {link}"

    def test_chinese_is_set_as_chinese_is(self, path):
        for number, text in texts(chinese(path)):
            here = f"cell {number}: {text[:40]}"
            assert not narrow(text), here
            assert not loose_stars(text), here


# ---- The pages beside the notebooks

PAGES = {ROOT / "README.md": ROOT / "README.zh.md"}
PAGES |= {p: p.parent / "zh" / p.name for p in sorted((ROOT / "instructor").glob("*.md"))}


def names(path):
    """What a page names, whatever its language; of each row of its tables, the numbers."""
    text = path.read_text(encoding="utf-8")
    fences = re.findall(r"```.*?```", text, re.DOTALL)
    commands = [re.sub(r" *#.*", "", line) for fence in fences for line in fence.splitlines()]
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    for zh, en in (("README.zh.md", "README.md"), ("/zh/", "/")):
        prose = prose.replace(zh, en)
    return {
        "commands": commands,
        "code": sorted(set(re.findall(r"`[^`]+`", prose))),
        "numbers": sorted(set(re.findall(r"\d+[.,:]\d[\d.,:]*\d|\d+[.,:]\d", prose))),
        "headings": re.findall(r"^#+ ", prose, re.MULTILINE),
        "rows": [
            sorted(re.findall(r"\d+", row)) for row in re.findall(r"^\|.*", prose, re.MULTILINE)
        ],
        "links": sorted({re.sub(r"^(\.\./)+", "", link) for link in links(prose)}),
    }


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
class TestPage:
    def test_in_both_languages_it_names_the_same_commands_numbers_and_notebooks(self, page):
        ours, theirs = names(page), names(PAGES[page])
        assert set(ours.pop("links")) <= set(theirs.pop("links"))
        for kind, named in ours.items():
            assert theirs[kind] == named, kind

    def test_its_links_lead_somewhere_with_the_heading_they_name(self, page):
        for edition in (page, PAGES[page]):
            prose = re.sub(r"```.*?```|`[^`\n]*`", "", edition.read_text("utf-8"), flags=re.DOTALL)
            for link in re.findall(r'(?:\]\(|src="|srcset=")([^)\s"]+)', prose):
                file, _, heading = link.partition("#")
                target = edition.parent / file if file else edition
                assert "://" in link or target.exists(), link
                if heading and "://" not in link:
                    headings = re.findall(r"^#+ (.*)", target.read_text("utf-8"), re.MULTILINE)
                    assert heading in map(anchor, headings), link

    def test_chinese_is_set_as_chinese_is(self, page):
        text = PAGES[page].read_text(encoding="utf-8")
        assert not narrow(text)
        assert not loose_stars(text)


def anchor(heading):
    """The address a heading gets on GitHub."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


# ---- The check can fail: tried on a copy


@pytest.fixture
def copy(tmp_path):
    for folder in ("notebooks", ".ci"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    assert check(tmp_path) == []
    return tmp_path


def change(path, number, **new):
    notebook = json.loads(path.read_text(encoding="utf-8"))
    notebook["cells"][number] |= new
    path.write_text(json.dumps(notebook, ensure_ascii=False), encoding="utf-8")


def write(folder):
    subprocess.run([sys.executable, ".ci/chinese.py", "write"], cwd=folder, check=True)


def test_one_english_sentence_changed_is_named_by_its_cell_and_not_forgotten_by_write(copy):
    english = copy / "notebooks" / FIRST
    number, text = texts(english)[2]
    change(english, number, source=text.replace("OK or FAIL", "yes or no"))
    begins = text.splitlines()[0]
    named = [f"00_start_here, cell {number} ({begins}): the English text has changed"]
    assert check(copy) == named
    before = texts(copy / "notebooks/zh" / FIRST)
    write(copy)
    assert check(copy) == named
    assert texts(copy / "notebooks/zh" / FIRST) == before


def test_an_output_or_a_line_of_code_that_differs_is_named_until_it_is_written(copy):
    english, cell = copy / "notebooks" / FIRST, cells(FOLDER / FIRST)[4]
    assert cell["cell_type"] == "code"
    for new in ({"source": "print(1)"}, {"outputs": []}, {"execution_count": 99}):
        change(english, 4, **new)
        assert len(check(copy)) == 1 and "00_start_here, cell 4" in check(copy)[0]
        write(copy)
        assert check(copy) == []


def test_a_render_writes_the_chinese_edition_too(copy, monkeypatch):
    def executed(paths, out):
        out.mkdir(parents=True, exist_ok=True)
        for path in paths:
            shutil.copy(path, out)
            change(out / path.name, 4, outputs=[])

    monkeypatch.setenv("BAIZE_RUNS", str(copy / "runs"))
    monkeypatch.setenv("BAIZE_RUN", "")
    monkeypatch.setenv("BAIZE_FIGURES", "")
    monkeypatch.setattr(runner, "ROOT", copy)
    monkeypatch.setattr(runner, "COURSE", copy / "notebooks")
    monkeypatch.setattr(runner, "_run_all", executed)
    runner.render_course(["00"])
    assert cells(copy / "notebooks/zh" / FIRST)[4]["outputs"] == []
    assert check(copy) == []


def test_a_new_english_cell_waits_for_its_chinese_one(copy):
    english = copy / "notebooks" / FIRST
    notebook = json.loads(english.read_text(encoding="utf-8"))
    new = {"cell_type": "markdown", "id": "new", "metadata": {}, "source": "One sentence more."}
    notebook["cells"].insert(5, new)
    english.write_text(json.dumps(notebook), encoding="utf-8")
    assert "its cells are not those of the English one" in check(copy)[0]
    before = texts(copy / "notebooks/zh" / FIRST)
    write(copy)
    assert check(copy) == [
        "00_start_here, cell 5 (One sentence more.): the English text has changed"
    ]
    after = texts(copy / "notebooks/zh" / FIRST)
    assert [text for _, text in after if "此处待译" not in text] == [text for _, text in before]


def test_given_texts_are_taken_into_the_cells_they_name(copy):
    def tool(*words):
        command = [sys.executable, ".ci/chinese.py", *words]
        done = subprocess.run(command, cwd=copy, capture_output=True, check=True)
        return done.stdout.decode("utf-8")

    english = copy / "notebooks" / FIRST
    number, text = texts(english)[2]
    change(english, number, source=text + " One sentence more.")
    waiting = tool("give", f"notebooks/{FIRST}")
    assert waiting.count("%%%% ") == 1 and "One sentence more." in waiting
    key = waiting.split()[1]
    (copy / "texts.md").write_text(f"%%%% {key}\n## 新的一句\n", encoding="utf-8")
    tool("take", f"notebooks/{FIRST}", "texts.md")
    assert check(copy) == []
    assert dict(texts(copy / "notebooks/zh" / FIRST))[number] == "## 新的一句"


def test_a_copy_with_an_address_of_its_own_is_not_behind(copy):
    for file in ("README.md", "instructor"):
        (shutil.copytree if file == "instructor" else shutil.copy)(ROOT / file, copy / file)
    command = [sys.executable, ".ci/badge.py", "someone/their-course"]
    subprocess.run(command, cwd=copy, check=True, capture_output=True)
    for path in ("notebooks/zh/" + FIRST, "instructor/zh/before.md"):
        assert "someone/their-course" in (copy / path).read_text("utf-8")
    assert check(copy) == []


def test_the_examples_in_the_tool_are_true():
    command = [sys.executable, "-m", "doctest", ".ci/chinese.py"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, encoding="utf-8")
    assert not done.returncode, done.stdout
