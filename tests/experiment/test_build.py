"""Each kind of data is opened as the config says.

Prepared clips, and models that a run starts from, bring their own tokenizer and text encoder."""

import dataclasses
import logging

import numpy as np
import pytest

from tests.helpers.tiny_run import load_config, tiny, write_clip
from videomar_jax.data.shapes import Shapes
from videomar_jax.data.sources import clips_for
from videomar_jax.data.videos import VideoFolder
from videomar_jax.experiment import build, data_sources
from videomar_jax.experiment.config import Experiment
from videomar_jax.text_encoders import HashedTextEncoder
from videomar_jax.tokenizers import CosmosTokenizer, PCATokenizer, to_pixels
from videomar_jax.tokenizers.base import fingerprint
from videomar_jax.tokenizers.cosmos.config import CosmosConfig


@pytest.fixture(scope="module")
def pca():
    """The tokenizer of the tiny config, fitted on its clips."""
    made = Experiment.from_config(tiny())
    return made.tokenizer(made.source("train"))


def model_folder(path, tokenizer, text=None):
    """A model's folder, as far as its tokenizer and text encoder go."""
    tokenizer.save(path / "model" / "tokenizer")
    if text is not None:
        text.save(path / "model" / "text_encoder")
    return path


def experiment(**sections):
    return Experiment.from_config(tiny(**sections))


# Sources


def test_shapes_and_folders(tmp_path):
    assert isinstance(experiment().source("train"), Shapes)
    write_clip(tmp_path / "long.mp4", 60)
    write_clip(tmp_path / "short.mp4", 4)
    made = experiment(data=dict(kind="videos", path=str(tmp_path)))
    train = made.source("train")
    assert isinstance(train, VideoFolder) and len(train) == 2, (
        "a clip that is long enough for some stage is left out"
    )
    assert len(made.source("train", min_frames=5)) == 1
    assert {made.source("test").name(i) for i in range(len(made.source("test")))} == {"long"}


