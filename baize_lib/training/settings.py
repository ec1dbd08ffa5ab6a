"""A training run as one YAML file, the same on one processor and on eight cards.

python -m baize_lib.training.fit run.yaml
accelerate launch --num_processes 8 -m baize_lib.training.fit run.yaml

base: huggyllama/llama-7b      # "smollm2-135m", a hub name or a folder
precision: bfloat16            # default auto
preset: 7B                     # the article's settings for that size; default ours
settings: {num_epochs: 2}      # any field of `Settings`, over the preset's
train: corpus/train.jsonl
validation: corpus/validation.jsonl
adapter: adapter               # the folder to write
shard: true                    # spread the base over the processes (FSDP)
"""

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from baize_lib.config import BaizeError
from baize_lib.models.shapes import ALL_LINEAR, ARTICLE_SHAPES, ARTICLE_TARGETS, Shape

__all__ = [
    "RunFile",
    "read_run_file",
    "TrainingSettings",
    "ARTICLE_SETTINGS",
    "Preset",
    "PRESETS",
    "preset_of",
]


@dataclass(frozen=True, slots=True)
class TrainingSettings:
    """How to train. The defaults suit the embedded model; `ARTICLE_SETTINGS` holds Baize's own.

    Attributes:
        dropout: of LoRA's input. On a CPU the article's 0.05 costs speed: masks to draw, and
            one micro-batch at a time.
        targets: names of the linear layers that get an adapter, or "all-linear".
        batch_size: dialogues per optimiser step.
        compute: the precision of training's products: "float32", "bfloat16", or "auto": the base's
            own, but bfloat16 on a CPU with instructions for it.
        micro_tokens: padded tokens computed at once; less saves memory and changes nothing else.
        max_length: tokens of one dialogue; longer ones are cut at a turn.
        loss_on: "replies", or "all" as in Baize v1.
        end_token: end each reply with the end token, which is learnt too; Baize v1 had none.
        warmup: optimiser steps until `lr` is reached, at most a tenth of all.
        schedule: "cosine" or "linear", both down to zero.
        checkpoint_every: optimiser steps between checkpoints; 0 for none.
    """

    rank: int = 8
    alpha: float = 16
    dropout: float = 0.0
    targets: tuple[str, ...] | str = ALL_LINEAR
    rslora: bool = False
    dora: bool = False
    lr: float = 1e-3
    num_epochs: int = 2
    batch_size: int = 8
    compute: str = "auto"
    micro_tokens: int = 1024
    max_length: int = 512
    loss_on: str = "replies"
    end_token: bool = True
    warmup: int = 100
    schedule: str = "cosine"
    max_grad_norm: float = 1.0
    seed: int = 0
    language: str = "en"
    gradient_checkpointing: bool = False
    checkpoint_every: int = 10


_ARTICLE = TrainingSettings(
    dropout=0.05, targets=ARTICLE_TARGETS, num_epochs=1, batch_size=64, micro_tokens=16_384,
    loss_on="all", schedule="linear", gradient_checkpointing=True, checkpoint_every=100,
)  # fmt: skip
ARTICLE_SETTINGS = {
    "7B": replace(_ARTICLE, lr=2e-4),
    "13B": replace(_ARTICLE, lr=1e-4, micro_tokens=8192),
    "30B": replace(_ARTICLE, lr=5e-5, micro_tokens=4096),
}


@dataclass(frozen=True, slots=True)
class Preset:
    """A model (on the hub or in `MODELS`), its shape, a precision, settings, and their source."""

    base: str
    shape: Shape
    precision: str
    settings: TrainingSettings
    source: str


_SMALL = TrainingSettings(lr=5e-4, num_epochs=2, batch_size=16, micro_tokens=4096)
_CONFIG = "shape from the model's config.json; the rate is ours, not tuned"
_ARTICLE_SOURCE = "Touvron et al. 2023, table 2; settings as the Baize paper and code give them"

