"""Damaged and malicious files: a clear error that names the file, nothing executed, never another
exception."""

import os
import pickle
import sys
import time
import zipfile

import numpy as np
import pytest

from tests.helpers.weight_files import (
    KINDS,
    TENSORS,
    script_program,
    storages,
    write,
    write_any,
    write_archive,
    write_script,
)
from videomar_jax.interop.formats.files import WeightFileError, open_tensors
from videomar_jax.interop.videomar import inspect_checkpoint

PLACES = 200
ALARMS: list[str] = []
_FORBIDDEN = {
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.fork",
    "subprocess.Popen",
    "pickle.find_class",
    "socket.connect",
}


@pytest.fixture(autouse=True, scope="module")
def alarm():
    """Records every attempt to start something while a file is read (audit hooks cannot be removed,
    only silenced)."""
    armed = [True]
    sys.addaudithook(
        lambda event, args: ALARMS.append(event) if armed[0] and event in _FORBIDDEN else None
    )
    yield
    armed[0] = False


def outcome(path) -> str:
    """Either "read" or "refused"; any other exception fails the test."""
    ALARMS.clear()
    try:
        with open_tensors(path) as file:
            arrays = {name: file[name] for name in file}
        for name, array in arrays.items():
            assert array.shape == file.shapes[name] and array.dtype == file.dtypes[name]
        result = "read"
    except WeightFileError as error:
        assert path.parent.name in str(error) or path.name in str(error), (
            f"the file is not named: {error}"
        )
        result = "refused"
    assert not ALARMS, f"reading the file did {ALARMS}"
    return result


def reduce_to(function: str, argument: str) -> bytes:
    """A pickle that calls a function when Python's unpickler loads it."""
    module, name = function.rsplit(".", 1)
    return (
        f"c{module}\n{name}\n(X".encode()
        + len(argument).to_bytes(4, "little")
        + argument.encode()
        + b"tR"
    )