def test_paths_may_start_in_the_home_folder_or_the_current_one(pca, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    write_clip(tmp_path / "clips" / "a.mp4", 60)
    (tmp_path / "words.csv").write_text("file,caption\na.mp4,hello\n")
    for folder, table in (("~/clips", "~/words.csv"), ("clips/", "words.csv")):
        made = experiment(data=dict(kind="videos", path=folder, captions=table))
        clip = made.source("train").read(0, np.random.default_rng(0), made.final_shape)
        assert clip["caption"] == "hello"
    pca.save(tmp_path / "clips" / "model" / "tokenizer")
    for folder in ("~/clips", "clips"):
        config = data_sources.DataConfig(kind="shards", path=folder)
        assert build.prepared_with(config) == tmp_path / "clips"
    pca.save(tmp_path / "run" / "model" / "tokenizer")
    inherited = experiment(init_from="~/run")
    assert fingerprint(inherited.tokenizer(inherited.source("train"))) == fingerprint(pca)


@pytest.mark.parametrize("file", ["stage1", "stage2", "stage3"])
def test_the_stages_take_ordinary_clips(tmp_path, file):
    """Of clips of six seconds no last 2 % is a clip of the last stage."""
    first = write_clip(tmp_path / "0.mp4", 72)
    for number in range(1, 5):
        (tmp_path / f"{number}.mp4").write_bytes(first.read_bytes())
    made = Experiment.from_config(load_config(file, data=dict(path=str(tmp_path))))
    shape, splits = (
        made.final_shape,
        [made.source(split) for split in ("train", "test")],
    )
    names = [
        {source.name(int(i)) for i in clips_for(source, shape, [(shape.height, shape.width)])}
        for source in splits
    ]
    assert names[0] and names[1] and not names[0] & names[1] and len(names[0] | names[1]) == 5


def test_another_folder_is_measured_on(tmp_path):
    """All of it, and training takes all of its own."""
    write_clip(tmp_path / "train" / "a.mp4", 40)
    write_clip(tmp_path / "train" / "b.mp4", 6, seed=1)
    write_clip(tmp_path / "test" / "c.mp4", 6, seed=2)
    (tmp_path / "test" / "captions.csv").write_text("file,caption\nc.mp4,a square\n")
    data = dict(kind="videos", path=str(tmp_path / "train"), held_out=str(tmp_path / "test"))
    experiment = Experiment.from_config(tiny(data=data))
    train, test = experiment.source("train"), experiment.source("test")
    assert [train.name(i) for i in range(len(train))] == ["a", "b"]
    assert [test.name(i) for i in range(len(test))] == ["c"]
    shape = experiment.final_shape
    whole = dataclasses.replace(shape, num_frames=40)
    assert len(clips_for(train, whole, ((shape.height, shape.width),))) == 1, "cut"
    clips = [test.read(0, np.random.default_rng(seed), shape) for seed in (0, 1)]
    np.testing.assert_array_equal(clips[0]["video"], clips[1]["video"], "windows must be fixed")
    assert clips[0]["caption"] == "a square"
    windows = [train.read(0, np.random.default_rng(seed), shape)["video"] for seed in range(5)]
    assert any((window != windows[0]).any() for window in windows), "windows must be random"


@pytest.mark.parametrize(
    ("data", "train", "test"),
    [
        (dict(holdout=0.2), "train[:80%]", "train[80%:]"),
        (dict(holdout=0.001), "train[:99%]", "train[99%:]"),
        (dict(split="all", holdout=0.995), "all[:1%]", "all[1%:]"),
        (
            dict(split="train+validation", holdout=0.2),
            "train[:80%]+validation[:80%]",
            "train[80%:]+validation[80%:]",
        ),
        (dict(split="train + test", held_out="validation"), "train + test", "validation"),
        (dict(split="train[:9%]", held_out="validation"), "train[:9%]", "validation"),
    ],
)
def test_a_tfds_dataset_by_name(data, train, test, monkeypatch):
    asked = []
    clips = Shapes(seed=0, length=1, split="train", bounce=True)
    monkeypatch.setattr(
        data_sources,
        "TFDSClips",
        lambda *names, **settings: asked.append((names, settings)) or clips,
    )
    keys = dict(video_key="frames", caption_key="label", data_dir="/sets", fps=25.0)
    made = experiment(data=dict(kind="tfds", path="ucf101:2.0.0", **keys, **data))
    made.source("train")
    made.source("test")
    assert asked == [
        (("ucf101:2.0.0",), dict(split=train, random=True, **keys)),
        (("ucf101:2.0.0",), dict(split=test, random=False, **keys)),
    ]


class Lengths:
    """Videos of 2, 3, … frames, as far as they are looked at."""

    fps = 25.0

    def __len__(self):
        return 8

    def fits(self, shape, sizes):
        return np.arange(max(shape.num_frames - 2, 0), 8)

    def read(self, index, rng, shape):
        assert index + 2 >= shape.num_frames, "a video that is too short is read"
        return {
            "video": np.zeros((shape.num_frames, shape.height, shape.width, 3), np.uint8),
            "caption": "",
        }


def test_held_out_videos_of_a_tfds_dataset_that_are_too_short_are_left_out(monkeypatch):
    monkeypatch.setattr(data_sources, "TFDSClips", lambda *names, **settings: Lengths())
    made = experiment(data=dict(kind="tfds", path="ucf101"))
    held_out = made.source("test")
    assert len(held_out) == 5
    for index in range(5):
        held_out.read(index, np.random.default_rng(0), made.final_shape)
    row = dict(
        name="a", num_frames=11, height=24, width=24, batch_size=2, steps=4, learning_rate=1e-3
    )
    with pytest.raises(
        ValueError, match=r"ucf101 holds no test clips of 11 frames or more.*data\.held_out=SPLIT"
    ):
        experiment(data=dict(kind="tfds", path="ucf101"), curriculum=(row,)).source("test")


class Prepared:
    """Latents of the tiny config's shapes; the even ones at 24x24, the odd ones at 16x16."""

    fps = 6.0

    def __init__(self, tokenizer, split):
        self.tokenizer, self.clips = tokenizer, Shapes(seed=0, length=8, split=split, bounce=True)

    def __len__(self):
        return 8

    def fits(self, shape, sizes):
        return np.arange({24: 0, 16: 1}.get(shape.height, 8), 8, 2)

    def read(self, index, rng, shape):
        clip = self.clips.read(index, rng, shape)
        latents = self.tokenizer.encode(to_pixels(clip["video"])[None])[0]
        return {"latents": np.asarray(latents).astype(np.float16), "caption": clip["caption"]}


@pytest.fixture
def shards(tmp_path, pca, monkeypatch):
    """A folder of prepared clips, whose records are made on demand."""
    monkeypatch.setattr(data_sources, "LatentShards", lambda path, split: Prepared(pca, split))
    data_sources._decoder.cache_clear()
    return model_folder(tmp_path / "shards", pca, HashedTextEncoder(8, 64))


def test_prepared_clips_bring_tokenizer_and_text_encoder(shards, pca, caplog):
    with caplog.at_level(logging.INFO):
        made = experiment(
            data=dict(kind="shards", path=str(shards)),
            tokenizer=dict(kind="cosmos"),
            text=dict(kind="qwen2"),
        )
        assert fingerprint(made.tokenizer(made.source("train"))) == fingerprint(pca)
        text = made.text_encoder()
    assert (text.max_tokens, text.width) == (8, 64)
    logged = [record.getMessage() for record in caplog.records]
    assert logged == [f"tokenizer: the one of {shards}", f"text encoder: the one of {shards}"]
    assert "latents" in made.source("train").read(0, np.random.default_rng(0), made.final_shape)


def test_prepared_clips_must_have_the_tokenizer_of_the_model_to_start_from(shards, pca, tmp_path):
    data = dict(kind="shards", path=str(shards))
    for place, tokenizer in (("same", pca), ("other", dataclasses.replace(pca, image=pca.video))):
        run = model_folder(tmp_path / place, tokenizer)
        made = experiment(data=data, init_from=str(run))
        if tokenizer is pca:
            assert fingerprint(made.tokenizer(made.source("train"))) == fingerprint(pca)
        else:
            with pytest.raises(
                ValueError,
                match=rf"another tokenizer than those in {shards}.*{run}/model/tokenizer",
            ):
                made.tokenizer(made.source("train"))


def test_prepared_clips_without_features_take_the_configs_text_encoder(tmp_path, pca):
    folder = model_folder(tmp_path, pca)
    made = experiment(
        data=dict(kind="shards", path=str(folder)), text=dict(tokens=5), model=dict(text_tokens=5)
    )
    assert made.text_encoder().max_tokens == 5


def test_held_out_prepared_clips_can_be_seen(shards, pca):
    """Those of the last stage's size, with a video that is what the latents hold."""
    made = experiment(data=dict(kind="shards", path=str(shards)))
    shape, held_out = made.final_shape, made.source("test")
    assert (shape.height, len(held_out)) == (24, 4)
    for index, original in enumerate(range(0, 8, 2)):
        clip = held_out.read(index, np.random.default_rng(0), shape)
        truth = Shapes(seed=0, length=8, split="test", bounce=True).read(
            original, np.random.default_rng(0), shape
        )
        assert clip["caption"] == truth["caption"] and clip["video"].shape == truth["video"].shape
        assert np.abs(clip["video"].astype(int) - truth["video"]).mean() < 8


def test_prepared_clips_of_no_fitting_size_are_reported(shards):
    row = dict(
        name="a", num_frames=3, height=32, width=32, batch_size=2, steps=4, learning_rate=1e-3
    )
    made = experiment(data=dict(kind="shards", path=str(shards)), curriculum=(row,))
    with pytest.raises(
        ValueError, match="no test clips of 3 frames or more at 32x32, which the last stage"
    ):
        made.source("test")


# Tokenizer and text encoder


def test_a_fitted_tokenizer_sees_clips_that_are_long_enough(tmp_path):
    for number in range(2):
        write_clip(tmp_path / f"long{number}.mp4", 60, seed=number)
        write_clip(tmp_path / f"short{number}.mp4", 4, seed=number)
    made = experiment(data=dict(kind="videos", path=str(tmp_path)), tokenizer=dict(fit_clips=7))
    source, read = made.source("train"), []
    original = source.read
    source.read = lambda index, *args: read.append(source.name(index)) or original(index, *args)
    made.tokenizer(source)
    assert sorted(read) == ["long0"] * 4 + ["long1"] * 3


def test_a_model_to_start_from_brings_its_tokenizer(tmp_path, pca, caplog):
    """Fitted on other clips a tokenizer would give latents that mean nothing to the model."""
    run = model_folder(tmp_path / "run", pca)
    for place in (run, run / "checkpoints" / "12"):
        with caplog.at_level(logging.INFO):
            made = experiment(seed=9, init_from=str(place))
            assert fingerprint(made.tokenizer(made.source("train"))) == fingerprint(pca)
        assert caplog.records[-1].getMessage() == f"tokenizer: the one of {run}"
    other = experiment(seed=9)
    assert fingerprint(other.tokenizer(other.source("train"))) != fingerprint(pca)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(patch=8), "patch 4 there, 8 here"),
        (
            dict(channels=8, temporal_stride=1),
            "temporal_stride 2 there, 1 here, channels 16 there, 8 here",
        ),
        (dict(kind="cosmos"), r"latents of a pca tokenizer.*--config\.tokenizer\.kind=pca"),
    ],
)
def test_a_model_to_start_from_that_has_another_tokenizer(changes, words, tmp_path, pca):
    made = experiment(init_from=str(model_folder(tmp_path, pca)), tokenizer=changes)
    with pytest.raises(ValueError, match=words):
        made.tokenizer(made.source("train"))


