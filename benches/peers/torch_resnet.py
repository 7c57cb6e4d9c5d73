"""A training step of ResNet-50 (He et al. 2016), to see what share of it batch normalization has.

The strides are in the first convolution of a block, as in the paper, so that the batch norms are those of
RESNET_50 in benches/shared/cases.rs. f16 by autocast, channels-last, with momentum SGD.
"""

import statistics

import torch
from torch import nn

BATCHES = [64, 256]
STAGES = [(64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)]


class NativeBatchNorm2d(nn.BatchNorm2d):
    """PyTorch's own kernels. Convolutions keep cuDNN, without which they would be all of the step."""

    def forward(self, x):
        with torch.backends.cudnn.flags(enabled=False):
            return super().forward(x)


def normalized(norm, inputs, outputs, size, stride=1):
    convolution = nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=False)
    return [convolution, norm(outputs)]


class Bottleneck(nn.Module):
    def __init__(self, norm, inputs, width, stride):
        super().__init__()
        self.body = nn.Sequential(
            *normalized(norm, inputs, width, 1, stride), nn.ReLU(inplace=True),
            *normalized(norm, width, width, 3), nn.ReLU(inplace=True),
            *normalized(norm, width, 4 * width, 1))
        changes = inputs != 4 * width
        shortcut = normalized(norm, inputs, 4 * width, 1, stride) if changes else [nn.Identity()]
        self.shortcut = nn.Sequential(*shortcut)

    def forward(self, x):
        return torch.relu_(self.body(x).add_(self.shortcut(x)))


def resnet50(norm):
    layers = [*normalized(norm, 3, 64, 7, 2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)]
    channels = 64
    for width, blocks, stride in STAGES:
        for block in range(blocks):
            layers.append(Bottleneck(norm, channels, width, stride if block == 0 else 1))
            channels = 4 * width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 1000))


def step_of(batch, device, way, size=224):
    """A function that makes one step."""
    norm = NativeBatchNorm2d if way == "native" else nn.BatchNorm2d
    model = resnet50(norm).to(device, memory_format=torch.channels_last).train()
    forward = torch.compile(model) if way == "compile" else model
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    images = torch.randn(batch, 3, size, size, device=device).to(memory_format=torch.channels_last)
    labels = torch.randint(1000, (batch,), device=device)

    def step():
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, torch.float16 if device == "cuda" else torch.bfloat16):
            loss = nn.functional.cross_entropy(forward(images), labels)
        loss.backward()
        optimizer.step()
    return step


def step_times(way):
    """For each batch the median of the device's time for a step, in nanoseconds, or what it failed of."""
    # The shapes are the same in every step: the fastest convolutions are looked for in the first.
    torch.backends.cudnn.benchmark = True
    for batch in BATCHES:
        try:
            outcome = step_time(step_of(batch, "cuda", way))
        except Exception as error:
            # Its traceback would keep the model.
            outcome = error.with_traceback(None)
        torch.cuda.empty_cache()
        yield batch, outcome


def step_time(step):
    for _ in range(5):
        step()
    samples = []
    for _ in range(10):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        step()
        end.record()
        end.synchronize()
        samples.append(start.elapsed_time(end) * 1e6)
    return round(statistics.median(samples))