class Touch:
    """Unpickled carelessly, it makes a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_a_pickle_that_calls_a_function_is_refused_by_name(tmp_path):
    trap = tmp_path / "sprung"
    program = pickle.dumps({"weight": Touch(trap)}, protocol=2)
    path = write_archive(tmp_path / "evil.pth", program, {})
    with pytest.raises(WeightFileError, match=r"posix\.system|nt\.system") as error:
        open_tensors(path)
    assert "nothing was executed" in str(error.value) and "evil.pth" in str(error.value)
    assert not trap.exists()
    pickle.loads(program)  # the trap is a real one
    assert trap.exists()


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_every_protocol_of_pickle_is_harmless(protocol, tmp_path):
    trap = tmp_path / "sprung"
    path = write_archive(tmp_path / "evil.pt", pickle.dumps([Touch(trap)], protocol=protocol), {})
    assert outcome(path) == "refused" and not trap.exists()


@pytest.mark.parametrize(
    "function",
    [
        "builtins.eval",
        "builtins.getattr",
        "torch.load",
        "torch._utils.sys",
        "torch.hub.load",
        "numpy.load",
    ],
)
def test_names_that_look_like_weights_are_refused(function, tmp_path):
    path = write_archive(tmp_path / "evil.jit", b"\x80\x02" + reduce_to(function, "1") + b".", {})
    with pytest.raises(WeightFileError, match=f"{function}, which is not on the list"):
        open_tensors(path)


@pytest.mark.parametrize(
    "program",
    [
        b"ctorch\nFloatStorage\n)R.",  # a type tag is called
        b"ctorch._utils\n_rebuild_tensor_v2\n}b.",  # a function is given attributes
        b"cargparse\nNamespace\n)\x81}(X\x01\x00\x00\x00aNu.",  # a mark without end
        b"}q\x00X\x01\x00\x00\x00ah\x00s.",  # a dictionary that holds itself
        b"(X\x01\x00\x00\x00aq\x00X\x01\x00\x00\x00bq\x01h\x02.",  # an unknown memo
        b"r\xff\xff\xff\xff.",  # a memo far away
        b"\x8a\xff.",
        b"",
        b".",
        b"N",
        b"X\xff\xff\xff\x7fa.",
        b"\x96\xff\xff\xff\xff\xff\xff\xff\x7f.",
        b"P1\n.",
        b"}(K\x01K\x02K\x01K\x03u.",  # a repeated key
    ],
)
def test_pickles_that_are_no_weights(program, tmp_path):
    assert outcome(write_archive(tmp_path / "odd.pth", b"\x80\x02" + program, {})) == "refused"


def test_lists_that_hold_each_other_a_billion_times(tmp_path):
    program = b"]q\x00"
    for i in range(40):
        program += b"]q" + bytes([i + 1]) + b"(" + (b"h" + bytes([i])) * 10 + b"e"
    assert (
        outcome(write_archive(tmp_path / "laughs.pth", b"\x80\x02]q\x00" + program[3:] + b".", {}))
        == "refused"
    )


@pytest.mark.parametrize("kind", KINDS)
def test_flipped_and_cut_files(kind, tmp_path):
    """200 places of each kind of file: read, or refused with our error; a cut is always noticed."""
    path = write_any(kind, tmp_path)
    good, rng = path.read_bytes(), np.random.default_rng(0)
    results = []
    for place in np.linspace(0, len(good) - 1, PLACES).astype(int):
        flipped = bytearray(good)
        flipped[place] ^= int(rng.integers(1, 256))
        path.write_bytes(flipped)
        results.append(outcome(path))
        path.write_bytes(good[:place])
        assert outcome(path) == "refused", f"{kind} cut after {place} of {len(good)} bytes was read"
    path.write_bytes(good)
    assert outcome(path) == "read"
    assert results.count("refused") > PLACES // 8, (
        f"only {results.count('refused')} flips were noticed"
    )


def test_every_flip_in_a_storage_is_noticed(tmp_path):
    """Checksums cover whole zip members, also the bytes of a storage that no tensor uses."""
    path = write(tmp_path / "net.pth")
    good = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo("archive/data/0")
    start = info.header_offset + 30 + len(info.filename) + len(info.extra)
    for place in range(start, start + info.file_size):
        flipped = good.copy()
        flipped[place] ^= 1
        path.write_bytes(flipped)
        with pytest.raises(WeightFileError, match="checksum"), open_tensors(path) as file:
            file["a.weight"]


@pytest.mark.parametrize("kind", ["pth", "jit"])
def test_flipped_pickles_with_a_right_checksum(kind, tmp_path):
    program = script_program()
    if kind == "pth":
        with zipfile.ZipFile(write(tmp_path / "net.pth")) as archive:
            program = archive.read("archive/data.pkl")
    rng = np.random.default_rng(1)
    for place in np.linspace(0, len(program) - 1, PLACES).astype(int):
        flipped = bytearray(program)
        flipped[place] = int(rng.integers(0, 256))
        outcome(write_archive(tmp_path / f"flipped.{kind}", bytes(flipped), storages()))
        outcome(write_archive(tmp_path / f"cut.{kind}", program[:place], storages()))


def test_files_that_are_something_else(tmp_path):
    for name, content, message in [
        ("text.safetensors", b"<!DOCTYPE html><html>not found</html>", "not a file of weights"),
        ("empty.safetensors", b"", "0 bytes"),
        ("old.pth", pickle.dumps({"a": 1}, protocol=2), "bare pickle"),
        ("table.index.json", b"[1, 2]", "not the index"),
        ("deep.index.json", b"[" * 100_000, "corrupt"),
    ]:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(WeightFileError, match=message) as error:
            open_tensors(tmp_path / name)
        assert name in str(error.value)
    with zipfile.ZipFile(tmp_path / "holiday.zip", "w") as archive:
        archive.writestr("beach.jpg", b"...")
    with pytest.raises(WeightFileError, match=r"no data\.pkl"):
        open_tensors(tmp_path / "holiday.zip")


def test_compressed_and_big_endian_archives(tmp_path):
    with zipfile.ZipFile(tmp_path / "small.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("net/data.pkl", script_program())
    with pytest.raises(WeightFileError, match="compressed"):
        open_tensors(tmp_path / "small.pth")
    path = write_script(tmp_path / "big.jit")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("net/byteorder", "big")
    with pytest.raises(WeightFileError, match="big-endian"):
        open_tensors(path)


def test_safetensors_headers_that_lie(tmp_path):
    good = write(tmp_path / "net.safetensors", {"x": TENSORS["a.weight"]}).read_bytes()
    lies = {
        b'"shape": [3, 4]': (b'"shape": [3, 5]', "makes no sense"),
        b'"dtype": "F32"': (b'"dtype": "Z32"', "not supported"),
        b"[0, 48]": (b"[4, 52]", "does not begin"),
        b'{"x"': (b'["x"', "cannot be read"),
    }
    for true, (lie, message) in lies.items():
        assert good.count(true) == 1
        path = tmp_path / "lie.safetensors"
        path.write_bytes(good.replace(true, lie))
        with pytest.raises(WeightFileError, match=message):
            open_tensors(path)
    path.write_bytes(good + b"\0")
    with pytest.raises(WeightFileError, match="end at byte"):
        open_tensors(path)
    twice = b'{"x": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}, "x": {}}'
    path.write_bytes(len(twice).to_bytes(8, "little") + twice)
    with pytest.raises(WeightFileError, match="twice"):
        open_tensors(path)


ENTRY = '{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
CROWDED = {
    "one name often": ",".join([f'"a":{ENTRY}', *[f'"z_proj.weight":{ENTRY}'] * 60_000]),
    "one prefix often": f'"{"module." * 60_000}z_proj.weight":{ENTRY}',
    "one layer often": ",".join(
        f'"{"module." * (number % 20)}{number}z_proj.weight":{ENTRY}' for number in range(20_000)
    ),
    "many layers": ",".join(f'"decoder_blocks.{number}.x":{ENTRY}' for number in range(60_000)),
}


@pytest.mark.parametrize("case", CROWDED)
def test_a_crowded_header_is_refused_in_seconds(tmp_path, case):
    header = "{" + CROWDED[case] + "}"
    header += " " * (-len(header) % 8)
    path = tmp_path / "crowded.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header.encode())
    start = time.process_time()
    with pytest.raises(WeightFileError, match=r"crowded\.safetensors"):
        inspect_checkpoint(path)
    assert time.process_time() - start < 5
