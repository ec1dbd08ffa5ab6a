"""The text formats: what is written can be read, and nothing a model writes makes a parser fall."""

import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from baize_lib.config import BaizeError, data_dir
from baize_lib.dialogue import (
    AI_TAG,
    HUMAN_TAG,
    Dialogue,
    Message,
    fenced,
    parse_transcript,
    pieces,
    render,
    tagged,
    without_thoughts,
)


def said(*contents):
    return tuple(Message(("user", "assistant")[i % 2], text) for i, text in enumerate(contents))


plain = st.text(alphabet="abc xyz?.\n", min_size=1, max_size=30).map(str.strip).filter(bool)
dialogues = st.lists(st.tuples(plain, plain), min_size=1, max_size=4).map(
    lambda turns: Dialogue(said(*(text for turn in turns for text in turn)), id="d1", seed="s")
)


def test_a_reply_and_its_end_token_are_learnt_and_nothing_else():
    laid_out = pieces(said("Hi?", "Hello.", "Bye?", "Bye."), eos="</s>")
    assert [p.text for p in laid_out if p.learn] == [" Hello.</s>", " Bye.</s>"]
    assert laid_out[0].text.endswith(f"\n{HUMAN_TAG} Hi?\n{AI_TAG}")


@given(dialogues)
def test_the_text_asked_with_is_the_start_of_the_text_trained_on(dialogue):
    trained = render(dialogue.messages, eos="</s>")
    asked = render(dialogue.messages[:-1], eos="</s>", open_reply=True)
    assert trained == f"{asked} {dialogue.messages[-1].content}</s>"


def test_a_system_message_replaces_the_header():
    messages = (Message("system", "Be kind."), *said("Hi?", "Hello."))
    assert render(messages).startswith("Be kind.\n[|Human|] Hi?")


def test_an_unknown_language_is_refused():
    with pytest.raises(BaizeError, match="language='fr' is not known"):
        render(said("Salut ?", "Bonjour."), language="fr")


@pytest.mark.parametrize(
    ("messages", "complaint"),
    [
        ((), "0 messages"),
        (said("Hi?"), "does not end with an assistant's reply"),
        ((Message("assistant", "Hello."),), "message 1 is from 'assistant'"),
        ((*said("Hi?"), *said("Still there?")), "message 2 is from 'user'"),
    ],
)
def test_roles_that_do_not_alternate_are_refused(messages, complaint):
    with pytest.raises(BaizeError, match=complaint):
        pieces(messages)


def test_a_complete_last_exchange_is_kept():
    found = parse_transcript("[Human] One?\n[AI] Yes.\n[Human] Two?\n[AI] No.")
    assert found.messages == said("One?", "Yes.", "Two?", "No.")
    assert found.defects == ()


def test_a_missing_first_tag_is_recovered():
    found = parse_transcript("What is rust?\n[AI] Iron oxide.")
    assert found.messages == said("What is rust?", "Iron oxide.")
    assert found.defects == ("missing first tag",)


def test_a_preamble_is_not_part_of_the_dialogue():
    found = parse_transcript("Sure, here it is:\n[Human] Hi?\n[AI] Hello.")
    assert found.messages == said("Hi?", "Hello.")
    assert found.defects == ("text before the first tag",)


def test_a_tag_inside_a_sentence_is_text():
    found = parse_transcript("[Human] What does [AI] mean?\n[AI] The tag [AI] marks a reply.")
    assert found.messages == said("What does [AI] mean?", "The tag [AI] marks a reply.")


def test_a_tag_inside_fenced_code_is_text_and_the_code_stays_whole():
    code = "Like this:\n```ini\n[AI]\nmodel = 1\n\n[Human]\nname = 2\n```\nDone."
    found = parse_transcript(f"[Human] Show me.\n[AI] {code}\n[Human] Thanks?\n[AI] Fine.")
    assert found.messages == said("Show me.", code, "Thanks?", "Fine.")


def test_a_fence_left_open_does_not_swallow_the_rest():
    found = parse_transcript("[Human] A?\n[AI] ```python\nx = 1\n[Human] B?\n[AI] ```js\ny\n```")
    assert len(found.messages) == 4


