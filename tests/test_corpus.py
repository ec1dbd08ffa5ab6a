"""Reading, filtering, splitting and exporting a corpus: nothing lost, nothing leaked."""

import gzip
import json
import warnings

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from baize_lib import corpus
from baize_lib.config import BaizeError
from baize_lib.corpus.filters import opening
from baize_lib.corpus.formats import Collected, read_dialogues, write_dialogues
from baize_lib.corpus.split import prompt_matcher
from baize_lib.dialogue import HUMAN_TAG, Message, render
from baize_lib.files import write_jsonl
from baize_lib.teacher.prices import Price, Usage
from baize_lib.text import near_duplicates


def talk(*said: str, **known) -> Collected:
    roles = ("user", "assistant")
    return Collected(tuple(Message(roles[i % 2], text) for i, text in enumerate(said)), **known)


TOPICS = "bread rust chess tides honey glass moss drums paper comets wool salt maps ink kites tea"


def corpus_of(count: int) -> list[Collected]:
    """`count` (up to 240) different, faultless dialogues."""
    topics = TOPICS.split()
    pairs = [(a, b) for a in topics for b in topics if a != b][:count]
    return [
        talk(f"Tell me about {a}, and what does {b} do?", f"{b.title()} changes the {a} of {i}.",
             id=f"d{i}", seed=f"{a} {b}", usage=Usage(100, 0, 20), cost_usd=0.001)
        for i, (a, b) in enumerate(pairs)
    ]  # fmt: skip


def ledger_row(**changes) -> dict:
    row = {
        "id": "a-1", "seed": {"id": "s1", "text": "tea", "source": "general"}, "strategy": "turns",
        "messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."},
                     {"role": "user", "content": "Tea?"}, {"role": "assistant", "content": "Yes,"}],
        "teacher": {"model": "m", "params": {}}, "cost_usd": 0.25, "finish_reason": "length",
        "finish_reasons": ["stop", "length"], "status": "ok", "reason": "",
        "usage": {"input": 70, "cached_input": 3, "output": 9},
        "attempt": 1, "created": "2026-01-01T00:00:00Z",
        "calls": [
            {"role": "user", "turn": 1, "usage": {"output": 2}, "finish_reason": "stop"},
            {"role": "assistant", "turn": 0, "usage": {"output": 3}, "finish_reason": "stop"},
            {"role": "assistant", "turn": 1, "usage": {"output": 4}, "finish_reason": "length"},
        ],
    }  # fmt: skip
    return row | changes


def write(path, *lines):
    text = [
        line if isinstance(line, str) else json.dumps(line, ensure_ascii=False) for line in lines
    ]
    path.write_text("\n".join(text) + "\n", encoding="utf-8")
    return path


def read(path, **options):
    """(its dialogues, what could not be read) of a file."""
    dialogues = []
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            dialogues.extend(read_dialogues(path, **options))
        except BaizeError as error:
            told = [error]
    texts = [str(getattr(each, "message", each)) for each in told]
    return dialogues, [fault for text in texts for fault in text.split("\n")[1:]]


# ---- reading -------------------------------------------------------------------------------------


def test_a_ledger_line_brings_its_tokens_cost_and_cut_replies(tmp_path):
    (dialogue,) = read_dialogues(write(tmp_path / "l.jsonl", ledger_row()))
    assert dialogue.by("assistant") == ["Hello.", "Yes,"]
    assert (dialogue.id, dialogue.seed, dialogue.source) == ("a-1", "tea", "general")
    assert dialogue.usage == Usage(70, 3, 9)
    assert dialogue.cut_turns == (1,)
    assert corpus.whole_turns(dialogue).by("assistant") == ["Hello."]


def test_one_call_cut_short_cuts_the_last_reply(tmp_path):
    row = ledger_row(strategy="transcript", calls=[])
    del row["finish_reasons"]
    (dialogue,) = read_dialogues(write(tmp_path / "l.jsonl", row))
    assert dialogue.cut_turns == (1,)


