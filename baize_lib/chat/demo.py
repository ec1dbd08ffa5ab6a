"""A page to chat with what you trained, base and tuned side by side, in a browser or a notebook.

`make demo` or `baize chat` opens it; in a notebook it opens below the cell:

    page = open_page(open_chat(run, tier.student), run, prevent_thread_lock=True)

Whatever happens to a reply, the conversation goes on, and the reason stands under it. Text is shown
as text and code in colours; nothing that a model wrote is loaded or run.
"""

import datetime
import functools
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from baize_lib.chat.model import Answer, ChatModel
from baize_lib.config import BaizeError, Run, data_dir
from baize_lib.dialogue import Message, fenced
from baize_lib.files import sha256_of, template
from baize_lib.models.weights import MODELS
from baize_lib.training.lora import read_card

if TYPE_CHECKING:
    from gradio import Blocks

__all__ = ["open_page"]

_HERE = Path(__file__).parent
_MOST = 256  # tokens of a reply
BOTH = "side by side"
_THINKING, _WRITING = "thinking …", "writing …"


class _Talk:
    """One visitor's conversation. `number` counts questions and stops: only the last one writes,
    and `writing` makes it wait until the one before has seen that.
    """

    def __init__(self) -> None:
        self.turns: list[dict[str, Any]] = []  # question, replies and notes by model
        self.number, self.writing = 0, threading.Lock()

    def __deepcopy__(self, _: Any) -> "_Talk":
        return _Talk()  # Gradio copies an empty one for each visitor

    def halt(self) -> int:
        """Let nobody write any more, and mark what was under way as stopped."""
        self.number += 1
        stopped = {_THINKING: "stopped before the first word", _WRITING: "stopped"}
        for turn in self.turns[-1:]:
            turn["notes"] = {name: stopped.get(note, note) for name, note in turn["notes"].items()}
        return self.number

    def asking(self, question: str, model: str) -> list[Message]:
        """What `model` was asked and said so far, where it said something, and the question."""
        said = []
        for turn in self.turns:
            if reply := turn["replies"].get(model):
                said += [Message("user", turn["question"]), Message("assistant", reply)]
        return [*said, Message("user", question)]


def open_page(chat: ChatModel, run: Run, **launch: Any) -> "Blocks":
    """Open the page on this machine; thumbs go into the run, `launch` to Gradio's own."""
    try:
        import gradio as gr
    except ImportError as error:
        raise BaizeError("the page needs Gradio: pip install 'baize-course[demo]'") from error
    page = _page(chat, run)
    plain = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"])
    look = {"theme": plain, "css": (_HERE / "page.css").read_text("utf-8"), "footer_links": []}
    try:
        page.launch(**{"server_name": "127.0.0.1", "show_error": True, **look, **launch})
    except OSError as error:
        raise BaizeError(f"the page did not open: {error}") from error
    return page


def _page(chat: ChatModel, run: Run) -> "Blocks":
    import gradio as gr
    from markupsafe import escape

    models = [name for name in ("base", "tuned") if name in chat.models]
    with gr.Blocks(title="Talk to the chatbot you trained", analytics_enabled=False) as page:
        gr.HTML(f"<h1>Talk to the chatbot you trained</h1><p>{escape(_whose(chat, run))}</p>")
        state, columns, thumbs = gr.State(_Talk()), [], []
        with gr.Row():
            for name, empty in zip(models, _columns(models, _Talk()), strict=True):
                with gr.Column(min_width=280):
                    columns.append(gr.HTML(empty, elem_id=f"talk-{name}"))
                    with gr.Row():
                        for good, mark in ((True, "👍 good"), (False, "👎 bad")):
                            thumbs.append((name, good, gr.Button(mark, size="sm", min_width=80)))
        box = gr.Textbox(label="your question", placeholder="Ask something", lines=1, max_lines=6)
        which = gr.Radio([BOTH, *models], value=BOTH, label="who answers")
        with gr.Row():
            send = gr.Button("Send", variant="primary", min_width=80)
            stop, new = gr.Button("Stop", min_width=80), gr.Button("New", min_width=80)
        said = gr.HTML()
        shy = {"api_visibility": "private", "show_progress": "hidden"}
        at_once = {"queue": False, **shy}
        gr.on(
            [box.submit, send.click], functools.partial(_respond, chat, models),
            [box, state, which], [box, *columns], concurrency_limit=None, **shy,
            trigger_mode="multiple",
        )  # fmt: skip
        for button, clear in ((stop, False), (new, True)):
            button.click(functools.partial(_halt, models, clear), [state], columns, **at_once)
        for name, good, button in thumbs:
            vote = functools.partial(_vote, chat, run, name, good)
            button.click(vote, [state], [said], **at_once)
    return page


