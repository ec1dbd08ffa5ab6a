"""Models that need no account, base models of any family, and their sizes before loading."""

from baize_lib.models.base import Base, load_base
from baize_lib.models.shapes import Shape
from baize_lib.models.weights import MODELS, model_file, quiet

__all__ = ["MODELS", "model_file", "quiet", "Base", "load_base", "Shape"]
