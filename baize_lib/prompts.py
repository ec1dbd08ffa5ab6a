"""The settings of a self-chat, what its two sides are told, and how the human's questions are read.

The assistant gets a short system prompt by domain. The human is played by a call that sees two
examples and the conversation so far, and writes one more question. A teacher that is weak is held
to form by a grammar (GBNF, llama.cpp's notation): the question-writer to one question that begins
like one, the assistant to at most three sentences, with a block of code in programming.

>>> assistant("medical", "en").split(".")[0]
'You are a careful medical assistant for lay people'
"""

import re
from dataclasses import dataclass
from typing import Any

from baize_lib.config import BaizeError
from baize_lib.sources import Seed

__all__ = [
    "Settings", "system_prompt", "transcript_request", "LANGUAGES", "DOMAINS", "domain_of",
    "seed_domain",
    "assistant", "transcript", "question_messages", "clean_question", "says_end",
    "same_question", "shares_a_word", "QUESTION_GRAMMAR", "reply_grammar",
]  # fmt: skip

LANGUAGES = ("en", "zh")

DOMAINS = {
    "general": {
        "en": "You are a helpful assistant. Answer in two or three short sentences.",
        "zh": "你是一个乐于助人的助手。请用两三句简短的话回答。",
    },
    "programming": {
        "en": "You are a helpful programming assistant. Answer in two or three short sentences, "
        "with a few lines of code if they help.",
        "zh": "你是一个编程助手。请用两三句简短的话回答，需要时附上几行代码。",
    },
    "medical": {
        "en": "You are a careful medical assistant for lay people. Answer in two or three short "
        "sentences, and say when to see a doctor.",
        "zh": "你是一个面向普通人的医学助手，措辞谨慎。"
        "请用两三句简短的话回答，并说明何时应当就医。",
    },
}
GUARDRAIL = {
    "en": "If a request is unlawful or would hurt someone, decline it politely, say why in one "
    "sentence, and offer a lawful and safe way instead.",
    "zh": "如果请求违法或会伤害他人，请礼貌地拒绝，用一句话说明原因，并提供合法、安全的做法。",
}
_SOURCES = {
    "programming": ("programming", "stackoverflow", "stackexchange", "code"),
    "medical": ("medical", "medquad", "health"),
}


def domain_of(source: str) -> str:
    """The domain a seed's source belongs to, by its name; "general" if by none."""
    for domain, names in _SOURCES.items():
        if any(name in source.lower() for name in names):
            return domain
    return "general"


@dataclass(frozen=True, slots=True)
class Settings:
    """How dialogues are made. A ledger remembers these and refuses to be continued with others.

    Attributes:
        max_tokens: cap of one reply, tokens; `question_tokens`: cap of one question.
        temperature: of the assistant; `question_temperature`: of the human. None leaves it out.
        domain: a key of `DOMAINS`, or "auto" to take it from each seed's source.
        guardrail: tell the assistant to decline what would do harm.
        system: the assistant's whole system prompt, instead of those of domain and guardrail.
    """

    strategy: str = "turns"
    num_turns: int = 3
    max_tokens: int = 120
    question_tokens: int = 40
    temperature: float | None = 0.3
    question_temperature: float | None = 0.8
    top_p: float | None = 0.95
    language: str = "en"
    domain: str = "auto"
    guardrail: bool = False
    system: str | None = None

    def __post_init__(self) -> None:
        for name, allowed in (
            ("strategy", ("turns", "transcript")),
            ("language", LANGUAGES),
            ("domain", ("auto", *DOMAINS)),
        ):
            if getattr(self, name) not in allowed:
                value = getattr(self, name)
                raise BaizeError(f"{name}={value!r} is not known: use one of {', '.join(allowed)}")
        for name in ("num_turns", "max_tokens", "question_tokens"):
            if getattr(self, name) < 1:
                raise BaizeError(f"{name}={getattr(self, name)}: at least 1 is needed")

    @property
    def transcript_tokens(self) -> int:
        """Cap of a whole transcript, tokens."""
        return self.num_turns * (self.max_tokens + self.question_tokens)


def assistant(domain: str, language: str = "en", guardrail: bool = False) -> str:
    """The assistant's system prompt."""
    parts = [DOMAINS[domain][language]] + ([GUARDRAIL[language]] if guardrail else [])
    return (" " if language == "en" else "").join(parts)


