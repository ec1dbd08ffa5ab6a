"""Talking to what was trained, and handing it on: page, server, merged model, GGUF, cards."""

from baize_lib.chat.demo import open_page
from baize_lib.chat.gguf import export_gguf
from baize_lib.chat.model import ChatModel, open_chat
from baize_lib.chat.server import serve
from baize_lib.chat.share import dataset_card, merge, model_card, push

__all__ = [
    "ChatModel", "open_chat", "open_page", "serve", "merge", "export_gguf", "model_card",
    "dataset_card", "push",
]  # fmt: skip
