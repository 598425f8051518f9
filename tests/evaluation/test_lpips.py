"""LPIPS against the package it comes from, and the files that it takes."""

import dataclasses
import inspect
import json

import numpy as np
import pytest

from tests.golden import record_metrics
from tests.helpers.lpips_files import FILES, write_lpips
from tests.helpers.weight_files import write
from videomar_jax.checks import UserError
from videomar_jax.evaluation.lpips import ARCHITECTURES, LPIPS
from videomar_jax.evaluation.lpips_weights import load_lpips
from videomar_jax.interop.formats.files import WeightFileError

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_lpips(tmp_path_factory.mktemp("weights of LPIPS"))


@pytest.fixture(scope="module")
def alex(folder):
    return dataclasses.replace(load_lpips(folder), batch_size=2)


@pytest.mark.parametrize("name", ["alex", "vgg"])
def test_it_agrees_with_the_package_and_torchmetrics(name, tmp_path):
    """Values from tests/golden/record_metrics.py."""
    recorded = json.loads(record_metrics.FILE.read_text())["lpips"][name]
    loaded = load_lpips(write_lpips(tmp_path, name), name)
    network = dataclasses.replace(loaded, batch_size=1)
    for number, (reference, video) in enumerate(record_metrics.random_frames()):
        found = network(video[None, None], reference[None, None])[0]
        for library, values in recorded.items():
            assert found == pytest.approx(values[number], rel=1e-4), library


def test_a_clip_has_the_mean_of_its_frames_whatever_the_batch(alex):
    video, reference = RNG.integers(0, 256, (2, 2, 5, 32, 40, 3), dtype=np.uint8)
    per_frame = alex.per_frame(video, reference)
    assert per_frame.shape == (2, 5) and per_frame.std() > 0
    in_threes = LPIPS(network="alex", params=alex.params, batch_size=3)
    np.testing.assert_allclose(in_threes(video, reference), per_frame.mean(axis=1), rtol=1e-5)
    single = alex.per_frame(video[1:, 3:4], reference[1:, 3:4])
    np.testing.assert_allclose(single[0, 0], per_frame[1, 3], rtol=1e-5)


def test_equal_clips_are_at_0_and_noise_leads_away(alex):
    reference = np.full((1, 2, 32, 32, 3), 128, np.uint8)
    reference[:, :, 8:20, 5:17] = 40, 90, 200
    assert alex(reference, reference)[0] == 0
    distances = []
    for level in (5, 20, 60):
        noisy = np.clip(reference + RNG.normal(0, level, reference.shape), 0, 255)
        distances.append(alex(noisy.astype(np.uint8), reference)[0])
    assert 0 < distances[0] < distances[1] < distances[2]


def test_the_least_size_is_the_least_that_works(alex):
    side = ARCHITECTURES["alex"].least_side
    clips = RNG.integers(0, 256, (2, 1, 1, side, side + 2, 3), dtype=np.uint8)
    assert alex(*clips)[0] > 0
    with pytest.raises(UserError, match=f"AlexNet takes frames .* at least {side} .*, not 30x33"):
        alex(*clips[:, :, :, 1:])


def test_damaged_weights_do_not_pass(alex):
    params = alex.params | {"head_2": alex.params["head_2"] * np.nan}
    clips = np.zeros((1, 2, 32, 32, 3), np.uint8)
    with pytest.raises(UserError, match="LPIPS of 1 clips holds 2 NaN"):
        LPIPS(network="alex", params=params)(clips, clips)
    with pytest.raises(ValueError, match="same shape"):
        inspect.unwrap(LPIPS.per_frame)(alex, clips, clips[:, :1])


@pytest.mark.parametrize("name", ["alex", "vgg"])
def test_missing_files_are_named_with_their_places(name, tmp_path):
    backbone, heads = FILES[name]
    with pytest.raises(UserError, match=f"lacks {backbone} and {heads}"):
        load_lpips(tmp_path, name)
    write_lpips(tmp_path, name)
    (tmp_path / heads).unlink()
    with pytest.raises(UserError) as error:
        load_lpips(tmp_path, name)
    said = str(error.value)
    assert f"lacks {heads}. LPIPS" in said and backbone in said
    assert f"lpips/weights/v0.1/{heads} of the package lpips 0.1.4" in said
    with pytest.raises(UserError, match=r"There is no folder .*nowhere\. LPIPS"):
        load_lpips(tmp_path / "nowhere", name)


def test_two_networks_in_a_folder_are_not_chosen_from(folder, tmp_path):
    write_lpips(tmp_path)
    (tmp_path / "alexnet-owt-4df8aa71.pth").write_bytes(b"")
    with pytest.raises(UserError, match=r"alexnet-owt-4df8aa71\.pth, alexnet-owt-7be5be79\.pth"):
        load_lpips(tmp_path)


def without_a_layer(backbone):
    del backbone["features.6.bias"]
    return "1 missing: features.6.bias"


def with_another_layer(backbone):
    backbone["features.13.weight"] = np.zeros(3, np.float32)
    return "1 unknown: features.13.weight"


def of_another_shape(backbone):
    backbone["features.3.weight"] = np.zeros((192, 64, 3, 3), np.float32)
    return r"features.3.weight \[192, 64, 3, 3\] instead of \[192, 64, 5, 5\]"


def with_nan(backbone):
    backbone["features.0.bias"][3] = np.nan
    return "features.0.bias holds 1 NaN"


@pytest.mark.parametrize(
    "spoil",
    [without_a_layer, with_another_layer, of_another_shape, with_nan],
    ids=lambda function: function.__name__,
)
def test_weights_of_another_network_are_refused_by_name(spoil, tmp_path):
    write_lpips(tmp_path)
    backbone, _ = record_metrics.lpips_tensors("alex")
    says = spoil(backbone)
    write(tmp_path / FILES["alex"][0], backbone, overwrite=True)
    with pytest.raises(WeightFileError, match=says):
        load_lpips(tmp_path)
