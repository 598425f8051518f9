"""A workdir belongs to one run; configs of earlier versions are compared under today's names."""

import json

import pytest

from tests.helpers.tiny_run import tiny
from videomar_jax.checks import UserError
from videomar_jax.experiment.workdir import check_workdir, flatten, write_config


def as_earlier_versions_wrote_it(config):
    """The config in old names and values, without the settings that were added since."""
    values = json.loads(json.dumps(config))
    del values["data"]["decode_all"], values["data"]["most_failing"]
    loss, sampling = values["loss"], values["sampling"]
    loss["frames"] = {"one_frame": "one", "all_frames": "all"}[loss.pop("supervise")]
    loss["layout"] = "truncated" if loss.pop("truncate") else "full"
    loss["normaliser"] = {"all_masked": "mask", "supervised": "loss_mask"}[loss["normaliser"]]
    sampling["clip"] = sampling.pop("latent_clip")
    sampling["positions"] = sampling.pop("first_frame_position")
    sampling["position_scaling"] = sampling.pop("spatial_rope_scaling")
    sampling["frame_scaling"] = sampling.pop("temporal_rope_scaling")
    return values


@pytest.mark.parametrize(
    "loss",
    [
        dict(),
        dict(supervise="one_frame", truncate=True, normaliser="supervised"),
        dict(supervise="all_frames"),
    ],
    ids=["quickstart", "truncated", "all_frames"],
)
def test_a_run_of_an_earlier_version_is_continued(tmp_path, loss):
    config = tiny(loss=loss).to_dict()
    write_config(tmp_path, as_earlier_versions_wrote_it(config))
    check_workdir(tmp_path, config)


def test_an_added_setting_with_another_value_than_its_default_is_another_run(tmp_path):
    write_config(tmp_path, as_earlier_versions_wrote_it(tiny().to_dict()))
    config = tiny(data=dict(most_failing=0.5)).to_dict()
    with pytest.raises(UserError, match=r"data\.most_failing \(0\.1 there, 0\.5 here\)"):
        check_workdir(tmp_path, config)


def test_another_value_is_refused_under_its_name_of_today(tmp_path):
    write_config(tmp_path, as_earlier_versions_wrote_it(tiny().to_dict()))
    other = tiny(loss=dict(supervise="one_frame")).to_dict()
    with pytest.raises(
        UserError, match=r"loss\.supervise \('all_frames' there, 'one_frame' here\)\. Choose"
    ):
        check_workdir(tmp_path, other)


def test_a_config_in_old_names_is_the_same_run(tmp_path):
    """A config file of one's own may still use them."""
    config = tiny().to_dict()
    write_config(tmp_path, config)
    check_workdir(tmp_path, as_earlier_versions_wrote_it(config))


def test_nested_values_are_compared_by_path():
    values = {"a": {"b": 1, "c": [2, {"d": 3}]}, "e": []}
    assert flatten(values) == {"a.b": 1, "a.c.0": 2, "a.c.1.d": 3}
