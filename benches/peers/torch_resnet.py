"""A training step of ResNet-50 (He et al. 2016), to see what share of it batch normalization has.

The strides are in the first convolution of a block, as in the paper, so that the batch norms are those of
RESNET_50 in benches/shared/cases.rs. f16 by autocast, channels-last, with momentum SGD.
"""

import statistics

import torch
from torch import nn

BATCHES = [64, 256]
STAGES = [(64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)]


def normalized(inputs, outputs, size, stride=1):
    convolution = nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=False)
    return [convolution, nn.BatchNorm2d(outputs)]


class Bottleneck(nn.Module):
    def __init__(self, inputs, width, stride):
        super().__init__()
        self.body = nn.Sequential(
            *normalized(inputs, width, 1, stride), nn.ReLU(inplace=True),
            *normalized(width, width, 3), nn.ReLU(inplace=True),
            *normalized(width, 4 * width, 1))
        changes = inputs != 4 * width
        self.shortcut = nn.Sequential(*normalized(inputs, 4 * width, 1, stride)) if changes else nn.Identity()

    def forward(self, x):
        return torch.relu_(self.body(x).add_(self.shortcut(x)))


def resnet50():
    layers = [*normalized(3, 64, 7, 2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)]
    channels = 64
    for width, blocks, stride in STAGES:
        for block in range(blocks):
            layers.append(Bottleneck(channels, width, stride if block == 0 else 1))
            channels = 4 * width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 1000))


def step_of(batch, device, compiled, size=224):
    """A function that makes one step."""
    model = resnet50().to(device, memory_format=torch.channels_last).train()
    forward = torch.compile(model) if compiled else model
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


def step_times(compiled):
    """Medians of the device's time for a step, by batch, in nanoseconds."""
    found = {}
    for batch in BATCHES:
        try:
            step = step_of(batch, "cuda", compiled)
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
        except torch.OutOfMemoryError:
            continue
        finally:
            torch.cuda.empty_cache()
        found[batch] = round(statistics.median(samples))
    return found