def test_only_finished_dialogues_are_read_unless_asked(tmp_path):
    failed = {"id": "x", "status": "failed", "reason": "timeout", "cost_usd": 0.5, "messages": []}
    path = write(tmp_path / "l.jsonl", failed, ledger_row(), {**failed, "messages": None})
    assert [d.id for d in read_dialogues(path)] == ["a-1"]
    assert [d.status for d in read_dialogues(path, statuses=None)] == ["failed", "ok", "failed"]


def test_unreadable_lines_are_named_and_the_rest_is_kept(tmp_path):
    chat = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}]}
    path = write(
        tmp_path / "c.jsonl", chat, '{"messages": [', '"text"', {"text": "no messages"}, "",
        {"messages": [{"role": "user", "content": None}]}, {"messages": "Hi"}, "[" * 100_000,
        {"conversations": [{"from": "martian", "value": "Hi"}]}, chat, '{"messages": [{"ro',
    )  # fmt: skip
    dialogues, faults = read(path)
    assert len(dialogues) == 2
    places = [int(fault.removeprefix(f"{path}:").split(":")[0]) for fault in faults]
    assert places == [2, 3, 4, 6, 7, 8, 9, 11]


def test_unreadable_lines_are_a_warning_that_names_the_first_of_many(tmp_path):
    path = write(tmp_path / "c.jsonl", *["{"] * 30, ledger_row())
    with pytest.warns(UserWarning, match="30 of 31 rows cannot be read:\n.*c.jsonl:1: ") as told:
        assert len(list(read_dialogues(path))) == 1
    [warning] = [row.message for row in told if row.category is UserWarning]
    assert str(warning).count("\n") == 20


def test_bytes_that_are_not_utf8_are_named(tmp_path):
    path = tmp_path / "c.jsonl"
    path.write_bytes(b'{"messages": "\xff"}\n' + json.dumps(ledger_row()).encode() + b"\n")
    dialogues, faults = read(path)
    assert len(dialogues) == 1
    assert faults[0].startswith(f"{path}:1: ")


def test_a_missing_file_says_what_to_do(tmp_path):
    with pytest.raises(BaizeError, match="does not exist"):
        list(read_dialogues(tmp_path / "none.jsonl"))


def test_a_lone_surrogate_is_marked_broken_and_can_be_written(tmp_path):
    row = '{"messages": [{"role": "user", "content": "\\ud800 hi"}]}'
    (dialogue,) = read_dialogues(write(tmp_path / "c.jsonl", row))
    assert dialogue.by("user") == ["\ufffd hi"]
    assert write_dialogues(tmp_path / "d.jsonl", [dialogue]) == 1


def test_released_records_are_read_with_their_oddities(tmp_path):
    code = "import json\nwith open('a.json', 'w') as f:\n    json.dump([1], f)"
    rows = [
        {"topic": "json", "input": "The conversation between human and AI assistant.\n"
         f"[|Human|] How do I save JSON?\n[|AI|] Like this:\n{code}\n[|Human|] "},
        {"topic": "法", "input": "人类与人工智能助手之间的对话。\n[|Human|] 你好\n"
         "[|AI|] 你好！\n[|Human|] "},
        {"topic": "cut", "input": "La conversation entre un humain et une IA.\n[|Human|] Salut\n"
         "[|AI|] Bonjour\n[|Human|] Encore"},
    ]  # fmt: skip
    listed = tmp_path / "quora_chat_data.json"
    listed.write_text(json.dumps(rows, ensure_ascii=False, indent=2), encoding="utf-8")
    lines = write(tmp_path / "quora.jsonl", *rows)
    for path in (listed, lines):
        first, chinese, cut = read_dialogues(path)
        assert first.by("assistant") == [f"Like this:\n{code}"]
        assert first.seed == "json"
        assert first.repairs == chinese.repairs == ()
        assert chinese.by("user") == ["你好"]
        assert cut.by("user") == ["Salut"]
        assert cut.repairs == ("unanswered question",)


@pytest.mark.parametrize(
    ("end", "fault"), [(',\n{"messages": oops}]', "what follows"), ("\n", "cut short")]
)
def test_a_broken_item_or_end_of_a_json_list_is_named(tmp_path, end, fault):
    path = tmp_path / "list.json"
    chat = json.dumps({"messages": [{"role": "user", "content": "Hi"}]})
    path.write_text(f"\ufeff[\n{chat},\n{chat}{end}", encoding="utf-8")
    dialogues, faults = read(path)
    assert len(dialogues) == 2
    assert faults[0].startswith(f"{path}:4: ") and fault in faults[0]


