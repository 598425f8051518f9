"""Writes tests/golden/torch_save.pth with PyTorch itself; test_weight_files.py knows its content.

Needs PyTorch.

    python tests/interop/record_torch_file.py tests/golden/torch_save.pth
"""

import argparse
import collections
import sys

import torch


def main(path: str) -> None:
    big = torch.arange(60.0).reshape(6, 10)
    layer = torch.nn.Linear(3, 4)
    with torch.no_grad():
        layer.weight.copy_(torch.arange(12.0).reshape(4, 3))
        layer.bias.zero_()
    saved = {name: value.clone() for name, value in layer.state_dict().items()}
    optimizer = torch.optim.AdamW(layer.parameters())
    layer(torch.ones(2, 3)).sum().backward()
    optimizer.step()
    content = {
        "model": collections.OrderedDict(
            {"part.weight": torch.nn.Parameter(big.to(torch.bfloat16)), "n": big[0, 3]}
        ),
        "views": [big[1:3, ::4], big.t(), big[5], torch.empty(0, 4), torch.ones(1).expand(3, 2)],
        "types": {
            "half": big[0].half(),
            "double": big[0].double(),
            "long": big[0].long(),
            "int": big[0].int(),
            "short": big[0].short(),
            "char": big[0].char(),
            "byte": big[0].byte(),
            "bool": big[0] > 4,
        },
        "layer": saved,
        "optimizer": optimizer.state_dict(),
        "args": argparse.Namespace(
            rate=0.1, device=torch.device("cpu"), dtype=torch.float32, sizes=[1, (2, 3)]
        ),
        "epoch": 3,
        "scaler": {"scale": 1.0, "growth": None},
    }
    torch.save(content, path)


if __name__ == "__main__":
    main(sys.argv[1])
