"""The course runner: progress, a receipt from the files of a run, failures that lose nothing."""

import asyncio
import json
import re
from datetime import timedelta

import nbformat
import pytest
from typer.testing import CliRunner

from baize_lib.config import BaizeError
from baize_lib.course.cli import app
from baize_lib.course.exercises import check_exercise
from baize_lib.course.receipt import _hash, check_receipt, write_receipt
from baize_lib.course.runner import (
    COURSE,
    ROOT,
    _chosen,
    _glossary,
    _run_all,
    execute,
)
from baize_lib.course.tiers import current_tier, open_run
from baize_lib.evaluation.prompts import load_prompts
from baize_lib.files import template, write_atomic, write_jsonl
from baize_lib.teacher.calls import Call, Calls
from baize_lib.teacher.errors import Reply
from baize_lib.teacher.prices import Usage


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setenv("BAIZE_RUNS", str(tmp_path))
    monkeypatch.setenv("BAIZE_TIER", "ci")
    monkeypatch.delenv("BAIZE_RUN", raising=False)
    return open_run(current_tier("ci"))


def notebook(path, *sources):
    cells = [nbformat.v4.new_markdown_cell("# A small notebook")]
    cells += [nbformat.v4.new_code_cell(source) for source in sources]
    path.parent.mkdir(exist_ok=True)
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    return path


