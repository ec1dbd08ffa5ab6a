"""Every token counts once: masks, batches, checkpoints and adapters are what they claim to be."""

import contextlib
import json
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from baize_lib.config import BaizeError
from baize_lib.dialogue import Dialogue, Message
from baize_lib.models.base import Base, compute_precision, computing_in
from baize_lib.models.weights import student_dir
from baize_lib.training import fit as train
from baize_lib.training.batches import encode_all, epoch_steps, micro_batches
from baize_lib.training.fast_cpu import lean
from baize_lib.training.fit import fit
from baize_lib.training.loss import held_out_loss
from baize_lib.training.settings import TrainingSettings
from baize_lib.training.tokens import IGNORED, encode, prompt_ids

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
    row = encode(talk("Capital?", "Dodoma."), TOKENIZER, loss_on="all")
    assert row.labels == row.input_ids


def test_without_end_tokens_replies_are_learnt_as_baize_v1_learnt_them():
    row = encode(talk("Capital?", "Dodoma.", "Sure?", "Yes."), TOKENIZER, end_token=False)
    learnt = [id for id, label in zip(row.input_ids, row.labels, strict=True) if label != IGNORED]
    assert TOKENIZER.decode(learnt) == " Dodoma. Yes."
    assert TOKENIZER.eos_token_id not in row.input_ids


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(texts, texts), min_size=1, max_size=3), st.booleans())
def test_what_a_model_is_asked_with_is_a_prefix_of_what_it_was_trained_on(turns, end_token):
    dialogue = talk(*(text for turn in turns for text in turn))
    row = encode(dialogue, TOKENIZER, max_length=10_000, end_token=end_token)
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
    row = encode(long, TOKENIZER, max_length=100)
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
    page = train.mask_html(row, TOKENIZER)
    assert "<script>" not in page
    assert page.count("<span") == 2
    assert "#0072B2" in page.split("a &amp; b&lt;|im_end|&gt;")[0]


# --- the loss does not depend on how it is computed


def gradients(micro_tokens, batch_order=1, quick=True, at_once=1, settings=FAST, compute="float32"):
    base = tiny_base()
    model = train.add_adapter(base, settings).train()
    for name, weight in model.named_parameters():
        if "lora_B" in name:  # zero at the start, which would hide errors in A's gradient
            torch.nn.init.normal_(weight, std=0.1, generator=torch.Generator().manual_seed(1))
        elif "norm" in name:
            torch.nn.init.uniform_(weight, 0.5, 2, generator=torch.Generator().manual_seed(2))
    rows, _ = encode_all(TALKS, TOKENIZER, FAST)
    num_labels = sum(row.num_labels for row in rows)
    batches = list(micro_batches(rows, micro_tokens))[::batch_order]
    with computing_in(model, compute), lean(model) if quick else contextlib.nullcontext():
        loss = train.backward(model, batches, num_labels, at_once) / num_labels
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
    model, threads = train.add_adapter(base, FAST).train(), torch.get_num_threads()
    broken = replace(rows[3], input_ids=[len(TOKENIZER)] * len(rows[3].input_ids))
    with pytest.raises(IndexError):
        train.backward(model, [[rows[0]], [broken], [rows[1]]], 9, at_once=2)
    assert torch.get_num_threads() == threads


def test_being_lean_twice_is_being_lean_once():
    model = train.add_adapter(tiny_base(), FAST).train()
    norm = model.get_base_model().model.norm
    with lean(model):
        ours = norm.forward
        with lean(model) as changed:
            assert changed == 0
        assert norm.forward is ours
    assert "forward" not in vars(norm)


@pytest.mark.parametrize("length", [1, 128, 129, 300])
def test_lean_blocks_equal_transformers_own_at_any_length(length):
    model = train.add_adapter(tiny_base(), FAST).train()
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    ids = torch.randint(0, 1000, (2, length))
    weights = [weight for weight in model.parameters() if weight.requires_grad]

    def hidden_and_gradients():
        hidden = model.get_base_model().model(input_ids=ids, use_cache=False).last_hidden_state
        return hidden, torch.autograd.grad((hidden * torch.linspace(-1, 1, 32)).sum(), weights)

    expected, expected_gradients = hidden_and_gradients()
    with lean(model):
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
        steps = epoch_steps(rows, replace(FAST, micro_tokens=150), epoch)
        assert sorted(r.id for step in steps for batch in step for r in batch) == sorted(
            row.id for row in rows
        )
        for step in steps:
            assert sum(map(len, step)) <= FAST.batch_size


def test_rows_of_like_length_share_a_batch():
    rows, _ = encode_all(TALKS * 10, TOKENIZER, FAST)
    ours = train.padding_waste(rows, replace(FAST, micro_tokens=400))
    assert ours < 0.1 < train.padding_waste(rows)


def test_lean_dropout_leaves_the_mean_of_the_low_rank_part_as_it_is():
    base = tiny_base()
    model = train.add_adapter(base, replace(FAST, dropout=0.25)).train()
    layer = base.model.model.layers[0].self_attn.q_proj
    torch.nn.init.normal_(layer.lora_B["default"].weight)
    x = torch.randn(1, 32).expand(4000, 32)
    with lean(model) as count, torch.no_grad():
        noisy = layer(x)
    assert count == 2 * 7 + 5 + 2 * 2  # layers, norms, attention and gate
    torch.testing.assert_close(noisy.mean(0), model.eval() and layer(x[0]), rtol=0.1, atol=0.1)
    assert noisy.std(0).min() > 0


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
    assert "going on after step 4 of 9" in capsys.readouterr().out
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
    with pytest.raises(BaizeError, match=r"a\.checkpoint is not a checkpoint"):
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


def test_an_adapter_that_learnt_nothing_is_an_error(tmp_path):
    with pytest.raises(BaizeError, match="equals its initial value"):
        fit(tiny_base(), TALKS[:4], [], tmp_path / "a", replace(FAST, lr=0))
    assert not (tmp_path / "a").exists()


def test_out_of_memory_names_the_setting_to_change(tmp_path, monkeypatch):
    def too_big(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr(train, "backward", too_big)
    with pytest.raises(BaizeError, match="halve micro_tokens"):
        fit(tiny_base(), TALKS[:4], [], tmp_path / "a", FAST)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"rank": 0}, "rank=0"),
        ({"num_epochs": 0}, "num_epochs=0"),
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
