"""Records what `transformers` computes for a small random Qwen2, for
tests/text_encoders/test_qwen2.py.

    pip install torch transformers tokenizers safetensors
    python tests/golden/record_qwen2.py

writes beside this file, in qwen2/: config.json and tokenizer.json of the small model, layouts.json
(the keys that transformers writes for Qwen2 in several files, and for Qwen2-VL) and outputs.npz
(tokens, masks, last hidden states). The weights are not stored: `random_weights` draws the same
ones here and in the test, which imports this file without PyTorch.
"""

import json
import tempfile
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).parent / "qwen2"
PAD = "<|endoftext|>"
LENGTH = 12
SYSTEM_TEXT = "Describe the moving shapes:\n  - A red circle -> a bright red circle drifts left.\n"
CAPTIONS = (
    "a red circle moves left",
    "Two blue squares, then one",
    "",
    "a very long caption about green triangles that turn and turn and never end until they are cut",
)
CONFIG = {
    "model_type": "qwen2",
    "architectures": ["Qwen2Model"],
    "vocab_size": 320,
    "hidden_size": 32,
    "intermediate_size": 56,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "rope_theta": 5000.0,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
    "use_sliding_window": False,
    "sliding_window": 512,
    "max_window_layers": 3,
}


def random_weights() -> dict[str, np.ndarray]:
    """Float32 weights of the small model under the names of Qwen2Model; the same with every version
    of NumPy."""
    generator = np.random.RandomState(np.random.Philox(key=2407_10671))
    width, mlp = CONFIG["hidden_size"], CONFIG["intermediate_size"]
    kv_width = width * CONFIG["num_key_value_heads"] // CONFIG["num_attention_heads"]
    shapes: dict[str, tuple[int, ...]] = {
        "embed_tokens.weight": (CONFIG["vocab_size"], width),
        "norm.weight": (width,),
    }
    for i in range(CONFIG["num_hidden_layers"]):
        layer = f"layers.{i}"
        # The order matters: it is the order in which the numbers are drawn.
        for name, size in (("q", width), ("k", kv_width), ("v", kv_width)):
            shapes[f"{layer}.self_attn.{name}_proj.weight"] = (size, width)
            shapes[f"{layer}.self_attn.{name}_proj.bias"] = (size,)
        shapes[f"{layer}.self_attn.o_proj.weight"] = (width, width)
        shapes[f"{layer}.input_layernorm.weight"] = (width,)
        shapes[f"{layer}.post_attention_layernorm.weight"] = (width,)
        shapes[f"{layer}.mlp.gate_proj.weight"] = (mlp, width)
        shapes[f"{layer}.mlp.up_proj.weight"] = (mlp, width)
        shapes[f"{layer}.mlp.down_proj.weight"] = (width, mlp)
    weights = {}
    for name, shape in shapes.items():
        spread = 0.25 if len(shape) == 2 else 0.4
        mean = 1 if name.endswith("norm.weight") else 0
        weights[name] = (generator.standard_normal(shape) * spread + mean).astype(np.float32)
    return weights


def write_tokenizer() -> None:
    """A byte-level BPE like that of Qwen2, with few merges."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=CONFIG["vocab_size"],
        special_tokens=[PAD],
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator([SYSTEM_TEXT, *CAPTIONS] * 3, trainer)
    tokenizer.save(str(FOLDER / "tokenizer.json"), pretty=False)


def reference(model, padding_side: str, system_text: str | None) -> dict[str, np.ndarray]:
    """The procedure in PyTorch: pad, put the system text in front, run, cut it off."""
    import torch
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(FOLDER / "tokenizer.json"), pad_token=PAD, padding_side=padding_side
    )
    options = {
        "padding": "max_length",
        "truncation": True,
        "max_length": LENGTH,
        "return_tensors": "pt",
    }
    tokens = tokenizer(list(CAPTIONS), **options)["input_ids"]
    mask = (tokens != tokenizer.pad_token_id).long()
    # An empty caption keeps one token.
    mask[mask.sum(dim=1) == 0, 0 if padding_side == "right" else -1] = 1
    front = tokens[:1, :0]
    if system_text:
        front = tokenizer(system_text, return_tensors="pt")["input_ids"]
    front = front.expand(len(tokens), -1)
    with torch.no_grad():
        hidden = model(
            input_ids=torch.cat([front, tokens], dim=1),
            attention_mask=torch.cat([torch.ones_like(front), mask], dim=1),
        ).last_hidden_state[:, front.shape[1] :]
    return {
        "tokens": tokens.int().numpy(),
        "mask": mask.bool().numpy(),
        "hidden": hidden.float().numpy(),
    }


def saved_keys(model, shard_size: str = "5GB") -> dict[str, str]:
    """Which file each tensor is written to by `save_pretrained`."""
    from safetensors import safe_open

    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder, max_shard_size=shard_size)
        names = {}
        for file in sorted(Path(folder).glob("*.safetensors")):
            with safe_open(file, framework="np") as handle:
                names |= dict.fromkeys(handle.keys(), file.name)
        return names


def vision_language_model(weights):
    """Qwen2-VL with the same language model and a minimal vision tower."""
    import torch
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    text = dict(CONFIG)
    for key in ("model_type", "architectures", "rope_theta"):
        del text[key]
    text["rope_parameters"] = {
        "mrope_section": [1, 1, 2],
        "rope_type": "default",
        "rope_theta": CONFIG["rope_theta"],
    }
    vision = {
        "depth": 1,
        "embed_dim": 8,
        "hidden_size": CONFIG["hidden_size"],
        "num_heads": 2,
        "mlp_ratio": 1,
    }
    model = Qwen2VLForConditionalGeneration(
        Qwen2VLConfig(text_config=text, vision_config=vision)
    ).eval()
    model.model.language_model.load_state_dict(
        {name: torch.from_numpy(value) for name, value in weights.items()}
    )
    return model


def main() -> None:
    import torch
    from transformers import Qwen2Config, Qwen2Model

    FOLDER.mkdir(exist_ok=True)
    write_tokenizer()
    (FOLDER / "config.json").write_text(json.dumps(CONFIG, indent=2) + "\n")
    weights = random_weights()
    model = Qwen2Model(Qwen2Config(**CONFIG)).eval()
    model.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})
    outputs = {}
    for side in ("right", "left"):
        for name, text in (("bare", None), ("system", SYSTEM_TEXT)):
            for key, value in reference(model, side, text).items():
                outputs[f"{side}/{name}/{key}"] = value
    both = vision_language_model(weights)
    outputs["vl/hidden"] = reference(both.model, "left", SYSTEM_TEXT)["hidden"]
    np.savez_compressed(FOLDER / "outputs.npz", **outputs)
    layouts = {
        "sharded": saved_keys(model, "30KB"),
        "vl": saved_keys(both),
        "vl_config": both.config.to_dict(),
    }
    (FOLDER / "layouts.json").write_text(json.dumps(layouts, indent=1, default=str) + "\n")


if __name__ == "__main__":
    main()
