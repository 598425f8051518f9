import resource
import signal

import ml_dtypes
import numpy as np
import pytest

from videomar_jax.data import records
from videomar_jax.data.records import (
    PreparedClip,
    count_records,
    from_record,
    to_record,
    write_records,
)
from videomar_jax.data.sources import ClipShape
from videomar_jax.io.files import sha256


def clip(dtype, *, text=True, seed=0):
    rng = np.random.default_rng(seed)
    mask = np.array([True, False, True, True, False])
    return PreparedClip(
        latents=rng.standard_normal((3, 2, 4, 5)).astype(records.DTYPES[dtype]),
        text=rng.standard_normal((3, 6)).astype(records.DTYPES[dtype]) if text else None,
        text_mask=mask if text else None,
        caption="a café",
        file="sub/ä.mp4",
        start=1.5,
        fps=12.5,
        shape=ClipShape(num_frames=5, height=16, width=32),
        clip=2**40,
    )


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("text", [True, False])
def test_a_clip_comes_back_bit_for_bit(dtype, text):
    put = clip(dtype, text=text)
    got = from_record(to_record(put), dtype)
    for name in ("latents", "text", "text_mask"):
        before, after = getattr(put, name), getattr(got, name)
        assert (before is None) == (after is None)
        if before is not None:
            assert (
                after.dtype == before.dtype
                and after.tobytes() == before.tobytes()
                and after.shape == before.shape
            )
    for name in ("caption", "file", "start", "fps", "shape", "clip"):
        assert getattr(put, name) == getattr(got, name)


def test_the_two_dtypes_round_as_they_should():
    exact = np.array([1.0, 1 / 3, 1e-3, 60000.0])
    for dtype, bits in (("float16", 11), ("bfloat16", 8)):
        rounded = exact.astype(records.DTYPES[dtype]).astype(np.float64)
        assert (np.abs(rounded / exact - 1) <= 2.0**-bits).all() and (rounded != exact).any()
    assert records.DTYPES["bfloat16"] == ml_dtypes.bfloat16


def test_a_name_that_is_no_utf8_comes_back():
    odd = b"caf\xe9.mp4".decode(errors="surrogateescape")
    put = PreparedClip(**{**vars(clip("float16")), "file": odd, "caption": "\udce9"})
    got = from_record(to_record(put), "float16")
    assert got.file == odd and got.caption == "?"


@pytest.mark.parametrize("record", [b"", b"junk", to_record(clip("float16"))[:-3]])
def test_other_bytes_are_refused(record):
    with pytest.raises(ValueError, match=r"not the record of a clip|not a tf\.train\.Example"):
        from_record(record, "float16")


# Files


def test_a_file_is_written_in_one_move_and_its_digest_returned(tmp_path):
    path = tmp_path / "x.array_record"
    told = write_records(path, (bytes([i]) * 1000 for i in range(7)))
    assert told == {"clips": 7, "bytes": path.stat().st_size, "sha256": sha256(path)}
    assert count_records(path) == 7 and [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_equal_records_make_equal_files(tmp_path):
    content = [to_record(clip("bfloat16", seed=i)) for i in range(20)]
    first, second = (write_records(tmp_path / name, iter(content)) for name in "ab")
    assert first == second and (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_what_stood_there_is_kept_when_writing_fails(tmp_path):
    path = tmp_path / "x"
    write_records(path, [b"old"])
    before = path.read_bytes()

    def failing():
        yield b"new"
        raise RuntimeError("the device is gone")

    with pytest.raises(RuntimeError, match="the device is gone"):
        write_records(path, failing())
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_a_full_disk_is_an_error_that_names_the_file(tmp_path):
    """A limit on the size of files fails as a full disk does: in the middle of a write."""
    kept, handler = (
        resource.getrlimit(resource.RLIMIT_FSIZE),
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN),
    )
    noise = np.random.default_rng(0).bytes(100_000)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, kept[1]))
        with pytest.raises(OSError, match=r"x\.array_record.*File too large"):
            write_records(tmp_path / "x.array_record", [noise] * 10)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, kept)
        signal.signal(signal.SIGXFSZ, handler)
    assert not list(tmp_path.iterdir())
    with pytest.raises(OSError, match=r"nowhere/x"):
        write_records(tmp_path / "nowhere" / "x", [b"a"])
