import contextlib
import gzip
import json
import re
import tracemalloc
import zipfile
from collections import Counter
from itertools import combinations
from pathlib import Path
from xml.sax.saxutils import quoteattr

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from baize_lib.config import BaizeError
from baize_lib.seeds import readers as sources
from baize_lib.seeds import records
from baize_lib.seeds.clean import RULES, clean, load_seeds, mix
from baize_lib.seeds.seed import BUILT_IN, Seed, Seeds
from baize_lib.text import near_duplicates

MEDQUAD = Path(__file__).resolve().parents[2] / "shared" / "data" / "medquad"


def texts(seeds):
    return [seed.text for seed in seeds]


# The sets written for the course.


@pytest.mark.parametrize(
    ("name", "at_least"),
    [("general", 160), ("programming", 160), ("medical", 80), ("unsafe", 40), ("harmless", 40)],
)
def test_a_built_in_set_is_large_enough_and_passes_every_cleaning_rule(name, at_least):
    seeds = load_seeds(name)
    assert len(seeds) >= at_least
    assert not seeds.dropped
    assert {seed.source for seed in seeds} == {f"baize-course/{name}"}
    assert all(seed.id.startswith(f"{name}-") for seed in seeds)


def test_no_two_built_in_seeds_are_near_duplicates():
    everything = [text for name in BUILT_IN for text in texts(load_seeds(name))]
    assert near_duplicates(everything, 0.7, width=1) == []
    bags = [set(re.findall(r"\w+", text.lower())) for text in everything]
    assert max(len(a & b) / len(a | b) for a, b in combinations(bags, 2)) < 0.7


def test_each_unsafe_request_has_exactly_one_harmless_twin():
    folder = sources.data_dir() / "seeds"
    rows = [json.loads(line) for line in (folder / "harmless.jsonl").open(encoding="utf-8")]
    assert sorted(row["twin"] for row in rows) == [seed.id for seed in load_seeds("unsafe")]


def test_the_evaluation_topics_are_not_among_the_seeds():
    everything = " ".join(text.lower() for name in BUILT_IN for text in texts(load_seeds(name)))
    topics = "tanzania|dodoma|lehman|whiteboard|re-markable|iphone|dog poison|json file|capital of"
    assert not [topic for topic in topics.split("|") if topic in everything]


def test_the_data_card_states_the_counts_as_they_are():
    card = (sources.data_dir() / "seeds" / "README.md").read_text(encoding="utf-8")
    for name in BUILT_IN:
        assert f"| `{name}.jsonl` | {len(load_seeds(name))} |" in card


# MedQuAD.


@pytest.mark.skipif(not MEDQUAD.is_dir(), reason=f"no MedQuAD sample at {MEDQUAD}")
def test_medquads_2790_questions_are_all_kept_or_dropped_for_a_reason(tmp_path):
    seeds = load_seeds(MEDQUAD)
    assert len(seeds) + seeds.dropped.total() == 2790
    assert seeds.dropped == {
        "exact duplicate": 773,
        "MedQuAD: a leaflet's title in the question": 315,
        "MedQuAD: no subject": 4,
    }
    assert len({seed.id for seed in seeds}) == len(seeds) == 1698
    assert seeds.problems == []
    assert not [text for text in texts(seeds) if " ?" in text or "(are)" in text]
    with zipfile.ZipFile(tmp_path / "medquad.zip", "w") as archive:
        for file in MEDQUAD.rglob("*.*"):
            archive.write(file, file.relative_to(MEDQUAD))
    assert texts(load_seeds(tmp_path / "medquad.zip")) == texts(seeds)


def medquad_xml(*questions, focus="Gout"):
    pairs = "".join(
        f'<QAPair pid="{i}"><Question qid="7-{i}" qtype="information">{q}</Question>'
        f"<Answer>Long.</Answer></QAPair>\n"
        for i, q in enumerate(questions, 1)
    )
    return (
        f'<?xml version="1.0" encoding="UTF-8"?>\n<Document id="7" source="NIDDK" url="">\n'
        f"<Focus>{focus}</Focus>\n<QAPairs>\n{pairs}</QAPairs>\n</Document>\n"
    )


