"""All answers side by side on one HTML page, to look through and to pass on.

    page(prompts, attempts, graded, path=run.path / "answers.html")

The page is a single file without any script: filters, folding and the light and dark themes are
plain CSS. Everything a model wrote is escaped, and the page's own policy (CSP) forbids scripts and
fetching, so that an answer that looks like HTML stays an answer.
"""

import html
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from baize_lib.evaluation.attempts import Attempt
from baize_lib.evaluation.checks import CHECKS, Verdict
from baize_lib.evaluation.prompts import Prompt
from baize_lib.evaluation.statistics import Graded, health, score_table
from baize_lib.files import write_atomic
from baize_lib.teacher.budget import money

__all__ = [
    "page",
]


_MARK = {"good": "✓", "partly": "◐", "bad": "✗"}
_CODE = re.compile(
    r"^[ \t]*```[ \t]*([\w+-]*)[^\n]*\n(.*?)(?:^[ \t]*```[ \t]*$\n?|\Z)", re.M | re.S
)


def page(
    prompts: Sequence[Prompt],
    attempts: Sequence[Attempt],
    graded: Graded,
    *,
    title: str = "First attempts, side by side",
    errors: Any = None,
    path: Path | str | None = None,
) -> str:
    """The page as HTML text, also written to `path` when given.

    Args:
        attempts: what to show, usually `first_attempts(log, prompts)`; an attempt that is not the
            first says so.
        errors: `check_errors()`, if it has been computed already.
    """
    shown = {(a.prompt, a.model): a for a in attempts}
    models = list(dict.fromkeys(a.model for a in attempts))
    asked = [p for p in prompts if any((p.id, m) in shown for m in models)]
    body = [
        f"<header><h1>{_text(title)}</h1><p>{_lead(asked, models)}</p>"
        f"{_table(score_table(asked, graded, errors))}<p class=tag>Good answers by category. "
        "Precision and recall are those of the automatic check, tried on answers labelled by hand, "
        "many of them written to mislead it.</p></header>",
        _filters(asked),
        _overview(asked, models, graded),
        "<main>",
        *(_card(i, prompt, models, shown, graded) for i, prompt in enumerate(asked)),
        f"</main><footer><h2>Health of the replies shown</h2>{_table(health(attempts))}"
        f"<h2>How they were asked</h2>{_table(_asked_how(attempts))}{_bill(attempts)}</footer>",
    ]
    text = _FRAME.format(title=_text(title), style=_STYLE + _rules(asked), body="\n".join(body))
    if path:
        write_atomic(path, text)
    return text


def _text(raw: str) -> str:
    """Any text as harmless HTML; half characters (lone surrogates) become question marks."""
    return html.escape(str(raw).encode("utf-8", "replace").decode("utf-8"))


def _lead(prompts: Sequence[Prompt], models: Sequence[str]) -> str:
    return (
        f"{len(prompts)} prompts, asked of {', '.join(map(_text, models))}. "
        "Every answer is the model's first attempt, unless it is marked as picked. The verdicts "
        "are those of small automatic checks, which err. Where the article (QbitAI, April 2023) "
        "asked the same, its verdicts stand beside them."
    )


def _filters(prompts: Sequence[Prompt]) -> str:
    groups = {
        "category": ["all", *(c for c in CHECKS if any(p.category == c for p in prompts))],
        "language": ["any", *sorted({p.language for p in prompts})],
        "models": ["every verdict", "disagreement"],
        "theme": ["auto", "light", "dark"],
    }
    parts = []
    for group, options in groups.items():
        choices = "".join(
            f"<label><input type=radio name={group} id='{group}-{i}'{' checked' * (i == 0)}>"
            f"<span>{_text(option)}</span></label>"
            for i, option in enumerate(options)
        )
        parts.append(f"<fieldset><legend>{group}</legend>{choices}</fieldset>")
    return f"<nav>{''.join(parts)}</nav>"


