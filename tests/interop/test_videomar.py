"""VideoMAR's weights: import, inferred sizes, export, and files that are almost but not quite such
weights."""

import dataclasses
import math
import tracemalloc

import jax
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from tests.helpers.weight_files import write
from videomar_jax.interop.formats.files import (
    TensorSpec,
    WeightFileError,
    open_tensors,
    write_tensors,
)
from videomar_jax.interop.formats.rules import expected, flat, nested
from videomar_jax.interop.videomar import (
    inspect_checkpoint,
    parameter_shapes,
    read_checkpoint,
    write_checkpoint,
)
from videomar_jax.interop.videomar_rules import RULES
from videomar_jax.models.config import PRESETS, ModelConfig

TINY = dataclasses.replace(PRESETS["tiny"], head="ddpm")


def random_params(config: ModelConfig, dtype=np.float32, seed: int = 0) -> dict:
    """Parameters of the right shapes, every value different."""
    rng = np.random.default_rng(seed)
    shapes = parameter_shapes(config)
    return nested(
        {
            path: rng.standard_normal(shape, np.float32).astype(dtype)
            for path, shape in shapes.items()
        }
    )


def random_state_dict(config: ModelConfig = TINY, seed: int = 0) -> dict[str, np.ndarray]:
    """Tensors under their official names."""
    rng, slots = np.random.default_rng(seed), expected(RULES, parameter_shapes(config))
    return {name: rng.standard_normal(slot.shape, np.float32) for name, slot in slots.items()}


def assert_equal(ours, theirs) -> None:
    """The same tree with the same bits."""
    a, b = flat(ours), flat(theirs)
    assert set(a) == set(b)
    wrong = [
        p
        for p in a
        if np.asarray(a[p]).tobytes() != np.asarray(b[p]).tobytes() or a[p].dtype != b[p].dtype
    ]
    assert not wrong, f"these parameters changed: {wrong}"


@pytest.mark.parametrize(("head_width", "count"), [(1024, 1_383_155_232), (1280, 1_394_250_016)])
def test_the_published_sizes(head_width, count):
    config = dataclasses.replace(PRESETS["videomar_1p4b"], head_width=head_width)
    shapes = parameter_shapes(config)
    assert sum(math.prod(shape) for shape in shapes.values()) == count
    slots = expected(RULES, shapes)
    assert len(slots) == 620 and sum(math.prod(slot.shape) for slot in slots.values()) == count
    assert slots["decoder_blocks.35.attn2.wkv.weight"].shape == (3072, 1536)
    assert slots["diffloss.net.final_layer.linear.weight"].shape == (32, head_width)
    assert slots["fake_latent"].shape == (1, 300, 1536) and slots["mask_token"].shape == (
        1,
        1,
        1536,
    )


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
@pytest.mark.parametrize("container", ["bare", "ema"])
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_a_round_trip_changes_no_bit(suffix, container, dtype, tmp_path):
    config = dataclasses.replace(TINY, depth=3, head="flow" if container == "ema" else "ddpm")
    params, path = random_params(config, dtype), tmp_path / f"weights.{suffix}"
    write_checkpoint(params, config, path, container=container)
    read_config, again, report = read_checkpoint(path, dtype=None)
    assert read_config == config
    assert_equal(again, params)
    assert report.container == {"bare": "bare", "ema": "model_ema"}[container]
    write_checkpoint(again, read_config, tmp_path / f"again.{suffix}", container=container)
    assert (tmp_path / f"again.{suffix}").read_bytes() == path.read_bytes()


def test_layers_land_in_their_place_and_kernels_are_turned(tmp_path):
    state = random_state_dict()
    _, params, _ = read_checkpoint(write(tmp_path / "x.safetensors", state))
    blocks = params["transformer"]["blocks"]
    for i in range(TINY.depth):
        official = state[f"decoder_blocks.{i}.ff.net.0.proj.weight"]
        np.testing.assert_array_equal(blocks["feed_forward"]["up"]["kernel"][i], official.T)
        np.testing.assert_array_equal(
            blocks["norm2"]["bias"][i], state[f"decoder_blocks.{i}.norm2.bias"]
        )
    np.testing.assert_array_equal(params["mask_token"], state["mask_token"][0, 0])
    np.testing.assert_array_equal(params["null_context"], state["fake_latent"][0])
    np.testing.assert_array_equal(
        params["head"]["time2"]["kernel"], state["diffloss.net.time_embed.mlp.2.weight"].T
    )


