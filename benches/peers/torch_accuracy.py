#!/usr/bin/env python3
"""Scores PyTorch's own f32 batch normalization on the training cases of `replay`.

    python benches/peers/torch_accuracy.py [--cases tests/replay/cases/pytorch] [--output FILE.json]

What is scored are y and dx of torch.nn.functional.batch_norm on the CPU, on the f32 cases without a
residual and an activation: the largest error divided by the magnitude of its channel, as
tests/replay/README.md says. `cargo run --release -p replay -- tests/replay/cases` scores this crate.
"""

import argparse
import datetime
import json
import pathlib

import numpy as np
import torch


def score(got, expected, scale):
    error = np.abs(got.detach().double().numpy() - expected)
    channels = (1, -1) + (1,) * (error.ndim - 2)
    return float(np.max(error / scale.reshape(channels)))


def scores(folder, meta):
    load = lambda name: torch.from_numpy(np.load(folder / f"{name}.npy"))
    parameter = lambda name: load(name).float() if meta.get("affine", True) else None
    x = load("x").float().requires_grad_()
    y = torch.nn.functional.batch_norm(
        x, None, None, parameter("weight"), parameter("bias"), training=True, eps=meta["eps"])
    y.backward(load("dy").float())
    array = lambda name: np.load(folder / f"{name}.npy").astype(np.float64)
    return {
        "y": score(y, array("y"), array("scale_y")),
        "dx": score(x.grad, array("dx"), array("scale_dx")),
    }


def is_meant(folder, meta):
    plain = meta.get("activation") in (None, "none") and not meta.get("residual")
    wanted = meta.get("kind") == "single" and meta.get("mode") == "train" and meta.get("io_dtype") == "f32"
    finite = not meta.get("nonfinite_channels")
    return plain and wanted and finite and all((folder / f"{name}.npy").exists() for name in ("dy", "dx", "scale_dx"))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=pathlib.Path, default=pathlib.Path("tests/replay/cases/pytorch"))
    parser.add_argument("--output", type=pathlib.Path, metavar="FILE.json")
    args = parser.parse_args()
    cases = {}
    for folder in sorted(path.parent for path in args.cases.rglob("meta.json")):
        meta = json.loads((folder / "meta.json").read_text())
        if is_meant(folder, meta):
            cases[folder.name] = scores(folder, meta)
            print(f"{folder.name:32} y={cases[folder.name]['y']:.1e} dx={cases[folder.name]['dx']:.1e}")
    if args.output:
        versions = {"torch": torch.__version__, "cpu_capability": torch.backends.cpu.get_cpu_capability()}
        report = {"date": str(datetime.date.today()), "versions": versions, "cases": cases}
        args.output.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
