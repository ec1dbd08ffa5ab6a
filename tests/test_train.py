"""Every token counts once: masks, batches, checkpoints and adapters are what they claim to be."""

import contextlib
import json
import signal
import subprocess
import sys
import textwrap
import weakref
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from baize_lib.config import BaizeError
from baize_lib.dialogue import Dialogue, Message
from baize_lib.models.base import Base
from baize_lib.models.weights import student_dir
from baize_lib.training import step as steps
from baize_lib.training.fast_cpu import compute_precision, fast
from baize_lib.training.fit import fit
from baize_lib.training.lora import add_adapter, attach, detach
from baize_lib.training.loss import backward, loss_of, plain_loss
from baize_lib.training.planner import Corpus
from baize_lib.training.settings import TrainingSettings
from baize_lib.training.step import held_out_loss, trainee
from baize_lib.training.tokens import (
    IGNORED,
    encode,
    encode_all,
    epoch_steps,
    mask_html,
    micro_batches,
    prompt_ids,
)

TOKENIZER = AutoTokenizer.from_pretrained(student_dir("smollm2-135m"))
FAST = TrainingSettings(
    dropout=0, batch_size=4, lr=5e-3, num_epochs=1, checkpoint_every=0, compute="float32"
)  # fmt: skip


def tiny_base(name="tiny"):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(TOKENIZER), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=True,
    )  # fmt: skip
    return Base(LlamaForCausalLM(config).eval(), TOKENIZER, name, "float32", "as made")


def talk(*texts, id=""):
    roles = ("user", "assistant")
    return Dialogue(tuple(Message(roles[i % 2], text) for i, text in enumerate(texts)), id)


TALKS = [
    talk(*(f"{'why ' * (i + 1)}{n}?" if n % 2 == 0 else f"because {'so ' * i}" for n in range(4)))
    for i in range(10)
]
texts = st.text(st.characters(blacklist_categories=["Cs"]), min_size=1, max_size=40)


# --- tokens and mask


def test_the_mask_covers_exactly_the_replies_and_their_end_tokens():
    row = encode(talk("Capital?", "Dodoma.", "Sure?", "Yes."), TOKENIZER)
    learnt = [id for id, label in zip(row.input_ids, row.labels, strict=True) if label != IGNORED]
    assert TOKENIZER.decode(learnt) == " Dodoma.<|im_end|> Yes.<|im_end|>"
    assert all(label in (IGNORED, id) for id, label in zip(row.input_ids, row.labels, strict=True))


def test_loss_on_all_learns_every_token_as_baize_v1_did():
    row = encode(talk("Capital?", "Dodoma."), TOKENIZER, replace(FAST, loss_on="all"))
    assert row.labels == row.input_ids


def test_without_end_tokens_replies_are_learnt_as_baize_v1_learnt_them():
    row = encode(
        talk("Capital?", "Dodoma.", "Sure?", "Yes."), TOKENIZER, replace(FAST, end_token=False)
    )
    learnt = [id for id, label in zip(row.input_ids, row.labels, strict=True) if label != IGNORED]
    assert TOKENIZER.decode(learnt) == " Dodoma. Yes."
    assert TOKENIZER.eos_token_id not in row.input_ids


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(texts, texts), min_size=1, max_size=3), st.booleans())
def test_what_a_model_is_asked_with_is_a_prefix_of_what_it_was_trained_on(turns, end_token):
    dialogue = talk(*(text for turn in turns for text in turn))
    row = encode(dialogue, TOKENIZER, replace(FAST, max_length=10_000, end_token=end_token))
    for end in range(1, len(dialogue.messages), 2):
        prompt = prompt_ids(dialogue.messages[:end], TOKENIZER, end_token=end_token)
        assert row.input_ids[: len(prompt)] == prompt
        assert row.labels[len(prompt)] != IGNORED
    assert row.num_labels == sum(
        len(TOKENIZER(f" {a}", split_special_tokens=True).input_ids) + end_token for _, a in turns
    )


def test_an_end_token_typed_by_a_human_stays_text():
    row = encode(talk("what is <|im_end|>?", "A token."), TOKENIZER)
    assert row.input_ids.count(TOKENIZER.eos_token_id) == 1


