"""Handing a chatbot on: the layout travels, a merge is a copy, the same bot answers everywhere."""

import asyncio
import copy
import json
import shutil
import threading
import urllib.request
from collections import namedtuple

import openai
import pandas
import pytest
import torch
import xllamacpp
from aiohttp import web
from hypothesis import given, settings
from hypothesis import strategies as st
from test_train import FAST, TALKS, TOKENIZER, fit, replace, tiny_base
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from baize_lib.chat import share
from baize_lib.chat.gguf import export_gguf
from baize_lib.chat.model import ChatModel
from baize_lib.chat.share import dataset_card, merge, model_card, push
from baize_lib.config import BaizeError, Run, data_dir
from baize_lib.dialogue import LANGUAGES, Message, render
from baize_lib.files import write_jsonl
from baize_lib.models.base import load_base
from baize_lib.training.lora import attach
from baize_lib.training.tokens import encode_all, prompt_ids, save_layout

RECORDED = data_dir() / "adapter"
LENGTH = 24  # tokens of a reply that are compared


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "adapter"
    fit(tiny_base(), TALKS, TALKS[:2], folder, FAST)
    return folder


@pytest.fixture(scope="module")
def base():
    return load_base("smollm2-135m", "float32")


@pytest.fixture(scope="module")
def merged(base, tmp_path_factory):
    return merge(base, RECORDED, tmp_path_factory.mktemp("recorded") / "merged")


# --- the layout travels

contents = st.text(st.characters(blacklist_categories=["Cs"]), max_size=20)
talks = st.lists(contents, min_size=1, max_size=5)


def rows(messages):
    return [{"role": message.role, "content": message.content} for message in messages]


def ours(language):
    tokenizer = copy.deepcopy(TOKENIZER)
    from baize_lib.training.tokens import chat_template

    tokenizer.chat_template = chat_template(TOKENIZER, language)
    return tokenizer


SPEAKING = {language: ours(language) for language in LANGUAGES}


@settings(deadline=None)
@given(talks, st.booleans(), st.sampled_from(LANGUAGES))
def test_the_chat_template_gives_what_render_gives_token_for_token(said, system, language):
    roles = ("user", "assistant")
    messages = [Message(roles[i % 2], text) for i, text in enumerate(said)]
    messages = [Message("system", "Be kind.\n"), *messages] if system else messages
    asks = len(said) % 2 == 1
    tokenizer = SPEAKING[language]
    text = tokenizer.apply_chat_template(rows(messages), tokenize=False, add_generation_prompt=asks)
    assert text == render(messages, eos=tokenizer.eos_token, language=language, open_reply=asks)
    if asks:
        ids = tokenizer.apply_chat_template(rows(messages), add_generation_prompt=True)
        assert list(ids["input_ids"]) == prompt_ids(messages, tokenizer, language)


def test_the_template_refuses_roles_that_do_not_alternate():
    with pytest.raises(Exception, match="roles must alternate"):
        SPEAKING["en"].apply_chat_template([{"role": "assistant", "content": "a"}])


def test_without_end_tokens_the_template_writes_none(tmp_path):
    save_layout(tmp_path, TOKENIZER, "en", end_token=False)
    talk = [Message("user", "a"), Message("assistant", "b")]
    text = AutoTokenizer.from_pretrained(tmp_path).apply_chat_template(rows(talk), tokenize=False)
    assert text == render(talk)


def test_an_adapters_folder_carries_its_layout(adapter):
    tokenizer = AutoTokenizer.from_pretrained(adapter)
    asked = [Message("user", "Why?")]
    text = tokenizer.apply_chat_template(rows(asked), tokenize=False, add_generation_prompt=True)
    assert text == render(asked, open_reply=True)
    told = GenerationConfig.from_pretrained(adapter)
    assert told.eos_token_id == TOKENIZER.eos_token_id
    assert told.stop_strings == ["[|Human|]", "[|AI|]"]


# --- merging