def _rules(prompts: Sequence[Prompt]) -> str:
    """The filters: a checked option hides the cards that do not match it."""
    rules = []
    for group, values in {
        "category": [c for c in CHECKS if any(p.category == c for p in prompts)],
        "language": sorted({p.language for p in prompts}),
        "models": ["disagreement"],
    }.items():
        for i, value in enumerate(values, start=1):
            rules.append(
                f"body:has(#{group}-{i}:checked) "
                f":is(article,tr[data-category]):not([data-{group}={value}]){{display:none}}"
            )
    return "\n".join(rules)


def _facets(prompt: Prompt, models: Sequence[str], graded: Graded) -> str:
    """What the filters look at, on a card and on its row of the overview."""
    grades = {graded[prompt.id, m].grade for m in models if (prompt.id, m) in graded}
    agreement = "disagreement" if len(grades) > 1 else "agreement"
    return (
        f"data-category={prompt.category} data-language={prompt.language} data-models={agreement}"
    )


def _overview(prompts: Sequence[Prompt], models: Sequence[str], graded: Graded) -> str:
    """Prompts × models, one mark each, the article's beside ours; folded when it is long."""
    reported = list(dict.fromkeys(name for p in prompts for name in p.article))
    head = "".join(f"<th>{_text(m)}" for m in models)
    head += "".join(f"<th class=reported>{_text(m)}<br><small>article</small>" for m in reported)
    rows = []
    for i, prompt in enumerate(prompts):
        ours = [graded.get((prompt.id, m)) for m in models]
        marks = [_mark(verdict.grade if verdict else "") for verdict in ours]
        marks += [_mark(prompt.article.get(m, {}).get("verdict", "")) for m in reported]
        rows.append(
            f"<tr {_facets(prompt, models, graded)}><td lang={prompt.language}>"
            f"<a href='#p{i}'>{_text(prompt.turns[0])}</a>{''.join(f'<td>{m}' for m in marks)}"
        )
    return (
        f"<details class=overview{' open' * (len(prompts) <= 16)}><summary>All verdicts at a "
        f"glance</summary><div class=wide><table><tr><th>prompt{head}{''.join(rows)}</table></div>"
        "<p class=tag>✓ good, ◐ partly, ✗ bad</p></details>"
    )


def _mark(grade: str) -> str:
    return f"<b class={grade} title={grade}>{_MARK[grade]}</b>" if grade in _MARK else ""


def _card(
    number: int,
    prompt: Prompt,
    models: Sequence[str],
    shown: Mapping[tuple[str, str], Attempt],
    graded: Graded,
) -> str:
    columns = "".join(
        _answer(prompt, shown[prompt.id, m], graded.get((prompt.id, m)))
        for m in models
        if (prompt.id, m) in shown
    )
    said = "".join(
        f"<p>{_badge(said['verdict'])} <b>{_text(name)}</b>: {_text(said['said'])}</p>"
        for name, said in prompt.article.items()
    )
    reported = (
        f"<section class=reported><h3>The article <small>reported, April 2023</small></h3>{said}"
        "</section>"
    )
    return (
        f"<article id=p{number} {_facets(prompt, models, graded)}>"
        f"<p class=tag>{prompt.category} · {prompt.language}"
        f"{' · from the article' if said else ''}</p>"
        f"<h2 lang={prompt.language}>{_text(prompt.turns[0])}</h2>"
        f"<p class=why>A good answer: {_text(prompt.good)}. {_text(prompt.why)}</p>"
        f"<div class=columns>{columns}{reported if said else ''}</div></article>"
    )


def _answer(prompt: Prompt, attempt: Attempt, verdict: Verdict | None) -> str:
    later = "".join(
        f"<details><summary>{_text(question)}</summary>{_reply(line)}</details>"
        for question, line in list(zip(prompt.turns, attempt.turns, strict=False))[1:]
    )
    judged = f"{_badge(verdict.grade)} <small>{_text(verdict.reason)}</small>" if verdict else ""
    picked = " class=picked" if attempt.number != 1 else ""
    return (
        f"<section><h3>{_text(attempt.model)} <small{picked}>{_text(attempt.label)}</small></h3>"
        f"<p>{judged}</p>{_reply(attempt.turns[0])}{later}</section>"
    )


