"""LoRA training on dialogues: what is learnt, how long it takes, and the adapter it leaves."""

from baize_lib.training.fit import fit
from baize_lib.training.lora import attach, read_card, select, trainable_parameters
from baize_lib.training.planner import DEVICES, Corpus, measure, plan
from baize_lib.training.settings import PRESETS, TrainingSettings
from baize_lib.training.step import held_out_loss, trainee
from baize_lib.training.tokens import encode, encode_all, mask_html, prompt_ids

__all__ = [
    "TrainingSettings", "PRESETS", "encode", "mask_html", "prompt_ids", "encode_all", "trainee",
    "fit", "held_out_loss", "trainable_parameters", "read_card", "attach", "select", "DEVICES",
    "Corpus", "measure", "plan",
]  # fmt: skip
