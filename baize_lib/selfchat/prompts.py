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
from baize_lib.dialogue import check_language
from baize_lib.seeds.seed import Seed

__all__ = [
    "SelfChatSettings",
    "system_prompt",
    "transcript_request",
    "DOMAINS",
    "domain_of",
    "seed_domain",
    "assistant",
    "transcript",
    "question_messages",
    "clean_question",
    "says_end",
    "same_question",
    "shares_a_word",
    "QUESTION_GRAMMAR",
    "reply_grammar",
]


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
class SelfChatSettings:
    """How dialogues are made. A ledger remembers these and refuses to be continued with others.

    Attributes:
        max_tokens: cap of one reply, tokens; `question_tokens`: cap of one question. They are
            tokens of the teacher's own tokenizer: a character of a language it has hardly seen
            takes two or three (notebook 11 counts them).
        temperature: of the assistant; `question_temperature`: of the human. None leaves it out.
        domain: a key of `DOMAINS`, or "auto" to take it from each seed's source.
        guardrail: tell the assistant to decline what would do harm.
        language: which language both sides are told to speak, one of `LANGUAGES`.
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
        check_language(self.language)
        for name, allowed in (
            ("strategy", ("turns", "transcript")),
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


_SPEAKER = "human|person|user|question|人类|用户|下一个问题|问题|提问|问"
_TAGGED = re.compile(
    rf"^(?:\[\|?(?:{_SPEAKER})\|?\]\s*[:：]?|【(?:{_SPEAKER})】[:：]?|(?:{_SPEAKER})\s*[:：])\s*",
    re.I,
)


def clean_question(text: str) -> str:
    """The first line of what the question-writer wrote, without a speaker's tag or quotes."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return _TAGGED.sub("", lines[0]).strip().strip('"“”「」『』').strip() if lines else ""


def says_end(question: str) -> bool:
    """Whether the human said that nothing is left to ask."""
    return re.sub(r"[\W_]+", "", question).upper() in ("END", "结束", "对话结束")


_SMALL = frozenset(
    re.findall(r"\w+", "a an the of to in is are do does did i you it and or can for")
)


def same_question(one: str, other: str) -> bool:
    """Whether three quarters of the shorter one's words are in the other.

    A word is its first four letters, or a Chinese character. A Chinese question word is one word
    however it is put, and two questions with different ones are not the same.

    >>> same_question("How do I sort a list?", "how do you sort the lists")
    True
    >>> same_question("番茄怎么种？", "如何种番茄？")
    True
    """
    first, second = _stems(one), _stems(other)
    put = [{word for word in words if word[0] == "?"} for words in (first, second)]
    if all(put) and not put[0] & put[1]:  # why is not when, however many characters are shared
        return False
    return 4 * len(first & second) >= 3 * min(len(first), len(second))


_ASKED_WITH = {
    "why": "为什么|为何|为啥", "when": "什么时候|何时", "how": "怎么样?|怎样|如何|咋",
    "where": "什么地方|哪里|哪儿", "many": "多少|多长时间|多久|几", "which": "哪[个些种一]?",
    "what": "什么|啥", "who": "谁",
}  # fmt: skip
_SMALL_ZH = "的了着过吗呢吧啊呀是在有一个这那我你您他她它们和与就也都还会能可以要想请问给"
_SMALL_ZH = re.compile(f"[{_SMALL_ZH}]")


def _stems(text: str) -> set[str]:
    text = text.lower()
    for name, put in _ASKED_WITH.items():
        text = re.sub(put, f" ?{name} ", text)
    words = re.findall(r"\?[a-z]+|[a-z0-9]+|[一-鿿]|[^\W_一-鿿]+", _SMALL_ZH.sub("", text))
    return {word[:4] for word in words if word not in _SMALL}


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


_EMPTY_ZH = (
    *_ASKED_WITH.values(),
    "因为|所以|但是|而且|如果|或者|以及|虽然|不过|然后|另外|除了|关于|通过|根据|例如|比如|其他|其它|其中",
    "需要|应该|必须|可能|能够|使用|进行|提供|帮助|建议|介绍|解释|说明|告诉|知道|觉得|认为|注意|具体|还有",
    "问题|回答|方法|办法|方式|情况|东西|事情|时候|这样|那样|一些|一下|一种|不同|重要|非常",
    "[的了着过吗呢吧啊呀是在有一这那我你您他她它们和与或就也都还会能可以要想请给把被让从到对为用不没很更最太]",
    "[再又只才做好多少些样点里]",
)
_EMPTY_ZH = re.compile("|".join(_EMPTY_ZH))