def test_empty_turns_are_dropped_and_named():
    found = parse_transcript("[Human] A?\n[AI]\n[Human]\n[AI] Late reply.")
    assert found.messages == said("A?", "Late reply.")
    assert found.defects == ("empty turn", "empty turn")


def test_a_question_without_a_reply_is_dropped_and_named():
    assert parse_transcript("[|Human|] A?\n[|AI|] B.\n[|Human|] C?").defects == (
        "unanswered question",
    )


@pytest.mark.parametrize("text", ["", "   \n", "just prose", "[AI] Alone.", "[Human]\n[AI]\n"])
def test_a_text_without_an_exchange_gives_no_messages(text):
    assert parse_transcript(text).messages == ()


tags = st.sampled_from(["[Human]", "[AI]", HUMAN_TAG, AI_TAG, "```", "```py", "\n", " ", "[", ":"])


@given(st.lists(tags | st.text(max_size=12), max_size=30).map("".join))
def test_parsing_never_raises_and_gives_whole_exchanges(text):
    found = parse_transcript(text)
    if found.messages:
        pieces(found.messages)
    assert all(message.content.strip() for message in found.messages)


@given(dialogues)
def test_what_is_rendered_parses_back(dialogue):
    assert parse_transcript(render(dialogue.messages)).messages == dialogue.messages


# ---- code fences


@pytest.mark.parametrize(
    ("text", "blocks"),
    [
        ("a\n```py\nx\n```\nb", [("py", "x\n", True)]),
        ("```\nx", [("", "x", False)]),
        ("~~~js\nx\n~~~", [("js", "x\n", True)]),
        ("````md\n```py\nx\n```\n````\nz", [("md", "```py\nx\n```\n", True)]),
        ("~~~\n```\n~~~", [("", "```\n", True)]),
        ("```\n~~~\n```", [("", "~~~\n", True)]),
        ("```\nx\n`````", [("", "x\n", True)]),
        ("```js title=a.js\nx\n```", [("js title=a.js", "x\n", True)]),
        ("``` {.py}\nx\n```  ", [("{.py}", "x\n", True)]),
        ("1. So:\n   ```py\n   x\n     y\n   ```", [("py", "x\n  y\n", True)]),
        ("- ```py\n  x\n  ```", [("py", "x\n", True)]),
        ("> ```py\n> x\n>  y\n> ```", [("py", "x\n y\n", True)]),
        ("    ```py\n    >>> x\n    ```", [("py", ">>> x\n", True)]),
        ("Like this: ```py\nx\n```", [("py", "x\n", True)]),
        ("[AI] ```py\nx\n```", [("py", "x\n", True)]),
        ("```py\nx\n\n```js\ny\n```", [("py", "x\n\n", False), ("js", "y\n", True)]),
        ("```py\r\nx\r\n```\r\n", [("py", "x\r\n", True)]),
        ("```\n```\n```py\nx\n```", [("", "", True), ("py", "x\n", True)]),
        ("Say ```x``` or ``y``, even ```.", []),
        ("``\nx\n``", []),
    ],
)
def test_blocks_of_code_are_found_as_a_reader_sees_them(text, blocks):
    assert [(block.info, block.code, block.closed) for block in fenced(text)] == blocks


prose = st.sampled_from(["Some words.", "", "- an item", "# A heading", "`x` and ``y``", "x = 1"])


@st.composite
def markdown(draw):
    """Lines of prose and closed blocks of code, whose lines are no end of their own block."""
    lines = []
    for _ in range(draw(st.integers(0, 4))):
        lines += draw(st.lists(prose, max_size=3))
        marks = draw(st.sampled_from(["```", "````", "~~~", "~~~~~"]))
        inside = [f for f in ("```", "~~~", "````", "x", "  y", "") if not f.startswith(marks)]
        lines += [marks + draw(st.sampled_from(["", "py", " js n=1"]))]
        lines += [*draw(st.lists(st.sampled_from(inside), max_size=4)), marks]
    return "\n".join(lines)


