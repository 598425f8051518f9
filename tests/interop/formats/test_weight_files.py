"""Reading and writing files of weights: every format gives the same arrays, lazily, and a file
appears complete or not at all."""

import json
import pickle
import tracemalloc
import zipfile

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from tests.helpers.weight_files import (
    BFLOAT16,
    KINDS,
    TENSORS,
    write,
    write_any,
    write_archive,
    write_shards,
)
from videomar_jax.interop.formats.files import (
    TensorSpec,
    WeightFileError,
    open_tensors,
    write_tensors,
)
from videomar_jax.interop.formats.torch_writer import _tensor


def same(ours: np.ndarray, theirs: np.ndarray) -> bool:
    """Equal in type, shape and every bit."""
    return (
        ours.dtype == theirs.dtype
        and ours.shape == theirs.shape
        and ours.tobytes() == theirs.tobytes()
    )


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_gives_the_same_arrays(kind, tmp_path):
    with open_tensors(write_any(kind, tmp_path)) as file:
        assert set(file) == set(TENSORS)
        assert file.shapes == {name: value.shape for name, value in TENSORS.items()}
        assert file.dtypes == {name: value.dtype for name, value in TENSORS.items()}
        wrong = [name for name, value in TENSORS.items() if not same(file[name], value)]
        assert not wrong, f"read differently from {kind}: {wrong}"
        with pytest.raises(KeyError, match="no tensor 'b'"):
            file["b"]


def test_the_safetensors_package_reads_what_we_write_and_we_read_what_it_writes(tmp_path):
    ours = write(tmp_path / "ours.safetensors", metadata={"format": "pt"})
    assert all(same(value, TENSORS[name]) for name, value in load_file(ours).items())
    with safe_open(ours, "np") as file:
        assert set(file.keys()) == set(TENSORS) and file.metadata() == {"format": "pt"}
    save_file(TENSORS, tmp_path / "theirs.safetensors", metadata={"made": "elsewhere"})
    with open_tensors(tmp_path / "theirs.safetensors") as file:
        assert all(same(file[name], value) for name, value in TENSORS.items()) and len(file) == len(
            TENSORS
        )
        assert file.metadata == {"made": "elsewhere"}


def test_a_file_that_pytorch_wrote(golden):
    big = np.arange(60, dtype=np.float32).reshape(6, 10)
    with open_tensors(golden("torch_save.pth")) as file:
        expected = {
            "model.part.weight": big.astype(BFLOAT16),
            "model.n": big[0, 3],
            "views.0": big[1:3, ::4],
            "views.1": big.T,
            "views.2": big[5],
            "views.3": np.zeros((0, 4), np.float32),
            "views.4": np.ones((3, 2), np.float32),
            "types.bool": big[0] > 4,
            "layer.weight": np.arange(12, dtype=np.float32).reshape(4, 3),
            "layer.bias": np.zeros(4, np.float32),
        }
        kinds = {
            "half": "f2",
            "double": "f8",
            "long": "i8",
            "int": "i4",
            "short": "i2",
            "char": "i1",
            "byte": "u1",
        }
        expected |= {f"types.{name}": big[0].astype(kind) for name, kind in kinds.items()}
        wrong = [
            name for name, value in expected.items() if not same(file[name], np.asarray(value))
        ]
        assert not wrong, f"read differently from what PyTorch saved: {wrong}"
        others = set(file) - set(expected)
        assert others == {
            f"optimizer.state.{i}.{name}"
            for i in (0, 1)
            for name in ("step", "exp_avg", "exp_avg_sq")
        }


def test_torchscript_archives_of_the_tokenizer(golden):
    expected = load_file(golden("cosmos/fake_jit.expected.safetensors"))
    names = set()
    for part in ("autoencoder", "encoder", "decoder"):
        with open_tensors(golden(f"cosmos/fake_{part}.jit")) as file:
            wrong = [
                n
                for n in file
                if not np.array_equal(file[n].astype(np.float32), expected[n].astype(np.float32))
            ]
            assert not wrong, f"fake_{part}.jit: {wrong}"
            names |= set(file)
            assert part != "autoencoder" or set(file) == set(expected)
            assert any(dtype == BFLOAT16 for dtype in file.dtypes.values())
    assert names == set(expected)


