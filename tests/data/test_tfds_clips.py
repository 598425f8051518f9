"""TFDS datasets without TensorFlow: one that is built here, and TFDS's own imitation of data that
is not at hand."""

import json

import numpy as np
import pytest
import tensorflow_datasets as tfds

from videomar_jax.checks import UserError
from videomar_jax.data import tfds_clips
from videomar_jax.data.loader import fixed_clips
from videomar_jax.data.sources import ClipShape, SizedSource, contents_of
from videomar_jax.data.tfds_clips import TFDSClips

SHAPE = ClipShape(num_frames=4, height=16, width=16)
STEP = 10


class DemoClips(tfds.core.GeneratorBasedBuilder):
    """Frame f of video i is grey of brightness i + STEP * f."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        video = {"dtype": np.uint8, "encoding": "bytes"}
        features = {
            "video": tfds.features.Tensor(shape=(None, 24, 32, 3), **video),
            "grey": tfds.features.Tensor(shape=(8, 16, 16, 1), **video),
            "float": tfds.features.Tensor(shape=(8, 4, 4, 3), dtype=np.float32),
            "caption": tfds.features.Text(),
            "captions": tfds.features.Sequence(tfds.features.Text()),
            "label": tfds.features.ClassLabel(names=["walk", "run"]),
            "meta": {
                "title": tfds.features.Text(),
                "video": tfds.features.Tensor(shape=(None, 2, 2, 1), **video),
            },
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(6), "test": self._generate_examples(2)}

    def _generate_examples(self, count):
        for i in range(count):
            frames = (i + STEP * np.arange(8 + i)).astype(np.uint8)[:, None, None, None]
            yield (
                i,
                {
                    "video": np.broadcast_to(frames, (8 + i, 24, 32, 3)).copy(),
                    "caption": f"vidéo {i}",
                    "label": i % 2,
                    "grey": np.broadcast_to(frames[:8], (8, 16, 16, 1)).copy(),
                    "captions": ["one", "two"],
                    "float": np.zeros((8, 4, 4, 3), np.float32),
                    "meta": {
                        "title": f"title {i}",
                        "video": np.zeros((3 + i % 2, 2, 2, 1), np.uint8),
                    },
                },
            )


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Where the dataset is prepared."""
    path = tmp_path_factory.mktemp("tfds")
    DemoClips(data_dir=path, file_format="array_record").download_and_prepare()
    return path


def opened(place, **changes):
    return TFDSClips("demo_clips", **(dict(data_dir=place, fps=10.0) | changes))


