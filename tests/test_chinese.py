"""The whole path in Chinese: what spaces, question marks and prompts did in English still holds."""

import asyncio
import json
import re
from itertools import combinations

import pytest
import torch
from stub_server import StubServer
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from baize_lib import corpus
from baize_lib.chat.model import ChatModel
from baize_lib.config import BaizeError, data_dir
from baize_lib.corpus.defects import DEFECTS, count_defects, defects_for, personal_data
from baize_lib.corpus.formats import Collected, read_dialogues
from baize_lib.corpus.split import prompt_matcher
from baize_lib.corpus.statistics import statistics
from baize_lib.dialogue import (
    HEADER,
    HUMAN_TAG,
    LANGUAGES,
    Message,
    check_language,
    parse_transcript,
    render,
)
from baize_lib.evaluation.attempts import ask
from baize_lib.evaluation.health import health
from baize_lib.evaluation.prompts import load_prompts
from baize_lib.evaluation.statistics import grade
from baize_lib.files import read_jsonl
from baize_lib.models.base import Base
from baize_lib.models.weights import student_dir
from baize_lib.seeds.clean import clean, load_seeds, mix
from baize_lib.seeds.seed import Seed
from baize_lib.selfchat import prompts
from baize_lib.selfchat.bill import forecast
from baize_lib.selfchat.collect import collect
from baize_lib.selfchat.prompts import SelfChatSettings
from baize_lib.selfchat.questions import clean_question
from baize_lib.teacher.batch import BatchTeacher
from baize_lib.teacher.client import Teacher
from baize_lib.teacher.local import local_teacher
from baize_lib.teacher.prices import Price
from baize_lib.text import (
    jaccard,
    language_of,
    near_duplicates,
    same_question,
    shares_a_word,
)
from baize_lib.training.fit import fit
from baize_lib.training.settings import TrainingSettings as TrainSettings
from baize_lib.training.tokens import prompt_ids

PRICE = Price("stub", 1.0, 2.0, batch_factor=0.5)
CHINESE = SelfChatSettings(language="zh", num_turns=2)


def talk(*said: str, **known) -> Collected:
    roles = ("user", "assistant")
    return Collected(tuple(Message(roles[i % 2], text) for i, text in enumerate(said)), **known)


def texts(seeds):
    return [seed.text for seed in seeds]


# ---- seeds ---------------------------------------------------------------------------------------


def test_the_chinese_set_passes_every_rule_and_covers_every_domain():
    seeds = load_seeds("chinese", language="zh")
    assert len(seeds) >= 120
    assert not seeds.dropped
    assert [seed.id for seed in seeds] == [f"chinese-{i + 1:03d}" for i in range(len(seeds))]
    assert {prompts.domain_of(seed, SelfChatSettings()) for seed in seeds} == set(prompts.DOMAINS)
    assert max(jaccard(a, b, width=1) for a, b in combinations(texts(seeds), 2)) < 0.7


def test_no_chinese_seed_comes_near_an_evaluation_prompt():
    match = prompt_matcher([t for p in load_prompts() for t in p.turns], threshold=0.5)
    assert [text for text in texts(load_seeds("chinese")) if match(text)] == []


def test_a_built_in_set_is_cleaned_in_its_own_language_and_another_one_on_request():
    assert len(load_seeds("chinese")) == len(load_seeds("chinese", language="zh"))
    english = load_seeds("chinese", language="en")
    assert set(english.dropped) == {"another language"}
    assert len(mix({"chinese": 1}, 12)) == 12


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("How do I sort a list in Python?", "another language"),
        ("日本の首都は東京ですか、それとも京都ですか？", "another language"),
        ("파이썬에서 리스트를 어떻게 정렬하나요?", "another language"),
        ("What does the character 道 mean in this poem?", "another language"),
        ("你好吗", "too short (under 3 words)"),
        ("吗 ？ ！ 。", "too short (under 3 words)"),
        ("答：先把数据排序，再用二分查找。", "reads like an answer"),
        ("谢谢老师，我明白了这个道理。", "reads like an answer"),
        ("看这个网页 https://example.com 说得对不对？", "a link"),
        ("这本书" * 60 + "好看吗？", "too long (over 60 words)"),
    ],
)
def test_a_bad_chinese_question_is_dropped_under_its_reason(text, reason):
    assert list(clean([Seed("1", text, "me")], language="zh").dropped) == [reason]


