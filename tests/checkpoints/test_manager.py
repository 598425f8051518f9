"""What is saved comes back bit by bit, and nothing else ever comes back."""

import contextlib
import errno
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from videomar_jax.checkpoints import manager
from videomar_jax.checkpoints.manager import Checkpoints
from videomar_jax.checks import UserError


def make_state(
    width: int = 4, seed: int = 0, tx: optax.GradientTransformation | None = None
) -> dict:
    """A small train state with bf16, a scalar, a list and the empty nodes that optax leaves in a
    masked chain."""
    keys = iter(jax.random.split(jax.random.key(seed), 8))
    params = {
        "blocks": {
            "kernel": jax.random.normal(next(keys), (2, 3, width)),
            "scale": jnp.ones((2, width)),
        },
        "heads": [
            jax.random.normal(next(keys), (width,), jnp.bfloat16),
            jax.random.normal(next(keys), ()),
        ],
    }
    if tx is None:
        decayed = {"blocks": {"kernel": True, "scale": False}, "heads": [True, False]}
        tx = optax.chain(
            optax.clip_by_global_norm(1.0),
            optax.masked(optax.adamw(1e-3), decayed),
            optax.identity(),
        )
    opt_state = tx.init(params)
    _, opt_state = tx.update(jax.tree.map(jnp.sin, params), opt_state, params)
    return {"params": params, "ema": jax.tree.map(jnp.cos, params), "opt_state": opt_state}