def numbers(video):
    """(video, frame) of every frame."""
    return [(int(grey) % STEP, int(grey) // STEP) for grey in video[:, 8, 8, 0]]


def test_windows_of_every_video_with_their_captions(place):
    source = opened(place)
    assert isinstance(source, SizedSource) and len(source) == 6 and source.fps == 10
    seen = {}
    for index in range(6):
        for seed in range(40):
            clip = source.read(index, np.random.default_rng(seed), SHAPE)
            assert clip["video"].shape == (4, 16, 16, 3) and clip["video"].dtype == np.uint8
            which = numbers(clip["video"])
            assert np.diff([frame for _, frame in which]).tolist() == [1, 1, 1]
            (video,) = {video for video, _ in which}
            assert clip["caption"] == f"vidéo {video}"
            seen.setdefault(video, set()).add(which[0][1])
    assert seen == {video: set(range(8 + video - 3)) for video in range(6)}, (
        "every window is drawn, no other"
    )


def test_the_same_draw_gives_the_same_clip(place):
    first, again = opened(place), opened(place)
    for seed in range(4):
        left, right = (
            source.read(2, np.random.default_rng(seed), SHAPE)["video"] for source in (first, again)
        )
        np.testing.assert_array_equal(left, right)


def test_other_splits_give_the_middle(place):
    source = opened(place, split="test")
    assert len(source) == 2
    starts = {
        numbers(source.read(i, np.random.default_rng(i), SHAPE)["video"])[0] for i in range(2)
    }
    assert starts == {(0, 2), (1, 2)}
    assert len(opened(place, split="train[:50%]")) == 3
    assert len(opened(place, split="train[50%:]+test[50%:]")) == 4
    drawn = {
        numbers(
            opened(place, split="test", random=True).read(0, np.random.default_rng(s), SHAPE)[
                "video"
            ]
        )[0]
        for s in range(20)
    }
    assert len(drawn) > 2


def test_frames_are_scaled_to_cover_and_one_channel_becomes_three(place):
    wide = ClipShape(num_frames=2, height=12, width=40)
    assert opened(place).read(0, np.random.default_rng(0), wide)["video"].shape == (2, 12, 40, 3)
    clip = opened(place, video_key="grey").read(0, np.random.default_rng(0), SHAPE)["video"]
    assert clip.shape == (4, 16, 16, 3) and (clip[..., :1] == clip).all()


@pytest.mark.parametrize(
    ("key", "allowed"),
    [
        ("label", {"walk", "run"}),
        ("captions", {"one", "two"}),
        ("meta/title", {f"title {i}" for i in range(6)}),
        ("", {""}),
    ],
)
def test_captions_of_every_kind(place, key, allowed):
    source = opened(place, caption_key=key)
    found = {
        source.read(i, np.random.default_rng(s), SHAPE)["caption"]
        for i in range(6)
        for s in range(6)
    }
    assert found == allowed
    if key == "captions":
        middle = opened(place, caption_key=key, split="test")
        assert {middle.read(0, np.random.default_rng(s), SHAPE)["caption"] for s in range(6)} == {
            "one"
        }


def test_a_folder_of_a_prepared_dataset(place):
    by_name, by_folder = opened(place), TFDSClips(str(place / "demo_clips" / "1.0.0"), fps=10.0)
    batches = [fixed_clips(source, range(6), shape=SHAPE) for source in (by_name, by_folder)]
    np.testing.assert_array_equal(batches[0]["video"], batches[1]["video"])
    assert batches[0]["caption"] == batches[1]["caption"]


def test_digests_tell_other_videos_apart(place):
    by_folder = TFDSClips(str(place / "demo_clips" / "1.0.0"), fps=10.0)
    assert opened(place).digest() == opened(place).digest() == by_folder.digest()
    others = [
        dict(split="test"),
        dict(split="train[:50%]"),
        dict(caption_key=""),
        dict(video_key="grey"),
        dict(fps=5.0),
    ]
    assert len({opened(place, **changes).digest() for changes in [{}, *others]}) == 6


def test_the_files_of_a_split_are_its_contents(place):
    by_folder = TFDSClips(str(place / "demo_clips" / "1.0.0"), fps=10.0)
    for source in (opened(place), by_folder, opened(place, split="train[:50%]")):
        found = contents_of(source)
        names = [file.name for file in found.files]
        assert any("train" in name for name in names) and "features.json" in names
        assert not any("test" in name for name in names)
    assert contents_of(opened(place)).digest_of_files() == contents_of(by_folder).digest_of_files()


def test_the_imitation_of_a_dataset_that_is_not_at_hand(tmp_path):
    with tfds.testing.mock_data(num_examples=3):
        source = opened(tmp_path, video_key="grey")
        clip = source.read(2, np.random.default_rng(0), SHAPE)
    assert (
        len(source) == 3
        and clip["video"].shape == (4, 16, 16, 3)
        and isinstance(clip["caption"], str)
    )


def test_a_video_that_is_too_short(place):
    with pytest.raises(ValueError, match=r"demo_clips, test: video \d has \d frames, 12 asked"):
        opened(place, split="test").read(
            0, np.random.default_rng(0), ClipShape(num_frames=12, height=8, width=8)
        )
    with pytest.raises(IndexError, match="6 clips"):
        opened(place).read(6, np.random.default_rng(0), SHAPE)


def frames_asked(count):
    return ClipShape(num_frames=count, height=8, width=8)


def test_only_videos_that_are_long_enough_fit(place, caplog, monkeypatch):
    source = opened(place)  # 8 to 13 frames, in an order that TFDS shuffles
    lengths = [len(source._source[i]["video"]) for i in range(6)]
    assert sorted(lengths) == [8, 9, 10, 11, 12, 13]
    monkeypatch.setattr(tfds_clips, "_CHUNK", 4)
    for count in (1, 8, 9, 13, 14):
        fit = source.fits(frames_asked(count), ((8, 8),))
        assert fit.tolist() == [i for i in range(6) if lengths[i] >= count], f"{count} frames"
        for index in fit.tolist():
            source.read(index, np.random.default_rng(0), frames_asked(count))
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    for (left_out, count), warning in zip([(1, 9), (5, 13), (6, 14)], warnings, strict=True):
        assert f"{left_out} of 6 videos have fewer than {count} frames and are left" in warning
    assert opened(place, video_key="meta/video").fits(frames_asked(4)).size == 3


def test_lengths_are_read_once_and_only_where_they_can_differ(place, monkeypatch):
    source, read = opened(place), []
    raw = type(source._source.data_source)
    original = raw.__getitem__
    monkeypatch.setattr(
        raw, "__getitem__", lambda self, index: read.append(index) or original(self, index)
    )
    for count in (3, 9, 3):
        source.fits(frames_asked(count))
    assert sorted(read) == list(range(6)), "each video once"
    read.clear()
    assert opened(place, video_key="grey").fits(frames_asked(8)).size == 6
    assert opened(place, video_key="grey").fits(frames_asked(9)).size == 0 and not read


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(name="nonesuch"), "TFDS cannot open 'nonesuch'.*not found"),
        (dict(split="valid"), "cannot read the split 'valid' .*it has train, test"),
        (dict(split="train[:0]"), "'train.*' of 'demo_clips' is empty|cannot read the split"),
        (
            dict(video_key="clip"),
            r"no feature 'clip'; it has .*video \(uint8 \[None, 24, 32, 3\]\).*meta/title",
        ),
        (dict(caption_key="text"), "no feature 'text'; it has .*caption"),
        (dict(video_key="label"), "'label' of demo_clips is .*not a video: uint8"),
        (dict(video_key="float"), r"'float' of demo_clips is \(float32 .*not a video: uint8"),
        (dict(fps=0.0), "fps must be positive"),
    ],
)
def test_what_is_not_there_is_named(place, changes, words):
    settings = dict(name="demo_clips", data_dir=place, fps=10.0) | changes
    with pytest.raises(ValueError, match=words):
        TFDSClips(**settings)


def test_a_dataset_that_is_not_prepared(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"'demo_clips' is not prepared: run tfds.builder\('demo_clips'"
    ):
        opened(tmp_path)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_features_file_runs_no_module(place, tmp_path, monkeypatch, legacy):
    (tmp_path / "evil_features.py").write_text("raise SystemExit('code ran')")
    monkeypatch.syspath_prepend(tmp_path)
    evil = {"type" if legacy else "pythonClassName": "evil_features.Thing", "content": {}}
    (tmp_path / "dataset_info.json").write_text("{}")
    (tmp_path / "features.json").write_text(json.dumps({"features": {"video": evil}}))
    with pytest.raises(UserError, match=r"evil_features\.Thing"):
        TFDSClips(str(tmp_path), fps=1.0)
