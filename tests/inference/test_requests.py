"""Requests out of flags and files; what is wrong with them is named, and the others are kept."""

import json
import re
import time
from pathlib import Path

import pytest

from videomar_jax.checks import UserError
from videomar_jax.inference import requests
from videomar_jax.inference.requests import RequestFlags


def test_one_prompt_for_all_images_or_one_for_each():
    images = ("a/cat.png", "b/cat.png", "dog.jpg")
    asked, faults = RequestFlags(image=images, prompt=("walks",), seed=7).read()
    assert faults == []
    wanted = [("walks", 7, "cat"), ("walks", 8, "cat_2"), ("walks", 9, "dog")]
    assert [(r.prompt, r.seed, r.name) for r in asked] == wanted
    pairs, _ = RequestFlags(image=("a.png", "b.png"), prompt=("x", "y")).read()
    assert [r.prompt for r in pairs] == ["x", "y"]
    ((alone,), _) = RequestFlags(image=("a.png",)).read()
    assert (alone.prompt, alone.image) == ("", Path("a.png").absolute())


@pytest.mark.parametrize(
    ("images", "prompts", "words"),
    [
        ([], [], "--image=FILE.*--requests=FILE"),
        (["a", "b", "c"], ["x", "y"], "3 images and 2 prompts: give one"),
    ],
    ids=["nothing", "two_for_three"],
)
def test_flags_that_do_not_go_together(images, prompts, words):
    with pytest.raises(ValueError, match=words):
        RequestFlags(image=tuple(images), prompt=tuple(prompts)).read()


def test_a_file_of_requests(tmp_path):
    file = tmp_path / "r.jsonl"
    first = '{"image": "a.png", "prompt": "p", "seed": 5, "name": "n"}'
    file.write_text(
        f'\ufeff{first}\n\n{{"image": "/b.png"}}\n{{"image": "a.png"}}', encoding="utf-8"
    )
    asked, faults = requests.from_file(file, seed=10)
    assert not faults
    assert [(r.image, r.prompt, r.seed, r.name) for r in asked] == [
        (tmp_path / "a.png", "p", 5, "n"),
        (Path("/b.png"), "", 12, "b"),
        (tmp_path / "a.png", "", 13, "a"),
    ]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{image: 3", "line 2: "),
        ('["a.png"]', 'line 2: expected an object with "image"'),
        ('{"prompt": "p"}', 'line 2: expected an object with "image"'),
        (
            '{"image": "a.png", "promt": "p"}',
            "line 2: Unknown key 'promt' in the request. Did you mean 'prompt'",
        ),
        ('{"image": "a.png", "seed": -1}', r"line 2: Seeds must lie in 0..2\*\*32 - 1, not -1"),
        ('{"image": "a.png", "seed": 1.5}', "line 2: seed must be a whole number"),
        (
            '{"image": "a.png", "name": "../up"}',
            r"line 2: name must be a file name without folders, not '\.\./up'",
        ),
        ('{"image": "a.png", "name": ""}', "line 2: name must be"),
        ('{"image": "a.png", "video": "b.mp4"}', 'line 2: expected an object with "image"'),
        ('{"video": "b.mp4"}', 'line 2: "video" and "given_frames" belong together'),
        (
            '{"image": "a.png", "given_frames": 3}',
            'line 2: "video" and "given_frames" belong together',
        ),
        (
            '{"video": "b.mp4", "given_frames": "3"}',
            "line 2: given_frames must be a whole number, not '3'",
        ),
        ('{"video": "b.mp4", "given_frames": 0}', "line 2: given_frames must be at least 1, not 0"),
        ('{"image": "a.png", "seed": true}', "line 2: seed must be a whole number"),
        ('{"image": null}', 'line 2: expected an object with "image"'),
        ('{"image": 3}', "line 2: image must be a text, not 3"),
        ('{"image": "a.png", "prompt": ["p"]}', r"line 2: prompt must be a text, not \['p'\]"),
        ('{"image": "a.png", "name": 7}', "line 2: name must be a text, not 7"),
        (
            '{"image": "a.png", "prompt": "half \\ud83d"}',
            r"line 2: prompt 'half \\ud83d' is no text in UTF-8",
        ),
        (
            '{"image": "a.png", "prompt": "caf\udce9"}',
            "line 2: .*'utf-8' codec can't decode byte 0xe9",
        ),
        ('{"image": "gs://bucket/a.png"}', "line 2: 'gs://bucket/a.png' is not a local path"),
        ('{"image": "a.png", "name": ".."}', "line 2: name must be a file name"),
        ('{"image": "a.png", "name": "a\\u0000b"}', r"line 2: name must be .* not 'a\\x00b'"),
        ('{"image": "a\\u0000b.png"}', "line 2: .*holds a NUL character"),
        (json.dumps({"image": "a.png", "name": "n" * 300}), "line 2: name .*too long: it has 300"),
        (json.dumps({"image": "a.png", "name": "字" * 84}), "line 2: name .*too long: it has 252"),
        (json.dumps({"image": "i" * 300 + ".png"}), "line 2: .*too long"),
        (json.dumps({"image": "i" * 251}), "line 2: name .*too long: it has 251 bytes"),
        (json.dumps({"image": "/".join(["d" * 200] * 20) + "/a.png"}), "line 2: .*too long"),
        ('{"image": ' + "[" * 200_000, "line 2: is nested too deeply"),
        ('{"image": ' + "[" * 200_000 + "]" * 200_000 + "}", "line 2: is nested too deeply"),
        ('{"image": ' + "[" * 900 + "]" * 900 + "}", "line 2: "),
        ('{"image": "a.png", "seed": ' + "9" * 5000 + "}", "line 2: .*digits"),
        ('{"image": "a.png", "seed": 1e999}', "line 2: seed must be a whole number, not inf"),
        ('{"image": "a.png", "seed": NaN}', "line 2: seed must be a whole number, not nan"),
        ('{"image": "a.png", "prompt": ' + "7" * 3000 + "}", r"line 2: prompt must.* \[\.\.\.\] 7"),
    ],
    ids=lambda text: text[:40],
)
def test_a_broken_line_is_named_and_the_others_are_kept(tmp_path, line, words, caplog):
    file = tmp_path / "r.jsonl"
    file.write_text(
        f'{{"image": "a.png"}}\n{line}\n{{"image": "b.png"}}\n', errors="surrogateescape"
    )
    asked, faults = requests.from_file(file, 0)
    assert [r.name for r in asked] == ["a", "b"]
    assert len(faults) == 1 and re.search(words, faults[0]), faults
    assert faults[0] in caplog.messages, "not reported before the others are generated"
    file.write_text(f"\n{line}\n", errors="surrogateescape")
    with pytest.raises(ValueError, match=f"r.jsonl holds no usable request(.|\n)*{words}"):
        requests.from_file(file, 0)


