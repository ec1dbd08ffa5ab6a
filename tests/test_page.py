"""The answers page: escaped, filtered, themed; a real browser looks at it where there is one."""

import dataclasses
import functools
import http.server
import re
import shutil
import subprocess
import threading
import time
from html.parser import HTMLParser

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from baize_lib.evaluation.attempts import Attempt
from baize_lib.evaluation.checks import CHECKS, Verdict
from baize_lib.evaluation.page import page
from baize_lib.evaluation.prompts import Prompt, load_prompts

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
with_browser = pytest.mark.skipif(not CHROMIUM, reason="no chromium on this machine to look with")
ERRORS = pd.DataFrame({"check": list(CHECKS), "precision": 1.0, "recall": 1.0, "look": 0.0})


def prompt(category="fact", language="en", turns=("Question?",)):
    return Prompt(f"{category}-{language}", category, language, "course", turns, "good", "why", {})


def attempt(of, model, *texts, number=1, made=1, **more):
    line = {"stopped_by": "end", "num_tokens": 3, "seconds": 0.1, "layout": "baize", "seed": 0}
    line |= {"sampling": {}, **more}
    return Attempt(of.id, model, "", number, made, tuple({**line, "text": t} for t in texts))


def one_page(text, **options):
    asked = prompt()
    graded = {(asked.id, "tuned"): Verdict("bad", text)}
    return page([asked], [attempt(asked, "tuned", text)], graded, ERRORS, **options)


class Tags(HTMLParser):
    """Collects the elements of a page."""

    def __init__(self, text):
        super().__init__()
        self.names, self.texts = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.names.append(tag)
        assert not [name for name, _ in attributes if name.startswith("on")]

    def handle_data(self, data):
        self.texts.append(data)


@settings(max_examples=40, deadline=None)
@given(st.text(st.characters(exclude_categories=[]), max_size=200))
def test_no_text_adds_an_element_to_the_page(text):
    found = Tags(one_page(text))
    assert not {"script", "img", "iframe", "link", "object", "svg"} & set(found.names)
    assert found.names.count("article") == 1
    one_page(text).encode("utf-8")


def test_code_is_highlighted_and_the_rest_of_the_reply_kept():
    text = "First <b>this</b>:\n```python\nimport json  # < & >\n```\nand that."
    html = one_page(text)
    assert '<span class="kn">import</span>' in html and "# &lt; &amp; &gt;" in html
    assert "First &lt;b&gt;this&lt;/b&gt;:" in html and "and that." in html
    assert "```" not in html.split("<main>")[1].split("class=reply")[1]


def test_a_picked_attempt_says_so_and_a_first_one_counts_the_others():
    asked = prompt()
    shown = [attempt(asked, "a", "x", made=8), attempt(asked, "b", "y", number=3, made=8)]
    html = page([asked], shown, {}, ERRORS)
    assert "first attempt of 8" in html
    assert "<small class=picked>picked, attempt 3 of 8</small>" in html


def test_later_turns_unfold(tmp_path):
    asked = prompt("code", "en", ("One?", "Two?"))
    shown = [attempt(asked, "gpt", "first", "second")]
    html = page([asked], shown, {}, ERRORS, path=tmp_path / "page.html")
    assert "<details><summary>Two?</summary>" in html
    assert (tmp_path / "page.html").read_text(encoding="utf-8") == html


def test_the_overview_has_a_mark_for_every_verdict_the_articles_among_them():
    asked = load_prompts(origin="article", language="en")
    shown = [attempt(p, m, *p.turns) for p in asked for m in ("base", "tuned")]
    graded = {(a.prompt, a.model): Verdict("partly", "seen") for a in shown}
    html = page(asked, shown, graded, ERRORS)
    overview = re.search(r"<details class=overview open>(.*?)</details>", html, re.S)[1]
    said = [v["verdict"] for p in asked for v in p.article.values()]
    for mark, grade in ("✓", "good"), ("◐", "partly"), ("✗", "bad"):
        ours = len(shown) if grade == "partly" else 0
        marked = f'title="{grade}">{mark}</b>'
        assert overview.count(marked) == said.count(grade) + ours
    assert [f'href="#p{i}"' in overview and f'id="p{i}" ' in html for i in range(6)] == [True] * 6
    assert html.count("<section class=reported>") == 6


