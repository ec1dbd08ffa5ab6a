"""The site: both editions build from what is committed, and a reader gets everything from it."""

import functools
import json
import os
import shutil
import subprocess
import sys
import threading
import tomllib
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import pytest

pytest.importorskip("sphinx_book_theme", reason="pip install -e '.[site]' builds the site")
from bs4 import BeautifulSoup

ROOT = Path(__file__).resolve().parent.parent
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)
BOOKS = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb")) + sorted(
    (ROOT / "notebooks/bonus").glob("[0-9]*.ipynb")
)
LANGUAGES = {"en": "notebooks", "zh": "notebooks/zh"}
HOMES = {"en": "README.html", "zh": "README.zh.html"}

with_browser = pytest.mark.skipif(not CHROMIUM, reason="no chromium on this machine to look with")

SETTLED_WIDTH = """async () => {
  const wide = () => document.documentElement.scrollWidth
  for (let tries = 0; tries < 50 && wide() > innerWidth; tries++)
    await new Promise(resolve => setTimeout(resolve, 100))
  return wide()
}"""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder `make site` leaves; it fails here if a link or a picture leads nowhere."""
    out = tmp_path_factory.mktemp("site")
    for language in LANGUAGES:
        command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-c", ".ci/site"]
        command += ["-d", out / ".parsed" / language, ".", out / language]
        told = os.environ | {"BAIZE_LANG": language}
        done = subprocess.run(command, cwd=ROOT, env=told, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    shutil.rmtree(out / ".parsed")
    shutil.copy(ROOT / ".ci/site/index.html", out)
    return out


@pytest.fixture(scope="module")
def pages(site):
    """Every page, parsed: {path: soup}."""
    paths = [path for path in site.rglob("*.html") if "_static" not in path.parts]
    return {path: BeautifulSoup(path.read_text("utf-8"), "html.parser") for path in paths}


def page_of(site, language, book):
    inside = book.relative_to(ROOT / "notebooks").with_suffix(".html")
    return site / language / LANGUAGES[language] / inside


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_notebook_is_a_page_that_the_sidebar_of_the_first_page_leads_to(
    site, pages, language
):
    home = site / language / HOMES[language]
    listed = {a["href"] for a in pages[home].select("nav.bd-links a.reference.internal")}
    for book in BOOKS:
        page = page_of(site, language, book)
        assert page in pages
        assert page.relative_to(home.parent).as_posix() in listed


def test_every_link_and_picture_leads_to_something_that_is_there(pages):
    wrong = []
    ids = {path: {tag["id"] for tag in soup.select("[id]")} for path, soup in pages.items()}
    for path, soup in pages.items():
        for tag in soup.select("[href], [src]"):
            address = unquote(tag.get("href") or tag.get("src"))
            if address.startswith(("https:", "data:", "mailto:", "http:")):
                continue
            file, _, anchor = address.partition("#")
            target = (path.parent / file.partition("?")[0]).resolve() if file else path
            if not target.is_file() or (anchor and target in ids and anchor not in ids[target]):
                wrong.append(f"{path.name}: {address}")
    assert not wrong


def test_links_into_the_repository_name_files_that_it_has(pages):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    address = project["urls"]["Repository"]
    for path, soup in pages.items():
        for tag in soup.select(f'a[href*="{address.removeprefix("https://")}"]'):
            _, found, file = tag["href"].partition("/main/")
            assert not found or (ROOT / file.partition("#")[0]).exists(), (path.name, tag["href"])


def test_every_picture_says_what_it_shows(pages):
    for path, soup in pages.items():
        for image in soup.select("img"):
            assert image.get("alt", "").strip(), (path.name, image.get("src", "")[:80])


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_figures_of_outputs_keep_the_alt_texts_they_were_rendered_with(site, pages, language):
    kept = 0
    for book in BOOKS:
        shown = {image["alt"] for image in pages[page_of(site, language, book)].select("img")}
        for cell in json.loads(book.read_text("utf-8"))["cells"]:
            for output in cell.get("outputs", ()):
                if alt := output.get("metadata", {}).get("image/png", {}).get("alt"):
                    assert alt in shown, (book.name, alt)
                    kept += 1
    assert kept


def test_no_file_is_over_two_megabytes(site):
    large = {p.name: p.stat().st_size for p in site.rglob("*") if p.is_file()}
    assert max(large.values()) <= 2_000_000, sorted(large.items(), key=lambda kv: -kv[1])[:3]


def test_the_language_switch_stays_on_the_page_and_comes_back(site, pages):
    for book in BOOKS:
        english, chinese = (page_of(site, language, book) for language in LANGUAGES)
        for here, there in ((english, chinese), (chinese, english)):
            switch = pages[here].select_one("a.language")["href"]
            assert (here.parent / switch).resolve() == there


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_notebook_can_be_downloaded_and_opened_in_colab(site, pages, language):
    for book in BOOKS:
        page = page_of(site, language, book)
        where = page.relative_to(site / language).with_suffix(".ipynb").as_posix()
        links = [a["href"] for a in pages[page].select(".article-header-buttons a[href]")]
        assert any(a.startswith("https://colab.") and a.endswith(f"/main/{where}") for a in links)
        source = next(a for a in links if "_sources/" in a)
        assert (page.parent / source).read_bytes() == (ROOT / where).read_bytes()


@pytest.mark.parametrize(
    ("language", "word", "meaning"),
    [("en", "student", "trained"), ("zh", "学生模型", "模型")],
)
def test_the_first_use_of_a_term_says_what_it_means(site, pages, language, word, meaning):
    terms = pages[page_of(site, language, BOOKS[0])].select("a.term")
    (term,) = [term for term in terms if term.text == word]
    assert meaning in term["title"]
    assert "glossary.html#student" in term["href"]


@pytest.fixture(scope="module")
def served(site):
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=site))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install -e '.[test]'")
    with playwright.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@with_browser
def test_no_page_asks_anything_of_another_host_or_is_wider_than_a_phone(
    site, pages, served, browser
):
    page = browser.new_page(viewport={"width": 390, "height": 844})
    asked, wrong = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    for path in sorted(pages):
        page.goto(f"{served}/{path.relative_to(site).as_posix()}")
        # a moment after loading: the theme's script still puts its bars in their places
        width = page.evaluate(SETTLED_WIDTH)
        assert width <= 390, f"{path.name} is {width} pixels wide"
    assert not wrong
    assert {a for a in asked if not a.startswith((served, "data:", "blob:"))} == set()


@with_browser
@pytest.mark.parametrize(
    ("language", "query"), [("en", "loss mask"), ("zh", "首次回答"), ("zh", "LoRA 低秩")]
)
def test_search_finds_what_the_glossary_explains(served, browser, language, query):
    page = browser.new_page()
    page.goto(f"{served}/{language}/search.html?q={query}")
    page.wait_for_selector("#search-results ul.search li")
    found = page.eval_on_selector_all("#search-results li a", "all => all.map(a => a.href)")
    assert any("glossary" in address for address in found), found


@with_browser
def test_light_and_dark_follow_the_readers_system(served, browser):
    grounds = {}
    for scheme in ("light", "dark"):
        page = browser.new_page(color_scheme=scheme)
        page.goto(f"{served}/en/README.html")
        grounds[scheme] = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert grounds["light"] != grounds["dark"]