def _respond(
    chat: ChatModel, models: list[str], question: str, talk: _Talk, which: str
) -> Iterator[tuple]:
    """What the text box and the columns show, as the talk grows."""
    import gradio as gr

    if not question.strip():
        yield gr.skip(), *_columns(models, talk)
        return
    mine, typed = talk.halt(), ""
    with talk.writing:
        for _ in _grow(chat, question, talk, mine, models if which == BOTH else [which]):
            yield typed, *_columns(models, talk)
            typed = gr.skip()  # the next question may be being typed already


def _halt(models: list[str], clear: bool, talk: _Talk) -> list[str]:
    if clear:
        talk.turns = []
    talk.halt()
    return _columns(models, talk)


def _grow(
    chat: ChatModel, question: str, talk: _Talk, mine: int, asked: list[str]
) -> Iterator[None]:
    """Let the talk grow, a token of each model at a time, while `mine` is its number."""
    streams = {
        # Baize sampled at temperature 1; a model this small needs a steadier hand
        name: chat.follow(talk.asking(question, name), name, temperature=0.3, max_tokens=_MOST)
        for name in asked
    }
    turn = {"question": question, "replies": dict.fromkeys(asked, "")}
    turn["notes"] = dict.fromkeys(asked, _THINKING)
    if talk.number == mine:
        talk.turns.append(turn)
    yield
    while streams:
        for name, stream in list(streams.items()):
            part, note = _next(stream, turn["replies"][name])
            if talk.number != mine:
                yield  # what the page shows last is how things stand
                return
            turn["replies"][name] += part
            turn["notes"][name] = note
            if note not in (_THINKING, _WRITING):
                del streams[name]
        yield


def _next(stream: Iterator[tuple[str, Answer]], reply: str) -> tuple[str, str]:
    """What comes after `reply`, and the note that stands under it then."""
    try:
        part, answer = next(stream)
    except BaizeError as error:
        return "", str(error)
    except Exception as error:  # noqa: BLE001 - the page must not die of it
        return "", f"no reply: {type(error).__name__}: {error}"
    if not answer.stopped_by:
        return part, _WRITING if reply + part else _THINKING
    if not reply + part:
        return "", "it ended its reply before the first word; ask again, or in other words"
    return part, f"cut off at {_MOST} tokens" if answer.stopped_by == "length" else ""


def _columns(models: list[str], talk: _Talk) -> list[str]:
    page = template(_HERE / "page.jinja")
    return [page.render(model=m, turns=talk.turns, parts=prose_and_code) for m in models]


def prose_and_code(reply: str) -> Iterator[tuple[str, str]]:
    """A reply as ("prose", its text) and ("code", HTML with Pygments' classes), in order."""
    from markupsafe import Markup
    from pygments import highlight
    from pygments.formatters import HtmlFormatter
    from pygments.lexers import TextLexer, get_lexer_by_name
    from pygments.util import ClassNotFound

    at = 0
    for block in fenced(reply):
        if text := reply[at : block.start].strip():
            yield "prose", text
        try:
            lexer = get_lexer_by_name((block.info.split() or ["python"])[0])
        except ClassNotFound:
            lexer = TextLexer()
        yield "code", Markup(highlight(block.code, lexer, HtmlFormatter(nowrap=True)))
        at = block.end
    if text := reply[at:].strip():
        yield "prose", text


def _whose(chat: ChatModel, run: Run) -> str:
    """Whose adapter it is, of which tier, on which base."""
    name = MODELS[chat.base.name].title if chat.base.name in MODELS else chat.base.name
    if "tuned" not in chat.adapters:
        return f"{name}, untrained"
    folder, told = Path(chat.adapters["tuned"]), run.path / "run.json"
    named = {run.adapter_dir: f"of run {run.path.name}"}
    named[data_dir() / "adapter"] = "recorded with the course"
    whose = f"the adapter {named.get(folder, f'in {folder}')}"
    if folder == run.adapter_dir and told.is_file():
        tier = json.loads(told.read_text("utf-8"))["tier"]
        whose += f" (tier {tier['name']}, teacher {tier['teacher']})"
    return f"{whose}, trained on {read_card(folder)['num_dialogues']:,} dialogues; base: {name}"


def _vote(chat: ChatModel, run: Run, model: str, good: bool, talk: _Talk) -> str:
    """Write a thumb into the run's `feedback.jsonl`; says what was done."""
    given = [turn for turn in talk.turns if turn["replies"].get(model)]
    if not given:
        return f"{model} has not said anything yet"
    weights = chat.adapters.get(model, "")
    row = {
        "question": given[-1]["question"], "reply": given[-1]["replies"][model], "model": model,
        "good": good,
        "adapter": weights and sha256_of(Path(weights) / "adapter_model.safetensors")[:16],
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }  # fmt: skip
    run.path.mkdir(parents=True, exist_ok=True)
    with (run.path / "feedback.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(row, ensure_ascii=False) + "\n")
    return f"noted in feedback.jsonl: {'good' if good else 'bad'} reply of {model}"