def test_a_check_that_calls_nothing_good_has_a_dash_for_its_precision():
    asked, errors = prompt(), ERRORS.assign(precision=float("nan"))
    graded = {(asked.id, "tuned"): Verdict("look", "x")}
    html = page([asked], [attempt(asked, "tuned", "x")], graded, errors)
    assert "<td>–</td>" in html and "NaN" not in html


def test_the_footer_says_how_each_model_was_asked():
    asked = prompt()
    line = {"sampling": {"temperature": 0.7, "max_tokens": 9}, "seed": 4}
    one = attempt(asked, "tuned", "x", **line)
    shown = [dataclasses.replace(one, adapter="0123456789abcdef")]
    footer = page([asked], shown, {}, ERRORS).split("<footer>")[1]
    assert "0123456789abcdef" in footer and "temperature 0.7, max_tokens 9, seed 4" in footer


HOSTILE = "<script>alert(1)</script>"


def test_names_headers_and_captions_are_escaped_too():
    asked = Prompt(HOSTILE, "fact", HOSTILE, "course", (HOSTILE,), HOSTILE, HOSTILE, {},
                   {HOSTILE: {"verdict": HOSTILE, "said": HOSTILE}})  # fmt: skip
    line = {"sampling": {HOSTILE: HOSTILE}, "seed": HOSTILE, "layout": HOSTILE}
    one = dataclasses.replace(attempt(asked, HOSTILE, HOSTILE, **line), adapter=HOSTILE)
    graded = {(HOSTILE, HOSTILE): Verdict("good", HOSTILE)}
    html = page([asked], [one], graded, ERRORS)
    body = html.split("<body>")[1]
    assert "<script" not in html.split("<style>")[0] and "<script" not in body
    assert body.count("&lt;script&gt;") > 12


def test_a_verdict_to_look_at_is_marked_with_its_reason():
    asked = prompt()
    graded = {(asked.id, "tuned"): Verdict("look", "mentions Dodoma")}
    html = page([asked], [attempt(asked, "tuned", "x")], graded, ERRORS)
    assert 'class="look" title="look">?</b>' in html and "mentions Dodoma" in html
    assert "0 of 1, 1 to look at" in html


def test_the_bases_own_layout_has_its_column():
    asked = prompt()
    shown = [attempt(asked, m, m) for m in ("base", "own layout", "tuned", "teacher")]
    html = page([asked], shown, {}, ERRORS)
    assert "asked of base, own layout, tuned, teacher" in html
    assert html.count("<section><h3>") == 4


def test_a_page_of_120_prompts_and_six_models_is_made_in_seconds():
    asked = [dataclasses.replace(p, id=f"{p.id}-{i}") for i, p in enumerate(load_prompts() * 2)]
    asked = asked[:120]
    text = "A reply.\n```python\nprint(1)\n```\n" + "More of it. " * 40
    models = ("base", "own layout", "tuned", "recorded", "teacher", "gpt")
    shown = [attempt(p, m, *[text] * len(p.turns)) for p in asked for m in models]
    graded = {(a.prompt, a.model): Verdict("good", "seen") for a in shown}
    begun = time.process_time()
    html = page(asked, shown, graded, ERRORS)
    assert time.process_time() - begun < 30 and len(html) < 4_000_000
    assert html.count("<article") == 120 and html.count("<section><h3>") == 720


# ---- In a browser


@pytest.fixture
def site(tmp_path):
    """A folder served on this machine; `.asked` lists the paths that were fetched."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            self.server.asked.append(self.path)

    handler = functools.partial(Handler, directory=tmp_path)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.asked, server.folder = [], tmp_path
        server.address = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def browse(site, name):
    """The page's DOM after its scripts ran."""
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--no-proxy-server"]
    options += ["--virtual-time-budget=3000", f"--user-data-dir={site.folder / 'profile'}"]
    command = [CHROMIUM, *options, "--dump-dom", f"{site.address}/{name}"]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout


def hostile(address):
    """Ways in which an answer could run or fetch something, if it were taken for HTML."""
    fetch = f"fetch('{address}/caught')"
    return [
        f"<script>document.title='caught';{fetch}</script>",
        f"</p></div></pre></code><script>{fetch}</script>",
        f"<img src={address}/caught onerror=\"document.title='caught'\">",
        f"<style>@import url({address}/caught);body{{background:url({address}/caught)}}</style>",
        f"<iframe src={address}/caught></iframe><svg onload={fetch}>",
        f"<meta http-equiv=refresh content='0;url={address}/caught'>",
        f"<link rel=stylesheet href={address}/caught>",
        f"```python\n</code></pre><script>{fetch}</script>\n```",
        f"```html\n<img src={address}/caught>\n```",
        f"![x]({address}/caught) [click](javascript:{fetch})",
        f"'\" onmouseover={fetch} autofocus onfocus={fetch} x='",
        "<details open ontoggle=\"document.title='caught'\">",
    ]


@with_browser
def test_nothing_a_model_wrote_runs_or_is_fetched(site):
    answers = hostile(site.address)
    asked = [Prompt(a, "fact", "en", "course", (a, a), a, a, {}) for a in answers]
    shown = [attempt(p, p.id, p.id, p.id) for p in asked]
    graded = {(p.id, p.id): Verdict("good", p.id) for p in asked}
    html = page(asked, shown, graded, ERRORS)
    (site.folder / "page.html").write_text(html, encoding="utf-8")
    # The escaping must hold by itself, so the page's own policy is taken out for a second look.
    bare = re.sub(r"<meta\s+http-equiv=Content-Security-Policy.*?>", "", html, flags=re.S)
    assert len(bare) < len(html)
    (site.folder / "bare.html").write_text(bare, encoding="utf-8")
    for name in ("page.html", "bare.html"):
        dom = browse(site, name)
        assert not [path for path in site.asked if "caught" in path]
        assert "<title>First attempts, side by side</title>" in dom
        assert not {"script", "img", "iframe", "svg", "link"} & set(Tags(dom).names)


@with_browser
def test_the_trap_of_the_test_above_does_catch(site):
    text = "<title>x</title>" + "".join(hostile(site.address)[:3])
    (site.folder / "open.html").write_text(text, encoding="utf-8")
    assert "<title>caught</title>" in browse(site, "open.html")
    assert any("caught" in path for path in site.asked)


LOOK = """<title>x</title><iframe id=f src=page.html width=400 height=800></iframe><script>
const frame = document.getElementById('f'), seen = [];
function look() {
  const inside = frame.contentDocument, view = frame.contentWindow;
  const visible = () => [...inside.querySelectorAll('article')]
    .filter(a => view.getComputedStyle(a).display != 'none').length;
  const rows = () => [...inside.querySelectorAll('tr[data-category]')]
    .filter(a => view.getComputedStyle(a).display != 'none').length;
  const press = id => inside.getElementById(id).click();
  const ground = () => view.getComputedStyle(inside.body).backgroundColor;
  seen.push(visible() + '/' + rows());
  press('category-1'); seen.push(visible() + '/' + rows());
  press('category-0'); press('language-2'); seen.push(visible() + '/' + rows());
  press('language-0'); press('verdicts-1'); seen.push(visible() + '/' + rows());
  press('theme-1'); seen.push(ground());
  press('theme-2'); seen.push(ground());
  press('verdicts-2'); seen.push(visible() + '/' + rows()); press('verdicts-0');
  seen.push(inside.documentElement.scrollWidth <= 400);
  document.title = seen.join(' ');
}
frame.onload = look;
</script>"""


@with_browser
def test_filters_themes_and_a_narrow_screen_work_without_scripts(site):
    asked = [prompt("fact"), prompt("fact", "zh"), prompt("code", "en", ("a" * 300, "b"))]
    long = "```python\nx = '" + "y" * 300 + "'\n```\n" + "z" * 300
    shown = [attempt(p, model, long, long) for p in asked for model in ("base", "tuned")]
    graded = {(a.prompt, a.model): Verdict("good", "seen") for a in shown}
    graded["fact-zh", "base"] = Verdict("bad", "seen")
    graded["code-en", "base"] = graded["code-en", "tuned"] = Verdict("look", "seen")
    html = page(asked, shown, graded, ERRORS)
    (site.folder / "page.html").write_text(html, encoding="utf-8")
    (site.folder / "look.html").write_text(LOOK, encoding="utf-8")
    title = re.search(r"<title>(.*?)</title>", browse(site, "look.html"))[1]
    assert title == "3/3 2/2 1/1 1/1 rgb(255, 255, 255) rgb(21, 23, 26) 1/1 true"
