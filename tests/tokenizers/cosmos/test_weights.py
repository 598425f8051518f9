"""Files of the Cosmos tokenizer: both key styles, halves, diffusers' names, and files that are
something else."""

import json

import jax
import numpy as np
import pytest

from tests.helpers.tiny_model import annotations_off
from tests.helpers.wrong_values import LEFT_OUT, accepted
from videomar_jax.interop.formats.base import TensorSpec, WeightFileError
from videomar_jax.interop.formats.files import open_tensors, write_tensors
from videomar_jax.interop.formats.rules import expected, exported
from videomar_jax.tokenizers.cosmos.config import CosmosConfig
from videomar_jax.tokenizers.cosmos.rules import (
    cosmos_rules,
    diffusers_key,
    is_unused,
    official_key,
    parameter_shapes,
)
from videomar_jax.tokenizers.cosmos.tokenizer import CosmosTokenizer, load_cosmos
from videomar_jax.tokenizers.cosmos.weights import release_in

TINY = CosmosConfig(
    temporal_stride=4,
    spatial_stride=8,
    patch=2,
    width=4,
    encoder_mults=(1, 2, 2),
    decoder_mults=(1, 2, 2),
    blocks=1,
    z_channels=4,
    latent_channels=4,
)
"""The sizes of the recorded TorchScript archives."""

CASES = [
    (
        "encoder/conv_in/spatial/kernel",
        "encoder.conv_in.0.conv3d.weight",
        "encoder.conv_in.conv_s.weight",
    ),
    (
        "encoder/down/0/block/1/norm1/scale",
        "encoder.down.0.block.1.norm1.norm.weight",
        "encoder.down_blocks.0.resnets.1.norm1.norm.weight",
    ),
    (
        "encoder/down/1/resample/spatial/bias",
        "encoder.down.1.downsample.conv1.conv3d.bias",
        "encoder.down_blocks.1.downsamplers.0.conv1.bias",
    ),
    (
        "decoder/mid/attn_1/temporal/q/kernel",
        "decoder.mid.attn_1.1.q.conv3d.weight",
        "decoder.mid_block.temp_attentions.0.to_q.weight",
    ),
    (
        "decoder/mid/block_2/conv2/temporal/bias",
        "decoder.mid.block_2.conv2.1.conv3d.bias",
        "decoder.mid_block.resnets.1.conv2.conv_t.bias",
    ),
    (
        "decoder/up/2/resample/spatial/kernel",
        "decoder.up.2.upsample.conv2.conv3d.weight",
        "decoder.up_blocks.0.upsamplers.0.conv2.weight",
    ),
    (
        "decoder/up/0/attn/1/spatial/proj_out/bias",
        "decoder.up.0.attn.1.0.proj_out.conv3d.bias",
        "decoder.up_blocks.2.attentions.1.to_out.0.bias",
    ),
    (
        "decoder/up/0/block/0/nin_shortcut/kernel",
        "decoder.up.0.block.0.nin_shortcut.conv3d.weight",
        "decoder.up_blocks.2.resnets.0.conv_shortcut.weight",
    ),
    ("quant_conv/kernel", "quant_conv.conv3d.weight", "quant_conv.weight"),
]


@pytest.mark.parametrize("path, official, diffusers", CASES)
def test_names_follow_the_published_tables(path, official, diffusers):
    assert (official_key(path), diffusers_key(path, 3)) == (official, diffusers)


@pytest.fixture(scope="module")
def tokenizer():
    return CosmosTokenizer.random(TINY)


def write(path, tokenizer, *, diffusers=False, change=lambda tensors: None):
    """A file of this tokenizer under foreign names; `change` may alter the tensors first."""
    slots = expected(cosmos_rules(TINY, diffusers=diffusers), parameter_shapes(TINY))
    leaves = {
        "/".join(str(k.key) for k in path): leaf
        for path, leaf in jax.tree.leaves_with_path(tokenizer.params)
    }
    specs, make = exported(slots, leaves)
    tensors = {key: np.array(make(key)) for key in specs}
    change(tensors)
    write_tensors(
        path, {k: TensorSpec(v.shape, v.dtype) for k, v in tensors.items()}, tensors.__getitem__
    )
    return path


def assert_same(a, b):
    assert jax.tree.structure(a.params) == jax.tree.structure(b.params)
    for (path, x), (_, y) in zip(
        *(jax.tree.leaves_with_path(t.params) for t in (a, b)), strict=True
    ):
        np.testing.assert_array_equal(x, y, err_msg=str(path))


@pytest.mark.parametrize("diffusers", [False, True])
def test_files_of_both_namings_fill_every_parameter(tokenizer, tmp_path, diffusers):
    path = write(tmp_path / "model.safetensors", tokenizer, diffusers=diffusers)
    assert_same(load_cosmos(path, config=TINY), tokenizer)
    assert_same(load_cosmos(tmp_path, config=TINY), tokenizer)


def test_unused_branches_and_constants_are_left_aside(tokenizer, tmp_path):
    def older(tensors):
        tensors["encoder.patcher3d.wavelets"] = np.ones(2, np.float32)
        tensors["decoder.up.2.upsample.conv1.conv3d.weight"] = np.ones((8, 8, 3, 1, 1), np.float32)
        tensors["encoder.down.1.downsample.conv2.conv3d.bias"] = np.ones(8, np.float32)

    assert_same(
        load_cosmos(write(tmp_path / "old.safetensors", tokenizer, change=older), config=TINY),
        tokenizer,
    )
    assert not is_unused(
        "encoder.down.2.downsample.conv1.conv3d.bias", TINY
    )  # the last level has no sampler at all
    assert not is_unused("decoder.up.0.upsample.conv1.conv3d.bias", TINY)


