"""What a corpus holds, and what is wrong with it: numbers first, then defects by name.

Look at data before training on it. `statistics` counts in one pass. A *defect* is a named function
from a dialogue to how often it occurs there, most of them a small rule over one message's text
(`loops`, `refuses`…). A table of defects is one loop over `DEFECTS`, and a filter
(`corpus.FILTERS`) is a defect one refuses to train on.

>>> from baize_lib.dialogue import Dialogue, Message
>>> said = Message("user", "Who won?"), Message("assistant", "As an AI, I can't know. Who won?")
>>> sorted(defects(Dialogue(said)))
['as_an_ai']

The rules read the surface of English and Chinese text. They are right on the examples and
look-alikes in `tests/test_inspection.py`; elsewhere they point at what to read.
"""

import ipaddress
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from operator import eq
from typing import Any

from baize_lib.dialogue import Dialogue, check_language
from baize_lib.text import _CJK, declines, language_of, prose, words

__all__ = [
    "DEFECTS",
    "defects_for",
    "defects",
    "count_defects",
    "other_language",
    "personal_data",
    "speaks_for_both",
    "dangles",
    "loops",
    "stops_midway",
    "asks_back",
    "as_an_ai",
]


Defect = Callable[[Dialogue], int]  # how often; 0 is fine


# ---- rules over one text ------------------------------------------------------------------------

_NAMED = r"(?:human|ai|人类|用户|助手)"
_TAG = re.compile(
    rf"\[\|\s*(?:human|ai)\s*\|\]|^[ \t]*(?:\[{_NAMED}\]|【{_NAMED}】)"
    r"|<\|(?:im_start|im_end|endoftext)\|>",
    re.IGNORECASE | re.MULTILINE,
)
_TAG_AT_END = re.compile(
    rf"(?:\[\|[a-z ]{{0,7}}\|?\]?|^[ \t]*(?:\[{_NAMED}\]?|【{_NAMED}】?)[:：]?)\s*\Z",
    re.IGNORECASE | re.MULTILINE,
)
_LABEL = re.compile(
    r"^[ \t]*(?:\*\*)?(?:(human|user|人类|用户|问)|(?:ai|assistant|助手|人工智能助手|答))"
    r"(?:\*\*)?[ \t]*[:：]",
    re.IGNORECASE | re.MULTILINE,
)
_BRACKETS = ("[", "【", "<|")


def dangles(text: str) -> bool:
    """It ends on a speaker's tag, or a part of one."""
    return _any_in(_BRACKETS, text[-16:]) and bool(_TAG_AT_END.search(prose(text)))


def speaks_for_both(text: str) -> bool:
    """It shows a tag before its end, or labels for both speakers."""
    text = prose(text)
    if _any_in(_BRACKETS, text) and _TAG.search(_TAG_AT_END.sub("", text)):
        return True
    return len({bool(human) for human in _LABEL.findall(text)}) == 2


_SENTENCE_END = re.compile(r"[.!?。！？\n]+")
_CLAUSE_END = re.compile(r"[.!?。！？，；：、\n]+")  # Chinese strings its sentences with commas
_STUTTER = re.compile(r"\b([^\W\d]{2,}+)(?:\W+\1\b){5,}", re.IGNORECASE)
_STUTTER_ZH = re.compile(rf"([{_CJK}]{{1,6}})\1{{5,}}|([，、；：。！？）])\2{{5,}}")


def loops(text: str) -> bool:
    """It says a sentence three times, stutters, or repeats two fifths of its four-word runs.

    In Chinese a clause of five characters is what a sentence of four words is in English, and a
    stutter needs no space between.
    """
    text = prose(text)
    said = words(text)
    if re.search(f"[{_CJK}]", text) and _loops_zh(text):
        return True
    if len(said) >= 24 and len(set(said)) < 0.6 * len(said) + 3:  # else it cannot repeat so much
        said = [word for word in said if not word.isdigit()]
        runs = list(zip(said, said[1:], said[2:], said[3:], strict=False))
        if len(set(runs)) < 0.6 * len(runs):
            return True
    sentences = [part.strip() for part in _SENTENCE_END.split(text)]
    if len(set(sentences)) < len(sentences) - 1:
        for sentence, times in Counter(sentences).items():
            if times >= 3 and len(words(sentence)) >= 4:
                return True
    return sum(map(eq, said, said[1:])) >= 5 and bool(_STUTTER.search(text))