@pytest.mark.parametrize("prefix", ["", "module.", "module._orig_mod."])
@pytest.mark.parametrize("weights", ["ema", "model"])
def test_training_checkpoints(prefix, weights, tmp_path):
    """A dictionary with both sets of weights and the optimizer's tensors: one set is read, the rest
    is reported."""
    sets = {"model": random_state_dict(seed=1), "model_ema": random_state_dict(seed=2)}
    tensors = {
        f"{top}.{prefix}{name}": x for top, state in sets.items() for name, x in state.items()
    }
    tensors["optimizer.state.0.exp_avg"] = np.zeros(3, np.float32)
    config, params, report = read_checkpoint(
        write(tmp_path / "x.safetensors", tensors), weights=weights
    )
    wanted = "model_ema" if weights == "ema" else "model"
    assert dataclasses.replace(config, head=TINY.head) == TINY and report.container == wanted
    np.testing.assert_array_equal(params["z_proj"]["kernel"], sets[wanted]["z_proj.weight"].T)
    other = {"model": "model_ema", "model_ema": "model"}[wanted]
    assert report.ignored == {other: len(sets[other]), "optimizer": 1}
    assert wanted in str(report) and "optimizer (1 tensors)" in str(report)


def test_a_set_that_is_not_there(tmp_path):
    path = write(
        tmp_path / "x.safetensors", {f"model.{name}": x for name, x in random_state_dict().items()}
    )
    with pytest.raises(WeightFileError, match="no 'model_ema': ask for the weights 'model'"):
        read_checkpoint(path)
    with pytest.raises(ValueError, match="may be one of 'ema', 'model'"):
        read_checkpoint(path, weights="averaged")


def test_what_no_shape_tells(tmp_path):
    odd = dataclasses.replace(
        TINY,
        latent_channels=1,
        patch_size=2,
        rope_split=(4, 8, 4),
        rope_base=100.0,
        text_mask=False,
        null_text_mask="ones",
    )
    path = tmp_path / "odd.safetensors"
    write_checkpoint(random_params(odd), odd, path)
    config, _, report = read_checkpoint(path)
    assert config == odd and report.assumed["patch_size"] == (2, "file")
    with open_tensors(path) as file:
        bare = write(tmp_path / "bare.safetensors", dict(file))
    config, _, report = read_checkpoint(
        bare, config_overrides={"rope_split": (4, 8, 4), "dtype": "bfloat16"}
    )
    assert (config.latent_channels, config.patch_size, config.dtype) == (4, 1, "bfloat16")
    assert (
        report.assumed["patch_size"] == (1, "assumed")
        and report.assumed["rope_split"][1] == "asked for"
    )
    with pytest.raises(ValueError, match="Unknown key 'widht' in model"):
        read_checkpoint(bare, config_overrides={"widht": 3})
    with pytest.raises(WeightFileError, match="cannot be patches of 3x3"):
        read_checkpoint(bare, config_overrides={"patch_size": 3})


def test_all_faults_are_told_together(tmp_path):
    state = random_state_dict()
    state["extra.weight"] = np.zeros(2, np.float32)
    del state["decoder_blocks.1.norm1.bias"], state["diffloss.net.cond_embed.bias"]
    state["z_proj.weight"] = state["z_proj.weight"][:5]
    state["context_embed.bias"] = np.zeros(TINY.width, np.int32)
    state["module.mask_token"] = state["mask_token"]
    with pytest.raises(WeightFileError) as error:
        read_checkpoint(write(tmp_path / "faulty.safetensors", state))
    for part in (
        "faulty.safetensors",
        "2 missing: ",
        "decoder_blocks.1.norm1.bias",
        "diffloss.net.cond_embed.bias",
        "1 unknown: extra.weight",
        "1 there more than once: mask_token",
        "z_proj.weight [5, 4] instead of [32, 4]",
        "context_embed.bias (int32)",
    ):
        assert part in str(error.value), f"{part!r} is not in: {error.value}"


