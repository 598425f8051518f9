"""A prepared folder written by hand, and what `LatentShards` makes of it."""

import json
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from tests.helpers.tiny_model import annotations_off
from tests.helpers.wrong_values import LEFT_OUT, accepted
from videomar_jax.checks import UserError
from videomar_jax.data.loader import batches
from videomar_jax.data.records import DTYPES, PreparedClip, to_record, write_records
from videomar_jax.data.shards import LatentShards
from videomar_jax.data.sources import ClipShape, SizedSource
from videomar_jax.io.files import with_digest

STRIDE = 2
LONG = ClipShape(num_frames=9, height=16, width=32)
SHORT = ClipShape(num_frames=5, height=16, width=32)
TALL = ClipShape(num_frames=5, height=32, width=16)
SHARDS = [
    ("train", LONG, 3),
    ("train", SHORT, 0),
    ("train", SHORT, 2),
    ("train", TALL, 1),
    ("test", LONG, 2),
]
MASK = np.array([False, True, True, False])


def clip(number, shape, dtype):
    rng = np.random.default_rng(number)
    grid = (1 + (shape.num_frames - 1) // STRIDE, shape.height // 8, shape.width // 8, 3)
    return PreparedClip(
        latents=rng.standard_normal(grid).astype(DTYPES[dtype]),
        text=rng.standard_normal((2, 5)).astype(DTYPES[dtype]),
        text_mask=MASK,
        caption=f"clip {number}",
        file=f"{number}.mp4",
        start=number / 2,
        fps=10.0,
        shape=shape,
        clip=number,
    )


def write_folder(path, dtype="float16"):
    """The folder, and its clips in the order of the manifest."""
    path.mkdir(exist_ok=True)
    entries, clips = [], []
    for number, (split, shape, count) in enumerate(SHARDS):
        mine = [clip(len(clips) + i, shape, dtype) for i in range(count)]
        name = f"clips-{number}"
        told = write_records(path / name, map(to_record, mine))
        entries.append({"file": name, "split": split, **vars(shape), **told})
        clips += mine
    manifest = {
        "format": "videomar_jax prepared clips",
        "version": 1,
        "fps": 10.0,
        "dtype": dtype,
        "shards": entries,
        "tokenizer": {"temporal_stride": STRIDE},
    }
    (path / "manifest.json").write_text(json.dumps(manifest))
    return clips


@pytest.fixture
def folder(tmp_path):
    write_folder(tmp_path)
    return tmp_path


def change(folder, **changes):
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_every_clip_is_read_as_it_was_written(tmp_path, dtype):
    clips = write_folder(tmp_path, dtype)
    source = LatentShards(tmp_path, verify=True)
    assert isinstance(source, SizedSource) and source.fps == 10 and len(source) == len(clips) == 8
    for index in np.random.default_rng(0).permutation(8).tolist():
        put, got = clips[index], source.read(index, None, clips[index].shape)
        assert set(got) == {"latents", "text", "text_mask", "caption"}
        assert got["latents"].dtype == got["text"].dtype == np.float32
        np.testing.assert_array_equal(got["latents"], put.latents.astype(np.float32))
        np.testing.assert_array_equal(got["text"][MASK], put.text.astype(np.float32))
        assert got["text"].shape == (4, 5) and not got["text"][~MASK].any()
        assert got["text_mask"].tolist() == MASK.tolist() and got["caption"] == f"clip {index}"
        assert source.name(index) == str(index) and source.describe(index)["file"] == f"{index}.mp4"
        assert source.describe(index)["start"] == index / 2
    with pytest.raises(IndexError, match="8 clips"):
        source.read(8, None, LONG)


def test_a_shorter_clip_is_the_first_latents_of_a_longer_one(folder):
    source = LatentShards(folder)
    whole = source.read(1, None, LONG)["latents"]
    for num_frames, frames in ((1, 1), (3, 2), (5, 3), (9, 5)):
        part = source.read(1, None, ClipShape(num_frames=num_frames, height=16, width=32))[
            "latents"
        ]
        np.testing.assert_array_equal(part, whole[:frames])


def test_clips_fit_by_exact_size_and_by_length(folder):
    source = LatentShards(folder)
    sizes = [(16, 32), (32, 16)]
    assert source.fits(LONG, sizes).tolist() == [0, 1, 2, 6, 7]
    assert source.fits(SHORT, sizes).tolist() == [0, 1, 2, 3, 4, 6, 7]
    assert source.fits(TALL, sizes).tolist() == [5]
    assert source.fits(ClipShape(num_frames=1, height=16, width=16), [(16, 16)]).tolist() == []
    for shape in (LONG, SHORT, TALL):
        for index in range(len(source)):
            if index in source.fits(shape, sizes):
                source.read(index, None, shape)
            else:
                asked = rf"but {shape.num_frames} at .* are asked for"
                words = rf"clip {index} is stored as \d frames at .*, {asked}"
                with pytest.raises(ValueError, match=words):
                    source.read(index, None, shape)


def test_digests_tell_other_files_apart(folder, tmp_path_factory):
    copy = tmp_path_factory.mktemp("copy")
    write_folder(copy)
    found = {
        split: LatentShards(folder, split=split).digest() for split in ("train", "test", "all")
    }
    assert len(set(found.values())) == 3 and LatentShards(copy).digest() == found["all"]
    shards = json.loads((copy / "manifest.json").read_text())["shards"]
    shards[0]["sha256"] = "0" * 64
    change(copy, shards=shards)
    assert LatentShards(copy, split="train").digest() != found["train"]
    assert LatentShards(copy, split="test").digest() == found["test"]


def test_splits_are_apart_and_make_the_whole(folder):
    train, test, whole = (LatentShards(folder, split=split) for split in ("train", "test", "all"))
    files = [
        [source.describe(i)["file"] for i in range(len(source))] for source in (train, test, whole)
    ]
    assert files[0] + files[1] == files[2] and len(train) == 6 and len(test) == 2
    assert {test.describe(i)["split"] for i in range(2)} == {"test"}
    assert test.fits(LONG, []).tolist() == [0, 1]


def test_frames_that_the_tokenizer_does_not_make_are_refused(folder):
    with pytest.raises(ValueError, match=r"4 frames are not 1 \+ 2 \* k"):
        LatentShards(folder).read(0, None, ClipShape(num_frames=4, height=16, width=32))


def test_threads_and_pickles_read_the_same(folder):
    source = LatentShards(folder)
    wanted = [source.read(i, None, SHORT)["latents"] for i in range(5)]
    copy = pickle.loads(pickle.dumps(source))
    order = np.random.default_rng(1).integers(5, size=400).tolist()
    with ThreadPoolExecutor(8) as pool:
        for index, got in zip(
            order, pool.map(lambda i: copy.read(i, None, SHORT), order), strict=True
        ):
            np.testing.assert_array_equal(got["latents"], wanted[index])


def test_few_files_stay_open(folder, monkeypatch):
    monkeypatch.setattr("videomar_jax.data.shards._MOST_OPEN", 2)
    source = LatentShards(folder)
    for index in [0, 3, 5, 6, 0, 5, 3]:
        assert (
            source.read(index, None, ClipShape(num_frames=1, **_size(index)))["caption"]
            == f"clip {index}"
        )
        assert len(source._readers._open) <= 2


def _size(index):
    return {"height": 32, "width": 16} if index == 5 else {"height": 16, "width": 32}


def test_batches_of_latents(folder):
    source = LatentShards(folder, split="test")
    iterator = batches(source, shape=SHORT, batch_size=2, seed=0)
    batch = next(iterator)
    iterator.close()
    assert batch["latents"].shape == (2, 3, 2, 4, 3) and batch["text"].shape == (2, 4, 5)
    assert sorted(batch["caption"]) == ["clip 6", "clip 7"]


# Damage


def test_a_missing_or_cut_file_is_named_at_once(folder):
    path = folder / "clips-3"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(
        ValueError, match=rf"clips-3 has {len(whole) // 2} bytes, {len(whole)} in manifest"
    ):
        LatentShards(folder)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"clips-3 is missing.*same prepare command"):
        LatentShards(folder, split="test")


