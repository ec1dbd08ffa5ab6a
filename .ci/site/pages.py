"""What the site does to the course's pages: sidebar, alt texts, links, glossary, Chinese search."""

import functools
import html
import json
import os
import re
from collections.abc import Callable
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.search.zh import SearchChinese

HOME = {"en": "README", "zh": "README.zh"}
EDITIONS = {
    "en": ["README.md", "notebooks/*", "notebooks/bonus/*", "instructor/*.md"],
    "zh": ["README.zh.md", "notebooks/zh/**", "notebooks/glossary.md", "instructor/zh/*.md"],
}
CAPTIONS = {
    "en": ("Notebooks", "Bonus notebooks", "More"),
    "zh": ("教程", "选读", "更多"),
}
GLOSSARY = "notebooks/glossary"


def edition(app: Sphinx) -> str:
    return "zh" if app.config.language == "zh_CN" else "en"


def other_edition(app: Sphinx) -> str:
    return "en" if edition(app) == "zh" else "zh"


def counterpart(app: Sphinx, name: str) -> str:
    """The page of the other edition that says the same; its first page if there is none."""
    other = other_edition(app)
    if name in (GLOSSARY, "search"):
        return name
    folder, _, rest = name.partition("/")
    same = f"{folder}/zh/{rest}" if other == "zh" else name.replace("/zh/", "/", 1)
    there = rest and list(Path(app.srcdir).glob(f"{same}.*"))
    return same if there else HOME[other]


def as_written(app: Sphinx, name: str, source: list[str]) -> None:
    """A page's text before it is parsed: links that leave the site, alt texts, the sidebar."""
    if app.env.doc2path(name).suffix == ".md":
        source[0] = with_links(app, name, source[0])
        if name == app.config.root_doc:
            source[0] += sidebar(app, source[0])
        return
    notebook = json.loads(source[0])
    for cell in notebook["cells"]:
        if cell["cell_type"] == "markdown":
            cell["source"] = with_links(app, name, "".join(cell["source"]))
        for output in cell.get("outputs", ()):  # myst-nb takes the alt text from the cell alone
            if alt := output.get("metadata", {}).get("image/png", {}).get("alt"):
                cell["metadata"]["mystnb"] = {"image": {"alt": alt}}
    source[0] = json.dumps(notebook)


def with_links(app: Sphinx, name: str, text: str) -> str:
    """Links to what is no page of this edition lead to the other edition, or to the repository."""
    here, other = Path(name).parent, other_edition(app)
    repository = app.config.html_theme_options["repository_url"]

    def led(found: re.Match[str]) -> str:
        path, anchor = found[1], found[2] or ""
        target = Path(os.path.normpath(here / path))
        page = str(target.with_suffix(""))
        if target.suffix in (".png", ".svg") or page in app.env.found_docs:
            return found[0]
        up = "../" * (len(here.parts) + 1)
        if target.suffix in (".md", ".ipynb") and is_of(other, page):
            return f"]({up}{other}/{page}.html{anchor}){{.external}}"
        if not Path(app.srcdir, target).exists():
            return found[0]  # Sphinx will say so
        kind = "tree" if Path(app.srcdir, target).is_dir() else "blob"
        return f"]({repository}/{kind}/main/{target.as_posix()}{anchor})"

    text = re.sub(
        r'<picture><source[^>]* srcset="([^"]+)"><img src="([^"]+)" alt="([^"]+)"[^>]*></picture>',
        r"![\3](\2){.only-light} ![\3](\1){.only-dark}",
        text,
    )
    return re.sub(r"\]\((?![a-z]+:|#)([^)#\s]+)(#[^)\s]*)?\)", led, text)


def is_of(language: str, page: str) -> bool:
    """Whether a page belongs to that edition; the glossary is of both and never asked about."""
    inside = page.startswith(("notebooks/", "instructor/"))
    return page == HOME[language] or (inside and ("/zh/" in page) == (language == "zh"))


def sidebar(app: Sphinx, readme: str) -> str:
    """Every page under a caption, by the name that the README links it with, or its own title."""
    names = {target: text for text, target in re.findall(r"\[([^\]]+)\]\(([^)]+\.ipynb)\)", readme)}
    groups: tuple[list[str], ...] = ([], [], [])
    for page in sorted(app.env.found_docs - {app.config.root_doc}):
        path = str(app.env.doc2path(page, base=False))
        entry = f"{names[path]} <{page}>" if path in names else page
        groups[2 if not path.endswith(".ipynb") else "/bonus/" in path].append(entry)
    trees = [
        "\n".join(["```{toctree}", ":hidden:", f":caption: {caption}", "", *entries, "```"])
        for caption, entries in zip(CAPTIONS[edition(app)], groups, strict=True)
    ]
    return "\n\n" + "\n\n".join(trees) + "\n"


