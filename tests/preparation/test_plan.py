import dataclasses
import itertools
import json

import pytest

from tests.helpers.tiny_model import annotations_off
from tests.helpers.wrong_values import LEFT_OUT, accepted
from videomar_jax.data.sources import ClipShape
from videomar_jax.data.windows import Cutting, Window
from videomar_jax.preparation import plan as plans
from videomar_jax.preparation.plan import Plan, Settings, list_videos, make_plan, plan_shards
from videomar_jax.preparation.plan_file import changed_videos, differences, load_plan, save_plan

CUTTING = Cutting(fps=12.0, lengths=(9, 5), sizes=((16, 24), (24, 16)))
IDENTITIES = {"tokenizer": {"kind": "pca", "fingerprint": "abc"}, "text_encoder": None}
WIDE, TALL, BRIEF = ((9, 16, 24), (9, 24, 16), (5, 16, 24))


def shape_of(sizes):
    return ClipShape(num_frames=sizes[0], height=sizes[1], width=sizes[2])


def windows(*counts):
    """Windows of videos 0, 1, ...: (how many, their shape) of each."""
    return [
        Window(
            video=f"{number}.mp4",
            first=0.0,
            start=float(k),
            stop=k + 0.9,
            shape=shape_of(sizes),
            caption="",
        )
        for number, (count, sizes) in enumerate(counts)
        for k in range(count)
    ]


def settings(**changes):
    return Settings(**(dict(cutting=CUTTING, clips_per_shard=4, holdout=0.2) | changes))


@pytest.fixture
def many():
    return windows((7, WIDE), (1, TALL), (3, BRIEF), (12, WIDE), (1, WIDE), (9, TALL))


@pytest.mark.parametrize("holdout", [0.0, 0.05, 0.2, 0.6])
@pytest.mark.parametrize("size", [1, 4, 100])
def test_every_window_is_in_one_shard(many, holdout, size):
    shards = list(plan_shards(many, settings(holdout=holdout, clips_per_shard=size)))
    placed = [window for shard in shards for window in shard.windows]
    assert sorted(placed, key=repr) == sorted(many, key=repr)
    assert [shard.first_clip for shard in shards] == [
        sum(len(before.windows) for before in shards[:i]) for i in range(len(shards))
    ]
    for shard in shards:
        assert 1 <= len(shard.windows) <= size and {window.shape for window in shard.windows} == {
            shard.shape
        }
    for split, group in itertools.groupby(shards, key=lambda shard: shard.split):
        names = [shard.name for shard in group]
        count = f"{len(names):05d}"
        assert names == [
            f"clips-{split}.array_record-{i:05d}-of-{count}" for i in range(len(names))
        ]


@pytest.mark.parametrize(
    ("holdout", "wide", "tall", "brief"), [(0.2, 4, 2, 1), (0.01, 1, 1, 1), (0.99, 19, 9, 2)]
)
def test_the_share_of_every_shape_is_held_out(many, holdout, wide, tall, brief):
    """At least one and never all; 20 wide windows, 10 tall, 3 brief."""
    test = [
        shard for shard in plan_shards(many, settings(holdout=holdout)) if shard.split == "test"
    ]
    counts = {
        sizes: sum(len(s.windows) for s in test if s.shape == shape_of(sizes))
        for sizes in (WIDE, TALL, BRIEF)
    }
    assert counts == {WIDE: wide, TALL: tall, BRIEF: brief}


@pytest.mark.parametrize("holdout", [0.1, 0.3, 0.7])
def test_a_video_holds_out_its_last_windows(many, holdout):
    shards = list(plan_shards(many, settings(holdout=holdout)))
    of_video = {}
    for shard in shards:
        for window in shard.windows:
            of_video.setdefault(window.video, {}).setdefault(shard.split, []).append(window.start)
    assert sum("test" in splits for splits in of_video.values()) > 2
    for video, splits in of_video.items():
        if len(splits) == 2:
            assert max(splits["train"]) < min(splits["test"]), f"{video} trains on what comes later"


def test_the_sizes_of_a_window_are_in_one_split():
    """Else training would see at one size what is held out at another."""
    large = (9, 32, 48)
    both = [
        w
        for number in range(5)
        for sizes in (WIDE, large)
        for w in windows(*[(0, WIDE)] * number, (7, sizes))
    ]
    how = settings(cutting=Cutting(fps=12.0, lengths=(9,), sizes=((16, 24), (32, 48))), holdout=0.3)
    splits = {}
    for shard in plan_shards(both, how):
        for window in shard.windows:
            splits.setdefault((window.video, window.start), []).append(shard.split)
    assert len(splits) == 35 and {tuple(found) for found in splits.values()} == {
        ("train",) * 2,
        ("test",) * 2,
    }


def test_a_single_window_is_for_training_and_no_holdout_for_all():
    (shard,) = plan_shards(windows((1, WIDE)), settings(holdout=0.5))
    assert shard.split == "train"
    assert {shard.split for shard in plan_shards(windows((9, WIDE)), settings(holdout=0.0))} == {
        "train"
    }


def test_the_plan_of_a_folder(videos):
    found = list_videos(videos, None)
    plan = make_plan(videos, found, settings(), IDENTITIES, threads=2)
    counts = {}
    for shard in plan.shards:
        for window in shard.windows:
            key = (window.video, dataclasses.astuple(window.shape))
            counts[key] = counts.get(key, 0) + 1
            assert window.caption == f"clip {window.video} moves"
    assert counts == {
        ("a/wide0.mp4", WIDE): 4,
        ("a/wide1.mp4", WIDE): 3,
        ("wide2.mp4", WIDE): 2,
        ("tall.mp4", TALL): 3,
        ("brief.mp4", BRIEF): 1,
    }
    assert plan.clips == 13 and plan.rejected == []