@pytest.mark.parametrize(
    "text",
    [
        "HTTP和HTTPS有什么区别？", "如何用pandas读取CSV？", "什么是LoRA？", "怎么减肥？",
        "A: 这句话对吗？", "“の”在日语里是什么意思？", "考研还是工作，我拿不定主意。",
    ],
)  # fmt: skip
def test_a_good_chinese_question_of_any_shape_is_kept(text):
    assert texts(clean([Seed("1", text, "me")], language="zh")) == [text]


def test_the_wide_question_mark_makes_no_new_question():
    seeds = clean([Seed("1", "什么是质数？", "me"), Seed("2", "什么是质数", "me")], language="zh")
    assert seeds.dropped == {"exact duplicate": 1}


# ---- one place for the language ------------------------------------------------------------------


@pytest.mark.parametrize(
    "use",
    [
        check_language,
        lambda language: SelfChatSettings(language=language),
        lambda language: clean([], language=language),
        lambda language: corpus.default_filters(language),
        lambda language: prompt_ids([Message("user", "Salut ?")], TOKENIZER, language),
    ],
)
def test_a_language_the_course_does_not_speak_is_refused_the_same_everywhere(use):
    with pytest.raises(BaizeError, match=r"language='fr' is not known: use one of en, zh"):
        use("fr")


def test_every_prompt_and_grammar_exists_in_every_language():
    for language in LANGUAGES:
        assert "root ::=" in prompts.grammar("question", language)
        for domain in prompts.DOMAINS:
            settings = SelfChatSettings(language=language, domain=domain, guardrail=True)
            said = prompts.system_prompt(Seed("1", "?", "tests"), settings)
            assert language_of(said) == language
            assert "root ::=" in prompts.grammar(domain, language)


# ---- reading what the human asks -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("番茄怎么种？", "如何种番茄？"),
        ("为什么猫喜欢纸箱？", "猫为何喜欢纸箱"),
        ("Python里怎样给列表排序？", "怎么给Python的列表排序呢？"),
        ("什么是质数？", "质数是什么？"),
        ("每天要喝多少水？", "一天喝多少水？"),
    ],
)
def test_the_same_question_in_other_words_is_recognised(one, other):
    assert same_question(one, other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("什么是质数？", "怎样判断一个数是不是质数？"),
        ("种一株番茄需要多大的花盆？", "怎样在阳台上种番茄？"),
        ("感冒和流感怎么区分？", "流感要隔离几天？"),
        ("为什么要先排序？", "什么时候要先排序？"),
    ],
)
def test_another_question_about_the_same_thing_is_new(one, other):
    assert not same_question(one, other)


@pytest.mark.parametrize(
    ("question", "said", "shared"),
    [
        ("花盆要多大？", "请选一个底部有孔的大花盆，每天浇水。", True),
        ("茶里有咖啡因吗？", "晚上最好不喝浓茶。", True),
        ("json模块怎么用？", "可以用 JSON 格式保存。", True),
        ("那应该怎么办呢？", "你可以用一个简单的方法来解决这个问题。", False),
        ("这样做有什么重要的作用？", "猫喜欢钻进纸箱里睡觉。", False),
        ("为什么月亮会发光？", "番茄每天需要六小时日照。", False),
    ],
)
def test_a_chinese_question_takes_up_a_word_or_not(question, said, shared):
    assert shares_a_word(question, said) == shared


# ---- transcripts ---------------------------------------------------------------------------------

TRANSCRIPT = (
    "[Human]：蜜蜂怎样酿蜜？\n[AI]：它们采集花蜜，在蜂巢里让水分蒸发。\n"
    "【人类】蜂蜜为什么不会坏？\n【助手】因为糖分高、水分少，细菌活不了。"
)


