"""The config refuses what cannot be built, by name; presets have the published size."""

import dataclasses

import jax
import pytest

from tests.helpers.tiny_model import annotations_off, tiny_config
from videomar_jax.checks import field_docs
from videomar_jax.models.config import PRESETS, ModelConfig
from videomar_jax.models.params import abstract_model, count_params


@pytest.mark.parametrize(("head_width", "expected"), [(1024, 1_383_155_232), (1280, 1_394_250_016)])
def test_the_paper_model_has_the_published_number_of_parameters(head_width, expected):
    _, shapes = abstract_model(dataclasses.replace(PRESETS["videomar_1p4b"], head_width=head_width))
    assert count_params(shapes) == expected
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(shapes))


def closed_form(c: ModelConfig) -> int:
    """Parameters summed up layer by layer."""
    width, head = c.width, c.head_width
    block = (4 + 4 + 2 * c.mlp_ratio) * width**2 + 6 * width + 4 * width + 4 * c.head_dim
    outer = (
        2 * width
        + width
        + c.text_tokens * width
        + (c.text_width + 1) * width
        + (c.token_dim + 1) * width
    )
    extra = width**2 * c.pooled_text + (width + 1) * c.token_dim * c.regression
    residual = 5 * head**2 + 7 * head
    output = (head + 1) * c.token_dim * (2 if c.head == "ddpm" else 1) + 2 * head**2 + 2 * head
    inputs = 257 * head + (head + 1) * head + (width + 1) * head + (c.token_dim + 1) * head
    return c.depth * block + outer + extra + c.head_depth * residual + output + inputs


@pytest.mark.parametrize(
    "changes", [{}, {"head": "ddpm", "patch_size": 2}, {"pooled_text": True, "regression": True}]
)
def test_small_models_have_the_parameters_of_their_layers(changes):
    config = tiny_config(**changes)
    assert count_params(abstract_model(config)[1]) == closed_form(config)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_survive_a_round_trip_through_plain_values(name):
    assert ModelConfig.from_dict(PRESETS[name].to_dict()) == PRESETS[name]


def test_a_rope_split_from_a_json_list_is_a_tuple_again():
    assert ModelConfig.from_dict(
        {"width": 32, "num_heads": 2, "rope_split": [4, 6, 6]}
    ).rope_channels == (4, 6, 6)


def test_the_default_split_gives_half_to_time():
    assert tiny_config().rope_channels == (8, 4, 4)
    assert PRESETS["videomar_1p4b"].rope_channels == (32, 16, 16)


WRONG = [
    ({"depth": 0}, r"model\.depth must lie in \[1, 16777216\], not 0"),
    ({"patch_size": -1}, r"model\.patch_size"),
    ({"unroll": 0}, r"model\.unroll"),
    ({"head": "vae"}, r"model\.head is 'vae'.*ddpm.*flow"),
    ({"dtype": "float16"}, r"model\.dtype is 'float16'"),
    ({"remat": "some"}, r"model\.remat"),
    ({"attention": "flash"}, r"model\.attention"),
    ({"rope_frame_origin": "first"}, r"model\.rope_frame_origin"),
    ({"null_text_mask": "none"}, r"model\.null_text_mask"),
    ({"num_heads": 5}, r"width 32 is not a multiple of model\.num_heads 5"),
    ({"rope_split": (8, 4, 3)}, r"rope_split must be three even numbers"),
    ({"rope_split": (8, 8)}, r"rope_split must be three even numbers"),
    ({"rope_split": (8, 4, 2)}, r"must add up to the head width 16"),
    ({"width": 24}, r"multiple of 8 splits by itself"),
    ({"rope_split": 8}, r"model\.rope_split must be a list, not 8"),
    ({"rope_split": (8, 4.0, 4)}, r"model\.rope_split\[1\] must be a whole number"),
    ({"rope_split": (24, -4, -4)}, r"model\.rope_split\[1\] must not be negative"),
    ({"rope_base": -1}, r"model\.rope_base must be positive, not -1"),
    ({"rope_base": 0}, r"model\.rope_base must be positive"),
    ({"rope_base": float("inf")}, r"model\.rope_base must be a finite number"),
    ({"qk_norm_gain": float("nan")}, r"model\.qk_norm_gain must be a finite number"),
    ({"gate_init": "small"}, r"model\.gate_init must be a number, not 'small'"),
    ({"width": 32.0}, r"model\.width must be a whole number, not 32\.0"),
    ({"depth": True}, r"model\.depth must be a whole number, not True"),
    ({"pooled_text": 1}, r"model\.pooled_text must be true or false, not 1"),
]


@pytest.mark.parametrize(("changes", "text"), WRONG)
def test_what_cannot_be_built_is_refused_by_name(changes, text):
    with annotations_off(), pytest.raises(ValueError, match=text):
        tiny_config(**changes)


def test_every_field_is_described_at_its_place():
    assert set(field_docs(ModelConfig)) == {field.name for field in dataclasses.fields(ModelConfig)}


def test_a_misspelt_field_is_answered_with_the_nearest_one():
    with pytest.raises(
        ValueError, match=r"Unknown key 'num_head' in model.*Did you mean 'num_heads'"
    ):
        ModelConfig.from_dict({"num_head": 2})
