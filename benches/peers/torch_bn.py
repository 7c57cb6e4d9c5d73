#!/usr/bin/env python3
"""Times PyTorch's batch normalization under the identifiers of `cargo bench --bench cpu`.

    python benches/peers/torch_bn.py --device cpu --output torch-cpu.json

An identifier is <pass>/<layout>/<dtype>/<extents>/<epilogue>/<config>. What stands behind each part:

train_forward   CPU: aten.native_batch_norm.out: output, saved mean and invstd are preallocated; the
                running statistics are updated. CUDA: aten._batch_norm_impl_index, which picks cuDNN
                or the native kernels as torch.nn.functional.batch_norm does.
train_backward  CPU: aten.native_batch_norm_backward. Its .out overload computes into a fresh tensor
                and copies that, so the functional overload is the faster one and is the one timed;
                `keep_freed_memory` sees to it that what it allocates is warm.
                CUDA: aten._batch_norm_impl_index_backward.
inference       as train_forward, with training=False.
copy            Tensor.copy_ of the same bytes.
epilogue        Eager PyTorch fuses nothing into batch norm: `relu` adds Tensor.relu_, `add_relu`
                Tensor.add_ and Tensor.relu_, each a pass over memory of its own. Backward,
                aten.threshold_backward comes first (for add_relu its result is the residual's gradient).
layout          channels-last is torch.channels_last; a 2-D [N, C] tensor counts as channels-last.
dtype           parameters and statistics are f32, f64 for f64, as in the Rust library.
config          the number of threads (`1t`, `2t`), or `gpu`.

On CUDA the caching allocator hands every call the same block: no output is preallocated, none is cold.
Times include the call from Python and PyTorch's dispatcher; `call_overhead_ns` in the output is what
they cost on a tensor of two elements, and is much of what is seen on 128x100.

Measure on an idle machine: a second process on the same cores makes PyTorch's threads wait for each
other by whole scheduler ticks. `foreign_cpu_share` in the output is what other processes used meanwhile,
as a share of one core.
"""

import argparse
import ctypes
import itertools
import json
import os
import platform
import resource
import statistics
import sys
import time

import torch

SHAPES = [
    "32x64x112x112", "32x256x56x56", "32x512x28x28", "32x1024x14x14",
    "32x2048x7x7", "8x64x56x56", "4096x1024", "128x100",
]
PASSES = ["train_forward", "train_backward", "inference", "copy"]
LAYOUTS = ["channels-first", "channels-last"]
DTYPES = {"f32": torch.float32, "f64": torch.float64, "f16": torch.float16, "bf16": torch.bfloat16}
EPILOGUES = ["none", "relu", "add_relu"]

# Other element types and epilogues are measured on these, unless --full asks for the whole product.
SAMPLED_SHAPES = {"32x256x56x56", "4096x1024"}

EPS = 1e-5
MOMENTUM = 0.1
aten = torch.ops.aten


def wanted(pass_, layout, dtype, extents, epilogue, full):
    """Whether the combination is one of those measured: the same choice as benches/cpu.rs makes."""
    if extents.count("x") == 1 and layout == "channels-first":
        return False
    if pass_ == "copy" and epilogue != "none":
        return False
    plain = dtype == "f32" and epilogue == "none"
    sampled = extents in SAMPLED_SHAPES and (dtype == "f32" or epilogue == "none")
    return full or plain or sampled