def test_missing_sizes_do_not_hide_other_faults(tmp_path):
    state = random_state_dict()
    del state["fake_latent"], state["decoder_norm.bias"]
    state["other"] = np.zeros(1, np.float32)
    with pytest.raises(WeightFileError, match="text_tokens cannot be inferred") as error:
        read_checkpoint(write(tmp_path / "x.safetensors", state))
    assert "2 missing: fake_latent, decoder_norm.bias" in str(
        error.value
    ) and "unknown: other" in str(error.value)


@pytest.mark.parametrize(
    ("rows", "message"), [(8, None), (4, None), (6, "6 rows; a DDPM head has 8, a flow head 4")]
)
def test_the_head_is_told_by_its_rows(rows, message, tmp_path):
    state = random_state_dict()
    for kind, shape in (("weight", (rows, TINY.head_width)), ("bias", (rows,))):
        state[f"diffloss.net.final_layer.linear.{kind}"] = np.zeros(shape, np.float32)
    path = write(tmp_path / "x.safetensors", state)
    if message is None:
        assert read_checkpoint(path)[0].head == {8: "ddpm", 4: "flow"}[rows]
    else:
        with pytest.raises(WeightFileError, match=message):
            read_checkpoint(path)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["encoder.conv_in.0.conv3d.weight"], "looks like a Cosmos tokenizer"),
        (["model.layers.0.mlp.up_proj.weight"], "looks like a language model"),
        (["foo", "bar"], "it holds foo, bar"),
        ([], "no tensor at all"),
    ],
)
def test_other_families(names, message, tmp_path):
    path = write(tmp_path / "x.safetensors", {name: np.zeros(1, np.float32) for name in names})
    with pytest.raises(WeightFileError, match=message):
        read_checkpoint(path)


def test_a_layer_number_out_of_this_world(tmp_path):
    state = random_state_dict() | {
        "decoder_blocks.999999999.norm1.weight": np.zeros(32, np.float32)
    }
    with pytest.raises(WeightFileError, match=r"unknown: decoder_blocks\.999999999"):
        read_checkpoint(write(tmp_path / "x.safetensors", state))


def test_parts_of_ours_that_the_published_model_lacks(tmp_path):
    path = tmp_path / "x.safetensors"
    config = dataclasses.replace(TINY, regression=True)
    with pytest.raises(
        ValueError, match=r"no regression/bias, regression/kernel.*drop_regression=True"
    ):
        write_checkpoint(random_params(config), config, path)
    assert not path.exists()
    params = random_params(config)
    write_checkpoint(params, config, path, drop_regression=True)
    read, again, _ = read_checkpoint(path)
    assert read == TINY
    del params["regression"]
    assert_equal(again, params)
    pooled = dataclasses.replace(TINY, pooled_text=True)
    with pytest.raises(ValueError, match="no pooled_embed/kernel; such a model cannot be exported"):
        write_checkpoint(random_params(pooled), pooled, tmp_path / "y.pth", drop_regression=True)
    with pytest.raises(WeightFileError, match="cannot fill pooled_embed/kernel"):
        read_checkpoint(path, config_overrides={"pooled_text": True})
    with pytest.raises(ValueError, match=r"do not fit the config: .*z_proj"):
        write_checkpoint(
            random_params(TINY), dataclasses.replace(TINY, latent_channels=8), tmp_path / "z.pth"
        )
    with pytest.raises(FileExistsError):
        write_checkpoint(random_params(TINY), TINY, path)


