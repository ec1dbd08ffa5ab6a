"""One notion each of word, sameness, language, refusal and near-duplicate."""

import json
import random
import string
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from baize_lib.config import BaizeError, data_dir
from baize_lib.text import (
    content_words,
    declines,
    jaccard,
    language_of,
    near_duplicates,
    runs,
    same_question,
    shares_a_word,
    words,
)


def test_a_chinese_character_is_a_word_and_a_contraction_is_one():
    assert words("Don’t say well-known: 你好2次_x") == (
        "don't", "say", "well-known", "你", "好", "2", "次", "x",
    )  # fmt: skip


# ---- Sameness ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("How do I sort a list?", "how do you sort the lists"),
        ("What are some ways to stay motivated?", "What are some other ways to stay motivated?"),
        ("Why is it so?", "why is it so"),
        ("And?", "and"),
        ("为什么猫喜欢纸箱？", "猫为何喜欢纸箱"),
        ("每天要喝多少水？", "一天喝多少水？"),
    ],
)
def test_the_same_question_in_other_words_is_recognised(one, other):
    assert same_question(one, other)
    assert same_question(other, one)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("What is the capital of France?", "What is the capital of Spain?"),
        ("Why do cats purr?", "When do cats purr?"),
        ("What is gout?", "What are the symptoms of gout?"),
        ("And?", "And then?"),
        ("How do I use it?", "How do you do it?"),
        ("How much water should I drink?", "How should I drink water?"),
        ("什么是质数？", "怎样判断一个数是不是质数？"),
        ("为什么要先排序？", "什么时候要先排序？"),
    ],
)
def test_another_question_about_the_same_thing_is_new(one, other):
    assert not same_question(one, other)
    assert not same_question(other, one)


@pytest.mark.parametrize(
    ("question", "said", "shared"),
    [
        ("How large should the pot be?", "Plant it in a pot with holes.", True),
        ("What should I do then?", "You could use a large pot.", False),
        ("花盆要多大？", "请选一个底部有孔的大花盆，每天浇水。", True),
        ("茶里有咖啡因吗？", "晚上最好不喝浓茶。", True),
        ("那应该怎么办呢？", "你可以用一个简单的方法来解决这个问题。", False),
    ],
)
def test_a_question_takes_up_a_word_or_not(question, said, shared):
    assert shares_a_word(question, said) == shared


@given(st.text(max_size=60), st.text(max_size=60))
def test_sameness_is_symmetric_and_holds_with_itself(a, b):
    assert same_question(a, a)
    assert same_question(a, b) == same_question(b, a)
    assert content_words(a) <= set(words(a)) | content_words(a)


# ---- Language ------------------------------------------------------------------------------------


def test_every_seed_of_the_course_is_in_its_language():
    wrong = []
    for path in sorted((data_dir() / "seeds").glob("*.jsonl")):
        expected = "zh" if path.stem == "chinese" else "en"
        for line in path.read_text(encoding="utf-8").splitlines():
            text = json.loads(line)["text"]
            wrong += [text] * (language_of(text) not in ("", expected))
    assert wrong == []


@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("fr", "La capitale de la France est Paris, une ville connue pour ses musées."),
        ("de", "Die Hauptstadt von Frankreich ist Paris, und der Fluss ist die Seine."),
        ("es", "La capital de España es Madrid, una ciudad en el centro del país."),
        ("pt", "A capital de Portugal é Lisboa, uma cidade que fica perto do mar."),
        ("it", "La capitale dell'Italia è Roma, una città molto antica e bella."),
        ("nl", "De hoofdstad van Nederland is Amsterdam, een stad met veel water."),
        ("sv", "Sveriges huvudstad är Stockholm, en stad som ligger på många öar."),
        ("pl", "Stolicą Polski jest Warszawa, miasto położone nad rzeką Wisłą."),
        ("tr", "Türkiye'nin başkenti Ankara'dır ve en büyük şehri İstanbul'dur."),
        ("vi", "Thủ đô của Việt Nam là Hà Nội, một thành phố bên sông Hồng."),
        ("id", "Ibu kota Indonesia adalah Jakarta, sebuah kota besar di pulau Jawa."),
        ("fi", "Suomen pääkaupunki on Helsinki, joka sijaitsee meren rannalla."),
        ("cs", "Hlavním městem České republiky je Praha, která leží na Vltavě."),
        ("ro", "Capitala României este București, un oraș mare din sudul țării."),
        ("hu", "Magyarország fővárosa Budapest, amely a Duna két partján fekszik."),
        ("sw", "Mji mkuu wa Tanzania ni Dodoma, lakini mji mkubwa ni Dar es Salaam."),
        ("ru", "Столица России — Москва, большой город на берегу реки."),
        ("ja", "日本の首都は東京で、とても大きな町です。"),
        ("ko", "대한민국의 수도는 서울이며 아주 큰 도시입니다."),
        ("ar", "عاصمة مصر هي القاهرة، وهي مدينة كبيرة على نهر النيل."),
        ("hi", "भारत की राजधानी नई दिल्ली है, जो एक बड़ा शहर है।"),
        ("th", "เมืองหลวงของประเทศไทยคือกรุงเทพมหานคร"),
        ("zh", "法国的首都是巴黎，它位于塞纳河畔。"),
        ("en", "The capital of France is Paris, a city on the river Seine."),
    ],
)
def test_a_sentence_is_told_by_its_language(language, text):
    assert language_of(text) == language