def _badge(grade: str) -> str:
    return f"<span class='badge {_text(grade)}'>{_MARK.get(grade, '')} {_text(grade)}</span>"


def _reply(line: Mapping[str, Any]) -> str:
    """A reply: its prose as it is, its fenced code highlighted, and how it ended."""
    text, parts, end = line["text"], [], 0
    for block in _CODE.finditer(text):
        parts += [_prose(text[end : block.start()]), _highlighted(block[2], block[1])]
        end = block.end()
    parts.append(_prose(text[end:]))
    content = "".join(parts) or "<p class=tag>(empty reply)</p>"
    how = {"end": "stopped by itself", "length": "cut at the token limit"}
    how["tag"] = "went on to speak for the human, and was cut there"
    ended = how.get(line["stopped_by"], f"stopped by {line['stopped_by']}")
    tokens = f"{line['num_tokens']} tokens, {ended}"
    return f"<div class=reply dir=auto tabindex=0>{content}</div><p class=tag>{_text(tokens)}</p>"


def _prose(text: str) -> str:
    return f"<p class=prose>{_text(text.strip())}</p>" if text.strip() else ""


def _highlighted(code: str, language: str) -> str:
    from pygments import highlight
    from pygments.formatters import HtmlFormatter
    from pygments.lexers import PythonLexer, TextLexer

    lexer = PythonLexer() if language.lower() in ("", "py", "python", "python3") else TextLexer()
    code = code.encode("utf-8", "replace").decode("utf-8")
    return f"<pre><code>{highlight(code, lexer, HtmlFormatter(nowrap=True))}</code></pre>"


def _table(frame: Any) -> str:
    return f"<div class=wide>{frame.to_html(index=False, border=0, float_format='%.2f')}</div>"


def _asked_how(attempts: Iterable[Attempt]) -> Any:
    """One row a model and way of asking: its adapter, sampling, seed, and the seconds it took."""
    import pandas as pd

    rows: dict[tuple[str, str, str], dict[str, Any]] = {}
    for attempt in attempts:
        for line in attempt.turns:
            sampling = dict(line.get("sampling", {})) | {"seed": line.get("seed", "–")}
            told = ", ".join(f"{name} {value}" for name, value in sampling.items())
            key = (attempt.model, attempt.adapter or "–", told)
            row = dict(zip(("model", "adapter", "sampling"), key, strict=True))
            row = rows.setdefault(key, row | {"replies": 0, "tokens": 0})
            row["replies"] += 1
            row["tokens"] += line["num_tokens"]
    return pd.DataFrame(list(rows.values()))


def _bill(attempts: Iterable[Attempt]) -> str:
    cost: dict[str, float] = {}
    for attempt in attempts:
        for line in attempt.turns:
            if "cost_usd" in line:
                usd = line["cost_usd"] + line.get("uncertain_usd", 0.0)
                cost[attempt.model] = cost.get(attempt.model, 0.0) + usd
    paid = ", ".join(f"{_text(model)} {money(usd)}" for model, usd in cost.items())
    return f"<p>Paid for the answers shown: {paid}.</p>" if paid else ""


_FRAME = """<!doctype html>
<html lang=en><head><meta charset=utf-8>
<meta http-equiv=Content-Security-Policy
 content="default-src 'none'; style-src 'unsafe-inline'; form-action 'none'; base-uri 'none'">
<meta name=viewport content="width=device-width, initial-scale=1">
<title>{title}</title><style>{style}</style></head>
<body>
{body}
</body></html>
"""

