"""Hashed text features: the same everywhere, nearly orthogonal, aware of order, never cut in
silence."""

import json
import logging
import subprocess
import sys

import numpy as np
import pytest

from videomar_jax.io.log import log
from videomar_jax.text_encoders import HashedTextEncoder, TextEncoder, load_text_encoder, tokens_cut
from videomar_jax.text_encoders.hashed import POSITION_SCALE, split_words


def cosine(a, b):
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


@pytest.fixture
def warnings():
    """The warnings that were logged, as texts."""
    records = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: records.append(record.getMessage())
    log.addHandler(handler)
    yield records
    log.removeHandler(handler)


def test_shapes_padding_and_protocol():
    encoder = HashedTextEncoder(6, 32)
    assert isinstance(encoder, TextEncoder)
    features, mask = encoder.encode(["a red circle", "", "Left, right!"])
    assert features.shape == (3, 6, 32) and features.dtype == np.float32 and mask.dtype == bool
    np.testing.assert_array_equal(
        mask.sum(axis=1), [4, 1, 5]
    )  # words, punctuation and the end token
    np.testing.assert_array_equal(mask, np.arange(6) < mask.sum(axis=1, keepdims=True))
    np.testing.assert_array_equal(np.any(features != 0, axis=-1), mask)
    empty_features, empty_mask = encoder.encode([])
    assert empty_features.shape == (0, 6, 32) and empty_mask.shape == (0, 6)


@pytest.mark.parametrize(
    ("caption", "words"),
    [
        ("A red Circle  moves\tLEFT.", ["a", "red", "circle", "moves", "left", "."]),
        ("wait... what?!", ["wait", ".", ".", ".", "what", "?", "!"]),
        ("STRASSE straße", ["strasse", "strasse"]),
        ("cafe\u0301 CAFÉ", ["café", "café"]),
        ("Привет, МИР", ["привет", ",", "мир"]),
        ("हिन्दी में", ["हिन्दी", "में"]),
        ("红色的圆", ["红", "色", "的", "圆"]),
        ("3 balls,\u00a02nd", ["3", "balls", ",", "2nd"]),
        (" \n\u200b\ud800", []),
    ],
)
def test_words_and_punctuation_of_any_script(caption, words):
    assert split_words(caption) == words


def test_features_are_unit_gaussians_nearly_orthogonal_between_words():
    words = [f"word{i}" for i in range(40)]
    features, _ = HashedTextEncoder(2, 512).encode(words)
    vectors = features[:, 0] - features[:, 0].mean(axis=0)  # the position term is common to all
    assert abs(vectors.std() - 1) < 0.03 and abs((vectors**4).mean() / vectors.var() ** 2 - 3) < 0.2
    cosines = np.array([[cosine(a, b) for b in vectors] for a in vectors]) - np.eye(40)
    assert np.abs(cosines).max() < 0.3


def test_the_same_word_is_recognised_anywhere_and_its_place_is_seen():
    encoder = HashedTextEncoder(8, 512)
    features, _ = encoder.encode(["red circle left", "left red circle", "LEFT"])
    assert not np.array_equal(features[0], features[1])
    assert cosine(features[0, 2], features[1, 0]) > 0.85  # "left" at places 2 and 0
    assert cosine(features[0, 2], features[1, 2]) < 0.3  # "left" and "circle" at place 2
    np.testing.assert_array_equal(features[1, 0], features[2, 0])
    place = (features[0, 2] - features[1, 0]).std() / np.sqrt(2)
    np.testing.assert_allclose(place, POSITION_SCALE, rtol=0.15)
    # A place adds the same vector to every word.
    swapped, _ = encoder.encode(["red circle", "circle red"])
    red, circle = swapped[0, 0] - swapped[1, 1], swapped[1, 0] - swapped[0, 1]
    np.testing.assert_allclose(red, circle, atol=1e-6)


def test_words_do_not_collide_with_the_end_token_or_positions():
    encoder = HashedTextEncoder(3, 256)
    features, _ = encoder.encode(["", "end", "position 0", "word"])
    firsts = features[:, 0]
    for i in range(4):
        for j in range(i):
            assert cosine(firsts[i], firsts[j]) < 0.4


def test_seed_and_width_give_other_vectors():
    first = HashedTextEncoder(2, 256).encode(["red"])[0][0, 0]
    assert abs(cosine(first, HashedTextEncoder(2, 256, seed=1).encode(["red"])[0][0, 0])) < 0.3
    assert HashedTextEncoder(2, 8).encode(["red"])[0].shape == (1, 2, 8)


def test_known_values_on_every_platform():
    """Features are written into caches: a change of these numbers would orphan them. If meant,
    raise the version."""
    features, _ = HashedTextEncoder(4, 4, seed=3).encode(["a Red ball"])
    expected = [
        [0.83914995, 0.42177749, -1.01878977, 0.22107369],
        [1.04355311, 0.87880826, -0.65940303, 0.22238806],
        [-0.17830034, -0.85414064, 1.02106416, -0.79692900],
        [0.61067760, -0.83513319, -1.36576152, 1.49070489],
    ]
    np.testing.assert_allclose(features[0], expected, atol=1e-6)


