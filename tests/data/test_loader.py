import threading
import time
from itertools import islice

import numpy as np
import pytest

from videomar_jax.data.loader import Bucket, batches, bucket_batches, fixed_clips, stack
from videomar_jax.data.shapes import Shapes
from videomar_jax.data.sources import ClipShape

SHAPE = ClipShape(num_frames=2, height=3, width=4)


class Numbered:
    """Clips that show their index (first value) and what they drew (second value); later indices
    come faster."""

    fps = 8.0

    def __init__(self, length=7, fail_at=None):
        self.length, self.fail_at = length, fail_at

    def __len__(self):
        return self.length

    def read(self, index, rng, shape):
        if index == self.fail_at:
            raise ValueError(f"clip{index}.mp4: damaged")
        time.sleep(0.002 * (index % 3 == 0))
        video = np.zeros((shape.num_frames, shape.height, shape.width, 3), np.uint8)
        video[0, 0, 0, :2] = index, rng.integers(256)
        return {"video": video, "caption": f"clip {index}"}


def take(count, source=None, **settings):
    iterator = batches(
        source or Numbered(), **({"shape": SHAPE, "batch_size": 4, "seed": 5} | settings)
    )
    found = list(islice(iterator, count))
    iterator.close()
    return found


def content(found):
    """(index, drawn number) of every clip, per batch."""
    return [
        [tuple(int(v) for v in clip[0, 0, 0, :2]) for clip in batch["video"]] for batch in found
    ]


def test_a_batch_holds_clips_and_their_captions():
    batch = take(1)[0]
    assert set(batch) == {"video", "caption"} and isinstance(batch["caption"], list)
    assert batch["video"].shape == (4, 2, 3, 4, 3) and batch["video"].dtype == np.uint8
    assert batch["caption"] == [f"clip {index}" for index, _ in content([batch])[0]]


def test_every_epoch_is_a_new_permutation_with_new_draws():
    elements = [clip for batch in content(take(14)) for clip in batch]  # 56 clips: 8 epochs
    epochs = [elements[start : start + 7] for start in range(0, 56, 7)]
    assert all(sorted(index for index, _ in epoch) == list(range(7)) for epoch in epochs)
    assert len({tuple(index for index, _ in epoch) for epoch in epochs}) > 5
    draws = {index: {drawn for i, drawn in elements if i == index} for index in range(7)}
    assert all(len(seen) > 4 for seen in draws.values()), "a clip is cut alike in every epoch"


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_same_seed_same_batches_for_any_number_of_threads(threads):
    reference = content(take(9, num_threads=2))
    assert content(take(9, num_threads=threads)) == reference
    assert content(take(9, num_threads=threads, seed=6)) != reference


@pytest.mark.parametrize("step", [1, 3, 10])
def test_starting_at_a_step_continues_the_fresh_run(step):
    assert content(take(4, start_step=step)) == content(take(step + 4))[step:]


@pytest.mark.parametrize("count", [2, 4])
def test_the_shards_together_are_the_global_batch(count):
    whole = content(take(6, start_step=2))
    shards = [
        content(take(6, start_step=2, process_index=i, process_count=count)) for i in range(count)
    ]
    for step in range(6):
        parts = [shard[step] for shard in shards]
        assert all(len(part) == 4 // count for part in parts)
        assert [clip for part in parts for clip in part] == whole[step], (
            "processes do not read neighbouring blocks"
        )


def test_a_source_smaller_than_a_batch_still_fills_it():
    assert [index for index, _ in content(take(1, Numbered(1)))[0]] == [0, 0, 0, 0]


def test_closing_stops_the_threads():
    before = threading.active_count()
    iterator = batches(Numbered(), shape=SHAPE, batch_size=4, seed=0, num_threads=3)
    next(iterator)
    assert threading.active_count() > before
    iterator.close()
    deadline = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() <= before
    assert next(iterator, None) is None


def test_an_error_of_the_source_arrives_as_it_is():
    with pytest.raises(ValueError, match=r"clip3\.mp4: damaged"):
        take(3, Numbered(fail_at=3))


@pytest.mark.parametrize(
    "settings, name",
    [
        ({"batch_size": 0}, "batch_size"),
        ({"batch_size": 5, "process_count": 2}, "batch_size 5"),
        ({"process_index": 1}, "process_index"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**32}, "seed"),
        ({"start_step": -1}, "start_step"),
        ({"num_threads": -1}, "num_threads"),
        ({"source": Numbered(0)}, "no clips"),
        ({"bucket": {"indices": np.array([], np.int64)}}, "no clips for"),
        ({"bucket": {"group_size": 3}}, "group_size 3 must divide the 4 clips"),
        ({"bucket": {"group_size": 4}, "process_count": 2}, "group_size 4 must divide the 2 clips"),
    ],
)
def test_settings_that_do_not_fit_fail_before_the_first_batch(settings, name):
    settings = {"source": Numbered(), "shape": SHAPE, "batch_size": 4, "seed": 0} | settings
    with pytest.raises(ValueError, match=name):
        if "bucket" in settings:
            bucket = Bucket(shape=SHAPE, batch_size=4, seed=0, **settings["bucket"])
            bucket_batches(
                Numbered(),
                {0: bucket},
                [0],
                done={0: 0},
                process_count=settings.get("process_count", 1),
            )
        else:
            batches(settings.pop("source"), **settings)


# Buckets of several shapes

