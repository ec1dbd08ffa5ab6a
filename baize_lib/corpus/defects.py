"""What is wrong with a dialogue, by name: each defect is a function that counts itself there.

A table of defects is one loop over `DEFECTS`, and a filter is a defect that one does not want to
train on. What each means, and the patterns it looks for with examples, stand in `defects.toml`.

>>> from baize_lib.dialogue import Dialogue, Message
>>> said = Message("user", "Who won?"), Message("assistant", "As an AI, I can't know. Who won?")
>>> sorted(name for name, defect in DEFECTS.items() if defect(Dialogue(said)))
['as_an_ai']

The rules read the surface of English and Chinese text. They are right on the examples and
look-alikes in `tests/test_inspection.py`; elsewhere they point at what to read.
"""

import ipaddress
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from baize_lib.corpus.formats import dialogues_in
from baize_lib.dialogue import Dialogue, check_language, tagged, without_thoughts
from baize_lib.files import compiled, written
from baize_lib.text import declines, jaccard, language_of, num_words, prose, same_question, words

__all__ = ["count_defects"]

Defect = Callable[[Dialogue], int]  # how often; 0 is fine

WRITTEN = written(__file__, "defects.toml")
_PATTERN = compiled(WRITTEN["pattern"])


# ---- Rules over one text -------------------------------------------------------------------------


def dangles(text: str) -> bool:
    """It ends on a speaker's tag, or a part of one."""
    return bool(_PATTERN["tag_at_end"].search(prose(text)))


def speaks_for_both(text: str) -> bool:
    """It shows a layout's tokens, or speakers' tags: brackets, both speakers, or one who asks."""
    text = _PATTERN["tag_at_end"].sub("", prose(text))
    if _PATTERN["token"].search(text):
        return True
    tags = [(i, line, tagged(line)) for i, line in enumerate(text.split("\n")) if line.strip()]
    tags = [(i, line, tag) for i, line, tag in tags if tag and tag.role != "system"]
    return len({tag.role for *_, tag in tags}) == 2 or any(
        tag.is_asked_for
        or line.lstrip().startswith("#")
        or (tag.role == "user" and i and tag.rest.rstrip().endswith(("?", "？")))
        or (tag.label.lower() in ("assistant", "chatgpt", "助手") and not i)
        for i, line, tag in tags
    )


def loops(text: str) -> bool:
    """Two fifths of what it says was said before in it, word for word, or one sign over and over.

    Looked at are runs of four words, of eight characters in Chinese; numbers and code are left out.
    """
    text = prose(text)
    said = [word for word in words(text) if not word.isdigit()]
    width = 8 if 2 * sum(word >= "\u3040" for word in said) > len(said) else 4
    runs = list(zip(*(said[k:] for k in range(width)), strict=False))
    repeats = len(runs) >= 3 and len(set(runs)) <= 0.6 * len(runs)
    return repeats or bool(re.search(r"([，、；：。！？）])\1{5,}", text))


def stops_midway(text: str) -> bool:
    """Its last line has 20 words and no end: a guess, where no record tells. Lists and code may."""
    line = text.rstrip().rpartition("\n")[2]
    if not line or not (line[-1].isalnum() or line[-1] in ",;:，、；："):
        return False
    is_list_or_code = _PATTERN["listed"].match(line) or re.search(r"[=(){}<>_/\\]", line)
    return num_words(line) >= 20 and not is_list_or_code


def as_an_ai(text: str) -> bool:
    """Its writer speaks of itself "as an AI language model"."""
    plain = f" {text}".lower()  # a quick look before the slow one
    may_be = any(word in plain for word in WRITTEN["of_models"])
    return may_be and bool(_PATTERN["as_an_ai"].search(prose(text)))


def personal_data(text: str) -> Iterator[tuple[str, str]]:
    """Yield (kind, string) for what is shaped like personal data: e-mail, phone, card, ip, key.

    Examples are let pass (you@example.com, 555-01xx numbers, private addresses); a card must pass
    the Luhn check. A shape is not proof: a made-up address looks like a real one.
    """
    if not re.search(r"[@\d]|-----", text):  # a quick look before the slow ones
        return
    for kind, is_real in _PERSONAL.items():
        for found in [match[0] for match in _PATTERN[kind].finditer(text)]:
            if is_real(found):
                text = text.replace(found, " ")  # no part of a card is a phone
                yield kind, found