_TRANSCRIPT = {
    "en": "Write a chat between a curious person and an AI assistant, from beginning to end.\n"
    "The person opens with this question: {seed}\n"
    "After each answer the person asks something new that the answer brings to mind, and leaves "
    "when nothing is left to ask, after {num_turns} questions at the latest. The assistant gives "
    "the answers and puts no questions of its own.\n"
    "Put [Human] before everything the person says and [AI] before everything the assistant says, "
    "each at the beginning of a line. Write only the chat.\n"
    "The assistant was told this:",
    "zh": "请写出一位好奇的人与一个人工智能助手之间的完整对话。\n"
    "这个人的第一个问题是：{seed}\n"
    "每得到一个回答，这个人就由此提出一个新问题；没有问题可问时对话结束，最多提{num_turns}个问题。"
    "助手只回答，不反问。\n"
    "这个人的每句话前写 [Human]，助手的每句话前写 [AI]，标记放在行首。只写对话本身。\n"
    "助手得到的指示是：",
}


def transcript(seed: str, num_turns: int, language: str = "en") -> str:
    """The task of writing a whole conversation in one call."""
    return _TRANSCRIPT[language].format(seed=seed, num_turns=num_turns)


_HUMAN = {
    "en": "You play a curious person who talks to an AI assistant. Read the conversation and write "
    "the person's next question. It is one short question about something the last answer "
    "mentioned, and it was not asked before. If nothing is left to ask, write END.",
    "zh": "你扮演一位正在与人工智能助手交谈的好奇的人。请阅读对话，写出这个人的下一个问题。"
    "只写一个简短的问题，它与上一个回答提到的内容有关，而且之前没有问过。"
    "如果没有问题可问，请写 END。",
}
_EXAMPLES = {
    "en": (
        (
            "Human: How do I grow tomatoes on a balcony?\n"
            "AI: Choose a sunny spot, use a large pot with drainage holes, and water the plant "
            "every morning. Tomatoes need at least six hours of sun.",
            "How large should the pot be for one tomato plant?",
        ),
        (
            "Human: What is a prime number?\n"
            "AI: A prime number is a whole number greater than 1 that can only be divided by 1 and "
            "itself, such as 2, 3, 5 and 7.\n"
            "Human: How can I check whether a number is prime?\n"
            "AI: Divide it by every prime up to its square root. If none of them divides it, the "
            "number is prime.",
            "Why is it enough to test up to the square root?",
        ),
    ),
    "zh": (
        (
            "人类：怎样在阳台上种番茄？\n"
            "助手：选一个阳光充足的位置，用底部有孔的大花盆，每天早上浇水。番茄每天至少需要六小时日照。",
            "种一株番茄需要多大的花盆？",
        ),
        (
            "人类：什么是质数？\n助手：质数是大于1、只能被1和它自己整除的整数，例如2、3、5和7。\n"
            "人类：怎样判断一个数是不是质数？\n助手：用不超过它平方根的每个质数去除它，都除不尽就是质数。",
            "为什么只需要试到平方根？",
        ),
    ),
}
_SPEAKERS = {"en": ("Human: ", "AI: "), "zh": ("人类：", "助手：")}


def question_messages(messages: list[dict[str, str]], language: str = "en") -> list[dict[str, str]]:
    """The request for the human's next question: the task, two examples, the conversation."""
    shown = [{"role": "system", "content": _HUMAN[language]}]
    for conversation, question in _EXAMPLES[language]:
        shown.append({"role": "user", "content": conversation})
        shown.append({"role": "assistant", "content": question})
    human, ai = _SPEAKERS[language]
    said = (f"{human if m['role'] == 'user' else ai}{m['content']}" for m in messages)
    return [*shown, {"role": "user", "content": "\n".join(said)}]


_SPEAKER = "human|person|user|question|人类|问题"
_TAGGED = re.compile(rf"^(?:\[\|?(?:{_SPEAKER})\|?\]\s*[:：]?|(?:{_SPEAKER})\s*[:：])\s*", re.I)


