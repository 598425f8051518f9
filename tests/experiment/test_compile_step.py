"""The training step compiled for other devices: here for eight CPUs in the place of a pod."""

import dataclasses

import jax
import pytest

from tests.helpers.tiny_run import load_config, tiny
from videomar_jax import main as command
from videomar_jax.accelerators.chips import Chip
from videomar_jax.accelerators.targets import Target
from videomar_jax.experiment import compile_step
from videomar_jax.experiment.config import Experiment
from videomar_jax.experiment.dry_run import plan
from videomar_jax.parallel.mesh import make_mesh

CHIP = Chip("cpu", flops=1e11, memory=1e9, bandwidth=1e10)
TARGET = Target("cpu:test:8", "cpu", "test", (8,))
MESH = dict(data=1, fsdp=4, tensor=2, min_size=1)


@pytest.fixture
def eight_cpus(monkeypatch):
    monkeypatch.setattr(Target, "devices", lambda self: jax.devices())
    monkeypatch.setattr(compile_step, "chip_of_devices", lambda devices: CHIP)


@pytest.fixture(scope="module")
def compiled():
    """The largest step of the quick start's tiny variant."""
    experiment = Experiment.from_config(tiny(mesh=MESH))
    planned = plan(experiment, 8)
    mesh = make_mesh(experiment.recipe.mesh)
    return planned, compile_step.compile_step(experiment, planned.steps[-1], mesh, TARGET, CHIP)


def test_arguments_are_the_state_of_the_plan_and_the_batch(compiled):
    planned, step = compiled
    assert step.fits and step.refusal is None
    # The batch, the key and alignment come on top.
    assert planned.state <= step.memory.arguments < 1.2 * planned.state


def test_the_state_is_updated_in_place(compiled):
    planned, step = compiled
    assert planned.state <= step.memory.in_place < 1.1 * planned.state
    # Metrics alone are returned beside it.
    assert step.memory.outputs < 0.1 * planned.state


@pytest.fixture(scope="module")
def alone():
    """The same step on one device."""
    experiment = Experiment.from_config(tiny(mesh=dict(data=1)))
    mesh = make_mesh(experiment.recipe.mesh, jax.devices()[:1])
    planned = plan(experiment, 1)
    return compile_step.compile_step(experiment, planned.steps[-1], mesh, TARGET, CHIP)


def test_products_are_those_of_the_plan(alone):
    # The plan leaves out small products, which count in a model as small as this.
    assert 1 <= alone.cost.flops / alone.plan.flops < 1.3
    assert alone.cost.endless == 0


def test_a_mesh_communicates_and_one_device_does_not(compiled, alone):
    assert not alone.cost.collectives
    assert {"all-gather", "all-reduce"} <= set(compiled[1].cost.collectives)


def test_the_largest_arrays_are_made_by_lines_of_the_package(compiled):
    temporaries = compiled[1].temporaries
    assert len(temporaries) == 5
    assert [each.size for each in temporaries] == sorted(
        (each.size for each in temporaries), reverse=True
    )
    assert any(each.source.startswith("videomar_jax/") for each in temporaries)


def test_the_report_says_what_was_found(compiled):
    text = "\n".join(compiled[1].lines())
    for part in ("compiled for 8 x cpu", ": it fits", "TFLOP in products", "all-gather: "):
        assert part in text, text
    small = dataclasses.replace(compiled[1], chip=dataclasses.replace(CHIP, memory=1e5))
    assert not small.fits and "it does not fit" in "\n".join(small.lines())


def test_every_shape_is_compiled_once_and_nothing_is_read_or_written(
    eight_cpus, tmp_path, monkeypatch, caplog
):
    monkeypatch.chdir(tmp_path)
    caplog.set_level("INFO")
    config = load_config("stage1", "tiny", mesh=dict(data=1, fsdp=-1))
    rows = config.curriculum
    config.curriculum = (rows[0], rows[1])
    results = compile_step.compile_dry_run(Experiment.from_config(config), TARGET)
    assert [(each.plan.stage, each.plan.latents) for each in results] == [
        ("images", (1, 4, 4)),
        ("short", (2, 4, 4)),
    ]
    assert "predicted peak per device" in caplog.text
    assert caplog.text.count("compiled for 8 x cpu") == 2
    assert "read, " not in caplog.text and not list(tmp_path.iterdir())


def test_what_does_not_fit_is_an_error_that_names_it(eight_cpus, monkeypatch):
    small = dataclasses.replace(CHIP, memory=1e5)
    monkeypatch.setattr(compile_step, "chip_of_devices", lambda devices: small)
    experiment = Experiment.from_config(tiny(mesh=MESH))
    with pytest.raises(ValueError, match=r"does not fit cpu:test:8: .* clips of .*Raise"):
        compile_step.compile_dry_run(experiment, TARGET)


def test_a_refusal_of_the_compiler_is_reported(eight_cpus, monkeypatch, caplog):
    caplog.set_level("INFO")

    def refuse(self, *args, **options):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Ran out of memory.\n  Used 20G\nmore")

    monkeypatch.setattr(jax.stages.Lowered, "compile", refuse)
    experiment = Experiment.from_config(tiny(mesh=MESH))
    with pytest.raises(ValueError, match="does not fit"):
        compile_step.compile_dry_run(experiment, TARGET)
    refused = "refused, it does not fit: RESOURCE_EXHAUSTED: Ran out of memory. Used 20G"
    assert refused in caplog.text


def test_other_faults_of_the_compiler_stay_what_they_are(eight_cpus, monkeypatch):
    def fail(self, *args, **options):
        raise jax.errors.JaxRuntimeError("INTERNAL: a mistake")

    monkeypatch.setattr(jax.stages.Lowered, "compile", fail)
    with pytest.raises(jax.errors.JaxRuntimeError, match="a mistake"):
        compile_step.compile_dry_run(Experiment.from_config(tiny(mesh=MESH)), TARGET)


@pytest.mark.parametrize("set_flags", [dict(dry_run=False), dict(dry_run=True, devices=8)])
def test_the_flag_goes_with_a_dry_run_and_names_the_devices(set_flags, monkeypatch):
    class Holder:
        def __init__(self, value):
            self.value = value

    monkeypatch.setattr(command, "_COMPILE", Holder("tpu:v5e:2x2"))
    monkeypatch.setattr(command, "_DRY_RUN", Holder(set_flags["dry_run"]))
    monkeypatch.setattr(command, "_DEVICES", Holder(set_flags.get("devices")))
    with pytest.raises(ValueError, match="--compile goes with --dry_run"):
        command.main([])
