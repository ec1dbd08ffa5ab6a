"""What is wrong with a dialogue, by name: each defect is a small function that counts itself.

Look at data before training on it. A *defect* is a named function from a dialogue to how often it
occurs there, most of them a rule over one message's text. A table of defects is one loop over
`DEFECTS`, and a filter is a defect that one does not want to train on.

>>> from baize_lib.dialogue import Dialogue, Message
>>> said = Message("user", "Who won?"), Message("assistant", "As an AI, I can't know. Who won?")
>>> sorted(name for name, defect in DEFECTS.items() if defect(Dialogue(said)))
['as_an_ai']

The rules read the surface of English and Chinese text. They are right on the examples and
look-alikes in `tests/test_inspection.py`; elsewhere they point at what to read.
"""

import ipaddress
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from baize_lib.corpus.formats import dialogues_in
from baize_lib.dialogue import Dialogue, check_language
from baize_lib.text import declines, jaccard, language_of, prose, same_question, words

__all__ = ["count_defects"]

Defect = Callable[[Dialogue], int]  # how often; 0 is fine


# ---- Speakers' tags and thoughts -----------------------------------------------------------------

_NAME = r"(?:human|ai|人类|用户|助手)"
_TAG = re.compile(
    rf"""
    \[\|\s*(?:human|ai)\s*\|\]                         # [|Human|]
    | ^[ \t]*(?:\[{_NAME}\]|【{_NAME}】)                 # [Human] or 【用户】 in front of a line
    | <\|[a-z_]{{2,20}}\|>                             # <|im_start|>, <|eot_id|>, <|user|>
    | \[/?INST\] | <</?SYS>> | </s>\s*(?:\Z|<s>|[\[<]) # LLaMA's
    | ^[ \t]*\#{{2,4}}[ ]*(?:human|user|assistant|ai|instruction|response)[ ]*:  # ### Human:
    | ^[ \t]*(?:assistant|chatgpt|助手)[ \t]*[:：]       # Assistant: …
    | (?<=\n)[ \t]*(?:human|user|人类|用户)[ \t]*[:：].*[?？]  # User: and then what?
    """,
    re.IGNORECASE | re.MULTILINE | re.VERBOSE,
)
_TAG_AT_END = re.compile(
    rf"(?:\[\|[a-z ]{{0,7}}\|?\]?|^[ \t]*(?:\[{_NAME}\]?|【{_NAME}】?)[:：]?)\s*\Z",
    re.IGNORECASE | re.MULTILINE,
)
_LABEL = re.compile(
    r"^[ \t]*(?:\*\*)?(?:(human|user|人类|用户|问)|(?:ai|assistant|助手|人工智能助手|答))"
    r"(?:\*\*)?[ \t]*[:：]",
    re.IGNORECASE | re.MULTILINE,
)


def dangles(text: str) -> bool:
    """It ends on a speaker's tag, or a part of one."""
    return bool(_TAG_AT_END.search(prose(text)))


def speaks_for_both(text: str) -> bool:
    """It shows a tag before its end, or labels for both speakers."""
    text = prose(text)
    if _TAG.search(_TAG_AT_END.sub("", text) if "[" in text or "【" in text else text):
        return True
    return len({bool(human) for human in _LABEL.findall(text)}) == 2


_THOUGHT = re.compile(r"</?think(?:ing)?>|<\|channel\|>", re.IGNORECASE)


# ---- What a reply does ---------------------------------------------------------------------------


def loops(text: str) -> bool:
    """Two fifths of what it says was said before in it, word for word, or one sign over and over.

    Looked at are runs of four words, of eight characters in Chinese; numbers and code are left out.
    """
    text = prose(text)
    said = [word for word in words(text) if not word.isdigit()]
    width = 8 if 2 * sum(word >= "\u3040" for word in said) > len(said) else 4
    if len(said) >= width + 2 and len(set(said)) < 0.7 * len(said) + 3:  # else it cannot repeat so
        runs = list(zip(*(said[k:] for k in range(width)), strict=False))
        if len(set(runs)) <= 0.6 * len(runs):
            return True
    return bool(re.search(r"([，、；：。！？）])\1{5,}", text))


