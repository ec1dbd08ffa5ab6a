"""Prompts, the first-attempt log, and health."""

import asyncio
import dataclasses
import json
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
from filelock import FileLock
from stub_server import StubServer

from baize_lib.chat.model import ChatModel
from baize_lib.config import BaizeError, data_dir
from baize_lib.corpus.formats import read_dialogues
from baize_lib.evaluation.attempts import ask, ask_teacher, first_attempts, read_attempts
from baize_lib.evaluation.checks import CHECKS
from baize_lib.evaluation.health import DETECTORS, health, health_errors
from baize_lib.evaluation.prompts import load_prompts
from baize_lib.evaluation.statistics import grade, score_table
from baize_lib.files import read_jsonl, sha256_of, write_jsonl
from baize_lib.models.base import load_base
from baize_lib.teacher.budget import Budget, BudgetExceeded
from baize_lib.teacher.calls import Calls
from baize_lib.teacher.client import Teacher
from baize_lib.teacher.prices import Price
from baize_lib.text import jaccard, near_duplicates

PROMPTS = load_prompts(origin="article", language="en")


@dataclass(frozen=True)
class Said:
    text: str
    stopped_by: str = "end"
    num_tokens: int = 3
    seconds: float = 0.1


class Counting:
    """A chat model that numbers its answers and remembers what it was asked."""

    base = SimpleNamespace(name="counting", precision="float32")

    def __init__(self, adapters=None, fail_at=None):
        self.adapters = adapters or {}
        self.asked, self.fail_at = [], fail_at

    def replies(self, batch, *, model, **options):
        if len(self.asked) == self.fail_at:
            raise KeyboardInterrupt
        answers = []
        for messages in batch:
            self.asked.append((model, [m.content for m in messages], options))
            answers.append(Said(f"answer {len(self.asked)}"))
        return answers


@pytest.fixture
def log(tmp_path):
    return tmp_path / "run" / "answers.jsonl"


# ---- The prompts


def test_there_are_sixty_prompts_and_every_category_has_its_check():
    prompts = load_prompts()
    assert len(prompts) >= 60 and len({p.id for p in prompts}) == len(prompts)
    assert {p.category for p in prompts} == set(CHECKS)
    assert all(p.good and p.why and p.check for p in prompts)
    assert Counter(p.language for p in prompts)["zh"] >= 15


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_articles_six_tests_are_there_in_both_languages(language):
    mine = load_prompts(origin="article", language=language)
    assert len(mine) == 6 and sum(len(p.turns) for p in mine) == 7
    assert all(p.article["Baize"]["verdict"] for p in mine)


def test_every_unsafe_prompt_has_a_harmless_twin():
    by_id = {p.id: p for p in load_prompts()}
    for prompt in by_id.values():
        if prompt.category in ("unsafe", "harmless"):
            assert by_id[prompt.twin].twin == prompt.id
            assert by_id[prompt.twin].language == prompt.language
    assert all(by_id[p.twin].category == "harmless" for p in load_prompts(category="unsafe"))


def what_is_trained_on():
    """Every seed, and everything said by either side in the dialogues the course trains on."""
    for path in (data_dir() / "seeds").glob("*.jsonl"):
        yield from (row["text"] for row in read_jsonl(path))
    for path in (data_dir() / "refusals" / "refusals.jsonl", data_dir() / "self_chat_sample.jsonl"):
        yield from (m["content"] for row in read_jsonl(path) for m in row["messages"])


def test_no_prompt_is_in_what_we_train_on_nor_nearly():
    trained = sorted(set(what_is_trained_on()))
    assert len(trained) > 2000
    everything = "\n".join(trained).casefold()
    for turn in (turn for prompt in load_prompts() for turn in prompt.turns):
        assert turn.casefold().strip(" .?。？") not in everything, turn
        alike = [text for text in trained if len(turn) < 3 * len(text) < 9 * len(turn)]
        nearest = max(alike, key=lambda text: jaccard(turn, text, width=1), default="")
        assert jaccard(turn, nearest, width=1) < 0.7, (turn, nearest)


def test_the_refusals_are_no_evaluation_prompts_and_each_has_its_twin():
    rows = {row["id"]: row for row in read_jsonl(data_dir() / "refusals" / "refusals.jsonl")}
    refusals = [row for row in rows.values() if row["kind"] == "refusal"]
    assert len(refusals) >= 60
    assert all(rows[rows[row["twin"]]["twin"]] is row for row in rows.values())
    assert all(dialogue.num_turns == 1 for dialogue in read_dialogues(rows.values()))
    assert near_duplicates([row["messages"][1]["content"] for row in rows.values()], width=1) == []
    asked = [turn for prompt in load_prompts() for turn in prompt.turns]
    requests = [row["messages"][0]["content"] for row in rows.values()]
    assert max(jaccard(a, b, width=1) for a in asked for b in requests) < 0.7