def shares_a_word(question: str, said: str) -> bool:
    """Whether the question takes up a word of what was said.

    Chinese puts no space between words: two neighbouring characters of the question that say
    something count as one, and a single one that stands between empty words.

    >>> shares_a_word("花盆要多大？", "请选一个底部有孔的大花盆。")
    True
    """
    if _full_words(question) & _full_words(said):
        return True
    runs = re.findall("[一-鿿]+", _EMPTY_ZH.sub(" ", question))
    pairs = (pair for run in runs for pair in ([run] if len(run) == 1 else _pairs(run)))
    return any(pair in said for pair in pairs)


def _full_words(text: str) -> set[str]:
    words = re.findall(r"[a-z0-9]+|[^\W_一-鿿]+", text.lower())
    return {word[:4] for word in words if word not in _EMPTY_WORDS}


def _pairs(run: str) -> list[str]:
    return [run[i : i + 2] for i in range(len(run) - 1)]


QUESTION_GRAMMAR = {
    "en": r"""root ::= start ([a-zA-Z0-9,'()+#/-] | " " [a-zA-Z0-9(]){6,110} [a-z0-9)] "?"
start ::= what | how | why | when | other
what ::= "What " ("is " | "are " | "does " | "do " | "happens " | "if " | "kind of " | "should ")
how ::= "How " ("do " | "does " | "can " | "is " | "are " | "much " | "many " | "long " | "often ")
why ::= "Why " ("is " | "are " | "do " | "does " | "should ")
when ::= "When " ("should " | "do " | "does " | "is ")
other ::= "Which " | "Where " | "Who " | "Can I " | "Can you " | "Should I " | "Do I " | "Does "
""",
    # A question word at its beginning or at its end, one clause, Latin only as a short word. The
    # speaker's tag is allowed, since a weak teacher writes one anyway; `clean_question` drops it.
    "zh": """root ::= "人类："? (begins word{2,14} | word{2,14} ends) "？"
begins ::= "为什么" | "怎样" | "如何" | "什么是" | "什么时候" | "哪些" | "哪种" | "谁" | "能不能"
ends ::= "吗" | "是什么" | "有哪些" | "怎么办" | "是多少" | "要多久" | "有什么用" | "在哪里"
word ::= [一-鿿] | [A-Za-z0-9] [A-Za-z0-9.+#_-]{0,11}
""",
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


# Chinese sentences of at most six clauses; or, since a weak teacher may well answer in English,
# English ones: which of the two it writes is its own doing, and counted afterwards.
_CHINESE = r"""chinese ::= clause ([，：；] clause){0,5} [。！]
clause ::= [ -+\x2D-9<-Z_a-z“《]{0,24} [一-鿿] other{0,20} ("、" other{1,12}){0,4}
other ::= [^，。！？：；、…,;!?\n\x60]
english ::= [A-Z"'(0-9] ([ -+\x2D/-Z\[-_a-~] | "," | "." [^ \nA-Z])+ [.!]
"""
_PROSE_ZH = 'root ::= chinese{1,3} | english (" " english){0,2}\n' + _CHINESE
_PROSE_AND_CODE_ZH = (
    r"""root ::= prose | prose? lead code
prose ::= chinese{1,3} | english (" " english){0,2}
lead ::= (clause [，；]){0,3} clause "：" | [A-Z] [ -9<-_a-z]{2,80} ":"
code ::= "\n```" [a-z+#]{0,10} "\n" [^`]+ "\n```"
"""
    + _CHINESE
)
_REPLY_GRAMMAR = {
    "en": {"programming": _PROSE_AND_CODE, "": _PROSE},
    "zh": {"programming": _PROSE_AND_CODE_ZH, "": _PROSE_ZH},
}


def reply_grammar(domain: str, language: str) -> str:
    """One to three sentences, for programming with a block of code."""
    grammars = _REPLY_GRAMMAR[language]
    return grammars.get(domain, grammars[""])


def system_prompt(seed: Seed, settings: SelfChatSettings) -> str:
    """The assistant's system prompt for this seed."""
    if settings.system is not None:
        return settings.system
    return assistant(seed_domain(seed, settings), settings.language, settings.guardrail)


def seed_domain(seed: Seed, settings: SelfChatSettings) -> str:
    """The domain of the settings; with "auto", that of the seed's source."""
    return domain_of(seed.source) if settings.domain == "auto" else settings.domain


def transcript_request(seed: Seed, settings: SelfChatSettings) -> dict[str, Any]:
    """`messages`, `max_tokens` and `temperature` of the one call that writes a transcript."""
    system = system_prompt(seed, settings)
    task = transcript(seed.text, settings.num_turns, settings.language)
    return {
        "messages": [{"role": "user", "content": f"{task}\n{system}"}],
        "max_tokens": settings.transcript_tokens, "temperature": settings.temperature,
    }  # fmt: skip