def test_tags_in_chinese_and_wide_colons_are_read():
    found = parse_transcript(TRANSCRIPT)
    assert [m.role for m in found.messages] == ["user", "assistant"] * 2
    assert found.messages[0].content == "蜜蜂怎样酿蜜？"
    assert found.messages[3].content == "因为糖分高、水分少，细菌活不了。"
    assert found.defects == ()


def test_a_chinese_word_in_brackets_inside_a_sentence_stays_text():
    found = parse_transcript("[Human] 标记怎么写？\n[AI] 写成 [人类] 和【助手】就行。")
    assert found.messages[1].content == "写成 [人类] 和【助手】就行。"


# ---- self-chat, both strategies and the batch ----------------------------------------------------


@pytest.fixture
def stub():
    with StubServer(reply=chinese_reply) as server:
        server.batch_polls = 1
        yield server


def chinese_reply(body: dict) -> str:
    """What a strong teacher might say: a transcript, a question or an answer, by what is asked."""
    first = body["messages"][0]["content"]
    if "完整对话" in first:
        return TRANSCRIPT
    if body["max_tokens"] == CHINESE.question_tokens:
        said = body["messages"][-2]["content"]
        return f"人类：{said[3:7]}还有哪些要注意的细节？"
    return f"关于“{body['messages'][-1]['content'][:6]}”，先看大小，再看材料，最后比较价格。"


def collected(stub, path, settings):
    async def main():
        options = {"base_url": stub.url, "api_key": "sk-test", "price": PRICE}
        batched = path.name == "batch.jsonl"
        kind = BatchTeacher if batched else Teacher
        options |= {"poll_seconds": 0.005} if batched else {}
        async with kind("stub", **options) as teacher:
            return await collect(load_seeds("chinese", 6), teacher, settings, path)

    return asyncio.run(main())


@pytest.mark.parametrize("name", ["turns", "transcript", "batch"])
def test_chinese_dialogues_are_collected_and_kept(stub, tmp_path, name):
    strategy = "turns" if name == "turns" else "transcript"
    settings = SelfChatSettings(strategy=strategy, language="zh", num_turns=2)
    receipt = collected(stub, tmp_path / f"{name}.jsonl", settings)
    assert (receipt.ok, receipt.left) == (6, 0)
    dialogues = list(read_dialogues(tmp_path / f"{name}.jsonl"))
    assert {d.num_turns for d in dialogues} == {2}
    assert {language_of(m.content) for d in dialogues for m in d.messages} == {"zh"}
    filters = corpus.default_filters("zh")
    kept = corpus.apply_filters(dialogues, filters, near_duplicate=None)
    assert len(kept.kept) == 6
    if name != "batch":
        asked = " ".join(str(body["messages"]) for body, _ in stub.log)
        assert "You " not in asked
        assert "Write " not in asked


def test_a_ledger_begun_in_one_language_is_not_continued_in_another(stub, tmp_path):
    collected(stub, tmp_path / "turns.jsonl", CHINESE)
    with pytest.raises(BaizeError, match="language"):
        collected(stub, tmp_path / "turns.jsonl", SelfChatSettings(num_turns=2))


def test_a_forecast_counts_a_chinese_character_as_a_token():
    chinese = [Seed("1", "蜜" * 400, "me")]
    latin = [Seed("1", "a" * 400, "me")]
    more = (
        forecast(chinese, PRICE, CHINESE).usage.input - forecast(latin, PRICE, CHINESE).usage.input
    )
    assert more > 2 * 250