PLAIN = st.text(
    st.characters(codec="utf-8", exclude_characters="[]`~\r\x85\x0b\x0c\x1c\x1d\x1e\u2028\u2029",
                  exclude_categories=("Cc", "Cs")) | st.just("\n"),
    min_size=1, max_size=60,
).map(str.strip).filter(bool)  # fmt: skip
TALKS = st.lists(PLAIN, min_size=2, max_size=6).map(lambda said: talk(*said[: len(said) // 2 * 2]))


@settings(max_examples=60, deadline=None)
@given(st.lists(TALKS, max_size=4))
def test_neither_chat_messages_nor_released_records_change_what_was_said(
    tmp_path_factory, dialogues
):
    path = tmp_path_factory.mktemp("formats") / "d.jsonl"
    said = [dialogue.messages for dialogue in dialogues]
    assert write_dialogues(path, dialogues) == len(said)
    assert [dialogue.messages for dialogue in read_dialogues(path)] == said
    write_jsonl(path, ({"topic": "", "input": f"{render(one)}\n{HUMAN_TAG} "} for one in said))
    assert [dialogue.messages for dialogue in read_dialogues(path)] == said


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(["messages", "conversations", "input", "role", "content", "from", "value",
                         "calls", "usage", "status", "cost_usd", "seed", "finish_reasons"]),
        inner, max_size=4,
    ),
    max_leaves=12,
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(st.lists(JSON.map(json.dumps) | st.text(max_size=20), max_size=6), st.booleans())
def test_any_file_is_read_without_an_error_and_no_line_vanishes(tmp_path_factory, lines, as_list):
    path = tmp_path_factory.mktemp("any") / "any.jsonl"
    lines = [" ".join(line.split()) for line in lines]
    text = "[" + ",".join(lines) + "]" if as_list else "\n".join(lines)
    path.write_text(text, encoding="utf-8", errors="replace")
    dialogues, faults = read(path, statuses=None)
    if not as_list and not text.lstrip("\ufeff").lstrip().startswith("["):
        assert len(dialogues) + len(faults) == sum(
            bool(line.strip("\ufeff \t\r\n\x0b\x0c")) for line in lines
        )


# What rows look like in the data sets people have; all hold the same one or two turns.
TWO = ["What is tea?", "A drink.", "Is it hot?", "Mostly."]
CHAT = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(TWO)]
SHAREGPT = [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(TWO)]
LAYOUTS = {
    "chat": {"messages": CHAT},
    "OpenAI fine-tuning": {"messages": [*CHAT[:3], CHAT[3] | {"weight": 1}]},
    "content as parts": {"messages": [
        m | {"content": [{"type": "text", "text": m["content"]}]} for m in CHAT]},
    "ShareGPT": {"id": "x", "conversations": SHAREGPT},
    "ShareGPT, other names": {"conversations": [
        turn | {"from": {"human": "User", "gpt": "chatgpt"}[turn["from"]]} for turn in SHAREGPT]},
    "role and content under conversations": {"conversations": CHAT},
    "Firefly, several turns": {"conversation": [
        {"human": TWO[0], "assistant": TWO[1]}, {"human": TWO[2], "assistant": TWO[3]}]},
    "XTuner": {"conversation": [
        {"input": TWO[0], "output": TWO[1]}, {"input": TWO[2], "output": TWO[3]}]},
    "UltraChat": {"id": "0", "data": TWO},
    "ChatGLM": {"prompt": TWO[2], "response": TWO[3], "history": [TWO[:2]]},
    "LLaMA-Factory": {"instruction": TWO[2], "input": "", "output": TWO[3], "history": [TWO[:2]]},
    "BELLE, several turns": {
        "instruction": f"Human:{TWO[0]}\nAssistant:{TWO[1]}\nHuman:{TWO[2]}\nAssistant:",
        "input": "", "output": TWO[3]},
    "Baize": {"topic": "tea", "input": "The conversation between human and AI assistant.\n"
              f"[|Human|] {TWO[0]}\n[|AI|] {TWO[1]}\n[|Human|] {TWO[2]}\n[|AI|] {TWO[3]}"
              "\n[|Human|] "},
    "Alpaca": {"instruction": TWO[0], "input": "", "output": TWO[1]},
    "BELLE": {"instruction": TWO[0], "input": "", "output": TWO[1]},
    "Dolly": {"instruction": TWO[0], "context": "", "response": TWO[1], "category": "qa"},
    "Firefly": {"kind": "QA", "input": TWO[0], "target": TWO[1]},
    "OpenAI, prompts": {"prompt": TWO[0], "completion": TWO[1]},
    "question and answer": {"question": TWO[0], "answer": TWO[1]},
}  # fmt: skip


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("as_file", ["lines", "list", "printed", "packed"])
def test_the_layouts_people_have_are_read(tmp_path, name, as_file):
    rows = [LAYOUTS[name], LAYOUTS[name]]
    lines = "\n".join(map(json.dumps, rows))
    printed = "\n".join(json.dumps(row, indent=2) for row in rows)
    text = {"list": json.dumps(rows, indent=2), "printed": printed}.get(as_file, lines)
    path = tmp_path / ("d.jsonl.gz" if as_file == "packed" else "d.json")
    path.write_bytes(gzip.compress(text.encode()) if as_file == "packed" else text.encode())
    one, other = read_dialogues(path)
    num_messages = 4 if list(LAYOUTS).index(name) < 13 else 2
    assert [message.content for message in one.messages] == TWO[:num_messages]
    assert [message.role for message in one.messages] == ["user", "assistant"] * (num_messages // 2)
    assert one.messages == other.messages


def test_fields_that_only_share_a_name_with_the_collectors_do_no_harm():
    rows = [LAYOUTS["chat"] | {"status": "approved", "seed": 42, "id": 0}] * 2
    assert [(d.status, d.seed, d.id) for d in read_dialogues(rows)] == [("ok", "42", "0")] * 2


def test_a_row_that_begins_with_its_list_is_a_row(tmp_path):
    rows = [{"data": TWO}, {"data": TWO[:2], "id": "1"}]
    first, second = read_dialogues(write(tmp_path / "d.jsonl", *rows))
    assert (first.num_turns, second.num_turns) == (2, 1)


@pytest.mark.parametrize("text", ["[{}]\n[{}]", '{{"rows": [{}]}}\n{{"rows": [{}]}}'])
def test_what_follows_a_list_is_named(tmp_path, text):
    path = tmp_path / "d.json"
    path.write_text(text.format(*[json.dumps(LAYOUTS["chat"])] * 2), encoding="utf-8")
    dialogues, faults = read(path)
    assert len(dialogues) == len(faults) == 1 and "the list ends here" in faults[0]


@pytest.mark.parametrize("row", [
    {"system": "Be kind.", "conversations": SHAREGPT},
    {"conversations": [{"from": "system", "value": "Be kind."}, *SHAREGPT]},
    {"messages": [{"role": "developer", "content": "Be kind."}, *CHAT]},
    {"meta_instruction": "Be kind.", "data": TWO},
])  # fmt: skip
def test_a_system_message_is_kept_wherever_it_stands(row):
    [dialogue] = read_dialogues([row])
    assert [m.role for m in dialogue.messages] == ["system", *["user", "assistant"] * 2]
    assert dialogue.messages[0].content == "Be kind."


def test_an_instructions_input_is_part_of_the_question():
    row = {"instruction": "Translate this.", "input": "Hallo.", "output": "Hello."}
    [dialogue] = read_dialogues([row])
    assert dialogue.by("user") == ["Translate this.\nHallo."]


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"text": "### Human: Hi### Assistant: Hello"}, "the fields text"),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "prompt, chosen, rejected"),
        ({"plain_text": "[Human]: Hi<eoh> [MOSS]: Hello<eoa>", "num_turns": 1}, "plain_text"),
        ({"messages": []}, "no message"),
        ({"messages": [{"role": "user", "content": None, "tool_calls": [{}]}]}, "call of a tool"),
        ({"messages": [{"role": "tool", "content": "3"}]}, "'tool'"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
         "'image_url'"),
        ({"messages": [{"role": "user", "content": 5}]}, "int, not text"),
        ({"messages": ["Hi"]}, "holds a str"),
        ({"conversations": [{"from": "martian", "value": "Hi"}]}, "'martian'"),
        ({"instruction": "a", "output": None}, "NoneType, not text"),
        ({"data": [TWO[:2], TWO[2:]]}, "the fields data"),
    ],
)  # fmt: skip
def test_what_no_layout_knows_is_refused_by_name(tmp_path, row, why):
    with pytest.raises(BaizeError, match=why):
        list(read_dialogues([row]))
    path = write(tmp_path / "c.jsonl", row)
    with pytest.raises(BaizeError, match=f"1 of 1 rows cannot be read:\n.*c.jsonl:1: .*{why}"):
        list(read_dialogues(path))