_LISTED = re.compile(r"\s|[-*•·–—+|#>\"“'「]|(?:\d+|[a-z]|[ivx]+)[.):、]|step \d|[一二三四五①-⑳（]",
                     re.IGNORECASE)  # fmt: skip


def stops_midway(text: str) -> bool:
    """Its last line is long and has no end: a guess, where no record tells. Lists and code may.

    Long is 20 words; three Chinese characters count as two, about the length of a word.
    """
    line = text.rstrip().rpartition("\n")[2]
    if not line or not (line[-1].isalnum() or line[-1] in ",;:，、；：") or _LISTED.match(line):
        return False
    said = words(line)
    long = len(said) - sum(word >= "\u3040" for word in said) // 3 >= 20
    return long and not re.search(r"[=(){}<>_/\\]", line)


def asks_back(text: str) -> bool:
    """It ends by asking the human something; quoted and listed questions don't count."""
    text = prose(text).rstrip()
    if not text.endswith(("?", "？")):
        return False
    asked = re.split(r"[.!?。！？\n]+", text[:-1])[-1]
    listed = re.match(r"\s*(?:[-*•\"“'「]|\d+[.)])", text[text.rfind("\n") + 1 :])
    addressed = re.search(r"\b(?:you|your|we|i|anything)\b|[你您]|吗|呢", asked, re.IGNORECASE)
    return bool(addressed) and not listed


_MODEL = (  # an AI, an AI language model, an artificial intelligence (AI), …
    r"(?:ai|artificial\ intelligence|(?:ai\ )?language\ model|chatbot|virtual\ assistant"
    r"|computer\ program)"
    r"(?:\ (?:language\ model|chatbot|assistant|program|model|system|ai|\(ai\)))*"
)
_MODEL_ZH = (
    r"(?:一[个名款种位])?(?:由[^，。\n]{1,12}的)?(?:大型|大|智能)?(?:ai|人工智能|语言模型|聊天机器人)"
    r"(?:语言)?(?:模型|助手|助理|程序|系统|机器人)?"
)
_SMALL = r"(?:(?!(?:in|of|on|for|with|to|at|and|by|about)\b)[a-z-]+\ ){0,3}"  # large, responsible
_AS_AN_AI = re.compile(
    rf"""
    (?:^\s*|[.!?,;:\n("“*—]\s*|\b(?:but|and|so|that|since|because|sorry)\s+)
      (?:as|being)\ (?:an?|your)\ {_SMALL}{_MODEL}             # As a large language model, …
      (?:\ (?:created|trained|developed|designed|made)\ [^.,\n]{{1,40}})? (?: , | \ i\b )
    | \bi(?:'m|\ am)\ (?:just\ |only\ |simply\ |merely\ )?an?\ {_SMALL}{_MODEL}   # I'm just an AI.
      (?= \s*(?:[.,;!)]|\Z) | \ (?:and|so|but|with|without|that|which|who|trained|created|designed
          |developed|built|made|from|by|here|not)\b )
    | \bi(?:'m|\ am)\ (?:called\ )?(?:qwen|chatgpt|gpt-?\d|smollm|claude)\b
    | 作为{_MODEL_ZH}[，,、我] | 我是(?:通义)?(?:千问|qwen|chatgpt)
    | 我(?:只|仅仅|仅)?是{_MODEL_ZH}(?=[，,。！!；\s]|\Z|而|没有|无法|不)
    """,
    re.IGNORECASE | re.VERBOSE,
)


def as_an_ai(text: str) -> bool:
    """Its writer speaks of itself "as an AI language model"."""
    return bool(_AS_AN_AI.search(prose(text)))


# ---- Personal data -------------------------------------------------------------------------------