def test_medquad_questions_are_mended_and_those_without_a_subject_dropped(tmp_path):
    (tmp_path / "a.xml").write_text(medquad_xml("What is (are) Gout ?", "how is gout treated ? ?"))
    (tmp_path / "b.xml").write_text(medquad_xml("Who is at risk for  ? ?", focus=""))
    (tmp_path / "LICENSE.txt").write_text("Is this file read as seeds?\n")
    seeds = load_seeds(tmp_path)
    assert texts(seeds) == ["What is Gout?", "How is gout treated?"]
    assert seeds[0].id == "medquad-NIDDK-7-1"
    assert seeds.dropped == {"MedQuAD: no subject": 1}


def test_a_broken_medquad_file_names_its_line_and_the_rest_is_kept(tmp_path):
    good = medquad_xml("What causes gout ?", "How is gout found ?")
    (tmp_path / "a.xml").write_text(good.replace("<Answer>Long.</Answer></QAPair>\n</QA", "<</QA"))
    (tmp_path / "b.xml").write_text(good.replace("gout", "cough"))
    (tmp_path / "c.xml").write_text("")
    seeds = load_seeds(tmp_path)
    assert texts(seeds)[-2:] == ["What causes cough?", "How is cough found?"]
    assert texts(seeds)[0] == "What causes gout?"
    assert seeds.dropped["unreadable"] == 2
    assert seeds.problems[0].startswith(f"{tmp_path / 'a.xml'}:6: ")
    assert seeds.problems[1].startswith(f"{tmp_path / 'c.xml'}:1: no element found")


# Stack Exchange.


def post(number, title, kind="1", body="text"):
    return (
        f'  <row Id="{number}" PostTypeId="{kind}" Score="3" '
        f"Title={quoteattr(title)} Body={quoteattr(body)} />\n"
    )


def posts_xml(*rows, bom="\ufeff"):
    return f'{bom}<?xml version="1.0" encoding="utf-8"?>\n<posts>\n{"".join(rows)}</posts>\n'


def test_a_posts_xml_gives_its_questions_only(tmp_path):
    answer = (
        '  <row Id="2" PostTypeId="2" ParentId="1" Body="&lt;p&gt;PostTypeId=&quot;1&quot;" />\n'
    )
    rows = post(1, "How do I sort a list?"), answer, post(3, "What is <T> in C++ & Java?")
    (tmp_path / "Posts.xml").write_text(posts_xml(*rows), encoding="utf-8")
    seeds = load_seeds(tmp_path / "Posts.xml")
    assert [(seed.id, seed.text) for seed in seeds] == [
        ("stackexchange-1", "How do I sort a list?"),
        ("stackexchange-3", "What is <T> in C++ & Java?"),
    ]
    assert seeds.dropped == {"a post that is not a question": 1}


@pytest.mark.parametrize(
    ("written", "title"),
    [
        ("What does &amp;nbsp; mean in HTML?", "What does &nbsp; mean in HTML?"),
        ("How do I escape &amp;lt; in XML?", "How do I escape &lt; in XML?"),
        ("Why is &quot;x &amp;&amp; y&quot; true?", 'Why is "x && y" true?'),
        ("What is vector&lt;int&gt; in C++?", "What is vector<int> in C++?"),
    ],
)
def test_entities_in_a_title_are_resolved_once(tmp_path, written, title):
    row = f'<row Id="1" PostTypeId="1" Title="{written}" />'
    (tmp_path / "Posts.xml").write_text(f"<posts>\n{row}\n</posts>", encoding="utf-8")
    assert texts(load_seeds(tmp_path / "Posts.xml")) == [title]


