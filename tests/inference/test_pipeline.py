"""VideoMARPipeline: what its docstring shows is true, and its streams are the whole video in
pieces."""

import copy
import dataclasses
import doctest
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import videomar_jax
from tests.helpers.paths import ROOT
from tests.helpers.tiny_model import annotations_off
from videomar_jax.checks import UserError
from videomar_jax.inference import pipeline, stream
from videomar_jax.inference.image_to_video import image_to_video
from videomar_jax.inference.pipeline import VideoMARPipeline
from videomar_jax.inference.stream import VideoSampler
from videomar_jax.parallel.config import MeshConfig
from videomar_jax.tokenizers import PCATokenizer, to_pixels, to_video


@pytest.fixture(scope="module")
def pipe(finished):
    return VideoMARPipeline.from_checkpoint(finished)


def picture(seed=0, size=(24, 24)):
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def test_the_docstrings_run(finished, tmp_path):
    Image.fromarray(picture()).save(tmp_path / "image.png")
    names = dict(workdir=finished, image=tmp_path / "image.png", folder=tmp_path)
    results = doctest.testmod(pipeline, extraglobs=names)
    assert results.attempted >= 9 and not results.failed


def test_a_call_is_image_to_video(pipe):
    """Each video of a list, with its own prompt and seed."""
    images, prompts, bundle = [picture(n) for n in range(3)], ["up", "down", "left"], pipe.bundle
    videos = pipe(images, prompts, seed=5, batch_size=2)
    wanted = image_to_video(
        pipe.model,
        bundle.tokenizer,
        bundle.text_encoder,
        np.stack(images)[:, None],
        prompts,
        num_frames=5,
        config=bundle.sampling,
        seeds=[5, 6, 7],
    )
    for video, prompt, reference in zip(videos, prompts, wanted, strict=True):
        difference = np.abs(video.frames.astype(int) - reference)
        assert difference.max() <= 1 and (difference > 0).mean() < 1e-3, "more than a rounding edge"
        assert video.prompt == prompt
    assert (videos[0].frames[1:] != videos[1].frames[1:]).any()


def test_one_image_with_several_prompts_or_one_prompt_for_all(pipe):
    assert [(v.prompt, v.seed) for v in pipe(picture(), ["up", "down"])] == [("up", 0), ("down", 1)]
    assert [v.prompt for v in pipe([picture(0), picture(1)], "up")] == ["up", "up"]


def test_a_stream_is_the_whole_video_in_pieces(pipe):
    """The pieces are those of decoding all latents at once, to the bit, and what a call gives."""
    stream = pipe.stream(picture(), "up", num_frames=9, seed=3)
    assert stream.first_frame_s is None and len(stream.video) == 1
    pieces = [next(stream)]
    first = stream.first_frame_s
    assert first > 0 and len(stream.video) == 3 and len(stream.video.latents) == 2
    pieces += list(stream)
    assert [len(piece) for piece in pieces] == [2] * 4 and stream.first_frame_s == first
    video = stream.video
    whole = jax.jit(lambda latents: to_video(pipe.bundle.tokenizer.decode(latents)))(
        video.latents[None]
    )[0]
    np.testing.assert_array_equal(np.concatenate(pieces), whole[1:])
    np.testing.assert_array_equal(video.frames[0], picture())
    np.testing.assert_array_equal(video.frames, pipe(picture(), "up", num_frames=9, seed=3).frames)


def test_a_stream_is_an_iterator_without_a_length(pipe):
    """`next` works, a second loop continues the first, and no length changes on the way."""
    stream = pipe.stream(picture(), "up", num_frames=7)
    assert iter(stream) is stream and next(stream).shape == (2, 24, 24, 3)
    for _ in stream:
        break
    assert len(list(stream)) == 1 and stream.video.frames.shape[0] == 7
    with pytest.raises(StopIteration):
        next(stream)
    for one in (stream, stream.frames):
        assert not hasattr(one, "__len__"), "a length that grows misleads list() and tqdm"


def test_clips_are_continued_and_their_frames_come_back(pipe):
    clip = np.stack([picture(n) for n in range(3)])
    video = pipe(clip, "up")
    np.testing.assert_array_equal(video.frames[:3], clip)
    assert (len(video), video.given) == (5, 3)
    encoded = np.asarray(pipe.bundle.tokenizer.encode(to_pixels(clip[None])))[0]
    np.testing.assert_allclose(video.latents[:2], encoded, atol=1e-5)


