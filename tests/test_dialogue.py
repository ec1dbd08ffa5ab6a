"""The text formats: what is written can be read, and nothing a model writes makes a parser fall."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baize_lib.config import BaizeError
from baize_lib.dialogue import (
    AI_TAG,
    HUMAN_TAG,
    Dialogue,
    Message,
    check_roles,
    parse_transcript,
    pieces,
    render,
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
        check_roles(messages)


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
        check_roles(found.messages)
    assert all(message.content.strip() for message in found.messages)


@given(dialogues)
def test_what_is_rendered_parses_back(dialogue):
    assert parse_transcript(render(dialogue.messages)).messages == dialogue.messages