def test_a_torn_row_is_reported_with_its_line_and_those_around_it_are_kept(tmp_path):
    good, torn = post(1, "How do I sort a list?"), '<row Id="9" PostTypeId="1" Title="How do \n'
    text = posts_xml(good, torn, post(3, "Where does a stack begin?"), post(4, "Not ended, is it?"))
    file = tmp_path / "Posts.xml"
    file.write_text(text[: text.rindex("Body")], encoding="utf-8")
    seeds = load_seeds(file)
    assert len(seeds) == 3
    assert seeds.problems[0].startswith(f"{file}:4: ")
    assert seeds.dropped["unreadable"] == 1


def test_a_packed_dump_is_the_same_dump(tmp_path):
    rows = [post(i, f"Question number {i} about é?", body="x" * (i * 7 % 90)) for i in range(60)]
    (tmp_path / "Posts.xml").write_text("<posts>" + "".join(rows), encoding="utf-8")
    (tmp_path / "Posts.xml.gz").write_bytes(gzip.compress((tmp_path / "Posts.xml").read_bytes()))
    whole = load_seeds(tmp_path / "Posts.xml")
    assert len(whole) == 60
    assert load_seeds(tmp_path / "Posts.xml.gz") == whole


@pytest.mark.parametrize("ending", [".xml", ".txt", ".jsonl", ".csv", ".json"])
def test_a_record_without_end_costs_no_memory_and_others_are_read(tmp_path, ending):
    bomb = b"x" * 100_000_000
    file = tmp_path / f"a{ending}.gz"
    around = {
        ".xml": (
            b'<posts>\n<row Id="5" PostTypeId="1" Title="',
            post(1, "Is it so, or not?").encode(),
        ),
        ".txt": (b"", b"Is it so, or not?\n"),
        ".jsonl": (b'{"question": "', b'{"question": "Is it so, or not?"}\n'),
        ".csv": (b"question,n\n", b'"Is it so, or not?",1\n'),
        ".json": (b'[{"question": "Is it so, or not?"},\n{"question": "', b'"}]'),
    }
    with gzip.open(file, "wb", compresslevel=1) as packed:
        packed.write(around[ending][0] + bomb + b"\n" * (ending != ".json") + around[ending][1])
    del bomb
    tracemalloc.start()
    seeds = load_seeds(file)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert texts(seeds) == ["Is it so, or not?"]
    assert len(seeds.problems) == 1
    assert peak < 60e6


def test_an_entity_bomb_is_not_expanded(tmp_path):
    bomb = '<!DOCTYPE p [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;">]>\n'
    row = '<row Id="1" PostTypeId="1" Title="What is &b; in here?" />\n'
    file = tmp_path / "Posts.xml"
    file.write_text(f"{bomb}<posts>{row}{post(2, 'How do I sort a list?')}</posts>")
    seeds = load_seeds(file)
    assert texts(seeds) == ["How do I sort a list?"]
    assert "undefined entity" in seeds.problems[0]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), min_size=1)))
def test_any_title_survives_the_dump_and_back(tmp_path_factory, titles):
    folder = tmp_path_factory.mktemp("dump")
    titles = [title for title in titles if "&" not in title and "￾" not in title]
    titles = [title for title in titles if "\uffff" not in title]
    rows = [post(i, title) for i, title in enumerate(titles)]
    (folder / "Posts.xml").write_text(posts_xml(*rows), encoding="utf-8")
    tally = Seeds()
    read = [seed.text for seed in sources.read_source(str(folder / "Posts.xml"), tally)]
    assert read == titles
    assert not tally.problems


def test_api_pages_are_read_plain_or_packed_and_an_error_page_is_reported(tmp_path):
    page = {"items": [{"title": "Why is &quot;a&quot; &lt; &#39;b&#39;?", "question_id": 77}]}
    error = {"error_id": 502, "error_message": "too many requests", "error_name": "throttle"}
    (tmp_path / "one.json").write_text(json.dumps(page))
    (tmp_path / "two.json.gz").write_bytes(gzip.compress(json.dumps([error, page]).encode()))
    seeds = load_seeds(tmp_path)
    assert [(seed.id, seed.text) for seed in seeds] == [("stackexchange-77", "Why is \"a\" < 'b'?")]
    assert "too many requests" in seeds.problems[0]


