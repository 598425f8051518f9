"""tf.train.Example messages to bytes and back, in NumPy: what TFDS keeps in its record files.

This is as much of Protocol Buffers as an Example needs. A field is the number (field << 3 | 2), the
length of its content, and the content; both numbers are varints of 7 bits a byte, lowest first. The
fields nest as

    Example { 1: Features { 1: entry { 1: name, 2: Feature }, ... } }

    Feature { 1: BytesList { 1: bytes } }
         or { 2: FloatList { 1: float32 ... } }
         or { 3: Int64List { 1: varint ... } }

Entries are written in the order of their names, so that equal features are equal bytes.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

Feature = bytes | float | int | Sequence[int]

# Fields of a Feature.
_BYTES = 1
_FLOATS = 2
_INTS = 3
# The wire type of fields that begin with their length, the only one here.
_LENGTH_DELIMITED = 2


def encode(features: Mapping[str, Feature]) -> bytes:
    """The message with these features.

    A feature is bytes, one float (kept as float32), or whole numbers of at most 63 bits.
    """
    content = b""
    for name in sorted(features):
        entry = _field(1, name.encode()) + _field(2, _feature(features[name]))
        content += _field(1, entry)
    return _field(1, content)


def decode(message: bytes) -> dict[str, memoryview | np.ndarray]:
    """The features of a message: bytes as a view of it, numbers as a float32 or int64 array.

    Raises:
        ValueError: the bytes are not such a message.
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
    # Negative numbers are written as their two's complement of 64 bits.
    varints = [_varint(number % 2**64) for number in numbers]
    return _field(_INTS, _field(1, b"".join(varints)))


def _value(feature: memoryview) -> memoryview | np.ndarray:
    ((kind, values),) = _fields(feature)
    # An empty list has no field.
    content = next((content for _, content in _fields(values)), memoryview(b""))
    if kind == _BYTES:
        return content
    if kind == _FLOATS:
        return np.frombuffer(content, np.float32)
    numbers = []
    position = 0
    while position < len(content):
        number, position = _read_varint(content, position)
        numbers.append(number - 2**64 if number >= 2**63 else number)
    return np.array(numbers, np.int64)


def _field(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | _LENGTH_DELIMITED) + _varint(len(content)) + content


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Yields (number, content) of every field."""
    position = 0
    while position < len(message):
        tag, position = _read_varint(message, position)
        size, position = _read_varint(message, position)
        if tag & 7 != _LENGTH_DELIMITED or position + size > len(message):
            raise ValueError(f"no field of known length at byte {position}")
        yield tag >> 3, message[position : position + size]
        position += size


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
    return bytes(out)


def _read_varint(message: memoryview, position: int) -> tuple[int, int]:
    """(number, position of the next byte)."""
    number = shift = 0
    while message[position] > 127:
        number |= (message[position] & 127) << shift
        position += 1
        shift += 7
    return number | message[position] << shift, position + 1
