"""Weights with NaN or infinity are refused by every importer, by the name of the tensor."""

import shutil

import ml_dtypes
import numpy as np
import pytest

from tests.helpers.tiny_run import start, tiny
from tests.helpers.weight_files import write
from tests.interop.test_videomar import TINY, random_state_dict
from videomar_jax.checkpoints.streamed import StreamedCheckpoint
from videomar_jax.checks import UserError, not_finite
from videomar_jax.interop.formats.files import WeightFileError, open_tensors
from videomar_jax.interop.formats.rules import flat
from videomar_jax.interop.videomar import read_checkpoint
from videomar_jax.pretrained.bundle import load_params, load_pretrained
from videomar_jax.tokenizers.base import load_tokenizer, save_tokenizer
from videomar_jax.tokenizers.pca import PatchBasis, PCATokenizer

BAD = {"NaN": np.nan, "infinite": np.inf}


@pytest.mark.parametrize(
    "dtype", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16, ml_dtypes.float8_e5m2]
)
def test_values_are_counted_in_every_type(dtype):
    array = np.ones((3, 4), dtype)
    assert not_finite(array) == ""
    array[0, 1] = np.nan
    array[1, 2:] = -np.inf
    assert not_finite(array) == "1 NaN and 2 infinite of 12 values"
    assert not_finite(np.arange(4)) == ""


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_videomar(tmp_path, kind, suffix):
    tensors = random_state_dict()
    tensors["decoder_blocks.1.attn1.wo.weight"][3, 5] = BAD[kind]
    file = write(tmp_path / f"v.{suffix}", tensors)
    words = rf"v\.{suffix}: the tensor decoder_blocks\.1\.attn1\.wo\.weight holds 1 {kind} of 1024"
    with pytest.raises(WeightFileError, match=words):
        read_checkpoint(file)
    with pytest.raises(WeightFileError, match=words):
        read_checkpoint(file, dtype=None)


@pytest.mark.parametrize(
    ("stored", "wanted", "value"),
    [(np.float64, "float32", 1e39), (np.float32, "float16", 1e6), (np.float32, "bfloat16", 3.4e38)],
)
def test_numbers_too_large_for_a_narrower_type(tmp_path, stored, wanted, value):
    tensors = {name: array.astype(stored) for name, array in random_state_dict(TINY).items()}
    tensors["z_proj.bias"][0] = value
    file = write(tmp_path / "v.safetensors", tensors)
    read_checkpoint(file, dtype=None)
    with pytest.raises(WeightFileError, match=rf"z_proj.bias .* does not fit {wanted}"):
        read_checkpoint(file, dtype=wanted)


def test_a_tokenizer_of_ours(tmp_path):
    def basis(values: int) -> PatchBasis:
        directions = np.eye(values, 4, dtype=np.float32)
        return PatchBasis(
            mean=np.full(values, np.nan, np.float32),
            directions=directions,
            scale=np.ones(4, np.float32),
        )

    save_tokenizer(
        PCATokenizer(image=basis(12), video=basis(24), patch=2, temporal_stride=2), tmp_path
    )
    with pytest.raises(UserError, match=r"tokenizer\.npz: image\.mean holds 12 NaN of 12 values"):
        load_tokenizer(tmp_path)


def test_a_checkpoint_of_ours(finished, tmp_path):
    """What sampling, an export and init_from read."""
    _, params, _ = load_params(finished)
    shutil.copytree(finished / "model", tmp_path / "model")
    checkpoint = StreamedCheckpoint(tmp_path / "checkpoints", "ema")
    for path, leaf in flat(params).items():
        array = np.array(leaf)
        if path == "z_proj/bias":
            array[:2] = np.nan
        checkpoint.put(path, array)
    checkpoint.commit({"step": 0, "seconds": {}})
    words = r"checkpoints/0: ema/z_proj/bias holds 2 NaN of"
    with pytest.raises(UserError, match=words):
        load_pretrained(tmp_path)
    with pytest.raises(UserError, match=words):
        start(tiny(init_from=str(tmp_path)), tmp_path / "run")


def test_tensors_of_a_file_are_read_as_they_are(tmp_path):
    """Reading alone changes nothing: what is refused is the use as weights."""
    file = write(tmp_path / "t.safetensors", {"a": np.array([np.nan, 1], np.float32)})
    with open_tensors(file) as tensors:
        assert np.isnan(tensors["a"][0])
        with pytest.raises(WeightFileError, match="the tensor a holds 1 NaN of 2 values"):
            tensors.read_finite("a")