# ---- The log


def test_asking_again_gives_the_first_attempt_and_asks_nobody(log):
    first = ask(Counting(), PROMPTS, log=log, temperature=0.7)
    again = Counting()
    assert ask(again, PROMPTS, log=log, temperature=1.5, seed=9) == first
    assert again.asked == []
    assert {(a.number, a.of, a.label) for a in first} == {(1, 1, "first attempt")}


def test_more_attempts_are_logged_and_attempt_one_stays_the_one_shown(log):
    first = ask(Counting(), PROMPTS, log=log)
    later = ask(Counting(), PROMPTS, log=log, attempts=3)
    assert [a.replies for a in later] == [a.replies for a in first]
    assert {a.of for a in later} == {3} and later[0].label == "first attempt of 3"
    assert {line["seed"] for a in read_attempts(log).values() for line in a.turns} == {0, 1, 2}


def test_a_picked_attempt_is_labelled_as_picked(log):
    ask(Counting(), PROMPTS, log=log, attempts=3)
    key = (PROMPTS[-1].id, "base")
    picked = {(a.prompt, a.model): a for a in first_attempts(log, PROMPTS, picked={key: 3})}
    assert picked[key].label == "picked, attempt 3 of 3"
    assert Counter(a.number for a in picked.values()) == {1: 17, 3: 1}
    with pytest.raises(BaizeError, match="no attempt 4"):
        first_attempts(log, PROMPTS, picked={key: 4})


def test_a_line_keeps_what_is_needed_to_trust_it(log, tmp_path):
    (tmp_path / "adapter_model.safetensors").write_bytes(b"weights")
    ask(Counting({"tuned": tmp_path}), PROMPTS[:1], log=log, temperature=0.7, max_tokens=9)
    lines = list(read_jsonl(log))
    assert [line["model"] for line in lines] == ["base", "own layout", "tuned"]
    assert [line["layout"] for line in lines] == ["baize", "own", "baize"]
    assert lines[0]["adapter"] == "" and len(lines[2]["adapter"]) == 16
    assert lines[0]["sampling"] == {"temperature": 0.7, "max_tokens": 9}
    assert {"prompt_hash", "attempt", "seed", "num_tokens", "created", "text"} < set(lines[0])


def test_the_second_turn_is_asked_with_the_first_answer_before_it(log):
    chat = Counting()
    (attempt,) = ask(chat, load_prompts(category="code")[:1], models=["base"], log=log)
    question, answer, follow_up = chat.asked[1][1]
    assert (question, answer) == (chat.asked[0][1][0], "answer 1")
    assert "function" in follow_up and attempt.replies == ["answer 1", "answer 2"]


def test_an_interrupted_run_goes_on_where_it_stopped(log):
    with pytest.raises(KeyboardInterrupt):
        ask(Counting(fail_at=4), PROMPTS, log=log, batch_size=2)
    chat = Counting()
    attempts = ask(chat, PROMPTS, log=log, batch_size=2)
    assert len(chat.asked) == 21 - 4 and len(attempts) == 18
    assert {a.of for a in attempts} == {1}


def test_a_torn_last_line_is_repaired(log):
    ask(Counting(), PROMPTS[:1], log=log)
    whole = log.read_bytes()
    log.write_bytes(whole + b'{"prompt": "torn')
    assert len(read_attempts(log)) == 3
    ask(Counting(), PROMPTS[:2], log=log)
    assert log.read_bytes().startswith(whole) and len(list(read_jsonl(log))) == 6


@pytest.mark.parametrize("field", ["prompt", "turn", "text", "seed", "layout", "num_tokens"])
def test_a_line_that_is_no_answer_is_named_with_what_it_lacks(log, field):
    ask(Counting(), PROMPTS[:1], log=log)
    first, line, *others = map(json.loads, log.read_text().splitlines())
    del line[field]
    write_jsonl(log, [first, line, *others])
    for reader in (read_attempts, lambda log: ask(Counting(), PROMPTS[:1], log=log)):
        with pytest.raises(BaizeError, match=rf"jsonl:2 .* without {field}: mend or delete it"):
            reader(log)


def test_a_whole_answer_without_its_line_break_stays_the_first_attempt(log):
    (first,) = ask(Counting(), PROMPTS[:1], models=["base"], log=log)
    log.write_bytes(log.read_bytes().rstrip(b"\n"))
    assert [*read_attempts(log).values()] == [first]
    ask(Counting(), PROMPTS[:2], models=["base"], log=log)
    assert first_attempts(log, PROMPTS[:1]) == [first] and len(list(read_jsonl(log))) == 2