def test_a_clip_is_decoded_one_latent_frame_at_a_time(pipe, monkeypatch):
    """However long it is; the new pixels are those of decoding everything at once."""
    decode_stream, lengths = PCATokenizer.decode_stream, []

    def listening(self, latents, *, max_frames):
        return decode_stream(
            self,
            (lengths.append(piece.shape[1]) or piece for piece in latents),
            max_frames=max_frames,
        )

    monkeypatch.setattr(PCATokenizer, "decode_stream", listening)
    stream = pipe.stream(np.stack([picture(n) for n in range(5)]), "up", num_frames=9)
    pieces = list(stream)
    assert lengths == [1] * 5 and [len(piece) for piece in pieces] == [2, 2]
    assert stream.video.latents.shape[0] == 5 and stream.video.given == 5
    whole = np.asarray(
        to_video(pipe.bundle.tokenizer.decode(jnp.asarray(stream.video.latents)[None]))
    )[0]
    assert np.abs(np.concatenate(pieces).astype(int) - whole[5:]).max() <= 1


def test_eight_devices_make_the_videos_of_one(pipe, finished):
    """A batch that divides over them, and a clip, a single one, that does not."""
    mesh = MeshConfig(data=1, fsdp=2, tensor=2, context=2, min_size=1)
    shared = VideoMARPipeline.from_checkpoint(finished, mesh=mesh)
    leaves = jax.tree.leaves(shared.model)
    assert all(len(leaf.sharding.device_set) == 8 for leaf in leaves)
    assert min(leaf.addressable_data(0).size / leaf.size for leaf in leaves) == 1 / 4, (
        "nothing is cut both ways"
    )
    for images in ([picture(0), picture(1)], [np.stack([picture(n) for n in range(3)])]):
        for ours, theirs in zip(
            shared(images, "up", seed=3), pipe(images, "up", seed=3), strict=True
        ):
            np.testing.assert_allclose(ours.latents, theirs.latents, atol=1e-3)
            assert np.abs(ours.frames.astype(int) - theirs.frames).max() <= 1
    with pytest.raises(ValueError, match="does not fit 8 devices"):
        VideoMARPipeline.from_checkpoint(finished, mesh=MeshConfig(data=9))


def test_a_window_of_none_is_all_frames(pipe):
    bundle = dataclasses.replace(
        pipe.bundle, sampling=dataclasses.replace(pipe.bundle.sampling, window=2)
    )
    windowed = dataclasses.replace(pipe, bundle=bundle)
    assert windowed(picture(), "up").settings["window"] == 2
    assert windowed(picture(), "up", window=None).settings["window"] is None


def test_saving_and_showing(pipe, tmp_path):
    video = pipe(picture(), 'a <b> "red" circle')
    for ending in ("mp4", "gif", "webm", "png", "npz"):
        assert video.save(tmp_path / f"v.{ending}").stat().st_size > 100
    with np.load(tmp_path / "v.npz") as arrays:
        np.testing.assert_array_equal(arrays["latents"], video.latents)
    with pytest.raises(
        ValueError, match=r"v\.avi: a video is saved as one of \.mp4, .*not '\.avi'"
    ):
        video.save(tmp_path / "v.avi")
    with pytest.raises(FileExistsError):
        video.save(tmp_path / "v.mp4")
    shown = video._repr_html_()
    assert "data:video/mp4;base64,AAAA" in shown and "a &lt;b&gt; &quot;red&quot; circle" in shown


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (dict(temprature=0.5), "Unknown key 'temprature' in .*Did you mean 'temperature'"),
        (dict(steps=-1), "steps must be at least 1, not -1"),
        (dict(steps=None), "setting steps cannot be None; leave it out"),
        (dict(num_frames=4), r"4 frames are not 1 \+ 2"),
        (dict(num_frames=1), "num_frames must be at least 3, not 1"),
        (dict(height=30), "height 30 is not a multiple of the spatial stride 4"),
        (dict(seed=-1), "Seeds must lie in 0"),
        (dict(seed=1.5), "seed must be a whole number, not 1.5"),
        (dict(seed=True), "seed must be a whole number, not True"),
        (dict(batch_size=0), "batch_size must be at least 1, not 0"),
        (dict(fit="squeeze"), "fit is 'squeeze'; it may be one of 'resize', 'crop'"),
        (dict(prompt=["a", "b"], image=[picture()] * 3), "3 images and 2 prompts: give one"),
        (
            dict(image=[picture(), np.stack([picture()] * 3)]),
            "must have the same number of frames",
        ),
        (dict(image=[]), "no image to start from"),
        (dict(image="gone.png"), "no image file 'gone.png'"),
        (dict(preset="warp"), "no sampling preset 'warp'"),
    ],
)
def test_what_cannot_be_generated_is_refused(pipe, arguments, words):
    with annotations_off(), pytest.raises((ValueError, FileNotFoundError), match=words):
        pipe(**dict(image=picture(), prompt="up") | arguments)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_make_no_video(pipe, value):
    """Such latents decode to black frames, which look like a video that was made."""
    broken = jax.tree.map(lambda array: jnp.full_like(array, value), pipe.model)
    faulty = dataclasses.replace(pipe, model=broken)
    with pytest.raises(UserError, match=r"'left' \(seed 3\) hold NaN.*--temperature"):
        faulty(picture(), "left", seed=3, steps=1)


