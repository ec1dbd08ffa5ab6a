"""chat"""

from baize_lib.chat.demo import build, load
from baize_lib.chat.model import Answer, ChatModel
from baize_lib.chat.share import merge, model_card, push

__all__ = ["model_card", "merge", "push", "Answer", "ChatModel", "load", "build"]