def test_the_written_pickle_is_one(tmp_path):
    """Python's own unpickler, with substitutes for PyTorch's functions, reads the same dictionary
    from the file."""

    class Reader(pickle.Unpickler):
        def find_class(self, module, name):
            stand_ins = {
                "_rebuild_tensor_v2": lambda storage, offset, size, stride, *_: (
                    storage,
                    offset,
                    size,
                    stride,
                ),
                "OrderedDict": dict,
            }
            return stand_ins.get(name, f"{module}.{name}")

        def persistent_load(self, reference):
            return reference

    path = write(tmp_path / "net.pth", container="model_ema")
    with zipfile.ZipFile(path) as archive, archive.open("archive/data.pkl") as file:
        assert archive.testzip() is None
        tree = Reader(file).load()
        assert archive.read("archive/version") == b"3\n"
        starts = [
            info.header_offset + 30 + len(info.filename) + len(info.extra)
            for info in archive.infolist()
        ]
        assert not any(start % 64 for start in starts), "storages must be aligned to be mapped"
    assert list(tree) == ["model_ema"] and set(tree["model_ema"]) == set(TENSORS)
    storage, offset, size, stride = tree["model_ema"]["a.weight"]
    assert (offset, size, stride) == (0, (3, 4), (4, 1))
    assert storage == ("storage", "torch.FloatStorage", "0", "cpu", 12)


def test_views_of_one_storage(tmp_path):
    """Tensors that share a storage, with offsets and strides."""
    big = np.arange(24, dtype=np.float32)
    spec = TensorSpec((24,), big.dtype)
    whole = _tensor("0", "whole", spec)
    # offset 0, size (24,), stride (1,)
    sizes = b"J\x00\x00\x00\x00(J\x18\x00\x00\x00t(J\x01\x00\x00\x00t"
    assert sizes in whole
    part = whole.replace(
        sizes, b"K\x05(K\x03K\x02t(K\x04K\x02t"
    )  # offset 5, size (3, 2), stride (4, 2)
    program = b"\x80\x02}(X\x05\x00\x00\x00whole" + whole + b"X\x04\x00\x00\x00part" + part + b"u."
    with open_tensors(write_archive(tmp_path / "views.pt", program, {"0": big.tobytes()})) as file:
        np.testing.assert_array_equal(file["whole"], big)
        np.testing.assert_array_equal(file["part"], [[5, 7], [9, 11], [13, 15]])


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_tensors_are_streamed(suffix, tmp_path):
    """Writing and reading 32 tensors of 1 MiB needs memory for a few of them."""
    spec, size = TensorSpec((1024, 256), np.dtype(np.float32)), 2**20
    path = tmp_path / f"large.{suffix}"
    tracemalloc.start()
    write_tensors(
        path,
        {str(i): spec for i in range(32)},
        lambda name: np.full(spec.shape, float(name), np.float32),
    )
    with open_tensors(path) as file:
        sums = [float(file[name][5, 7]) for name in file]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert sums == list(range(32))
    assert peak < 6 * size, f"{peak / size:.1f} MiB were needed at once for tensors of 1 MiB"


def test_nothing_is_left_of_a_failed_or_refused_write(tmp_path):
    path = write(tmp_path / "net.safetensors")
    before = path.read_bytes()
    with pytest.raises(FileExistsError, match="exists already"):
        write(path)

    def fail(name):
        raise RuntimeError("the disk is on fire")

    for target in (path, tmp_path / "other.pth"):
        with pytest.raises(RuntimeError, match="on fire"):
            write_tensors(target, {"x": TensorSpec((2,), np.dtype("f4"))}, fail, overwrite=True)
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == [
        "net.safetensors"
    ]
    with pytest.raises(ValueError, match=r"end its name in \.safetensors"):
        write(tmp_path / "net.ckpt")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        write(tmp_path / "nowhere" / "net.pth")
    with pytest.raises(ValueError, match="announced"):
        write_tensors(
            tmp_path / "y.pth",
            {"x": TensorSpec((2,), np.dtype("f4"))},
            lambda name: np.zeros(3, "f4"),
        )


def test_folders(tmp_path):
    with pytest.raises(FileNotFoundError, match="no safetensors file"):
        open_tensors(tmp_path)
    write_shards(tmp_path)
    with open_tensors(tmp_path) as file:
        assert set(file) == set(TENSORS)
    (tmp_path / "model.safetensors.index.json").unlink()
    with pytest.raises(WeightFileError, match="name the file you mean"):
        open_tensors(tmp_path)
    with pytest.raises(FileNotFoundError, match="no file"):
        open_tensors(tmp_path / "absent.pth")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"a.bias": "../part-1.safetensors"}, "not a file beside it"),
        ({"a.bias": "part-2.safetensors"}, "disagree"),
        ({"new": "part-1.safetensors"}, "disagree"),
        ({"a.bias": 3}, "not a file beside it"),
    ],
)
def test_an_index_that_does_not_fit(change, message, tmp_path):
    path = write_shards(tmp_path)
    index = json.loads(path.read_text())
    index["weight_map"] |= change
    path.write_text(json.dumps(index))
    with pytest.raises(WeightFileError, match=message):
        open_tensors(path)