# ASCII: in Chinese, text runs into an address without a space
_EMAIL = re.compile(r"([\w.+-]{1,64})@((?:[\w-]+\.)+[a-z]{2,})\b", re.IGNORECASE | re.ASCII)
_EXAMPLE = re.compile(  # of a domain that is nobody's, or of a name that stands for any
    r"@(?:.*\.)?(?:example|test|invalid|(?:your|my|some)?-?(?:domain|company|site|website|email))"
    r"(?:\.\w+)*$|^(?:git|you|your\W?\w*|user(?:name)?|name|e?mail|someone|(?:john|jane)\W?doe)@",
    re.IGNORECASE,
)
_PHONE = re.compile(
    r"(?<![a-zA-Z0-9_.+-])(?:\+\d{1,3}[ .-]?(?:\(\d{1,4}\)[ .-]?)?\d{2,4}(?:[ .-]?\d{2,4}){2,3}"
    r"|\(\d{3}\) ?\d{3}[ .-]\d{4}|\d{3}[.-]\d{3}[.-]\d{4}|1[3-9]\d{9})(?![a-zA-Z0-9_-])"
)
_CARD = re.compile(r"(?<![\w.-])[3-6]\d{3}(?:[ -]?\d){9,15}(?![\w-])", re.ASCII)
_IP = re.compile(
    r"(?<![\w.])(?<!version )(?<!版本)(?:\d{1,3}\.){3}\d{1,3}(?![\w.]*\d)", re.IGNORECASE | re.ASCII
)
_KEY = re.compile(
    r"\b(?:sk-[\w-]{20,}|hf_[A-Za-z0-9]{30,}|gh[pousr]_[A-Za-z0-9]{36}|AKIA[0-9A-Z]{16}"
    r"|AIza[\w-]{35}|xox[abpr]-[\w-]{10,})|-----BEGIN [A-Z ]*PRIVATE KEY-----",
    re.ASCII,
)


def personal_data(text: str) -> Iterator[tuple[str, str]]:
    """Yield (kind, string) for what is shaped like personal data: e-mail, phone, card, ip, key.

    Examples are let pass (you@example.com, 555-01xx numbers, private addresses); a card must pass
    the Luhn check. A shape is not proof: a made-up address looks like a real one.
    """
    if "@" in text:
        found = (match[0] for match in _EMAIL.finditer(text))
        yield from (("e-mail", address) for address in found if not _EXAMPLE.search(address))
    if re.search("[0-9]", text):
        cards = [found[0] for found in _CARD.finditer(text) if _luhn(found[0])]
        yield from (("card", card) for card in cards)
        for found in _PHONE.finditer(text):
            fictional = re.search(r"555[ .-]?01\d\d", found[0])
            if not fictional and not any(found[0] in card for card in cards):
                yield "phone", found[0]
        yield from (("ip", found[0]) for found in _IP.finditer(text) if _is_public(found[0]))
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


# ---- Defects of a dialogue -----------------------------------------------------------------------


