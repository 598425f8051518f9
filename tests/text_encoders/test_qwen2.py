"""The Qwen2 text encoder against recordings of `transformers` (tests/golden/record_qwen2.py), and
its files."""

import importlib.util
import json
import logging
import shutil
import subprocess
import sys

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.helpers.paths import GOLDEN
from tests.helpers.tiny_model import annotations_off
from tests.helpers.wrong_values import LEFT_OUT, accepted
from videomar_jax.checks import UserError
from videomar_jax.io.log import log
from videomar_jax.text_encoders import TextEncoder, load_text_encoder, tokens_cut
from videomar_jax.text_encoders.qwen2 import encoder as encoder_module
from videomar_jax.text_encoders.qwen2.encoder import Qwen2Options, load_qwen2
from videomar_jax.text_encoders.qwen2.folder import read_config

TOLERANCE = 1e-5


def _recorder():
    spec = importlib.util.spec_from_file_location("record_qwen2", GOLDEN / "record_qwen2.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


RECORDER = _recorder()
WEIGHTS = RECORDER.random_weights()
CAPTIONS, SYSTEM, LENGTH = RECORDER.CAPTIONS, RECORDER.SYSTEM_TEXT, RECORDER.LENGTH
RECORDED = np.load(GOLDEN / "qwen2" / "outputs.npz")
LAYOUTS = json.loads((GOLDEN / "qwen2" / "layouts.json").read_text())


def write_folder(folder, weights=None, files=None, config=None):
    """A Hugging Face folder; `files` maps tensor names to file names, with an index if there are
    several."""
    folder.mkdir(exist_ok=True)
    weights = WEIGHTS if weights is None else weights
    for name in ("config.json", "tokenizer.json"):
        shutil.copy(GOLDEN / "qwen2" / name, folder / name)
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    files = files or dict.fromkeys(weights, "model.safetensors")
    for file in set(files.values()):
        save_file(
            {name: value for name, value in weights.items() if files[name] == file}, folder / file
        )
    if len(set(files.values())) > 1:
        (folder / "model.safetensors.index.json").write_text(
            json.dumps({"metadata": {}, "weight_map": files})
        )
    return folder


@pytest.fixture
def folder(tmp_path):
    return write_folder(tmp_path / "qwen2")


def options(**changes):
    return Qwen2Options(**{"max_tokens": LENGTH, "batch_size": 4} | changes)


@pytest.fixture
def warnings():
    records = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: records.append(record.getMessage())
    log.addHandler(handler)
    yield records
    log.removeHandler(handler)


# The same numbers as transformers


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize(("name", "text"), [("bare", None), ("system", SYSTEM)])
def test_features_and_mask_equal_transformers(folder, side, name, text):
    encoder = load_qwen2(folder, options(padding_side=side, system_text=text))
    recorded = {key: RECORDED[f"{side}/{name}/{key}"] for key in ("tokens", "mask", "hidden")}
    np.testing.assert_array_equal(encoder.tokenize(CAPTIONS)[0], recorded["tokens"])
    features, mask = encoder.encode(CAPTIONS)
    np.testing.assert_array_equal(mask, recorded["mask"])
    np.testing.assert_allclose(
        features[mask], recorded["hidden"][mask], atol=TOLERANCE, rtol=TOLERANCE
    )
    assert np.isfinite(features).all()
    if (side, name) != (
        "left",
        "bare",
    ):  # there, leading padding sees no token at all and has no defined state
        np.testing.assert_allclose(features, recorded["hidden"], atol=TOLERANCE, rtol=TOLERANCE)


def test_a_checkpoint_in_several_files_as_transformers_writes_it(tmp_path, folder):
    files = LAYOUTS["sharded"]
    assert len(set(files.values())) > 2 and set(files) == set(WEIGHTS)
    sharded = load_qwen2(write_folder(tmp_path / "sharded", files=files), options())
    np.testing.assert_array_equal(
        sharded.encode(CAPTIONS)[0], load_qwen2(folder, options()).encode(CAPTIONS)[0]
    )


def test_the_text_part_of_qwen2_vl(tmp_path):
    """Keys and config as transformers writes them for Qwen2-VL, and as older releases and
    repositories have them."""
    new = {name: np.zeros(3, np.float32) for name in LAYOUTS["vl"]}
    prefix = "model.language_model." if any("language_model" in name for name in new) else "model."
    assert sum("visual" in name for name in new) > 5
    text = {f"{prefix}{name}": value for name, value in WEIGHTS.items()}
    assert set(text) <= set(new)
    vl = load_qwen2(
        write_folder(tmp_path / "vl", new | text, config=LAYOUTS["vl_config"]),
        options(padding_side="left", system_text=SYSTEM),
    )
    np.testing.assert_allclose(
        vl.encode(CAPTIONS)[0], RECORDED["vl/hidden"], atol=TOLERANCE, rtol=TOLERANCE
    )
    flat = RECORDER.CONFIG | {
        "model_type": "qwen2_vl",
        "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]},
    }
    for number, prefix in enumerate(("model.", "language_model.model.", "")):
        weights = {f"{prefix}{name}": value for name, value in WEIGHTS.items()}
        weights |= {
            "visual.patch_embed.proj.weight": np.ones(4, np.float32),
            "lm_head.weight": np.ones(4, np.float32),
        }
        other = load_qwen2(
            write_folder(tmp_path / str(number), weights, config=flat),
            options(padding_side="left", system_text=SYSTEM),
        )
        np.testing.assert_array_equal(other.encode(CAPTIONS)[0], vl.encode(CAPTIONS)[0])


def test_the_system_text_run_once_equals_running_it_with_each_caption(folder):
    encoder = load_qwen2(folder, options(system_text=SYSTEM))
    tokens, mask = encoder.tokenize(CAPTIONS)
    front = np.broadcast_to(
        np.array(encoder.system_tokens, np.int32), (len(tokens), len(encoder.system_tokens))
    )
    assert front.shape[1] > LENGTH  # the system text is not cut
    whole, _ = jax.jit(lambda model, *args: model(*args))(
        encoder.model,
        np.concatenate([front, tokens], axis=1),
        np.concatenate([np.ones(front.shape, bool), mask], 1),
    )
    np.testing.assert_allclose(encoder.encode(CAPTIONS)[0], whole[:, front.shape[1] :], atol=3e-5)
    assert (
        np.abs(
            load_qwen2(folder, options()).encode(CAPTIONS)[0] - encoder.encode(CAPTIONS)[0]
        ).max()
        > 0.1
    )


# Contract


def test_a_feature_depends_on_earlier_words_of_its_caption_only(folder):
    encoder = load_qwen2(folder, options(system_text=SYSTEM))
    captions = ["a red circle", "a red square", "left, left, left"]
    features, mask = encoder.encode(captions)
    tokens, _ = encoder.tokenize(captions)
    same = int(np.argmin(tokens[0] == tokens[1]))
    assert 0 < same < mask[0].sum()
    np.testing.assert_array_equal(features[0, :same], features[1, :same])
    assert np.abs(features[0, same] - features[1, same]).max() > 0.1
    alone = np.concatenate([encoder.encode([caption])[0] for caption in captions])
    np.testing.assert_allclose(features, alone, atol=3e-5)


def test_batches_of_any_size_and_few_compilations(folder):
    encoder = load_qwen2(folder, options())
    assert isinstance(encoder, TextEncoder) and encoder.width == 32 and encoder.max_tokens == LENGTH
    captions = [f"a circle {i}" for i in range(9)]
    before = encoder_module._last_hidden_state._cache_size()
    features, mask = encoder.encode(captions)
    for count in (9, 5, 4, 3):
        np.testing.assert_allclose(encoder.encode(captions[:count])[0], features[:count], atol=3e-5)
    assert encoder_module._last_hidden_state._cache_size() - before <= 2  # 4 and 1
    assert features.shape == (9, LENGTH, 32) and features.dtype == np.float32 and mask.dtype == bool
    empty_features, empty_mask = encoder.encode([])
    assert empty_features.shape == (0, LENGTH, 32) and empty_mask.shape == (0, LENGTH)
    with pytest.raises(ValueError, match="sequence of captions"):
        encoder.encode("a circle")


def test_empty_and_odd_captions_keep_a_token(folder):
    for side, place in (("right", 0), ("left", -1)):
        encoder = load_qwen2(folder, options(padding_side=side))
        features, mask = encoder.encode(["", RECORDER.PAD, "\ud800 кот 🙂"])
        assert mask[:2].sum() == 2 and mask[:2, place].all() and mask[2].any()
        assert np.isfinite(features).all()


def test_tokens_are_counted_before_they_are_cut(folder):
    long, short = (load_qwen2(folder, options(max_tokens=length)) for length in (500, 3))
    counts = [
        int(tokens)
        for caption in CAPTIONS
        if caption
        for tokens in long.tokenize([caption])[1].sum(axis=1)
    ]
    assert (
        short.count_tokens([caption for caption in CAPTIONS if caption]) == counts
        and max(counts) > 3
    )
    assert tokens_cut(short, CAPTIONS) == [
        max(0, count - 3) for count in long.count_tokens(CAPTIONS)
    ]


def test_a_cut_caption_is_reported_with_what_it_loses(folder, warnings):
    encoder = load_qwen2(folder, options(max_tokens=6))
    encoder.encode(["red", CAPTIONS[3], CAPTIONS[1]])
    (message,) = warnings
    kept = encoder.tokenizer.decode(encoder.tokenize([CAPTIONS[3]])[0][0].tolist())
    assert CAPTIONS[3].startswith(kept) and len(kept) > 3
    assert "2 of 3 captions" in message and repr(CAPTIONS[3].removeprefix(kept)) in message


def test_bfloat16_files_and_bfloat16_computation(tmp_path):
    rounded = {name: value.astype(ml_dtypes.bfloat16) for name, value in WEIGHTS.items()}
    stored = write_folder(tmp_path / "bf16", rounded)
    exact = write_folder(
        tmp_path / "f32", {name: value.astype(np.float32) for name, value in rounded.items()}
    )
    encoder = load_qwen2(stored, options())
    assert {leaf.dtype.name for leaf in jax.tree.leaves(encoder.model)} == {"bfloat16"}
    features, mask = encoder.encode(CAPTIONS)
    np.testing.assert_array_equal(features, load_qwen2(exact, options()).encode(CAPTIONS)[0])
    coarse, _ = load_qwen2(stored, options(dtype="bfloat16")).encode(CAPTIONS)
    error = np.abs(coarse - features)[mask].mean() / np.abs(features[mask]).mean()
    assert coarse.dtype == np.float32 and 1e-4 < error < 0.05


def test_split_over_eight_devices_equals_one(folder):
    mesh = jax.make_mesh((2, 4), ("replica", "data"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    one, eight = (
        load_qwen2(folder, options(system_text=SYSTEM)),
        load_qwen2(folder, options(system_text=SYSTEM), mesh=mesh),
    )
    kernel = eight.model.layers.gate.kernel[...]
    assert kernel.addressable_shards[0].data.size * 8 == kernel.size and kernel.shape[0] == 3
    np.testing.assert_allclose(eight.encode(CAPTIONS)[0], one.encode(CAPTIONS)[0], atol=3e-5)


# Saving by reference


def test_a_saved_encoder_refers_to_its_folder(folder, tmp_path):
    encoder = load_qwen2(folder, options(system_text=SYSTEM, padding_side="left"))
    encoder.save(tmp_path / "saved")
    assert [file.name for file in (tmp_path / "saved").iterdir()] == ["text_encoder.json"]
    again = load_text_encoder(tmp_path / "saved")
    assert again.options == encoder.options and again.source == encoder.source
    np.testing.assert_array_equal(again.encode(CAPTIONS)[0], encoder.encode(CAPTIONS)[0])


def test_a_moved_or_changed_folder_is_noticed(folder, tmp_path):
    load_qwen2(folder, options()).save(tmp_path / "saved")
    moved = folder.rename(tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError, match="bring it back"):
        load_text_encoder(tmp_path / "saved")
    header = tmp_path / "saved" / "text_encoder.json"
    header.write_text(header.read_text().replace(str(folder), str(moved)))
    assert load_text_encoder(tmp_path / "saved").source.folder == str(moved)
    write_folder(moved, WEIGHTS | {"norm.weight": WEIGHTS["norm.weight"] + 1})
    with pytest.raises(ValueError, match="no longer holds"):
        load_text_encoder(tmp_path / "saved")


def test_a_saved_encoder_is_known_without_importing_its_kind(folder, tmp_path):
    """Its class is found by the registry, in a process that never mentions it."""
    load_qwen2(folder, options()).save(tmp_path / "saved")
    code = (
        "import sys; from videomar_jax.text_encoders import TEXT_ENCODERS, load_text_encoder;"
        "assert 'qwen2' in TEXT_ENCODERS and 'videomar_jax.text_encoders.qwen2' not in sys.modules;"
        f"print(type(load_text_encoder({str(tmp_path / 'saved')!r})).__name__);"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "Qwen2TextEncoder", done.stderr


# Bad input


def test_all_faults_of_a_checkpoint_are_named_together(tmp_path):
    weights = dict(WEIGHTS)
    del weights["layers.1.self_attn.q_proj.bias"], weights["norm.weight"]
    weights["layers.3.mlp.up_proj.weight"] = np.zeros((2, 2), np.float32)
    weights["layers.0.mlp.up_proj.weight"] = np.zeros((32, 56), np.float32)
    weights["layers.2.input_layernorm.weight"] = np.zeros(32, np.int32)
    weights["layers.2.mlp.down_proj.weight"] = weights["layers.2.mlp.down_proj.weight"].astype(
        np.float16
    )
    with pytest.raises(ValueError) as caught:
        load_qwen2(write_folder(tmp_path / "bad", weights), options())
    message = str(caught.value)
    for part in (
        "2 missing: ",
        "layers.1.self_attn.q_proj.bias",
        "norm.weight",
        "1 unknown: layers.3.mlp.up_proj.weight",
        "1 of another shape: layers.0.mlp.up_proj.weight [32, 56] instead of [56, 32]",
        "1 not of a floating type: layers.2.input_layernorm.weight (int32)",
        "layers.2.mlp.down_proj.weight (float16, but layers.0.mlp.down_proj.weight is float32)",
    ):
        assert part in message, f"{part!r} is not in: {message}"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "llama"}, "model_type is 'llama'"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"num_key_value_heads": 3}, "multiple of kv_heads = 3"),
        ({"hidden_size": "32"}, "hidden_size must be a whole number, not '32'"),
        ({"rope_scaling": {"rope_type": "yarn"}}, "'yarn'"),
        ({"rope_theta": None}, "rope_theta"),
        ({"num_hidden_layers": 0}, r"num_hidden_layers must lie in \[1, 1000\], not 0"),
        (
            {"use_sliding_window": True, "max_window_layers": 1, "sliding_window": 8},
            "look back 8 tokens",
        ),
        ({"vocab_size": 100}, "not the model's tokenizer"),
    ],
)
def test_configs_that_cannot_be_right(tmp_path, changes, message):
    weights = WEIGHTS
    with pytest.raises(ValueError, match=message):
        load_qwen2(
            write_folder(tmp_path / "bad", weights, config=RECORDER.CONFIG | changes), options()
        )