def test_the_embedded_teacher_is_held_to_chinese_questions_and_to_replies_that_end():
    conversation = [Message("user", "怎样在阳台上种番茄？"), Message("assistant", "多晒太阳。")]
    seed = Seed("z", conversation[0].content, "programming")
    shown = prompts.question_messages(
        seed, [{"role": m.role, "content": m.content} for m in conversation], CHINESE, weak=True
    )
    answer = [
        {"role": "system", "content": prompts.system_prompt(seed, CHINESE)},
        {"role": "user", "content": "怎么让Linux脚本每天凌晨自动运行？"},
    ]

    async def main():
        async with local_teacher() as teacher:
            asked = [(shown, prompts.grammar("question", "zh"), 80)] * 6
            asked += [(answer, prompts.grammar("programming", "zh"), 90)] * 2
            return await asyncio.gather(*(
                teacher.chat(messages, max_tokens=cap, temperature=1.2, seed=i,
                             extra={"grammar": grammar})
                for i, (messages, grammar, cap) in enumerate(asked)
            ))  # fmt: skip

    replies = asyncio.run(main())
    for reply in replies[:6]:
        assert reply.finish_reason == "stop"
        question = clean_question(reply.text)
        assert re.fullmatch(r"[一-鿿A-Za-z0-9.+#_-]{3,}？", question), reply.text
    for reply in replies[6:]:
        if reply.finish_reason == "stop":
            assert reply.text.rstrip()[-1] in "。！.!`", reply.text


# ---- inspection ----------------------------------------------------------------------------------

LONG = "面包会膨胀是因为酵母吃掉面团里的糖分并放出气体而面筋把这些气体包在小气泡里直到烤箱使它定形"


def defects_of(*said: str, **known) -> list[str]:
    return [row["defect"] for row in count_defects([talk(*said, **known)], "zh")
            if row["dialogues"]]  # fmt: skip


@pytest.mark.parametrize(
    ("reply", "defect"),
    [
        ("你可以看到，" * 4 + "就是这样。", "loop"),
        ("我觉得这个问题很重要。" * 3, "loop"),
        ("没有任何任何任何任何任何任何任何事。", "loop"),
        ("说明你是助手；；；；；；；；", "loop"),
        ("普通人的" * 12, "loop"),
        (LONG, "unfinished"),
        (LONG + "，", "unfinished"),
        ("怎样种番茄？", "reply_repeated"),
        ("这要看地方。您住在哪个城市？", "asks_back"),
        ("作为一个人工智能助手，我没有味觉。", "as_an_ai"),
        ("很抱歉，我无法提供这方面的帮助。", "refusal"),
        ("好的。\n【人类】然后呢？\n【助手】再浇水。", "both_voices"),
        ("好的。\n问：然后呢？\n答：再浇水。", "both_voices"),
        ("好的。\n[人类]：", "dangling_tag"),
        ("好的。\n【人类】", "dangling_tag"),
        ("The best way is to put the plant in the sun and water it.", "other_language"),
        ("トマトは日当たりの良い場所に植えて、毎日水をやってください。", "other_language"),
        ("番茄\ufffd要晒太阳。", "broken_characters"),
        ("请写信给张三zhang@163.com联系他。", "personal_data"),
    ],
)
def test_a_defect_is_seen_in_chinese_without_spaces(reply, defect):
    assert defect in defects_of("怎样种番茄？", reply)


@pytest.mark.parametrize(
    "reply",
    [
        "番茄喜欢阳光，每天至少要晒六个小时；花盆要大，底部要有孔，土干了就浇水。",
        "北京是中国的首都，上海是中国最大的城市，广州在南方，成都在西部，各有各的好处。",
        "人工智能的历史不长。人工智能研究从五十年代开始，人工智能的应用到今天才普及，"
        "而人工智能的风险也一直有人讨论。",
        "哈哈哈哈，这个笑话很好笑。",
        "可以用json.dump把数据写进文件：\n```python\njson.dump(data, open('a.json', 'w'))\n```",
        "用 Python 的 json 模块。", "Dodoma。", "多多马。",
        "他说：“你喜欢吃番茄吗？”",
        "把标记 [人类] 写在行首。",
        "版本1.2.3.4修正了这个错误。",
        "价格是1999元，2024年3月15日上市。",
    ],
)  # fmt: skip
def test_sound_chinese_is_let_pass(reply):
    assert defects_of("怎样种番茄？", reply) in ([], ["short_reply"])