def test_changed_bytes_are_found_by_checksum_or_on_reading(folder):
    path = folder / "clips-0"
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 100] ^= 255  # what follows the clips is padding
    path.write_bytes(raw)
    with pytest.raises(ValueError, match=r"clips-0 has another SHA-256"):
        LatentShards(folder, verify=True)
    source = LatentShards(folder)
    with pytest.raises(ValueError, match=r"clips-0: clip \d cannot be read .*remove this file"):
        for index in range(3):
            source.read(index, None, LONG)


def test_a_file_that_vanishes_while_reading_is_named(folder):
    source = LatentShards(folder)
    (folder / "clips-4").unlink()
    with pytest.raises(ValueError, match=r"clips-4: clip 0 cannot be read \(the file is gone\)"):
        source.read(6, None, LONG)


def test_another_file_of_the_same_size_is_noticed(folder):
    (folder / "clips-0").write_bytes((folder / "clips-2").read_bytes())
    assert (folder / "clips-0").stat().st_size == (folder / "clips-2").stat().st_size, (
        "shards are padded to blocks"
    )
    with pytest.raises(ValueError, match=r"clips-0.*holds 2 clips, 3 in manifest"):
        LatentShards(folder).read(0, None, LONG)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(version=2), "version 2; this code reads"),
        (dict(format="other"), "is 'other'"),
        (dict(dtype="int8"), "manifest.json"),
        (dict(shards=[{"file": "x"}]), "is damaged"),
        (dict(tokenizer={}), "is damaged"),
        (dict(shards=[]), "no clips of the split 'all'"),
    ],
)
def test_a_wrong_manifest_is_named(folder, changes, words):
    change(folder, **changes)
    with pytest.raises(ValueError, match=words):
        LatentShards(folder)