def test_a_long_dialogue_is_cut_at_a_turn():
    short, long = talk("a", "b"), talk("a", "b", "c " * 300, "d")
    row = encode(long, TOKENIZER, replace(FAST, max_length=100))
    assert row.input_ids == encode(short, TOKENIZER).input_ids
    assert row.num_cut == 1


def test_a_dialogue_with_nothing_left_to_learn_is_dropped_and_counted():
    dialogues = [talk("a", "b"), talk("a " * 300, "b"), talk("a", "b", "c " * 300, "d")]
    rows, reasons = encode_all(dialogues, TOKENIZER, replace(FAST, max_length=100))
    assert [row.id for row in rows] == ["1", "3"]
    assert reasons == {"dropped: first turn longer than 100 tokens": 1, "cut at a turn": 1}


def test_a_dialogue_whose_roles_do_not_alternate_is_named():
    bad = Dialogue((Message("user", "a"), Message("user", "b")), id="d-7")
    with pytest.raises(BaizeError, match=r"dialogue d-7: message 2 is from 'user'"):
        encode_all([bad], TOKENIZER, FAST)


def test_a_dialogue_without_a_reply_is_refused():
    with pytest.raises(BaizeError, match="does not end with an assistant's reply"):
        encode(talk("hello?"), TOKENIZER)


def test_a_tokenizer_without_an_end_token_is_refused():
    endless = AutoTokenizer.from_pretrained(student_dir("smollm2-135m"))
    endless.eos_token = None
    with pytest.raises(BaizeError, match="no end token"):
        encode(talk("a", "b"), endless)


def test_the_mask_as_html_escapes_what_was_said():
    row = encode(talk("<script>x</script>", "a & b"), TOKENIZER)
    page = mask_html(row, TOKENIZER)
    assert "<script>" not in page
    assert page.count("<span") == 2
    assert "#0072B2" in page.split("a &amp; b&lt;|im_end|&gt;")[0]


# --- the loss does not depend on how it is computed


def gradients(micro_tokens, batch_order=1, quick=True, at_once=1, settings=FAST, compute="float32"):
    base = tiny_base()
    model = add_adapter(base, settings).train()
    for name, weight in model.named_parameters():
        if "lora_B" in name:  # zero at the start, which would hide errors in A's gradient
            torch.nn.init.normal_(weight, std=0.1, generator=torch.Generator().manual_seed(1))
        elif "norm" in name:
            torch.nn.init.uniform_(weight, 0.5, 2, generator=torch.Generator().manual_seed(2))
    rows, _ = encode_all(TALKS, TOKENIZER, FAST)
    num_labels = sum(row.num_labels for row in rows)
    batches = list(micro_batches(rows, micro_tokens))[::batch_order]
    with fast(model, compute) if quick else contextlib.nullcontext():
        loss = backward(model, batches, num_labels, loss_of(model), at_once) / num_labels
    grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}
    return loss, grads, model, rows


