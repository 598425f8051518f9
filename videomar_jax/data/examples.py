"""tf.train.Example messages to bytes and back, in NumPy: what TFDS keeps in its record files.

Protocol buffers, as far as an Example needs them. A field is (number << 3 | 2), the length of its
content, the content; both numbers as varints of 7 bits a byte, lowest first. The fields nest as

    Example { 1: Features { 1: entry { 1: name, 2: Feature }, ... } }
    Feature { 1: BytesList { 1: bytes } } or { 2: FloatList { 1: float32 ... } } or { 3: Int64List {
    1: varint ... } }

Entries are written in the order of their names, so that equal features are equal bytes.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

Feature = bytes | float | int | Sequence[int]
_BYTES, _FLOATS, _INTS = 1, 2, 3


def encode(features: Mapping[str, Feature]) -> bytes:
    """The message with these features: bytes, one float (kept as float32), or whole numbers of at
    most 63 bits."""
    entries = (
        _field(1, name.encode()) + _field(2, _feature(features[name])) for name in sorted(features)
    )
    return _field(1, b"".join(_field(1, entry) for entry in entries))


def decode(message: bytes) -> dict[str, memoryview | np.ndarray]:
    """The features of a message: bytes as a view of it, numbers as a float32 or int64 array.

    Raises ValueError for bytes that are no such message.
    """
    found = {}
    try:
        for _, features in _fields(memoryview(message)):
            for _, entry in _fields(features):
                parts = dict(_fields(entry))
                found[bytes(parts[1]).decode()] = _value(parts[2])
    except (IndexError, KeyError, StopIteration, UnicodeDecodeError, ValueError) as error:
        raise ValueError(f"not a tf.train.Example ({error!r})") from error
    return found


def _feature(value: Feature) -> bytes:
    if isinstance(value, bytes):
        return _field(_BYTES, _field(1, value))
    if isinstance(value, float):
        return _field(_FLOATS, _field(1, np.float32(value).tobytes()))
    numbers = [value] if isinstance(value, int) else value
    return _field(_INTS, _field(1, b"".join(_varint(number % 2**64) for number in numbers)))


def _value(feature: memoryview) -> memoryview | np.ndarray:
    ((kind, values),) = _fields(feature)
    content = next(
        (content for _, content in _fields(values)), memoryview(b"")
    )  # an empty list has no field
    if kind == _BYTES:
        return content
    if kind == _FLOATS:
        return np.frombuffer(content, np.float32)
    numbers = []
    at = 0
    while at < len(content):
        number, at = _read_varint(content, at)
        numbers.append(number - 2**64 if number >= 2**63 else number)
    return np.array(numbers, np.int64)


def _field(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """(number, content) of every field."""
    at = 0
    while at < len(message):
        tag, at = _read_varint(message, at)
        size, at = _read_varint(message, at)
        if tag & 7 != 2 or at + size > len(message):
            raise ValueError(f"no field of known length at byte {at}")
        yield tag >> 3, message[at : at + size]
        at += size


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
    return bytes(out)


def _read_varint(message: memoryview, at: int) -> tuple[int, int]:
    """(number, where the next byte stands)."""
    number = shift = 0
    while message[at] > 127:
        number |= (message[at] & 127) << shift
        at, shift = at + 1, shift + 7
    return number | message[at] << shift, at + 1