# Tables, lines, records.

PAIRS = (
    "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n"
    "0\t1\t2\tHow do I learn to swim?\tWhat is the best way to learn swimming?\t1\n"
    "1\t1\t4\tHow do I learn to swim?\tWhy is the sea salty?\t0\n"
)


def test_quora_pairs_give_both_questions_once(tmp_path):
    (tmp_path / "quora.tsv").write_text(PAIRS)
    (tmp_path / "quora.csv").write_text(PAIRS.replace("\t", ","))
    seeds = load_seeds(tmp_path / "quora.tsv")
    assert [seed.id for seed in seeds] == ["quora-1", "quora-2", "quora-4"]
    assert seeds.dropped == {"exact duplicate": 1}
    assert texts(load_seeds(tmp_path / "quora.csv")) == texts(seeds)


def test_an_open_quote_costs_one_line_not_the_rest_of_the_table(tmp_path):
    rows = [f'{i},"Is {i} a prime number, please?"' for i in range(2, 50)]
    rows[10] = '12,"Is 12 a prime number'
    rows[20] = '22,"Is 22" a prime number?'
    (tmp_path / "q.csv").write_text("\n".join(["id,Question", *rows]))
    seeds = load_seeds(tmp_path / "q.csv")
    assert len(seeds) == 46
    assert [p.split(": ")[0] for p in seeds.problems] == [
        f"{tmp_path / 'q.csv'}:12", f"{tmp_path / 'q.csv'}:22",
    ]  # fmt: skip


def test_a_question_over_two_lines_of_a_table_is_one_question(tmp_path):
    (tmp_path / "q.csv").write_text(
        'title,score\n"How do I\nsort ""a list""?",3\nWhy is it so?,1\n'
    )
    assert texts(load_seeds(tmp_path / "q.csv")) == ['How do I sort "a list"?', "Why is it so?"]


def test_a_table_without_a_question_column_says_which_it_has(tmp_path):
    (tmp_path / "q.csv").write_text("name,score\nAnn,3\n")
    with pytest.raises(BaizeError, match="among name, score: name it, column="):
        load_seeds(tmp_path / "q.csv")


def test_broken_lines_of_jsonl_are_named_and_broken_bytes_of_text_are_counted(tmp_path):
    (tmp_path / "a.jsonl").write_text(
        '{"question": "Why is the sky blue?"}\n\n{"question": "Why\n[1]\n{"text": 5}\n'
        '{"id": "k", "title": "Is water wet, really?", "source": "mine"}\n{"x": 1}\n'
        '{"text": "Is \\ud800 half a character?"}\n'
    )
    seeds = load_seeds(tmp_path / "a.jsonl")
    assert list(seeds) == [
        Seed("a-1", "Why is the sky blue?", "a"), Seed("k", "Is water wet, really?", "mine"),
    ]  # fmt: skip
    assert [p.split(": ")[0].rsplit(":", 1)[1] for p in seeds.problems] == list("3457")
    assert seeds.dropped == {"unreadable": 4, "broken characters": 1}
    (tmp_path / "b.txt").write_bytes(b"\xef\xbb\xbfWhy is it so?\n\nWhat is \xff\xfe this?\nWho?\n")
    seeds = load_seeds(tmp_path / "b.txt")
    assert texts(seeds) == ["Why is it so?"]
    assert seeds.dropped == {"broken characters": 1, "too short (under 3 words)": 1}
    assert "\ufffd" in seeds.examples["broken characters"]


def test_a_row_whose_id_is_null_is_called_by_its_line(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"id": null, "question": "Why is the sky blue?"}\n')
    assert load_seeds(tmp_path / "a.jsonl")[0].id == "a-1"


