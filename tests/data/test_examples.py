"""The message format held against TFDS's own protocol buffers."""

import numpy as np
import pytest
from tensorflow_datasets.proto import tf_example_pb2

from videomar_jax.data.examples import decode, encode

FEATURES = {
    "caption": "a café".encode(),
    "empty": b"",
    "large": bytes(range(256)) * 600,
    "clip": 3,
    "zero": 0,
    "negative": -7,
    "far": 2**62 + 1,
    "shape": (2, 300, 70000),
    "none": (),
    "start": 1.25,
    "fps": 23.976,
}


def values(example):
    """A TFDS message as plain values."""
    found = {}
    for name, feature in example.features.feature.items():
        kind = feature.WhichOneof("kind")
        found[name] = list(getattr(feature, kind).value)
    return found


def expected():
    found = {}
    for name, value in FEATURES.items():
        if isinstance(value, float):
            found[name] = [float(np.float32(value))]
        else:
            found[name] = list(value) if isinstance(value, tuple) else [value]
    return found


def test_tfds_reads_what_is_written():
    assert values(tf_example_pb2.Example.FromString(encode(FEATURES))) == expected()


def test_what_tfds_writes_is_read():
    example = tf_example_pb2.Example()
    for name, value in expected().items():
        feature = example.features.feature[name]
        kind = FEATURES[name]
        part = feature.bytes_list if isinstance(kind, bytes) else feature.float_list
        (feature.int64_list if isinstance(kind, int | tuple) else part).value.extend(value)
    found = decode(example.SerializeToString())
    assert set(found) == set(FEATURES)
    for name, value in FEATURES.items():
        if isinstance(value, bytes):
            assert bytes(found[name]) == value
        else:
            assert found[name].tolist() == expected()[name], name
            assert found[name].dtype == (np.float32 if isinstance(value, float) else np.int64)


def test_equal_features_are_equal_bytes_in_any_order():
    assert encode(FEATURES) == encode(dict(reversed(FEATURES.items())))


@pytest.mark.parametrize("damage", [b"", b"\xff", b"\x0a\x05abc", b"\x08\x01", b"\x0a\x80"])
def test_other_bytes_are_refused(damage):
    if not damage:
        assert decode(damage) == {}, "the message without features"
        return
    with pytest.raises(ValueError, match=r"not a tf\.train\.Example"):
        decode(damage)


def test_every_cut_is_noticed_or_leaves_out_features():
    whole = encode({"a": b"12345", "b": 7})
    for size in range(1, len(whole)):
        with pytest.raises(ValueError, match=r"not a tf\.train\.Example"):
            decode(whole[:size])