PRESETS = {
    "135M": Preset(
        "smollm2-135m", Shape(576, 1536, 30, 9, 3, 49_152, tied=True), "float32",
        TrainingSettings(lr=1e-3, num_epochs=3, batch_size=4), "SmolLM2-135M-Instruct",
    ),
    "360M": Preset(
        "HuggingFaceTB/SmolLM2-360M-Instruct", Shape(960, 2560, 32, 15, 5, 49_152, tied=True),
        "auto", _SMALL, _CONFIG,
    ),
    "TinyLlama-1.1B": Preset(
        "TinyLlama/TinyLlama-1.1B-Chat-v1.0", Shape(2048, 5632, 22, 32, 4, 32_000), "auto",
        _SMALL, _CONFIG,
    ),
    "Llama-3.2-1B": Preset(
        "meta-llama/Llama-3.2-1B", Shape(2048, 8192, 16, 32, 8, 128_256, tied=True), "auto",
        _SMALL, _CONFIG,
    ),
    "Llama-3.2-3B": Preset(
        "meta-llama/Llama-3.2-3B", Shape(3072, 8192, 28, 24, 8, 128_256, tied=True), "auto",
        replace(_SMALL, lr=3e-4), _CONFIG,
    ),
    **{
        size: Preset(f"huggyllama/llama-{size.lower()}", ARTICLE_SHAPES[size], precision,
                     ARTICLE_SETTINGS[size], _ARTICLE_SOURCE)
        for size, precision in (("7B", "auto"), ("13B", "auto"), ("30B", "nf4"))
    },
}  # fmt: skip


def preset_of(name: str) -> Preset:
    """The preset called `name`.

    Raises:
        BaizeError: there is none; the message lists those there are.
    """
    if name not in PRESETS:
        raise BaizeError(f"preset {name!r} is unknown: use one of {', '.join(PRESETS)}")
    return PRESETS[name]


@dataclass(frozen=True, slots=True)
class RunFile:
    """What a run file says; paths are relative to the working folder.

    Attributes:
        train: a corpus in chat format, one dialogue a line; `validation` likewise, or None.
        adapter: the folder to write.
    """

    train: Path
    adapter: Path
    validation: Path | None = None
    base: str = "smollm2-135m"
    precision: str = "auto"
    shard: bool = False
    settings: TrainingSettings = TrainingSettings()


def read_run_file(path: Path | str) -> RunFile:
    """Read and check a run file.

    Raises:
        BaizeError: it is missing, not YAML, lacks `train` or `adapter`, or has a key or a type of
            value that nothing reads; the message names it and what would do.
    """
    import yaml

    try:
        said = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise BaizeError(f"run file {path} cannot be read ({error.strerror})") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise BaizeError(f"run file {path} is not YAML ({error})") from error
    if not isinstance(said, dict):
        raise BaizeError(f"run file {path} is not a list of `key: value` lines")
    given, name = said.pop("settings", None) or {}, said.pop("preset", None)
    start = TrainingSettings()
    if name is not None:
        try:
            preset = preset_of(name)
        except BaizeError as error:
            raise BaizeError(f"{path}: {error}") from error
        start = preset.settings
        said = {"base": preset.base, "precision": preset.precision} | said
    settings = replace(start, **_checked_fields(given, start, f"settings in {path}"))
    missing = [key for key in ("train", "adapter") if key not in said]
    if missing:
        raise BaizeError(f"{path} does not say {' and '.join(missing)}: add `{missing[0]}: PATH`")
    example = RunFile(Path(), Path(), Path())
    return RunFile(**_checked_fields(said, example, str(path)), settings=settings)


def _checked_fields(given: Any, example: Any, where: str) -> dict[str, Any]:
    """`given` as keyword arguments of `example`'s class, each of its type."""
    known = {f.name: type(getattr(example, f.name)) for f in fields(example)}
    known.pop("settings", None)
    if not isinstance(given, dict):
        raise BaizeError(f"{where}: expected `key: value` pairs, not {given!r}")
    unknown = [str(key) for key in given if key not in known]
    if unknown:
        raise BaizeError(f"{where}: unknown {', '.join(unknown)}; known are {', '.join(known)}")
    return {key: _as(value, known[key], f"{where}: {key}") for key, value in given.items()}


def _as(value: Any, kind: type, name: str) -> Any:
    if isinstance(value, list) and kind in (tuple, str):  # targets: a list, or "all-linear"
        return tuple(map(str, value))
    if kind is tuple and isinstance(value, str):
        return value
    if kind is float and not isinstance(value, bool):
        try:  # YAML reads 2e-4 as text
            return float(value)
        except (TypeError, ValueError):
            pass
    if issubclass(kind, Path) and isinstance(value, str):
        return Path(value)
    if isinstance(value, kind) and (kind is bool or not isinstance(value, bool)):
        return value
    raise BaizeError(f"{name} is {value!r}, and should be of type {kind.__name__}")