def test_placing_on_a_mesh(tmp_path):
    params, path = random_params(TINY), tmp_path / "x.pth"
    write_checkpoint(params, TINY, path)
    mesh = Mesh(np.array(jax.devices()), ("data",))

    def shard(shapes):
        def split(leaf):
            return PartitionSpec(*[None] * (leaf.ndim - 1), *["data"] * (leaf.shape[-1] % 8 == 0))

        return jax.tree.map(lambda leaf: NamedSharding(mesh, split(leaf)), shapes)

    _, placed, _ = read_checkpoint(path, shardings=shard)
    assert_equal(placed, params)
    kernel = placed["transformer"]["blocks"]["feed_forward"]["up"]["kernel"]
    assert len(jax.devices()) == 8 and kernel.addressable_shards[0].data.shape == (2, 32, 16)
    tree = jax.tree.map(lambda leaf: leaf.sharding, placed)
    assert_equal(read_checkpoint(path, shardings=tree)[1], params)
    del tree["z_proj"]["bias"]
    with pytest.raises(ValueError, match="No sharding is given for z_proj/bias"):
        read_checkpoint(path, shardings=tree)
    write_checkpoint(placed, TINY, tmp_path / "from_mesh.pth")
    assert (tmp_path / "from_mesh.pth").read_bytes() == path.read_bytes()


def test_parameters_can_be_taken_as_they_come(tmp_path):
    params, path, sizes = random_params(TINY), tmp_path / "x.pth", {}
    write_checkpoint(params, TINY, path)

    def place(name, array):
        sizes[name] = array.size
        return array.sum()

    config, sums, report = read_checkpoint(path, place=place)
    assert set(sizes) == set(flat(params)) and list(sizes.values()) == sorted(
        sizes.values(), reverse=True
    )
    assert_equal(sums, nested({name: leaf.sum() for name, leaf in flat(params).items()}))
    assert inspect_checkpoint(path) == report and report.config == config == TINY
    with pytest.raises(ValueError, match="shardings or place"):
        read_checkpoint(path, place=place, shardings=lambda shapes: shapes)


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_reading_takes_little_more_memory_than_the_file(suffix, tmp_path):
    config = dataclasses.replace(TINY, width=256, depth=12, num_heads=4)
    path, dtype = tmp_path / f"x.{suffix}", np.dtype(ml_dtypes.bfloat16)
    specs = {
        n: TensorSpec(slot.shape, dtype)
        for n, slot in expected(RULES, parameter_shapes(config)).items()
    }
    write_tensors(path, specs, lambda name: np.zeros(specs[name].shape, dtype))
    read_checkpoint(path, dtype=None)  # what is made once stays out of the count
    tracemalloc.start()
    read_checkpoint(path, dtype=None)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.3 * path.stat().st_size, f"{peak / path.stat().st_size:.2f} times the file"


def test_flipped_headers_of_checkpoints(tmp_path):
    """Names, shapes and metadata that only the checks of this model can find wrong."""
    path = tmp_path / "x.safetensors"
    write_checkpoint(random_params(TINY), TINY, path)
    good, shapes = path.read_bytes(), parameter_shapes(TINY)
    header, rng, refused = int.from_bytes(good[:8], "little"), np.random.default_rng(0), 0
    places = [
        *range(8, 200, 6),
        *np.linspace(200, header, 24).astype(int),
    ]  # densely where the metadata are
    for place in places:
        flipped = bytearray(good)
        flipped[place] ^= int(rng.integers(1, 256))
        path.write_bytes(flipped)
        try:
            _, params, _ = read_checkpoint(path)
            assert {p: leaf.shape for p, leaf in flat(params).items()} == shapes
        except WeightFileError as error:
            assert "x.safetensors" in str(error)
            refused += 1
    assert refused > len(places) // 2, f"only {refused} of {len(places)} flips were noticed"


def test_a_readout_that_sampling_uses_is_never_left_out(tmp_path):
    config = dataclasses.replace(TINY, regression=True, residual=True)
    with pytest.raises(ValueError, match="no regression/bias, regression/kernel"):
        write_checkpoint(
            random_params(config), config, tmp_path / "x.safetensors", drop_regression=True
        )