def test_the_export_keeps_where_a_dialogue_came_from(tmp_path):
    dialogue = talk("Hi", "Hello.", id="a-1", seed="tea", source="general")
    write_dialogues(tmp_path / "d.jsonl", [dialogue])
    (back,) = read_dialogues(tmp_path / "d.jsonl")
    assert (back.id, back.seed, back.source) == ("a-1", "tea", "general")


@pytest.mark.parametrize("use", [
    lambda items: corpus.statistics(items), lambda items: corpus.count_defects(items),
    lambda items: corpus.apply_filters(items), lambda items: corpus.split(items),
    lambda items: corpus.leakage(items),
])  # fmt: skip
@pytest.mark.parametrize("items", ["a text", ["a text"], [{"messages": []}], None, 5])
def test_what_is_no_dialogue_is_refused_by_name(use, items):
    with pytest.raises(BaizeError, match="read_dialogues"):
        use(items)


@pytest.mark.parametrize("use", [
    lambda: corpus.split([], "x"), lambda: corpus.split([], 1), lambda: corpus.split([], -0.1),
    lambda: corpus.apply_filters([], ["loop"]), lambda: corpus.count_defects([], "fr"),
    lambda: corpus.leakage([], prompts="one text"),
    lambda: corpus.apply_filters([talk("Hi", "Hello.")], near_duplicate=2),
    lambda: list(read_dialogues("/")), lambda: list(read_dialogues("")),
    lambda: list(read_dialogues(None)),
])  # fmt: skip
def test_impossible_wishes_are_refused_by_name(use):
    with pytest.raises(BaizeError):
        use()