@pytest.mark.parametrize("text", ["", "123", "Dar es Salaam", "x = f(y)", "```\nla vie est\n```",
                                  "Kubernetes vs Docker", "\ud800", "👩‍💻"])  # fmt: skip
def test_what_is_in_no_language_for_sure_is_in_none(text):
    assert language_of(text) == ""


# ---- Refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [
    "I'm sorry, but I can't assist with that.", "I can’t help with hurting an animal.",
    "That would be theft, and I won't plan it with you.", "It is cruel, so I won't.",
    "I'd rather not write that.", "I am not able to provide this.", "I must decline.",
    "抱歉，我不能帮助您。", "这是犯罪，我不会告诉你怎么做。",
])  # fmt: skip
def test_a_refusal_is_told(text):
    assert declines(text)


@pytest.mark.parametrize("text", [
    "I can't stress this enough: chocolate can kill a dog.", "I can't recommend this book enough.",
    "I can't help but admire it.", "I can't wait.", "You cannot help everyone.",
    "I can't believe how good it is.", "I won't lie: it is hard.", "If it can't help, try again.",
    "I can't list everything, but grapes and xylitol are the worst.", "抱歉让您久等了。",
])  # fmt: skip
def test_what_only_sounds_like_a_refusal_is_none(text):
    assert not declines(text)


# ---- Likeness ------------------------------------------------------------------------------------


def compared_one_by_one(texts, threshold, width):
    """The same as `near_duplicates`, by comparing everything with everything."""
    sets = [runs(text, width) for text in texts]
    times = Counter(run for members in sets for run in members)

    def weight(members):
        full = np.log1p(len(texts) / 10)
        return sum(min(1, np.log1p(len(texts) / times[run]) / full) for run in members)

    groups = {}
    leaders = []
    for i, mine in enumerate(sets):
        for leader in leaders:
            shared, union = mine & sets[leader], mine | sets[leader]
            if (len(shared) / len(union) >= threshold
                    and weight(shared) / weight(union) >= threshold - 1e-9):  # fmt: skip
                groups.setdefault(leader, [leader]).append(i)
                break
        else:
            leaders.append(i)
    return [groups[leader] for leader in sorted(groups)]


@settings(deadline=None, max_examples=200)
@given(
    st.lists(st.lists(st.sampled_from(string.ascii_letters[:9]), max_size=9).map(" ".join),
             max_size=40),
    st.sampled_from([0.3, 0.5, 0.6, 0.7, 0.75, 0.8, 0.9, 1.0]), st.integers(1, 3),
)  # fmt: skip
def test_near_duplicates_are_exactly_those_that_comparing_all_of_them_finds(
    texts, threshold, width
):
    found = near_duplicates(texts, threshold, width=width)
    assert found == compared_one_by_one(texts, threshold, width)
    for first, *others in found:
        assert all(first < other for other in others)
        assert all(jaccard(texts[first], texts[o], width=width) >= threshold for o in others)


def test_copies_with_a_word_changed_are_found_however_many_there_are():
    rng = random.Random(0)
    rows = [[f"w{rng.randrange(3000)}" for _ in range(60)] for _ in range(200)]
    for i in range(100):
        copy = list(rows[i % 3])
        copy[rng.randrange(60)] = f"changed{i}"
        rows.append(copy)
    groups = near_duplicates(map(" ".join, rows))
    assert [group[0] for group in groups] == [0, 1, 2]
    assert sum(map(len, groups)) == 103


def test_texts_without_words_or_with_one_are_compared_too():
    assert near_duplicates(["", "?!", "hi", "Hi!", "", "?!", "a b"]) == [[0, 4], [1, 5], [2, 3]]
    assert near_duplicates([]) == near_duplicates(["one"]) == []


def test_chinese_is_compared_by_character():
    assert jaccard("如何学习游泳？", "如何学习跑步？", width=1) == 0.5


@given(st.text(max_size=50), st.text(max_size=50), st.integers(1, 4))
def test_likeness_is_symmetric_and_one_with_itself(a, b, width):
    assert jaccard(a, a, width=width) == 1
    assert 0 <= jaccard(a, b, width=width) == jaccard(b, a, width=width) <= 1


@pytest.mark.parametrize(("threshold", "width"), [(1.5, 3), (0, 3), (0.7, 0)])
def test_an_impossible_likeness_is_refused(threshold, width):
    with pytest.raises(BaizeError, match="likeness"):
        near_duplicates(["a"], threshold, width=width)