def shapes(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


def assert_bitwise(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for (path, x), y in zip(
        jax.tree_util.tree_flatten_with_path(a)[0], jax.tree.leaves(b), strict=True
    ):
        name = jax.tree_util.keystr(path)
        assert x.dtype == y.dtype and x.shape == y.shape, name
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes(), name


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A directory that holds checkpoint 5, and the state in it."""
    directory, state = tmp_path_factory.mktemp("run"), make_state()
    with Checkpoints(directory) as checkpoints:
        checkpoints.save(5, state, {"position": 40, "stage": "short clips"})
    return directory, state


def test_state_and_progress_come_back_in_another_process_object(saved):
    directory, state = saved
    with Checkpoints(directory) as checkpoints:
        assert checkpoints.latest_step() == 5
        restored, progress = checkpoints.restore(5, shapes(state))
    assert_bitwise(restored, state)
    assert progress == {"position": 40, "stage": "short clips"}
    assert type(restored["opt_state"][1].inner_state[0]) is optax.ScaleByAdamState


def test_one_part_is_read_without_the_others(tmp_path):
    state = make_state()
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, {})
    for part in ("params", "opt_state"):  # reading either of them would now fail
        for folder, _, files in os.walk(tmp_path / "1" / part):
            for file in files:
                open(os.path.join(folder, file), "wb").close()
    with Checkpoints(tmp_path) as checkpoints:
        restored, _ = checkpoints.restore(1, {"ema": shapes(state["ema"])})
        assert list(restored) == ["ema"]
        assert_bitwise(restored["ema"], state["ema"])
        assert checkpoints.restore(1, {}) == ({}, {})


def test_arrays_go_where_their_shardings_say(tmp_path):
    def mesh(*shape):
        return jax.make_mesh(shape, ("x", "y"), axis_types=(jax.sharding.AxisType.Auto,) * 2)

    spec = jax.P("x", "y")
    values = np.arange(64, dtype=np.float32).reshape(8, 8)
    saved_on, wanted_on = (jax.sharding.NamedSharding(m, spec) for m in (mesh(8, 1), mesh(2, 4)))
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"params": {"w": jax.device_put(values, saved_on)}}, {})
        for leaf, sharding in [
            (jax.ShapeDtypeStruct((8, 8), jnp.float32, sharding=wanted_on), wanted_on),
            (jax.device_put(np.zeros_like(values), wanted_on), wanted_on),
            (
                jax.ShapeDtypeStruct((8, 8), jnp.float32),
                jax.sharding.SingleDeviceSharding(jax.devices()[0]),
            ),
        ]:
            w = checkpoints.restore(1, {"params": {"w": leaf}})[0]["params"]["w"]
            assert w.sharding == sharding
            np.testing.assert_array_equal(w, values)
        w = checkpoints.restore(1, {"params": {"w": np.zeros_like(values)}})[0]["params"]["w"]
    assert type(w) is np.ndarray
    np.testing.assert_array_equal(w, values)


def test_arrays_may_be_donated_while_they_are_written(tmp_path):
    state = {"params": {"w": jnp.arange(1 << 18, dtype=jnp.float32)}}
    expected = np.array(state["params"]["w"])
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, {})
        jax.jit(lambda s: jax.tree.map(lambda x: -x, s), donate_argnums=0)(state)
        restored, _ = checkpoints.restore(
            1, {"params": {"w": jax.ShapeDtypeStruct(expected.shape, jnp.float32)}}
        )
    np.testing.assert_array_equal(restored["params"]["w"], expected)


def test_another_shape_is_named_with_both_shapes(saved):
    directory, _ = saved
    with (
        Checkpoints(directory) as checkpoints,
        pytest.raises(ValueError, match="another model size") as error,
    ):
        checkpoints.restore(5, {"params": shapes(make_state(width=6)["params"])})
    assert all(
        part in str(error.value) for part in ("params/blocks/kernel", "(2, 3, 4)", "(2, 3, 6)", "5")
    )


def test_another_dtype_is_not_cast(saved):
    directory, state = saved
    like = shapes(state["ema"])
    like["blocks"]["scale"] = jax.ShapeDtypeStruct((2, 4), jnp.bfloat16)
    with (
        Checkpoints(directory) as checkpoints,
        pytest.raises(ValueError, match="ema/blocks/scale") as error,
    ):
        checkpoints.restore(5, {"ema": like})
    assert "float32" in str(error.value) and "bfloat16" in str(error.value)


def test_missing_and_unexpected_names_are_listed_up_to_ten(saved):
    directory, state = saved
    like = shapes(state["params"])
    del like["blocks"]["scale"]
    like["extra"] = {f"x{i:02d}": jax.ShapeDtypeStruct((1,), jnp.float32) for i in range(13)}
    with (
        Checkpoints(directory) as checkpoints,
        pytest.raises(ValueError, match="another model size") as error,
    ):
        checkpoints.restore(5, {"params": like})
    text = str(error.value)
    assert "params/blocks/scale" in text
    assert "params/extra/x09 and 3 more" in text and "x10" not in text


def test_another_optimizer_is_refused(saved):
    directory, _ = saved
    other = make_state(tx=optax.sgd(0.1, momentum=0.9))["opt_state"]
    with (
        Checkpoints(directory) as checkpoints,
        pytest.raises(ValueError, match="another optimizer"),
    ):
        checkpoints.restore(5, {"opt_state": shapes(other)})


def test_missing_parts_steps_and_directories_name_what_is_there(saved, tmp_path):
    directory, state = saved
    with Checkpoints(directory) as checkpoints:
        with pytest.raises(
            ValueError, match=r"no part \['teacher'\].*\['ema', 'opt_state', 'params'\]"
        ):
            checkpoints.restore(5, {"teacher": shapes(state["params"])})
        with pytest.raises(FileNotFoundError, match=r"no checkpoint 7 in .*holds 5"):
            checkpoints.restore(7, {})
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest_step() is None
        with pytest.raises(FileNotFoundError, match="no complete"):
            checkpoints.restore(0, {})
    with (
        Checkpoints(tmp_path / "typo") as checkpoints,
        pytest.raises(FileNotFoundError, match="does not exist"),
    ):
        checkpoints.restore(0, {})
    assert not (tmp_path / "typo").exists(), "looking for checkpoints must not create a directory"


def test_the_first_save_of_a_step_stays(tmp_path):
    first, second = ({"params": {"w": jnp.full((3,), value)}} for value in (1.0, 2.0))
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(4, first, {"n": 1})
        checkpoints.save(4, second, {"n": 2})  # the first may still be on its way to disk
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(4, second, {"n": 3})
        restored, progress = checkpoints.restore(4, shapes(first))
    assert_bitwise(restored, first)
    assert progress == {"n": 1}


def test_saving_the_last_step_again_is_no_news(tmp_path, caplog):
    """A run saves its last step again when it stops; a step of an earlier run is worth a line."""
    state = {"params": {"w": jnp.ones(3)}}
    caplog.set_level("INFO")
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, {})
        checkpoints.save(1, state, {})
    assert "exists" not in caplog.text
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, {})
    assert "checkpoint 1 exists" in caplog.text


def test_a_step_before_the_newest_is_refused_rather_than_dropped(tmp_path):
    state = {"params": {"w": jnp.zeros(3)}}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(10, state, {})
        with pytest.raises(ValueError, match=r"Checkpoint 5 .* 10"):
            checkpoints.save(5, state, {})
        assert checkpoints.all_steps() == [10]


def test_old_checkpoints_go_and_milestones_stay(tmp_path):
    with Checkpoints(tmp_path, keep_last=2, keep_every=4) as checkpoints:
        for step in range(1, 8):
            checkpoints.save(step, {"params": {"w": jnp.full((2,), float(step))}}, {})
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.all_steps() == [4, 6, 7]
        like = {"params": {"w": jax.ShapeDtypeStruct((2,), jnp.float32)}}
        assert [float(checkpoints.restore(s, like)[0]["params"]["w"][0]) for s in (4, 6, 7)] == [
            4,
            6,
            7,
        ]


KILLED = """
import os, signal, sys, jax.numpy as jnp
from orbax.checkpoint import args
from videomar_jax.checkpoints.manager import Checkpoints
checkpoints = Checkpoints(sys.argv[1])
checkpoints.save(1, {"params": {"w": jnp.ones(4)}}, {"n": 1})
checkpoints.wait()
# dies where the step would be named
os.rename = os.replace = lambda *a, **k: os.kill(os.getpid(), signal.SIGKILL) 
checkpoints.save(2, {"params": {"w": jnp.zeros(4)}}, {"n": 2})
checkpoints.wait()
"""


def test_a_save_cut_off_by_a_kill_is_ignored_and_can_be_repeated(tmp_path):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "JAX_PLATFORMS": "cpu"}
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path)], env=environment, capture_output=True
    )
    assert killed.returncode == -9, killed.stderr.decode()[-2000:]
    left = [entry.name for entry in tmp_path.iterdir() if entry.name != "1"]
    assert left and "2" not in left, f"the kill should leave a temporary directory, found {left}"
    like = {"params": {"w": jax.ShapeDtypeStruct((4,), jnp.float32)}}
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest_step() == 1
        state, progress = checkpoints.restore(1, like)
        assert progress == {"n": 1} and float(state["params"]["w"].sum()) == 4
        checkpoints.save(2, {"params": {"w": jnp.full((4,), 2.0)}}, {"n": 3})
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.all_steps() == [1, 2]
        assert float(checkpoints.restore(2, like)[0]["params"]["w"].sum()) == 8


def test_wrong_arguments_are_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match="keep_last"):
        Checkpoints(tmp_path, keep_last=0)
    with pytest.raises(ValueError, match="keep_every"):
        Checkpoints(tmp_path, keep_every=0)
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(ValueError, match="progress"):
            checkpoints.save(1, {"progress": {"w": jnp.zeros(1)}}, {})
        with pytest.raises(ValueError, match="metrics"):
            checkpoints.save(1, {"metrics": {"w": jnp.zeros(1)}}, {})
        with pytest.raises(TypeError, match="JSON"):
            checkpoints.save(1, {"params": {"w": jnp.zeros(1)}}, {"key": jax.random.key(0)})
    assert not list(tmp_path.iterdir())


# What stays


def save_all(directory, scores: dict, **keep):
    with Checkpoints(directory, **keep) as checkpoints:
        for step, score in scores.items():
            checkpoints.save(
                step, {"params": {"w": jnp.full((2,), float(step))}}, {"n": step}, score=score
            )


def test_the_best_checkpoint_stays_until_there_is_a_better_one(tmp_path):
    save_all(tmp_path, {1: 0.9, 2: 0.3, 3: None, 4: 0.5, 5: None}, keep_last=1)
    with Checkpoints(tmp_path, keep_last=1) as checkpoints:
        assert checkpoints.all_steps() == [2, 5] and checkpoints.best_step() == 2
    save_all(tmp_path, {6: 0.31}, keep_last=1)
    with Checkpoints(tmp_path, keep_last=1) as checkpoints:
        assert checkpoints.all_steps() == [2, 6], "the best of an earlier start is forgotten"
    save_all(tmp_path, {7: 0.29, 8: None, 9: 0.3}, keep_last=1, keep_every=4)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.all_steps() == [7, 8, 9] and checkpoints.best_step() == 7
        assert checkpoints.restore(7, {}) == ({}, {"n": 7})


def test_without_scores_nothing_is_best(tmp_path):
    save_all(tmp_path, {1: None, 2: None, 3: None}, keep_last=2)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.all_steps() == [2, 3] and checkpoints.best_step() is None
    with Checkpoints(tmp_path / "none") as checkpoints:
        assert checkpoints.best_step() is None


def test_a_score_must_be_a_number(tmp_path):
    with (
        Checkpoints(tmp_path) as checkpoints,
        pytest.raises(ValueError, match=r"score of checkpoint 1 .* nan"),
    ):
        checkpoints.save(1, {"params": {"w": jnp.zeros(2)}}, {}, score=float("nan"))


def test_what_killed_runs_left_behind_is_removed_by_the_next_save(tmp_path):
    save_all(tmp_path, {1: None})
    left = tmp_path / "3.orbax-checkpoint-tmp" / "params"
    left.mkdir(parents=True)
    (left / "part").write_bytes(b"0" * 100)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.all_steps() == [1] and left.exists(), "reading must not delete"
    save_all(tmp_path, {5: None})
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["1", "5"]


# What cannot be written


@contextlib.contextmanager
def files_up_to(size: int):
    """Writing a file beyond `size` bytes fails."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def noise(seed: int, size: int = 200_000) -> dict:
    return {"params": {"w": np.random.default_rng(seed).standard_normal(size, np.float32)}}


def test_a_write_that_fails_is_told_with_what_is_left(tmp_path, capfd):
    with Checkpoints(tmp_path, keep_last=1) as checkpoints:
        checkpoints.save(1, noise(1), {"n": 1})
        checkpoints.wait()
        with files_up_to(100_000), pytest.raises(OSError) as error:
            checkpoints.save(2, noise(2), {"n": 2})  # returns: the writing thread meets the fault
            checkpoints.save(3, noise(3), {"n": 3})
        assert checkpoints.all_steps() == [1]
    told = str(error.value)
    assert f"Checkpoint 2 could not be written in {tmp_path}: File too large." in told
    assert "There, checkpoint 1 is intact" in told
    assert "Traceback" not in capfd.readouterr().err
    with Checkpoints(tmp_path, keep_last=1) as checkpoints:
        assert_bitwise(checkpoints.restore(1, noise(0))[0], noise(1))
        checkpoints.save(2, noise(2), {"n": 2})
    with Checkpoints(tmp_path) as checkpoints:
        assert_bitwise(checkpoints.restore(2, noise(0))[0], noise(2))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES], ids=["full", "unwritable"])
