"""The chat page in a real browser: whatever a reply does, the conversation goes on."""

import contextlib
import json
import re
import shutil
import threading
import time
from types import SimpleNamespace

import pytest
from test_chat import write_adapter

from baize_lib.chat.demo import open_page
from baize_lib.chat.model import Answer, ChatModel
from baize_lib.config import BaizeError, Run
from baize_lib.files import read_jsonl
from baize_lib.models.base import load_base

gradio = pytest.importorskip("gradio", reason="the page needs Gradio: pip install -e '.[demo]'")
playwright = pytest.importorskip("playwright.sync_api", reason="pip install -e '.[test]'")
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="no Chromium or Chrome on this machine")


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextlib.contextmanager
def opened(chat, run):
    page = open_page(chat, run, prevent_thread_lock=True, quiet=True, inline=False)
    try:
        yield page.local_url
    finally:
        page.close()


class Visitor:
    """Somebody at the page, who can see what a person would see."""

    def __init__(self, browser, address, **options):
        self.page = browser.new_context(**options).new_page()
        self.page.set_default_timeout(20_000)
        self.requests, self.dialogs = [], []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("dialog", lambda dialog: (self.dialogs.append(1), dialog.dismiss()))
        self.page.goto(address)
        self.page.get_by_label("your question").wait_for()

    def ask(self, question, who=None):
        if who:
            self.page.get_by_label(who, exact=True).check()
        self.page.get_by_label("your question").fill(question)
        self.page.get_by_role("button", name="Send").click()

    def talk(self, model):
        return self.page.locator(f"#talk-{model}")

    def leave(self):
        self.page.get_by_role("button", name="New", exact=True).click()
        self.sees("base", "Nothing said yet.")
        self.page.context.close()

    def sees(self, model, text):
        self.talk(model).get_by_text(text).first.wait_for()


class Scripted:
    """A chat model whose replies are written beforehand, question by question."""

    base, models, adapters = SimpleNamespace(name="scripted"), ("base", "tuned"), {}

    def __init__(self, **replies):
        self.replies, self.asked = replies, []

    def follow(self, asked, model, **_):
        self.asked.append((model, [message.content for message in asked]))
        script = self.replies.get(asked[-1].content, ["an ", "answer"])
        if callable(script):
            script = script()
        for part in script:
            yield part, Answer("", "", 1, 0.0)
        yield "", Answer("", "end", 1, 0.0)


@pytest.fixture(scope="module")
def waiting():
    return threading.Event()


@pytest.fixture(scope="module")
def scripted(waiting):
    def never_begins():
        while not waiting.wait(0.05):
            yield ""

    def stops_halfway():
        yield "the first words"
        while not waiting.wait(0.05):
            yield ""

    def breaks():
        yield "half a "
        raise RuntimeError("the disk is on fire")

    def too_long():
        raise BaizeError("the question has 9000 tokens: shorten it")
        yield

    hostile = (
        "__init__ stays. <script>alert(1)</script><img src=http://evil.example/a.png "
        "onerror=alert(2)> ![x](http://evil.example/b.png) <form action=http://evil.example>"
        "<input></form><div style='position:fixed;inset:0;background:red'>over</div> "
        "[a link](javascript:alert(3)) ${alert(4)} {{ 7*7 }} $$x$$\n"
        "```html\n<iframe src='http://evil.example/c'></iframe>\n```\n"
    )
    code = "Do this:\n```python\nimport json\n```\nThen rest."
    return Scripted(
        never=never_begins, halfway=stops_halfway, breaks=breaks, long=too_long, empty=lambda: [],
        hostile=lambda: [hostile], code=lambda: [code],
    )  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return Run(tmp_path_factory.mktemp("runs") / "laptop")


@pytest.fixture(scope="module")
def address(scripted, run):
    with opened(scripted, run) as address:
        yield address


@pytest.fixture
def visitor(browser, address):
    visitor = Visitor(browser, address)
    yield visitor
    visitor.leave()


# --- with the real model