def _luhn(number: str) -> bool:
    """ISO/IEC 7812-1, annex B: every second digit from the right doubled, sum divisible by 10."""
    digits = [int(digit) for digit in number if digit.isdigit()]
    doubled = [2 * digit - 9 * (digit > 4) for digit in digits[-2::-2]]
    return len(set(digits)) > 2 and (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0


_PERSONAL: dict[str, Callable[[str], Any]] = {
    "card": _luhn,
    "e-mail": lambda address: not _PATTERN["nobody"].search(address),
    "phone": lambda phone: not re.search(r"555[ .-]?01\d\d", phone),
    "ip": lambda address: ipaddress.ip_address(address).is_global,
    "key": bool,
}


# ---- Defects of a dialogue -----------------------------------------------------------------------


def _question_repeated(dialogue: Dialogue) -> int:
    asked = dialogue.by("user")
    return sum(any(same_question(a, b) for b in asked[:i]) for i, a in enumerate(asked) if a)


def _reply_repeated(dialogue: Dialogue) -> int:
    """Replies that say an earlier one, or their own question, again."""
    times, earlier, question = 0, [], ""
    for message in dialogue.messages:
        said = message.content
        if message.role == "assistant":
            others = (*earlier, question) if len(words(said)) >= 4 else ()
            times += any(jaccard(said, other, width=1) >= 0.9 for other in others)
            earlier.append(said)
        else:
            question = said
    return times


def _other_language(expected: str) -> Defect:
    """Messages in another language than `expected`, or, in English, with a Chinese word in them,
    that nobody has asked for; names and terms get the benefit of the doubt."""

    def differs(text: str) -> bool:
        other = re.search(r"[\u0370-\u1cff\u2e80-\ud7ff\uf900-\ufdff\ufe70-\ufeff]", text)
        if not other and len(words(prose(text))) < 6:
            return False
        mixed = expected == "en" and other and _PATTERN["chinese_word"].search(prose(text))
        return bool(mixed) or language_of(text) not in ("", expected)

    def count(dialogue: Dialogue) -> int:
        said = [message.content for message in dialogue.messages]
        asked = ["", *said]  # what was said before each
        return sum(
            differs(text) and not _PATTERN["of_language"].search(f"{before}\n{text}")
            for before, text in zip(asked, said, strict=False)
        )

    return count


def _known(attribute: str) -> Defect:
    """How many of something the collector recorded; 0 for a dialogue from elsewhere."""
    return lambda dialogue: len(getattr(dialogue, attribute, ()))


def _messages(rule: Callable[[str], Any]) -> Defect:
    return lambda dialogue: sum(bool(rule(message.content)) for message in dialogue.messages)


def _replies(rule: Callable[[str], Any]) -> Defect:
    return lambda dialogue: sum(bool(rule(reply)) for reply in dialogue.by("assistant"))


DEFECTS: dict[str, Defect] = {
    "failed": lambda dialogue: int(getattr(dialogue, "status", "ok") != "ok"),
    "role_order": lambda dialogue: int(
        not re.fullmatch(
            "(?:system )?user assistant(?: user assistant)*",
            " ".join(m.role for m in dialogue.messages),
        )
    ),
    "empty_turn": _messages(lambda text: not text.strip()),
    "dangling_tag": _messages(dangles),
    "both_voices": _messages(speaks_for_both),
    "thoughts": _messages(lambda text: without_thoughts(text) != text),
    "broken_characters": _messages(_PATTERN["broken"].search),
    "cut_reply": _known("cut_turns"),
    "unfinished": _replies(stops_midway),
    "open_code": _messages(lambda text: text.count("```") % 2),
    "loop": _replies(loops),
    "question_repeated": _question_repeated,
    "reply_repeated": _reply_repeated,
    "short_reply": _replies(lambda text: 0 < len(words(text)) < 3),
    "asks_back": _replies(lambda text: _PATTERN["asks_back"].search(prose(text))),
    "as_an_ai": _replies(as_an_ai),
    "refusal": _replies(declines),
    "other_language": _other_language("en"),
    "personal_data": lambda d: sum(len(list(personal_data(m.content))) for m in d.messages),
    "repaired": _known("repairs"),
}


def defects_for(language: str = "en") -> dict[str, Defect]:
    """`DEFECTS` for a corpus in this language: "en" (as they are) or "zh"."""
    if check_language(language) == "en":
        return DEFECTS
    return DEFECTS | {"other_language": _other_language(language)}


def count_defects(dialogues: Iterable[Dialogue], language: str = "en") -> list[dict[str, Any]]:
    """One row a defect: its meaning, dialogues with it, their share, times, an example's id."""
    rows = {
        name: {"defect": name, "dialogues": 0, "share": 0.0, "times": 0, "meaning": meaning,
               "example": ""}
        for name, meaning in WRITTEN["meaning"].items()
    }  # fmt: skip
    checks, total = defects_for(language), 0
    for dialogue in dialogues_in(dialogues):
        total += 1
        for name, check in checks.items():
            if times := check(dialogue):
                row = rows[name]
                row["example"] = row["example"] or dialogue.id
                row["dialogues"] += 1
                row["times"] += times
    return [row | {"share": row["dialogues"] / max(total, 1)} for row in rows.values()]
