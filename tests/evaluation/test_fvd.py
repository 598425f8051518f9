"""The Fréchet distance against closed forms and SciPy, moments in parts, and the protocols."""

import typing

import numpy as np
import pytest
import scipy.linalg

from videomar_jax.checks import UserError
from videomar_jax.evaluation.fvd import (
    FVD,
    Moments,
    as_report,
    frechet_distance,
    fvd,
    joined,
    load_moments,
)
from videomar_jax.evaluation.protocols import (
    FEATURES,
    LEAST_FRAMES,
    PROTOCOLS,
    ProtocolName,
    check_clip,
    check_counts,
)


def random_features(count, size=FEATURES, seed=0, shift=0.0):
    """Correlated features of unequal spread."""
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(size, size)) * rng.uniform(0.1, 3, size)
    return (rng.normal(size=(count, size)) @ mixing / np.sqrt(size) + shift).astype(np.float32)


def gaussian(mean, covariance, count=1000):
    """Moments of a set of clips with exactly this mean and covariance."""
    covariance = np.asarray(covariance, float)
    return Moments(count=count, mean=np.asarray(mean, float), squares=covariance * (count - 1))


# The distance


@pytest.mark.parametrize("count", [300, 500])
def test_the_distance_of_a_set_to_itself_is_zero(count):
    """Also where the covariance is singular."""
    moments = Moments.of(random_features(count))
    assert abs(frechet_distance(moments, moments)) < 1e-9 * np.trace(moments.covariance)


def test_two_gaussians_along_the_axes():
    a = gaussian([1, 2, 3], np.diag([1, 4, 9]))
    b = gaussian([1, 0, 7], np.diag([4, 4, 0.25]))
    closed = (2**2 + 4**2) + (1 - 2) ** 2 + (2 - 2) ** 2 + (3 - 0.5) ** 2
    assert frechet_distance(a, b) == pytest.approx(closed, rel=1e-12)


def test_two_gaussians_with_common_axes_that_are_turned():
    turn = scipy.linalg.qr(np.random.default_rng(1).normal(size=(5, 5)))[0]
    first, second = np.array([5, 1, 0.1, 2, 3]), np.array([2, 2, 0, 7, 1])
    a = gaussian(np.zeros(5), turn * first @ turn.T)
    b = gaussian(np.ones(5), turn * second @ turn.T)
    closed = 5 + np.sum((np.sqrt(first) - np.sqrt(second)) ** 2)
    assert frechet_distance(a, b) == pytest.approx(closed, rel=1e-9)


def test_gaussians_without_common_axes_agree_with_the_root_of_scipy():
    a = Moments.of(random_features(200, size=20))
    b = Moments.of(random_features(300, size=20, seed=3, shift=0.3))
    root = scipy.linalg.sqrtm(a.covariance @ b.covariance)
    plain = np.sum((a.mean - b.mean) ** 2)
    plain += np.trace(a.covariance + b.covariance - 2 * root.real)
    assert frechet_distance(a, b) == pytest.approx(plain, rel=1e-8)
    assert frechet_distance(b, a) == pytest.approx(plain, rel=1e-8)


def test_moments_are_those_of_numpy():
    features = random_features(50, size=7)
    moments = Moments.of(features)
    np.testing.assert_allclose(moments.mean, features.astype(float).mean(0), rtol=1e-12)
    np.testing.assert_allclose(moments.covariance, np.cov(features.T.astype(float)), rtol=1e-12)


def test_four_shards_joined_are_the_whole():
    """To 1e-10, whatever their sizes, in any order; also far away from zero."""
    features = random_features(700, size=60, shift=1000.0)
    other = Moments.of(random_features(500, size=60, seed=5, shift=1000.2))
    whole = Moments.of(features)
    shards = [Moments.of(part) for part in np.split(features, [1, 300, 450])]
    for order in ((0, 1, 2, 3), (3, 1, 0, 2)):
        found = joined(shards[i] for i in order)
        assert found.count == whole.count == 700
        np.testing.assert_allclose(found.mean, whole.mean, rtol=1e-10)
        scale = np.abs(whole.squares).max()
        np.testing.assert_allclose(found.squares, whole.squares, rtol=0, atol=1e-10 * scale)
        assert frechet_distance(found, other) == pytest.approx(
            frechet_distance(whole, other), rel=1e-10
        )
    with_nothing = Moments.empty(60).joined(whole).joined(Moments.empty(60))
    np.testing.assert_array_equal(with_nothing.squares, whole.squares)
    assert Moments.empty(3).joined(Moments.of(np.zeros((0, 3)))).count == 0


def test_moments_in_a_file(tmp_path):
    moments = Moments.of(random_features(30, size=5))
    moments.save(tmp_path / "part.moments")
    read = load_moments(tmp_path / "part.moments")
    assert read.count == 30
    np.testing.assert_array_equal(read.mean, moments.mean)
    np.testing.assert_array_equal(read.squares, moments.squares)


