"""What the training loop adds to an exception that ends a run: the newest checkpoint, and nothing
else. (What a whole run does is tested in tests/experiment.)"""

import errno
import json

import jax.numpy as jnp
import pytest

from videomar_jax.checkpoints.manager import Checkpoints
from videomar_jax.training.loop import _naming_the_last_checkpoint


@pytest.fixture
def checkpoints(tmp_path):
    with Checkpoints(tmp_path / "checkpoints") as manager:
        yield manager


def raised_by(error, checkpoints, workdir):
    with pytest.raises(type(error)) as info:
        with _naming_the_last_checkpoint(checkpoints, workdir):
            raise error
    assert info.value is error, "the exception was replaced by another one"
    return info.value


def test_an_error_of_the_system_keeps_its_number(checkpoints, tmp_path):
    error = raised_by(OSError(errno.ENOSPC, "No space left", "clip.mp4"), checkpoints, tmp_path)
    assert (error.errno, error.filename) == (errno.ENOSPC, "clip.mp4")
    assert error.__notes__ == ["No checkpoint was saved yet."]


def test_errors_that_take_several_arguments_stay_what_they_are(checkpoints, tmp_path):
    checkpoints.save(3, {"params": {"w": jnp.zeros(2)}}, {})
    checkpoints.wait()
    folder = tmp_path / "checkpoints" / "3"
    for error in (
        json.JSONDecodeError("Expecting value", "{", 1),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
        FloatingPointError("Step 4: loss = nan"),
    ):
        found = raised_by(error, checkpoints, tmp_path)
        assert found.__notes__ == [f"The newest checkpoint is {folder}, of step 3."]


def test_a_fault_of_the_program_is_left_alone(checkpoints, tmp_path):
    error = raised_by(TypeError("a bug"), checkpoints, tmp_path)
    assert not hasattr(error, "__notes__")