def test_all_faults_are_reported_together(tokenizer, tmp_path):
    def damage(tensors):
        del tensors["quant_conv.conv3d.bias"]
        tensors["encoder.surprise.weight"] = np.ones(3, np.float32)
        tensors["decoder.norm_out.norm.weight"] = np.ones(9, np.float32)

    path = write(tmp_path / "bad.safetensors", tokenizer, change=damage)
    with pytest.raises(ValueError) as error:
        load_cosmos(path, config=TINY)
    for part in (
        "1 missing: quant_conv.conv3d.bias",
        "1 unknown: encoder.surprise.weight",
        "decoder.norm_out.norm.weight [9] instead of [4]",
        "bad.safetensors",
    ):
        assert part in str(error.value)


def test_the_release_is_read_off_the_path_or_asked_for(tmp_path):
    assert release_in("/x/Cosmos-0.1-Tokenizer-CV4x8x8/autoencoder.jit") == CosmosConfig.release(
        "CV4x8x8"
    )
    assert (
        release_in("models--nvidia--Cosmos-1.0-Tokenizer-CV8x8x8/snapshots/0a1b").spatial_stride
        == 8
    )
    with pytest.raises(
        ValueError, match=r"does not say which Cosmos tokenizer .* CV8x16x16, CV8x8x8"
    ):
        release_in("weights/autoencoder.jit")
    with pytest.raises(
        FileNotFoundError, match=r"no encoder\.jit and no decoder\.jit in .*autoencoder\.jit"
    ):
        load_cosmos(tmp_path, release="CV8x16x16")


@pytest.mark.parametrize("parts", [("autoencoder",), ("encoder", "decoder")])
def test_torchscript_archives_are_read_without_torch(golden, tmp_path, parts):
    """Whole or in halves, bfloat16; the kernels against the widened copies, index by index."""
    for part in parts:
        (tmp_path / f"{part}.jit").write_bytes(golden(f"cosmos/fake_{part}.jit").read_bytes())
    params = load_cosmos(tmp_path / f"{parts[-1]}.jit", config=TINY, dtype="bfloat16").params
    with open_tensors(golden("cosmos/fake_jit.expected.safetensors")) as want:
        spatial, point = want["encoder.conv_in.0.conv3d.weight"], want["quant_conv.conv3d.weight"]
        temporal = want["decoder.up.1.upsample.conv1.conv3d.weight"]
    assert params["quant_conv"]["kernel"].dtype == "bfloat16"
    np.testing.assert_array_equal(
        params["encoder"]["conv_in"]["spatial"]["kernel"][2, 0, 5, 3].astype("float32"),
        spatial[3, 5, 0, 2, 0],
    )
    got = params["decoder"]["up"][1]["resample"]["temporal"]["kernel"][0, 5, 6]
    np.testing.assert_array_equal(got.astype("float32"), temporal[6, 5, 0, 0, 0])
    np.testing.assert_array_equal(
        params["quant_conv"]["kernel"].astype("float32"), point[:, :, 0, 0, 0].T
    )


def test_published_key_lists_are_covered(golden):
    """Every key and shape of the four releases, in both styles."""
    for name, release in (
        ("cv8x16x16", "CV8x16x16"),
        ("cv8x8x8", "CV8x8x8"),
        ("cv4x8x8", "CV4x8x8"),
        ("cv4x8x8_lowres", "CV4x8x8-LowRes"),
    ):
        config = CosmosConfig.release(release)
        rows = [
            line.split("\t")
            for line in golden(f"cosmos/keys/{name}.tsv").read_text().splitlines()[1:]
        ]
        slots = expected(cosmos_rules(config), parameter_shapes(config))
        ours = {key: "x".join(map(str, slot.shape)) for key, slot in slots.items()}
        assert ours == {row[0]: row[1] for row in rows if row[3] == "yes"}, release
        assert all(is_unused(row[0], config) for row in rows if row[3] != "yes"), release


@pytest.mark.parametrize(("value", "kind"), [(np.nan, "NaN"), (-np.inf, "infinite")])
def test_weights_that_are_not_finite(tmp_path, tokenizer, value, kind):
    def spoil(tensors):
        tensors["decoder.conv_out.0.conv3d.bias"][0] = value

    path = write(tmp_path / "bad.safetensors", tokenizer, change=spoil)
    with pytest.raises(WeightFileError, match=rf"conv_out\.0\.conv3d\.bias holds 1 {kind} of"):
        load_cosmos(path, config=TINY)


def test_weights_too_large_for_the_type_they_are_read_in(tmp_path, tokenizer):
    def enlarge(tensors):
        tensors["quant_conv.conv3d.bias"][0] = np.finfo(np.float32).max

    path = write(tmp_path / "large.safetensors", tokenizer, change=enlarge)
    load_cosmos(path, config=TINY)
    with pytest.raises(WeightFileError, match=r"quant_conv\.conv3d\.bias .*does not fit bfloat16"):
        load_cosmos(path, config=TINY, dtype="bfloat16")


def test_wrong_values_in_a_config_are_refused(tmp_path):
    file = tmp_path / "config.json"
    file.write_text(json.dumps(TINY.to_dict()))
    with annotations_off():
        taken = accepted(file, lambda: CosmosConfig.from_dict(json.loads(file.read_text())))
    # Whatever has a default may be left out; the tensors tell whether a mere size is right.
    believed = [
        (place, value)
        for place, value in taken
        if value != LEFT_OUT and not (place == "legacy" and value is True)
    ]
    free = {"attention_resolutions", "attention_resolutions.0", "resolution"}
    assert {place for place, _ in believed} <= free, believed