def test_a_directory_that_takes_nothing_is_told_at_once(tmp_path, monkeypatch, number):
    def refuse(*args, **kwargs):
        raise OSError(number, os.strerror(number), str(tmp_path / "runs"))

    monkeypatch.setattr("orbax.checkpoint.CheckpointManager.save", refuse)
    with Checkpoints(tmp_path / "runs") as checkpoints, pytest.raises(OSError) as error:
        checkpoints.save(4, noise(1, 4), {})
    assert (
        f"Checkpoint 4 could not be written in {tmp_path / 'runs'}: {os.strerror(number)}"
        in str(error.value)
    )
    assert "there is no older one" in str(error.value)


def test_a_full_disk(tmp_path):
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1500k", "tmpfs", tmp_path], capture_output=True
    ).returncode:
        pytest.skip("a small file system cannot be mounted here")
    try:
        with pytest.raises(
            OSError, match=r"Checkpoint 2 .*No space left on device\. There, checkpoint 1 is intact"
        ):
            with Checkpoints(tmp_path, keep_last=1) as checkpoints:
                for step in (1, 2):
                    checkpoints.save(step, noise(step), {})
        with Checkpoints(tmp_path, keep_last=1) as checkpoints:
            assert_bitwise(checkpoints.restore(1, noise(0))[0], noise(1))
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_an_error_of_the_run_is_not_hidden_by_one_of_its_last_save(tmp_path, caplog):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, noise(1), {})
    with files_up_to(100_000), pytest.raises(FloatingPointError, match="the run"):
        with Checkpoints(tmp_path) as checkpoints:
            checkpoints.save(2, noise(2), {})
            raise FloatingPointError("the run")
    assert "Checkpoint 2 could not be written" in caplog.text


