"""Replies stop where they should, whoever else is in the batch, and adapters never mix."""

import functools
import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from baize_lib.chat.decode import _products
from baize_lib.chat.model import ChatModel, _end_tokens, _Writer
from baize_lib.config import BaizeError
from baize_lib.dialogue import TEMPLATE, Dialogue, Message
from baize_lib.models.base import load_base
from baize_lib.models.weights import quiet, student_dir
from baize_lib.training import lora
from baize_lib.training.fast_cpu import computing_by
from baize_lib.training.fit import fit
from baize_lib.training.settings import TrainingSettings

QUESTIONS = [
    [Message("user", "What is the capital of Tanzania?")],
    [Message("user", "Hi")],
    [
        Message("user", "Name a fruit."),
        Message("assistant", "An apple."),
        Message("user", "Now name another one, and tell me what colour it has."),
    ],
]


@pytest.fixture(scope="module")
def base():
    return load_base("smollm2-135m", "float32")


def write_adapter(folder, seed, card=None, config=None):
    """An adapter of the embedded model's shape with random weights, as PEFT would save it."""
    from peft import LoraConfig, get_peft_model
    from safetensors.torch import save_file
    from transformers import AutoConfig, LlamaForCausalLM

    with quiet(), torch.device("meta"):
        model = LlamaForCausalLM(config or AutoConfig.from_pretrained(student_dir("smollm2-135m")))
        peft = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "up_proj"]))
    torch.manual_seed(seed)
    weights = {
        name.replace(".default", ""): 0.05 * seed * torch.randn(p.shape)
        for name, p in peft.named_parameters()
        if p.requires_grad
    }
    folder.mkdir()
    save_file(weights, folder / "adapter_model.safetensors")
    peft.peft_config["default"].save_pretrained(folder)
    made = {"base_model": "smollm2-135m", "template": TEMPLATE, "language": "en"}
    card = made | {"precision": "float32"} | (card or {})
    (folder / "baize_run.json").write_text(json.dumps(card))
    return folder


@pytest.fixture(scope="module")
def adapters(tmp_path_factory):
    root = tmp_path_factory.mktemp("adapters")
    return {"tuned": write_adapter(root / "a", 1), "other": write_adapter(root / "b", 2)}


@pytest.fixture(scope="module")
def chat(base, adapters):
    return ChatModel(base, adapters)


GREEDY = {"temperature": 0, "max_tokens": 10}


def parts_of(chat, *asked, **sampling):
    return (text for text, _ in chat.follow(*asked, **sampling) if text)


@pytest.mark.parametrize("model", ["base", "tuned"])
def test_greedy_replies_of_a_batch_equal_those_given_one_by_one(chat, model):
    together = chat.replies(QUESTIONS, model, **GREEDY)
    alone = [chat.reply(question, model, **GREEDY) for question in QUESTIONS]
    assert [a.text for a in together] == [a.text for a in alone]
    assert [a.stopped_by for a in together] == [a.stopped_by for a in alone]


def test_sampled_replies_are_repeatable_and_do_not_depend_on_their_neighbours(chat):
    options = {"max_tokens": 8, "seed": 3}
    together = chat.replies(QUESTIONS, **options)
    assert chat.reply(QUESTIONS[1], **options).text == together[1].text
    assert chat.reply(QUESTIONS[1], **(options | {"seed": 4})).text != together[1].text


def test_the_parts_of_a_stream_make_up_the_reply(chat):
    parts = list(parts_of(chat, QUESTIONS[0], **GREEDY))
    assert "".join(parts) == chat.reply(QUESTIONS[0], **GREEDY).text
    assert len(parts) > 3