def test_files_that_hold_no_moments(tmp_path):
    path = tmp_path / "part.npz"
    with pytest.raises(FileNotFoundError):
        load_moments(path)
    path.write_bytes(b"not an archive")
    with pytest.raises(UserError, match=r"part\.npz does not hold means"):
        load_moments(path)
    np.savez(path, count=3, mean=np.zeros(2))
    with pytest.raises(UserError, match=r"part\.npz does not hold means"):
        load_moments(path)
    np.savez(path, count=3, mean=np.zeros(2), squares=np.zeros((2, 3)))
    with pytest.raises(UserError, match=r"part\.npz holds no plausible"):
        load_moments(path)
    np.savez(path, count=3, mean=np.array([0, np.nan]), squares=np.zeros((2, 2)))
    with pytest.raises(UserError, match=r"part\.npz holds no plausible"):
        load_moments(path)


def test_features_that_cannot_be_used():
    features = random_features(4, size=3)
    features[1, 2] = np.nan
    with pytest.raises(UserError, match="features of 4 clips hold 1 NaN of 12"):
        Moments.of(features)
    a, b = (Moments.of(random_features(9, size=size)) for size in (3, 4))
    with pytest.raises(UserError, match="3 and of 4 numbers cannot be joined"):
        a.joined(b)
    with pytest.raises(UserError, match="3 and of 4 numbers cannot be compared"):
        frechet_distance(a, b)
    with pytest.raises(UserError, match="1 clips have no covariance"):
        frechet_distance(a, Moments.of(random_features(1, size=3)))


# Protocols


def test_the_table_has_the_published_counts():
    assert set(PROTOCOLS) == set(typing.get_args(ProtocolName))
    assert PROTOCOLS["bair"].reference == 256 and PROTOCOLS["bair"].generated == 256 * 100
    assert PROTOCOLS["bair_debiased"].reference == 256 * (30 - 16 + 1)
    assert PROTOCOLS["k600"].given == 5 and PROTOCOLS["k600"].size == (64, 64)
    for rule in PROTOCOLS.values():
        assert rule.source and rule.true_clips and (rule.frames or LEAST_FRAMES) >= LEAST_FRAMES


@pytest.mark.parametrize(
    ("protocol", "generated", "reference", "says"),
    [
        ("own", 399, 1000, "399 generated clips instead of at least 400 says"),
        ("own", 100, 30, "100 generated clips .* and 30 true clips instead of at least 400"),
        ("bair", 25_600, 255, "255 true clips instead of 256"),
        ("k600", 49_999, 400, "49999 generated clips instead of 50000"),
        ("bair_debiased", 25_600, 256, "256 true clips instead of 3840"),
    ],
)
def test_too_few_clips_are_refused_unless_asked_for(protocol, generated, reference, says):
    with pytest.raises(UserError, match=says + r".*--few_clips") as error:
        check_counts(generated, reference, protocol=protocol, few=False)
    assert "not repeated" in str(error.value)
    assert check_counts(generated, reference, protocol=protocol, few=True)


@pytest.mark.parametrize(
    ("protocol", "generated", "reference"),
    [("own", 400, 400), ("bair", 25_600, 256), ("k600", 50_000, 174_000), ("cdfvd", 2048, 2048)],
)
def test_enough_clips(protocol, generated, reference):
    assert not check_counts(generated, reference, protocol=protocol, few=False)


def test_more_clips_than_the_protocol_has():
    with pytest.raises(UserError, match="'bair' has 256 true clips, not 257: leave some out"):
        check_counts(25_600, 257, protocol="bair", few=True)


@pytest.mark.parametrize(
    ("shape", "protocol", "says"),
    [
        ((8, 64, 64, 3), "own", r"a\.mp4 has 8 frames, and FVD needs at least 9"),
        ((17, 64, 64, 3), "k600", "has 17 frames, and the protocol 'k600' takes 16"),
        ((16, 64, 48, 3), "bair", "has frames of 64x48, and the protocol 'bair' takes 64x64"),
    ],
)
def test_clips_that_the_protocol_does_not_take(shape, protocol, says):
    with pytest.raises(UserError, match=says):
        check_clip(shape, "a.mp4", protocol=protocol)
    check_clip((9, 17, 33, 3), "a.mp4", protocol="own")


def test_every_number_carries_its_counts():
    a, b = Moments.of(random_features(500)), Moments.of(random_features(450, seed=2))
    result = fvd(a, b)
    assert result == FVD(frechet_distance(a, b), 500, 450, "own", False)
    assert "500 generated and 450 true clips)" in str(result)
    few = fvd(Moments.of(random_features(20)), b, few=True)
    assert "20 generated and 450 true clips; too few" in str(few)
    report = as_report(few)
    assert report["generated_clips"] == 20 and report["too_few_clips"]
    assert report["protocol"]["name"] == "own" and report["fvd"] == few.distance
    with pytest.raises(UserError, match="20 generated clips instead of at least 400"):
        fvd(Moments.of(random_features(20)), b)
    with pytest.raises(UserError, match=r"protocol is 'k60'.*Did you mean 'k600'"):
        fvd(a, b, protocol="k60")