def test_a_tokenizer_that_the_config_names_is_the_one(tmp_path, pca, monkeypatch):
    asked = []
    monkeypatch.setattr(
        build, "open_tokenizer", lambda *spec, **settings: asked.append((spec, settings)) or pca
    )
    made = experiment(
        init_from=str(model_folder(tmp_path, pca)),
        tokenizer=dict(kind="cosmos", path="/w", scale=0.25),
    )
    made.tokenizer(made.source("train"))
    assert asked == [(("cosmos:/w",), dict(scale=0.25, dtype="float32"))]


def test_a_cosmos_tokenizer_is_taken_where_none_is_named(tmp_path):
    config = CosmosConfig(
        temporal_stride=8,
        spatial_stride=16,
        width=8,
        encoder_mults=(1, 1, 1),
        decoder_mults=(1, 1, 1),
        blocks=1,
        z_channels=4,
        latent_channels=4,
    )
    cosmos = CosmosTokenizer.random(config)
    run = model_folder(tmp_path, cosmos)
    made = experiment(
        init_from=str(run), tokenizer=dict(kind="cosmos"), model=dict(latent_channels=4)
    )
    assert fingerprint(made.tokenizer(made.source("train"))) == fingerprint(cosmos)


def test_a_text_encoder_is_taken_where_none_is_named(tmp_path, pca):
    run = model_folder(tmp_path, pca, HashedTextEncoder(7, 12))
    made = experiment(init_from=str(run), text=dict(kind="qwen2"))
    assert (made.text_encoder().max_tokens, made.text_encoder().width) == (7, 12)


def test_a_model_that_is_not_there(tmp_path):
    made = experiment(init_from=str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match="nowhere"):
        made.tokenizer(made.source("train"))


def test_pca_is_fitted_without_a_model_to_start_from(pca):
    assert isinstance(pca, PCATokenizer) and (pca.patch, pca.temporal_stride, pca.channels) == (
        4,
        2,
        16,
    )