def test_another_process_gives_the_same_bits():
    code = (
        "from videomar_jax.text_encoders import HashedTextEncoder\n"
        "print(HashedTextEncoder(5, 16).encode(['a red circle', ''])[0].tobytes().hex())"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (
        run.stdout.strip()
        == HashedTextEncoder(5, 16).encode(["a red circle", ""])[0].tobytes().hex()
    )


def test_returned_arrays_may_be_changed_without_spoiling_later_calls():
    encoder = HashedTextEncoder(3, 16)
    features, _ = encoder.encode(["red"])
    kept = features.copy()
    features += 1
    np.testing.assert_array_equal(encoder.encode(["red"])[0], kept)


def test_long_captions_are_cut_with_one_warning_that_says_what(warnings):
    encoder = HashedTextEncoder(4, 16)
    features, mask = encoder.encode(["one two three", "one two three four five", "a b c d e f"])
    assert mask.all() and len(warnings) == 1
    assert all(
        part in warnings[0]
        for part in ("2 of 3", "max_tokens = 4", "'one two three'", "'four five'")
    )
    np.testing.assert_array_equal(features[0], features[1])  # the end token closes cut captions too


def test_tokens_are_counted_before_they_are_cut():
    encoder, captions = HashedTextEncoder(4, 16), ["", "one two three", "a b, c d"]
    assert encoder.count_tokens(captions) == [1, 4, 6]
    assert tokens_cut(encoder, captions) == [0, 0, 2]


def test_captions_that_fit_are_not_warned_about(warnings):
    HashedTextEncoder(4, 16).encode(["one two three", ""])
    assert not warnings


def test_one_token_leaves_the_end_token_only(warnings):
    features, mask = HashedTextEncoder(1, 16).encode(["", "red"])
    assert mask.all() and len(warnings) == 1
    np.testing.assert_array_equal(features[0], features[1])


def test_bad_arguments():
    with pytest.raises(ValueError, match="max_tokens must be at least 1, not 0"):
        HashedTextEncoder(0, 16)
    with pytest.raises(ValueError, match="width must be at least 1, not 0"):
        HashedTextEncoder(4, 0)
    with pytest.raises(ValueError, match=r"for one caption give \['a red ball'\]"):
        HashedTextEncoder(4, 16).encode("a red ball")


def test_save_and_load_give_the_same_bits(tmp_path):
    encoder = HashedTextEncoder(5, 24, seed=7)
    encoder.save(tmp_path / "deep" / "folder")
    loaded = load_text_encoder(tmp_path / "deep" / "folder")
    assert loaded == encoder
    for a, b in zip(
        loaded.encode(["a red circle", ""]), encoder.encode(["a red circle", ""]), strict=True
    ):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "nothing"}, "unknown kind 'nothing'.*hashed"),
        ({"version": 99}, "version 99; this code reads"),
        (
            {"settings": {"max_tokens": 4, "width": 8, "depth": 1}},
            "settings that 'hashed' does not take",
        ),
        ({"settings": {"max_tokens": 0, "width": 8}}, "max_tokens must be at least 1, not 0"),
    ],
)
def test_a_header_that_does_not_fit_is_refused(tmp_path, change, message):
    HashedTextEncoder(5, 24).save(tmp_path)
    path = tmp_path / "text_encoder.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=message):
        load_text_encoder(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"kind": "hashed"}'])
def test_missing_and_damaged_headers(tmp_path, text):
    with pytest.raises(FileNotFoundError, match=r"text_encoder\.json"):
        load_text_encoder(tmp_path)
    (tmp_path / "text_encoder.json").write_text(text)
    with pytest.raises(ValueError, match="is not a text encoder header"):
        load_text_encoder(tmp_path)


def test_settings_that_were_changed_are_read_with_one_warning(tmp_path, caplog):
    """A flipped bit in the seed would otherwise give other features in silence."""
    HashedTextEncoder(5, 24, seed=4).save(tmp_path)
    file = tmp_path / "text_encoder.json"
    load_text_encoder(tmp_path)
    assert not caplog.text
    file.write_text(file.read_text().replace('"seed": 4', '"seed": 5'))
    assert load_text_encoder(tmp_path) == HashedTextEncoder(5, 24, seed=5)
    load_text_encoder(tmp_path)
    assert caplog.text.count("text_encoder.json is not as it was written") == 1
    values = json.loads(file.read_text())
    del values["sha256"]  # as earlier versions wrote it
    file.write_text(json.dumps(values))
    load_text_encoder(tmp_path)
    assert caplog.text.count("text_encoder.json") == 1
