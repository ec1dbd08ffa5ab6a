"""What a corpus holds, and what is wrong with it: numbers first, then defects by name.

Look at data before training on it. `statistics` counts in one pass; a *defect* is a small named
function from a dialogue to how often the defect occurs in it, so a table of defects is one loop,
and a filter (`corpus.FILTERS`) is a defect one refuses to train on.

>>> from baize_lib.dialogue import Dialogue, Message
>>> said = Message("user", "Who won?"), Message("assistant", "As an AI, I can't know. Who won?")
>>> sorted(defects(Dialogue(said)))
['as_an_ai']

Most rules below read the surface of a text, in English and Chinese. They are written to be right
on the look-alikes in `tests/test_inspection.py`, and they are rules: read what they point at.
"""

import ipaddress
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from operator import eq
from typing import Any

from baize_lib.config import data_dir
from baize_lib.dialogue import Dialogue

__all__ = [
    "words", "Statistics", "statistics", "beside_published", "DEFECTS", "defects",
    "count_defects", "personal_data", "other_language",
]  # fmt: skip

_CJK = "\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_CJK}]|[^\W_{_CJK}]+(?:['-][^\W_{_CJK}]+)*")
_ASCII_WORD = re.compile(r"[a-z0-9]+(?:['-][a-z0-9]+)*")  # the same rule, faster
_CODE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]+`", re.DOTALL)


@lru_cache(maxsize=64)
def words(text: str) -> tuple[str, ...]:
    """The words of a text, lower case; a Chinese or Japanese character is a word of its own.

    >>> words("Don't panic: 你好")
    ("don't", 'panic', '你', '好')
    """
    text = text.lower()
    if text.isascii():
        return tuple(_ASCII_WORD.findall(text))
    return tuple(_WORD.findall(text.replace("’", "'")))


@lru_cache(maxsize=64)
def _prose(text: str) -> str:
    """The text without its code, with plain apostrophes."""
    return (_CODE.sub(" ", text) if "`" in text else text).replace("’", "'")


@dataclass(slots=True)
class Statistics:
    """Counts over a set of dialogues; keys of the dicts are roles.

    Attributes:
        turns: number of turns -> dialogues with that many.
        lengths: role -> (words in a message -> messages of that length).
        tokens: role -> tokens; empty where neither an encoder nor the ledger could say.
        vocabulary: word -> times used.
        openings: role -> (first two words -> messages that begin so).
    """

    num_dialogues: int = 0
    turns: Counter = field(default_factory=Counter)
    lengths: dict[str, Counter] = field(default_factory=dict)
    tokens: Counter = field(default_factory=Counter)
    vocabulary: Counter = field(default_factory=Counter)
    openings: dict[str, Counter] = field(default_factory=dict)

    @property
    def mean_turns(self) -> float:
        return _mean(self.turns)

    def mean_words(self, role: str) -> float:
        """Words in a message of `role`, on average."""
        return _mean(self.lengths.get(role, Counter()))

    def rows(self) -> list[dict[str, Any]]:
        """One row a role: messages, words (sum, mean, median, 95th percentile), tokens."""
        return [
            {
                "role": role, "messages": lengths.total(),
                "words": sum(n * times for n, times in lengths.items()),
                "mean": round(_mean(lengths), 1), "median": _quantile(lengths, 0.5),
                "p95": _quantile(lengths, 0.95), "tokens": self.tokens.get(role),
            }
            for role, lengths in self.lengths.items()
        ]  # fmt: skip

    def opening_rows(self, role: str, n: int = 10) -> list[dict[str, Any]]:
        """The `n` most common first two words of `role`, with their share of its messages."""
        counts = self.openings.get(role, Counter())
        return [
            {"opening": opening, "messages": times, "share": times / counts.total()}
            for opening, times in counts.most_common(n)
        ]