def test_a_merged_model_gives_the_tuned_models_logits(adapter, tmp_path):
    from peft import PeftModel

    ids = torch.tensor([encode_all(TALKS[:1], tiny_base().tokenizer, FAST)[0][0].input_ids])
    tuned = PeftModel.from_pretrained(tiny_base().model, adapter).eval()
    with torch.no_grad():
        expected = tuned(ids).logits
        merged = AutoModelForCausalLM.from_pretrained(merge(tiny_base(), adapter, tmp_path / "m"))
        assert torch.allclose(merged(ids).logits, expected, atol=1e-4)


@pytest.mark.parametrize("chatting", [False, True])
def test_merging_never_touches_the_base_in_memory(adapter, tmp_path, chatting):
    base = tiny_base()
    if chatting:
        attach(base, adapter)
    before = {name: p.detach().clone() for name, p in base.model.named_parameters()}
    merge(base, adapter, tmp_path / "m")
    after = dict(base.model.named_parameters())
    assert before.keys() == after.keys()
    assert all(torch.equal(p, after[name]) for name, p in before.items())


@pytest.mark.parametrize("chatting", [False, True])
def test_a_merge_copies_every_tensor_to_main_memory_and_none_beside_the_base(
    adapter, tmp_path, chatting, monkeypatch
):
    def on_its_own_device(*_):
        raise AssertionError("a tensor was copied where the base is")

    base = tiny_base()
    if chatting:
        attach(base, adapter)
    monkeypatch.setattr(torch.nn.Parameter, "__deepcopy__", on_its_own_device)
    monkeypatch.setattr(torch.Tensor, "__deepcopy__", on_its_own_device)
    merge(base, adapter, tmp_path / "m")


