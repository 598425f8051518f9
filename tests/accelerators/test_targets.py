"""Names of machines to compile for; what is not installed or not known is said with the way out."""

import importlib.util

import jax
import pytest

from videomar_jax.accelerators import targets
from videomar_jax.accelerators.targets import Target, chip_of_devices


@pytest.mark.parametrize(
    ("name", "platform", "compiler", "shape"),
    [
        ("tpu:v5e:16x16", "tpu", "tpu", (16, 16)),
        ("tpu:v5p:4x4x4", "tpu", "tpu", (4, 4, 4)),
        ("tpu:v6e:8x8", "tpu", "tpu", (8, 8)),
        ("gpu:h100:8", "gpu", "cuda", (8,)),
        ("gpu:h100:64", "gpu", "cuda", (64,)),
    ],
)
def test_a_name_says_platform_and_shape(name, platform, compiler, shape):
    target = Target.parse(name)
    assert (target.platform, target.compiler, target.shape) == (platform, compiler, shape)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v5e:16x16", "names no machine"),
        ("tpu:v5e", "names no machine"),
        ("tpu:v5e:16x", "names no machine"),
        ("cpu:x:8", "names no machine"),
        ("tpu:v5:4x4", "No tpu 'v5' is known here. Did you mean 'v5"),
        ("gpu:v5e:4", "No gpu 'v5e' is known"),
        ("tpu:v5e:4x4x4", "v5e needs 2 sizes"),
        ("tpu:v5p:4x4", "v5p needs 3 sizes"),
        ("gpu:h100:2x4", "h100 needs 1 sizes"),
        ("gpu:h100:0", "at least 1"),
        ("gpu:h100:12", "multiple of 8"),
    ],
)
def test_wrong_names_are_answered_with_the_form(name, message):
    with pytest.raises(ValueError, match=message):
        Target.parse(name)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tpu:v5e:2x2", r"needs libtpu, .* pip install \"jax\[tpu\]=="),
        ("gpu:h100:8", "needs jax_plugins.xla_cuda12 and nvidia.cudnn, .*pip install jax-cuda12"),
    ],
)
def test_a_compiler_that_is_not_installed_is_named_with_its_pip_line(name, message, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda module: None)
    with pytest.raises(ValueError, match=message) as error:
        Target.parse(name).devices()
    assert jax.__version__ in str(error.value)


def test_gpus_are_asked_for_by_machines_of_eight(monkeypatch):
    asked = []
    monkeypatch.setattr(Target, "require", lambda self: None)

    def found(**options):
        asked.append(options)
        return targets.topologies.TopologyDescription(jax.devices()[:2])

    monkeypatch.setattr(targets.topologies, "get_topology_desc", found)
    assert list(Target.parse("gpu:h100:32").devices()) == jax.devices()[:2]
    Target.parse("gpu:h100:4").devices()
    Target.parse("tpu:v5e:4x8").devices()
    assert [each.get("topology") for each in asked] == ["1x4x8", "1x1x4", None]
    assert asked[2]["topology_name"] == "v5e:4x8"


def test_a_machine_that_the_compiler_does_not_know_is_an_error(monkeypatch):
    monkeypatch.setattr(Target, "require", lambda self: None)

    def unknown(**options):
        raise jax.errors.JaxRuntimeError("INVALID_ARGUMENT: not divisible by 2x2x1\nmore")

    monkeypatch.setattr(targets.topologies, "get_topology_desc", unknown)
    with pytest.raises(ValueError, match=r"There is no machine tpu:v5e:3x5: .*divisible by 2x2x1$"):
        Target.parse("tpu:v5e:3x5").devices()


def test_a_device_without_figures_is_an_error():
    with pytest.raises(ValueError, match="cpu is not in the table"):
        chip_of_devices(jax.devices())
