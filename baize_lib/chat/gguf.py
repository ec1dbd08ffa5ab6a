"""One file that llama.cpp, Ollama and LM Studio run: a merged model written as GGUF.

The file holds weights, tokenizer and chat template. `gguf`, llama.cpp's own package, knows the
names and the number formats; what is here is the rest for the architectures of the course's
students, LLaMA and Qwen2. Others are refused by name: llama.cpp's `convert_hf_to_gguf.py` reads the
merged folder too.

    export_gguf("runs/laptop/merged", "runs/laptop/chatbot-q8_0.gguf", quant="q8_0")
"""

import json
from collections.abc import Iterator
from pathlib import Path
from string import Template
from typing import Any

from baize_lib.chat.share import need_room
from baize_lib.config import BaizeError
from baize_lib.dialogue import AI_TAG, HEADER, HUMAN_TAG
from baize_lib.files import write_atomic, written

__all__ = ["export_gguf"]

_NAMES = written(__file__, "gguf.toml")


def export_gguf(merged: Path | str, out: Path | str, quant: str = "q8_0") -> Path:
    """Write the model that `merge` made to the file `out`, and an Ollama Modelfile beside it.

    `quant` is "q8_0" (8 bits a weight and a scale for every 32), "f16" or "f32". A BaizeError where
    there is no merged model, or one that this cannot write, or no room on the disk.
    """
    import gguf
    from transformers import AutoConfig, AutoTokenizer

    merged, out = Path(merged), Path(out)
    if quant not in _NAMES["quants"]:
        raise BaizeError(f"quant={quant!r} is unknown: use one of {', '.join(_NAMES['quants'])}")
    if not (merged / "baize_run.json").is_file() or not (merged / "config.json").is_file():
        raise BaizeError(f"{merged} holds no merged model: make one with chat.merge first")
    config, tokenizer = AutoConfig.from_pretrained(merged), AutoTokenizer.from_pretrained(merged)
    arch, split = _known(config, tokenizer)
    out.parent.mkdir(parents=True, exist_ok=True)
    size = sum(path.stat().st_size for path in merged.glob("*.safetensors"))
    need_room(out, size * (2 if quant == "f32" else 1))
    part = out.with_name(f".{out.name}.part")
    try:
        writer = gguf.GGUFWriter(part, arch)
        writer.add_file_type(gguf.LlamaFileType[_NAMES["quants"][quant]])
        _write_shape(writer, config)
        _write_tokenizer(writer, tokenizer, split, config.vocab_size, merged)
        for name, tensor, kind in _tensors(merged, config, arch, quant):
            writer.add_tensor(name, tensor, raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        part.replace(out)
    finally:
        part.unlink(missing_ok=True)
    card = json.loads((merged / "baize_run.json").read_text(encoding="utf-8"))
    words = {"file": out.name, "header": HEADER[card.get("language", "en")], "human": HUMAN_TAG}
    words |= {"ai": AI_TAG, "end": tokenizer.eos_token}
    form = Path(__file__).with_name("Modelfile").read_text(encoding="utf-8")
    write_atomic(out.with_name("Modelfile"), Template(form).substitute(words))
    return out


def _known(config: Any, tokenizer: Any) -> tuple[str, str]:
    """(architecture, way of splitting text), as llama.cpp calls them."""
    parts = json.loads(tokenizer.backend_tokenizer.to_str())
    rule = parts["pre_tokenizer"] or {"type": parts["model"]["type"]}
    steps = rule.get("pretokenizers", [rule])
    shape = [step.get("pattern", {}).get("Regex") or step["type"] for step in steps]
    kind = (config.architectures or ["unknown"])[0]
    rope = config.rope_parameters.get("rope_type", "default")
    split = next((name for name, known in _NAMES["splits"].items() if known == shape), None)
    if kind in _NAMES["architectures"] and rope == "default" and split:
        return _NAMES["architectures"][kind], split
    raise BaizeError(
        f"{kind} with {rope} rope and a tokenizer of {' and '.join(shape)} is not written here: "
        "convert the merged folder with llama.cpp's convert_hf_to_gguf.py"
    )


def _write_shape(writer: Any, config: Any) -> None:
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    facts = {ours: getattr(config, theirs) for ours, theirs in _NAMES["facts"].items()}
    facts |= dict.fromkeys(("key_length", "value_length", "rope_dimension_count"), head)
    facts["name"] = "Baize course chatbot"
    facts["rope_freq_base"] = config.rope_parameters["rope_theta"]
    for name, value in facts.items():
        getattr(writer, f"add_{name}")(value)


def _write_tokenizer(writer: Any, tokenizer: Any, split: str, size: int, merged: Path) -> None:
    import gguf

    words, kinds = [f"[PAD{i}]" for i in range(size)], [gguf.TokenType.UNUSED] * size
    for word, i in tokenizer.get_vocab().items():
        words[i], kinds[i] = word, gguf.TokenType.NORMAL
    for i, added in tokenizer.added_tokens_decoder.items():
        kinds[i] = gguf.TokenType.CONTROL if added.special else gguf.TokenType.USER_DEFINED
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(split)
    writer.add_token_list(words)
    writer.add_token_types(kinds)
    special = gguf.SpecialVocab(merged, load_merges=True, n_vocab=size)
    special.special_token_ids["eos"] = tokenizer.eos_token_id
    special.chat_template = tokenizer.chat_template
    begins = tokenizer("").input_ids[:1] == [tokenizer.bos_token_id]
    special.add_special_token = {"bos": begins, "eos": False}
    special.add_to_gguf(writer, quiet=True)


def _tensors(merged: Path, config: Any, arch: str, quant: str) -> Iterator[tuple[str, Any, Any]]:
    """(name, numbers, format) of each tensor; vectors stay in float32."""
    import gguf
    from safetensors.torch import load_file

    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[arch.upper()], config.num_hidden_layers)
    kinds = gguf.GGMLQuantizationType
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for path in sorted(merged.glob("*.safetensors")):
        for name, weight in load_file(path).items():
            tensor, layer = weight.float().numpy(), name.split(".")[-2]
            if arch == "llama" and layer in heads:
                # llama.cpp turns neighbouring numbers of a head, we numbers half a head apart
                halves = tensor.reshape(heads[layer], 2, -1, *tensor.shape[1:])
                tensor = halves.swapaxes(1, 2).reshape(tensor.shape)
            kind = kinds[quant.upper()] if tensor.ndim > 1 else kinds.F32
            if kind == kinds.Q8_0 and tensor.shape[-1] % 32:
                kind = kinds.F16
            place = names.get_name(name, try_suffixes=(".weight", ".bias"))
            yield place, gguf.quants.quantize(tensor, kind), kind