def test_merging_again_replaces_a_merged_model_and_nothing_else(adapter, tmp_path):
    merge(tiny_base(), adapter, tmp_path / "m")
    merge(tiny_base(), adapter, tmp_path / "m")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(BaizeError, match="holds other files: choose a new folder"):
        merge(tiny_base(), adapter, tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m", "mine"]


def test_merging_into_another_base_or_a_quantised_one_is_refused(adapter, tmp_path):
    other = tiny_base("other")
    merge(other, adapter, tmp_path / "m")  # the same weights, whatever they are called
    with torch.no_grad():
        other.model.model.norm.weight.mul_(2)
    with pytest.raises(BaizeError, match="for 'tiny', not 'other'"):
        merge(other, adapter, tmp_path / "m")
    with pytest.raises(BaizeError, match=r"base in nf4: load it in full.*load_base\('tiny'"):
        merge(replace(tiny_base(), precision="nf4"), adapter, tmp_path)


def test_a_disk_too_small_is_seen_before_anything_is_written(adapter, tmp_path, monkeypatch):
    merged = merge(tiny_base(), adapter, tmp_path / "m")
    usage = namedtuple("usage", "free")(1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    for write in (
        lambda: merge(tiny_base(), adapter, tmp_path / "more"),
        lambda: export_gguf(merged, tmp_path / "more"),
    ):
        with pytest.raises(BaizeError, match="its disk has 0 free: make room"):
            write()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m"]


def test_a_merge_that_breaks_off_leaves_the_earlier_one(adapter, tmp_path, monkeypatch):
    merged = merge(tiny_base(), adapter, tmp_path / "m")
    before = (merged / "model.safetensors").read_bytes()
    monkeypatch.setattr(share, "save_layout", lambda *_: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        merge(tiny_base(), adapter, tmp_path / "m")
    assert (merged / "model.safetensors").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


# --- the same replies everywhere

QUESTIONS = [
    "What is the capital of Tanzania?", "Name three fruits.", "How do I boil an egg?",
    "Why is the sky blue?", "What is LoRA?", "Write a haiku about rain.",
    "How do I save data to a JSON file in Python?", "Is 17 a prime number?",
    "My dog is bored. What can I do?", "你好，你是谁？",
]  # fmt: skip


@pytest.fixture(scope="module")
def plain(merged):
    """Ten replies of plain transformers, and the merged model that gave them."""
    tokenizer = AutoTokenizer.from_pretrained(merged)
    model = AutoModelForCausalLM.from_pretrained(merged)
    said = []
    for question in QUESTIONS:
        ids = tokenizer.apply_chat_template(
            rows([Message("user", question)]), add_generation_prompt=True, return_tensors="pt"
        )
        with torch.no_grad():
            out = model.generate(**ids, tokenizer=tokenizer, max_new_tokens=LENGTH)
        said.append(out[0, ids["input_ids"].shape[1] :].tolist())
    return model, tokenizer, said


def text_of(ids):
    return TOKENIZER.decode(ids, skip_special_tokens=True).split("[|")[0].strip()


def close_call(plain, question, ours, theirs, within):
    """Whether two replies are one, or part where the likeliest two tokens are about as likely."""
    model, tokenizer, _ = plain
    if ours == theirs:
        return True
    ids = prompt_ids([Message("user", question)], tokenizer)
    at = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), None)
    if at is None:  # one goes on where the other ended
        return False
    with torch.no_grad():
        logits = model(torch.tensor([ids + ours[:at]])).logits[0, -1]
    return abs(logits[ours[at]] - logits[theirs[at]]) < within


def test_chat_model_and_merged_model_reply_alike(base, plain):
    chat = ChatModel(base, {"tuned": RECORDED})
    replies = chat.replies(QUESTIONS, "tuned", max_tokens=LENGTH, temperature=0)
    assert [reply.text for reply in replies] == list(map(text_of, plain[2]))


def llama_server(file):
    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.n_parallel = str(file), 2048, 1
    params.hostnames, params.port, params.use_jinja = ["127.0.0.1"], 0, True
    params.cpuparams.n_threads, params.verbosity, params.ui = 1, 0, False
    return xllamacpp.Server(params)


def ask_llama(server, path, body):
    request = urllib.request.Request(
        f"{server.listening_address}{path}", json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )  # fmt: skip
    return json.load(urllib.request.urlopen(request))


# how far apart two likeliest tokens may be where rounding to the format parts the replies, and how
# many of ten replies are equal at least; 16 bits hold neither the base's weights nor the tuned ones
@pytest.mark.parametrize(
    ("quant", "within", "least"), [("f32", 0, 10), ("f16", 0.05, 9), ("q8_0", 1.0, 4)]
)
def test_llama_cpps_own_server_gives_the_same_replies(
    merged, plain, tmp_path, quant, within, least
):
    file = export_gguf(merged, tmp_path / "bot.gguf", quant)
    server = llama_server(file)
    client = openai.OpenAI(base_url=f"{server.listening_address}/v1", api_key="none")
    tokenizer, equal = plain[1], 0
    for question, theirs in zip(QUESTIONS, plain[2], strict=True):
        asked = rows([Message("user", question)])
        prompt = ask_llama(server, "/apply-template", {"messages": asked})["prompt"]
        assert prompt == render([Message("user", question)], open_reply=True)
        ids = ask_llama(server, "/tokenize", {"content": prompt, "parse_special": True})["tokens"]
        assert ids == prompt_ids([Message("user", question)], tokenizer)
        reply = client.chat.completions.create(
            model="bot", messages=asked, max_tokens=LENGTH, temperature=0,
            stop=["[|Human|]", "[|AI|]"],
        ).choices[0].message.content.strip()  # fmt: skip
        body = {"prompt": ids, "n_predict": LENGTH, "temperature": 0, "return_tokens": True}
        raw = ask_llama(server, "/completion", body)
        said = [id for id in raw["tokens"] if id != tokenizer.eos_token_id]
        said += [tokenizer.eos_token_id] * (raw["stop_type"] == "eos")
        assert reply == text_of(said)
        equal += reply == text_of(theirs)
        assert close_call(plain, question, said, theirs, within), question
    assert equal >= least
    file.unlink()  # up to half a gigabyte


def test_a_gguf_is_half_or_a_quarter_of_the_safetensors_and_a_modelfile_lies_beside(
    merged, tmp_path
):
    size = (merged / "model.safetensors").stat().st_size
    for quant, share_of_it in (("f16", 0.5), ("q8_0", 0.27)):
        file = export_gguf(merged, tmp_path / f"{quant}.gguf", quant)
        assert file.stat().st_size == pytest.approx(share_of_it * size, rel=0.05)
    text = (tmp_path / "Modelfile").read_text(encoding="utf-8")
    assert "FROM ./q8_0.gguf" in text
    assert 'PARAMETER stop "[|Human|]"' in text
    assert "$" not in text
    assert sorted(p.name for p in tmp_path.iterdir()) == ["Modelfile", "f16.gguf", "q8_0.gguf"]


def test_a_qwen2_with_its_biases_is_written_so_that_llama_cpp_agrees(tmp_path):
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(1)
    config = Qwen2Config(
        vocab_size=len(TOKENIZER), hidden_size=64, intermediate_size=96, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=False,
        eos_token_id=TOKENIZER.eos_token_id, bos_token_id=None, initializer_range=0.3,
    )  # fmt: skip
    model = Qwen2ForCausalLM(config).eval()
    for layer in model.model.layers:
        for part in (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj):
            torch.nn.init.normal_(part.bias)
    model.save_pretrained(tmp_path / "m")
    save_layout(tmp_path / "m", TOKENIZER)
    (tmp_path / "m" / "baize_run.json").write_text("{}")
    server = llama_server(export_gguf(tmp_path / "m", tmp_path / "q.gguf", "f32"))
    ids = TOKENIZER("one two three four").input_ids
    with torch.no_grad():
        likeliest = model(torch.tensor([ids])).logits[0, -1].log_softmax(-1).topk(5)
    got = ask_llama(
        server, "/completion", {"prompt": ids, "n_predict": 1, "n_probs": 5, "temperature": 0}
    )["completion_probabilities"][0]["top_logprobs"]
    assert [row["id"] for row in got] == likeliest.indices.tolist()
    torch.testing.assert_close(
        torch.tensor([row["logprob"] for row in got]), likeliest.values, atol=0.02, rtol=0
    )


def test_what_cannot_be_written_as_gguf_is_refused_by_name(merged, tmp_path):
    with pytest.raises(BaizeError, match="'q2' is unknown: use one of f32, f16, q8_0"):
        export_gguf(merged, tmp_path / "x", "q2")
    with pytest.raises(BaizeError, match="no merged model: make one with chat.merge"):
        export_gguf(tmp_path, tmp_path / "x")
    other = tmp_path / "other"
    shutil.copytree(merged, other)
    config = json.loads((other / "config.json").read_text())
    for change in (
        {"architectures": ["GemmaForCausalLM"]},
        {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}},
    ):
        (other / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(BaizeError, match="is not written here: convert the merged folder"):
            export_gguf(other, tmp_path / "x")
    assert not (tmp_path / "x").exists()


# --- cards


def run_of(tmp_path, adapter, teacher="qwen-1.5b", sources=("baize-course/general",)):
    run = Run(tmp_path / "laptop")
    shutil.copytree(adapter, run.adapter_dir)
    (run.path / "run.json").write_text(json.dumps({"tier": {"teacher": teacher}}))
    talk = rows([Message("user", "a"), Message("assistant", "b")])
    write_jsonl(run.train_file, [{"messages": talk, "source": s} for s in sources])
    write_jsonl(run.validation_file, [{"messages": talk, "source": sources[0]}])
    card = {"kept": 42, "dropped": {"loop": 3, "empty": 4}, "corpus_hash": "abc"}
    (run.corpus_dir / "card.json").write_text(json.dumps(card))
    return run


def test_the_model_card_tells_the_runs_own_figures_and_the_layout(adapter, tmp_path):
    run = run_of(tmp_path, adapter)
    scores = pandas.DataFrame({"check": ["fact|s"], "tuned": [0.5]})
    card = model_card(run.adapter_dir, run, scores=scores)
    assert "base_model: tiny" in card
    assert "`qwen-1.5b` had with itself" in card
    assert " before, " in card
    assert "42 dialogues kept, 7 dropped" in card
    assert "| fact\\|s | 0.50 |" in card
    assert render([Message("user", "What is LoRA?")], open_reply=True) in card
    assert "| seeds | baize-course/general | CC BY 4.0 | yes |" in card
    assert (run.adapter_dir / "README.md").read_text(encoding="utf-8") == card


def test_a_merged_models_card_says_so(adapter, tmp_path):
    card = model_card(merge(tiny_base(), adapter, tmp_path / "m"))
    assert "library_name: transformers" in card
    assert "merged into `tiny`" in card


@pytest.mark.parametrize(
    ("teacher", "sources", "says"),
    [
        ("smollm2-135m", [], "| teacher | smollm2-135m | Apache-2.0 | yes |"),
        ("gpt-4.1-nano", [], "| teacher | gpt-4.1-nano | OpenAI's terms of use | ask |"),
        ("my-own-model", [], "| teacher | my-own-model | unknown here | ask |"),
        ("x", ["hf:stackoverflow"], "| seeds | hf:stackoverflow | CC BY-SA | ask |"),
        ("x", ["hf:quora"], "| seeds | hf:quora | Quora's terms"),
        ("x", ["my.txt"], "| seeds | my.txt | unknown here | ask |"),
    ],
)
def test_the_licence_question_is_answered_for_this_very_run(
    adapter, tmp_path, teacher, sources, says
):
    run = run_of(tmp_path, adapter, teacher, sources or ["baize-course/medical"])
    assert says in model_card(run.adapter_dir, run)
    assert says in dataset_card(run)


def test_the_dataset_card_counts_what_is_in_the_files(adapter, tmp_path):
    run = run_of(tmp_path, adapter, sources=["baize-course/general", "baize-course/medical"])
    card = dataset_card(run)
    assert "2 for training, 1 held out" in card
    assert "| dropped: loop | 3 |" in card
    assert (run.corpus_dir / "README.md").is_file()


def test_a_card_of_nothing_is_refused(tmp_path):
    with pytest.raises(BaizeError, match="neither an adapter nor a merged model"):
        model_card(tmp_path)
    with pytest.raises(BaizeError, match="has no corpus yet: notebook 03 makes one"):
        dataset_card(Run(tmp_path))


# --- the hub: real client code against a stand-in for the hub's API


class Hub:
    """What the hub's API answers when a repository is made and files are committed to it."""

    def __init__(self):
        self.repositories, self.files, self.blobs, self.tokens = {}, {}, {}, set()
        began = threading.Event()
        threading.Thread(target=lambda: asyncio.run(self.serve(began)), daemon=True).start()
        assert began.wait(10)

    async def serve(self, began):
        app = web.Application(client_max_size=1 << 30)
        app.add_routes([
            web.post("/api/repos/create", self.create),
            web.post("/api/{kind}s/{who}/{name}/preupload/{revision}", self.preupload),
            web.post("/{repo:.+}.git/info/lfs/objects/batch", self.lfs),
            web.put("/blob/{sha}", self.put),
            web.post("/api/{kind}s/{who}/{name}/commit/{revision}", self.commit),
            web.post("/api/validate-yaml", self.fine),
            web.get("/api/{kind}s/{who}/{name}", self.about),
            web.get("/api/{kind}s/{who}/{name}/revision/{revision}", self.about),
        ])  # fmt: skip
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.address = f"http://127.0.0.1:{runner.addresses[0][1]}"
        began.set()
        await asyncio.Event().wait()

    async def create(self, request):
        self.tokens.add(request.headers.get("Authorization"))
        if request.headers.get("Authorization") != "Bearer hf_good":
            return web.json_response({"error": "Invalid username or password."}, status=401)
        asked = await request.json()
        name = f"{asked.get('organization') or 'you'}/{asked['name']}"
        self.repositories[name] = asked
        return web.json_response({"url": f"{self.address}/{name}", "name": name})

    async def preupload(self, request):
        files = (await request.json())["files"]
        kinds = ["lfs" if f["size"] > 100_000 else "regular" for f in files]
        told = zip(files, kinds, strict=True)
        return web.json_response(
            {
                "files": [
                    {"path": f["path"], "uploadMode": k, "shouldIgnore": False} for f, k in told
                ]
            }
        )

    async def lfs(self, request):
        asked = await request.json()
        objects = [
            {
                "oid": o["oid"], "size": o["size"],
                "actions": {"upload": {"href": f"{self.address}/blob/{o['oid']}", "header": {}}},
            }
            for o in asked["objects"]
        ]  # fmt: skip
        return web.json_response(
            {"transfer": "basic", "objects": objects}, content_type="application/vnd.git-lfs+json"
        )

    async def put(self, request):
        self.blobs[request.match_info["sha"]] = await request.read()
        return web.Response()

    async def commit(self, request):
        import base64

        name = f"{request.match_info['who']}/{request.match_info['name']}"
        for line in (await request.text()).splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                data = base64.b64decode(value["content"])
                self.files[request.match_info["kind"], name, value["path"]] = data
            elif entry["key"] == "lfsFile":
                self.files[request.match_info["kind"], name, value["path"]] = self.blobs[
                    value["oid"]
                ]
        url = f"{self.address}/{name}/commit/{'0' * 40}"
        return web.json_response({"commitUrl": url, "commitOid": "0" * 40, "success": True})

    async def fine(self, request):
        return web.json_response({"errors": [], "warnings": []})

    async def about(self, request):
        name = f"{request.match_info['who']}/{request.match_info['name']}"
        return web.json_response({"id": name, "sha": "0" * 40, "private": True, "siblings": []})


@pytest.fixture(scope="module")
def hub():
    return Hub()


@pytest.fixture
def at_hub(hub, monkeypatch):
    monkeypatch.setattr(share, "_HUB", hub.address)
    monkeypatch.setenv("HF_TOKEN", "hf_good")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)  # the stand-in is here
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    return hub


