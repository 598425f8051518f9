"""The I3D network of FVD in plain PyTorch, to compare with; it imports nothing of the package.

    python benchmarks/torch_i3d.py weights.npz clips.npy features.npz

reads a state dict as NumPy arrays and clips [N, F, Hp, Wp, 3] of uint8, and writes their features
[N, 400] and the seconds of every pass over the clips. `benchmarks.i3d` calls it with an interpreter
that has PyTorch.

Names are those of the state dicts in circulation (Conv3d_1a_7x7, Mixed_3b.b1a). The layers follow
Carreira and Zisserman 2017 (arXiv:1705.07750): padding as TensorFlow's "SAME", batch norm with
epsilon 0.001, and the mean over time of the logits.
"""

import sys
import time

import numpy as np
import torch
import torch.nn.functional as F

PASSES = 3
BATCH = 4
SIDE = 224
STAGES = (
    ("unit", "Conv3d_1a_7x7", 2),
    ("pool", (1, 3, 3), (1, 2, 2)),
    ("unit", "Conv3d_2b_1x1", 1),
    ("unit", "Conv3d_2c_3x3", 1),
    ("pool", (1, 3, 3), (1, 2, 2)),
    ("mixed", "Mixed_3b", None),
    ("mixed", "Mixed_3c", None),
    ("pool", (3, 3, 3), (2, 2, 2)),
    *(("mixed", f"Mixed_4{letter}", None) for letter in "bcdef"),
    ("pool", (2, 2, 2), (2, 2, 2)),
    ("mixed", "Mixed_5b", None),
    ("mixed", "Mixed_5c", None),
)
"""The network up to its last pooling."""

State = dict[str, torch.Tensor]


def same_padding(x: torch.Tensor, window, strides) -> list[int]:
    """What F.pad takes for "SAME": the last axis first, the odd row at the end."""
    margins = []
    for size, extent, stride in zip(x.shape[2:], window, strides, strict=True):
        outputs = -(-size // stride)
        missing = max((outputs - 1) * stride + extent - size, 0)
        margins = [missing // 2, missing - missing // 2, *margins]
    return margins


def unit(x: torch.Tensor, state: State, name: str, stride: int = 1) -> torch.Tensor:
    """Convolution, batch norm with the statistics of training, and ReLU."""
    kernel = state[f"{name}.conv3d.weight"]
    x = F.pad(x, same_padding(x, kernel.shape[2:], (stride,) * 3))
    x = F.conv3d(x, kernel, stride=stride)
    x = F.batch_norm(
        x,
        state[f"{name}.bn.running_mean"],
        state[f"{name}.bn.running_var"],
        state[f"{name}.bn.weight"],
        state[f"{name}.bn.bias"],
        eps=1e-3,
    )
    return F.relu(x)


def pool(x: torch.Tensor, window, strides) -> torch.Tensor:
    """Max pooling; what lies outside never counts."""
    x = F.pad(x, same_padding(x, window, strides), value=-torch.inf)
    return F.max_pool3d(x, window, strides)


def mixed(x: torch.Tensor, state: State, name: str) -> torch.Tensor:
    """Four branches, side by side in the channels."""
    first = unit(x, state, f"{name}.b0")
    second = unit(unit(x, state, f"{name}.b1a"), state, f"{name}.b1b")
    third = unit(unit(x, state, f"{name}.b2a"), state, f"{name}.b2b")
    fourth = unit(pool(x, (3, 3, 3), (1, 1, 1)), state, f"{name}.b3b")
    return torch.cat([first, second, third, fourth], dim=1)


@torch.inference_mode()
def features(state: State, clips: np.ndarray) -> np.ndarray:
    """Features [N, 400] of uint8 clips [N, F, Hp, Wp, 3]."""
    count, frames = clips.shape[:2]
    pictures = torch.from_numpy(clips).flatten(0, 1).permute(0, 3, 1, 2).float()
    pictures = F.interpolate(pictures, (SIDE, SIDE), mode="bilinear", align_corners=False)
    x = (pictures / 127.5 - 1).unflatten(0, (count, frames)).transpose(1, 2).contiguous()
    for kind, first, second in STAGES:
        if kind == "unit":
            x = unit(x, state, first, second)
        elif kind == "pool":
            x = pool(x, first, second)
        else:
            x = mixed(x, state, first)
    x = F.avg_pool3d(x, (2, 7, 7), stride=1)
    logits = F.conv3d(x, state["logits.conv3d.weight"], state["logits.conv3d.bias"])
    return logits.mean(dim=(2, 3, 4)).numpy()


def main(weights: str, clips: str, out: str) -> None:
    state = {name: torch.from_numpy(array) for name, array in np.load(weights).items()}
    video = np.load(clips)
    parts = [features(state, video[:BATCH])]  # not counted: it allocates
    seconds = []
    for _ in range(PASSES):
        start = time.perf_counter()
        parts = [features(state, video[i : i + BATCH]) for i in range(0, len(video), BATCH)]
        seconds.append(time.perf_counter() - start)
    versions = np.array([torch.__version__, str(torch.get_num_threads())])
    np.savez(out, features=np.concatenate(parts), seconds=np.array(seconds), versions=versions)


if __name__ == "__main__":
    main(*sys.argv[1:])