def _loops_zh(text: str) -> bool:
    clauses = Counter(part.strip() for part in _CLAUSE_END.split(text))
    again = (part for part, times in clauses.items() if times >= 3 and len(words(part)) >= 5)
    return any(re.search(f"[{_CJK}]", part) for part in again) or bool(_STUTTER_ZH.search(text))


_NOT_PROSE = re.compile(r"\s|[-*•|#>\"“'「]|\d+[.)]|.*[=(){}<>_/\\]")


def stops_midway(text: str) -> bool:
    """A long text without an end: a guess, for where no ledger tells. Lists and code may.

    Long is 20 words; three Chinese characters count as two, about the length of a word.
    """
    text = text.rstrip()
    if not text or not (text[-1].isalnum() or text[-1] in ",;:，、；："):
        return False
    if len(words(text)) - len(re.findall(f"[{_CJK}]", text)) // 3 < 20:
        return False
    return not _NOT_PROSE.match(text[text.rfind("\n") + 1 :])


_ADDRESSES = re.compile(r"\b(?:you|your|we|i|anything)\b|[你您]|吗|呢", re.IGNORECASE)


def asks_back(text: str) -> bool:
    """It ends by asking the human something; quoted and listed questions don't count."""
    text = prose(text).rstrip()
    if not text.endswith(("?", "？")):
        return False
    asked = _SENTENCE_END.split(text[:-1])[-1]
    listed = re.match(r"\s*(?:[-*•\"“'「]|\d+[.)])", text[text.rfind("\n") + 1 :])
    return bool(_ADDRESSES.search(asked)) and not listed


_MODEL = (
    r"(?:ai|artificial intelligence|(?:ai )?language model|chatbot|virtual assistant"
    r"|computer program)(?: (?:language model|chatbot|assistant|program|model|system))*"
)
_MODEL_ZH = (
    r"(?:一[个名款种位])?(?:由[^，。\n]{1,12}的)?(?:大型|大|智能)?(?:ai|人工智能|语言模型|聊天机器人)"
    r"(?:语言)?(?:模型|助手|助理|程序|系统|机器人)?"
)
_AS_AN_AI = re.compile(
    rf"(?:^|[.!?,;:\n(]\s*|\b(?:but|and|so|that|since|because|sorry)\s+)"
    rf"as an? (?:large |mere |helpful )*{_MODEL}"
    r"(?: (?:created|trained|developed|designed|made) [^.,\n]{1,40})?(?:,| i\b)"
    rf"|\bi(?:'m| am) (?:just |only |simply )?an? (?:large |helpful |computer )*{_MODEL}"
    r"(?=\s*(?:[.,;!)]|\Z)| (?:and|so|but|with|without|that|which|who|trained|created|designed"
    r"|developed|built|made|from|by|here|not)\b)"
    rf"|作为{_MODEL_ZH}[，,、我]|我(?:只|仅仅|仅)?是{_MODEL_ZH}(?=[，,。！!；\s]|\Z|而|没有|无法|不)",
    re.IGNORECASE,
)
_MODEL_MARKS = (
    " ai",
    "artificial",
    "language model",
    "chatbot",
    "virtual",
    "computer",
    "作为",
    "我",
)


def as_an_ai(text: str) -> bool:
    """Its writer speaks of itself "as an AI language model"."""
    return _any_in(_MODEL_MARKS, text.lower()) and bool(_AS_AN_AI.search(prose(text)))


def _any_in(marks: tuple[str, ...], text: str) -> bool:
    """Whether any mark occurs: a quick look before a slow pattern."""
    return any(map(text.__contains__, marks))


_NOT_LATIN = re.compile(r"[\u0370-\u1cff\u2e80-\ud7ff\uf900-\ufdff\ufe70-\ufeff]")