def test_adapter_merged_model_and_dataset_arrive_whole_and_private(at_hub, adapter, tmp_path):
    run = run_of(tmp_path, adapter)
    merged = merge(tiny_base(), adapter, tmp_path / "m")
    model_card(run.adapter_dir, run)
    model_card(merged, run)
    dataset_card(run)
    for folder, name, kind in (
        (run.adapter_dir, "you/bot-lora", "model"),
        (merged, "you/bot", "model"),
        (run.corpus_dir, "you/dialogues", "dataset"),
    ):
        address = push(folder, name, kind=kind)
        assert address.endswith(name)
        assert at_hub.repositories[name].get("private") is True or (
            at_hub.repositories[name].get("visibility") == "private"
        )
        sent = {path: data for (k, repo, path), data in at_hub.files.items() if repo == name}
        here = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*.*")}
        assert sent == here
        assert {k for k, repo, _ in at_hub.files if repo == name} == {kind}


def test_a_folder_without_a_card_is_not_uploaded(at_hub, tmp_path):
    with pytest.raises(BaizeError, match="no README.md: write it with model_card or dataset_card"):
        push(tmp_path, "you/bot")


@pytest.mark.parametrize("token", ["hf_marked_token", ""])
def test_an_upload_that_fails_says_what_to_do_and_shows_no_token(
    at_hub, adapter, tmp_path, monkeypatch, token
):
    monkeypatch.setenv("HF_TOKEN", token)
    run = run_of(tmp_path, adapter)
    model_card(run.adapter_dir, run)
    with pytest.raises(BaizeError, match="hf auth login") as refused:
        push(run.adapter_dir, "someone/chatbot")
    assert "marked" not in str(refused.value)


def test_without_a_network_an_upload_says_what_to_do(adapter, tmp_path, monkeypatch):
    monkeypatch.setattr(share, "_HUB", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_TOKEN", "hf_good")
    run = run_of(tmp_path, adapter)
    model_card(run.adapter_dir, run)
    with pytest.raises(BaizeError, match="check the name and the connection"):
        push(run.adapter_dir, "someone/chatbot")