def test_a_repeated_chinese_question_is_seen_and_a_new_one_is_not():
    again = ("怎样在阳台上种番茄呢？", "多晒太阳。", "怎样在阳台上种番茄？！", "每天浇水。")
    assert "question_repeated" in defects_of(again[0], again[1], again[0] + "！", again[3])
    assert "question_repeated" not in defects_of(
        "怎样在阳台上种好一盆番茄？",
        "多晒太阳。",
        "种一株番茄需要多大的花盆才够？",
        "直径三十厘米。",
    )


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("请写信给anna@163.com联系我", "e-mail"), ("卡号4539148803436467请保密", "card"),
        ("连接8.8.8.8就行", "ip"), ("打电话13912345678找我", "phone"),
        ("密钥是sk-abcdefghijklmnopqrstuvwx0123456789请保密", "key"),
    ],
)  # fmt: skip
def test_personal_data_is_seen_where_chinese_runs_into_it(text, kind):
    assert [found for found, _ in personal_data(text)] == [kind]


def test_words_of_a_chinese_reply_are_its_characters():
    found = statistics([talk("什么是LoRA？", "一种微调方法。"), talk("什么是质数？", "一个数。")])
    assert found.mean_words("assistant") == 4.5
    assert found.mean_words("user") == 4.5


@pytest.mark.parametrize(
    ("text", "language"),
    [("", ""), ("123！", ""), ("你好", "zh"), ("用Python写一个排序函数", "zh"),
     ("カタカナです", "ja"),
     ("Dar es Salaam", ""), ("수도는 도도마입니다.", "ko"), ("繁體中文怎麼寫？", "zh")],
)  # fmt: skip
def test_the_language_of_a_short_text_is_told_or_left_open(text, language):
    assert language_of(text) == language


def test_a_short_latin_answer_is_given_the_benefit_of_the_doubt_and_a_short_korean_one_not():
    differs = defects_for("zh")["other_language"]
    assert not differs(talk("首都在哪？", "Dar es Salaam"))
    assert differs(talk("首都在哪？", "수도는 도도마입니다."))


# ---- corpus --------------------------------------------------------------------------------------

TOPICS = ("番茄", "自行车", "红烧肉", "围棋", "长城", "普洱茶", "雨伞", "台风", "毛笔", "邮票")


def chinese_corpus():
    return [
        talk(f"关于{topic}，初学的人先要知道什么？",
             f"{topic}的学问不少：除了{TOPICS[i - 3]}，第{i}条最要紧，讲的是{topic}本身。",
             id=f"d{i}", seed=topic)
        for i, topic in enumerate(TOPICS)
    ]  # fmt: skip


def test_chinese_near_duplicates_are_found_without_spaces_and_others_are_not():
    reply = "选一个阳光充足的位置，用底部有孔的大花盆，每天早上浇水，每天至少要六小时日照。"
    first = talk("怎样在阳台上种番茄？", reply, id="1")
    double = talk("怎样在阳台上种番茄呢？", reply.replace("早上", "傍晚"), id="2")
    other = talk("怎样在阳台上养一只猫？", "给它一个箱子、一盆水和一个晒得到太阳的窗台。", id="3")
    kept = corpus.apply_filters([first, double, other], corpus.default_filters("zh")).kept
    assert [d.id for d in kept] == ["1", "3"]


def test_a_chinese_corpus_is_split_and_exported_and_leaks_nothing(tmp_path):
    filtered = corpus.apply_filters(chinese_corpus(), corpus.default_filters("zh"))
    assert len(filtered.kept) == len(TOPICS)
    card = corpus.export(tmp_path, filtered, validation=0.2)
    train, held_out = (
        list(read_dialogues(tmp_path / "corpus" / f"{name}.jsonl"))
        for name in ("train", "validation")
    )
    assert (len(train), len(held_out), card["kept"]) == (8, 2, 10)
    asked = [turn for prompt in load_prompts(language="zh") for turn in prompt.turns]
    assert corpus.leakage(train, held_out, asked) == []
    double = talk(*(m.content for m in train[3].messages))
    assert [row["where"] for row in corpus.leakage(train, [double])] == ["validation"]


