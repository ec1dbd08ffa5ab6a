"""Models worth training, each with what is needed to load it and a start for its settings.

The article's three sizes carry its published rates, batch and targets; the small modern ones run on
a free or a gaming card. All are LLaMA-like, so the same seven layers get an adapter.

>>> preset_of("7B").settings.batch_size
64
"""

from dataclasses import dataclass, replace

from baize_lib.batches import ARTICLE_SETTINGS, Settings
from baize_lib.config import BaizeError
from baize_lib.models import ARTICLE_SHAPES, Shape

__all__ = ["Preset", "PRESETS", "preset_of"]


@dataclass(frozen=True, slots=True)
class Preset:
    """A model on the hub (or "embedded"), its shape, a precision, settings, and their source."""

    base: str
    shape: Shape
    precision: str
    settings: Settings
    source: str


_SMALL = Settings(lr=5e-4, num_epochs=2, batch_size=16, micro_tokens=4096)
_CONFIG = "shape from the model's config.json; the rate is ours, not tuned"
_ARTICLE = "Touvron et al. 2023, table 2; settings as the Baize paper and code give them"

PRESETS = {
    "135M": Preset(
        "embedded", Shape(576, 1536, 30, 9, 3, 49_152, tied=True), "float32",
        Settings(lr=1e-3, num_epochs=3, batch_size=4), "SmolLM2-135M-Instruct, the embedded model",
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
                     ARTICLE_SETTINGS[size], _ARTICLE)
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