def test_a_damaged_archive_is_reported_and_the_others_are_read(tmp_path):
    packed = gzip.compress("".join(f"Is {i} a prime number?\n" for i in range(9000)).encode())
    (tmp_path / "a.txt.gz").write_bytes(packed[: len(packed) // 2])
    (tmp_path / "b.txt").write_text("Why is it so?\n")
    seeds = load_seeds(tmp_path)
    assert "Why is it so?" in texts(seeds)
    assert len(seeds) > 100
    assert str(tmp_path / "a.txt.gz") in seeds.problems[0]
    (tmp_path / "c.zip").write_bytes(b"PK\x03\x04 no more")
    with pytest.raises(BaizeError, match=r"c\.zip: File is not a zip"):
        load_seeds(tmp_path / "c.zip")


@settings(max_examples=150, deadline=None)
@example(".csv", b"question,text\rWhy is it so?\r", b"")
@example(".tsv", b'question\n"a\n', b'b\n"c"d\n')
@given(
    st.sampled_from([".xml", ".json", ".jsonl", ".csv", ".tsv", ".txt", ".csv.gz", ".zip"]),
    st.sampled_from([b"", b"<posts><row ", b"question,text\n", b'{"items": [', b"<Document>"]),
    st.binary(max_size=300),
)
def test_no_bytes_whatever_make_a_reader_fail(tmp_path_factory, ending, start, rest):
    file = tmp_path_factory.mktemp("any") / f"file{ending}"
    file.write_bytes(start + rest)
    with contextlib.suppress(BaizeError):
        for seed in load_seeds(file):
            seed.text.encode("utf-8")


def test_a_row_with_too_many_fields_is_named_and_not_cut(tmp_path):
    (tmp_path / "q.csv").write_text(
        "id,question\n1,What is it, really, that makes bread rise?\n2,Why is it so?\n"
        '3,"Is it so, or not?"\n4,What is it called?,,\n'
    )
    seeds = load_seeds(tmp_path / "q.csv")
    assert texts(seeds) == ["Why is it so?", "Is it so, or not?", "What is it called?"]
    assert seeds.problems == [
        f"{tmp_path / 'q.csv'}:2: 4 fields, and the header has 2: put a text that holds a ',' in "
        "quotes"
    ]


def test_a_column_of_another_name_is_read_when_it_is_named(tmp_path):
    rows = [{"Frage": "Why is the sky blue?", "title": "Is this the title?"}, {"title": "No?"}]
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "q.csv").write_text("Frage;title\nWhy is the sky blue?;Is this the title?\n")
    parquet(tmp_path / "q.parquet", Frage=["Why is the sky blue?"], title=["Is this the title?"])
    for name in ("q.jsonl", "q.csv", "q.parquet"):
        assert texts(load_seeds(tmp_path / name, column="frage")) == ["Why is the sky blue?"]
    seeds = load_seeds(tmp_path / "q.jsonl", column="Frage")
    assert seeds.problems == [f"{tmp_path / 'q.jsonl'}:2: no field 'Frage' among title: name it, "
                              "column=…"]  # fmt: skip
    with pytest.raises(BaizeError, match="no field 'x' among frage, title"):
        load_seeds(tmp_path / "q.csv", column="x")
    (tmp_path / "Posts.xml").write_text(posts_xml(post(1, "A title?", body="What is the body?")))
    assert texts(load_seeds(tmp_path / "Posts.xml", column="Body")) == ["What is the body?"]


ASKED = ["Why is the sky blue?", "How do magnets work?", "What is a token?"]


@pytest.mark.parametrize(
    "text",
    [
        json.dumps([{"question": q} for q in ASKED]),
        json.dumps([{"question": q, "more": {"a": [1]}} for q in ASKED], indent=2),
        json.dumps({"data": [{"prompt": q} for q in ASKED]}, indent=1),
        json.dumps({"has_more": False, "items": [{"text": q} for q in ASKED]}),
        json.dumps([{"items": [{"title": q}]} for q in ASKED]),
        json.dumps(ASKED),
        "\n".join(json.dumps({"instruction": q, "input": "", "output": "x"}) for q in ASKED),
        "\n".join(json.dumps({"Question": q}, indent=4) for q in ASKED),
        "\n".join(map(json.dumps, ASKED)),
        "\ufeff" + json.dumps([{"query": q} for q in ASKED], ensure_ascii=False),
    ],
)
@pytest.mark.parametrize("ending", ["json", "jsonl"])
def test_json_is_read_however_it_is_laid_out(tmp_path, text, ending):
    (tmp_path / f"q.{ending}").write_text(text, encoding="utf-8")
    seeds = load_seeds(tmp_path / f"q.{ending}")
    assert texts(seeds) == ASKED
    assert not seeds.problems


def test_a_broken_item_of_a_list_is_named_with_its_line_and_those_before_it_are_kept(tmp_path):
    rows = [json.dumps({"question": f"Is {i} a prime number?"}) for i in range(20_000)]
    rows[19_000] = '{"question": oops, "more": {"a": 1}}'
    (tmp_path / "q.json").write_text("[" + ",\n".join(rows) + "]")
    seeds = load_seeds(tmp_path / "q.json")
    assert len(seeds) == 19_000
    [problem] = seeds.problems
    assert problem.startswith(f"{tmp_path / 'q.json'}:19001: Expecting value")
    assert "what follows it is not read" in problem


def test_a_long_list_streams(tmp_path):
    row = json.dumps({"question": "Is 1 a prime number?", "body": "x" * 3000})
    with (tmp_path / "q.json").open("w") as file:
        file.write("[" + ",\n".join([row] * 20_000) + "]")
    tracemalloc.start()
    assert sum(1 for _ in records.records(tmp_path / "q.json")) == 20_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2e6


@pytest.mark.parametrize(
    ("source", "options", "remedy"),
    [
        ("", {}, "no seeds called ''"),
        ("Why is the sky blue?", {}, "a list of questions"),
        (None, {}, "None is no list of questions"),
        (5, {}, "5 is no list"),
        ([5], {}, "item 1 of the list is 5"),
        ([], {}, "no question found"),
        ("general", {"limit": 0}, "limit=0"),
        ("general", {"limit": "5"}, "limit='5'"),
        ("general", {"near": 2}, "take one above 0"),
        ("general", {"language": "fr"}, "'fr'"),
    ],
)
def test_what_cannot_be_seeds_is_refused_by_name(source, options, remedy):
    with pytest.raises(BaizeError, match=re.escape(remedy)):
        load_seeds(source, **options)


def test_plain_questions_are_seeds(tmp_path):
    seeds = load_seeds([*ASKED, Seed("own", "Is it so, or not?", "me"), "Why"])
    assert texts(seeds) == [*ASKED, "Is it so, or not?"]
    assert seeds.dropped == {"too short (under 3 words)": 1}
    assert texts(clean(ASKED)) == ASKED
    assert len({seed.id for seed in seeds}) == 4
    with pytest.raises(BaizeError, match="put it in brackets"):
        clean(ASKED[0])


def test_utf16_and_old_line_ends_are_named(tmp_path):
    (tmp_path / "a.csv").write_text("question\nWhy is it so?\n", encoding="utf-16")
    (tmp_path / "b.csv").write_bytes(b"question\rWhy is it so?\r")
    for name, remedy in (("a.csv", "save it as UTF-8"), ("b.csv", "lines do not end")):
        with pytest.raises(BaizeError, match=remedy):
            load_seeds(tmp_path / name)


# Hugging Face data sets, through the library's own parquet reader.


def parquet(path, **columns):
    datasets = pytest.importorskip("datasets")
    path.parent.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_dict(columns).to_parquet(str(path))


def test_a_data_set_of_the_hub_is_streamed_as_parquet(tmp_path):
    parquet(tmp_path / "set" / "train-00000.parquet", question=["Why is it so?", "Is it so?", None])
    seeds = load_seeds(f"hf:{tmp_path / 'set'}")
    assert [(seed.id, seed.text) for seed in seeds] == [
        ("set-1", "Why is it so?"), ("set-2", "Is it so?"),
    ]  # fmt: skip
    assert seeds.problems == [f"hf:{tmp_path / 'set'} row 3: question is missing or not a text"]
    assert texts(load_seeds(tmp_path / "set" / "train-00000.parquet", 1)) == ["Why is it so?"]


def test_the_mirrors_read_what_their_columns_mean(tmp_path, monkeypatch):
    posts = {
        "Id": [4, 5, 6], "PostTypeId": [1, 2, 1], "Body": ["b"] * 3,
        "Title": ["How do I sort a list?", None, "Where does a stack begin?"],
    }  # fmt: skip
    parquet(tmp_path / "so" / "train.parquet", **posts)
    parquet(tmp_path / "med" / "train.parquet", question=["What is (are) Gout ?"])
    for name, folder in (("stackoverflow", "so"), ("medquad", "med")):
        local = sources.MIRRORS[name] | {"path": str(tmp_path / folder)}
        monkeypatch.setitem(sources.MIRRORS, name, local)
    seeds = load_seeds("hf:stackoverflow")
    assert [seed.id for seed in seeds] == ["stackoverflow-4", "stackoverflow-6"]
    assert seeds.dropped == {"a post that is not a question": 1}
    assert texts(load_seeds("hf:medquad")) == ["What is Gout?"]


def test_a_data_set_with_a_loading_script_is_refused_with_what_to_do(tmp_path):
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "old.py").write_text("raise SystemExit('this script ran')")
    with pytest.raises(BaizeError, match="parquet copy"):
        load_seeds(f"hf:{tmp_path / 'old'}")


