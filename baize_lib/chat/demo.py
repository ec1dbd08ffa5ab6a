"""A page to chat with what you trained: base and tuned behind one switch, replies streamed.

`make demo` (or `baize chat`) installs Gradio and opens it on this machine only.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from baize_lib.config import BaizeError, Run, data_dir
from baize_lib.dialogue import Message

__all__ = [
    "load",
    "build",
]


if TYPE_CHECKING:
    from baize_lib.chat import ChatModel


def load(run: Run, student: str, precision: str = "auto") -> "ChatModel":
    """The run's own adapter, or the recorded one, on its base model."""
    from baize_lib.chat import ChatModel
    from baize_lib.models import load_base

    adapter = run.adapter_dir if run.adapter_dir.is_dir() else data_dir() / "adapter"
    return ChatModel(load_base(student, precision), {"tuned": adapter})


def build(chat: "ChatModel") -> Any:
    """The Gradio page. Each visitor has a conversation of their own, and Stop stops only it.

    Raises:
        BaizeError: Gradio is not installed.
    """
    try:
        import gradio as gr
    except ImportError as error:
        raise BaizeError("the demo needs Gradio: pip install -e '.[demo]'") from error

    def respond(text: str, history: list[dict[str, Any]], model: str) -> Iterator[str]:
        messages = [Message(m["role"], _text(m["content"])) for m in history]
        said = ""
        # Baize sampled at temperature 1; a model this small needs a steadier hand
        for part in chat.stream([*messages, Message("user", text)], model=model, temperature=0.3):
            said += part
            yield said

    return gr.ChatInterface(
        respond,
        title="Talk to the chatbot you trained",
        description="A small model: fluent, often wrong. `base` is the same one, untrained.",
        additional_inputs=[gr.Radio(["tuned", "base"], value="tuned", label="model")],
        concurrency_limit=1,
    )


def _text(content: Any) -> str:
    """A message's text; Gradio wraps it in a list of parts."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else [content]
    return "".join(p if isinstance(p, str) else str(p.get("text", "")) for p in parts)
