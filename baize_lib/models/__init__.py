"""The models that need no account, bases ready to train or chat, and their sizes."""

from baize_lib.models.base import PRECISIONS, Base, compute_precision, computing_in, load_base
from baize_lib.models.shapes import (
    ALL_LINEAR,
    ARTICLE_SHAPES,
    ARTICLE_TARGETS,
    BYTES_PER_WEIGHT,
    Shape,
    trainable_parameters,
)
from baize_lib.models.weights import MODELS, model_file, quiet, student_dir

__all__ = [
    "Shape", "ARTICLE_SHAPES", "ARTICLE_TARGETS", "ALL_LINEAR", "trainable_parameters",
    "BYTES_PER_WEIGHT", "Base", "load_base", "PRECISIONS", "compute_precision", "computing_in",
    "MODELS", "model_file", "student_dir", "quiet",
]  # fmt: skip