# Cleaning, limits, mixing.


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Why", "too short (under 3 words)"),
        ("why " * 61, "too long (over 60 words)"),
        ("Is <b>this</b> bold enough?", "markup"),
        ("What is [math]x^2[/math] at two?", "markup"),
        ("See https://example.org for more, right?", "a link"),
        ("You should try turning it off and on.", "reads like an answer"),
        ("Edit: solved it with the second idea", "reads like an answer"),
        ("¿Cómo puedo aprender el idioma para viajar?", "another language"),
        ("Как мне выучить английский язык?", "another language"),
        ("如何用Python排序一个列表？", "another language"),
        ("What is \ufffd this here?", "broken characters"),
        ("Is there a\x00zero in it?", "broken characters"),
    ],
)
def test_a_bad_question_is_dropped_under_its_reason(text, reason):
    assert reason in RULES
    assert clean([Seed("1", text, "me")]).dropped == {reason: 1}


@pytest.mark.parametrize(
    "text",
    [
        "How do I center a <div>?",
        "Ruby `map` vs `each`",
        "Android ListView adapter crash",
        "My bread never rises in winter.",
        "👩‍💻 how do I start coding?",
        "Is `a && b` the same as `a and b`?",
        "How do I say “por favor” in Japanese?",
    ],
)
def test_a_good_question_of_any_shape_is_kept(text):
    assert texts(clean([Seed("1", f" {text}\n", "me")])) == [text]


