"""Dialogues as a corpus: read, counted, searched for defects, filtered, split and exported."""

from baize_lib.corpus.defects import count_defects
from baize_lib.corpus.filters import apply_filters, default_filters, whole_turns
from baize_lib.corpus.formats import read_dialogues, read_sample, write_dialogues
from baize_lib.corpus.split import asks_a_prompt, export, leakage, split
from baize_lib.corpus.statistics import statistics

__all__ = [
    "read_dialogues", "read_sample", "write_dialogues", "statistics", "count_defects",
    "default_filters", "whole_turns", "apply_filters", "asks_a_prompt", "split", "leakage",
    "export",
]  # fmt: skip
