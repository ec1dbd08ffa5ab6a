"""Calls what an answer defined, inside the sandbox, and writes down what came back.

It runs in a namespace of its own, beside code that may be hostile, so it knows no expected result
and gives no verdict: `programs.py` compares, in our process. One line a function and order of
arguments, since the prompts do not always fix a signature:

    {"name": "double", "results": [{"kind": "int", "value": 6}, {"raised": "TypeError"}]}
"""

import inspect
import json
import os
from itertools import islice, permutations

MOST_ITEMS, MOST_DEPTH, MOST_FUNCTIONS = 1000, 20, 20


def report(names, calls, descriptor):
    """Try every function in the namespace `names` with every call; write to `descriptor`."""
    write, dump = os.write, json.dumps  # the code may have replaced what others see
    texts = [dump(call["args"]) for call in calls]
    own = {id(value): value for value in names.values() if is_own(value)}
    for function in list(own.values())[:MOST_FUNCTIONS]:
        for order in orders(function, len(calls[0]["args"])):
            results = [
                result_of(function, json.loads(text), order, call.get("files", {}))
                for text, call in zip(texts, calls, strict=True)
            ]
            line = {"name": str(getattr(function, "__name__", "?"))[:40], "results": results}
            write(descriptor, dump(line).encode("utf-8", "replace") + b"\n")


def put_aside(given):
    """Keep the files that one call left, not those it was given, from the next."""
    for name in os.listdir("."):  # noqa: PTH208 - pathlib is slow to load
        new = name not in given and not name.startswith("call-")
        if new and os.path.isfile(name):  # noqa: PTH113
            os.replace(name, f"call-{len(os.listdir('.'))}-{name}")  # noqa: PTH105, PTH208


def is_own(value):
    """Whether it is a function of the answer: plain, decorated, partial or a bound method."""
    try:
        value = inspect.unwrap(getattr(value, "func", value))
        return inspect.isroutine(value) and value.__code__.co_filename == "answer.py"
    except (AttributeError, ValueError, TypeError):
        return False


def orders(function, num_args):
    """Which arguments to give, in which order: all of them first, then as few as it takes."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return
    needed = [p for p in parameters if p.default is p.empty and p.kind not in (2, 4)]
    for size in range(num_args, min(len(needed), num_args) - 1, -1):
        yield from permutations(range(num_args), size)


def result_of(function, args, order, files):
    """One call: its plain result, or the name of what it raised."""
    try:
        for name, text in files.items():
            with open(name, "w", encoding="utf-8") as file:  # noqa: PTH123
                file.write(text)
        given = [args[i] for i in order]
        parameters = inspect.signature(function).parameters.values()
        by_name = [p.name for p in parameters if p.kind == 3][: len(given)]
        place = len(given) - len(by_name)
        named = dict(zip(by_name, given[place:], strict=True))
        value = function(*given[:place], **named)
        return {"kind": type(value).__name__, "value": plain(value)}
    except BaseException as error:  # noqa: BLE001 - SystemExit too: it ends the call, not the trial
        return {"raised": type(error).__name__}
    finally:
        put_aside(files)


def plain(value, depth=0):
    """The value as JSON has it; an iterator is read, up to a thousand items.

    >>> plain((1, "a", (x for x in (True, None))))
    [1, 'a', [True, None]]
    """
    if depth > MOST_DEPTH:
        raise ValueError("too deep")
    if value is None or type(value) in (bool, int, float, str):
        return value if type(value) is not int or abs(value) < 1e15 else str(value)[:400]
    if type(value) is dict:
        items = islice(value.items(), MOST_ITEMS)
        return {str(plain(key)): plain(item, depth + 1) for key, item in items}
    return [plain(item, depth + 1) for item in islice(value, MOST_ITEMS)]