def statistics(
    dialogues: Iterable[Dialogue], *, encode: Callable[[str], Any] | None = None
) -> Statistics:
    """Count dialogues, turns, words, tokens, vocabulary and openings in one pass.

    Args:
        encode: a tokenizer's `encode`, text -> tokens. Without it, tokens are those the ledger
            recorded for each role's calls.
    """
    found = Statistics()
    for dialogue in dialogues:
        found.num_dialogues += 1
        found.turns[dialogue.num_turns] += 1
        if encode is None:
            found.tokens.update(getattr(dialogue, "tokens", None) or {})
        for message in dialogue.messages:
            said, role = words(message.content), message.role
            found.lengths.setdefault(role, Counter())[len(said)] += 1
            found.vocabulary.update(said)
            glue = "" if said and re.match(f"[{_CJK}]", said[0]) else " "
            found.openings.setdefault(role, Counter())[glue.join(said[:2])] += 1
            if encode is not None:
                found.tokens[role] += len(encode(message.content))
    return found


def _mean(counts: Counter) -> float:
    total = counts.total()
    return sum(value * times for value, times in counts.items()) / total if total else 0.0


def _quantile(counts: Counter, q: float) -> int:
    below = 0
    for value in sorted(counts):
        below += counts[value]
        if below >= q * counts.total():
            return value
    return 0


def beside_published(found: Statistics, name: str = "ours") -> list[dict[str, Any]]:
    """Rows of our corpus above the published ones (`data/published_corpora.json`, with source)."""
    ours = {
        "corpus": name, "dialogues": found.num_dialogues, "mean_turns": round(found.mean_turns, 1),
        "mean_reply_words": round(found.mean_words("assistant"), 1), "source": "counted here",
    }  # fmt: skip
    published = json.loads((data_dir() / "published_corpora.json").read_text(encoding="utf-8"))
    return [ours, *published["corpora"]]


# ---- defects: dialogue -> how often; 0 is fine --------------------------------------------------


def failed(dialogue: Dialogue) -> int:
    """the collector could not finish it (ledger status other than ok)"""
    return int(getattr(dialogue, "status", "ok") != "ok")