def test_the_cached_decoder_writes_what_the_whole_text_computed_anew_would(chat, base):
    from baize_lib.training.tokens import prompt_ids

    said = chat.reply(QUESTIONS[0], **GREEDY).text
    ids = prompt_ids(QUESTIONS[0], base.tokenizer)
    for _ in range(GREEDY["max_tokens"]):
        with torch.no_grad():
            ids.append(int(base.model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    start = len(prompt_ids(QUESTIONS[0], base.tokenizer))
    assert base.tokenizer.decode(ids[start:]).strip().startswith(said)


def test_a_model_is_asked_in_the_layout_its_adapter_was_trained_on(base, tmp_path):
    card = {"language": "zh", "settings": {"end_token": False}}
    chat = ChatModel(base, {"v1": write_adapter(tmp_path / "v1", 3, card)})
    asked = base.tokenizer.decode(chat._prompt(list(QUESTIONS[2]), 20, chat._layouts["v1"]))
    assert asked.startswith("人类与人工智能助手之间的对话。")
    assert "<|im_end|>" not in asked
    plain = base.tokenizer.decode(chat._prompt(list(QUESTIONS[2]), 20, chat._layouts["base"]))
    assert plain.count("<|im_end|>") == 1


def test_products_are_the_layers_own_with_the_adapter_added_and_only_while_it_writes(
    base, adapters
):
    attached = lora.attach(base, adapters["tuned"])
    packs = {}
    products = _products(base.model, attached, packs)
    layer = next(layer for layer, _ in products if attached in getattr(layer, "scaling", {}))
    rows = torch.randn(3, layer.in_features)
    lora.select(base, attached)
    with torch.no_grad():
        own = layer(rows)
        with computing_by(products):
            torch.testing.assert_close(layer(rows), own, rtol=1e-4, atol=1e-4)
        assert torch.equal(layer(rows), own)
        lora.select(base, None)
        plain = layer(rows)
        with computing_by(_products(base.model, None, packs)):
            torch.testing.assert_close(layer(rows), plain, rtol=1e-4, atol=1e-4)
    assert not [layer for layer, _ in products if "forward" in layer.__dict__]


@pytest.mark.parametrize("change", [{"use_dora": True}, {"lora_bias": True}, {"rank": 3}])
def test_an_adapter_that_is_more_than_two_matrices_is_left_to_peft(change):
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "vocab_size": 32}
    model = LlamaForCausalLM(LlamaConfig(num_attention_heads=2, num_key_value_heads=2, **sizes))
    options = {k: v for k, v in change.items() if k != "rank"}
    peft = get_peft_model(model, LoraConfig(target_modules=["q_proj"], **options))
    assert bool(_products(peft, "default", {})) == ("rank" in change)


def test_packed_weights_follow_the_weights_they_were_made_of(base):
    chat = ChatModel(base)
    before = chat.reply("Hi", **GREEDY).text
    weight = base.model.model.layers[5].mlp.up_proj.weight
    kept = weight.detach().clone()
    with torch.no_grad():
        weight.mul_(-3)
        changed = chat.reply("Hi", **GREEDY).text
        weight.copy_(kept)
    assert changed != before
    assert chat.reply("Hi", **GREEDY).text == before


def test_threads_on_one_base_never_see_each_others_adapter(base, adapters):
    """Two chat models and six threads on one copy of the weights, streamed and in batches."""
    from concurrent.futures import ThreadPoolExecutor

    chats = [ChatModel(base, adapters), ChatModel(base, adapters)]
    work = [(i, model) for i in range(3) for model in ("base", "tuned", "other", "own layout")]
    expected = {w: chats[0].reply(QUESTIONS[w[0]], w[1], **GREEDY).text for w in work}

    def ask(number):
        i, model = work[number % len(work)]
        if number % 2:
            said = "".join(parts_of(chats[number % 2], QUESTIONS[i], model, **GREEDY))
        else:
            said = chats[number % 2].replies([QUESTIONS[i]], model, **GREEDY)[0].text
        return said == expected[i, model]

    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(ask, range(2 * len(work))))


def test_a_question_may_be_a_plain_text(chat):
    plain, message = (chat.reply(asked, **GREEDY).text for asked in ("Hi", QUESTIONS[1]))
    assert plain == message
    assert [a.text for a in chat.replies(["Hi", "Hi"], **GREEDY)] == [plain] * 2


@pytest.mark.parametrize("asked", [None, 7, ["hello"], [{"role": "user"}]])
def test_what_is_no_question_is_refused_by_name(chat, asked):
    with pytest.raises(BaizeError, match="a question is a text or a list of Message"):
        chat.reply(asked)


@pytest.mark.parametrize(
    "sampling",
    [{"max_tokens": 0}, {"temperature": -1}, {"temperature": float("nan")}, {"top_p": 0}],
)
def test_sampling_that_cannot_be_is_refused(chat, sampling):
    with pytest.raises(BaizeError, match="must be at least 1"):
        chat.reply("Hi", **sampling)


