"""Batches of a mixed stage: the same whatever the number of starts and processes, encoded only
where it is needed."""

import dataclasses
import logging
import threading
import time

import jax
import numpy as np
import pytest

from videomar_jax.data.loader import fixed_clips
from videomar_jax.data.shapes import Shapes
from videomar_jax.text_encoders import HashedTextEncoder
from videomar_jax.tokenizers import PCATokenizer
from videomar_jax.training import batches
from videomar_jax.training.batches import TrainingInputs, ahead, check_data, training_batches
from videomar_jax.training.curriculum import Curriculum
from videomar_jax.training.stages import stage_of_row

SEED, INDEX, STEPS = 7, 2, 24
TEXT = HashedTextEncoder(5, 8)


class Counting:
    """Clips that show their index and a draw, of which even indices are wide and the others
    tall."""

    fps = 8.0
    length = 10
    least = 0

    def __len__(self):
        return self.length

    def read(self, index, rng, shape):
        video = rng.integers(0, 2, (shape.num_frames, shape.height, shape.width, 3)).astype(
            np.uint8
        )
        video[0, 0, 0] = index, rng.integers(256), rng.integers(256)
        return {"video": video, "caption": f"clip {index}"}

    def fits(self, shape, sizes):
        if shape.num_frames > 5:
            return np.array([], int)
        return (
            np.arange(int(shape.height > shape.width), 10, 2) if len(sizes) > 1 else np.arange(10)
        )


class Pixels:
    """A tokenizer that keeps every second frame and every fourth row and column."""

    temporal_stride, spatial_stride, channels = 2, 4, 3

    def encode(self, pixels):
        return pixels[:, ::2, ::4, ::4]

    def decode(self, latents): ...

    def decode_stream(self, latents, *, max_frames): ...

    def save(self, directory): ...


class NoText:
    """An encoder that is not asked."""

    max_tokens, width = TEXT.max_tokens, TEXT.width

    def encode(self, captions):
        raise AssertionError("prepared text is encoded again")

    def save(self, directory): ...


@pytest.fixture(autouse=True)
def encoded(monkeypatch):
    """The number of clips in each call of `encode`; encoding is slicing."""
    calls = []

    def encode(tokenizer, video):
        calls.append(len(video))
        return tokenizer.encode(video.astype(np.float32))

    monkeypatch.setattr(batches, "encode", encode)
    return calls


def mixed(**changes):
    entries = (
        {"num_frames": 1, "height": 16, "width": 16, "batch_size": 8, "weight": 1},
        {"num_frames": 5, "sizes": ((8, 16), (16, 8)), "batch_size": 4, "weight": 2},
    )
    return stage_of_row(
        0, {"name": "mixed", "mix": entries, "steps": STEPS, "learning_rate": 1e-3} | changes
    )


def parts(source=None, tokenizer=None, text=TEXT):
    return TrainingInputs(
        source=source or Counting(), tokenizer=tokenizer or Pixels(), text_encoder=text, threads=2
    )


def take(start=0, *, stage=None, seed=SEED, source=None, text=TEXT, **settings):
    return list(
        training_batches(seed, INDEX, stage or mixed(), parts(source, text=text), start, **settings)
    )


def same(ours, theirs):
    return all(
        np.array_equal(a, b)
        for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True)
    )