def role_order(dialogue: Dialogue) -> int:
    """roles do not alternate from a question to a reply"""
    roles = [message.role for message in dialogue.messages]
    roles = roles[1:] if roles[:1] == ["system"] else roles
    return int(not roles or roles != ["user", "assistant"] * (len(roles) // 2))


def empty_turn(dialogue: Dialogue) -> int:
    """a message says nothing"""
    return sum(not message.content.strip() for message in dialogue.messages)


_TAG = re.compile(
    r"\[\|\s*(?:human|ai)\s*\|\]|^[ \t]*\[(?:human|ai)\]|<\|(?:im_start|im_end|endoftext)\|>",
    re.IGNORECASE | re.MULTILINE,
)
_TAG_AT_END = re.compile(
    r"(?:\[\|[a-z ]{0,7}\|?\]?|^[ \t]*\[(?:human|ai)\]?:?)\s*\Z", re.IGNORECASE | re.MULTILINE
)
_LABEL = re.compile(
    r"^[ \t]*(?:\*\*)?(?:(human|user|人类|用户)|(?:ai|assistant|助手))(?:\*\*)?[ \t]*[:：]",
    re.IGNORECASE | re.MULTILINE,
)


def dangling_tag(dialogue: Dialogue) -> int:
    """a message ends on a speaker's tag"""
    return sum(
        "[" in message.content[-16:] and bool(_TAG_AT_END.search(_prose(message.content)))
        for message in dialogue.messages
    )


def both_voices(dialogue: Dialogue) -> int:
    """one message speaks for both speakers, or shows a tag"""
    return sum(_speaks_for_both(_prose(message.content)) for message in dialogue.messages)


def _speaks_for_both(text: str) -> bool:
    if ("[" in text or "<|" in text) and _TAG.search(_TAG_AT_END.sub("", text)):
        return True
    return len({bool(label) for label in _LABEL.findall(text)}) == 2


_BROKEN = re.compile("[\ufffd\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|Ã[\x80-\xbf]|â€[™œ\x9d˜“”]")


def broken_characters(dialogue: Dialogue) -> int:
    """characters lost in decoding, or control characters"""
    return sum(bool(_BROKEN.search(message.content)) for message in dialogue.messages)


def cut_reply(dialogue: Dialogue) -> int:
    """a reply was cut by max_tokens, says the ledger"""
    return len(getattr(dialogue, "cut_turns", ()))


def unfinished_sentence(dialogue: Dialogue) -> int:
    """a long reply stops without an end (a guess, where no ledger says)"""
    return sum(map(_stops_midway, dialogue.by("assistant")))


_LIST_ITEM = re.compile(r"\s*(?:[-*•|#>]|\d+[.)])")


def _stops_midway(reply: str) -> bool:
    text = reply.rstrip()
    if not text or not (text[-1].isalnum() or text[-1] in ",;:，、；：") or len(words(text)) < 20:
        return False
    last = text[text.rfind("\n") + 1 :]
    code_or_list = last[0].isspace() or _LIST_ITEM.match(last) or re.search(r"[=(){}<>_/\\]", last)
    return not code_or_list


def open_code(dialogue: Dialogue) -> int:
    """a code fence is opened and not closed"""
    return sum(message.content.count("```") % 2 for message in dialogue.messages)


_SENTENCE_END = re.compile(r"[.!?。！？\n]+")
_STUTTER = re.compile(r"\b([^\W\d]{2,}+)(?:\W+\1\b){5,}", re.IGNORECASE)


def loop(dialogue: Dialogue) -> int:
    """a reply says the same sentence three times, or goes round in circles"""
    return sum(_loops(_prose(reply)) for reply in dialogue.by("assistant"))


def _loops(text: str) -> bool:
    said = words(text)
    if len(said) >= 24 and len(set(said)) < 0.6 * len(said) + 3:  # else no need to look closer
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


def question_repeated(dialogue: Dialogue) -> int:
    """the human asks (nearly) the same thing again"""
    asked = [words(question) for question in dialogue.by("user")]
    return sum(any(_alike(a, b) for b in asked[:i]) for i, a in enumerate(asked) if a)


def reply_repeated(dialogue: Dialogue) -> int:
    """a reply is (nearly) an earlier reply again, or only echoes its question"""
    said = [words(message.content) for message in dialogue.messages]
    replies = [i for i, message in enumerate(dialogue.messages) if message.role == "assistant"]
    return sum(
        any(_alike(said[i], said[j]) for j in (*range(1, i, 2), i - 1) if j >= 0)
        for i in replies
        if len(said[i]) >= 4
    )


def _alike(a: tuple[str, ...], b: tuple[str, ...]) -> bool:
    if a == b:
        return True
    shorter, longer = sorted((len(a), len(b)))
    if shorter < 10 or shorter < 0.8 * longer:
        return False
    one, other = set(a), set(b)
    return len(one & other) >= 0.9 * len(one | other)


def short_reply(dialogue: Dialogue) -> int:
    """a reply of one or two words"""
    return sum(0 < len(words(reply)) < 3 for reply in dialogue.by("assistant"))


_LAST_QUESTION = re.compile(r"[^.!?。！？\n]*[?？]\s*\Z")
_ADDRESSES = re.compile(r"\b(?:you|your|we|i|anything)\b|[你您]|吗|呢", re.IGNORECASE)
_QUOTED_OR_LISTED = re.compile(r"""\s*(?:[-*•"“'「]|\d+[.)]|\Z)""")


def asks_back(dialogue: Dialogue) -> int:
    """the assistant ends its reply by asking the human something"""
    return sum(_ends_asking(_prose(reply)) for reply in dialogue.by("assistant"))


def _ends_asking(text: str) -> bool:
    if not text.rstrip().endswith(("?", "？")):
        return False
    asked = _LAST_QUESTION.search(text)[0]
    line = text.rstrip()[text.rstrip().rfind("\n") + 1 :]
    return bool(_ADDRESSES.search(asked)) and not _QUOTED_OR_LISTED.match(line)


_MODEL = (
    r"(?:ai|artificial intelligence|(?:ai )?language model|chatbot|virtual assistant"
    r"|computer program)"
    r"(?: (?:language model|chatbot|assistant|program|model|system))*"
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


def as_an_ai(dialogue: Dialogue) -> int:
    """the assistant speaks of itself "as an AI language model" (English, Chinese)"""
    return sum(
        any(map(reply.lower().__contains__, _MODEL_MARKS)) and bool(_AS_AN_AI.search(_prose(reply)))
        for reply in dialogue.by("assistant")
    )


_DO = (
    r"(?:help|assist|provide|answer|fulfil|fulfill|comply|support|give|offer|engage|condone|"
    r"encourage|recommend|advise|discuss|create|write|generate|share|do that|do this|continue|"
    r"participate|facilitate|promote|suggest|respond|complete|process|tell you|teach|show you)"
)
_CANNOT = (
    r"(?:can't|cannot|can not|won't|will not|must decline|have to decline|refuse|"
    r"(?:'m| am) (?:unable|not able|not going|not allowed)(?: to)?)"
)
_REFUSAL = re.compile(
    rf"\bi ?{_CANNOT}(?: to)?(?: be able to)?(?: in good conscience)?(?: {_DO})\b"
    r"(?! (?:but|myself|it|feeling|laughing|smiling|wondering|thinking|noticing)\b)"
    r"(?![^.!?\n]*\b(?:enough|highly)\b)"
    r"|\bi(?:'m| am) sorry,? but i ?(?:can't|cannot|won't|'m unable|am unable|must)\b"
    r"|(?:抱歉|对不起|很遗憾)[^。！？\n]{0,12}我[^。！？\n]{0,6}(?:不能|无法|不会|没办法|拒绝)"
    r"|我(?:不能|无法|不会|没办法|拒绝)(?:[为向给](?:您|你))?"
    r"(?:提供|协助|帮助|回答|帮[您你]|支持|满足|参与|鼓励)",
    re.IGNORECASE,
)

_REFUSAL_MARKS = ("can't", "cannot", "can not", "won't", "will not", "decline", "refuse", "sorry",
                  "unable", "i'm not", "i am not", "我")  # fmt: skip


def refusal(dialogue: Dialogue) -> int:
    """a reply opens by declining (English, Chinese); wanted for unsafe requests only"""
    openings = (_prose(reply[:400]) for reply in dialogue.by("assistant"))
    return sum(
        any(map(text.lower().__contains__, _REFUSAL_MARKS)) and bool(_REFUSAL.search(text))
        for text in openings
    )


_COMMON = {
    "en": "the of and to is that it for you with this are was have be not they can from what",
    "fr": "le les des est une dans pour que qui avec pas sur sont vous nous cette mais du et au",
    "es": "el los las una es que para con por se del como pero más su son está y muy al",
    "de": "der die das und ist nicht ein eine mit für auf den sie sich von dem auch wird zu ich",
    "pt": "o os as uma é que para com não por se do da em mais como mas são ao você",
    "it": "il gli della che di è per una con non sono del si più anche come nel questo alla ma",
}
_LANGUAGE_OF = {
    word: language for language, text in reversed(_COMMON.items()) for word in text.split()
}
_ENGLISH = frozenset(_COMMON["en"].split())
_HAN = re.compile(r"[\u3400-\u9fff\uf900-\ufaff]")
_NOT_LATIN = re.compile(r"[\u0370-\u1cff\u2e80-\ud7ff\uf900-\ufdff\ufe70-\ufeff]")


def other_language(expected: str = "en") -> Callable[[Dialogue], int]:
    """A defect: messages in another language than `expected` ("en" or "zh").

    By script, and for Latin script by the commonest words of six languages. It cannot tell
    Chinese from Japanese written in kanji, sees no Latin-script language but those six, and gives
    texts under 12 words, quotations and code the benefit of the doubt.
    """
    wrong = _not_chinese if expected == "zh" else _not_english

    def other(dialogue: Dialogue) -> int:
        return sum(wrong(_prose(message.content)) for message in dialogue.messages)

    other.__doc__ = f"a message is in another language than {expected}"
    return other


def _not_chinese(text: str) -> bool:
    num_letters = sum(map(str.isalpha, text))
    return num_letters >= 20 and len(_HAN.findall(text)) < 0.1 * num_letters


def _not_english(text: str) -> bool:
    if not text.isascii():
        num_letters = sum(map(str.isalpha, text))
        if num_letters >= 8 and len(_NOT_LATIN.findall(text)) > 0.5 * num_letters:
            return True
    said = words(text)[:80]
    if len(said) < 12 or len(_ENGLISH.intersection(said)) >= 5:
        return False
    hits = Counter(map(_LANGUAGE_OF.get, said))
    del hits[None]
    language, times = max(hits.items(), key=lambda hit: hit[1], default=("en", 0))
    if language == "en" or times < 0.15 * len(said) or times < 2 * hits["en"]:
        return False
    return sum(_LANGUAGE_OF.get(word) == language for word in set(said)) >= 3  # "os", in code


_EMAIL = re.compile(r"[\w.+-]+@((?:[\w-]+\.)+[a-z]{2,})\b", re.IGNORECASE)
_PHONE = re.compile(
    r"(?<![a-zA-Z0-9_.+-])(?:\+\d{1,3}[ .-]?(?:\(\d{1,4}\)[ .-]?)?\d{2,4}(?:[ .-]?\d{2,4}){2,3}"
    r"|\(\d{3}\) ?\d{3}[ .-]\d{4}|\d{3}[.-]\d{3}[.-]\d{4}|1[3-9]\d{9})(?![a-zA-Z0-9_-])"
)
_FICTIONAL = re.compile(r"555[ .-]?01\d\d")
_CARD = re.compile(r"(?<![\w.-])[3-6]\d{3}(?:[ -]?\d){9,15}(?![\w-])")
_IP = re.compile(r"(?<![\w.])(?<!version )(?:\d{1,3}\.){3}\d{1,3}(?![\w.]*\d)", re.IGNORECASE)
_KEY = re.compile(
    r"\b(?:sk-[\w-]{20,}|hf_[A-Za-z0-9]{30,}|gh[pousr]_[A-Za-z0-9]{36}|AKIA[0-9A-Z]{16}"
    r"|AIza[\w-]{35}|xox[abpr]-[\w-]{10,})|-----BEGIN [A-Z ]*PRIVATE KEY-----"
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
            if not re.search(r"(?:^|\.)(?:example(?:\.\w+)?|test|invalid)$", found[1].lower()):
                yield "e-mail", found[0]
    if _DIGIT.search(text):
        cards = [found[0] for found in _CARD.finditer(text) if _luhn(found[0])]
        yield from (("card", card) for card in cards)
        for found in _PHONE.finditer(text):
            if not _FICTIONAL.search(found[0]) and not any(found[0] in card for card in cards):
                yield "phone", found[0]
        for found in _IP.finditer(text):
            if _is_public(found[0]):
                yield "ip", found[0]
    if any(map(text.__contains__, _KEY_MARKS)):
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


def has_personal_data(dialogue: Dialogue) -> int:
    """strings shaped like an e-mail, phone, card, IP address or key"""
    return sum(len(list(personal_data(message.content))) for message in dialogue.messages)


def repaired(dialogue: Dialogue) -> int:
    """the transcript it was parsed from had faults (missing tags, an unanswered question…)"""
    return len(getattr(dialogue, "repairs", ()))


DEFECTS: dict[str, Callable[[Dialogue], int]] = {
    "failed": failed, "role_order": role_order, "empty_turn": empty_turn,
    "dangling_tag": dangling_tag, "both_voices": both_voices,
    "broken_characters": broken_characters, "cut_reply": cut_reply,
    "unfinished_sentence": unfinished_sentence, "open_code": open_code, "loop": loop,
    "question_repeated": question_repeated, "reply_repeated": reply_repeated,
    "short_reply": short_reply, "asks_back": asks_back, "as_an_ai": as_an_ai, "refusal": refusal,
    "other_language": other_language("en"), "personal_data": has_personal_data,
    "repaired": repaired,
}  # fmt: skip


def defects(
    dialogue: Dialogue, checks: dict[str, Callable[[Dialogue], int]] = DEFECTS
) -> Counter[str]:
    """The defects of one dialogue: name -> how often."""
    return Counter({name: times for name, check in checks.items() if (times := check(dialogue))})


def count_defects(
    dialogues: Iterable[Dialogue], checks: dict[str, Callable[[Dialogue], int]] = DEFECTS
) -> list[dict[str, Any]]:
    """One row a defect: what it is, dialogues with it, their share, times, an example's id."""
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
            "times": times[name], "meaning": check.__doc__ or "", "example": example.get(name, ""),
        }
        for name, check in checks.items()
    ]  # fmt: skip