def _role_order(dialogue: Dialogue) -> int:
    roles = [message.role for message in dialogue.messages]
    roles = roles[1:] if roles[:1] == ["system"] else roles
    return int(not roles or roles != ["user", "assistant"] * (len(roles) // 2))


def _question_repeated(dialogue: Dialogue) -> int:
    asked = dialogue.by("user")
    return sum(any(same_question(a, b) for b in asked[:i]) for i, a in enumerate(asked) if a)


def _reply_repeated(dialogue: Dialogue) -> int:
    """Replies that say an earlier one, or their own question, again."""
    times, earlier, question = 0, [], ""
    for message in dialogue.messages:
        if message.role != "assistant":
            question = message.content
            continue
        said = message.content
        if len(words(said)) >= 4:
            times += any(jaccard(said, other, width=1) >= 0.9 for other in (*earlier, question))
        earlier.append(said)
    return times


_NOT_LATIN = re.compile(r"[\u0370-\u1cff\u2e80-\ud7ff\uf900-\ufdff\ufe70-\ufeff]")
_HAN_WORD = re.compile(r"(?<![\"'“‘「《(（«\u3400-\u9fff])[\u3400-\u9fff]{1,12}(?![\"'”’」》)）»])")
_OF_CHINESE = re.compile(r"\b(?:chinese|mandarin|cantonese|japanese|kanji|hanzi|translat\w+|pinyin"
                         r"|characters?|unicode|utf)\b", re.IGNORECASE)  # fmt: skip


def _other_language(expected: str) -> Defect:
    """Messages in another language than `expected`, or, in English, with a Chinese word in them
    that nobody has asked for; names and terms get the benefit of the doubt."""

    def differs(text: str) -> bool:
        other = _NOT_LATIN.search(text)
        if not other and len(words(prose(text))) < 6:
            return False
        if language_of(text) not in ("", expected):
            return True
        mixed = expected == "en" and other and _HAN_WORD.search(prose(text))
        return bool(mixed) and not _OF_CHINESE.search(text)

    return _messages(differs)


def _known(attribute: str) -> Defect:
    """How many of something the collector recorded; 0 for a dialogue from elsewhere."""
    return lambda dialogue: len(getattr(dialogue, attribute, ()))


def _messages(rule: Callable[[str], Any]) -> Defect:
    return lambda dialogue: sum(bool(rule(message.content)) for message in dialogue.messages)


def _replies(rule: Callable[[str], Any]) -> Defect:
    return lambda dialogue: sum(bool(rule(reply)) for reply in dialogue.by("assistant"))


_BROKEN = re.compile("[\ufffd\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|Ã[\x80-\xbf]|â€[™œ\x9d˜“”]")
_TABLE: tuple[tuple[str, str, Defect], ...] = (
    ("failed", "the collector could not finish it",
     lambda dialogue: int(getattr(dialogue, "status", "ok") != "ok")),
    ("role_order", "roles do not alternate from a question to a reply", _role_order),
    ("empty_turn", "a message says nothing", _messages(lambda text: not text.strip())),
    ("dangling_tag", "a message ends on a speaker's tag", _messages(dangles)),
    ("both_voices", "one message speaks for both, or shows a tag", _messages(speaks_for_both)),
    ("thoughts", "a message shows the model's thoughts",
     _messages(lambda text: "<" in text and _THOUGHT.search(prose(text)))),
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
    ("other_language", "a message in another language than the corpus, or a word of Chinese in it",
     _other_language("en")),
    ("personal_data", "strings shaped like an e-mail, phone, card, IP address or key",
     lambda d: sum(len(list(personal_data(message.content))) for message in d.messages)),
    ("repaired", "the transcript it was parsed from had faults", _known("repairs")),
)  # fmt: skip
DEFECTS: dict[str, Defect] = {name: defect for name, _, defect in _TABLE}


def defects_for(language: str = "en") -> dict[str, Defect]:
    """`DEFECTS` for a corpus in this language: "en" (as they are) or "zh"."""
    if check_language(language) == "en":
        return DEFECTS
    return DEFECTS | {"other_language": _other_language(language)}


def count_defects(dialogues: Iterable[Dialogue], language: str = "en") -> list[dict[str, Any]]:
    """One row a defect: its meaning, dialogues with it, their share, times, an example's id."""
    affected, times, example, total = Counter(), Counter(), {}, 0
    checks = defects_for(language)
    for dialogue in dialogues_in(dialogues):
        total += 1
        for name, check in checks.items():
            if found := check(dialogue):
                affected[name] += 1
                times[name] += found
                example.setdefault(name, dialogue.id)
    return [
        {
            "defect": name, "dialogues": affected[name], "share": affected[name] / max(total, 1),
            "times": times[name], "meaning": meaning, "example": example.get(name, ""),
        }
        for name, meaning, _ in _TABLE
    ]  # fmt: skip