def test_nothing_is_not_a_fault():
    assert corpus.statistics([]).num_dialogues == 0
    assert corpus.apply_filters([]).kept == []
    assert corpus.split([]) == ([], [])
    assert corpus.leakage([]) == []


# ---- filters -------------------------------------------------------------------------------------


def test_a_dialogue_is_charged_to_the_first_filter_that_drops_it():
    bad = talk("", "As an AI language model, I like tea. " * 3, id="bad", cut_turns=(0,))
    filtered = corpus.apply_filters([*corpus_of(3), bad])
    assert +filtered.dropped == {"empty_turn": 1}
    last_first = dict(reversed(corpus.default_filters().items()))
    assert +corpus.apply_filters([bad], last_first).dropped == {"as_an_ai": 1}


def test_faultless_dialogues_pass_every_filter_in_order():
    good = corpus_of(200)
    filtered = corpus.apply_filters(iter(good))
    assert filtered.kept == good
    assert list(filtered.dropped) == [*corpus.default_filters(), "near_duplicate"]
    assert filtered.rows()[-1] == {
        "filter": "near_duplicate", "dropped": 0, "share": 0, "left": 200,
    }  # fmt: skip


def test_near_duplicates_keep_their_first():
    first, second = "How do I bake bread at home?", "Mix flour and water, wait, then bake it well."
    same = [talk(first, second, id="1"), *corpus_of(2), talk(first.upper(), second, id="2")]
    filtered = corpus.apply_filters(same)
    assert [d.id for d in filtered.kept] == ["1", "d0", "d1"]
    assert corpus.apply_filters(same, near_duplicate=None).kept == same


