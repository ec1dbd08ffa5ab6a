"""The code in an answer: found as a careful reader would find it, run, and compared.

An answer may hold a program in pieces, several variants, shell commands, sample output, an open
fence. `programs_in` gives what a reader might run, the whole first; the best of them counts:

    programs_in("~~~\\nx = 1\\n~~~\\nor\\n~~~\\nx = 2\\n~~~") -> ["x = 1\\nx = 2", "x = 1", "x = 2"]

Each is tried on unlike cases: a program also with another text or number than it was asked about, a
function with several arguments. Expected results never enter the sandbox: they are compared here.
"""

import ast
import json
import math
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from baize_lib.dialogue import fenced
from baize_lib.evaluation.sandbox import Outcome, run_code

_SECONDS = 3
_ELSEWHERE = "pandas numpy polars simplejson ujson orjson sympy more_itertools"
_BROKEN = (SyntaxError, ValueError, RecursionError, MemoryError)  # what no Python is answered with
Found = tuple[str, str]  # grade, reason


# ---- Finding it


def programs_in(text: str) -> list[str]:
    """What a reader might run, in the order in which to try it; [] where there is no code."""
    blocks, pieces = fenced(text), []
    for block in blocks:
        language = re.split(r"[\s{}.,:]+", block.info.strip("{. "))[0].lower()
        code = _without_prompts(textwrap.dedent(block.code)).strip("\n")
        if language not in ("py", "python", "python3", "ipython", "pycon", "") or not code.strip():
            continue
        if not block.closed:
            pieces += _runs_of_code(code)
        elif language or _does_something(code):
            pieces.append(code)
    if not blocks:
        pieces = _runs_of_code(_without_prompts(text))
        pieces = pieces or list(filter(_does_something, re.findall(r"`([^`\n]+)`", text)))
    if len(pieces) < 2:
        return pieces
    return ["\n".join(pieces), *pieces[:6]]


def _without_prompts(code: str) -> str:
    """Of a session at Python's prompt, what was typed."""
    if not re.search(r"(?m)^\s*>>> ", code):
        return code
    return "\n".join(re.findall(r"(?m)^\s*(?:>>>|\.\.\.) ?(.*)$", code))


_CODE_LINE = re.compile(
    r"\s*(import |from \w+ import|def |class |async |@\w|#|for .+:|while .+:|if .+:|with .+:|try:"
    r"|[\w.\[\], ]+ [-+*/]?= |[\w.]+\(.*\))"
)


def _runs_of_code(text: str) -> list[str]:
    """The stretches of lines that are Python, among lines that are prose."""
    lines, found, start = text.splitlines()[:400], [], 0
    while start < len(lines):
        end = len(lines) if _CODE_LINE.match(lines[start]) else start
        while end > start:
            try:
                ast.parse(textwrap.dedent("\n".join(lines[start:end])))
                break
            except _BROKEN as error:
                wrong = getattr(error, "lineno", 1) or 1  # counted from 1
                end = min(end - 1, start + wrong - 1)
        run = textwrap.dedent("\n".join(lines[start:end])).strip("\n")
        if _does_something(run):
            found.append(run)
        start = max(end, start + 1)
    return found


def _does_something(code: str) -> bool:
    """It parses, and is more than words or data that happen to parse ("Sure", "[0, 1, 1]")."""
    try:
        nodes = ast.parse(code).body
    except _BROKEN:
        return False
    calls = ast.Call | ast.Await
    return any(not isinstance(n, ast.Expr) or isinstance(n.value, calls) for n in nodes)


# ---- Trying it


def runs(spec: Mapping[str, Any], reply: str) -> Found:
    """The verdict on a first turn, a program: the best of what a reader might run.

    `spec["cases"]`: {"prints": pattern} or {"writes_json": true}, with "files" to run beside, and
    "swap": {pattern: text} to put into the program first. "constant": what must not be written out.
    """
    return _best(programs_in(reply), lambda code: _run_program(spec, code))


def follows_up(spec: Mapping[str, Any], replies: Sequence[str]) -> Found:
    """The verdict on the last turn: it defines a function that gives the right results.

    It may lean on what earlier turns imported. A case: {"args", "returns"} or {"args",
    "writes_json": the data}, with "files".
    """
    earlier = "\n".join(code for reply in replies[:-1] for code in programs_in(reply)[:1])
    imported = re.findall(r"(?m)^(?:import [\w., ]+|from \w+ import [\w., ]+)$", earlier)
    programs = programs_in(replies[-1])
    programs = [code if "__future__" in code else "\n".join([*imported, code]) for code in programs]
    return _best(programs, lambda code: _defines(spec["cases"], code))


def _best(programs: Sequence[str], tried: Callable[[str], Found]) -> Found:
    found: list[Found] = []
    for code in programs:
        found.append(tried(code))
        if found[-1][0] == "good":
            break
    return max(found, key=_rank, default=("bad", "no code"))