@pytest.mark.parametrize("prompt", [p.turns[0] for p in load_prompts(language="zh")])
def test_every_chinese_prompt_asked_again_with_a_courtesy_is_leakage(prompt):
    asked = talk(f"请问，{prompt}", "好。")
    assert corpus.leakage([asked], prompts=[prompt]) != []


def test_a_chinese_reply_that_was_cut_costs_its_turn():
    cut = talk("怎样种番茄？", "多晒太阳。", "花盆要多大？", "直径三", cut_turns=(1,))
    assert corpus.whole_turns(cut).messages == talk("怎样种番茄？", "多晒太阳。").messages


def test_released_records_with_the_chinese_header_are_read():
    for dialogue in chinese_corpus():
        text = render(dialogue.messages, language="zh")
        assert text.startswith(HEADER["zh"])
        row = {"topic": dialogue.seed, "input": f"{text}\n{HUMAN_TAG} "}
        [read] = read_dialogues([row])
        assert read.messages == dialogue.messages


def test_no_two_filters_of_a_language_differ_but_for_the_language():
    english, chinese = corpus.default_filters("en"), corpus.default_filters("zh")
    assert list(english) == list(chinese)
    assert {n for n in english if english[n] is not chinese[n]} == {"other_language"}
    assert set(defects_for("zh")) == set(DEFECTS)


def test_near_duplicate_seeds_are_compared_by_character():
    assert near_duplicates(["怎样种番茄？", "怎么样种番茄", "猫吃什么？"], 0.7, width=1) == [[0, 1]]


# ---- training, chat, evaluation ------------------------------------------------------------------

TOKENIZER = AutoTokenizer.from_pretrained(student_dir("smollm2-135m"))


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """A tiny base, and an adapter trained on a Chinese corpus."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(TOKENIZER), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=True,
    )  # fmt: skip
    base = Base(LlamaForCausalLM(config).eval(), TOKENIZER, "tiny", "float32", "as made")
    folder = tmp_path_factory.mktemp("zh") / "adapter"
    settings = TrainSettings(lr=5e-3, num_epochs=1, batch_size=4, checkpoint_every=0, language="zh")
    talks = chinese_corpus()
    fit(base, talks[:8], talks[8:], folder, settings)
    return base, folder


def test_the_adapter_remembers_its_language_and_is_asked_with_its_header(tuned):
    base, folder = tuned
    card = json.loads((folder / "baize_run.json").read_text(encoding="utf-8"))
    assert card["language"] == card["settings"]["language"] == "zh"
    chat = ChatModel(base, {"tuned": folder})
    question = [Message("user", "坦桑尼亚的首都是哪？")]
    told = {"temperature": 0, "max_tokens": 4}
    as_trained = chat.reply(question, "tuned", **told)
    assert as_trained.text == chat.reply(question, "tuned", language="zh", **told).text
    asked = TOKENIZER.decode(prompt_ids(question, TOKENIZER, "zh"))
    assert asked == f"{HEADER['zh']}\n[|Human|] 坦桑尼亚的首都是哪？\n[|AI|]"


def test_the_chinese_prompts_are_asked_graded_and_checked_for_health(tuned, tmp_path):
    base, folder = tuned
    chinese, log = load_prompts(language="zh", origin="article"), tmp_path / "answers.jsonl"
    attempts = ask(
        ChatModel(base, {"tuned": folder}), chinese, log=log, language="zh", max_tokens=6
    )
    models = {"base", "own layout", "tuned"}
    assert len(attempts) == len(models) * len(chinese)
    assert {row["sampling"]["language"] for row in read_jsonl(log)} == {"zh"}
    assert set(grade(chinese, attempts)) == {(p.id, m) for p in chinese for m in models}
    assert set(health(attempts)["model"]) == models


def test_the_seed_file_is_described_beside_it():
    readme = (data_dir() / "seeds" / "README.md").read_text(encoding="utf-8")
    assert f"| `chinese.jsonl` | {len(load_seeds('chinese'))} |" in readme