def test_damaged_and_missing_files(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="not a folder"):
        load_qwen2(tmp_path / "nowhere")
    weights = (folder / "model.safetensors").read_bytes()
    for cut in (0, 7, 100, len(weights) // 2, len(weights) - 1):
        (folder / "model.safetensors").write_bytes(weights[:cut])
        with pytest.raises(ValueError, match=r"truncated|not a file of weights"):
            load_qwen2(folder, options())
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks model\.safetensors"):
        load_qwen2(folder, options())
    index = {"weight_map": {"norm.weight": "../model.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="not a file beside it"):
        load_qwen2(folder, options())
    for name, error in (("tokenizer.json", ValueError), ("config.json", ValueError)):
        (folder / name).write_text("{")
        with pytest.raises(error, match=f"{name} is damaged"):
            load_qwen2(folder, options())
        (folder / name).unlink()
        with pytest.raises(FileNotFoundError, match=name):
            load_qwen2(folder, options())


def test_options_and_hints_of_the_tokenizer(folder, tmp_path, warnings):
    with annotations_off():
        with pytest.raises(UserError, match="padding_side is 'both'"):
            Qwen2Options(padding_side="both")
        with pytest.raises(UserError, match="max_tokens must be at least 1, not 0"):
            Qwen2Options(max_tokens=0)
        with pytest.raises(UserError, match="float16"):
            load_qwen2(folder, options(dtype="float16"))
    (tmp_path / "system.txt").write_text(SYSTEM)
    assert (
        load_qwen2(folder, options(), system_text_file=tmp_path / "system.txt").options.system_text
        == SYSTEM
    )
    with pytest.raises(FileNotFoundError, match="system text"):
        load_qwen2(folder, options(), system_text_file=tmp_path / "absent.txt")
    hints = {"padding_side": "left", "pad_token": {"content": "a"}}
    (folder / "tokenizer_config.json").write_text(json.dumps(hints))
    encoder = load_qwen2(folder, options())
    assert (
        encoder.pad_id == encoder.tokenizer.token_to_id("a") and "pads on the left" in warnings[-1]
    )
    (folder / "tokenizer_config.json").write_text(json.dumps({"pad_token": "<none>"}))
    with pytest.raises(ValueError, match="no token '<none>'"):
        load_qwen2(folder, options())


@pytest.mark.parametrize("name", ["embed_tokens.weight", "layers.1.mlp.up_proj.weight"])
def test_weights_that_are_not_finite(tmp_path, name):
    (stored,) = [key for key in WEIGHTS if key.endswith(name)]
    spoiled = {key: np.array(value) for key, value in WEIGHTS.items()}
    spoiled[stored][0, :3] = np.nan
    with pytest.raises(UserError, match=rf"{stored} holds 3 NaN of {spoiled[stored].size} values"):
        load_qwen2(write_folder(tmp_path / "q", spoiled), options())


NEWER = {"rope_parameters": {"rope_type": "default", "rope_theta": 5000.0}, "head_dim": 8}
WITHOUT_MEANING = {  # with no sliding window, and with defaults that are the same
    ("architectures", LEFT_OUT),
    ("architectures", None),
    ("architectures.0", LEFT_OUT),
    ("hidden_act", LEFT_OUT),
    ("max_position_embeddings", LEFT_OUT),
    ("max_position_embeddings", None),
    ("tie_word_embeddings", LEFT_OUT),
    ("use_sliding_window", LEFT_OUT),
    ("use_sliding_window", True),
    ("sliding_window", LEFT_OUT),
    ("sliding_window", None),
    ("max_window_layers", LEFT_OUT),
    ("max_window_layers", 10**12),
    ("head_dim", LEFT_OUT),
    ("head_dim", None),
    ("rope_parameters", LEFT_OUT),
    ("rope_parameters", None),
    ("rope_parameters", "{}"),
    ("rope_parameters.rope_type", LEFT_OUT),
    ("rope_parameters.rope_theta", LEFT_OUT),
    ("rope_theta", LEFT_OUT),
    ("rope_theta", None),
}


@pytest.mark.parametrize("changes", [{}, NEWER], ids=["older", "newer"])
def test_wrong_values_in_the_config_are_refused(tmp_path, changes):
    folder = write_folder(tmp_path / "q", config=RECORDER.CONFIG | changes)
    taken = accepted(folder / "config.json", lambda: read_config(folder, "float32"))
    # Sizes that are possible are compared with the tensors; see below.
    sizes = {"vocab_size", "hidden_size", "intermediate_size", "sliding_window"}
    believed = []
    for place, value in taken:
        known = (place, value if isinstance(value, (str, int, type(None))) else str(value))
        if place == "architectures" and value == []:
            continue
        if known not in WITHOUT_MEANING and place not in sizes:
            believed.append((place, value))
    if not changes:
        missing = [place for place, value in taken if place == "rope_theta"]
        assert not missing, "without rope_theta nothing says the base"
    assert not believed


@pytest.mark.parametrize(
    "field",
    ["vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"],
)
def test_sizes_that_are_not_those_of_the_tensors(tmp_path, field):
    config = RECORDER.CONFIG | {field: 2 * RECORDER.CONFIG[field]}
    with pytest.raises(UserError, match=r"missing|of another shape"):
        load_qwen2(write_folder(tmp_path / "q", config=config), options())


def test_a_model_made_for_shorter_texts(tmp_path):
    config = RECORDER.CONFIG | {"max_position_embeddings": LENGTH - 1}
    with pytest.raises(UserError, match=rf"made for {LENGTH - 1} tokens"):
        load_qwen2(write_folder(tmp_path / "q", config=config), options())