@settings(deadline=None)
@given(markdown())
def test_blocks_of_code_are_those_of_commonmark(text):
    parsed = pytest.importorskip("markdown_it").MarkdownIt().parse(text)
    expected = [(token.info.strip(), token.content) for token in parsed if token.type == "fence"]
    assert [(block.info, block.code) for block in fenced(text)] == expected


@given(st.lists(st.sampled_from(["```", "~~~", "py", "\n", "x", "> ", " ", ": "])).map("".join))
def test_blocks_of_code_never_overlap_and_hold_their_code(text):
    end = 0
    for block in fenced(text):
        assert end <= block.start < block.end <= len(text)
        assert text[block.start] in "`~"
        assert len(block.code) <= block.end - block.start
        end = block.end


# ---- thoughts

OPENERS = ["<think>", "<thinking>", "<Reasoning>", "<THOUGHT>", "◁think▷", "[THINK]",
           "<seed:think>", "<think effort='2'>", "<reasoning_content>", "<|begin_of_thought|>",
           "<|channel|>analysis<|message|>"]  # fmt: skip
ENDS = ["</think>", "</thinking>", "</Reasoning>", "</THOUGHT>", "◁/think▷", "[/THINK]",
        "</seed:think>", "</think>", "</reasoning_content>", "<|end_of_thought|>",
        "<|end|><|start|>assistant<|channel|>final<|message|>"]  # fmt: skip
MARKS = list(zip(OPENERS, ENDS, strict=True))


@pytest.mark.parametrize(("opener", "end"), MARKS)
def test_a_thought_is_not_said(opener, end):
    assert without_thoughts(f"{opener}They greet me.{end}\n\nHello.") == "Hello."
    assert without_thoughts(f"{opener}They greet.\n```py\nx{end}Hello.") == "Hello."
    assert without_thoughts(f"{opener}{end}Hello.") == "Hello."
    assert without_thoughts(f"{opener}They greet me, so I") == ""
    assert without_thoughts(f"Hello. {opener}Was that all") == "Hello."
    assert without_thoughts(f"They greet me.{end}\nHello.") == "Hello."
    assert without_thoughts(f"{opener}a{end}Hello, {opener}b{end}you.") == "Hello, you."


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("Hello.\n<think>\nlong\n</think>\nBye.", "Hello.\nBye."),
        ("<think>a<think>b</think>c</think>Hello.", "Hello."),
        ("<think>a</think><answer>Hello.</answer>", "Hello."),
        ("<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>commentary<|message|>b"
         "<|end|><|start|>assistant<|channel|>final<|message|>Hello.<|return|>", "Hello."),
        ("analysisThey greet me.assistantfinalHello.", "Hello."),
        ("<think>a</think>\n\n```xml\n<think>\n```", "```xml\n<think>\n```"),
    ],
)  # fmt: skip
def test_whatever_thoughts_leave_behind_goes_too(text, left):
    assert without_thoughts(text) == left


@pytest.mark.parametrize(
    "text",
    [
        "I think so.", "```xml\n<think>a</think>\n```", "~~~\n</think>\n~~~\nThat ends it.",
        "Put `<think>` before it and `</think>` after it.", "1 < thinking > 2", "", "  Hello \n",
        "[thoughts] are free", "<b>think</b>", "She was reasoning: </b>",
    ],
)  # fmt: skip
def test_a_text_without_thoughts_stays_as_it_is(text):
    assert without_thoughts(text) == text


@given(st.lists(st.sampled_from([*OPENERS, *ENDS, "```", "`", "\n", "a "])).map("".join))
def test_taking_thoughts_away_never_raises_and_leaves_none(text):
    left = without_thoughts(text)
    assert without_thoughts(left) == left or "`" in text


# ---- transcripts in other layouts


def recorded():
    lines = (data_dir() / "self_chat_sample.jsonl").read_text(encoding="utf-8").splitlines()
    for line in lines:
        messages = json.loads(line)["messages"]
        yield tuple(Message(m["role"], m["content"].strip()) for m in messages)


