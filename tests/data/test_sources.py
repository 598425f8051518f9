import numpy as np
import pytest

from videomar_jax.data.shapes import Shapes
from videomar_jax.data.shards import LatentShards
from videomar_jax.data.sources import (
    ClipShape,
    ClipSource,
    Decoded,
    SizedSource,
    Subset,
    check_index,
    clips_for,
    digest_of,
    name_of,
    nearest_sizes,
)
from videomar_jax.data.tfds_clips import TFDSClips
from videomar_jax.data.videos import VideoFolder


@pytest.mark.parametrize("name", ["num_frames", "height", "width"])
@pytest.mark.parametrize("value", [0, -3, True])
def test_clip_shape_names_the_field_that_is_wrong(name, value):
    sizes = {"num_frames": 9, "height": 32, "width": 32} | {name: value}
    with pytest.raises(ValueError, match=name):
        ClipShape(**sizes)


def test_clip_shapes_compare_by_value():
    assert ClipShape(num_frames=9, height=16, width=24) == ClipShape(
        width=24, height=16, num_frames=9
    )
    assert len({ClipShape(num_frames=n, height=16, width=16) for n in (5, 5, 9)}) == 2


@pytest.mark.parametrize("index", [-1, 4])
def test_an_index_outside_is_an_error(index):
    check_index(3, 4)
    with pytest.raises(IndexError, match=r"0\.\.3"):
        check_index(index, 4)


def test_digests_follow_settings_and_parts():
    settings = dict(seed=0, length=5, split="train", bounce=True)
    whole = Shapes(**settings)
    sources = [
        whole,
        *(
            Shapes(**settings | change)
            for change in ({"seed": 1}, {"length": 6}, {"split": "test"})
        ),
        Subset(whole, [0, 1]),
        Subset(whole, [1, 0]),
    ]
    assert len({digest_of(source) for source in sources}) == 6
    assert (
        digest_of(Shapes(**settings))
        == digest_of(whole)
        == digest_of(Decoded(whole, lambda latents: latents))
    )

    class Plain:
        fps = 1.0

        def __len__(self):
            return 1

        def read(self, index, rng, shape):
            raise NotImplementedError

    assert digest_of(Plain()) == digest_of(Subset(Plain(), [0])) == "", (
        "what has no digest makes none up"
    )


def test_shapes_are_a_clip_source():
    assert isinstance(Shapes(seed=0, length=1, split="train", bounce=True), ClipSource)
    assert not isinstance([], ClipSource)


SQUARE = ClipShape(num_frames=3, height=16, width=16)
SIZES = ((480, 768), (768, 480), (608, 608))


class Prepared:
    """Six clips of latents that hold their index; even ones are square."""

    fps = 4.0

    def __len__(self):
        return 6

    def read(self, index, rng, shape):
        check_index(index, 6)
        return {"latents": np.full((2, 4, 4, 1), index, np.float16), "caption": f"{index}"}

    def name(self, index):
        return f"film {index // 2}"

    def fits(self, shape, sizes):
        return np.arange(0 if shape.height == shape.width else 1, 6, 2)


def test_the_nearest_size_is_the_one_of_least_log_ratio():
    clips = [
        (480, 768),
        (1080, 1920),
        (1920, 1080),
        (100, 100),
        (300, 400),
        (400, 300),
        (10, 1000),
        (1000, 10),
    ]
    rows, columns = np.array(clips).T
    found = nearest_sizes(rows, columns, SIZES)
    for (height, width), number in zip(clips, found, strict=True):
        factors = [(width / height) / (size[1] / size[0]) for size in SIZES]
        assert max(factors[number], 1 / factors[number]) == min(max(f, 1 / f) for f in factors), (
            height,
            width,
        )
    assert found.tolist() == [0, 0, 1, 2, 0, 1, 0, 1]
    assert nearest_sizes(np.array([300]), np.array([300]), ((16, 32), (32, 16))).tolist() == [0], (
        "first of equals"
    )


def test_a_source_that_knows_no_sizes_gives_all_clips_to_all():
    shapes = Shapes(seed=0, length=5, split="train", bounce=True)
    assert not isinstance(shapes, SizedSource) and isinstance(Prepared(), SizedSource)
    assert clips_for(shapes, SQUARE, ((16, 16), (32, 16))).tolist() == [0, 1, 2, 3, 4]
    assert clips_for(Prepared(), SQUARE, ((16, 16),)).tolist() == [0, 2, 4]


def test_a_part_is_a_source_of_its_own():
    part = Subset(Prepared(), [5, 2, 4])
    assert isinstance(part, SizedSource) and len(part) == 3 and part.fps == 4.0
    rng = np.random.default_rng(0)
    assert [part.read(i, rng, SQUARE)["caption"] for i in range(3)] == ["5", "2", "4"]
    assert part.fits(SQUARE, ((16, 16), (16, 32))).tolist() == [1, 2]
    assert [name_of(part, i) for i in range(3)] == ["film 2", "film 1", "film 2"]
    for index in (-1, 3):
        with pytest.raises(IndexError):
            part.read(index, rng, SQUARE)
    with pytest.raises(ValueError, match="at least one clip"):
        Subset(Prepared(), [])


def test_decoded_clips_have_their_video():
    def decode(latents):
        return np.full((3, 16, 16, 3), int(latents.mean()), np.uint8)

    source = Decoded(Prepared(), decode)
    clip = source.read(3, np.random.default_rng(0), SQUARE)
    assert (clip["video"] == 3).all() and clip["caption"] == "3" and "latents" in clip
    assert name_of(source, 3) == "film 1"
    shapes = Shapes(seed=0, length=5, split="train", bounce=True)
    assert name_of(shapes, 3) == name_of(Subset(shapes, [3]), 0) == ""
    assert (
        len(source) == 6
        and source.fps == 4.0
        and source.fits(SQUARE, ((16, 16),)).tolist() == [0, 2, 4]
    )


def test_sources_carry_the_facts_of_their_kind():
    kinds = [source.KIND for source in (Shapes, VideoFolder, LatentShards, TFDSClips)]
    assert [kind.name for kind in kinds] == ["shapes", "videos", "shards", "tfds"]
    assert [kind.prepared for kind in kinds] == [False, False, True, False]
    assert [kind.any_shape for kind in kinds] == [True, True, False, False]
    for kind in kinds:
        assert kind.description and bool(kind.place) == bool(kind.place_form)
    assert [kind.name for kind in kinds if not kind.place] == ["shapes"], "needs no path"
