import pytest

from videomar_jax.data.shapes import Shapes
from videomar_jax.data.sources import ClipShape, ClipSource, check_index


@pytest.mark.parametrize("name", ["num_frames", "height", "width"])
@pytest.mark.parametrize("value", [0, -3, True])
def test_clip_shape_names_the_field_that_is_wrong(name, value):
    sizes = {"num_frames": 9, "height": 32, "width": 32} | {name: value}
    with pytest.raises(ValueError, match=name):
        ClipShape(**sizes)


def test_clip_shapes_compare_by_value():
    assert ClipShape(num_frames=9, height=16, width=24) == ClipShape(width=24, height=16, num_frames=9)
    assert len({ClipShape(num_frames=n, height=16, width=16) for n in (5, 5, 9)}) == 2


@pytest.mark.parametrize("index", [-1, 4])
def test_an_index_outside_is_an_error(index):
    check_index(3, 4)
    with pytest.raises(IndexError, match=r"0\.\.3"):
        check_index(index, 4)


def test_shapes_are_a_clip_source():
    assert isinstance(Shapes(seed=0, length=1, split="train", bounce=True), ClipSource)
    assert not isinstance([], ClipSource)