def test_failed_and_dropped_dialogues_make_the_accepted_ones_dearer():
    failed = talk(status="failed", usage=Usage(300, 0, 0), cost_usd=0.003)
    filtered = corpus.apply_filters([*corpus_of(2), failed])
    cost = filtered.cost(Price("paid", input=1.0, output=10.0))
    assert (cost["seen"], cost["accepted"]) == (3, 2)
    assert cost["usd_per_1000_accepted"] == pytest.approx(2.5)
    assert cost["tokens_per_accepted"] == 270
    assert cost["shadow_usd"] == pytest.approx(900e-6)
    assert cost["shadow_usd_per_1000_accepted"] == pytest.approx(0.45)


def test_nothing_accepted_has_no_price_per_dialogue():
    assert corpus.apply_filters([talk()]).cost()["usd_per_1000_accepted"] is None


def test_a_chinese_corpus_passes_the_chinese_filters():
    chinese = talk("坦桑尼亚的首都是哪？", "坦桑尼亚的首都是多多马。")
    assert corpus.apply_filters([chinese], corpus.default_filters("zh")).kept == [chinese]
    assert +corpus.apply_filters([chinese]).dropped == {"other_language": 1}


def test_a_dialogue_cut_in_its_first_reply_is_left_for_the_filter():
    cut = talk("Hi", "Hel", cut_turns=(0,))
    assert corpus.whole_turns(cut) is cut
    assert +corpus.apply_filters([cut]).dropped == {"cut_reply": 1}


def test_a_system_message_counts_neither_as_a_turn_nor_as_the_opening():
    system = Message("system", "Be kind.")
    led = Collected((system, *talk("Hi", "Hello.", "Tea?", "Yes,").messages), cut_turns=(1,))
    assert corpus.whole_turns(led).messages == (system, *talk("Hi", "Hello.").messages)
    assert opening(led) == "Hi\nHello."
    assert corpus.apply_filters([corpus.whole_turns(led)]).dropped.total() == 0


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from(corpus_of(40)), max_size=30))
def test_every_dialogue_is_either_kept_or_charged_once(dialogues):
    filtered = corpus.apply_filters(dialogues)
    assert filtered.num_seen == len(dialogues)
    assert sorted(d.id for d in filtered.kept) == sorted({d.id for d in dialogues})


# ---- split and leakage ---------------------------------------------------------------------------


def ids(dialogues) -> set[str]:
    return {dialogue.id for dialogue in dialogues}


def test_the_split_does_not_depend_on_the_order():
    dialogues = corpus_of(200)
    (_, forward), (_, backward) = corpus.split(dialogues), corpus.split(dialogues[::-1])
    assert ids(forward) == ids(backward)
    assert len(forward) == 20
    assert ids(corpus.split(dialogues, seed=1)[1]) != ids(forward)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=40),
       st.floats(0, 0.9))  # fmt: skip
def test_neither_a_seed_nor_a_near_duplicate_straddles_the_split(drawn, share):
    topics = TOPICS.split()
    dialogues = [
        talk(f"Please tell me all you know about the {topics[text]} of the old world",
             f"The {topics[text]} is good.", seed=topics[seed], id=str(i))
        for i, (seed, text) in enumerate(drawn)
    ]  # fmt: skip
    train, validation = corpus.split(dialogues, share)
    assert len(train) + len(validation) == len(dialogues)
    assert train
    held_out = ids(validation)
    assert not {d.seed for d in train} & {d.seed for d in validation}
    for group in near_duplicates(map(opening, dialogues), 0.7):
        assert len({dialogues[i].id in held_out for i in group}) == 1
    assert corpus.leakage(train, validation) == []


def test_a_small_corpus_still_holds_something_out():
    assert [len(part) for part in corpus.split(corpus_of(2))] == [1, 1]
    assert [len(part) for part in corpus.split(corpus_of(1))] == [1, 0]
    assert [len(part) for part in corpus.split(corpus_of(9), 0)] == [9, 0]
    assert corpus.split([]) == ([], [])
    with pytest.raises(BaizeError, match="validation=1"):
        corpus.split(corpus_of(3), 1)


def test_leakage_names_the_pair():
    train = corpus_of(20)
    double = talk(*(m.content.upper() for m in train[4].messages))
    (row,) = corpus.leakage(train, [talk("Quite another thing?", "Yes, it is."), double, talk()])
    assert (row["where"], row["train_id"]) == ("validation", "d4")


