"""The three stages: their rows fit tokenizer and model, can be changed by flags, and chain from one
run to the next."""

import logging
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags
from ml_collections import config_flags

from tests.helpers.tiny_run import CONFIGS, load_config, start
from videomar_jax.experiment import evaluate, run
from videomar_jax.experiment.config import Experiment
from videomar_jax.experiment.evaluate import Evaluation
from videomar_jax.models.params import count_params
from videomar_jax.pretrained.bundle import load_bundle, load_params
from videomar_jax.tokenizers.base import fingerprint, grid_shape
from videomar_jax.training import loop
from videomar_jax.training.state import TrainState

STAGES = ["stage1", "stage2", "stage3"]


def stages(file, variant=""):
    config = load_config(file, variant, data=dict(path="clips"))
    return Experiment.from_config(config).recipe.curriculum.stages


# The 1.4 B model


@pytest.mark.parametrize("file", STAGES)
def test_stages_are_the_papers_model_and_parts(file):
    config = load_config(file)
    with pytest.raises(ValueError, match=r"data\.kind is 'videos'.*--config\.data\.path=DIR"):
        Experiment.from_config(config)
    config.data.path = "clips"
    made = Experiment.from_config(config)
    assert (
        made.strides() == (8, 16)
        and made.data.fps == 12
        and made.text.tokens == made.recipe.model.text_tokens
    )
    model = made.recipe.model
    assert (model.width, model.depth, model.head, model.latent_channels) == (1536, 36, "ddpm", 16)
    assert made.tokenizer_config.scale == 0.5 and made.recipe.loss.supervise == "one_frame"
    loss = made.recipe.loss
    assert not loss.truncate or loss.normaliser == "supervised", (
        "later frames, which are not there, count"
    )
    config.data.kind = "shards"
    assert Experiment.from_config(config).data.kind == "shards", (
        "prepared clips need a flag more than their place"
    )


def test_clips_grow_from_images_to_the_papers_size():
    sizes = [(s.num_frames, s.height, s.width) for file in STAGES for s in stages(file)]
    assert sizes == [
        (1, 256, 256),
        (9, 256, 256),
        (17, 256, 256),
        (25, 256, 256),
        (49, 256, 256),
        (49, 480, 768),
    ]


def test_sizes_of_an_entry_have_about_as_many_tokens():
    for file in STAGES:
        for stage in stages(file):
            for entry in stage.mix:
                counts = [
                    np.prod(
                        grid_shape(
                            s.num_frames, s.height, s.width, temporal_stride=8, spatial_stride=16
                        )
                    )
                    for s in entry.shapes
                ]
                assert max(counts) <= 1.01 * min(counts), f"{stage.name}: {counts}"
                assert all(s.batch_size % 8 == 0 for s in entry.shapes), (
                    "eight devices cannot share a batch"
                )


def test_rates_follow_the_rule_they_are_said_to():
    """1e-4 for 256 clips, in proportion to the batch of the stage's main clips."""
    rates = {
        stage.name: stage.learning_rate * 256 / stage.batch_size
        for f in STAGES
        for stage in stages(f)
    }
    images = rates.pop("images")
    assert rates == dict.fromkeys(
        ["short", "medium", "long", "full_length", "full_size"], pytest.approx(1e-4)
    )
    assert images == pytest.approx(1e-4 / 4), (
        "images, of fewer tokens a clip, keep the rate of videos"
    )


@pytest.mark.parametrize("file", STAGES)
def test_what_the_paper_does_not_give_is_marked(file):
    lines = (CONFIGS / f"{file}.py").read_text().splitlines()
    for number, line in enumerate(lines):
        if any(
            word in line for word in ("20_000", "warmup_steps=", "fsdp=", "checkpoint_every=500")
        ):
            if "tiny" not in "".join(lines[max(number - 12, 0) : number]):
                assert "ours" in "".join(lines[max(number - 2, 0) : number + 1]).lower(), line


@pytest.mark.parametrize("file", STAGES)
def test_an_unknown_variant_is_named(file):
    with pytest.raises(ValueError, match=rf"{file}\.py knows the variant 'tiny', not 'small'"):
        load_config(file, "small")