def test_null_is_left_out_and_only_line_feeds_end_a_line(tmp_path):
    file = tmp_path / "r.jsonl"
    left_out = ("video", "given_frames", "prompt", "name", "seed")
    empty = json.dumps({"image": "a.png", **dict.fromkeys(left_out)})
    file.write_bytes(
        f'{empty}\r\n{{"image": "b.png", "prompt": "one\u2028two\x85three"}}\n'.encode()
    )
    asked, faults = requests.from_file(file, 2**32 - 1)
    assert faults == []
    assert [(r.prompt, r.name, r.given_frames, r.seed) for r in asked] == [
        ("", "a", None, 2**32 - 1),
        ("one\u2028two\x85three", "b", None, 0),
    ]


def test_a_prompt_of_half_characters_is_refused_before_anything_is_drawn():
    with pytest.raises(ValueError, match=r"prompt 'caf\\udce9' is no text in UTF-8"):
        RequestFlags(image=("a.png",), prompt=("caf\udce9",)).read()


def test_videos_to_continue():
    asked, _ = RequestFlags(
        image=("a.png",), video=("b.mp4",), prompt=("x", "y"), seed=3, given_frames=5
    ).read()
    assert [(r.image.name, r.prompt, r.seed, r.given_frames) for r in asked] == [
        ("a.png", "x", 3, None),
        ("b.mp4", "y", 4, 5),
    ]
    for more in (dict(video=("b.mp4",)), dict(image=("a.png",), given_frames=3)):
        with pytest.raises(UserError, match="--video=FILE and --given_frames=N belong together"):
            RequestFlags(**more).read()


def test_no_file_or_an_empty_one(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file of requests .*r.jsonl"):
        requests.from_file(tmp_path / "r.jsonl", 0)
    (tmp_path / "r.jsonl").write_text("\n")
    with pytest.raises(ValueError, match=r"r.jsonl holds no usable request"):
        requests.from_file(tmp_path / "r.jsonl", 0)


def test_a_flag_that_cannot_be_used_is_that_videos_fault_alone(caplog):
    asked, faults = RequestFlags(image=("gs://b/a.png", "n" * 260 + ".png", "good.png")).read()
    assert [(r.name, r.seed) for r in asked] == [("good", 2)], "seeds count all that is asked for"
    assert len(faults) == 2 and "not a local path" in faults[0] and "too long" in faults[1]
    assert faults == caplog.messages
    with pytest.raises(UserError, match="not a local path"):
        RequestFlags(image=("gs://b/a.png",)).read()


def test_many_requests_for_one_image_are_named_at_once(tmp_path):
    """Each number was once tried again for each request: 30 000 took more than a minute."""
    file = tmp_path / "r.jsonl"
    lines = ['{"image": "a.png"}'] * 10_000
    lines[10] = '{"image": "a.png", "name": "a_12"}'
    file.write_text("\n".join(lines))
    start = time.monotonic()
    asked, faults = requests.from_file(file, 0)
    assert time.monotonic() - start < 30
    names = [r.name for r in asked]
    assert not faults and len(set(names)) == 10_000
    assert names[:2] + names[9:13] == ["a", "a_2", "a_10", "a_12", "a_11", "a_13"]


def test_a_name_that_its_number_makes_too_long_is_that_requests_fault(tmp_path):
    file = tmp_path / "r.jsonl"
    file.write_text("\n".join([json.dumps({"image": "a.png", "name": "n" * 249})] * 2))
    asked, faults = requests.from_file(file, 0)
    assert [r.name for r in asked] == ["n" * 249]
    assert len(faults) == 1 and "too long: it has 251 bytes" in faults[0]