# What cannot be read


def remove(path):
    path.unlink()


def halve(path):
    with open(path, "r+b") as file:
        file.truncate(path.stat().st_size // 2)


def empty(path):
    path.write_bytes(b"")


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    directory = tmp_path_factory.mktemp("three") / "checkpoints"
    with Checkpoints(directory) as checkpoints:
        for step in (2, 4, 6):
            checkpoints.save(step, noise(step, 5000), {"n": step})
    return directory


def restored_newest(directory):
    with Checkpoints(directory) as checkpoints:
        return checkpoints.restore(checkpoints.latest_step(), noise(0, 5000))


@pytest.mark.parametrize("damage", [remove, halve, empty])
def test_damage_to_any_file_is_told_or_does_no_harm(three, tmp_path, damage):
    files = [path.relative_to(three) for path in sorted((three / "6").rglob("*")) if path.is_file()]
    told = 0
    for file in files:
        directory = tmp_path / "checkpoints"
        shutil.copytree(three, directory)
        damage(directory / file)
        try:
            state, progress = restored_newest(directory)
            assert_bitwise(state, noise(6, 5000))
            assert progress == {"n": 6}, f"after damage to {file} another step was taken"
        except ValueError as error:
            told += 1
            assert re.search(
                rf"Checkpoint {directory}/6 is damaged \(.+\)\. Checkpoint 4 is intact", str(error)
            ), file
        shutil.rmtree(directory)
    assert told >= 6, f"only {told} of {len(files)} files are needed"


def flip_bits(path, seed, times):
    """The path with one bit of it flipped, `times` times, each time another one."""
    whole = path.read_bytes()
    rng = np.random.default_rng(seed)
    for offset in rng.integers(len(whole), size=times):
        broken = bytearray(whole)
        broken[offset] ^= 1 << int(rng.integers(8))
        path.write_bytes(broken)
        yield int(offset)
    path.write_bytes(whole)


def test_a_flipped_bit_never_gives_other_parameters(three, tmp_path):
    directory = tmp_path / "checkpoints"
    shutil.copytree(three, directory)
    files = [path for path in sorted((directory / "6").rglob("*")) if path.is_file()]
    told, silent = 0, 0
    for seed, file in enumerate(files):
        for offset in flip_bits(file, seed, times=4):
            where = f"bit at {offset} of {file.relative_to(directory)}"
            try:
                state, progress = restored_newest(directory)
            except ValueError as error:
                told += 1
                assert re.search(r"6 is damaged \(.*Checkpoint 4 is intact", str(error)), where
            else:
                silent += 1
                assert_bitwise(state, noise(6, 5000))
                assert progress == {"n": 6}, where
    # Only Orbax's notes and our list of digests are beside the parts.
    assert told >= 4 * (len(files) - 3), (told, silent)


def test_the_damaged_file_is_named_and_an_older_damaged_checkpoint_is_no_way_out(three, tmp_path):
    directory = tmp_path / "checkpoints"
    shutil.copytree(three, directory)
    for step in ("6", "4"):
        files = (directory / step / "params").rglob("*")
        largest = max(files, key=lambda path: path.stat().st_size)
        next(flip_bits(largest, 0, times=1))
        name = largest.relative_to(directory / "6") if step == "6" else name
    with pytest.raises(ValueError) as error:
        restored_newest(directory)
    assert f"({name} is not what was saved" in str(error.value)
    assert "Checkpoint 2 is intact" in str(error.value)


def test_a_checkpoint_of_an_earlier_version_has_no_digests(three, tmp_path, caplog):
    directory = tmp_path / "checkpoints"
    shutil.copytree(three, directory)
    assert sorted(json.loads((directory / "6" / "digests.json").read_text())) == sorted(
        path.relative_to(directory / "6").as_posix()
        for path in (directory / "6").glob("*/**/*")
        if path.is_file()
    )
    (directory / "6" / "digests.json").unlink()
    with caplog.at_level("INFO"):
        assert_bitwise(restored_newest(directory)[0], noise(6, 5000))
    assert "6 has no digests.json: it is of an earlier version" in caplog.text


def test_one_error_is_one_message(tmp_path, capfd):
    """The arrays after the first that cannot be read arrive when nobody waits for them."""
    state = {"ema": {f"w{i}": noise(i, 3000)["params"]["w"] for i in range(60)}}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, {})
    (tmp_path / "1" / "digests.json").unlink()
    shutil.rmtree(tmp_path / "1" / "ema" / "ocdbt.process_0")
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(UserError, match="damaged"):
        checkpoints.restore(1, state)
    time.sleep(0.2)
    assert "Event loop" not in capfd.readouterr().err


