"""Questions that a model wrote."""

import re

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