def _rank(found: Found) -> int:
    return ("bad", "look", "partly", "good").index(found[0])


def _run_program(spec: Mapping[str, Any], code: str) -> Found:
    if "constant" in spec and re.search(spec["constant"], _without_comments(code), re.ASCII):
        return "bad", "prints a constant"
    said, unseen = "", any("swap" in case for case in spec["cases"])
    for case in spec["cases"]:
        program, swap = code, case.get("swap", {})
        for old, new in swap.items():
            program = re.sub(old, new, program)
        if swap and program == code:
            continue
        outcome = run_code(program, files=case.get("files"), seconds=_SECONDS)
        missing = re.search(r"NameError: name '(\w+)' is not defined\s*$", outcome.stderr)
        if missing and "given" in spec:  # the question speaks of data that its reader has
            outcome = run_code(f"{missing[1]} = {spec['given']!r}\n{program}", seconds=_SECONDS)
        grade, seen = _seen(case, outcome)
        if grade != "good":
            return grade, f"{seen}, asked for {next(iter(swap.values()))}" if swap else seen
        said, unseen = said or seen, unseen and not swap
    return ("look", f"{said}; not seen to work it out") if unseen else ("good", said)


def _without_comments(code: str) -> str:
    """The program written anew by Python, without its comments and docstrings."""
    try:
        return re.sub(r'(?m)^\s*""".*?"""$', "", ast.unparse(ast.parse(code)))
    except _BROKEN:
        return code


def _seen(case: Mapping[str, Any], outcome: Outcome) -> Found:
    if outcome.ended != "ok":
        return _how_it_ended(outcome)
    if "prints" in case:
        if found := re.search(case["prints"], outcome.stdout, re.ASCII):
            return "good", f"prints {found[0].strip()[:30]}"
        return "bad", f"runs, prints {outcome.stdout.strip()[:30]!r}"
    if any(map(_json, outcome.files.values())):
        return "good", "leaves a JSON file"
    return "bad", "no JSON file"


def _how_it_ended(outcome: Outcome) -> Found:
    last = (outcome.stderr.strip().splitlines() or [""])[-1][:80]
    if outcome.ended != "error" or not last:
        return "bad", outcome.ended
    lacks = re.match(r"ModuleNotFoundError: No module named '(\w+)", last)
    if lacks and lacks[1] in _ELSEWHERE.split():
        return "look", f"needs {lacks[1]}, which the sandbox lacks"
    elsewhere = re.search(r"the sandbox does not allow (open|os\.mkdir) ", last)
    return ("look", f"wants another folder: {last[-60:]}") if elsewhere else ("bad", last)


def _defines(cases: Sequence[Mapping[str, Any]], code: str) -> Found:
    """The best of its functions: all of them are called with all cases, in one process."""
    calls = [{"args": case["args"], "files": case.get("files", {})} for case in cases]
    outcome = run_code(code, files=calls[0]["files"], calls=calls, seconds=_SECONDS)
    wrote = [data for text in outcome.files.values() if (data := _json(text))]
    found: list[Found] = []
    for line in outcome.report.splitlines():  # the program may have written into it what it liked
        row = _json(line)
        results = row.get("results") if isinstance(row, dict) else None
        if isinstance(results, list) and len(results) == len(cases):
            pairs = zip(results, cases, strict=True)
            grade, seen = min((_compared(*pair, wrote) for pair in pairs), key=_rank)
            found.append((grade, f"{str(row.get('name'))[:40]}() {seen}"))
    ended = ("bad", "no function") if outcome.ended == "ok" else _how_it_ended(outcome)
    return max(found, key=_rank, default=ended)


def _compared(result: Any, case: Mapping[str, Any], wrote: Sequence[Any]) -> Found:
    """One result as `trial.py` reports it, or what the files hold, beside what is right."""
    if "writes_json" in case:
        if case["writes_json"] in wrote:
            return "good", "works"
        return ("partly" if wrote else "bad"), "does not save the data it is given"
    wrong, expected = ("bad", "does not give what is right"), case["returns"]
    if not isinstance(result, dict) or "value" not in result:
        return wrong
    value = result["value"]
    if isinstance(expected, float) or isinstance(value, float):
        numbers = all(type(each) in (int, float) for each in (value, expected))
        near = numbers and math.isclose(value, expected, rel_tol=1e-3, abs_tol=1e-3)
        return ("good", "works") if near else wrong
    if type(value) is not type(expected) or value != expected:
        return wrong
    if result.get("kind") in ("NoneType", "bool", "int", "str", "list", "dict"):
        return "good", "works"
    return "partly", "gives the right items as another type"


def _json(text: str) -> Any:
    """What the JSON says, None where it is none, or nothing but a number, a word or emptiness."""
    try:
        value = json.loads(text)
    except _BROKEN:
        return None
    return value if isinstance(value, dict | list) and value else None
