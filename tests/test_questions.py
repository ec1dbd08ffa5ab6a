"""What the call that plays the human wrote, cut to the question it asks, in English and Chinese."""

import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from baize_lib.config import data_dir
from baize_lib.selfchat.questions import clean_question, says_end

QUESTIONS = [
    # small talk, numbers, bullets, tags, quotes, emphasis around one question
    ("What is a seed?", "What is a seed?"),
    ("Sure! Here's the next question: What is a seed?", "What is a seed?"),
    ("Sure, here is a follow-up question:\n\nWhat is a seed?", "What is a seed?"),
    ("Certainly! What is a seed?", "What is a seed?"),
    ("Here's my next question: What is a seed?", "What is a seed?"),
    ("Follow-up question: What is a seed?", "What is a seed?"),
    ("**Follow-up question:** What is a seed?", "What is a seed?"),
    ("Next question: What is a seed?", "What is a seed?"),
    ("Question 2: What is a seed?", "What is a seed?"),
    ("The person's next question is: What is a seed?", "What is a seed?"),
    ("1. What is a seed?", "What is a seed?"),
    ("2) What is a seed?", "What is a seed?"),
    ("- What is a seed?", "What is a seed?"),
    ("* What is a seed?", "What is a seed?"),
    ("> What is a seed?", "What is a seed?"),
    ("### What is a seed?", "What is a seed?"),
    ("**What is a seed?**", "What is a seed?"),
    ("*What is a seed?*", "What is a seed?"),
    ("__What is a seed?__", "What is a seed?"),
    ("What is a **seed**?", "What is a seed?"),
    ('"What is a seed?"', "What is a seed?"),
    ("“What is a seed?”", "What is a seed?"),
    ("‘What is a seed?’", "What is a seed?"),
    ('"What is a seed?', "What is a seed?"),
    ("Human: What is a seed?", "What is a seed?"),
    ("**Human:** What is a seed?", "What is a seed?"),
    ("[Human] What is a seed?", "What is a seed?"),
    ("[|Human|] What is a seed?\n[|AI|] A small plant.", "What is a seed?"),
    ("Human: What is a seed?\nAI: Small.\nHuman: And a leaf?", "What is a seed?"),
    ("User: What is a seed?", "What is a seed?"),
    ("Person: What is a seed?", "What is a seed?"),
    ("Q: What is a seed?", "What is a seed?"),
    ('Human: "What is a seed?"', "What is a seed?"),
    ("\n\n  What is a seed?  \n", "What is a seed?"),
    ("Thank you! What is a seed?", "What is a seed?"),
    ("Thanks for the explanation. What is a seed?", "What is a seed?"),
    ("I see. What is a seed?", "What is a seed?"),
    ("That's very interesting! What is a seed?", "What is a seed?"),
    ("That makes sense. What is a seed?", "What is a seed?"),
    ("<think>They spoke of plants.</think>What is a seed?", "What is a seed?"),
    ("They spoke of plants.</think>\n\nWhat is a seed?", "What is a seed?"),
    # several questions
    ("What is a seed? How does it grow?", "What is a seed?"),
    ("1. What is a seed?\n2. How does it grow?", "What is a seed?"),
    ("Here are some questions:\n\n1. What is a seed?\n2. How?", "What is a seed?"),
    ("What is a seed?\n\n(This follows from the answer.)", "What is a seed?"),
    ("What is a seed? It is a small plant in a box.", "What is a seed?"),
    ("How do I print it?\n```py\nx ? y\n```", "How do I print it?"),
    ("How can I help my teenager with homework?", "How can I help my teenager with homework?"),
    # sentences that belong to the question, or do not
    ("My dog ate a raisin. What should I do?", "My dog ate a raisin. What should I do?"),
    ("nginx returns 502. Why?", "nginx returns 502. Why?"),
    ("A seed is a small plant in a box. How long does it keep in the fridge?",
     "How long does it keep in the fridge?"),
    ("What about fruit, e.g. apples?", "What about fruit, e.g. apples?"),
    ("What does `a ? b : c` mean in C?", "What does `a ? b : c` mean in C?"),
    ("Why is `x**2**3` not 64?", "Why is `x**2**3` not 64?"),
    ('Is "Why?" a whole sentence?', 'Is "Why?" a whole sentence?'),
    ('"ModuleNotFoundError" although it is installed, why?',
     '"ModuleNotFoundError" although it is installed, why?'),
    ("User stories, what are they?", "User stories, what are they?"),
    ("Is 3.5 larger than 3.15?", "Is 3.5 larger than 3.15?"),
    # requests, and questions without a mark
    ("Show me the same in Python.", "Show me the same in Python."),
    ("Please explain the second step.", "Please explain the second step."),
    ("Thanks! Give me an example.", "Give me an example."),
    ("Can you show me how", "Can you show me how"),
    ("why do seeds need water", "why do seeds need water"),
    ("how long do they keep", "how long do they keep"),
    ("and what is a leaf", "and what is a leaf"),
    ("I'd like to know more about leaves.", "I'd like to know more about leaves."),
    ("Tell me more about leaves.", "Tell me more about leaves."),
    ("Write it without a loop.", "Write it without a loop."),
    # Chinese
    ("花盆要多大？", "花盆要多大？"),
    ("下一个问题：花盆要多大？", "花盆要多大？"),
    ("下一个问题：“花盆要多大？”", "花盆要多大？"),
    ("好的，下一个问题是：花盆要多大？", "花盆要多大？"),
    ("人类：花盆要多大？", "花盆要多大？"),
    ("【用户】花盆要多大？\n助手：很大。", "花盆要多大？"),
    ("「花盆要多大？」", "花盆要多大？"),
    ("谢谢！花盆要多大？", "花盆要多大？"),
    ("明白了。花盆要多大？", "花盆要多大？"),
    ("1、花盆要多大？\n2、要浇水吗？", "花盆要多大？"),
    ("花盆要多大？要浇水吗？", "花盆要多大？"),
    ("**花盆要多大？**", "花盆要多大？"),
    ("问：花盆要多大？", "花盆要多大？"),
    ("问问邻居可以吗？", "问问邻居可以吗？"),
    ("追问：花盆要多大？", "花盆要多大？"),
    ("请再举一个例子。", "请再举一个例子。"),
    ("请用Python再写一遍。", "请用Python再写一遍。"),
    ("帮我解释一下第二步。", "帮我解释一下第二步。"),
    ("怎样保存种子", "怎样保存种子"),
    ("<think>说到花盆。</think>花盆要多大？", "花盆要多大？"),
]  # fmt: skip