ASKED_FOR = [("[Human] ", "[AI] "), ("[|Human|] ", "[|AI|] "), ("[Human]\n", "[AI]\n"),
             ("[Human]: ", "[AI]: "), ("[human] ", "[ai] "), ("［Human］ ", "［AI］ "),
             ("【人类】", "【助手】"), ("[用户] ", "[助手] "),
             ("[Human 1] ", "[AI 1] ")]  # fmt: skip
OTHERS = [
    ("[User] ", "[Assistant] "), ("[Person] ", "[Bot] "), ("**[Human]** ", "**[AI]** "),
    ("### [Human] ", "### [AI] "), ("### Human\n", "### AI\n"), ("**Human**\n", "**AI**\n"),
    ("Human: ", "AI: "), ("HUMAN: ", "ASSISTANT: "), ("User: ", "Assistant: "), ("Q: ", "A: "),
    ("**Human:** ", "**AI:** "), ("**Human**: ", "**AI**: "), ("## User:\n", "## Assistant:\n"),
    ("Human：", "AI："), ("人类：", "助手："), ("用户：", "AI助手："), ("问：", "答："),
    ("1. [Human] ", "2. [AI] "), ("- [Human] ", "- [AI] "), ("* Human: ", "* AI: "),
    ("• **User:** ", "• **Bot:** "), ("> [Human] ", "> [AI] "), ("> Human: ", "> AI: "),
    ("`[Human]` ", "`[AI]` "), ("\\[Human\\] ", "\\[AI\\] "), ("[**Human**] ", "[**AI**] "),
    ("Human 1: ", "AI 1: "), ("Human (Ann): ", "AI (Bot): "),
    ("(Human) ", "(AI) "), ("<human>", "<ai>"), ("👤 Human: ", "🤖 AI: "), ("「人类」", "「助手」"),
    ("<|user|>\n", "<|assistant|>\n"), ("<|im_start|>user\n", "<|im_start|>assistant\n"),
    ("<|start_header_id|>user<|end_header_id|>\n\n",
     "<|start_header_id|>assistant<|end_header_id|>\n\n"),
]  # fmt: skip


LAYOUTS = st.tuples(
    st.sampled_from(ASKED_FOR + OTHERS), st.sampled_from(["\n", "\n\n", "\n  \n"]),
    st.sampled_from(["\n", "\r\n", "\r"]),
)  # fmt: skip


@settings(max_examples=400, deadline=None)
@given(dialogues, LAYOUTS)
def test_a_transcript_in_any_layout_is_read_exactly(dialogue, layout):
    tags, between, newline = layout
    lines = [tags[m.role == "assistant"] + m.content for m in dialogue.messages]
    found = parse_transcript(between.join(lines).replace("\n", newline))
    assert found.messages == dialogue.messages
    assert found.defects == (("other tags",) if tags in OTHERS else ())


@pytest.mark.parametrize("tags", ASKED_FOR + OTHERS)
def test_recorded_dialogues_cut_code_and_all_are_read_exactly_all_but_one_in_a_hundred(tags):
    exact = []
    for messages in recorded():
        lines = [tags[m.role == "assistant"] + m.content for m in messages]
        exact.append(parse_transcript("\n".join(lines)).messages == messages)
    # code cut off in mid-block, with marks of its own: a handful of a thousand are read otherwise
    assert sum(exact) >= 0.99 * len(exact)


voices = st.lists(st.tuples(st.sampled_from(["mine", "yours"]), plain), min_size=1, max_size=9)


@settings(max_examples=300, deadline=None)
@given(voices, LAYOUTS)
def test_nothing_of_one_voice_ends_in_the_other_s(spoken, layout):
    (human, ai), between, newline = layout
    lines = [f"{human}mine {t}" if who == "mine" else f"{ai}yours {t}" for who, t in spoken]
    found = parse_transcript(between.join(lines).replace("\n", newline))
    for message in found.messages:
        assert ("mine" in message.content) == (message.role == "user")
        assert ("yours" in message.content) == (message.role == "assistant")
    if found.messages:
        pieces(found.messages)


EXCHANGE = said("Is it so?", "It is.")


