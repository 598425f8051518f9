"""Records what PyTorch computes with a random I3D network, for tests/evaluation/test_i3d.py.

    pip install torch
    python -m tests.golden.record_i3d

writes i3d.json beside this file: the 400 features of one random clip. The weights are not stored:
`random_state` and `random_clip` draw the same numbers here and in the test, which imports this file
without PyTorch. The network itself is benchmarks/torch_i3d.py.
"""

import json
from pathlib import Path

import numpy as np

FILE = Path(__file__).parent / "i3d.json"
STEM = {
    "Conv3d_1a_7x7": (64, 3, 7),
    "Conv3d_2b_1x1": (64, 64, 1),
    "Conv3d_2c_3x3": (192, 64, 3),
}
"""Outputs, inputs and kernel of the units before the mixed blocks."""
MIXED = {
    "3b": (192, 64, 96, 128, 16, 32, 32),
    "3c": (256, 128, 128, 192, 32, 96, 64),
    "4b": (480, 192, 96, 208, 16, 48, 64),
    "4c": (512, 160, 112, 224, 24, 64, 64),
    "4d": (512, 128, 128, 256, 24, 64, 64),
    "4e": (512, 112, 144, 288, 32, 64, 64),
    "4f": (528, 256, 160, 320, 32, 128, 128),
    "5b": (832, 256, 160, 320, 32, 128, 128),
    "5c": (832, 384, 192, 384, 48, 128, 128),
}
"""Inputs of each mixed block, and outputs of its units b0, b1a, b1b, b2a, b2b, b3b."""


def unit_shapes() -> dict[str, tuple[int, int, int]]:
    """(outputs, inputs, kernel) of every unit, by the names of PyTorch's files."""
    shapes = dict(STEM)
    for name, (inputs, b0, b1a, b1b, b2a, b2b, b3b) in MIXED.items():
        units = {
            "b0": (b0, inputs, 1),
            "b1a": (b1a, inputs, 1),
            "b1b": (b1b, b1a, 3),
            "b2a": (b2a, inputs, 1),
            "b2b": (b2b, b2a, 3),
            "b3b": (b3b, inputs, 1),
        }
        shapes |= {f"Mixed_{name}.{unit}": shape for unit, shape in units.items()}
    return shapes


def _generator(key: int) -> np.random.RandomState:
    """Numbers that are the same with every version of NumPy."""
    return np.random.RandomState(np.random.Philox(key=key))


def random_state() -> dict[str, np.ndarray]:
    """A state dict of the network with gains that are not ones."""
    generator = _generator(3)
    state: dict[str, np.ndarray] = {}
    for name, (outputs, inputs, size) in unit_shapes().items():
        deviation = np.sqrt(2 / (inputs * size**3))
        state[f"{name}.conv3d.weight"] = generator.normal(
            0, deviation, (outputs, inputs, size, size, size)
        )
        state[f"{name}.bn.weight"] = generator.uniform(0.8, 1.2, outputs)
        state[f"{name}.bn.bias"] = generator.normal(0, 0.1, outputs)
        state[f"{name}.bn.running_mean"] = generator.normal(0, 0.1, outputs)
        state[f"{name}.bn.running_var"] = generator.uniform(0.5, 1.5, outputs)
    state["logits.conv3d.weight"] = generator.normal(0, 1 / 32, (400, 1024, 1, 1, 1))
    state["logits.conv3d.bias"] = generator.normal(0, 1, 400)
    return {name: array.astype(np.float32) for name, array in state.items()}


def random_clip() -> np.ndarray:
    """uint8 [1, 11, 40, 36, 3]; sides and frames for which paddings are uneven."""
    return _generator(4).randint(0, 256, (1, 11, 40, 36, 3)).astype(np.uint8)


def main() -> None:
    import torch

    from benchmarks.torch_i3d import features

    state = {name: torch.from_numpy(array) for name, array in random_state().items()}
    found = features(state, random_clip())[0]
    recorded = {"torch": torch.__version__, "features": [round(float(x), 6) for x in found]}
    FILE.write_text(json.dumps(recorded) + "\n")


if __name__ == "__main__":
    main()