class Case:
    """The tensors of one shape, layout and element type, and the calls to time on them."""

    def __init__(self, device, layout, dtype, extents):
        self.shape = [int(extent) for extent in extents.split("x")]
        self.device = device
        self.dtype = DTYPES[dtype]
        self.format = torch.contiguous_format
        if layout == "channels-last" and len(self.shape) == 4:
            self.format = torch.channels_last
        channels = self.shape[1]
        param = torch.float64 if dtype == "f64" else torch.float32
        vector = lambda value: torch.full((channels,), value, dtype=param, device=device)
        self.weight, self.bias = vector(1.5), vector(0.25)
        self.running_mean, self.running_var = vector(0.0), vector(1.0)
        self.mean, self.invstd = vector(0.0), vector(1.0)
        self.reserve, self.impl = None, None
        self.x, self.dy, self.residual = self.random(), self.random(), self.random()
        self.y, self.masked = self.random(), self.random()

    def random(self):
        values = torch.randn(self.shape, dtype=torch.float32, device=self.device).to(self.dtype)
        return values.to(memory_format=self.format)

    def normalize(self, training):
        stats = (self.weight, self.bias, self.running_mean, self.running_var)
        if self.device == "cpu":
            aten.native_batch_norm.out(
                self.x, *stats, training, MOMENTUM, EPS,
                out=self.y, save_mean=self.mean, save_invstd=self.invstd)
        else:
            self.y = None
            self.y, self.mean, self.invstd, self.reserve, self.impl = aten._batch_norm_impl_index(
                self.x, *stats, training, MOMENTUM, EPS, True)

    def differentiate(self, dy):
        """Returns nothing: dx is dropped at once, so that the next call finds its memory free."""
        stats = (self.running_mean, self.running_var, self.mean, self.invstd, True, EPS, [True] * 3)
        if self.device == "cpu":
            aten.native_batch_norm_backward(dy, self.x, self.weight, *stats)
        else:
            aten._batch_norm_impl_index_backward(
                self.impl, self.x, dy, self.weight, *stats, self.reserve)

    def forward(self, training, epilogue):
        self.normalize(training)
        if epilogue == "add_relu":
            self.y.add_(self.residual)
        if epilogue != "none":
            self.y.relu_()

    def backward(self, epilogue):
        dy = self.dy
        if epilogue != "none":
            aten.threshold_backward.grad_input(dy, self.y, 0, grad_input=self.masked)
            dy = self.masked
        self.differentiate(dy)

    def call(self, pass_, epilogue):
        if pass_ == "copy":
            return lambda: self.y.copy_(self.x)
        if pass_ == "train_forward":
            return lambda: self.forward(True, epilogue)
        if pass_ == "inference":
            return lambda: self.forward(False, epilogue)
        self.forward(True, epilogue)
        return lambda: self.backward(epilogue)


def clock_cpu(call, inner):
    start = time.perf_counter_ns()
    for _ in range(inner):
        call()
    return (time.perf_counter_ns() - start) / inner


def clock_cuda(call, inner):
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    for _ in range(inner):
        call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) * 1e6 / inner


def measure(call, device, seconds, least):
    """Medians of time and of page faults per call, of at least `least` samples over about `seconds`."""
    clock = clock_cpu if device == "cpu" else clock_cuda
    for _ in range(3):
        once = clock(call, 1)
    inner = max(1, round(2e6 / once))
    clock(call, inner)
    samples, faults = [], []
    stop = time.perf_counter() + seconds
    while len(samples) < least or time.perf_counter() < stop:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        samples.append(clock(call, inner))
        faults.append((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / inner)
    return statistics.median(samples), statistics.median(faults)


class ForeignLoad:
    """What other processes use of the machine's cores, from Linux's /proc/stat; None elsewhere."""

    def __init__(self):
        self.start, self.used = time.perf_counter(), self.foreign_seconds()

    @staticmethod
    def foreign_seconds():
        try:
            with open("/proc/stat") as lines:
                user, nice, system, _, _, irq, softirq, steal = map(int, lines.readline().split()[1:9])
        except (OSError, ValueError):
            return None
        everyone = (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
        return everyone - time.process_time()

    def share(self):
        if self.used is None:
            return None
        return round((self.foreign_seconds() - self.used) / (time.perf_counter() - self.start), 3)


def keep_freed_memory():
    """Makes glibc keep freed tensors instead of unmapping them: what a call allocates is then warm."""
    m_trim_threshold, m_mmap_max = -1, -4
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        print("warning: no mallopt here; backward's outputs may be cold pages", file=sys.stderr)
        return
    if not (mallopt(m_mmap_max, 0) and mallopt(m_trim_threshold, -1)):
        print("warning: mallopt refused; backward's outputs may be cold pages", file=sys.stderr)


def call_overhead(device):
    """Time of each pass on [2, 1]: interpreter, dispatcher and (CUDA) launch, but no work."""
    case = Case(device, "channels-last", "f32", "2x1")
    return {pass_: round(measure(case.call(pass_, "none"), device, 0.1, 5)[0]) for pass_ in PASSES}


def device_name(device):
    if device == "cuda":
        return torch.cuda.get_device_name()
    try:
        with open("/proc/cpuinfo") as lines:
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def versions(device):
    found = {"torch": torch.__version__, "python": platform.python_version()}
    if device == "cuda":
        found["cuda"] = torch.version.cuda
        found["cudnn"] = str(torch.backends.cudnn.version())
    else:
        found["cpu_capability"] = torch.backends.cpu.get_cpu_capability()
    return found


def listed(allowed):
    def parse(text):
        items = text.split(",")
        unknown = [item for item in items if item not in allowed]
        if unknown:
            raise argparse.ArgumentTypeError(f"unknown {unknown[0]!r}; expected some of {','.join(allowed)}")
        return items
    return parse


def extents_list(text):
    items = text.split(",")
    for item in items:
        parts = item.split("x")
        if len(parts) not in (2, 4) or not all(part.isdigit() and int(part) > 0 for part in parts):
            raise argparse.ArgumentTypeError(f"{item!r} is no shape; expected NxC or NxCxHxW")
    return items


def thread_counts(text):
    items = text.split(",")
    if not all(item.isdigit() and int(item) > 0 for item in items):
        raise argparse.ArgumentTypeError(f"{text!r}; expected thread counts such as 1,2")
    return [int(item) for item in items]


def arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], required=True)
    parser.add_argument("--output", required=True, metavar="FILE.json")
    parser.add_argument("--shapes", type=extents_list, default=SHAPES, help="default: the eight of the project")
    parser.add_argument("--passes", type=listed(PASSES), default=PASSES)
    parser.add_argument("--layouts", type=listed(LAYOUTS), default=LAYOUTS)
    parser.add_argument("--dtypes", type=listed(DTYPES), default=list(DTYPES))
    parser.add_argument("--epilogues", type=listed(EPILOGUES), default=EPILOGUES)
    parser.add_argument("--threads", type=thread_counts, default=[1, 2], help="CPU only (default: 1,2)")
    parser.add_argument("--filter", default="", help="only identifiers that contain this text")
    parser.add_argument("--full", action="store_true", help="every element type and epilogue on every shape")
    parser.add_argument("--quick", action="store_true", help="a few repetitions: to try the script, not to quote")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch.cuda.is_available() is False here")
    if args.device == "cpu" and max(args.threads) > (os.cpu_count() or 1):
        parser.error(f"--threads {max(args.threads)}: this machine has {os.cpu_count()} cores")
    return args