WIDE = ClipShape(num_frames=1, height=3, width=8)
BUCKETS = {
    0: Bucket(shape=SHAPE, batch_size=4, seed=5, indices=np.array([0, 2, 3])),
    2: Bucket(shape=WIDE, batch_size=8, seed=6, group_size=2),
}
CHOICES = [2, 0, 0, 2, 0, 2, 2, 0, 0, 2]


def bucket_content(choices, *, done=(0, 0), buckets=BUCKETS, **settings):
    iterator = bucket_batches(
        Numbered(), buckets, choices, done=dict(zip(BUCKETS, done, strict=True)), **settings
    )
    return [(clip["video"].shape[1:], content([clip])[0]) for clip in iterator]


def test_buckets_give_their_own_batches_in_turn():
    """What a bucket gives does not depend on the buckets between."""
    found = bucket_content(CHOICES)
    for number, sizes in ((0, (2, 3, 4, 3)), (2, (1, 3, 8, 3))):
        own = bucket_content([number] * CHOICES.count(number))
        assert [group for group in found if group[0] == sizes] == own and own[0][0] == sizes
    assert {index for shape, group in found if shape == (2, 3, 4, 3) for index, _ in group} == {
        0,
        2,
        3,
    }
    assert [len(group) for _, group in found[:5]] == [2, 2, 2, 2, 4], (
        "a batch of 8 comes in four groups of 2"
    )


def test_groups_of_a_batch_are_the_batch():
    whole = bucket_content([2] * 3, buckets={2: Bucket(shape=WIDE, batch_size=8, seed=6)})
    parts = bucket_content([2] * 3)
    assert [clip for _, group in parts for clip in group] == [
        clip for _, group in whole for clip in group
    ]


@pytest.mark.parametrize("step", [1, 4, 9])
def test_buckets_continue_from_what_each_has_given(step):
    whole = bucket_content(CHOICES)
    done = (CHOICES[:step].count(0), CHOICES[:step].count(2))
    groups = done[0] + 4 * done[1]
    assert bucket_content(CHOICES[step:], done=done, num_threads=3) == whole[groups:]


@pytest.mark.parametrize("count", [2, 4])
def test_processes_share_the_batches_of_all_buckets(count):
    clips = [clip for _, group in bucket_content(CHOICES) for clip in group]
    shares = [bucket_content(CHOICES, process_index=i, process_count=count) for i in range(count)]
    shares = [[clip for _, group in share for clip in group] for share in shares]
    joined, sizes = [], {0: 4 // count, 2: 8 // count}
    for choice in CHOICES:
        joined += [clip for share in shares for clip in share[: sizes[choice]]]
        shares = [share[sizes[choice] :] for share in shares]
    assert joined == clips and not any(shares)


def test_reading_ahead_is_bounded():
    class Counted(Numbered):
        reads = 0

        def read(self, *args):
            self.reads += 1
            return super().read(*args)

    source = Counted()
    iterator = bucket_batches(source, BUCKETS, [2] * 100, done={0: 0, 2: 0}, num_threads=3)
    for _ in range(3):
        next(iterator)
    time.sleep(0.1)
    iterator.close()
    assert source.reads <= 3 * 2 + max(2 * 2, 2 * 3) + 2, (
        "more clips are held than two groups, or two a thread"
    )


# Batches of any kind of clip


def test_arrays_are_stacked_and_texts_listed():
    clips = [
        {
            "latents": np.full((2, 3, 4, 5), i, np.float16),
            "caption": f"{i}",
            "text": np.ones((6, 7), np.float32),
            "text_mask": np.arange(6) <= i,
        }
        for i in range(3)
    ]
    batch = stack(clips)
    assert batch["caption"] == ["0", "1", "2"] and batch["text"].shape == (3, 6, 7)
    assert batch["latents"].dtype == np.float16 and batch["latents"][:, 0, 0, 0, 0].tolist() == [
        0,
        1,
        2,
    ]
    assert batch["text_mask"].sum(1).tolist() == [1, 2, 3]


def test_clips_that_do_not_go_together_are_refused():
    clips = [{"video": np.zeros((1, 2, 2, 3), np.uint8), "caption": ""} for _ in range(2)]
    with pytest.raises(ValueError, match=r"shape of video: \[\(1, 2, 2, 3\), \(1, 4, 2, 3\)\]"):
        stack([clips[0], clips[1] | {"video": np.zeros((1, 4, 2, 3), np.uint8)}])
    with pytest.raises(ValueError, match=r"differ in what they hold.*latents"):
        stack([clips[0], {"latents": np.zeros(3), "caption": ""}])


def test_fixed_clips_depend_on_seed_and_index_only():
    batch = fixed_clips(Numbered(), [4, 1], shape=SHAPE)
    assert batch["caption"] == ["clip 4", "clip 1"]
    assert content([fixed_clips(Numbered(), range(7), shape=SHAPE)])[0][4] == content([batch])[0][0]
    assert content([fixed_clips(Numbered(), [4, 1], shape=SHAPE, seed=1)]) != content([batch])
    for indices, error in [([], ValueError), ([7], IndexError), ([-1], IndexError)]:
        with pytest.raises(error):
            fixed_clips(Numbered(), indices, shape=SHAPE)


def test_shapes_through_the_loader():
    source = Shapes(seed=1, length=10, split="train", bounce=True)
    shape = ClipShape(num_frames=3, height=16, width=16)
    found = take(5, source, shape=shape)  # two epochs
    clips = {source.read(i, np.random.default_rng(), shape)["video"].tobytes() for i in range(10)}
    assert {clip.tobytes() for batch in found for clip in batch["video"]} == clips
