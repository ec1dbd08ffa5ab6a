"""The course runner: progress, a receipt from the files of a run, failures that lose nothing."""

import json

import nbformat
import pytest

from baize_lib.config import BaizeError, current_tier, open_run
from baize_lib.course.runner import Executed, _run_all, execute, index_page, main, receipt
from baize_lib.files import write_atomic, write_jsonl


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


def ledger_line(name, status="ok", usd=0.5):
    said = [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Hello."}]
    return {
        "id": name, "seed": {"id": name, "text": name, "source": "test"}, "messages": said,
        "strategy": "turns", "usage": {"input": 100, "cached_input": 0, "output": 50},
        "cost_usd": usd, "status": status, "reason": "", "attempt": 1,
    }  # fmt: skip


def test_an_executed_notebook_is_tidy_and_has_a_page(run, tmp_path):
    path = notebook(tmp_path / "in" / "00_a.ipynb", "print('hello')", "1 + 1")
    done = execute(path, tmp_path / "out", run)
    assert (done.title, done.error, done.usd) == ("A small notebook", "", 0.0)
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
    execute(path, tmp_path / "out", run)
    page = (tmp_path / "out" / "00_a.html").read_text(encoding="utf-8")
    assert '<img alt="A badge" src="data:image/svg+xml;base64,PHN2Zy8+"' in page
    assert "data:image" not in (tmp_path / "out" / "00_a.ipynb").read_text(encoding="utf-8")


def test_a_notebook_that_fails_is_kept_up_to_its_error_and_stops_the_course(run, tmp_path, capsys):
    first = notebook(tmp_path / "in" / "00_a.ipynb", "print('before')", "1 / 0")
    second = notebook(tmp_path / "in" / "01_b.ipynb", "print('never')")
    with pytest.raises(BaizeError, match=r"00_a\.ipynb stopped: ZeroDivisionError"):
        _run_all([first, second], tmp_path / "out", run)
    assert "[1/2] 00_a" in capsys.readouterr().out
    assert "before" in (tmp_path / "out" / "00_a.ipynb").read_text(encoding="utf-8")
    assert not (tmp_path / "out" / "01_b.ipynb").exists()


def test_the_receipt_adds_up_the_runs_files(run):
    write_jsonl(run.ledger, [ledger_line("a"), ledger_line("b"), ledger_line("c", "failed", 0.1)])
    write_atomic(run.corpus_dir / "card.json", json.dumps({"kept": 1}))
    card = {"num_tokens": 1200, "seconds": 6.0, "loss_before": 2.0, "loss_after": 1.5}
    write_atomic(run.adapter_dir / "baize_run.json", json.dumps(card))
    printed = receipt(run, 75)
    for expected in (
        "seeds             3", "2 finished, 1 kept, 1 dropped", "300 in, 150 out", "$1.1000",
        "gpt-3.5-turbo", "1,200 tokens in 6 s", "2.000 before, 1.500 after", "adapter",
        "wall time         1:15",
    ):  # fmt: skip
        assert expected in printed


def test_the_receipt_of_an_empty_run_says_what_has_not_run(run):
    printed = receipt(run, 0)
    assert "notebook 02 has not run" in printed
    assert "notebook 04 has not run" in printed


def test_the_index_escapes_what_notebooks_say():
    page = index_page([Executed("00_a", "<script>", 61, 0.5)], "<b>receipt</b>")
    assert "<script>" not in page
    assert "&lt;b&gt;receipt" in page
    assert "1:01" in page


def test_an_unknown_tier_ends_with_one_line_and_no_traceback(monkeypatch, capsys):
    monkeypatch.setenv("BAIZE_TIER", "desktop")
    assert main(["run"]) == 1
    assert "is not a tier" in capsys.readouterr().err