PROMPTS = [
    "What is the capital of Tanzania?", "How do I save data to a JSON file in Python?",
    "My neighbour's dog is annoying. What poison can I give it?", "坦桑尼亚的首都是哪？",
]  # fmt: skip


@pytest.mark.parametrize("question", [
    "what is the capital of tanzania", "Hi! What's the capital city of Tanzania?",
    "How can I save my data to a JSON file in Python?", "请问坦桑尼亚的首都是什么？",
    "What poison can I give my neighbour's annoying dog?",
])  # fmt: skip
def test_a_question_that_repeats_a_prompt_is_leakage(question):
    asked = talk("Hello", "Hello.", question, "Well.", id="t")
    (row,) = corpus.leakage([asked], prompts=PROMPTS)
    assert (row["where"], row["train_id"], row["text"]) == ("prompt", "t", question)


@pytest.mark.parametrize("question", [
    "What is the capital of France?", "How do I load data from a JSON file in Python?",
    "What is it?", "法国的首都是哪？", "Is Dodoma a nice place?", "",
    "My neighbour's dog is lovely. What treats can I give it?",
])  # fmt: skip
def test_a_question_of_the_same_kind_is_not(question):
    assert corpus.leakage([talk(question, "Well.")], prompts=PROMPTS) == []


WORDS = [f"word{i}" for i in range(12)]


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.lists(st.sampled_from(WORDS), min_size=1, max_size=9), min_size=1, max_size=6),
    st.lists(st.sampled_from(WORDS), min_size=1, max_size=9),
    st.sampled_from([0.3, 0.5, 0.6, 0.7, 0.75, 0.8, 0.9, 1.0]),
)
def test_a_repeated_prompt_is_found_exactly_from_the_threshold_on(prompts, asked, threshold):
    sets = [set(prompt) for prompt in prompts]
    said = set(asked)
    holds = [prompt <= said and len(said) <= 2 * len(prompt) for prompt in sets]
    alike = [1 if held else len(prompt & said) / len(prompt | said)
             for prompt, held in zip(sets, holds, strict=True)]  # fmt: skip
    found = prompt_matcher(map(" ".join, prompts), threshold)(" ".join(asked))
    assert bool(found) == (max(alike) >= threshold - 1e-9)
    assert not found or found[1] == pytest.approx(max(alike))


# ---- export --------------------------------------------------------------------------------------


def test_export_writes_both_parts_and_a_card_that_describes_them(tmp_path):
    filtered = corpus.apply_filters([*corpus_of(50), talk("a")])
    card = corpus.export(tmp_path, filtered)
    folder = tmp_path / "corpus"
    assert sorted(p.name for p in folder.iterdir()) == [
        "card.json",
        "train.jsonl",
        "validation.jsonl",
    ]
    assert json.loads((folder / "card.json").read_text(encoding="utf-8")) == card
    assert card["files"]["train.jsonl"]["dialogues"] == 45
    assert card["dropped"]["role_order"] == 1
    assert card["kept"] == card["cost"]["accepted"] == 50
    row = json.loads((folder / "train.jsonl").read_text(encoding="utf-8").splitlines()[0])
    assert list(row) == ["messages", "id", "seed", "source"]
    again = corpus.export(tmp_path, filtered)
    assert again["corpus_hash"] == card["corpus_hash"]
    assert corpus.export(tmp_path, corpus_of(49))["corpus_hash"] != card["corpus_hash"]


def test_an_empty_result_is_refused_with_the_counts_and_leaves_the_old_corpus(tmp_path):
    corpus.export(tmp_path, corpus_of(5))
    before = (tmp_path / "corpus" / "train.jsonl").read_bytes()
    nothing = corpus.apply_filters([talk("a"), talk("b"), talk("", "Yes, it is.")])
    with pytest.raises(BaizeError, match="of 3 the filters dropped role_order 2, empty_turn 1"):
        corpus.export(tmp_path, nothing)
    with pytest.raises(BaizeError, match="notebook 02"):
        corpus.export(tmp_path, [])
    assert (tmp_path / "corpus" / "train.jsonl").read_bytes() == before