def test_in_chinese_it_is_english_that_is_the_other_language():
    seeds = [Seed("1", "如何用Python排序一个列表？", "me"), Seed("2", "What is this about?", "me")]
    assert texts(clean(seeds, language="zh")) == ["如何用Python排序一个列表？"]
    with pytest.raises(BaizeError, match="'fr'"):
        clean(seeds, language="fr")


def test_case_and_end_marks_do_not_make_a_new_question_but_other_signs_do():
    same = ["What is C?", "what is  C ???", "WHAT IS C", "What is C++?", "What is C#?"]
    seeds = clean(Seed("x", text, "me") for text in same)
    assert texts(seeds) == ["What is C?", "What is C++?", "What is C#?"]
    assert len({seed.id for seed in seeds}) == 3


def test_near_duplicates_are_dropped_on_request_only():
    rows = ["How do I learn to swim fast in the sea?", "How do I learn to swim in the sea?"]
    seeds = [Seed(str(i), text, "me") for i, text in enumerate(rows)]
    assert len(clean(seeds)) == 2
    near = clean(seeds, near=0.8)
    assert texts(near) == rows[:1]
    assert near.dropped == {"near-duplicate": 1}


def test_questions_of_one_form_about_different_things_are_not_near_duplicates():
    drugs = [f"{a}{b}{c}" for a in "bcdfg" for b in ("axo", "ilo", "ume") for c in ("pin", "tol")]
    forms = ["How should {} be used and what is the dosage?", "What special precautions should I "
             "follow when I take {}?", "What are the side effects or risks of {}?"]  # fmt: skip
    asked = [form.format(drug) for form in forms for drug in drugs]
    again = "What is the dosage, and how should baxopin be used?"
    seeds = load_seeds([*asked, again], near=0.8)
    assert texts(seeds) == asked
    assert seeds.dropped == {"near-duplicate": 1}