@pytest.mark.parametrize(("written", "question"), QUESTIONS)
def test_the_human_s_turn_is_cut_to_its_question(written, question):
    assert clean_question(written) == question
    assert clean_question(question) == question
    assert not says_end(written)


@pytest.mark.parametrize(
    "answer",
    [
        "The pot should be 30 cm wide.",
        "A seed is a small plant in a box, with its lunch.",
        "Use a large pot with holes, and water the plant every morning.",
        "List comprehensions are faster than loops.",
        "AI: A seed is a small plant.",
        "[AI] What would you like to know?",
        "A seed is a plant. Would you like to know more?",
        "Is there anything else I can help you with?",
        "Do you have any other questions?",
        "<think>What should I ask?</think>",
        "<think>What should I ask? Perhaps about the pot",
        "Sure! Here's the next question:",
        "",
        "\n \n",
        "花盆要三十厘米宽。",
        "请每天早上给植物浇水。",
        "还有什么可以帮您的吗？",
        "助手：花盆要大。",
    ],
)
def test_what_asks_nothing_is_no_question_and_no_end(answer):
    assert clean_question(answer) == ""
    assert not says_end(answer)


@pytest.mark.parametrize(
    "said",
    [
        "END", "end", "End.", "**END**", "[END]", '"END"', "(END)", "The end.", "Human: END",
        "END\n\nNothing is left to ask.", "<think>Nothing left.</think>END", "END OF CONVERSATION",
        "I have no more questions.", "I have no further questions, thank you.",
        "I don't have any more questions.", "No more questions.",
        "No further questions at this time.",
        "Thank you, that is all.", "Thank you, that is all", "That's all, thanks!",
        "That's all I wanted to know.", "Thanks for your help!",
        "Okay, thank you so much. Goodbye!",
        "Great, that answers my question.", "Nothing else.", "No, thank you.",
        "Nothing is left to ask.",
        "没有了，谢谢", "没有了，谢谢。", "没有其他问题了。", "没有更多问题了",
        "我没有问题了，谢谢你的帮助！",
        "结束", "（对话结束）", "【结束】", "end。", "好的，谢谢！", "谢谢，再见",
        "我没有别的问题了", "就这些，谢谢",
    ],
)  # fmt: skip
def test_the_end_is_understood(said):
    assert says_end(said)
    assert clean_question(said) == ""


def test_recorded_questions_stay_as_they_are_and_few_replies_pass_for_one():
    lines = (data_dir() / "self_chat_sample.jsonl").read_text(encoding="utf-8").splitlines()
    messages = [message for line in lines for message in json.loads(line)["messages"][1:]]
    asked = [m["content"] for m in messages if m["role"] == "user"]
    replies = [m["content"] for m in messages if m["role"] == "assistant"]
    same = [clean_question(question) == question for question in asked]
    assert sum(same) >= 0.98 * len(same)  # they were read by an earlier, plainer reader
    assert sum(bool(clean_question(reply)) for reply in replies) < 0.04 * len(replies)
    assert sum(map(says_end, asked + replies)) <= 0.01 * len(asked + replies)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from([q for q, _ in QUESTIONS]) | st.text(max_size=20), max_size=6))
def test_reading_never_raises_and_reads_its_own_result_again(pieces):
    question = clean_question("\n".join(pieces))
    assert "\n" not in question
    assert question == question.strip()
    says_end(" ".join(pieces))


@pytest.mark.parametrize("piece", ["?", "a. ", '"', "(", "*", "问", "thanks ", "no ", "1. ", "x: "])
def test_reading_is_quick_whatever_is_written(piece):
    text = piece * 5000
    start = time.process_time()
    clean_question(text)
    says_end(text)
    assert time.process_time() - start < 2