def dialogue(name, status="ok"):
    said = [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Hello."}]
    seed = {"id": name, "text": name, "source": "test"}
    return {"id": name, "seed": seed, "messages": said, "status": status}


async def paid(run, purpose, usd, given, said):
    with Calls(run.calls_file).held() as calls:
        number = await calls.begin(Call(f"{purpose}{usd}", purpose), 1.0, 9999)
        usage = Usage(input=given, output=said)
        await calls.answered(number, Reply("Hello.", "stop", usage, cost_usd=usd))


def test_an_executed_notebook_is_tidy_and_has_a_page(run, tmp_path):
    path = notebook(tmp_path / "in" / "00_a.ipynb", "print('hello')", "1 + 1")
    execute(path, tmp_path / "out")
    written = json.loads((tmp_path / "out" / "00_a.ipynb").read_text(encoding="utf-8"))
    code = [cell for cell in written["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == [1, 2]
    assert all(cell["metadata"] == {} for cell in written["cells"])
    assert "hello" in (tmp_path / "out" / "00_a.html").read_text(encoding="utf-8")


def test_a_page_carries_the_pictures_of_its_text(run, tmp_path):
    path = notebook(tmp_path / "in" / "00_a.ipynb", "1")
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "badge.svg").write_text("<svg/>", encoding="utf-8")
    book = nbformat.read(path, 4)
    book.cells[0].source += "\n\n[![A badge](../figures/badge.svg)](https://example.org)"
    nbformat.write(book, path)
    execute(path, tmp_path / "out")
    page = (tmp_path / "out" / "00_a.html").read_text(encoding="utf-8")
    assert '<img alt="A badge" src="data:image/svg+xml;base64,PHN2Zy8+"' in page
    assert "data:image" not in (tmp_path / "out" / "00_a.ipynb").read_text(encoding="utf-8")


def test_a_notebook_that_fails_is_kept_up_to_its_error_and_stops_the_course(run, tmp_path, capsys):
    first = notebook(tmp_path / "in" / "00_a.ipynb", "print('before')", "1 / 0")
    second = notebook(tmp_path / "in" / "01_b.ipynb", "print('never')")
    with pytest.raises(BaizeError, match=r"00_a\.ipynb stopped: ZeroDivisionError"):
        _run_all([first, second], tmp_path / "out")
    assert "[1/2] 00_a" in capsys.readouterr().out
    assert "before" in (tmp_path / "out" / "00_a.ipynb").read_text(encoding="utf-8")
    assert not (tmp_path / "out" / "01_b.ipynb").exists()


def test_the_receipt_adds_up_all_that_was_paid_whatever_for(run):
    asyncio.run(paid(run, "self-chat", 0.75, 200, 100))
    asyncio.run(paid(run, "judge", 0.25, 100, 50))
    write_jsonl(run.self_chat, [dialogue("a"), dialogue("b"), dialogue("c", "failed")])
    write_atomic(run.corpus_dir / "card.json", json.dumps({"kept": 1}))
    card = {"num_tokens": 1200, "seconds": 6.0, "loss_before": 2.0, "loss_after": 1.5}
    write_atomic(run.adapter_dir / "baize_run.json", json.dumps(card))
    printed = write_receipt(run)
    for expected in (
        "2 finished of 3, 1 kept", "spent, self-chat  $0.7500, 200 tokens in, 100 out",
        "spent, judge      $0.2500", "spent             $1.0000",
        "1,200 tokens in 6 s", "2.000 before, 1.500 after", "at gpt-3.5-turbo  $0.0009 (2023-03)",
    ):  # fmt: skip
        assert expected in printed


def test_the_receipt_of_an_empty_run_says_what_has_not_run(run):
    printed = write_receipt(run)
    assert "notebook 02 has not run" in printed
    assert "notebook 04 has not run" in printed


@pytest.fixture
def handed_in(run, tmp_path):
    """A finished run, small, and its receipt.json."""
    asyncio.run(paid(run, "self-chat", 0.75, 200, 100))
    write_jsonl(run.self_chat, [dialogue("a"), dialogue("b")])
    write_atomic(run.corpus_dir / "card.json", json.dumps({"kept": 2, "split": {"seed": 3}}))
    card = {"num_tokens": 1200, "seconds": 6.0, "loss_before": 2.0, "loss_after": 1.5}
    card["settings"] = {"seed": 7}
    write_atomic(run.adapter_dir / "baize_run.json", json.dumps(card))
    prompt = load_prompts(category="fact", origin="article", language="en")[0]
    line = {"prompt": prompt.id, "prompt_hash": prompt.hash, "turn": 0, "attempt": 1, "seed": 0}
    line |= {"model": "tuned", "adapter": "a", "text": "The capital of Tanzania is Dodoma."}
    line |= {"layout": "baize", "sampling": {}, "stopped_by": "end", "num_tokens": 8}
    write_jsonl(run.answers_file, [line])
    check_exercise("03-9", 12, expected=12)
    write_receipt(run)
    return tmp_path / "course" / "receipt.json"


def rewritten(path, **changed):
    """The receipt with other contents, and the hash of before or one that fits them."""
    card = json.loads(path.read_text(encoding="utf-8")) | changed
    path.write_text(json.dumps(card), encoding="utf-8")
    return path


def test_a_receipt_holds_what_the_run_did_and_agrees_with_it(handed_in):
    card = json.loads(handed_in.read_text(encoding="utf-8"))
    assert card["tier"] == {"name": "ci", "teacher": "smollm2-135m", "student": "smollm2-135m"}
    assert card["random_seeds"] == {"split": 3, "training": 7, "answers": [0]}
    assert card["spent"] == [["self-chat", 0.75, 200, 100]] and card["usd"] == 0.75
    assert (card["trained"]["loss_before"], card["trained"]["loss_after"]) == (2.0, 1.5)
    assert card["verdicts on the article's questions"] == {"tuned": {"good": 1}}
    assert list(card["exercises"]) == ["03-9"]
    assert card["versions"]["python"] and card["versions"]["torch"]
    assert "1 passed 03-9" in check_receipt(handed_in)


def test_a_number_changed_by_hand_is_found_even_when_the_hash_was_made_anew(handed_in):
    with pytest.raises(BaizeError, match="was changed after it was written"):
        check_receipt(rewritten(handed_in, usd=0.0))
    card = json.loads(handed_in.read_text(encoding="utf-8"))
    del card["hash"]
    with pytest.raises(BaizeError, match="do not agree in usd:"):
        check_receipt(rewritten(handed_in, hash=_hash(card)))


@pytest.mark.parametrize(
    "torn",
    ["", "[]", "null", "{}", '{"hash": 1}', '{"hash": "", "run": "a", "files": [1]}', "\x00"],
)
def test_what_is_no_receipt_is_named(tmp_path, torn):
    (tmp_path / "receipt.json").write_text(torn, encoding="utf-8")
    with pytest.raises(BaizeError, match=r"receipt\.json is no receipt"):
        check_receipt(tmp_path / "receipt.json")


def test_a_run_changed_after_its_receipt_is_found_by_file_and_by_call(handed_in, run):
    write_atomic(run.corpus_dir / "train.jsonl", "")
    with pytest.raises(BaizeError, match=r"do not agree in corpus/train\.jsonl:"):
        check_receipt(handed_in)
    (run.corpus_dir / "train.jsonl").unlink()
    asyncio.run(paid(run, "judge", 0.0, 0, 0))
    with pytest.raises(BaizeError, match=r"calls\.sqlite, spent"):
        check_receipt(handed_in)
    (run.path / "exercises.json").write_text("{}", encoding="utf-8")
    with pytest.raises(BaizeError, match=r"calls\.sqlite, exercises, spent"):
        check_receipt(handed_in)


@pytest.mark.parametrize("torn", ["{", "1", "\x00"])
def test_a_damaged_file_of_the_run_is_named(handed_in, run, torn):
    (run.adapter_dir / "baize_run.json").write_text(torn, encoding="utf-8")
    with pytest.raises(BaizeError, match=r"baize_run\.json is damaged"):
        check_receipt(handed_in)
    run.calls_file.write_text(torn, encoding="utf-8")
    (run.adapter_dir / "baize_run.json").write_text("{}", encoding="utf-8")
    with pytest.raises(BaizeError, match=r"calls\.sqlite cannot be read .*: put it back"):
        check_receipt(handed_in)


def test_a_receipt_without_its_run_is_not_taken_on_trust(handed_in, run, tmp_path, monkeypatch):
    moved = tmp_path / "elsewhere"
    run.path.rename(moved)
    with pytest.raises(BaizeError, match="run 'ci' is not in .*: name its folder with --run"):
        check_receipt(handed_in)
    with pytest.raises(BaizeError, match="run 'nowhere' is not in"):
        check_receipt(handed_in, "nowhere")
    monkeypatch.setenv("BAIZE_RUNS", str(tmp_path / "runs"))
    monkeypatch.chdir(tmp_path)
    assert "agrees" in check_receipt(handed_in, moved)
    assert "agrees" in check_receipt(handed_in, "elsewhere")


def test_a_receipt_of_an_unfinished_run_says_which_notebook_is_missing(handed_in, run):
    run.answers_file.unlink()
    write_receipt(run)
    with pytest.raises(BaizeError, match="true to its run, but notebook 05 has not run"):
        check_receipt(handed_in)
    told = CliRunner().invoke(app, ["check", str(handed_in)])
    assert told.exit_code == 1 and "notebook 05" in str(told.exception)


def test_the_command_writes_a_receipt_and_checks_it(handed_in):
    before = handed_in.read_text(encoding="utf-8")
    handed_in.unlink()
    assert CliRunner().invoke(app, ["receipt", "--tier", "ci"]).exit_code == 0
    assert handed_in.read_text(encoding="utf-8") == before
    told = CliRunner().invoke(app, ["check", str(handed_in)])
    assert told.exit_code == 0 and "agrees with" in told.output


def test_a_page_needs_no_network_and_its_figures_keep_their_alt_text(run, tmp_path):
    figure = (
        "from baize_lib.course import plots\n"
        "plots.show(plots.bars({'a': 1}, title='t', unit='u'), 'x', 'One \"bar\" <b>')"
    )
    path = notebook(tmp_path / "in" / "00_a.ipynb", figure)
    execute(path, tmp_path / "out")
    page = (tmp_path / "out" / "00_a.html").read_text(encoding="utf-8")
    assert 'alt="One &quot;bar&quot; &lt;b&gt;"' in page or "alt='One \"bar\" &lt;b&gt;'" in page
    assert not re.findall(r"""(?:src|import|from)\s*=?\s*["'](?:https?:)?//[^"']+""", page)
    assert 'src=""' not in page


def test_a_page_links_to_pages_and_the_glossary_is_one(run, tmp_path):
    path = notebook(tmp_path / "in" / "00_a.ipynb", "1")
    book = nbformat.read(path, 4)
    book.cells[0].source += "\n[next](bonus/07_b.ipynb), [words](../glossary.md#lora), [it](a.py)"
    nbformat.write(book, path)
    execute(path, tmp_path / "out")
    page = (tmp_path / "out" / "00_a.html").read_text(encoding="utf-8")
    linked = re.findall(r'href="([^"#][^"]*)"', page)
    assert linked == ["bonus/07_b.html", "../glossary.html#lora", "a.py"]
    assert "07_b.ipynb" in (tmp_path / "out" / "00_a.ipynb").read_text(encoding="utf-8")
    assert "低秩适配" in _glossary()


def test_the_index_escapes_what_notebooks_and_their_files_say():
    took = {"00_'><script>": timedelta(seconds=61)}
    page = template(ROOT / "baize_lib/course/index.jinja").render(
        took=took, receipt="<b>receipt</b>"
    )
    assert "<script" not in page and "&lt;script&gt;</a>" in page
    assert "&lt;b&gt;receipt" in page
    assert "0:01:01" in page


def test_an_installed_package_says_that_the_notebooks_are_in_the_clone(tmp_path):
    with pytest.raises(BaizeError, match="run this in a clone"):
        _chosen((), tmp_path)


def test_a_notebook_that_is_not_there_is_refused_with_those_there_are():
    with pytest.raises(BaizeError, match="no notebook '99': use one of 00_start_here"):
        _chosen(["99"], COURSE)
    assert [path.stem for path in _chosen(["00"], COURSE)] == ["00_start_here"]


def test_a_dead_kernel_is_told_as_what_it_mostly_is(run, tmp_path):
    path = notebook(tmp_path / "in" / "00_a.ipynb", "import os; os._exit(9)")
    with pytest.raises(BaizeError, match="memory was full"):
        execute(path, tmp_path / "out")