def test_half_a_character_in_a_question_is_no_error(chat):
    assert chat.reply("Hi \ud83d", **GREEDY).num_tokens


def test_replies_come_in_the_order_of_the_questions(chat):
    asked = ["Tell me about " + "many " * n + "things." for n in (9, 1, 5)]
    together = [a.text for a in chat.replies(asked, **GREEDY)]
    assert together == [chat.reply(q, **GREEDY).text for q in asked]


def test_the_own_layout_is_the_template_the_weights_were_tuned_with(chat, base):
    asked = base.tokenizer.decode(chat._prompt(list(QUESTIONS[1]), 10, None))
    rows = [{"role": "user", "content": "Hi"}]
    own = base.tokenizer.apply_chat_template(rows, tokenize=False, add_generation_prompt=True)
    assert asked == own
    assert "[|Human|]" not in asked
    assert chat.reply("Hi", "own layout", **GREEDY).text != chat.reply("Hi", **GREEDY).text


def test_a_base_without_a_template_of_its_own_says_so(base, monkeypatch):
    monkeypatch.setattr(base.tokenizer, "chat_template", None)
    with pytest.raises(BaizeError, match="tuned for no chat layout: ask it as 'base'"):
        ChatModel(base).reply("Hi", "own layout")


def test_base_and_adapters_answer_differently_from_one_copy_of_the_weights(chat, base, adapters):
    alone = {name: ChatModel(base, {name: adapters[name]}) for name in adapters}
    models = ("base", "tuned", "other")
    texts = {model: chat.reply(QUESTIONS[0], model, **GREEDY).text for model in models}
    assert len(set(texts.values())) == 3
    for name, model in alone.items():
        assert model.reply(QUESTIONS[0], name, **GREEDY).text == texts[name]
    weights = {p.data_ptr(): p.numel() for p in base.model.parameters()}
    assert sum(weights.values()) < 1.02 * 134_515_008


def test_two_streams_may_take_turns_without_mixing(chat):
    streams = {name: parts_of(chat, QUESTIONS[0], name, **GREEDY) for name in ("base", "tuned")}
    said = dict.fromkeys(streams, "")
    for _ in range(10):
        for name, stream in streams.items():
            said[name] += next(stream, "")
    for name, text in said.items():
        assert text == chat.reply(QUESTIONS[0], name, **GREEDY).text


def test_after_a_reply_the_base_is_itself_again(chat, base):
    ids = torch.tensor([[1, 2, 3]])
    with torch.no_grad():
        before = base.model(input_ids=ids).logits
        chat.reply(QUESTIONS[1], "tuned", **GREEDY)
        assert torch.equal(base.model(input_ids=ids).logits, before)


def test_training_on_a_base_in_use_takes_the_adapters_off_and_they_come_back(chat, base, tmp_path):
    expected = chat.reply(QUESTIONS[1], "tuned", **GREEDY).text
    talk = Dialogue((Message("user", "a"), Message("assistant", "b")))
    settings = TrainingSettings(num_epochs=1, rank=1, targets=("q_proj",))
    fit(base, [talk, talk], [], tmp_path / "new", settings)
    assert chat.reply(QUESTIONS[1], "tuned", **GREEDY).text == expected
    assert ChatModel(base, {"new": tmp_path / "new"}).reply(QUESTIONS[1], "new", **GREEDY).text
    lora.detach(base)
    assert not any("lora" in name for name, _ in base.model.named_modules())


# --- stopping

STOPS = ("[|Human|]", "[|AI|]")


def write(base, text, end=False, max_tokens=99):
    writer = _Writer(base.tokenizer, (_end_tokens(base), STOPS), [], max_tokens, None)
    shown = []
    for token in [*base.tokenizer(text).input_ids, *([base.tokenizer.eos_token_id] * end)]:
        if not writer.stopped_by:
            writer.write(token)
            shown.append(writer.settled())
    return writer.answer(), shown


def test_a_reply_stops_at_the_end_token(base):
    answer, _ = write(base, " Dodoma.", end=True)
    assert (answer.text, answer.stopped_by) == ("Dodoma.", "end")