def clean_question(text: str) -> str:
    """The first line of what the question-writer wrote, without a speaker's tag or quotes."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return _TAGGED.sub("", lines[0]).strip().strip('"“”「」').strip() if lines else ""


def says_end(question: str) -> bool:
    """Whether the human said that nothing is left to ask."""
    return re.sub(r"[\W_]+", "", question).upper() in ("END", "结束")


_SMALL = frozenset(
    re.findall(r"\w+", "a an the of to in is are do does did i you it and or can for")
)


def same_question(one: str, other: str) -> bool:
    """Whether three quarters of the shorter one's words are in the other (four letters of each).

    >>> same_question("How do I sort a list?", "how do you sort the lists")
    True
    """
    first, second = _stems(one, _SMALL), _stems(other, _SMALL)
    return 4 * len(first & second) >= 3 * min(len(first), len(second))


_EMPTY_WORDS = frozenset(
    re.findall(
        r"\w+",
        "about after all also and any anything are because being between but can could did "
        "different does doing example explain for from get had has have help her his how important "
        "into its just let like make many more most much need not one other our out own should "
        "some something such than that the their them then there these they thing things think "
        "this those too use used using very want was way well were what when where which while who "
        "why will with work would you your a am an as at be by do don if in is isn it me my no of "
        "on or re so to up we he she",
    )
)


def shares_a_word(question: str, said: str) -> bool:
    """Whether the question takes up a word of what was said."""
    return bool(_stems(question, _EMPTY_WORDS) & _stems(said, _EMPTY_WORDS))


def _stems(text: str, without: frozenset[str]) -> set[str]:
    words = re.findall(r"[a-z0-9]+|[一-鿿]|[^\W_]+", text.lower())
    return {word[:4] for word in words if word not in without}


QUESTION_GRAMMAR = {
    "en": r"""root ::= start ([a-zA-Z0-9,'()+#/-] | " " [a-zA-Z0-9(]){6,110} [a-z0-9)] "?"
start ::= what | how | why | when | other
what ::= "What " ("is " | "are " | "does " | "do " | "happens " | "if " | "kind of " | "should ")
how ::= "How " ("do " | "does " | "can " | "is " | "are " | "much " | "many " | "long " | "often ")
why ::= "Why " ("is " | "are " | "do " | "does " | "should ")
when ::= "When " ("should " | "do " | "does " | "is ")
other ::= "Which " | "Where " | "Who " | "Can I " | "Can you " | "Should I " | "Do I " | "Does "
""",
    "zh": "root ::= [^?？\\n]{4,60} [?？]\n",
}
_SENTENCES = r"""sentence ::= first ([^.!?\n] | [.!?] [^ \nA-Z])+ [.!?]
first ::= [A-Z"'`(0-9]
"""
_PROSE = 'root ::= sentence (" " sentence){0,2}\n' + _SENTENCES
_PROSE_AND_CODE = (
    r"""root ::= sentence (" " sentence){0,2} | (sentence " "){0,2} lead code
lead ::= first ([^.!?:\n] | [.!?:] [^ \nA-Z])+ ":"
code ::= "\n```" [a-z+#]{0,10} "\n" [^`]+ "\n```"
"""
    + _SENTENCES
)


def reply_grammar(domain: str, language: str) -> str | None:
    """One to three sentences, for programming with a block of code; None in Chinese."""
    if language != "en":
        return None
    return _PROSE_AND_CODE if domain == "programming" else _PROSE


def system_prompt(seed: Seed, settings: Settings) -> str:
    """The assistant's system prompt for this seed."""
    if settings.system is not None:
        return settings.system
    return assistant(seed_domain(seed, settings), settings.language, settings.guardrail)


def seed_domain(seed: Seed, settings: Settings) -> str:
    """The domain of the settings; with "auto", that of the seed's source."""
    return domain_of(seed.source) if settings.domain == "auto" else settings.domain


def transcript_request(seed: Seed, settings: Settings) -> dict[str, Any]:
    """`messages`, `max_tokens` and `temperature` of the one call that writes a transcript."""
    system = system_prompt(seed, settings)
    task = transcript(seed.text, settings.num_turns, settings.language)
    return {
        "messages": [{"role": "user", "content": f"{task}\n{system}"}],
        "max_tokens": settings.transcript_tokens, "temperature": settings.temperature,
    }  # fmt: skip