@pytest.fixture(scope="module")
def whole():
    """All batches of the stage, from one start of one process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            batches, "encode", lambda tokenizer, video: tokenizer.encode(video.astype(np.float32))
        )
        return take()


def test_a_stage_gives_its_steps_and_every_shape(whole):
    assert len(whole) == STEPS
    shapes = [batch.latents.shape for batch in whole]
    assert set(shapes) == {(8, 1, 4, 4, 3), (4, 3, 2, 4, 3), (4, 3, 4, 2, 3)}
    for batch in whole:
        assert batch.text.shape == (len(batch.latents), 5, 8) and batch.text_mask.dtype == bool
        assert batch.latents.dtype == np.float32


def test_clips_are_in_the_shape_that_is_theirs_each_as_often(whole):
    seen = {}
    for batch in whole:
        seen.setdefault(batch.latents.shape[1:4], []).extend(
            batch.latents[:, 0, 0, 0, 0].astype(int).tolist()
        )
    assert set(seen[3, 2, 4]) == {0, 2, 4, 6, 8} and set(seen[3, 4, 2]) == {1, 3, 5, 7, 9}
    for indices in seen.values():
        counts = [indices.count(index) for index in set(indices)]
        assert max(counts) - min(counts) <= 1, "a clip comes again before all others came"


@pytest.mark.parametrize("step", [1, 2, 3, 5, 8, 13, 23, 24])
def test_a_stage_goes_on_at_any_step(step, whole):
    rest = take(step)
    assert len(rest) == STEPS - step and all(map(same, rest, whole[step:]))


@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("start", [0, 7])
def test_the_blocks_of_the_processes_are_the_batch(count, start, whole):
    shares = [take(start, process_index=i, process_count=count) for i in range(count)]
    for step, blocks in enumerate(zip(*shares, strict=True), start=start):
        joined = jax.tree.map(lambda *leaves: np.concatenate(leaves), *blocks)
        assert same(joined, whole[step]), f"step {step}"


def test_other_seeds_and_stages_give_other_batches(whole):
    other = take(seed=SEED + 1)
    next_stage = list(training_batches(SEED, INDEX + 1, mixed(), parts(), 0))
    for found in (other, next_stage):
        assert (
            sum(same(ours, theirs) for ours, theirs in zip(found, whole, strict=True)) < STEPS / 2
        )


def test_a_longer_stage_begins_alike(whole):
    assert all(map(same, take(stage=mixed(steps=2 * STEPS)), whole))


def test_large_clips_are_encoded_a_few_at_a_time(encoded, monkeypatch, whole):
    monkeypatch.setattr(batches, "ENCODED_AT_ONCE", 2 * 16 * 16 + 10)
    assert all(map(same, take(), whole))
    assert set(encoded) == {1, 2}, "videos of 5 frames come one by one, images in pairs"


def test_a_process_encodes_its_own_clips_only(encoded):
    take(process_index=1, process_count=4)
    assert set(encoded) == {2, 1}


# What is prepared is not computed again


class Prepared(Counting):
    """The same clips as latents, with or without features of their captions."""

    def __init__(self, text):
        self.text = text

    def read(self, index, rng, shape):
        clip = super().read(index, rng, shape)
        latents = clip.pop("video")[::2, ::4, ::4].astype(np.float16)
        if not self.text:
            return clip | {"latents": latents}
        features, mask = TEXT.encode([clip["caption"]])
        return clip | {
            "latents": latents,
            "text": features[0].astype(np.float16),
            "text_mask": mask[0],
        }


@pytest.mark.parametrize("text", [False, True])
def test_latents_and_features_are_taken_as_they_are(text, encoded, whole):
    found = take(source=Prepared(text), text=NoText() if text else TEXT)
    assert not encoded
    for ours, theirs in zip(found, whole, strict=True):
        np.testing.assert_array_equal(ours.latents, theirs.latents)
        np.testing.assert_allclose(ours.text, theirs.text, atol=2e-3 if text else 0)
        np.testing.assert_array_equal(ours.text_mask, theirs.text_mask)
        assert ours.latents.dtype == ours.text.dtype == np.float32


# What cannot be


def curriculum(*entries):
    row = {"name": "mixed", "mix": entries, "steps": 3, "learning_rate": 1e-3}
    return Curriculum((stage_of_row(0, row),))


def entry(num_frames=5, sizes=((8, 16),), batch_size=4):
    return {"num_frames": num_frames, "sizes": sizes, "batch_size": batch_size}


def test_sizes_without_clips_are_left_out_and_told_once(caplog):
    class Wide(Counting):
        def fits(self, shape, sizes):
            return np.arange(10) if shape.height < shape.width else np.array([], int)

    with caplog.at_level(logging.INFO):
        found = take(
            source=Wide(), stage=curriculum(entry(sizes=((8, 16), (16, 8), (16, 16)))).stages[0]
        )
    assert {batch.latents.shape[2:4] for batch in found} == {(2, 4)}
    told = [record.getMessage() for record in caplog.records if "no clip" in record.getMessage()]
    assert told == ["stage 'mixed': no clip is nearest to 5 frames of 16x8, 5 frames of 16x16"]


def test_an_entry_without_clips_is_an_error_at_once():
    for call in (
        lambda: check_data(curriculum(entry(), entry(9)), parts()),
        lambda: training_batches(0, 0, curriculum(entry(), entry(9)).stages[0], parts(), 0),
    ):
        with pytest.raises(
            ValueError, match="Stage 'mixed': there is no clip for the entry of 9 frames of 8x16"
        ):
            call()


def test_a_batch_that_processes_cannot_share_is_named():
    told = "batch_size 6 of 5 frames of 8x16 is not a multiple of the 4 processes"
    for call in (
        lambda: check_data(curriculum(entry(1), entry(batch_size=6)), parts(), 4),
        lambda: training_batches(
            0,
            0,
            curriculum(entry(1), entry(batch_size=6)).stages[0],
            parts(),
            0,
            process_index=1,
            process_count=4,
        ),
    ):
        with pytest.raises(ValueError, match=told):
            call()


def test_data_of_another_tokenizer_is_told():
    with pytest.raises(
        ValueError, match=r"latents of the data have the shape \(3, 2, 4, 3\).* \(3, 2, 4, 5\)"
    ):
        tokenizer = Pixels()
        tokenizer.channels = 5
        check_data(curriculum(entry()), parts(Prepared(text=False), tokenizer))
    other = TrainingInputs(
        source=Prepared(text=True), tokenizer=Pixels(), text_encoder=HashedTextEncoder(6, 8)
    )
    with pytest.raises(
        ValueError, match=r"text of the data have the shape \(5, 8\).* \(6, 8\)|text_mask"
    ):
        check_data(curriculum(entry()), other)


class Everywhere(NoText):
    """An encoder with features behind the end of a caption too, as a language model has."""

    def encode(self, captions):
        features, mask = TEXT.encode(captions)
        return np.where(mask[..., None], features, 1.0), mask


def test_prepared_text_without_its_padding_goes_with_a_text_mask_only():
    clips, other = Prepared(text=True), dataclasses.replace(parts(), text_encoder=Everywhere())
    for source, encoder, text_mask in (
        (clips, other, True),
        (clips, parts(), False),
        (Prepared(False), other, False),
    ):
        check_data(
            curriculum(entry()), dataclasses.replace(encoder, source=source), text_mask=text_mask
        )
    with pytest.raises(
        ValueError, match=r"empty where captions are padded.*model\.text_mask=True, or prepare"
    ):
        check_data(curriculum(entry()), dataclasses.replace(other, source=clips), text_mask=False)


def test_a_clip_that_cannot_be_read_is_told_before_training():
    with pytest.raises(ValueError, match="canvas of 8 x 16 px has no room"):
        check_data(curriculum(entry()), parts(Shapes(seed=0, length=3, split="train", bounce=True)))


# Ahead


def numbers(made, fail_at=None):
    try:
        for number in range(5):
            if number == fail_at:
                raise OSError("the disk is gone")
            made.append(number)
            yield number
    finally:
        made.append("closed")


def until(condition):
    end = time.monotonic() + 5
    while not condition() and time.monotonic() < end:
        time.sleep(0.005)
    return condition()


def test_the_next_item_is_made_while_one_is_worked_on():
    made = []
    items = ahead(numbers(made))
    assert next(items) == 0 and until(lambda: made == [0, 1])
    time.sleep(0.02)
    assert made == [0, 1], "more than one item is made ahead"
    assert list(items) == [1, 2, 3, 4] and made == [0, 1, 2, 3, 4, "closed"]


def test_closing_ends_thread_and_stream():
    before, made = threading.active_count(), []
    items = ahead(numbers(made))
    next(items)
    items.close()
    assert made in ([0, "closed"], [0, 1, "closed"]) and threading.active_count() == before
    assert next(items, None) is None


def test_an_error_comes_in_its_turn():
    made = []
    items = ahead(numbers(made, fail_at=2))
    assert [next(items), next(items)] == [0, 1]
    with pytest.raises(OSError, match="the disk is gone"):
        next(items)
    assert made == [0, 1, "closed"]


def test_looking_ahead_changes_nothing(whole):
    threads = threading.active_count()
    for start in (0, 9):
        assert all(map(same, take(start, lookahead=True), whole[start:]))
    batches = training_batches(SEED, INDEX, mixed(), parts(), 0, lookahead=True)
    assert same(next(batches), whole[0])
    batches.close()
    assert until(lambda: threading.active_count() == threads), "readers are left behind"


def test_a_real_tokenizer_encodes_batches(monkeypatch):
    monkeypatch.undo()
    source = Shapes(seed=0, length=20, split="train", bounce=True)
    stage = curriculum(entry(1, ((16, 16),), 2), entry(3, ((16, 24), (24, 16)), 2)).stages[0]
    clips = fixed_clips(source, range(12), shape=batches.clip_shape(stage.main))["video"]
    tokenizer = PCATokenizer.fit(clips, patch=4, temporal_stride=2, channels=4)
    real = TrainingInputs(source=source, tokenizer=tokenizer, text_encoder=TEXT)
    for batch in training_batches(0, 0, stage, real, 0):
        height = batch.latents.shape[2]
        assert batch.latents.shape in {(2, 1, 4, 4, 4), (2, 2, 4, 6, 4), (2, 2, 6, 4, 4)}, height
        assert np.isfinite(batch.latents).all()
