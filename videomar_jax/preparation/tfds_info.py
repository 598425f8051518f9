"""A complete folder as a TFDS dataset: its shards are record files of TFDS's kind, with its names.

    tfds.builder_from_directory(DIR).as_data_source("train")[0]["latents"]

needs no TensorFlow. For latents in bfloat16, import ml_dtypes (or jax) first, so that NumPy knows
the type.
"""

import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from videomar_jax.data.records import DTYPES
from videomar_jax.preparation.plan import Plan


def write_tfds_info(output: Path, plan: Plan, receipts: Sequence[Mapping[str, Any]]) -> None:
    """Writes dataset_info.json and features.json from the receipts of all shards."""
    import tensorflow_datasets as tfds  # late: its import takes a while

    identity = tfds.core.dataset_info.DatasetIdentity(
        name="clips", version=tfds.core.Version("1.0.0"), data_dir=str(output), module_name=""
    )
    info = tfds.core.DatasetInfo(
        builder=identity,
        features=_features(plan),
        description="Latents of video clips, and their captions.",
    )
    info.set_file_format(tfds.core.FileFormat.ARRAY_RECORD)
    template = tfds.core.ShardedFileTemplate(
        data_dir=output, dataset_name="clips", filetype_suffix="array_record"
    )
    splits = []
    for split in dict.fromkeys(shard.split for shard in plan.shards):
        own = []
        for shard, receipt in zip(plan.shards, receipts, strict=True):
            if shard.split == split:
                own.append(receipt)
        splits.append(
            tfds.core.SplitInfo(
                name=split,
                shard_lengths=[receipt["clips"] for receipt in own],
                num_bytes=sum(receipt["bytes"] for receipt in own),
                filename_template=template,
            )
        )
    info.set_splits(tfds.core.splits.SplitDict(splits))
    with tempfile.TemporaryDirectory(prefix=".tfds.", suffix=".part", dir=output) as folder:
        info.write_to_directory(folder)
        for path in Path(folder).iterdir():
            os.replace(path, output / path.name)


def _features(plan: Plan) -> Any:
    import tensorflow_datasets as tfds

    dtype = DTYPES[plan.settings.dtype]
    tokenizer, text = plan.identities["tokenizer"], plan.identities["text_encoder"]
    bytes_of: dict[str, Any] = {"encoding": tfds.features.Encoding.BYTES}
    shape = (None, None, None, tokenizer["channels"])
    features = {
        "latents": tfds.features.Tensor(shape=shape, dtype=dtype, **bytes_of),
        "caption": tfds.features.Text(),
        "file": tfds.features.Text(),
        "start": tfds.features.Scalar(np.float32),
        "fps": tfds.features.Scalar(np.float32),
        "num_frames": tfds.features.Scalar(np.int64),
        "height": tfds.features.Scalar(np.int64),
        "width": tfds.features.Scalar(np.int64),
        "clip": tfds.features.Scalar(np.int64),
    }
    if text is not None:
        features["text"] = tfds.features.Tensor(
            shape=(None, text["width"]), dtype=dtype, **bytes_of
        )
        features["text_mask"] = tfds.features.Tensor(
            shape=(text["max_tokens"],), dtype=np.bool_, **bytes_of
        )
    return tfds.features.FeaturesDict(features)