def test_rows_and_entries_can_be_changed_by_flags(monkeypatch):
    monkeypatch.setattr(
        sys,
        "argv",
        [
            "main",
            f"--config={CONFIGS / 'stage3.py'}:tiny",
            "--config.curriculum[0].mix[1].batch_size=6",
            "--config.curriculum[0].mix[1].sizes=((16,16),(32,16))",
            "--config.curriculum[0].steps=9",
        ],
    )
    values = flags.FlagValues()
    config_flags.DEFINE_config_file(
        "config", None, "A config.", flag_values=values, lock_config=True
    )
    values(sys.argv)
    (stage,) = Experiment.from_config(values.config).recipe.curriculum.stages
    assert stage.steps == 9 and stage.batch_size == 6
    assert stage.mix[1].sizes == ((16, 16), (32, 16)) and len(stage.mix[0].sizes) == 3


# The tiny variants, one after the other


@pytest.fixture(scope="module")
def chained(tmp_path_factory):
    """(workdir by stage, shapes of latents by stage, log) of the three tiny runs, each from the one
    before.

    An update adds 1 to every parameter: what is compiled and learnt is the matter of other tests.
    """
    folder, shapes, said = tmp_path_factory.mktemp("chained"), {}, []

    def make_train_step(*_, **__):
        def update(state, batch, key):
            shapes[file].append(batch.latents.shape)
            params = jax.tree.map(lambda leaf: leaf + 1, state.params)
            return TrainState(state.step + 1, params, params, state.opt_state), {
                "loss": jnp.float32(1)
            }

        return update

    class Collect(logging.Handler):
        def emit(self, record):
            said.append(record.getMessage())

    logger, handler = logging.getLogger("videomar_jax"), Collect(logging.INFO)
    logger.addHandler(handler)
    level = logger.level
    logger.setLevel(logging.INFO)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "make_train_step", make_train_step)
        patch.setattr(
            evaluate,
            "preview",
            lambda *_: (np.zeros((8, 8, 3), np.uint8), np.zeros((2, 8, 8, 3), np.uint8)),
        )
        nothing = Evaluation(report={"cases": {}}, pictures={})
        patch.setattr(run, "evaluate", lambda *_: nothing)
        for before, file in zip(("", *STAGES), STAGES, strict=False):
            shapes[file] = []
            changes = dict(init_from=str(folder / before)) if before else {}
            start(load_config(file, "tiny", **changes), folder / file)
    logger.removeHandler(handler)
    logger.setLevel(level)
    return {file: folder / file for file in STAGES}, shapes, said


def test_each_stage_continues_from_the_one_before(chained):
    workdirs, shapes, _ = chained
    before = None
    for file in STAGES:
        _, params, step = load_params(workdirs[file])
        assert step == len(shapes[file]) == sum(stage.steps for stage in stages(file, "tiny")), (
            "steps start at 0"
        )
        if before is not None:
            grown = jax.tree.map(
                lambda now, then: np.asarray(now) - np.asarray(then), params, before
            )
            for path, leaf in jax.tree_util.tree_leaves_with_path(grown):
                np.testing.assert_allclose(
                    leaf, step, atol=1e-4, err_msg=f"{file}: {jax.tree_util.keystr(path)}"
                )
        before = params
    assert count_params(before) > 10_000


def test_all_stages_share_the_first_ones_tokenizer(chained):
    workdirs, _, said = chained
    assert len({fingerprint(load_bundle(workdirs[file]).tokenizer) for file in STAGES}) == 1
    tokenizers = [line for line in said if "tokenizer" in line]
    assert tokenizers == [
        "fitting the tokenizer on 40 clips",
        *(f"tokenizer: the one of {workdirs[f]}" for f in STAGES[:2]),
    ]


def test_tiny_stages_train_on_several_shapes(chained):
    _, shapes, _ = chained
    for file in STAGES:
        wanted = {
            (
                s.batch_size,
                *grid_shape(s.num_frames, s.height, s.width, temporal_stride=2, spatial_stride=4),
                16,
            )
            for stage in stages(file, "tiny")
            for s in stage.shapes
        }
        found = set(shapes[file])
        assert found <= wanted and len(found) >= 2, file
    assert {shape[1] for shape in shapes["stage1"]} == {1, 2, 3, 4}, (
        "a length of the first stage is never seen"
    )
    assert len({shape[2:4] for shape in shapes["stage3"]}) == 3, (
        "a size of the last stage is never seen"
    )


def test_cards_are_of_each_stages_main_clips(chained):
    workdirs, _, _ = chained
    cards = [load_bundle(workdirs[file]) for file in STAGES]
    assert [(card.num_frames, card.height, card.width) for card in cards] == [
        (7, 16, 16),
        (13, 16, 16),
        (13, 20, 32),
    ]