# ASCII: in Chinese, text runs into an address without a space
_EMAIL = re.compile(r"[\w.+-]{1,64}@((?:[\w-]+\.)+[a-z]{2,})\b", re.IGNORECASE | re.ASCII)
_EXAMPLE_DOMAIN = re.compile(r"(?:^|\.)(?:example(?:\.\w+)?|test|invalid)$", re.IGNORECASE)
_PHONE = re.compile(
    r"(?<![a-zA-Z0-9_.+-])(?:\+\d{1,3}[ .-]?(?:\(\d{1,4}\)[ .-]?)?\d{2,4}(?:[ .-]?\d{2,4}){2,3}"
    r"|\(\d{3}\) ?\d{3}[ .-]\d{4}|\d{3}[.-]\d{3}[.-]\d{4}|1[3-9]\d{9})(?![a-zA-Z0-9_-])"
)
_FICTIONAL = re.compile(r"555[ .-]?01\d\d")
_CARD = re.compile(r"(?<![\w.-])[3-6]\d{3}(?:[ -]?\d){9,15}(?![\w-])", re.ASCII)
_IP = re.compile(
    r"(?<![\w.])(?<!version )(?<!版本)(?:\d{1,3}\.){3}\d{1,3}(?![\w.]*\d)", re.IGNORECASE | re.ASCII
)
_KEY = re.compile(
    r"\b(?:sk-[\w-]{20,}|hf_[A-Za-z0-9]{30,}|gh[pousr]_[A-Za-z0-9]{36}|AKIA[0-9A-Z]{16}"
    r"|AIza[\w-]{35}|xox[abpr]-[\w-]{10,})|-----BEGIN [A-Z ]*PRIVATE KEY-----",
    re.ASCII,
)
_KEY_MARKS = ("sk-", "hf_", "ghp_", "gho_", "ghu_", "ghs_", "ghr_", "AKIA", "AIza", "xox", "-----")
_DIGIT = re.compile("[0-9]")


def personal_data(text: str) -> Iterator[tuple[str, str]]:
    """Yield (kind, string) for what is shaped like personal data: e-mail, phone, card, ip, key.

    Reserved examples are let pass (example.com, 555-01xx numbers, private addresses); a card must
    pass the Luhn check. A shape is not proof: a made-up address looks like a real one.
    """
    if "@" in text:
        for found in _EMAIL.finditer(text):
            if not _EXAMPLE_DOMAIN.search(found[1]):
                yield "e-mail", found[0]
    if _DIGIT.search(text):
        cards = [found[0] for found in _CARD.finditer(text) if _luhn(found[0])]
        yield from (("card", card) for card in cards)
        for found in _PHONE.finditer(text):
            if not _FICTIONAL.search(found[0]) and not any(found[0] in card for card in cards):
                yield "phone", found[0]
        yield from (("ip", found[0]) for found in _IP.finditer(text) if _is_public(found[0]))
    if _any_in(_KEY_MARKS, text):
        yield from (("key", found[0]) for found in _KEY.finditer(text))