def test_a_score_of_another_form_is_the_worst(tmp_path):
    save_all(tmp_path, {1: 0.5, 2: 0.7})
    (tmp_path / "1" / "metrics" / "metrics").write_text('{"skore": 0.5}')
    save_all(tmp_path, {3: 0.8}, keep_last=1)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.all_steps() == [2, 3] and checkpoints.best_step() == 2


def test_the_advice_for_a_damaged_checkpoint_works(three, tmp_path):
    directory = tmp_path / "checkpoints"
    shutil.copytree(three, directory)
    shutil.rmtree(directory / "6" / "params")
    with pytest.raises(ValueError, match="damaged") as error:
        restored_newest(directory)
    subprocess.run(re.search(r"mv \S+ \S+$", str(error.value))[0].split(), check=True)
    state, progress = restored_newest(directory)
    assert_bitwise(state, noise(4, 5000))
    assert progress == {"n": 4}
    with Checkpoints(directory) as checkpoints:
        checkpoints.save(6, noise(6, 5000), {"n": 6})
    assert restored_newest(directory)[1] == {"n": 6}


def test_an_older_one_that_is_damaged_too_is_passed_over(three, tmp_path):
    directory = tmp_path / "checkpoints"
    shutil.copytree(three, directory)
    for step, left in (
        (6, "Checkpoint 4 is intact"),
        (4, "Checkpoint 2 is intact"),
        (2, r"older ones cannot be read either \(4, 2\)"),
    ):
        shutil.rmtree(directory / str(step) / "progress")
        with pytest.raises(ValueError, match=f"{directory}/6 is damaged.*{left}"):
            restored_newest(directory)
    shutil.rmtree(directory / "2")
    shutil.rmtree(directory / "4")
    with pytest.raises(ValueError, match="There is no older one"):
        restored_newest(directory)


