"""LPIPS's two files with random weights, named as they are published."""

from pathlib import Path

import numpy as np

from tests.golden.record_metrics import lpips_tensors
from tests.helpers.weight_files import write

FILES = {
    "alex": ("alexnet-owt-7be5be79.pth", "alex.pth"),
    "vgg": ("vgg16-397923af.pth", "vgg.pth"),
}


def write_lpips(folder: Path, network: str = "alex") -> Path:
    """Writes both files into a folder; torchvision's also has the layers that classify."""
    folder.mkdir(parents=True, exist_ok=True)
    backbone, heads = lpips_tensors(network)
    backbone["classifier.1.weight"] = np.zeros((3, 5), np.float32)
    for name, tensors in zip(FILES[network], (backbone, heads), strict=True):
        write(folder / name, tensors, overwrite=True)
    return folder