@pytest.mark.parametrize(("micro_tokens", "order"), [(1, 1), (100, -1), (200, 1), (10**6, 1)])
def test_loss_and_gradients_are_the_same_for_any_batch_size_padding_and_order(micro_tokens, order):
    loss, grads, _, _ = gradients(micro_tokens, order)
    expected_loss, expected, _, _ = gradients(300)
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    for name, grad in grads.items():
        torch.testing.assert_close(grad, expected[name], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("settings", [FAST, replace(FAST, gradient_checkpointing=True)])
def test_micro_batches_side_by_side_give_the_same_gradient_bit_for_bit_every_time(settings):
    expected_loss, expected, _, _ = gradients(300, settings=settings)
    loss, grads, _, _ = gradients(100, at_once=3, settings=settings)
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    again, same, model, _ = gradients(100, at_once=3, settings=settings)
    assert again == loss
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    assert all(weight.grad.stride() == weight.stride() for weight in trained)
    for name, grad in grads.items():
        torch.testing.assert_close(grad, expected[name], rtol=1e-4, atol=1e-7)
        assert torch.equal(grad, same[name])


def test_what_fails_in_one_of_the_lanes_is_raised_and_the_threads_are_given_back():
    base, (rows, _) = tiny_base(), encode_all(TALKS, TOKENIZER, FAST)
    model, threads = add_adapter(base, FAST).train(), torch.get_num_threads()
    broken = replace(rows[3], input_ids=[len(TOKENIZER)] * len(rows[3].input_ids))
    with pytest.raises(IndexError):
        backward(model, [[rows[0]], [broken], [rows[1]]], 9, at_once=2)
    assert torch.get_num_threads() == threads


def test_being_fast_twice_is_being_fast_once():
    model = add_adapter(tiny_base(), FAST).train()
    norm = model.get_base_model().model.norm
    with fast(model):
        ours = norm.forward
        with fast(model):
            assert norm.forward is ours
        assert norm.forward is ours
    assert "forward" not in vars(norm)


@pytest.mark.parametrize("length", [1, 128, 129, 300])
def test_fast_blocks_equal_transformers_own_at_any_length(length):
    model = add_adapter(tiny_base(), FAST).train()
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    ids = torch.randint(0, 1000, (2, length))
    weights = [weight for weight in model.parameters() if weight.requires_grad]

    def hidden_and_gradients():
        hidden = model.get_base_model().model(input_ids=ids, use_cache=False).last_hidden_state
        return hidden, torch.autograd.grad((hidden * torch.linspace(-1, 1, 32)).sum(), weights)

    expected, expected_gradients = hidden_and_gradients()
    with fast(model):
        hidden, grads = hidden_and_gradients()
    torch.testing.assert_close(hidden, expected, rtol=1e-4, atol=1e-5)
    for ours, theirs in zip(grads, expected_gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


def test_in_bfloat16_the_gradient_points_the_same_way_and_the_base_comes_back_to_the_bit():
    loss, grads, _, _ = gradients(300)
    narrow_loss, narrow, model, _ = gradients(300, compute="bfloat16")
    assert loss != narrow_loss == pytest.approx(loss, rel=2e-3)
    flat, other = (torch.cat([g.flatten() for g in gs.values()]) for gs in (grads, narrow))
    assert torch.cosine_similarity(flat, other, dim=0) > 0.999
    for name, weight in tiny_base().model.named_parameters():
        if "norm" not in name:
            own = model.get_base_model().get_parameter(
                name if "proj" not in name else name.replace(".weight", ".base_layer.weight")
            )
            assert torch.equal(own, weight)


def test_a_run_in_bfloat16_learns_as_well_as_one_in_float32(tmp_path, capsys):
    base = tiny_base()
    exact = fit(base, TALKS * 4, TALKS[:3], tmp_path / "exact", FAST)
    settings = replace(FAST, compute="bfloat16")
    quick = fit(base, TALKS * 4, TALKS[:3], tmp_path / "quick", settings)
    assert "training multiplies in bfloat16: as asked" in capsys.readouterr().out
    assert quick.loss_before == exact.loss_before
    assert quick.loss_after == pytest.approx(exact.loss_after, rel=0.01)
    assert json.loads((tmp_path / "quick" / "baize_run.json").read_text())["compute"] == "bfloat16"


def test_the_precision_of_training_follows_the_processor(monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    for there, expected in ((True, "bfloat16"), (False, "float32")):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda there=there: there)
        assert compute_precision("float32", "cpu")[0] == expected
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    assert "AMX" in compute_precision("float32", "cpu")[1]
    assert compute_precision("float32", "cpu", "float32") == ("float32", "as asked")
    assert compute_precision("nf4", "cpu")[0] == "nf4"
    assert compute_precision("float32", "cuda")[0] == "float32"


@pytest.mark.parametrize(("precision", "compute"), [("bfloat16", "float32"), ("float32", "int8")])
def test_a_precision_that_does_not_go_with_the_base_is_refused(tmp_path, precision, compute):
    base = replace(tiny_base(), precision=precision)
    with pytest.raises(BaizeError, match=f"{compute}' does not go with a base in {precision}"):
        fit(base, TALKS, [], tmp_path / "adapter", replace(FAST, compute=compute))


def test_loss_and_gradients_equal_those_of_transformers_and_peft_themselves():
    loss, grads, _, rows = gradients(300)
    _, _, model, _ = gradients(300, quick=False)
    model.zero_grad()
    total = torch.zeros(())
    for row in rows:
        ids, labels = torch.tensor([row.input_ids]), torch.tensor([row.labels])
        total = total + model(input_ids=ids, labels=labels).loss * row.num_labels
    total = total / sum(row.num_labels for row in rows)
    total.backward()
    assert loss == pytest.approx(total.item(), rel=1e-5)
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            torch.testing.assert_close(grads[name], weight.grad, rtol=1e-3, atol=1e-7)


def test_loss_and_gradients_equal_those_of_trl_on_the_same_batch(tmp_path):
    trl = pytest.importorskip("trl")
    from datasets import Dataset

    loss, grads, _, rows = gradients(10**6)
    _, _, model, _ = gradients(10**6, quick=False)
    model.zero_grad()
    data = Dataset.from_list([{"input_ids": r.input_ids, "labels": r.labels} for r in rows])
    config = trl.SFTConfig(
        output_dir=str(tmp_path), per_device_train_batch_size=len(rows), use_cpu=True, bf16=False,
        gradient_checkpointing=False, report_to=[], dataset_kwargs={"skip_prepare_dataset": True},
    )  # fmt: skip
    trainer = trl.SFTTrainer(model, config, train_dataset=data, processing_class=TOKENIZER)
    (batch,) = trainer.get_train_dataloader()
    theirs = trainer.compute_loss(model, batch)
    theirs.backward()
    assert loss == pytest.approx(theirs.item(), rel=1e-5)
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            torch.testing.assert_close(grads[name], weight.grad, rtol=1e-3, atol=1e-7)


def test_held_out_loss_does_not_depend_on_the_batch_either():
    base, (rows, _) = tiny_base(), encode_all(TALKS, TOKENIZER, FAST)
    expected = held_out_loss(base.model, rows, 1)
    assert held_out_loss(base.model, rows[::-1], 10**6) == pytest.approx(expected, rel=1e-5)


def test_every_row_is_in_every_epoch_once_whatever_the_batch():
    rows, _ = encode_all(TALKS, TOKENIZER, FAST)
    for epoch in range(3):
        steps_of_epoch = epoch_steps(rows, FAST, epoch)
        assert sorted(r.id for step in steps_of_epoch for r in step) == sorted(r.id for r in rows)
        assert all(len(step) <= FAST.batch_size for step in steps_of_epoch)


def test_rows_of_like_length_share_a_batch():
    rows, _ = encode_all(TALKS * 10, TOKENIZER, FAST)
    corpus = Corpus.of(rows, replace(FAST, micro_tokens=400))
    assert corpus.padding < 0.1 < corpus.padding_to_512


# --- a run


def test_training_learns_saves_an_adapter_peft_can_load_and_leaves_the_base_as_it_was(tmp_path):
    from peft import PeftModel

    base = tiny_base()
    weights = {name: p.clone() for name, p in base.model.named_parameters()}
    seen = []
    result = fit(base, TALKS * 4, TALKS[:3], tmp_path / "adapter", FAST, seen.append)
    assert result.loss_after < result.loss_before - 0.05
    assert [step.number for step in seen] == list(range(1, 11))
    for name, p in base.model.named_parameters():
        assert torch.equal(p, weights[name])
        assert not p.requires_grad
    card = json.loads((tmp_path / "adapter" / "baize_run.json").read_text())
    assert card["base_model"] == "tiny"
    assert card["num_dialogues"] == 40
    model = PeftModel.from_pretrained(base.model, tmp_path / "adapter").eval()
    rows, _ = encode_all(TALKS[:3], TOKENIZER, FAST)
    assert held_out_loss(model, rows) == pytest.approx(result.loss_after, rel=1e-5)


def test_training_twice_with_one_seed_gives_one_curve(tmp_path):
    curves = [
        [
            s.loss
            for s in fit(tiny_base(), TALKS, [], tmp_path / n, replace(FAST, dropout=0.05)).history
        ]
        for n in "ab"
    ]
    assert curves[0] == curves[1]


KILLED = """
    import os, signal, sys
    sys.path.insert(0, {tests!r})
    from test_train import FAST, TALKS, fit, replace, tiny_base
    def die(step):
        if step.number == {after}:
            os.kill(os.getpid(), signal.SIGKILL)
    settings = replace(FAST, dropout=0.1, num_epochs=3, checkpoint_every=2)
    fit(tiny_base(), TALKS, TALKS[:2], {folder!r}, settings, die)
"""


def test_a_killed_run_goes_on_with_the_same_curve(tmp_path, capsys):
    settings = replace(FAST, dropout=0.1, num_epochs=3, checkpoint_every=2)
    whole = fit(tiny_base(), TALKS, TALKS[:2], tmp_path / "whole", settings)
    folder = tmp_path / "killed"
    code = KILLED.format(tests=str(Path(__file__).parent), after=5, folder=str(folder))
    died = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=False)
    assert died.returncode == -signal.SIGKILL
    assert not folder.exists()
    again = fit(tiny_base(), TALKS, TALKS[:2], folder, settings)
    assert "going on after step 4," in capsys.readouterr().out
    curve = [step.loss for step in whole.history]
    assert [step.loss for step in again.history] == pytest.approx(curve, rel=1e-5)
    assert again.loss_after == pytest.approx(whole.loss_after, rel=1e-5)
    assert not folder.with_name("killed.checkpoint").exists()


def interrupted(tmp_path, settings):
    def stop(step):
        if step.number == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(tiny_base(), TALKS, [], tmp_path / "a", settings, stop)


def test_a_checkpoint_of_other_settings_is_refused_with_the_difference(tmp_path):
    interrupted(tmp_path, replace(FAST, checkpoint_every=1))
    with pytest.raises(BaizeError, match=r"another run \(lr: 0.005 -> 0.1\)"):
        fit(tiny_base(), TALKS, [], tmp_path / "a", replace(FAST, lr=0.1))


def test_a_checkpoint_that_is_none_is_named(tmp_path):
    (tmp_path / "a.checkpoint").write_text("hello")
    with pytest.raises(BaizeError, match=r"a\.checkpoint is damaged or not a checkpoint"):
        fit(tiny_base(), TALKS, [], tmp_path / "a", FAST)


def test_a_full_disk_keeps_the_last_checkpoint(tmp_path, monkeypatch):
    interrupted(tmp_path, replace(FAST, checkpoint_every=1))
    kept = (tmp_path / "a.checkpoint").read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("baize_lib.files.os.fsync", full)
    with pytest.raises(BaizeError, match="No space left"):
        fit(tiny_base(), TALKS, [], tmp_path / "a", replace(FAST, checkpoint_every=1))
    assert (tmp_path / "a.checkpoint").read_bytes() == kept


def test_a_loss_that_is_not_a_number_stops_with_the_dialogues_named(tmp_path):
    base = tiny_base()
    base.model.model.norm.weight.data[0] = float("nan")
    with pytest.raises(BaizeError, match=r"step 1 is nan: look at dialogues .*1.*lower lr"):
        fit(base, TALKS[:4], [], tmp_path / "a", FAST)
    assert not (tmp_path / "a").exists()


def test_a_run_that_would_learn_nothing_is_refused(tmp_path):
    with pytest.raises(BaizeError, match="lr=0: nothing would be learnt"):
        fit(tiny_base(), TALKS[:4], [], tmp_path / "a", replace(FAST, lr=0))
    assert not (tmp_path / "a").exists()


def test_out_of_memory_names_the_setting_to_change(tmp_path, monkeypatch):
    def too_big(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr(steps, "loss_of", lambda _: too_big)  # already in the rehearsal
    with pytest.raises(BaizeError, match="halve micro_tokens"):
        fit(tiny_base(), TALKS[:4], [], tmp_path / "a", FAST)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"rank": 0}, "rank=0"),
        ({"num_epochs": 0}, "num_epochs=0"),
        ({"lr": float("nan")}, "lr=nan.*a number above 0"),
        ({"max_grad_norm": -1.0}, "max_grad_norm=-1.0: nothing would be learnt"),
        ({"targets": ("c_attn",)}, "c_attn.*down_proj.*q_proj"),
        ({"loss_on": "questions"}, "'replies' or 'all'"),
    ],
)
def test_settings_that_cannot_work_are_refused_with_what_to_do(tmp_path, wrong, says):
    with pytest.raises(BaizeError, match=says):
        fit(tiny_base(), TALKS, [], tmp_path / "a", replace(FAST, **wrong))