def test_a_score_that_cannot_be_read_is_told(tmp_path):
    save_all(tmp_path, {1: 0.5})
    (tmp_path / "1" / "metrics" / "metrics").write_text("{")
    with pytest.raises(ValueError, match=r"score of a checkpoint in .*delete the folder 'metrics'"):
        Checkpoints(tmp_path)
    shutil.rmtree(tmp_path / "1" / "metrics")
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.all_steps() == [1] and checkpoints.best_step() is None


# Names of folders


@pytest.mark.parametrize(
    "name",
    [
        " a b ",
        "ünï 日本 e\u0301",
        "a]b",
        "'q\"",
        "-dash --flag=x",
        "x" * 255,
        "日" * 85,
        "{a} $HOME;&|<>",
        "%20#@:,=!()",
        ".hidden",
        "~",
        "new\nline",
        "a.orbax-checkpoint-tmp",
    ],
)
def test_checkpoints_in_folders_of_odd_names_come_back(name, tmp_path):
    state = {"params": {"a": np.arange(6.0), "b": [np.ones(3, np.float32)]}}
    for step in (1, 2):
        with Checkpoints(tmp_path / name / "checkpoints") as checkpoints:
            checkpoints.save(step, state, {"step": step}, 0.5)
            checkpoints.save(step + 2, state, {"step": step + 2})
        with Checkpoints(tmp_path / name / "checkpoints") as checkpoints:
            found, progress = checkpoints.restore(step + 2, shapes_of_arrays(state))
        assert_bitwise(found, state)
        assert progress == {"step": step + 2}
        shutil.rmtree(tmp_path / name)