def test_a_plan_comes_back_from_its_file(videos, tmp_path):
    plan = make_plan(videos, list_videos(videos, None), settings(), IDENTITIES, threads=2)
    save_plan(plan, tmp_path)
    assert load_plan(tmp_path) == plan
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]
    assert differences(load_plan(tmp_path), settings(), IDENTITIES) == []
    (tmp_path / "plan.json").write_text((tmp_path / "plan.json").read_text()[:-20])
    with pytest.raises(ValueError, match=r"plan.json is damaged"):
        load_plan(tmp_path)


@pytest.mark.parametrize(
    ("changes", "parts", "line"),
    [
        (dict(dtype="bfloat16"), IDENTITIES, "dtype was 'float16' and is 'bfloat16'"),
        (dict(holdout=0.3), IDENTITIES, "holdout was 0.2 and is 0.3"),
        (
            dict(cutting=dataclasses.replace(CUTTING, fps=24.0)),
            IDENTITIES,
            "cutting.fps was 12.0 and is 24.0",
        ),
        (
            dict(cutting=dataclasses.replace(CUTTING, sizes=((16, 24),))),
            IDENTITIES,
            "cutting.sizes was [[16, 24], [24, 16]] and is [[16, 24]]",
        ),
        (
            {},
            IDENTITIES | {"tokenizer": {"kind": "pca", "fingerprint": "xyz"}},
            "tokenizer.fingerprint was 'abc' and is 'xyz'",
        ),
        (
            {},
            IDENTITIES | {"text_encoder": {"kind": "hashed"}},
            "text_encoder.kind was None and is 'hashed'",
        ),
    ],
)
def test_differences_are_named(many, changes, parts, line):
    plan = plans.Plan(settings=settings(), identities=IDENTITIES, videos={}, rejected=[], shards=())
    assert differences(plan, settings(**changes), parts) == [line]


def test_changed_videos_are_named():
    plan = plans.Plan(
        settings=settings(),
        identities=IDENTITIES,
        rejected=[],
        shards=(),
        videos={"a.mp4": (10, "x"), "b.mp4": (20, "y"), "c.mp4": (30, "z")},
    )
    assert changed_videos(plan, dict(plan.videos)) == []
    assert changed_videos(plan, {"a.mp4": (11, "x"), "b.mp4": (20, "new"), "d.mp4": (1, "")}) == [
        "d.mp4 is new",
        "c.mp4 is gone",
        "a.mp4 had 10 bytes and has 11",
        "the caption of b.mp4 was 'y' and is 'new'",
    ]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(dtype="int8"), "dtype is 'int8'; it may be one of 'float16', 'bfloat16'"),
        (dict(clips_per_shard=0), "clips_per_shard must be at least 1"),
        (dict(holdout=1.0), r"holdout must lie in \[0, 1\)"),
        (dict(holdout=-0.1), r"holdout must lie in \[0, 1\)"),
    ],
)
def test_impossible_settings(changes, words):
    with pytest.raises(ValueError, match=words):
        settings(**changes)


def test_no_usable_video(tmp_path):
    for number in range(12):
        (tmp_path / f"{number:02}.mp4").write_bytes(b"junk")
    with pytest.raises(ValueError, match=r"None of the 12 videos(.|\n)*00.mp4: cannot be decoded"):
        make_plan(tmp_path, list_videos(tmp_path, None), settings(), IDENTITIES, threads=2)


@pytest.mark.parametrize("digest", [True, False], ids=["now", "earlier versions"])
def test_wrong_values_in_plan_json_are_refused(tmp_path, digest):
    """Every entry with a dozen wrong values. Without a digest, those that are possible pass."""
    cutting = Cutting(fps=12.0, lengths=(9, 5), sizes=((16, 24), (24, 16)))
    settings = Settings(cutting=cutting, clips_per_shard=2, holdout=0.25)
    shape = ClipShape(num_frames=9, height=16, width=24)
    windows = []
    for video in ("a.mp4", "b.mp4"):
        for start in (0.0, 0.75, 1.5):
            windows.append(
                Window(
                    video=video, first=0.0, start=start, stop=start + 0.75, shape=shape, caption="c"
                )
            )
    plan = Plan(
        settings=settings,
        identities={"tokenizer": {"kind": "pca"}, "text_encoder": None},
        videos={"a.mp4": (100, "c"), "b.mp4": (200, "c")},
        rejected=[],
        shards=tuple(plan_shards(windows, settings)),
    )
    save_plan(plan, tmp_path)
    assert load_plan(tmp_path) == plan
    file = tmp_path / "plan.json"
    if not digest:
        values = json.loads(file.read_text())
        del values["sha256"]
        file.write_text(json.dumps(values))
    with annotations_off():
        taken = accepted(file, lambda: load_plan(tmp_path))
    possible = [("sha256", LEFT_OUT), ("sha256", None)]
    free = ("parts.", "settings.", "videos.", "shards.0.windows.", "shards.1.windows.")
    believed = []
    for place, value in taken:
        if (place, value) in possible or (not digest and place.startswith(free)):
            continue
        if not digest and value in (LEFT_OUT, []) and place in ("shards", "shards.0"):
            continue  # fewer shards are a plan, too
        believed.append((place, value))
    assert not believed