@pytest.mark.parametrize("changes", [{}, dict(clip_first=True), dict(latent_clip=0.0)])
def test_a_temperature_beyond_all_sense_gives_no_video(pipe, changes):
    """Its latents may be finite, and clipping would turn them into plain colours."""
    with pytest.raises(UserError, match=r"'left' \(seed 3\) hold NaN.*--temperature"):
        pipe(picture(), "left", seed=3, steps=2, temperature=1e38, **changes)


def damaged_decoder(tokenizer):
    """Encodes as before, and decodes to NaN."""
    damaged = copy.copy(tokenizer)
    decode_stream = tokenizer.decode_stream

    def spoilt(latents, **sizes):
        return decode_stream((frame * jnp.nan for frame in latents), **sizes)

    object.__setattr__(damaged, "decode_stream", spoilt)
    return damaged


def test_a_decoder_that_gives_nan_gives_no_video(pipe):
    bundle = dataclasses.replace(pipe.bundle, tokenizer=damaged_decoder(pipe.bundle.tokenizer))
    faulty = dataclasses.replace(pipe, bundle=bundle)
    with pytest.raises(UserError, match="The decoded pixels of 'left'"):
        faulty(picture(), "left", steps=1)


def test_a_faulty_video_leaves_the_others_of_its_batch_as_they_are(pipe, monkeypatch):
    sampler = VideoSampler.from_bundle(pipe.model, pipe.bundle)
    given = np.stack([picture()[None]] * 3)
    asked = (given, ["a", "b", "c"], [1, 2, 3], 5)
    whole = sampler.stream(*asked).finish()
    drawn = stream.decode_frames

    def spoilt(*args, rows=(1,)):
        for number, (frame, trace) in enumerate(drawn(*args)):
            yield frame.at[jnp.asarray(rows), 2, 3, 0].set(jnp.inf) if number else frame, trace

    monkeypatch.setattr(stream, "decode_frames", spoilt)
    with pytest.raises(UserError, match=r"generated latents of 'b' \(seed 2\) hold NaN"):
        sampler.stream(*asked).finish()
    kept = sampler.stream(*asked, skip_faulty=True).finish()
    assert list(kept.faults) == [1] and "'b' (seed 2)" in kept.faults[1]
    np.testing.assert_array_equal(kept.frames[[0, 2]], whole.frames[[0, 2]])
    monkeypatch.setattr(stream, "decode_frames", functools.partial(spoilt, rows=(0, 1, 2)))
    with pytest.raises(UserError, match=r"'a' \(seed 1\), 'b' \(seed 2\), 'c'"):
        sampler.stream(*asked, skip_faulty=True).finish()


def test_more_than_memory_holds_is_refused_before_it_is_started(pipe, monkeypatch):
    monkeypatch.setattr("videomar_jax.sampling.generate.free_bytes", lambda device: 10_000)
    with pytest.raises(
        ValueError, match=r"3 latent frames of 6x6 tokens need about .* GiB .*Ask for fewer frames"
    ):
        pipe.stream(picture(), "up")


def test_the_example_of_the_readme_runs(finished, tmp_path, monkeypatch):
    """With another workdir and image; its three levels end in z of every token."""
    section = (ROOT / "README.md").read_text().split("## From images to videos")[1]
    code = section.split("```python\n")[1].split("```")[0]
    Image.fromarray(picture()).save(tmp_path / "image.png")
    monkeypatch.chdir(tmp_path)
    assert code.count('"runs/quickstart"') == 1 and code.count('"FILE"') == 2
    space = {}
    exec(code.replace("runs/quickstart", str(finished)).replace("FILE", "image.png"), space)
    assert (tmp_path / "circle.mp4").exists()
    assert space["latents"].shape[:2] == (1, 3) and space["z"].shape == (1, 3, 36, 32)


def test_the_names_of_the_package():
    assert videomar_jax.VideoMARPipeline is VideoMARPipeline
    for name in videomar_jax.__all__:
        assert getattr(videomar_jax, name) is not None