def run(args):
    configs = ["gpu"] if args.device == "cuda" else [f"{count}t" for count in args.threads]
    seconds, least = (0.02, 3) if args.quick else (1.0, 15)
    results = []
    for extents, layout, dtype in itertools.product(args.shapes, args.layouts, args.dtypes):
        case = None
        for pass_, epilogue, config in itertools.product(args.passes, args.epilogues, configs):
            id_ = f"{pass_}/{layout}/{dtype}/{extents}/{epilogue}/{config}"
            if args.filter not in id_ or not wanted(pass_, layout, dtype, extents, epilogue, args.full):
                continue
            case = case or Case(args.device, layout, dtype, extents)
            if config != "gpu":
                torch.set_num_threads(int(config[:-1]))
            try:
                median, faults = measure(case.call(pass_, epilogue), args.device, seconds, least)
            except (RuntimeError, NotImplementedError) as refused:
                print(f"{id_:60} not supported: {str(refused).splitlines()[0]}", file=sys.stderr)
                continue
            print(f"{id_:60} {median / 1e3:12.2f} us", file=sys.stderr)
            if faults * resource.getpagesize() > 0.1 * case.x.nbytes + resource.getpagesize():
                print(f"warning: {id_}: {faults:.0f} page faults a call; its memory was not warm", file=sys.stderr)
            results.append({"id": id_, "median_ns": round(median, 1)})
    return results


def main():
    args = arguments()
    keep_freed_memory()
    torch.manual_seed(1)
    with torch.inference_mode():
        if args.device == "cpu":
            torch.set_num_threads(1)
        overhead = call_overhead(args.device)
        load = ForeignLoad()
        results = run(args)
        share = load.share()
    if not results:
        sys.exit("nothing measured: no identifier matches the options given")
    report = {
        "peer": "PyTorch", "device": device_name(args.device), "versions": versions(args.device),
        "call_overhead_ns": overhead, "foreign_cpu_share": share, "results": results,
    }
    if share is not None and share > 0.05:
        print(f"warning: other processes used {share:.0%} of a core; measure again", file=sys.stderr)
    with open(args.output, "w") as file:
        json.dump(report, file, indent=1)
        file.write("\n")


if __name__ == "__main__":
    main()