def test_base_and_tuned_stream_side_by_side_and_the_page_says_whose_they_are(browser, tmp_path):
    run = Run(tmp_path / "mine")
    run.path.mkdir()
    write_adapter(run.adapter_dir, 1, {"num_dialogues": 250})
    tier = {"tier": {"name": "laptop", "teacher": "qwen-1.5b"}}
    (run.path / "run.json").write_text(json.dumps(tier))
    chat = ChatModel(load_base("smollm2-135m", "float32"), {"tuned": run.adapter_dir})
    with opened(chat, run) as address:
        visitor = Visitor(browser, address)
        whose = visitor.page.get_by_text("the adapter of run mine").inner_text()
        assert "(tier laptop, teacher qwen-1.5b), trained on 250 dialogues" in whose
        assert whose.endswith("base: SmolLM2-135M-Instruct")
        visitor.ask("Name three fruits.")
        lengths = set()
        until = time.time() + 20
        while len(lengths) < 3 and time.time() < until:  # it grows while we look
            lengths.add(len(visitor.talk("tuned").inner_text()))
            time.sleep(0.05)
        assert len(lengths) == 3
        visitor.ask("word " * 9000)  # the reply under way makes room
        for model in ("base", "tuned"):
            visitor.sees(model, "Name three fruits.")
            visitor.sees(model, "exceeds the context of 8192: shorten it")
        visitor.ask("Hi", "base")
        visitor.talk("base").locator(".you").nth(2).wait_for()
        visitor.page.get_by_role("button", name="Stop").click()


# --- whatever happens, the conversation goes on


@pytest.mark.parametrize(
    ("question", "reason"),
    [
        ("empty", "it ended its reply before the first word"),
        ("breaks", "no reply: RuntimeError: the disk is on fire"),
        ("long", "the question has 9000 tokens: shorten it"),
    ],
)
def test_the_reason_stands_on_the_page_and_the_next_question_is_answered(
    visitor, scripted, question, reason
):
    visitor.ask(question)
    visitor.sees("base", reason)
    visitor.sees("tuned", reason)
    visitor.ask("and now?")
    visitor.sees("tuned", "an answer")
    kept = ["breaks", "half a "] if question == "breaks" else []
    assert ("tuned", [*kept, "and now?"]) in scripted.asked


@pytest.mark.parametrize(
    ("question", "shown", "reason"),
    [
        ("never", "thinking …", "stopped before the first word"),
        ("halfway", "the first words", "stopped"),
    ],
)
def test_stop_before_or_after_the_first_word_leaves_the_page_alive(
    visitor, question, shown, reason
):
    visitor.ask(question)
    visitor.sees("tuned", shown)
    visitor.page.get_by_role("button", name="Stop").click()
    visitor.sees("tuned", re.compile(f"^{reason}$"))
    visitor.ask("and now?")
    visitor.sees("tuned", "an answer")
    visitor.sees("base", "an answer")
    visitor.sees("tuned", re.compile(f"^{reason}$"))


def test_one_visitors_stop_and_talk_are_nobody_elses(browser, address, visitor, waiting):
    other = Visitor(browser, address)
    other.ask("halfway", "tuned")
    other.sees("tuned", "the first words")
    visitor.ask("never", "tuned")
    visitor.sees("tuned", "thinking …")
    visitor.page.get_by_role("button", name="Stop").click()
    visitor.sees("tuned", "stopped before the first word")
    assert "halfway" not in visitor.page.content()
    time.sleep(0.5)
    other.sees("tuned", "writing …")  # it goes on
    other.page.get_by_role("button", name="New", exact=True).click()
    other.sees("tuned", "Nothing said yet.")
    visitor.sees("tuned", "stopped before the first word")
    other.leave()


def test_a_blank_question_asks_nothing(visitor, scripted):
    before = len(scripted.asked)
    visitor.ask("  \n ")
    visitor.ask("hello")
    visitor.sees("base", "an answer")
    assert len(scripted.asked) == before + 2