@functools.cache
def glossary(app: Sphinx) -> dict[str, tuple[str, str]]:
    """A term as it is written in running text -> the address of its entry, and what that says."""
    told = {}
    for section in app.env.get_doctree(GLOSSARY).findall(nodes.section):
        english, _, chinese = section.next_node(nodes.title).astext().partition(" · ")
        said = [part.astext().replace("\n", " ") for part in section.findall(nodes.paragraph)]
        if not chinese or len(said) < 2:
            continue
        if edition(app) == "en":
            told[english.lower()] = (section["ids"][0], said[0])
        else:
            told |= dict.fromkeys((english.lower(), chinese), (section["ids"][0], said[-1]))
    return told


def explained(app: Sphinx, doctree: nodes.document, name: str) -> None:
    """The first use of a term on a page says what it means when pointed at, and leads to its entry.

    That is where the page sets it in bold; a term that is never in bold is taken where it first
    stands, unless it is so short that it is an everyday word too.
    """
    if name == GLOSSARY:
        return
    told = glossary(app)
    address = app.builder.get_relative_uri(name, GLOSSARY)
    seen: set[str] = set()

    def link(text: str, anchor: str, said: str) -> nodes.raw:
        markup = (
            f'<a class="term" href="{address}#{anchor}" data-bs-toggle="tooltip" '
            f'title="{html.escape(said)}">{html.escape(text)}</a>'
        )
        return nodes.raw("", markup, format="html")

    for strong in list(doctree.findall(nodes.strong)):
        anchor, said = told.get(strong.astext().lower(), ("", ""))
        if anchor and anchor not in seen and in_prose(strong):
            seen.add(anchor)
            strong.children = [link(strong.astext(), anchor, said)]
    least = 3 if edition(app) == "zh" else 7
    long = sorted((term for term in told if len(term) >= least), key=len, reverse=True)
    pattern = re.compile(rf"(?<![A-Za-z-])(?:{'|'.join(map(re.escape, long))})(?![A-Za-z-])", re.I)
    for text in list(doctree.findall(nodes.Text)):
        if in_prose(text) and not isinstance(text.parent, nodes.strong):
            replace_first(text, pattern, seen, told, link)


def in_prose(node: nodes.Node) -> bool:
    """Whether a node is part of a paragraph or a list, and of no link, table or output."""
    above = []
    while node.parent is not None:
        node = node.parent
        above.append(node)
    outside = (nodes.reference, nodes.table, nodes.literal, nodes.title, nodes.literal_block)
    return any(isinstance(one, nodes.paragraph) for one in above) and not any(
        isinstance(one, outside) or "cell_output" in one.get("classes", ()) for one in above
    )


def replace_first(
    text: nodes.Text,
    pattern: re.Pattern[str],
    seen: set[str],
    told: dict[str, tuple[str, str]],
    link: Callable[[str, str, str], nodes.raw],
) -> None:
    """Each term of a text that the page has not explained yet becomes a link."""
    pieces, done = [], 0
    for found in pattern.finditer(text):
        anchor, said = told[found[0].lower()]
        if anchor not in seen:
            seen.add(anchor)
            pieces += [nodes.Text(text[done : found.start()]), link(found[0], anchor, said)]
            done = found.end()
    if pieces:
        text.parent.replace(text, [*pieces, nodes.Text(text[done:])])


class Bigrams(SearchChinese):
    """Chinese search without a dictionary: a phrase is found by its pairs of characters.

    Sphinx's own needs jieba, which has no wheel, and its page takes a phrase that is typed for one
    word. Here index and page cut alike.
    """

    language_name = "English"  # whose stemmer it is: the words in Latin letters are English
    js_splitter_code = """
var splitQuery = (query) =>
  (query.match(/[a-z0-9_]+|[\\u3400-\\u9fff]+/gi) || []).flatMap((run) =>
    /[a-z0-9_]/i.test(run) || run.length < 3
      ? [run]
      : [...run].slice(1).map((_, i) => run.slice(i, i + 2)))
"""

    def split(self, input: str) -> list[str]:
        words = self.latin1_letters.findall(input)
        self.latin_terms.update(words)
        runs = re.findall(r"[\u3400-\u9fff]+", input)
        return words + [run[i : i + 2] for run in runs for i in range(max(1, len(run) - 1))]


def switch(app: Sphinx, name: str, template: str, context: dict, doctree: object) -> None:
    """The address of this page in the other language, for `language.html`."""
    other = other_edition(app)
    up = "../" * (name.count("/") + 1)
    context["other_language"] = f"{up}{other}/{counterpart(app, name)}.html"


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_search_language(Bigrams)
    app.connect("source-read", as_written)
    app.connect("doctree-resolved", explained)
    app.connect("html-page-context", switch)
    return {"parallel_read_safe": True}
