"""Nested arrays in pickles and msgpack, and the files of PyTorch before 1.6."""

import os
import pickle

import numpy as np
import pytest
from flax import serialization

from tests.helpers.i3d_files import legacy_torch
from tests.helpers.weight_files import TENSORS
from videomar_jax.interop.formats.files import WeightFileError, open_tensors

RNG = np.random.default_rng(0)
TREE = {
    "a": {
        "one/two": RNG.normal(size=(2, 3, 4)).astype(np.float32),
        "fortran": np.asfortranarray(RNG.normal(size=(3, 5))),
    },
    "big_endian": np.arange(5, dtype=">f4"),
    "whole": {"steps": np.array([7], np.int64), "flags": np.array([True, False])},
}
FLAT = {
    "a/one/two": TREE["a"]["one/two"],
    "a/fortran": TREE["a"]["fortran"],
    "big_endian": TREE["big_endian"],
    "whole/steps": TREE["whole"]["steps"],
    "whole/flags": TREE["whole"]["flags"],
}


class Touch:
    """Unpickled carelessly, it makes a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def outcome(path):
    """Either "read" or "refused"; any other exception fails the test."""
    try:
        with open_tensors(path) as file:
            for name in file:
                assert file[name].shape == file.shapes[name]
    except WeightFileError as error:
        assert path.name in str(error), f"the file is not named: {error}"
        return "refused"
    return "read"


def write_bytes(path, content):
    path.write_bytes(content)
    return path


def assert_holds(path, arrays):
    with open_tensors(path) as file:
        assert set(file) == set(arrays)
        for name, array in arrays.items():
            assert file.shapes[name] == array.shape
            np.testing.assert_array_equal(file[name], array)
            file[name][...] = 0  # the caller's own copy
            np.testing.assert_array_equal(file[name], array)


@pytest.mark.parametrize("protocol", [3, 4])
def test_a_pickle_of_nested_arrays(protocol, tmp_path):
    path = write_bytes(tmp_path / "tree.ckpt", pickle.dumps(TREE, protocol=protocol))
    assert_holds(path, FLAT)


def test_the_names_of_numpy_before_version_2(tmp_path):
    program = pickle.dumps(TREE, protocol=3)
    assert b"numpy._core.multiarray" in program
    older = program.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    assert_holds(write_bytes(tmp_path / "tree.ckpt", older), FLAT)


def test_msgpack_of_flax(tmp_path):
    tree = dict(TREE, big_endian=TREE["big_endian"].astype("<f4"))
    arrays = dict(FLAT, big_endian=tree["big_endian"])
    assert_holds(write_bytes(tmp_path / "tree.flax", serialization.to_bytes(tree)), arrays)


def test_a_file_of_pytorch_before_1_6(tmp_path):
    tensors = {name: array for name, array in TENSORS.items() if name != "a.bias"}
    path = write_bytes(tmp_path / "old.pt", legacy_torch(tensors))
    assert_holds(path, tensors)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_pickle_that_calls_a_function_is_refused_by_name(protocol, tmp_path):
    trap = tmp_path / "sprung"
    tree = {"weights": TREE, "trap": Touch(trap)}
    path = write_bytes(tmp_path / "evil.ckpt", pickle.dumps(tree, protocol=protocol))
    with pytest.raises(WeightFileError, match="nothing was executed"):
        open_tensors(path)
    assert not trap.exists()


class Odd:
    """Something else where an array belongs."""

    def __init__(self, call):
        self.call = call

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (np.array([1, "x"], object), "calls numpy.dtype"),
        (np.array(["text"]), "calls numpy.dtype"),
        (np.zeros(2, [("a", "f4")]), "calls numpy.dtype"),
        (Odd((np._core.multiarray._reconstruct, (np.ndarray, (0,), b"b"), None)), "unknown way"),
        (
            Odd(
                (
                    np._core.multiarray._reconstruct,
                    (np.ndarray, (0,), b"b"),
                    (1, (3,), np.dtype("f4"), False, b"1234"),
                )
            ),
            "has 4 bytes instead of 12",
        ),
        (np.float32(1), "numpy._core.multiarray.scalar"),
    ],
)
def test_pickles_of_other_things(value, says, tmp_path):
    path = write_bytes(tmp_path / "odd.ckpt", pickle.dumps({"x": value}, protocol=4))
    with pytest.raises(WeightFileError, match=says) as error:
        open_tensors(path)
    assert "odd.ckpt" in str(error.value)


def test_files_without_arrays(tmp_path):
    for name, content in {
        "empty.ckpt": pickle.dumps({"x": 1, "y": [2, 3], "z": "text"}, protocol=4),
        "empty.flax": serialization.to_bytes({"x": 1, "another name": 2}),
    }.items():
        with pytest.raises(WeightFileError, match=f"{name} holds no arrays"):
            open_tensors(write_bytes(tmp_path / name, content))


def test_two_arrays_of_one_name(tmp_path):
    tree = {"a": {"b": np.zeros(2)}, "a/b": np.ones(2)}
    path = write_bytes(tmp_path / "twice.ckpt", pickle.dumps(tree, protocol=4))
    with pytest.raises(WeightFileError, match="two tensors are named 'a/b'"):
        open_tensors(path)


CONTENTS = {
    "tree.ckpt": lambda: pickle.dumps(TREE, protocol=4),
    "tree.flax": lambda: serialization.to_bytes(dict(TREE, big_endian=np.zeros(5))),
    "old.pt": lambda: legacy_torch({"a": np.arange(6.0), "b": np.zeros((2, 3), np.float32)}),
}


@pytest.mark.parametrize("name", CONTENTS)
def test_flipped_and_cut_files(name, tmp_path):
    """Read, or refused with our error; a cut is always noticed."""
    good, rng, path = CONTENTS[name](), np.random.default_rng(0), tmp_path / name
    for place in np.linspace(0, len(good) - 1, 150).astype(int):
        flipped = bytearray(good)
        flipped[place] ^= int(rng.integers(1, 256))
        path.write_bytes(flipped)
        outcome(path)
        path.write_bytes(good[:place])
        assert outcome(path) == "refused", f"cut after {place} of {len(good)} bytes, it was read"
    path.write_bytes(good)
    assert outcome(path) == "read"


def test_old_files_of_pytorch_that_lie(tmp_path):
    good = legacy_torch({"a": np.arange(6.0), "b": np.zeros((2, 3), np.float32)})
    path = tmp_path / "lie.pt"
    place = good.index(b"\x88", good.index(b"little_endian"))  # True
    path.write_bytes(good[:place] + b"\x89" + good[place + 1 :])
    with pytest.raises(WeightFileError, match="little-endian machine"):
        open_tensors(path)
    path.write_bytes(good + b"\0")
    with pytest.raises(WeightFileError, match="its tensors end at byte"):
        open_tensors(path)
    path.write_bytes(good.replace((6).to_bytes(8, "little"), (5).to_bytes(8, "little"), 1))
    with pytest.raises(WeightFileError, match="has 5 values instead of 6"):
        open_tensors(path)