@pytest.mark.parametrize(
    ("text", "defects"),
    [
        ("```\n[Human] Is it so?\n[AI] It is.\n```", ["a fence around all"]),
        ("```text\n[Human] Is it so?\n[AI] It is.\n```\nI hope this helps!",
         ["a fence around all"]),
        ("Sure! Here it is:\n\n~~~\nA chat\n[Human] Is it so?\n[AI] It is.\n~~~",
         ["a fence around all", "text before the first tag"]),
        ("```\n[Human] Is it so?\n[AI] It is.", ["a fence around all"]),
        ("<think>[Human] no\n[AI] no</think>\n[Human] Is it so?\n[AI] It is.", ["thoughts"]),
        ("[Human] no\n[AI] no\n</think>\n[Human] Is it so?\n[AI] It is.", ["thoughts"]),
        ("[Human] Is it so?\n[AI] <think>Hm.</think>It is.", ["thoughts"]),
        ("[Human] Is it so?\n[AI] Hm.</think>\n\nIt is.", ["thoughts"]),
        ("[Human] <think>I ask.</think> Is it so?\n[AI] <think>Hm.</think>\nIt is.", ["thoughts"]),
        ("[Human] Is it so?\n[AI] It is.\n[Human] And\n[AI] <think>Hm",
         ["thoughts", "empty turn", "unanswered question"]),
        ("Sure! Here is the conversation:\n[Human] Is it so?\n[AI] It is.",
         ["text before the first tag"]),
        ("Sure! Here is the conversation:\n\nIs it so?\n[AI] It is.",
         ["text before the first tag", "missing first tag"]),
        ("**Conversation**\n\nHuman: Is it so?\nAI: It is.",
         ["other tags", "text before the first tag"]),
        ("[Human] Is it so?\n[AI] It is.\n\nI hope this conversation helps!", ["closing remark"]),
        ("[Human] Is it so?\n[AI] It is.\n\n---\n\nLet me know if the dialogue should be longer.",
         ["closing remark"]),
        ("[Human] Is it so?\n[AI] It is.\n\n[End of conversation]", ["closing remark"]),
        ("[Human] Is it so?\n[AI] It is.\n（对话结束）", ["closing remark"]),
        ("<dialogue>\n[Human] Is it so?\n[AI] It is.\n</dialogue>", ["text before the first tag"]),
        ("[Human] Is it so?\n\n---\n\n[AI] It is.\n\n---", []),
        ("### Turn 1\n[Human] Is it so?\n[AI] It is.\n\n### Turn 2\n[Human] And?",
         ["unanswered question"]),
        ("[System] Be kind.\n[Human] Is it so?\n[AI] It is.", ["other tags", "system line"]),
        ("[AI] Hello.\n[Human] Is it so?\n[AI] It is.", ["reply without a question"]),
        ("[Human] Is it so?\n[AI]\n[AI] It is.\n[Human]", ["empty turn", "empty turn"]),
        ("[User] Is it so?\n[AI] It is.", ["other tags"]),
        ("<|user|>\nIs it so?</s>\n<|assistant|>\nIt is.</s>", ["other tags"]),
        ("<human>Is it so?</human>\n<ai>It is.</ai>", ["other tags"]),
        ("\ufeff[Human] Is it so?\n[AI] It is.", []),
        (json.dumps([{"role": "user", "content": "Is it so?"},
                     {"role": "assistant", "content": "It is."}]), ["JSON"]),
        ('Here:\n```json\n{"messages": [{"role": "user", "content": "Is it so?"},\n'
         '{"role": "assistant", "content": "It is."}]}\n```', ["JSON"]),
        ('{"from": "human", "value": "Is it so?"}\n{"from": "gpt", "value": "It is."}', ["JSON"]),
        ('[{"Human": "Is it so?", "AI": "It is."}]', ["JSON"]),
        ('[{"role": "user", "content": "Is it so?"}, {"role": "ai", "content": "It is."}, {"ro',
         ["JSON"]),
    ],
)  # fmt: skip
def test_what_teachers_write_around_a_transcript_is_named_and_left_out(text, defects):
    found = parse_transcript(text)
    assert found.messages == EXCHANGE
    assert list(found.defects) == defects