@pytest.mark.parametrize("corpus", [[], TALKS[:1]])
def test_a_corpus_too_small_to_train_on_is_refused(tmp_path, corpus):
    with pytest.raises(BaizeError, match="collect at least 2"):
        fit(tiny_base(), corpus, [], tmp_path / "a", FAST)


@pytest.mark.parametrize(
    "extra", [{"rslora": True}, {"dora": True}, {"gradient_checkpointing": True}]
)
def test_variants_of_lora_train_too(tmp_path, extra):
    result = fit(tiny_base(), TALKS, TALKS[:2], tmp_path / "a", replace(FAST, **extra))
    assert result.loss_after < result.loss_before


def test_a_finished_run_is_not_trained_again(tmp_path, capsys):
    first = fit(tiny_base(), TALKS, TALKS[:2], tmp_path / "adapter", FAST)
    again = fit(tiny_base(), TALKS, TALKS[:2], tmp_path / "adapter", FAST)
    assert again == first
    assert "nothing is trained again" in capsys.readouterr().out


def test_an_adapter_of_other_settings_is_kept_beside_the_new_one(tmp_path, capsys):
    fit(tiny_base(), TALKS, [], tmp_path / "adapter", FAST)
    fit(tiny_base(), TALKS, [], tmp_path / "adapter", replace(FAST, rank=2))
    assert (tmp_path / "adapter.1" / "adapter_model.safetensors").is_file()
    assert "kept in adapter.1/" in capsys.readouterr().out