@pytest.mark.skipif(not MEDQUAD.is_dir(), reason=f"no MedQuAD sample at {MEDQUAD}")
def test_hardly_any_question_of_medquad_is_a_near_duplicate_of_another():
    seeds = load_seeds(MEDQUAD, near=0.8)
    assert seeds.dropped["near-duplicate"] < 0.02 * len(seeds)


def test_a_limit_stops_the_reading(tmp_path):
    (tmp_path / "q.txt").write_text("".join(f"Is {i} a prime number?\n" for i in range(100)) + "x")
    seeds = load_seeds(tmp_path / "q.txt", 5)
    assert len(seeds) == 5
    assert not seeds.dropped
    with pytest.raises(BaizeError, match="limit=0"):
        load_seeds("general", 0)


def test_the_table_accounts_for_every_question(tmp_path):
    (tmp_path / "q.txt").write_text("Why is it so?\nwhy is it so\nWho?\n")
    table = load_seeds(tmp_path / "q.txt").table()
    assert table["questions"].sum() == 3
    assert list(table["outcome"]) == ["kept", "exact duplicate", "too short (under 3 words)"]
    assert list(table["share"]) == ["33.3%"] * 3


def test_an_unknown_source_names_the_ones_there_are(tmp_path):
    with pytest.raises(BaizeError, match=r"general.*hf:quora"):
        load_seeds("no-such-thing")
    (tmp_path / "x.7z").write_bytes(b"7z")
    with pytest.raises(BaizeError, match=r"\.7z"):
        load_seeds(tmp_path / "x.7z")
    (tmp_path / "empty").mkdir()
    with pytest.raises(BaizeError, match="no question found"):
        load_seeds(tmp_path / "empty")


@settings(max_examples=40, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(["general", "programming", "medical"]), st.floats(0.01, 5), min_size=1
    ),
    st.integers(1, 90),
    st.integers(0, 9),
)
def test_a_mix_has_its_size_and_shares_and_is_the_same_every_time(shares, num, seed):
    drawn = mix(shares, num, seed)
    assert len(drawn) == len({s.id for s in drawn}) == num
    assert list(drawn) == list(mix(shares, num, seed))
    counts = Counter(s.source.removeprefix("baize-course/") for s in drawn)
    for name, share in shares.items():
        assert abs(counts[name] - num * share / sum(shares.values())) < 1


def test_another_seed_draws_another_mix():
    assert list(mix({"general": 1}, 20, seed=1)) != list(mix({"general": 1}, 20, seed=2))


def test_a_mix_gives_a_shared_question_once_and_no_id_twice(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        rows = [f"Is {i} prime in set {name}?" for i in range(5)] + ["Why is it so?"]
        (tmp_path / name / "q.txt").write_text("\n".join(rows))
    drawn = mix({str(tmp_path / "a"): 1, str(tmp_path / "b"): 1}, 10)
    assert texts(drawn).count("Why is it so?") <= 1
    assert len({seed.id for seed in drawn}) == 10
    with pytest.raises(BaizeError, match="5 seeds and the mix needs 6"):
        mix({str(tmp_path / "a"): 1, str(tmp_path / "b"): 1}, 12)
    for share in (0, float("nan"), float("inf")):
        with pytest.raises(BaizeError, match="> 0"):
            mix({"general": 1, "medical": share}, 5)
    with pytest.raises(BaizeError, match="'general'"):
        mix("general", 5)
