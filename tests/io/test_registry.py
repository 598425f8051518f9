"""The registries of the package: every kind is found by name, lazily, and says what it is."""

import subprocess
import sys

import pytest

from videomar_jax.checks import UserError
from videomar_jax.io.registry import Registry
from videomar_jax.text_encoders.base import TEXT_ENCODERS
from videomar_jax.tokenizers.base import TOKENIZERS


@pytest.mark.parametrize("registry", [TOKENIZERS, TEXT_ENCODERS], ids=lambda one: one.noun)
def test_every_entry_of_a_table_is_a_class_of_that_kind(registry):
    assert len(registry) >= 2
    for kind in registry.kinds:
        cls = registry[kind]
        assert cls.kind == kind and cls.version >= 1 and callable(cls.open), kind


def test_listing_the_kinds_imports_none_of_them():
    code = (
        "import sys; from videomar_jax.tokenizers.base import TOKENIZERS;"
        "from videomar_jax.text_encoders.base import TEXT_ENCODERS;"
        "print(*TOKENIZERS.kinds, *TEXT_ENCODERS.kinds);"
        "assert not {'flax', 'tokenizers', 'orbax'} & set(sys.modules), 'imported too much'"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == ["pca", "cosmos", "hashed", "qwen2"], done.stderr


class Box:
    kind, version = "box", 1

    def __init__(self, place, size=1):
        self.place, self.size = place, size

    @classmethod
    def open(cls, place, **options):
        return cls(place, **options)


def test_a_class_from_elsewhere_is_registered_and_opened_by_name():
    registry = Registry("container", {"bag": "nowhere:Bag"})
    assert registry.register(Box) is Box
    assert registry.kinds == ("bag", "box") and "box" in registry and "crate" not in registry
    opened = registry.open("box:over:there", size=3)
    assert (opened.place, opened.size) == ("over:there", 3)
    with pytest.raises(ValueError, match="container kind 'bag' is taken by nowhere:Bag"):
        registry.register(type("Bag", (), {"kind": "bag"}))


@pytest.mark.parametrize("spec", ["box", "box:", ":here", "boxx:here", ""])
def test_a_name_that_is_not_understood(spec):
    registry = Registry("container", {"bag": "nowhere:Bag"})
    registry.register(Box)
    with pytest.raises(UserError, match=r"container .* write bag:PLACE or box:PLACE") as caught:
        registry.open(spec)
    assert ("Did you mean 'box'?" in str(caught.value)) == spec.startswith("box")