# --- what may not go wrong silently


def test_other_weights_under_the_same_name_are_another_base(tmp_path, capsys):
    fit(tiny_base(), TALKS, [], tmp_path / "a", FAST)
    other = tiny_base()
    with torch.no_grad():
        other.model.model.layers[1].mlp.up_proj.weight[0, 0] += 0.01
    with pytest.raises(BaizeError, match="trained with base"):
        attach(other, tmp_path / "a")
    fit(other, TALKS, [], tmp_path / "a", FAST)
    assert "nothing is trained again" not in capsys.readouterr().out
    assert (tmp_path / "a.1").is_dir()
    attach(other, tmp_path / "a")


def test_the_same_weights_under_another_name_are_the_same_base(tmp_path):
    fit(tiny_base(), TALKS, [], tmp_path / "a", FAST)
    moved = tiny_base("elsewhere/tiny")
    attach(moved, tmp_path / "a")
    detach(moved)
    assert fit(moved, TALKS, [], tmp_path / "a", FAST).adapter_dir == tmp_path / "a"


class Exploding(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, slope):
        return slope * float("inf")


class Calm(torch.nn.Module):
    """Passes everything on, until its gradient explodes."""

    explodes = False

    def forward(self, x):
        return Exploding.apply(x) if self.explodes else x


