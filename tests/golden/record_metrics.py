"""Records what well-known libraries compute for random frames, for tests/evaluation.

    pip install torch torchvision lpips==0.1.4 torchmetrics scikit-image safetensors
    python -m tests.golden.record_metrics

writes metrics.json beside this file: PSNR and SSIM by scikit-image and torchmetrics, and LPIPS by
the package `lpips` and by torchmetrics. The weights of LPIPS's networks are random, and are not
stored: `random_frames` and `lpips_tensors` draw the same numbers here and in the tests, which
import this file without PyTorch.
"""

import json
from pathlib import Path

import numpy as np

FILE = Path(__file__).parent / "metrics.json"
SIZES = ((32, 48), (45, 37), (64, 64))
"""Rows and columns of the pairs of frames."""
LPIPS_LAYERS = {
    # number in torchvision's list: (outputs, inputs, rows of the kernel)
    "alex": {
        0: (64, 3, 11),
        3: (192, 64, 5),
        6: (384, 192, 3),
        8: (256, 384, 3),
        10: (256, 256, 3),
    },
    "vgg": {
        0: (64, 3, 3),
        2: (64, 64, 3),
        5: (128, 64, 3),
        7: (128, 128, 3),
        10: (256, 128, 3),
        12: (256, 256, 3),
        14: (256, 256, 3),
        17: (512, 256, 3),
        19: (512, 512, 3),
        21: (512, 512, 3),
        24: (512, 512, 3),
        26: (512, 512, 3),
        28: (512, 512, 3),
    },
}
LPIPS_WIDTHS = {"alex": (64, 192, 384, 256, 256), "vgg": (64, 128, 256, 512, 512)}


def _generator(key: int) -> np.random.RandomState:
    """Numbers that are the same with every version of NumPy."""
    return np.random.RandomState(np.random.Philox(key=key))


def random_frames() -> list[tuple[np.ndarray, np.ndarray]]:
    """Pairs of uint8 frames [rows, columns, 3]: smooth ones, and the same with noise."""
    generator = _generator(1)
    pairs = []
    for number, (rows, columns) in enumerate(SIZES):
        small = generator.uniform(0, 255, (rows // 8 + 1, columns // 8 + 1, 3))
        smooth = small.repeat(8, axis=0).repeat(8, axis=1)[:rows, :columns]
        noisy = smooth + generator.normal(0, 10 + 15 * number, smooth.shape)
        pairs.append(tuple(np.clip(x, 0, 255).round().astype(np.uint8) for x in (smooth, noisy)))
    return pairs


def lpips_tensors(network: str) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Random tensors of (torchvision's network, the heads) under the names of the files."""
    generator = _generator(2)
    backbone: dict[str, np.ndarray] = {}
    for number, (outputs, inputs, size) in LPIPS_LAYERS[network].items():
        deviation = np.sqrt(2 / (inputs * size * size))
        kernel = generator.normal(0, deviation, (outputs, inputs, size, size))
        backbone[f"features.{number}.weight"] = kernel.astype(np.float32)
        bias = generator.normal(0, 0.1, outputs)
        backbone[f"features.{number}.bias"] = bias.astype(np.float32)
    heads = {}
    for number, width in enumerate(LPIPS_WIDTHS[network]):
        weights = generator.uniform(0, 1, (1, width, 1, 1))
        heads[f"lin{number}.model.1.weight"] = weights.astype(np.float32)
    return backbone, heads


def _similarities() -> dict[str, dict[str, list[float]]]:
    import torch
    from skimage.metrics import peak_signal_noise_ratio, structural_similarity
    from torchmetrics.functional.image import (
        peak_signal_noise_ratio as torch_psnr,
    )
    from torchmetrics.functional.image import (
        structural_similarity_index_measure as torch_ssim,
    )

    found = {name: {"psnr": [], "ssim": []} for name in ("scikit-image", "torchmetrics")}
    for reference, video in random_frames():
        psnr = peak_signal_noise_ratio(reference, video, data_range=255)
        # As in the paper; the map is averaged where windows lie wholly inside the frame.
        _, ssim_map = structural_similarity(
            reference.astype(np.float64),
            video.astype(np.float64),
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            data_range=255,
            channel_axis=-1,
            full=True,
        )
        found["scikit-image"]["psnr"].append(float(psnr))
        found["scikit-image"]["ssim"].append(float(ssim_map[5:-5, 5:-5].mean()))
        x, y = (torch.tensor(frame).permute(2, 0, 1)[None].double() for frame in (video, reference))
        found["torchmetrics"]["psnr"].append(float(torch_psnr(x, y, data_range=255.0)))
        # Its own mean counts windows over the reflected border, too.
        _, ssim_map = torch_ssim(x, y, data_range=255.0, return_full_image=True)
        found["torchmetrics"]["ssim"].append(float(ssim_map[..., 5:-5, 5:-5].mean()))
    return found


def _lpips(network: str) -> dict[str, list[float]]:
    import lpips
    import torch
    from torchmetrics.functional.image import lpips as torchmetrics_lpips

    backbone, heads = lpips_tensors(network)
    package = lpips.LPIPS(net=network, pnet_rand=True, verbose=False).eval()
    state = dict(package.state_dict())
    for name in state:
        if name.startswith("net."):
            _, _, number, kind = name.split(".")
            state[name] = torch.tensor(backbone[f"features.{number}.{kind}"])
        elif name.startswith("lin") and not name.startswith("lins"):
            state[name] = torch.tensor(heads[name])
        elif name.startswith("lins"):
            _, number, rest = name.split(".", 2)
            state[name] = torch.tensor(heads[f"lin{number}.{rest}"])
    package.load_state_dict(state)
    theirs = torchmetrics_lpips._LPIPS(pretrained=False, net=network, pnet_rand=True).eval()
    theirs.load_state_dict({name: state[name] for name in theirs.state_dict()})
    found = {"lpips": [], "torchmetrics": []}
    with torch.no_grad():
        for reference, video in random_frames():
            x, y = (
                torch.tensor(frame).permute(2, 0, 1)[None].float() / 127.5 - 1
                for frame in (video, reference)
            )
            found["lpips"].append(float(package(x, y)))
            found["torchmetrics"].append(float(theirs(x, y)))
    return found


def main() -> None:
    from importlib.metadata import version

    packages = ("torch", "torchvision", "lpips", "torchmetrics", "scikit-image")
    recorded = {
        "versions": {name: version(name) for name in packages},
        **_similarities(),
        "lpips": {network: _lpips(network) for network in LPIPS_LAYERS},
    }
    FILE.write_text(json.dumps(recorded, indent=2) + "\n")


if __name__ == "__main__":
    main()
