#!/usr/bin/env python3
"""Writes torch_checkpoint.safetensors: batch norms as PyTorch saves them, one for each element type.

    pip install torch safetensors
    python tests/suite/data/torch_checkpoint.py

The values are exact in every type, so that tests/suite/checkpoints.rs can spell them out.
"""

import pathlib

import torch
from safetensors.torch import save_file

CHANNELS = 3
model = torch.nn.ModuleDict()
for name, dtype in [("f32", torch.float32), ("f64", torch.float64), ("f16", torch.float16), ("bf16", torch.bfloat16)]:
    bn = torch.nn.BatchNorm2d(CHANNELS).to(dtype)
    channels = torch.arange(CHANNELS, dtype=dtype)
    with torch.no_grad():
        bn.weight.copy_(1 + channels / 4)
        bn.bias.copy_(-channels / 8)
    bn.running_mean.copy_(8 * channels - 3)
    bn.running_var.copy_(0.5 + channels)
    bn.num_batches_tracked.fill_(7)
    model[name] = bn
model["bare"] = torch.nn.BatchNorm1d(CHANNELS, affine=False)
save_file(model.state_dict(), pathlib.Path(__file__).with_name("torch_checkpoint.safetensors"))