def shapes_of_arrays(state):
    return jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), state)


@pytest.mark.parametrize(
    "name", ["a[1]", "[", "a*b", "a?b", "back\\slash", "a\\[b]", "not utf-8 \udcff"]
)
def test_folders_where_checkpoints_would_be_lost_are_refused_before_writing(name, tmp_path):
    with Checkpoints(tmp_path / name / "checkpoints") as checkpoints:
        with pytest.raises(UserError, match="rename the folder, or choose another"):
            checkpoints.save(1, {"params": np.ones(3)}, {})
    assert not list(tmp_path.iterdir())


def test_checkpoints_of_a_renamed_folder_are_read_where_that_is_possible(saved, tmp_path):
    directory, state = saved
    shutil.copytree(directory, tmp_path / "a[1]")
    with Checkpoints(tmp_path / "a[1]") as checkpoints:
        found, _ = checkpoints.restore(5, shapes(state))
        assert_bitwise(found, state)
        with pytest.raises(UserError, match="rename the folder"):
            checkpoints.save(6, state, {})
    shutil.copytree(directory, tmp_path / "a\\b")
    with Checkpoints(tmp_path / "a\\b") as checkpoints:
        with pytest.raises(UserError, match=r"backslash.* rename the folder"):
            checkpoints.restore(5, shapes(state))


def test_a_folder_of_earlier_versions_that_can_be_written_to_is_still_used(saved, tmp_path):
    """Its name is a pattern that fits itself."""
    shutil.copytree(saved[0], tmp_path / "a*b")
    with Checkpoints(tmp_path / "a*b") as checkpoints:
        checkpoints.save(6, saved[1], {})
    with Checkpoints(tmp_path / "a*b") as checkpoints:
        assert_bitwise(checkpoints.restore(6, shapes(saved[1]))[0], saved[1])


def test_a_first_checkpoint_that_cannot_be_read_is_an_error_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(manager, "check_place", lambda *_, **__: None)
    with Checkpoints(tmp_path / "a[1]") as checkpoints:
        with pytest.raises(OSError, match=r"written without an error, but .*params cannot be read"):
            checkpoints.save(1, {"params": {"a": np.ones(3)}}, {})