@pytest.mark.parametrize(
    ("text", "messages"),
    [
        ("[Human] A?\n[AI] B.\n[User] C?\n[Assistant] D.", said("A?", "B.", "C?", "D.")),
        ("[Human] A?\n[AI] B.\nHuman: C?\nAI: D.", said("A?", "B.", "C?", "D.")),
        ("[Human] A?\nAI: B.\n[Human] C?\nAI: D.", said("A?", "B.", "C?", "D.")),
        ("[Human] A?\n[AI] Log:\nuser: root\nassistant: none",
         said("A?", "Log:\nuser: root\nassistant: none")),
        ("[Human] A?\n[AI] The steps:\nQ: why\nA: so", said("A?", "The steps:\nQ: why\nA: so")),
        ("[Human] A?\n[AI] [AI]'s is\n[AI](https://a.b)",
         said("A?", "[AI]'s is\n[AI](https://a.b)")),
        ("Human: A?\nAI: So.\nHumans: many\nAI-based: yes",
         said("A?", "So.\nHumans: many\nAI-based: yes")),
        ("[Human] A?\n[Human] B?\n[AI] C.\n[AI] D.", said("A?\nB?", "C.\nD.")),
        ("[Human] A?\n[AI] So:\n```\n[Human]\n```\n[Human] B?\n[AI] C.",
         said("A?", "So:\n```\n[Human]\n```", "B?", "C.")),
        ("Human: A?\nAI: So:\n```js\na = {\n    user: 1\nHuman: B?\nAI: C.",
         said("A?", "So:\n```js\na = {\n    user: 1", "B?", "C.")),
        ("[Human] A?\n[AI] So:\n```pl\nx\n[Human] B?\n[AI] Prints:\n```\ny\n```",
         said("A?", "So:\n```pl\nx", "B?", "Prints:\n```\ny\n```")),
        ("[Human] A?\n[AI] x\n```\n[Human] B?\n[AI] C.", said("A?", "x\n```", "B?", "C.")),
        ("[Human] A?\n[AI] **Bold** words.\n[Human] *B?*\n[AI] - c\n- d",
         said("A?", "**Bold** words.", "*B?*", "- c\n- d")),
        ("**Human: A?**\n\n**AI:** B.", said("A?", "B.")),
        ("USER: A?\nASSISTANT: B.</s>USER: C?\nASSISTANT: D.</s>", said("A?", "B.", "C?", "D.")),
        ("<s>[Human] A?\n[AI] B.</s> <s>[Human] C?\n[AI] D.", said("A?", "B.", "C?", "D.")),
        ("[Human] A `</s>AI:`?\n[AI]\n```\n</s> user: x\n```",
         said("A `</s>AI:`?", "```\n</s> user: x\n```")),
        ("<|im_start|>user\nA?<|im_end|><|im_start|>assistant\nB.<|im_end|>", said("A?", "B.")),
        ("> [Human] A?\n> more\n>\n> [AI] B.", said("A?\nmore", "B.")),
    ],
)  # fmt: skip
def test_tags_are_told_from_words(text, messages):
    found = parse_transcript(text).messages
    assert [m.content for m in found] == [m.content for m in messages]


@pytest.mark.parametrize(
    "line", ["Humans ask.", "The AI: a survey", "[AI without end", "user", "AIDS: what",
             '"AI": 1', "[1] AI", "@user: hi", "// AI: x", "http://user:pw@host",
             "ai::Model", "human:// x", ""],
)  # fmt: skip
def test_a_line_without_a_tag_has_none(line):
    assert tagged(line) is None


@pytest.mark.parametrize("text", [
    "[Human] a\n", "```\n", "<think>", "</think>", "<think>a</think>", "`", "{",
    "[Human] a\n[AI] ```\n", "* ", " ", "\n", "# ", "1.", "---\n", "```a\n~~~b\n", "*",
    "</s>", "- [Human] ", "<think>`",
    "> ", "[Human] a\n```\n</think>", "&lt;", "(", "[", "Turn 1 ",
])  # fmt: skip
def test_reading_is_quick_whatever_is_written(text):
    start = time.process_time()
    parse_transcript(text * 4000)
    without_thoughts(text * 4000)
    assert time.process_time() - start < 5