def test_what_is_being_typed_while_a_reply_comes_stays(visitor):
    visitor.ask("halfway")
    visitor.sees("tuned", "the first words")
    visitor.page.get_by_label("your question").fill("half a quest")
    time.sleep(0.5)
    assert visitor.page.get_by_label("your question").input_value() == "half a quest"


def test_a_new_question_takes_the_place_of_the_reply_under_way(visitor):
    visitor.ask("halfway")
    visitor.sees("tuned", "the first words")
    visitor.ask("hello")
    visitor.sees("tuned", "an answer")
    visitor.sees("tuned", re.compile("^stopped$"))
    assert visitor.talk("tuned").locator(".you").count() == 2


def test_enter_sends(visitor):
    visitor.page.get_by_label("your question").fill("hello")
    visitor.page.keyboard.press("Enter")
    visitor.sees("base", "an answer")


# --- text is text


def test_nothing_a_model_wrote_is_loaded_or_run(visitor):
    visitor.ask("hostile", "tuned")
    visitor.sees("tuned", "__init__ stays.")
    text = visitor.talk("tuned").inner_text()
    for piece in ("<script>alert(1)</script>", "![x](http://evil.example/b.png)", "${alert(4)}",
                  "[a link](javascript:alert(3))", "{{ 7*7 }}", "<iframe src="):  # fmt: skip
        assert piece in text
    bot = visitor.talk("tuned").locator(".bot")
    assert bot.locator("img, script, form, iframe, a, input, svg").count() == 0
    visitor.page.wait_for_timeout(500)
    assert not visitor.dialogs
    assert {url.split("/")[2] for url in visitor.requests if url.startswith("http")} == {
        visitor.page.url.split("/")[2]
    }
    overlay = "position:fixed"
    assert overlay in text
    visitor.ask("hello")
    visitor.sees("tuned", "an answer")


def test_code_is_highlighted_and_the_text_around_it_kept(visitor):
    visitor.ask("code", "tuned")
    block = visitor.talk("tuned").locator("pre")
    block.wait_for()
    assert block.inner_text().strip() == "import json"
    keyword = block.locator("span", has_text="import").first
    assert keyword.evaluate("e => getComputedStyle(e).color") != "rgb(34, 34, 34)"
    visitor.sees("tuned", "Do this:")
    visitor.sees("tuned", "Then rest.")


# --- thumbs, widths, shades


def test_a_thumb_is_written_into_the_run(visitor, run):
    (run.path / "feedback.jsonl").unlink(missing_ok=True)
    visitor.page.get_by_role("button", name="good").first.click()
    visitor.page.get_by_text("base has not said anything yet").wait_for()
    visitor.ask("hello")
    visitor.sees("tuned", "an answer")
    visitor.page.get_by_role("button", name="bad").nth(1).click()
    visitor.page.get_by_text("noted in feedback.jsonl: bad reply of tuned").wait_for()
    (row,) = read_jsonl(run.path / "feedback.jsonl")
    assert (row["question"], row["reply"], row["model"]) == ("hello", "an answer", "tuned")
    assert row["good"] is False


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone_and_can_be_read_in_light_and_dark(browser, address, scheme):
    phone = {"width": 390, "height": 800}
    visitor = Visitor(browser, address, viewport=phone, color_scheme=scheme)
    visitor.ask("code")
    visitor.sees("tuned", "Then rest.")
    page = visitor.page
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    for part in (".you", ".bot"):
        text, ground = (
            visitor.talk("tuned")
            .locator(part)
            .first.evaluate("e => [getComputedStyle(e).color, getComputedStyle(e).backgroundColor]")
        )
        assert abs(brightness(text) - brightness(ground)) > 100
    visitor.leave()


def brightness(colour):
    red, green, blue = map(float, re.findall(r"[\d.]+", colour)[:3])
    return 0.3 * red + 0.6 * green + 0.1 * blue


def test_a_port_in_use_is_named(address, scripted, run):
    port = int(address.split(":")[2].strip("/"))
    with pytest.raises(BaizeError, match="the page did not open"):
        open_page(scripted, run, prevent_thread_lock=True, quiet=True, server_port=port)