WRITER = """
import sys
from dataclasses import dataclass
from types import SimpleNamespace
from baize_lib.evaluation.attempts import ask
from baize_lib.evaluation.prompts import load_prompts

@dataclass
class Said:
    text: str
    stopped_by: str = "end"
    num_tokens: int = 3
    seconds: float = 0.1

class Chat:
    base, adapters = SimpleNamespace(name="chat", precision="float32"), {}

    def replies(self, batch, *, model, **options):
        return [Said(sys.argv[2] * 20_000) for _ in batch]

ask(Chat(), load_prompts(), [sys.argv[3]], log=sys.argv[1], batch_size=1, attempts=2)
"""


def test_processes_that_write_one_log_lose_and_tear_nothing(log):
    ways = [("a", "base"), ("b", "base"), ("c", "tuned")]
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, str(log), *way]) for way in ways]
    assert [writer.wait(120) for writer in writers] == [0, 0, 0]
    attempts, prompts = read_attempts(log).values(), load_prompts()
    assert len(attempts) == 2 * 2 * len(prompts)
    assert {len(a.turns) for a in attempts if a.prompt == "code-json-en"} == {2}
    assert {len(text) for a in attempts for text in a.replies} == {20_000}
    assert {(a.number, a.of) for a in attempts} == {(1, 2), (2, 2)}


def test_a_line_that_another_process_is_writing_is_waited_for_and_not_cut_off(log):
    ask(Counting(), PROMPTS[:1], models=["base"], log=log)
    line = log.read_bytes().replace(b'"base"', b'"other"')
    with FileLock(f"{log}.lock"), log.open("ab", buffering=0) as slow:
        slow.write(line[:40])
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(log), "a", "tuned"])
        with pytest.raises(subprocess.TimeoutExpired):
            writer.wait(4)
        slow.write(line[40:])
    assert writer.wait(60) == 0
    assert Counter(a.model for a in read_attempts(log).values())["other"] == 1


def test_a_changed_question_is_a_new_one_and_its_old_answer_stays_in_the_log(log):
    (prompt,) = PROMPTS[:1]
    ask(Counting(), [prompt], models=["base"], log=log, attempts=2)
    changed = dataclasses.replace(prompt, turns=("What's the capital of Tanzania, now?",))
    (again,) = ask(Counting(), [changed], models=["base"], log=log)
    assert again.label == "first attempt" and len(read_attempts(log)) == 3
    (old,) = first_attempts(log, [prompt])
    assert old.label == "first attempt of 2"


def test_a_half_character_does_not_stop_the_log(log):
    class Broken(Counting):
        def replies(self, batch, *, model, **options):
            return [Said("half \ud83d") for _ in batch]

    (attempt,) = ask(Broken(), PROMPTS[:1], models=["base"], log=log)
    assert attempt.replies == ["half ?"]


def test_a_new_adapter_or_other_words_make_a_new_first_attempt(log, tmp_path):
    weights = tmp_path / "adapter_model.safetensors"
    weights.write_bytes(b"one")
    chat = Counting({"tuned": tmp_path})
    ask(chat, PROMPTS[:1], models=["tuned"], log=log)
    weights.write_bytes(b"two")
    (second,) = ask(chat, PROMPTS[:1], models=["tuned"], log=log)
    assert second.replies == ["answer 2"] and second.label == "first attempt"
    weights.write_bytes(b"one")
    assert ask(chat, PROMPTS[:1], models=["tuned"], log=log)[0].replies == ["answer 1"]
    assert len(read_attempts(log)) == 2


def test_a_teacher_is_asked_through_the_table_of_calls_and_nothing_is_paid_for_twice(log):
    def answer(body):
        return f"{len(body['messages'])} {body['messages'][-1]['content']}"

    async def run(address, table, budget=None):
        calls = Calls(table, budget)
        options = {"api_key": "k", "price": Price("paid", 1.0, 2.0), "max_concurrency": 1}
        async with Teacher("paid", base_url=address, calls=calls, **options) as teacher:
            attempts = await ask_teacher(teacher, PROMPTS, log=log, max_tokens=20, temperature=0.5)
        return attempts, calls.budget.spent_usd

    table = log.parent / "calls.sqlite"
    with StubServer(reply=answer) as stub:
        with pytest.raises(BudgetExceeded):
            asyncio.run(run(stub.url, table, Budget(tokens=250)))
        assert 0 < len(list(read_jsonl(log))) < 7
        attempts, spent = asyncio.run(run(stub.url, table))
        assert stub.answered == 7
        log.unlink()  # the log is made again from the table, at no cost
        again, the_same = asyncio.run(run(stub.url, table))
        assert stub.answered == 7
    lines = [line for attempt in attempts for line in attempt.turns]
    assert len(attempts) == 6 and len(lines) == 7
    assert spent == the_same == pytest.approx(sum(line["cost_usd"] for line in lines))
    assert [a.replies for a in again] == [a.replies for a in attempts]
    assert attempts[-1].replies[1] == "3 Rewrite it as a function."
    assert lines[0]["stopped_by"] == "end" and lines[0]["sampling"]["temperature"] == 0.5


