"""The suite's own files: prompts, names of videos, images, seeds; and what is refused."""

import json

import pytest

from tests.helpers.tiny_model import annotations_off
from videomar_jax.checks import UserError
from videomar_jax.experiment.suite_options import SuiteOptions
from videomar_jax.experiment.suite_prompts import (
    image_folder,
    nearest_ratio,
    read_suite,
    suite_requests,
    video_counts,
)

BACKGROUND = ["i2v_background", "background_consistency", "temporal_flickering"]


def entry(prompt, dimension=("i2v_subject",), image=None, **changes):
    values = {
        "prompt_en": prompt,
        "dimension": list(dimension),
        "image_type": "scenery",
        "image_name": image or f"{prompt}.jpg",
    }
    return {key: value for key, value in (values | changes).items() if value is not None}


def write(tmp_path, entries, name="vbench2_i2v_full_info.json"):
    file = tmp_path / name
    file.write_text(json.dumps(entries), encoding="utf-8")
    return file


def read(tmp_path, *entries):
    return read_suite(write(tmp_path, entries))


def test_videos_are_named_as_the_evaluator_looks_for_them(tmp_path):
    texts = ["a dog.", "Ein Fluß, 'ruhig' & \"breit\"", "100% [sic] *?", "-a.b-3"]
    prompts = read(tmp_path, *(entry(text) for text in texts))
    assert [prompt.text for prompt in prompts] == texts
    assert [name for prompt in prompts for name in prompt.names] == [
        f"{text}-{sample}" for text in texts for sample in range(5)
    ]


def test_camera_prompts_of_2023_start_from_the_image_of_their_caption(tmp_path):
    prompts = read(
        tmp_path,
        entry("a lake, calm, camera zooms in", ["camera_motion"], image_name=None),
        entry("a lake, calm", BACKGROUND, "lake.png"),
        entry("a hill, camera static", ["camera_motion"], image_name=None),
    )
    assert [prompt.image_name for prompt in prompts] == ["lake.png", "lake.png", "a hill.jpg"]


def test_entries_of_one_prompt_share_its_videos(tmp_path):
    prompts = read(
        tmp_path,
        entry("a dog", ["i2v_subject", "dynamic_degree"]),
        entry("a lake", BACKGROUND),
        entry("a dog", ["dynamic_degree", "imaging_quality"]),
    )
    assert [prompt.text for prompt in prompts] == ["a dog", "a lake"]
    assert prompts[0].dimensions == ("i2v_subject", "dynamic_degree", "imaging_quality")
    counts = video_counts(prompts)
    assert (counts["dynamic_degree"], counts["i2v_background"], counts["camera_motion"]) == (
        5,
        5,
        0,
    )
    with pytest.raises(UserError, match="'a dog' is there twice"):
        read(tmp_path, entry("a dog"), entry("a dog", image="b.jpg"))


@pytest.mark.parametrize(
    ("entries", "reason"),
    [
        ({}, "no list of prompts"),
        ([], "no list of prompts"),
        (["a dog"], "entry 0 is no object"),
        ([entry("a dog"), entry("a", prompt_en=3)], 'entry 1 has no text under "prompt_en"'),
        ([entry("a", prompt_en="  ")], "prompt_en"),
        ([entry("a dog", image_name=None)], "image_name"),
        ([entry("a", image_name="../a.jpg")], "image_name '../a.jpg' cannot be the name"),
        ([entry("and/or")], "'and/or' cannot be the name of a file"),
        ([entry("a", ["object_class"])], "object_class"),
        ([entry("a", dimension="i2v_subject")], "i2v_subject"),
        ([{"file_name": "a.jpg", "caption": "a"}], "prompt_en"),
    ],
    ids=str,
)
def test_other_files_are_refused_by_name(tmp_path, entries, reason):
    file = write(tmp_path, entries, "i2v-bench-info.json")
    with pytest.raises(UserError, match=reason) as caught:
        read_suite(file)
    assert str(file) in str(caught.value) and "vbench2_i2v_full_info.json" in str(caught.value)


def test_a_damaged_file_is_refused(tmp_path):
    file = tmp_path / "half.json"
    file.write_text('[{"prompt_en": "a')
    with pytest.raises(UserError, match=r"half\.json is not the suite"):
        read_suite(file)
    with pytest.raises(FileNotFoundError):
        read_suite(tmp_path / "nowhere.json")


def test_missing_images_are_listed_up_to_a_number(tmp_path):
    prompts = read(tmp_path, *(entry(f"scene {number}") for number in range(30)))
    (tmp_path / "scene 3.jpg").write_bytes(b"")
    with pytest.raises(FileNotFoundError) as caught:
        suite_requests(prompts, tmp_path, 0)
    text = str(caught.value)
    assert "29 of the suite's 30 images" in text and "and 9 more" in text
    assert "scene 4.jpg" in text and "scene 3.jpg" not in text


def test_seeds_do_not_depend_on_what_is_chosen(tmp_path):
    prompts = read(tmp_path, *(entry(f"scene {number}") for number in range(4)))
    for prompt in prompts:
        (tmp_path / prompt.image_name).write_bytes(b"")
    every = suite_requests(prompts, tmp_path, 2**32 - 7)
    assert [request.seed for request in every] == [(2**32 - 7 + n) % 2**32 for n in range(20)]
    some = suite_requests(prompts[2:3], tmp_path, 2**32 - 7)
    assert some == every[10:15]
    assert {request.image for request in some} == {tmp_path / "scene 2.jpg"}


@pytest.mark.parametrize(
    ("size", "ratio"),
    [
        ((480, 768), "8-5"),
        ((256, 256), "1-1"),
        ((480, 832), "7-4"),
        ((720, 1280), "16-9"),
        ((640, 1024), "8-5"),
        ((768, 480), "1-1"),
    ],
    ids=str,
)
def test_the_ratio_is_the_nearest(size, ratio):
    assert nearest_ratio(*size) == ratio


def test_the_folder_of_images_may_be_crop_or_the_one_above(tmp_path):
    (tmp_path / "crop" / "8-5").mkdir(parents=True)
    for place in (tmp_path, tmp_path / "crop"):
        assert image_folder(place, "8-5") == tmp_path / "crop" / "8-5"
    with pytest.raises(NotADirectoryError, match="no folder 1-1"):
        image_folder(tmp_path, "1-1")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(NotADirectoryError, match="is no folder"):
        image_folder(tmp_path / "file", "1-1")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (dict(suite=None), "--suite=vbench_i2v"),
        (dict(info=None), "Add --info"),
        (dict(images=None, info=None), "Add --info and --images"),
        (dict(share="2/2"), "--share is I/N"),
        (dict(share="1"), "--share is I/N"),
        (dict(share="0/0"), "--share is I/N"),
        (dict(seed=-1), "Seeds must lie"),
        (dict(batch_size=0), "batch_size"),
        (dict(dimensions=["i2v_subjct"]), "i2v_subject"),
        (dict(ratio="4-3"), "ratio"),
    ],
    ids=str,
)
def test_options_that_make_no_sense(changes, reason):
    given = dict(suite="vbench_i2v", info="a.json", images="crop")
    with annotations_off(), pytest.raises(UserError, match=reason):
        SuiteOptions(**given | changes)