_STYLE = """
:root{color-scheme:light dark;--ground:light-dark(#fff,#15171a);--card:light-dark(#f6f7f9,#1e2126);
--ink:light-dark(#1c1e21,#e6e8eb);--soft:light-dark(#5a6068,#a2a9b3);--line:light-dark(#d9dde2,#363b43);
--good:light-dark(#00664b,#4ed0a8);--partly:light-dark(#7a5200,#e8b84a);--bad:light-dark(#a93500,#ff9166);
--accent:light-dark(#0062a3,#6db9f2)}
:root:has(#theme-1:checked){color-scheme:light}:root:has(#theme-2:checked){color-scheme:dark}
*{box-sizing:border-box}
body{margin:0 auto;max-width:84rem;padding:0 1rem 3rem;overflow-wrap:anywhere;
background:var(--ground);color:var(--ink);
font:16px/1.5 system-ui,"Noto Sans","Noto Sans CJK SC","PingFang SC","Microsoft YaHei",sans-serif}
h1{font-size:1.6rem;margin:1.5rem 0 .25rem}h2{font-size:1.1rem;margin:.2rem 0 .4rem}
h3{font-size:1rem;margin:0 0 .3rem}p{margin:.3rem 0}ul{margin:.3rem 0;padding-left:1.2rem}
small,.tag,.why,legend{color:var(--soft);font-size:.85rem;font-weight:400}
nav{display:flex;flex-wrap:wrap;gap:.3rem 1.2rem;padding:.6rem 0;
border-bottom:1px solid var(--line);margin-bottom:1rem}
fieldset{border:0;padding:0;margin:0;display:flex;flex-wrap:wrap;gap:.25rem;align-items:center}
legend{float:left;margin-right:.3rem}
nav input{position:absolute;opacity:0}
nav span{display:inline-block;padding:.15rem .6rem;border:1px solid var(--line);border-radius:1rem;
font-size:.9rem;cursor:pointer}
nav input:checked+span{background:var(--accent);border-color:var(--accent);color:var(--ground)}
nav input:focus-visible+span{outline:3px solid var(--accent);outline-offset:2px}
article{background:var(--card);border:1px solid var(--line);border-radius:.6rem;padding:.8rem 1rem;
margin:0 0 1rem}
article{scroll-margin-top:6rem}
.columns{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,14rem),1fr));gap:.7rem}
section{background:var(--ground);border:1px solid var(--line);border-radius:.5rem;
padding:.6rem .8rem;min-width:0}
section.reported{background:none;border-style:dashed}
.overview{border:0;margin:0 0 1rem;padding:0}.overview table{margin-top:.4rem}
.overview td:first-child{white-space:normal;min-width:9rem;max-width:34rem;position:sticky;left:0;
background:var(--ground)}
.overview a{color:var(--ink);text-decoration:none}.overview a:hover{text-decoration:underline}
th.reported{color:var(--soft)}
@media(min-width:60rem){nav{position:sticky;top:0;background:var(--ground);z-index:1}
.reply{max-height:26rem;overflow:auto}}
.prose{white-space:pre-wrap}
pre{overflow-x:auto;background:var(--card);border:1px solid var(--line);border-radius:.4rem;
padding:.5rem .7rem;margin:.4rem 0;font-size:.85rem;line-height:1.4}
details{border-top:1px solid var(--line);margin-top:.4rem;padding-top:.4rem}
summary{cursor:pointer;color:var(--accent)}
.badge{display:inline-block;padding:0 .5rem;border:1px solid;border-radius:1rem;font-size:.85rem}
.good{color:var(--good)}.partly{color:var(--partly)}.bad{color:var(--bad)}
.picked{color:var(--bad);font-weight:600}
.wide{overflow-x:auto;white-space:nowrap}table{border-collapse:collapse;font-size:.9rem}
th,td{text-align:left!important;padding:.25rem .8rem .25rem 0;border-bottom:1px solid var(--line)}
.k,.kn,.kc,.ow{color:light-dark(#7a2fb5,#d2a8ff)}.s1,.s2,.sd,.sa,.si,.se{color:light-dark(#0a5c36,#8fd9a8)}
.c1,.cm{color:var(--soft);font-style:italic}.nf,.nc,.nb,.nn{color:light-dark(#0062a3,#79c0ff)}
.mi,.mf{color:light-dark(#a93500,#ffa577)}
"""