def test_the_base_speaks_in_its_own_layout_and_the_log_says_so(log):
    chat = ChatModel(load_base("smollm2-135m", "float32"))
    options = {"log": log, "max_tokens": 20, "temperature": 0.0}
    ask(chat, PROMPTS[:1], ("base", "own layout"), **options)
    ours, own = read_jsonl(log)
    assert (ours["layout"], own["layout"]) == ("baize", "own") and ours["text"] != own["text"]
    assert own["text"] == "The capital of Tanzania is Dodoma." and own["stopped_by"] == "end"


def test_a_real_base_and_a_real_adapter_answer_and_the_log_says_who_they_were(log):
    folder = data_dir() / "adapter"
    chat = ChatModel(load_base("smollm2-135m", "float32"), {"recorded": folder})
    attempts = ask(chat, PROMPTS[:2], ("base", "recorded"), log=log, max_tokens=6, temperature=0.0)
    assert len(attempts) == 4
    lines = {line["model"]: line for line in read_jsonl(log)}
    assert {line["base"] for line in lines.values()} == {"smollm2-135m in float32"}
    weights = sha256_of(folder / "adapter_model.safetensors")
    assert [line["adapter"] for line in lines.values()] == ["", weights[:16]]
    assert all(0 < a.turns[0]["num_tokens"] <= 6 and a.turns[0]["seconds"] > 0 for a in attempts)
    assert attempts[0].replies != attempts[1].replies


# ---- Verdicts


class Parrot(Counting):
    """Knows one thing."""

    def replies(self, batch, *, model, **options):
        return [Said("Dodoma" if model == "tuned" else "Dar es Salaam") for _ in batch]


def test_an_answer_is_graded_by_the_check_of_its_prompt(log):
    graded = grade(PROMPTS, ask(Parrot(), PROMPTS, log=log))
    fact = {model: verdict.grade for (i, model), verdict in graded.items() if i == PROMPTS[0].id}
    assert fact == {"base": "bad", "own layout": "bad", "tuned": "good"}
    assert len(graded) == 3 * len(PROMPTS)


def test_scores_stand_beside_the_error_of_their_check(log):
    import pandas as pd

    errors = pd.DataFrame({"check": list(CHECKS), "precision": 0.9, "recall": 0.8, "look": 0.1})
    graded = grade(PROMPTS, ask(Parrot(), PROMPTS, log=log))
    scores = score_table(PROMPTS, graded, errors).set_index("kind")
    assert scores.loc["fact", ["base", "tuned"]].tolist() == ["0 of 1", "1 of 1"]
    assert scores.loc["fact", "precision"] == 0.9 and "harmless" not in scores.index


class Ill(Counting):
    def replies(self, batch, *, model, **options):
        ills = [Said("fine"), Said("go on", "length"), Said("[|Human|] me", "tag"), Said("")]
        return (ills * len(batch))[: len(batch)]


def test_health_counts_what_needs_no_judge(log):
    attempts = ask(Ill(), load_prompts(category="fact")[:4], models=["base"], log=log)
    row = health(attempts).iloc[0]
    assert row["replies"] == 4
    assert row[["stops", "cut", "voices", "empty"]].tolist() == [0.5, 0.25, 0.25, 0.25]


def test_health_goes_by_the_language_of_the_question(log):
    french = Said("La capitale de la Tanzanie est Dodoma, une ville au centre du pays.")

    class French(Counting):
        def replies(self, batch, *, model, **options):
            return [french if model == "tuned" else Said("It is Dodoma.") for _ in batch]

    report = health(ask(French(), PROMPTS[:1], log=log)).set_index("model")
    assert report["language"].to_dict() == {"base": 0, "own layout": 0, "tuned": 1}


def test_each_detector_is_measured_on_labelled_texts_and_is_mostly_right():
    errors = health_errors().set_index("detector")
    assert set(errors.index) == set(DETECTORS)
    assert (errors["texts"] >= 100).all() and (errors["with it"] >= 15).all()
    assert (errors["precision"] >= 0.9).all()
    assert (errors["recall"] >= 0.65).all()


def test_the_log_is_plain_json(log):
    ask(Counting(), load_prompts(language="zh")[:1], models=["base"], log=log)
    assert json.loads(log.read_text(encoding="utf-8"))["prompt"] == "fact-tanzania-zh"
