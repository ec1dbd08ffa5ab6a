"""Every defect on an example it must find and on look-alikes it must let pass."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from baize_lib.corpus.defects import DEFECTS, count_defects, defects_for, personal_data
from baize_lib.corpus.formats import Collected
from baize_lib.corpus.statistics import statistics
from baize_lib.dialogue import Dialogue, Message


def talk(*said: str, **known) -> Collected:
    """A dialogue of alternating messages, the user first."""
    roles = ("user", "assistant")
    messages = tuple(Message(roles[i % 2], text) for i, text in enumerate(said))
    return Collected(messages, **known)


def reply(text: str) -> Collected:
    return talk("What do you think?", text)


LONG = (
    "Bread rises because yeast eats the sugar in the dough and gives off gas, and the gluten "
    "holds that gas in small bubbles until the heat of the oven sets them for good"
)
FOUND = {
    "failed": [talk("Hi", "Hello there.", status="failed")],
    "role_order": [
        talk(), talk("Hello?"), talk("Hi", "Hello.", "And then?"),
        Dialogue((Message("assistant", "Hi"), Message("user", "Hello"))),
        Dialogue((Message("user", "a"), Message("user", "b"))),
    ],
    "empty_turn": [reply(""), reply(" \n\t")],
    "dangling_tag": [
        reply("Sure.\n[|Human|] "), reply("Sure.\n[Human]"), reply("Fine. [|AI|"), reply("Ok [|"),
        reply("Sure.\n[Human]:"),
    ],
    "both_voices": [
        reply("It is Dodoma.\n### Human: And before?"), reply("### Assistant: It is Dodoma."),
        reply("It is Dodoma.\nUser: And what was it before?"), reply("Assistant: It is Dodoma."),
        reply("[INST] What is it? [/INST] Dodoma."), reply("It is Dodoma.</s>"),
        reply("Fine.<|eot_id|>"), reply("<|user|>\nHi"), reply("<<SYS>> Be kind. <</SYS>>"),
        reply("好的。\n用户：然后呢？"), reply("Done.\n### Response: So it is."),
        reply("Sure.\n[|Human|] And then?\n[|AI|] Then you rest."), reply("Yes.\n[Human] Why?"),
        reply("User: why?\nAssistant: because."), reply("**Human:** why\n**AI:** so"),
        reply("用户：为什么？\n助手：因为。"), reply("Done.<|im_end|>"),
    ],
    "broken_characters": [reply("caf\ufffd"), reply("donâ€™t"), reply("CafÃ© au lait"),
                          reply("a\x00b")],
    "cut_reply": [talk("Hi", "Hello th", cut_turns=(0,))],
    "unfinished": [reply(LONG), reply(LONG + ", and")],
    "open_code": [reply("```python\nprint(1)")],
    "loop": [
        reply("I like to eat apples. " * 3), reply("the cat sat on the mat and " * 8),
        reply("very very very very very very good"), reply("我觉得这个问题很重要。" * 4),
        reply("We are here to help you with that. " * 2 + "Indeed. " + "We are here to help you "
              "with that."),
    ],
    "question_repeated": [
        talk("Who wrote Emma?", "Jane Austen did.", "who wrote Emma", "Austen."),
        talk("Please tell me how to bake a good loaf of bread at home", "Mix it.",
             "Please tell me how to bake a good loaf of bread at my home", "Knead it."),
    ],
    "reply_repeated": [
        talk("a?", "It is a kind of tree.", "b?", "It is a kind of tree!"),
        talk("Who wrote the novel Emma?", "Who wrote the novel Emma?"),
    ],
    "short_reply": [reply("Yes."), reply("Not sure.")],
    "asks_back": [
        reply("Hello! How can I help you today?"), reply("It depends. What is your budget?"),
        reply("Paris. Is there anything else?"), reply("可以。您想了解哪方面？"),
    ],
    "as_an_ai": [
        reply(" As an AI language model, I can't."), reply("As a responsible AI, I must say no."),
        reply("As a language model AI, I have no body."), reply("“As an AI, I can't,” it said."),
        reply("As your AI assistant, I suggest rest."), reply("Being an AI, I have no taste."),
        reply("As an artificial intelligence (AI), I don't eat."), reply("I am Qwen."),
        reply("我是通义千问。"),
        reply("As an AI language model, I don't have feelings."),
        reply("I'm sorry, but as an AI I cannot taste food."),
        reply("I’m an AI assistant and I can't drive."), reply("I am a large language model."),
        reply("As a large language model trained by someone, I may be wrong."),
        reply("I'm just a computer program, so I don't eat."),
        reply("作为一个人工智能语言模型，我没有感情。"), reply("我只是一个AI助手，无法品尝食物。"),
        reply("作为AI，我没有身体。"),
    ],
    "refusal": [
        reply("That is theft, and I won't plan it with you."), reply("I'd rather not."),
        reply("I'm sorry, but I can't assist with that."), reply("I cannot help you with this."),
        reply("Sorry, I can’t provide instructions for that."),
        reply("I am unable to recommend any poison."), reply("I won't help with hurting a dog."),
        reply("I must decline to answer."), reply("抱歉，我不能帮助您做这件事。"),
        reply("对不起，我无法提供这类信息。"), reply("我不能为您提供毒药的信息。"),
    ],
    "other_language": [
        reply("You can cook the rice 然后 let it rest for ten minutes before you serve it."),
        reply("Stolicą Polski jest Warszawa, miasto położone nad rzeką Wisłą."),
        reply("Türkiye'nin başkenti Ankara'dır ve en büyük şehri İstanbul'dur."),
        reply("Thủ đô của Việt Nam là Hà Nội, một thành phố bên sông Hồng."),
        reply("De hoofdstad van Nederland is Amsterdam, een stad met veel water."),
        reply("Mji mkuu wa Tanzania ni Dodoma, lakini mji mkubwa ni Dar es Salaam."),
        reply("Ibu kota Indonesia adalah Jakarta, sebuah kota besar di pulau Jawa."),
        reply("Sveriges huvudstad är Stockholm, en stad som ligger på många öar."),
        reply("La capitale de la France est Paris, une ville qui est connue pour les musées et la "
              "tour Eiffel."),
        reply("Die Hauptstadt von Frankreich ist Paris, und der Fluss in der Stadt ist die Seine."),
        reply("La capital de España es Madrid, una ciudad que está en el centro del país y es muy "
              "grande."),
        reply("法国的首都是巴黎，它位于塞纳河畔。"), reply("Столица Франции — Париж."),
    ],
    "personal_data": [
        reply("Write to anna.berg@gmail.com."), reply("Call (212) 867-5309 now."),
        reply("Call +44 20 7946 0958."), reply("我的电话是13912345678。"),
        reply("Card 4539 1488 0343 6467."), reply("Connect to 8.8.8.8 please."),
        reply("sk-abcdefghijklmnopqrstuvwx0123456789"), reply("AKIAIOSFODNN7EXAMPLE"),
        reply("-----BEGIN RSA PRIVATE KEY-----"),
    ],
    "repaired": [talk("Hi", "Hello.", repairs=("missing first tag",))],
    "thoughts": [
        reply("<think>They want a capital.</think>It is Dodoma."), reply("Hm.</think>\nDodoma."),
        reply("<think>They want"), reply("<|channel|>analysis They want a capital."),
    ],
}  # fmt: skip

LET_PASS = {
    "failed": [talk("Hi", "Hello.")],
    "role_order": [
        talk("Hi", "Hello."),
        Dialogue((Message("system", "Be kind."), Message("user", "a"), Message("assistant", "b"))),
    ],
    "empty_turn": [reply("?"), reply("好")],
    "dangling_tag": [reply("Tag it with [AI]."), reply("An array: a[0]"), reply("see [1]"),
                     reply("`print('[|AI|]')`")],
    "both_voices": [
        reply("In HTML, <s>this</s> is struck out."), reply("#### Response time: fast"),
        reply("`</s>` ends a sequence."), reply("```\n### Human: hi\n```"),
        reply("The fields are:\nUser: the name you log in with\nHost: the server"),
        reply("Use the pipe a <| b |> c."),
        reply("The [AI] label marks a reply."), reply("Put [Human] before it."),
        reply("```\n[|Human|] hi\n[|AI|] hello\n```"), reply("User: root\nPassword: none"),
        reply("AI: a field of computer science."), reply('Use "Human: " as a prefix.'),
    ],
    "broken_characters": [reply("café, naïve, 你好 — “so”…"), reply("NÃO é\tisso\n")],
    "cut_reply": [talk("Hi", "Hello th")],
    "unfinished": [
        reply("You need:\n1) rye and spelt flour\n2) some salt"),
        reply(LONG + ".\n\nStep 1: " + LONG), reply(LONG + ".\n\n• " + LONG),
        reply(LONG + ".\n\nIngredients:\nrye flour\nwater\na pinch of salt"),
        reply(LONG + ".\n\na) " + LONG), reply("一、" + "准备好所有需要的材料" * 4),
        reply(LONG + "."), reply("Paris"), reply(LONG + ":\n- rye\n- spelt flour"),
        reply(LONG + ".\n\ndef f(x):\n    return x"), reply(LONG + "\n```\nx\n```"),
    ],
    "open_code": [reply("```\nx\n```")],
    "loop": [
        reply("Weigh 2.5 lb of flour, then 2.5 lb of sugar, and keep 2.5 lb of butter cold."),
        reply("See https://a.b.org/x.html and https://a.b.org/y.html and https://a.b.org/z.html."),
        reply("如果天气好，就去公园散步；如果天气好，也可以骑车；如果天气好，还可以野餐。"
              "下雨的话，就在家里看书、听音乐，或者和朋友聊聊天，学做一道新菜也很有意思。"),
        reply("Day 1: rest well. Day 2: walk for an hour. Day 3: rest well. Day 4: swim for half "
              "an hour. Day 5: rest well. Day 6: ride your bike to work and back again."),
        reply(LONG), reply("Mix well. Bake. Mix well. Cool. Mix well."),
        reply("1 2 3 4 1 2 3 4 1 2 3 4 1 2 3 4 1 2 3 4 1 2 3 4 1 2 3 4"),
        reply("```\n" + "print('a b c d e')\n" * 9 + "```"), reply("It was very, very good."),
        reply("哈哈哈哈，这个问题很有意思。"),
    ],
    "question_repeated": [
        talk("What is the capital of France?", "Paris.", "What is the capital of Spain?", "Madrid"),
        talk("And?", "So.", "And then?", "More."),
    ],
    "reply_repeated": [talk("Is it?", "Yes.", "Sure?", "Yes."),
                       talk("Who wrote Emma?", "Jane Austen wrote Emma.")],
    "short_reply": [reply("It is Dodoma."), reply("多多马")],
    "asks_back": [
        reply("Why do we sleep? Nobody knows for sure."), reply("Ask them:\n- What is your goal?"),
        reply("People wonder: is there life on Mars?"), reply('The title is "Who are you?"'),
        reply("1. Where do you see yourself?"),
    ],
    "as_an_ai": [
        reply("As an expert in AI, she knows."), reply("As a leading AI company, they grew."),
        reply("As a user of AI, you decide."), reply("Such a model answers as an AI would."),
        reply("As an AI researcher, you train models."), reply("She works as an AI engineer."),
        reply("GPT-3 is known as a large language model."), reply("I'm an AI enthusiast's friend."),
        reply("I am an air traffic controller."), reply("作为人工智能领域的专家，他很有名。"),
        reply("我是一个AI工程师的朋友。"), reply("An AI language model predicts words."),
    ],
    "refusal": [
        reply("I can't stress this enough: grapes can kill a dog."),
        reply("I can't help but admire it."), reply("I cannot recommend this book enough."),
        reply("I'm sorry to hear that. Rest a lot."), reply("I can't wait to see it."),
        reply("You cannot help everyone."), reply("Sorry for the confusion: it is Dodoma."),
        reply("抱歉让您久等了，答案是多多马。"), reply("“对不起”在这里不能用。"),
        reply("I can't help laughing at this."),
    ],
    "other_language": [
        reply("The word 你好 is Chinese for hello."), reply("Beijing (北京) is the capital."),
        talk("How do you say cabbage salad with rice in Spanish?",
             "Ensalada de col con arroz y huevos, para dos personas."),
        reply("Le Petit Prince"), reply("Ludwig van Beethoven wrote nine symphonies."),
        reply(LONG), reply("import os\nfor path in os.listdir('.'): print(path, os.stat(path))"),
        reply("Hello in Chinese is 你好."), reply("C'est la vie."),
        reply("The French say «la vie est belle et les roses sont pour la fête de la mère»; it is "
              "what they say of the good days that they have, and it is not a thing to be sad of."),
        reply("résumé, naïve, café, déjà vu"),
    ],
    "personal_data": [
        reply("Use your_email@gmail.com or user@domain.com."), reply("git@github.com:me/it.git"),
        reply("Write to john.doe@company.com, name@yourcompany.com or you@mail.example.net."),
        reply("Write to you@example.com or a@b.example.org."), reply("Call 555-0123."),
        reply("On 2023-04-05 it cost 1234567890."), reply("Use 192.168.0.1 or 127.0.0.1."),
        reply("Version 1.2.3.4 and 10.11.12.13.14"), reply("Card 4539 1488 0343 6468."),
        reply("ISBN 978-3-16-148410-0"), reply("the task-force, sk-learn"), reply("@property"),
        reply("1680000000000 ms"), reply("0000 0000 0000 0000"), reply("(212) 555-0147"),
        reply("pi is 3.14159265358979"),
    ],
    "repaired": [talk("Hi", "Hello.")],
    "thoughts": [reply("I think it is Dodoma."), reply("The tag `<think>` opens a thought.")],
}  # fmt: skip


@pytest.mark.parametrize("name", DEFECTS)
def test_each_defect_is_found_in_its_examples(name):
    assert [d.by("assistant") for d in FOUND[name] if not DEFECTS[name](d)] == []


@pytest.mark.parametrize("name", DEFECTS)
def test_no_defect_is_seen_in_its_look_alikes(name):
    assert [d.by("assistant") for d in LET_PASS[name] if DEFECTS[name](d)] == []


def test_each_defect_says_what_it_is():
    assert all(row["meaning"] for row in count_defects([]))


@settings(deadline=None)
@given(st.lists(st.text(max_size=200), max_size=5))
def test_no_rule_fails_on_any_text(said):
    dialogue = talk(*said)
    for defect in DEFECTS.values():
        assert defect(dialogue) >= 0
    statistics([dialogue])


def test_a_chinese_corpus_is_checked_for_chinese():
    check = defects_for("zh")["other_language"]
    assert not check(talk("坦桑尼亚的首都是哪？", "多多马。用 Python 的 json.dump 可以保存数据。"))
    assert check(talk("坦桑尼亚的首都是哪？", "The capital of Tanzania is Dodoma, of course."))
    assert not check(talk("好", "```\nimport json\njson.dump(data, open('a.json', 'w'))\n```"))


@pytest.mark.parametrize("number", ["4539 1488 0343 6467", "378282246310005", "6011111111111117"])
def test_a_card_number_is_named_card_and_not_phone(number):
    assert [kind for kind, _ in personal_data(f"pay with {number} now")] == ["card"]


def test_statistics_count_by_role_in_one_pass():
    dialogues = iter(
        [talk("What is it?", "A red cat."), talk("What is a cat", "An animal", "你", "好")]
    )
    found = statistics(dialogues)
    assert found.num_dialogues == 2
    assert found.mean_turns == 1.5
    assert found.turns == {1: 1, 2: 1}
    user, assistant = found.rows()
    assert (user["messages"], user["words"], user["median"]) == (3, 8, 3)
    assert (assistant["role"], assistant["words"], assistant["p95"]) == ("assistant", 6, 3)
    assert found.vocabulary["cat"] == 2


def test_statistics_of_nothing_are_zeros():
    empty = statistics([])
    assert (empty.mean_turns, empty.mean_words("user"), empty.rows()) == (0, 0, [])


def test_counted_defects_name_an_example():
    rows = {
        row["defect"]: row
        for row in count_defects(
            [talk("a", "b c d", id="1"), talk("a", "Yes.", "b", "No.", id="2")]
        )
    }
    assert rows["short_reply"]["dialogues"] == 1
    assert rows["short_reply"]["times"] == 2
    assert rows["short_reply"]["share"] == 0.5
    assert rows["short_reply"]["example"] == "2"
    assert rows["loop"]["dialogues"] == 0