def test_a_reply_stops_at_a_tag_however_it_falls_into_tokens(base):
    for tag in ("[|Human|]", "[|AI|]"):
        assert len(base.tokenizer(tag).input_ids) > 1
        answer, shown = write(base, f" Dodoma.\n{tag} And where is it?")
        assert (answer.text, answer.stopped_by) == ("Dodoma.", "tag")
        assert set(shown) <= {"", "D", "Dod", "Dodoma", "Dodoma."}


def test_a_reply_stops_at_the_length_allowed(base):
    answer, _ = write(base, " one two three four five", max_tokens=3)
    assert (answer.text, answer.stopped_by, answer.num_tokens) == ("one two three", "length", 3)


def test_a_reply_stops_at_a_text_of_the_askers_own(chat):
    whole = chat.reply(QUESTIONS[0], **GREEDY).text
    stop = whole[5:9]
    answer = chat.reply(QUESTIONS[0], stop=[stop], **GREEDY)
    assert answer.text == whole[: whole.index(stop)].strip()
    assert answer.stopped_by == "tag"
    assert "".join(parts_of(chat, QUESTIONS[0], stop=[stop], **GREEDY)) == answer.text


@functools.cache
def tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(student_dir("smollm2-135m"))


@settings(deadline=None)
@given(st.text(st.sampled_from("a[|HumanAI] \n坦😀"), max_size=30))
def test_what_a_stream_has_shown_is_never_taken_back(text):
    writer = _Writer(tokenizer(), (set(), STOPS), [], 10**6, None)
    shown = ""
    for token in writer.tokenizer(text).input_ids:
        if not writer.stopped_by:
            writer.write(token)
            assert writer.settled().startswith(shown)
            shown = writer.settled()
    assert writer.answer().text.startswith(shown)


# --- history and refusals


def test_history_is_kept_within_the_context_by_whole_turns(base):
    turn = [Message("user", "Why? " * 20), Message("assistant", "Because. " * 20)]
    talk = [Message("system", "Be kind."), *turn * 5, Message("user", "And now?")]
    chat = ChatModel(base)
    chat.context = 150
    text = base.tokenizer.decode(chat._prompt(talk, 20, chat._layouts["base"]))
    assert text.startswith("Be kind.\n[|Human|] Why?")
    assert text.endswith("[|Human|] And now?\n[|AI|]")
    assert text.count("Because. " * 19) == text.count("Why? " * 19) == 1


def test_a_question_that_cannot_fit_is_refused_with_what_to_do(base):
    chat = ChatModel(base)
    chat.context = 60
    with pytest.raises(BaizeError, match="exceeds the context of 60: shorten it"):
        chat.reply([Message("user", "why " * 60)], max_tokens=10)


def test_an_unknown_model_is_refused_with_the_known_ones(chat):
    with pytest.raises(
        BaizeError, match="'best' is not loaded: use one of base, own layout, tuned, other"
    ):
        chat.reply(QUESTIONS[0], "best")


@pytest.mark.parametrize(
    ("card", "says"),
    [
        (
            {"base_model": "huggyllama/llama-7b"},
            "with base 'huggyllama/llama-7b' and this is 'smollm2-135m'",
        ),
        ({"template": "baize-v1"}, f"template 'baize-v1'.*{TEMPLATE!r}".replace("+", r"\+")),
    ],
)
def test_an_adapter_of_another_base_or_template_is_refused_naming_both(base, tmp_path, card, says):
    with pytest.raises(BaizeError, match=says):
        ChatModel(base, {"tuned": write_adapter(tmp_path / "x", 5, card)})


def test_a_folder_without_a_card_is_refused(base, tmp_path):
    folder = write_adapter(tmp_path / "x", 1)
    (folder / "baize_run.json").unlink()
    with pytest.raises(BaizeError, match="has no baize_run.json"):
        ChatModel(base, {"tuned": folder})


def test_an_adapter_whose_weights_do_not_fit_is_refused(base, tmp_path):
    config = replace_config(hidden_size=288)
    with pytest.raises(BaizeError, match="does not fit"):
        ChatModel(base, {"tuned": write_adapter(tmp_path / "x", 1, config=config)})


def replace_config(**changes):
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(student_dir("smollm2-135m"))
    for name, value in changes.items():
        setattr(config, name, value)
    return config
