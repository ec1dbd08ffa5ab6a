"""How fast the tuned student writes, beside transformers' own `generate`.

    python tests/benchmarks/bench_chat.py            # a minute or two on two cores

Sixteen of the course's questions are answered greedily in one batch: by the course's ChatModel, by
`generate` of the PEFT model, and by `generate` of a copy with the adapter merged into it. The three
take turns, and the best time of each counts: other work on the machine only ever adds to it. With
one thread the processor's time is taken, so that neighbours disturb less.
"""

import argparse
import copy
import time

import torch

from baize_lib.chat import ChatModel
from baize_lib.config import data_dir
from baize_lib.dialogue import Message
from baize_lib.evaluation import load_prompts
from baize_lib.models import load_base
from baize_lib.training.lora import attach, select
from baize_lib.training.tokens import prompt_ids

ADAPTER = data_dir() / "adapter"


def generate(model, tokenizer, questions, max_tokens):
    """Texts and number of tokens by transformers: padded on the left, stopped at the end token."""
    rows = [prompt_ids([Message("user", question)], tokenizer) for question in questions]
    width = max(map(len, rows))
    ids = torch.tensor([[tokenizer.pad_token_id] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    with torch.no_grad():
        out = model.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=max_tokens, do_sample=False,
            eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
        )  # fmt: skip
    texts = tokenizer.batch_decode(out[:, width:], skip_special_tokens=True)
    return [text.split("[|")[0].strip() for text in texts]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--max-tokens", type=int, default=120)
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    questions = [p.turns[0] for p in load_prompts(language="en")][:16]
    base = load_base("smollm2-135m", "float32")
    chat = ChatModel(base, {"tuned": ADAPTER})
    merging = copy.deepcopy(base.model)
    peft = base.attached["peft"]
    for layer in merging.modules():
        if hasattr(layer, "merge"):
            layer.merge(adapter_names=[attach(base, ADAPTER)])

    def ours():
        replies = chat.replies(questions, "tuned", max_tokens=asked.max_tokens, temperature=0)
        return [reply.text for reply in replies]

    def tuned():
        select(base, attach(base, ADAPTER))
        texts = generate(peft, base.tokenizer, questions, asked.max_tokens)
        select(base, None)
        return texts

    def merged():
        return generate(merging, base.tokenizer, questions, asked.max_tokens)

    ways = {"ChatModel": ours, "generate, PEFT": tuned, "generate, merged": merged}
    best, texts = dict.fromkeys(ways, float("inf")), {}
    for _ in range(asked.rounds):
        for name, way in ways.items():
            begun = clock()
            texts[name] = way()
            best[name] = min(best[name], clock() - begun)
    for name, seconds in best.items():
        same = sum(a == b for a, b in zip(texts[name], texts["ChatModel"], strict=True))
        ratio = seconds / best["ChatModel"]
        print(f"{name:<17} {seconds:6.1f} s  {ratio:4.1f}x  equal replies {same} of 16")


if __name__ == "__main__":
    main()