def test_a_folder_that_is_none_or_not_done(folder):
    with pytest.raises(
        FileNotFoundError,
        match=r"nowhere holds no manifest.json: give a folder that `prepare` wrote",
    ):
        LatentShards(folder / "nowhere")
    (folder / "manifest.json").unlink()
    (folder / "plan.json").write_text("{}")
    with pytest.raises(
        FileNotFoundError, match=r"holds no manifest.json yet: run the same prepare command"
    ):
        LatentShards(folder)
    with pytest.raises((ValueError, TypeError), match="split"):
        LatentShards(folder, split="validation")


@pytest.mark.parametrize("changed", [{"fps": 9}, {"dtype": "bfloat16"}])
def test_a_changed_manifest_is_noticed(folder, changed):
    path = folder / "manifest.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps(with_digest(values)))
    assert "sha256" not in LatentShards(folder).manifest
    change(folder, **changed)
    with pytest.raises(UserError, match=r"manifest.json is damaged .*SHA-256"):
        LatentShards(folder)
    path.write_text(json.dumps(values | changed))  # earlier versions have no digest of it
    LatentShards(folder)


def test_a_flipped_bit_in_the_clips_never_gives_other_values(folder):
    source = LatentShards(folder)
    expected = [source.read(index, None, LONG)["latents"] for index in range(3)]
    shard = folder / "clips-0"
    whole = shard.read_bytes()
    used = np.flatnonzero(np.frombuffer(whole, np.uint8))
    told = 0
    for offset in np.random.default_rng(0).choice(used, 60):
        broken = bytearray(whole)
        broken[offset] ^= 1 << int(offset % 8)
        shard.write_bytes(broken)
        damaged = LatentShards(folder)
        for index, latents in enumerate(expected):
            try:
                found = damaged.read(index, None, LONG)["latents"]
            except UserError as error:
                told += 1
                assert "cannot be read" in str(error)
            else:
                np.testing.assert_array_equal(found, latents, err_msg=f"bit at {offset}")
    assert told > 50, "the file holds little but clips"


def test_wrong_values_in_the_manifest_are_refused(folder):
    """Without a digest, as in earlier versions; counts are compared when a file is opened."""
    path = folder / "manifest.json"
    values = json.loads(path.read_text())
    shards = values["shards"]
    shapes = []
    for shape in (LONG, SHORT, TALL):
        sizes = vars(shape)
        counts = {"train": 0, "test": 0}
        for shard in shards:
            if all(shard[name] == size for name, size in sizes.items()):
                counts[shard["split"]] += shard["clips"]
        latents = [1 + (shape.num_frames - 1) // STRIDE, shape.height // 8, shape.width // 8, 3]
        shapes.append({**sizes, "latents": latents, "clips": counts})
    values |= {
        "clips": sum(shard["clips"] for shard in shards),
        "bytes": sum(shard["bytes"] for shard in shards),
        "rejected": 0,
        "shapes": shapes,
        "text_encoder": {"kind": "hashed", "max_tokens": 4, "width": 5, "settings": {}},
        "settings": {"windows_per_clip": 0, "holdout": 0.25, "clips_per_shard": 3},
    }
    values["tokenizer"] |= {"kind": "pca", "spatial_stride": 8, "channels": 3, "scale": 1.0}
    path.write_text(json.dumps(values))
    plan = {"settings": {"dtype": "float16", "cutting": {"fps": 10.0}}}
    (folder / "plan.json").write_text(json.dumps(plan))
    with annotations_off():
        taken = accepted(path, lambda: LatentShards(folder))
    told_by_nothing = ("tokenizer", "text_encoder", "settings", "shapes", "rejected")
    believed = []
    for place, value in taken:
        optional = place.split(".")[0] in (*told_by_nothing, "clips", "bytes")
        if not (optional and (value in (LEFT_OUT, None, []) or place.split(".")[0] != place)):
            if (place, value) != ("rejected", 10**12):
                believed.append((place, value))
    assert not believed


def test_another_type_than_the_plan_has_is_refused(folder):
    """It would be read as other numbers, without an error."""
    plan = {"settings": {"dtype": "float16", "cutting": {"fps": 10.0}}}
    (folder / "plan.json").write_text(json.dumps(plan))
    LatentShards(folder)
    change(folder, dtype="bfloat16")
    with pytest.raises(ValueError, match=r"dtype is 'bfloat16', but 'float16' in plan\.json"):
        LatentShards(folder)