def test_a_finite_loss_with_an_infinite_gradient_spoils_nothing(tmp_path, capsys):
    base, calm = tiny_base(), Calm()
    base.model.model.norm = torch.nn.Sequential(base.model.model.norm, calm)
    settings = replace(FAST, checkpoint_every=1)

    def light(step):
        calm.explodes = step.number == 2

    with pytest.raises(BaizeError, match=r"gradient's norm of step 3 is (nan|inf).*dialogues \d"):
        fit(base, TALKS, [], tmp_path / "a", settings, light)
    calm.explodes = False
    result = fit(base, TALKS, [], tmp_path / "a", settings)
    assert "going on after step 2" in capsys.readouterr().out
    assert all(torch.isfinite(torch.tensor(step.grad_norm)) for step in result.history)


@pytest.mark.parametrize("place", [0, 40, 0.5, -1])
def test_a_checkpoint_with_one_flipped_byte_is_damaged(tmp_path, place):
    interrupted(tmp_path, replace(FAST, checkpoint_every=1))
    stored = bytearray((tmp_path / "a.checkpoint").read_bytes())
    stored[int(place * len(stored)) if isinstance(place, float) else place] ^= 1
    (tmp_path / "a.checkpoint").write_bytes(stored)
    with pytest.raises(BaizeError, match=r"a\.checkpoint is damaged.*delete it"):
        fit(tiny_base(), TALKS, [], tmp_path / "a", replace(FAST, checkpoint_every=1))


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json"])
@pytest.mark.parametrize("harm", ["truncated", "flipped"])
def test_a_damaged_adapter_is_named_and_trained_again(tmp_path, name, harm):
    fit(tiny_base(), TALKS, [], tmp_path / "a", FAST)
    path = tmp_path / "a" / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content if harm == "flipped" else content[: len(content) // 2])
    with pytest.raises(BaizeError, match="damaged.*train it again"):
        attach(tiny_base(), tmp_path / "a")
    fit(tiny_base(), TALKS, [], tmp_path / "a", FAST)
    attach(tiny_base(), tmp_path / "a")


def test_what_filled_the_memory_is_let_go_when_it_runs_out(tmp_path, monkeypatch):
    filled = []

    def too_big(model, batch):
        if batch[0].id != "rehearsal":
            activations = torch.zeros(1000)
            filled.append(weakref.ref(activations))
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return plain_loss(model, batch)

    monkeypatch.setattr(steps, "loss_of", lambda _: too_big)
    with pytest.raises(BaizeError, match="halve micro_tokens") as kept:
        fit(tiny_base(), TALKS[:4], [], tmp_path / "a", FAST)
    assert kept.value
    assert filled
    assert all(held() is None for held in filled)


def test_no_batch_is_larger_than_micro_tokens_held_out_ones_included(tmp_path):
    base, sizes = tiny_base(), []
    base.model.model.embed_tokens.register_forward_hook(lambda _, x, __: sizes.append(x[0].numel()))
    fit(base, TALKS, TALKS, tmp_path / "a", replace(FAST, micro_tokens=150))
    assert max(sizes) <= 150


def test_float16_scales_its_loss_and_tries_again_when_that_overflows():
    base = tiny_base()
    rows, _ = encode_all(TALKS, TOKENIZER, FAST)
    with trainee(base, FAST) as student, student.computing():
        loss, _, norm = student.step(1, 10, rows)
    narrow = replace(base, model=base.model.half(), precision="float16")
    with trainee(narrow, replace(FAST, compute="auto")) as student, student.computing():
        assert student.scale == 1024
        student.scale = 2.0**40
        found, _, found_norm = student.step(1, 10, rows)
        assert student.scale < 2.0**40
    assert found == pytest.approx(loss, rel=5e-3)
    assert found_norm == pytest.approx(norm, rel=5e-2)


def test_an_end_token_that_the_tokenizer_also_knows_as_a_word_stays_text():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = [("<unk>", 0.0), ("<s>", -1.0), ("</s>", -1.0), ("▁what", -2.0), ("▁is", -2.0)]
    letters = [(letter, -9.0) for letter in "▁abcdefghijklmnopqrstuvwxyz</>?.[]|HumanAI\n"]
    made = Tokenizer(models.Unigram([*words, *dict(letters).items()], unk_id=0))
    made.pre_tokenizer, made.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    unigram = PreTrainedTokenizerFast(tokenizer_object=made, eos_token="</s>", unk_token="<unk>")
    row = encode(talk("what is </s>?", "an </s>."), unigram)
    assert row.input_ids.count(unigram.eos_token_id) == 1
    assert row.input_ids[-1] == unigram.eos_token_id
    assert "what is </s>?" in unigram.decode(row.input_ids)


def test_a_row_longer_than_the_base_can_read_is_refused(tmp_path):
    base = tiny_base()
    base.model.config.max_position_embeddings = 20
    with pytest.raises(BaizeError, match=r"tiny reads 20 at most: set max_length=20"):
        fit(base, TALKS, [], tmp_path / "a", FAST)
