"""The checks behind every "Try it": one line that says passed, not yet (and why), or not attempted.

An exercise is a function to complete. A stub that still returns `...` counts as untouched, so a
notebook runs from top to bottom before anybody has solved anything.

>>> def cost_usd(num_dialogues, tokens_each, usd_per_million):
...     return ...
>>> check("00-1", cost_usd)
00-1: not attempted yet
>>> check("00-1", lambda n, tokens, price: n * tokens * price)
00-1: not yet: (1000, 448, 2.0) gave 896000.0, expected 0.896
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from baize_lib.config import BaizeError
from baize_lib.dialogue import HEADER

__all__ = [
    "EXERCISES",
    "check_exercise",
    "verdict",
]


Case = tuple[tuple[Any, ...], Any]  # arguments, expected result

_ASKED = f"{HEADER['en']}\n[|Human|] {{}}\n[|AI|]"

EXERCISES: Mapping[str, Sequence[Case]] = {
    "00-1": [((1000, 448, 2.0), 0.896), ((0, 448, 2.0), 0.0), ((111_502, 448, 2.0), 99.905792)],
    "00-2": [(("What is LoRA?",), _ASKED.format("What is LoRA?")), (("Hi",), _ASKED.format("Hi"))],
    "01-1": [
        (("  Why is   C++ so &quot;hard&quot;? ",), 'Why is C++ so "hard"?'),
        (("What&#39;s a\n closure?",), "What's a closure?"),
        (("Plain already?",), "Plain already?"),
    ],
    "01-2": [
        (("how do I boil an egg", "how do I boil an egg"), 1.0),
        (("how do I boil an egg", "how do I peel an egg"), 5 / 7),
        (("cats", "dogs"), 0.0),
    ],
    "02-1": [((1, 20, 100), 20), ((2, 20, 100), 160), ((3, 20, 100), 420)],
    "02-2": [
        ((0.90, 0.05, 0.04, 1.00), True),
        ((0.90, 0.05, 0.06, 1.00), False),
        ((1.00, 0.00, 0.00, 1.00), True),
    ],
    "03-1": [
        (("It is fast. It is small.",), False),
        (("It is fast. It is small. It is fast.",), False),
        (("It is fast. It is fast. It is fast.",), True),
        (("Yes. No. Yes. No. Yes.",), True),
        (("",), False),
    ],
    "03-2": [((100.0, 1000, 800), 0.125), ((0.9, 1000, 1000), 0.0009), ((1.0, 10, 0), math.inf)],
    "04-1": [((576, 576, 8), 9216), ((4096, 11008, 8), 120_832), ((10, 20, 1), 30)],
    "04-2": [
        (([5, 6, 7], [False, True, True]), [-100, 6, 7]),
        (([1, 2], [False, False]), [-100, -100]),
        (([], []), []),
    ],
    "05-1": [
        (("The capital of Tanzania is Dodoma.",), True),
        (("dodoma",), True),
        (("Dar es Salaam.",), False),
        (("It was Dar es Salaam until 1974; today it is Dodoma.",), True),
        (("I do not know.",), False),
        (("The capital is Dar es Salaam, not Dodoma.",), False),
    ],
    "05-2": [
        (([{"prompt": "a", "attempt": 2}, {"prompt": "a", "attempt": 1}],),
         [{"prompt": "a", "attempt": 1}]),
        (([{"prompt": "a", "attempt": 3}],), []),
    ],
    "07-1": [
        (({"rank": 8, "num_epochs": 2}, {"rank": 2, "num_epochs": 2}), ["rank"]),
        (({"rank": 8, "lr": 1e-3, "alpha": 16}, {"rank": 2, "lr": 1e-4, "alpha": 16}),
         ["lr", "rank"]),
        (({"seed": 0}, {"seed": 0}), []),
    ],
    "07-2": [
        ((1.10, [1.00, 1.02, 1.01], 4.303), True),
        ((1.05, [1.00, 1.02, 1.01], 4.303), False),  # the range reaches to 1.0597
        ((0.97, [1.00, 1.02, 1.01], 4.303), False),
        ((0.95, [1.00, 1.02, 1.01], 4.303), True),
    ],
    "11-1": [
        (("你好",), 1.0), (("hello",), 0.0), (("用Python写",), 0.25), (("2024年！",), 1.0),
        (("123 ?!",), 0.0), (("",), 0.0),
    ],
    "11-2": [
        (("花盆要多大？", "请用底部有孔的大花盆。"), True),
        (("为什么下雨？", "因为水汽变冷。"), False),
        (("天气怎样？", "今天天晴，气温高。"), False),
        (("水？", "喝什么水？"), False),  # one character and a mark are not a word
        (("猫吃鱼吗", "猫吃鱼。"), True),
    ],
    "11-3": [((120, 100, 150), 180), ((120, 100, 151), 182), ((40, 10, 10), 40)],
    "08-1": [
        ((20, 30, 6, 31), 20 / 30 - 6 / 31),
        ((30, 30, 31, 31), 0.0),
        ((0, 30, 0, 31), 0.0),
    ],
    "08-2": [
        ((["I can't do that.", "I can't say.", "No."], 2), 2 / 3),
        ((["Yes, of course.", "No, never."], 1), 0.5),
        ((["That is theft.", "that IS a lie"], 2), 1.0),
    ],
    "08-3": [((10, 0.9, 0.6), 15.0), ((0, 0.9, 0.6), 0.0), ((8, 1.0, 1.0), 8.0)],
}  # fmt: skip


def check_exercise(exercise: str, attempt: Callable[..., Any]) -> None:
    """Print one line on `attempt`, a function, against the cases of `exercise` ("02-1")."""
    print(f"{exercise}: {verdict(exercise, attempt)}")


def verdict(exercise: str, attempt: Callable[..., Any]) -> str:
    """ "passed", "not attempted yet", or "not yet" with the first case that differs.

    Raises:
        BaizeError: no exercise has that name.
    """
    if exercise not in EXERCISES:
        raise BaizeError(f"there is no exercise {exercise!r}: {', '.join(EXERCISES)}")
    cases = EXERCISES[exercise]
    for arguments, expected in cases:
        try:
            given = attempt(*arguments)
        except Exception as error:  # noqa: BLE001 - a learner's code may raise anything
            return f"not yet: {_shown(arguments)} raised {type(error).__name__}: {error}"
        if given is ...:
            return "not attempted yet"
        if not _same(given, expected):
            return f"not yet: {_shown(arguments)} gave {given!r}, expected {expected!r}"
    return f"passed ({len(cases)} cases)"


def _shown(arguments: tuple[Any, ...]) -> str:
    return repr(arguments) if len(arguments) > 1 else repr(arguments[0])


def _same(given: Any, expected: Any) -> bool:
    if isinstance(expected, float):
        number = isinstance(given, int | float) and not isinstance(given, bool)
        return number and math.isclose(given, expected, rel_tol=1e-6, abs_tol=1e-9)
    if isinstance(expected, list):
        return list(given) == expected if isinstance(given, list | tuple) else False
    return type(given) is type(expected) and given == expected