def _luhn(number: str) -> bool:
    """ISO/IEC 7812-1, annex B: every second digit from the right doubled, sum divisible by 10."""
    digits = [int(digit) for digit in number if digit.isdigit()]
    doubled = [2 * digit - 9 * (digit > 4) for digit in digits[-2::-2]]
    return len(set(digits)) > 2 and (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0


def _is_public(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_global
    except ValueError:
        return False


# ---- defects of a dialogue ----------------------------------------------------------------------


def _role_order(dialogue: Dialogue) -> int:
    roles = [message.role for message in dialogue.messages]
    roles = roles[1:] if roles[:1] == ["system"] else roles
    return int(not roles or roles != ["user", "assistant"] * (len(roles) // 2))


def _question_repeated(dialogue: Dialogue) -> int:
    asked = [words(question) for question in dialogue.by("user")]
    return sum(any(_alike(a, b) for b in asked[:i]) for i, a in enumerate(asked) if a)


def _reply_repeated(dialogue: Dialogue) -> int:
    times, earlier, question = 0, [], ()
    for message in dialogue.messages:
        said = words(message.content)
        if message.role != "assistant":
            question = said
            continue
        times += len(said) >= 4 and any(_alike(said, other) for other in (*earlier, question))
        earlier.append(said)
    return times


def _alike(a: tuple[str, ...], b: tuple[str, ...]) -> bool:
    """The same words, or, from ten words on, nine tenths of them in common and about as many."""
    if a == b:
        return True
    shorter, longer = sorted((len(a), len(b)))
    if shorter < 10 or shorter < 0.8 * longer:
        return False
    one, other = set(a), set(b)
    return len(one & other) >= 0.9 * len(one | other)


_BROKEN = re.compile("[\ufffd\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|Ã[\x80-\xbf]|â€[™œ\x9d˜“”]")


def _known(attribute: str) -> Defect:
    """How many of something the ledger recorded; 0 for a dialogue from elsewhere."""
    return lambda dialogue: len(getattr(dialogue, attribute, ()))


def _messages(rule: Callable[[str], Any]) -> Defect:
    return lambda dialogue: sum(bool(rule(message.content)) for message in dialogue.messages)


def _replies(rule: Callable[[str], Any]) -> Defect:
    return lambda dialogue: sum(bool(rule(reply)) for reply in dialogue.by("assistant"))


def other_language(expected: str = "en") -> Defect:
    """A defect: messages in another language than `expected` ("en" or "zh").

    Fewer than six words, or what is in no language for sure, gets the benefit of the doubt.
    """
    check_language(expected)

    def differs(text: str) -> bool:
        enough = len(words(prose(text))) >= 6 or _NOT_LATIN.search(text)
        return bool(enough) and language_of(text) not in ("", expected)

    return _messages(differs)


_TABLE: tuple[tuple[str, str, Defect], ...] = (
    ("failed", "the collector could not finish it",
     lambda dialogue: int(getattr(dialogue, "status", "ok") != "ok")),
    ("role_order", "roles do not alternate from a question to a reply", _role_order),
    ("empty_turn", "a message says nothing", _messages(lambda text: not text.strip())),
    ("dangling_tag", "a message ends on a speaker's tag", _messages(dangles)),
    ("both_voices", "one message speaks for both, or shows a tag", _messages(speaks_for_both)),
    ("broken_characters", "characters lost in decoding, or control characters",
     _messages(_BROKEN.search)),
    ("cut_reply", "a reply was cut by max_tokens", _known("cut_turns")),
    ("unfinished", "a long reply stops without an end (a guess)", _replies(stops_midway)),
    ("open_code", "a code fence is not closed", _messages(lambda text: text.count("```") % 2)),
    ("loop", "a reply goes round in circles", _replies(loops)),
    ("question_repeated", "the human asks nearly the same again", _question_repeated),
    ("reply_repeated", "a reply again, or only an echo of its question", _reply_repeated),
    ("short_reply", "a reply of one or two words",
     _replies(lambda text: 0 < len(words(text)) < 3)),
    ("asks_back", "a reply ends by asking the human something", _replies(asks_back)),
    ("as_an_ai", "the assistant speaks of itself as an AI model", _replies(as_an_ai)),
    ("refusal", "a reply declines; right for unsafe requests only", _replies(declines)),
    ("other_language", "a message in another language than the corpus", other_language("en")),
    ("personal_data", "strings shaped like an e-mail, phone, card, IP address or key",
     lambda d: sum(len(list(personal_data(message.content))) for message in d.messages)),
    ("repaired", "the transcript it was parsed from had faults", _known("repairs")),
)  # fmt: skip
DEFECTS: dict[str, Defect] = {name: defect for name, _, defect in _TABLE}
_MEANING = {name: meaning for name, meaning, _ in _TABLE}


def defects_for(language: str = "en") -> dict[str, Defect]:
    """`DEFECTS` for a corpus in this language: "en" (as they are) or "zh"."""
    return DEFECTS | {"other_language": other_language(language)}


def defects(dialogue: Dialogue, checks: dict[str, Defect] = DEFECTS) -> Counter[str]:
    """The defects of one dialogue: name -> how often."""
    return Counter({name: times for name, check in checks.items() if (times := check(dialogue))})


def count_defects(
    dialogues: Iterable[Dialogue], checks: dict[str, Defect] = DEFECTS
) -> list[dict[str, Any]]:
    """One row a defect: its meaning, dialogues with it, their share, times, an example's id."""
    affected, times, example, total = Counter(), Counter(), {}, 0
    for dialogue in dialogues:
        total += 1
        found = defects(dialogue, checks)
        times.update(found)
        affected.update(found.keys())
        for name in found:
            example.setdefault(name, dialogue.id)
    return [
        {
            "defect": name, "dialogues": affected[name], "share": affected[name] / max(total, 1),
            "times": times[name], "meaning": _MEANING.get(name, ""),
            "example": example.get(name, ""),
        }
        for name in checks
    ]  # fmt: skip
