"""The linear predictor of a run's own training clips, which its reports show beside the model."""

import itertools
import time
from collections.abc import Iterator, Sequence

import numpy as np

from videomar_jax.data.loader import batches
from videomar_jax.data.sources import ClipShape, ClipSource, Subset, clips_for
from videomar_jax.evaluation.baselines import LinearPredictor, Windows, fit_linear
from videomar_jax.io.log import log

# Random windows of one clip overlap: more of them say little new.
_WINDOWS_PER_CLIP = 64
_LEFT_OUT = 128
# Bytes of decoded windows that are read in all, which is about a minute, and at a time.
_BYTES, _BYTES_AT_A_TIME = 2**32, 2**26


def linear_predictors(
    source: ClipSource,
    shape: ClipShape,
    given: Sequence[int],
    *,
    windows: int,
    threads: int = 2,
    seed: int = 0,
) -> dict[int, LinearPredictor]:
    """The linear predictor for each number of given frames, fitted on random training windows.

    The kind is chosen on windows of a tenth of the clips, which the fit leaves out. Of a single
    clip nothing can be left out; the predictor is then the local one.

    Args:
        source: training clips with pixels.
        windows: how many to fit on, at most; fewer where clips are few or large. 0: none.
    Returns:
        {} if there is nothing to fit on.
    """
    indices = clips_for(source, shape, ((shape.height, shape.width),))
    if not windows or not len(indices) or not given:
        return {}
    started = time.monotonic()
    window_bytes = shape.num_frames * shape.height * shape.width * 3
    most = min(windows, _WINDOWS_PER_CLIP * len(indices), max(2, _BYTES // window_bytes))
    order = np.random.default_rng(seed).permutation(indices)
    left_out_clips = order[: len(order) // 10 or min(1, len(order) - 1)]
    fit_clips = order[len(left_out_clips) :]
    left_out: list[Windows] = []
    if len(left_out_clips):
        count = min(_LEFT_OUT, max(1, most // 10), _WINDOWS_PER_CLIP * len(left_out_clips))
        left_out = list(_read(source, left_out_clips, shape, count, threads, seed))
    stream = _read(source, fit_clips, shape, most, threads, seed)
    found = fit_linear(stream, left_out, given, most)
    seconds = time.monotonic() - started
    for frames, predictor in found.items():
        text = "nothing could be left out to test it on"
        if predictor.left_out:
            text = (
                f"{predictor.left_out[predictor.kind]:.1f} dB on training clips left out, "
                f"repeating {predictor.left_out['copy']:.1f} dB"
            )
        log.info(
            "linear predictor, %d given: the %s kind, fitted on %d windows: %s",
            frames,
            predictor.kind,
            predictor.windows,
            text,
        )
    log.info("fitting the linear predictor took %.1f s", seconds)
    return found


def _read(
    source: ClipSource,
    indices: np.ndarray,
    shape: ClipShape,
    count: int,
    threads: int,
    seed: int,
) -> Iterator[Windows]:
    """Yields `count` windows of these clips, in batches."""
    window_bytes = shape.num_frames * shape.height * shape.width * 3
    size = min(count, max(1, min(64, _BYTES_AT_A_TIME // window_bytes)))
    stream = batches(
        Subset(source, indices), shape=shape, batch_size=size, seed=seed, num_threads=threads
    )
    try:
        for batch in itertools.islice(stream, -(-count // size)):
            keep = min(size, count)
            count -= keep
            yield Windows(batch["video"][:keep], batch["caption"][:keep])
    finally:
        stream.close()
