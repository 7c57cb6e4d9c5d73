#!/usr/bin/env python3
"""Times PyTorch's batch normalization under the identifiers of `cargo bench --bench cpu` and `cuda`.

    python benches/peers/torch_bn.py --device cpu --output torch-cpu.json
    python benches/peers/torch_bn.py --device cuda --output torch-cuda.json

An identifier is <pass>/<layout>/<dtype>/<extents>/<epilogue>/<config>. What stands behind each part:

train_forward   CPU: aten.native_batch_norm.out: output, saved mean and invstd are preallocated; the
                running statistics are updated. CUDA: aten._batch_norm_impl_index, which is what
                torch.nn.functional.batch_norm calls.
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
config          the number of threads (`1t`, `2t`); on CUDA `gpu`, calls on tensors that take turns so
                that the L2 does not hold them, `gpu-in-cache`, the same tensors each time, and
                `gpu-graph`, replayed from a CUDA graph.

On CUDA the identifiers are those of gpu-ids.txt beside this file, and there are three ways, a peer each
in the output: `native` (PyTorch's own kernels), `cudnn`, and `compile` (torch.compile of
torch.nn.functional.batch_norm with what follows it; backward is what autograd made of it). What PyTorch
does not do in a way is under `refused`. Time is the device's, by events. Outputs come from the caching
allocator; each set of tensors keeps its own, so that they take turns too. `--step` also times whole
training steps of ResNet-50. Compiling takes some seconds for each shape: `--ways native,cudnn` does
without.

Needs Python 3.9 and PyTorch 2.5, where CUDA devices first tell the size of their L2; it has been tried
with 2.15 only.

Times include the call from Python and PyTorch's dispatcher; `call_overhead_ns` in the output is what
they cost on a tensor of two elements, and is much of what is seen on 128x100.

Measure on an idle machine: a second process on the same cores makes PyTorch's threads wait for each
other by whole scheduler ticks. `foreign_cpu_share` in the output is what other processes used meanwhile,
as a share of one core.
"""

import argparse
import contextlib
import ctypes
import functools
import itertools
import json
import math
import os
import platform
import re
import resource
import statistics
import sys
import time

import torch

import torch_resnet

SHAPES = [
    "32x64x112x112", "32x256x56x56", "32x512x28x28", "32x1024x14x14",
    "32x2048x7x7", "8x64x56x56", "4096x1024", "128x100",
]
WAYS = {"eager": "PyTorch", "native": "PyTorch native", "cudnn": "PyTorch cuDNN", "compile": "PyTorch compile"}
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


class Refused(Exception):
    """PyTorch does not do it in this way."""


class Case:
    """The tensors of one shape, layout and element type, and the calls to time on them."""

    def __init__(self, device, layout, dtype, extents, way):
        self.shape = [int(extent) for extent in extents.split("x")]
        self.device = device
        self.way = way
        self.dtype = DTYPES[dtype]
        self.format = torch.contiguous_format
        if layout == "channels-last" and len(self.shape) > 3:
            self.format = torch.channels_last if len(self.shape) == 4 else torch.channels_last_3d
        channels = self.shape[1]
        param = torch.float64 if dtype == "f64" else torch.float32
        vector = lambda value: torch.full((channels,), value, dtype=param, device=device)
        self.weight, self.bias = vector(1.5), vector(0.25)
        self.running_mean, self.running_var = vector(0.0), vector(1.0)
        self.mean, self.invstd = vector(0.0), vector(1.0)
        self.reserve, self.impl, self.dx = None, None, None
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
            return
        self.y = None
        with_cudnn = self.way == "cudnn"
        # Newer versions do not read the last argument: `measure_way` sets the flag that decides.
        self.y, self.mean, self.invstd, self.reserve, self.impl = aten._batch_norm_impl_index(
            self.x, *stats, training, MOMENTUM, EPS, with_cudnn)
        if with_cudnn != (self.impl == 1):
            raise Refused(f"PyTorch takes implementation {self.impl} for it")

    def differentiate(self, dy):
        """On the CPU dx is dropped at once, so that the next call finds its memory free."""
        stats = (self.running_mean, self.running_var, self.mean, self.invstd, True, EPS, [True] * 3)
        if self.device == "cpu":
            aten.native_batch_norm_backward(dy, self.x, self.weight, *stats)
        else:
            self.dx = None
            self.dx = aten._batch_norm_impl_index_backward(
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
        """The function to time; what it needs has been done."""
        if pass_ == "copy":
            return lambda: self.y.copy_(self.x)
        if self.way == "compile":
            return self.compiled_call(pass_, epilogue)
        if pass_ == "train_forward":
            return lambda: self.forward(True, epilogue)
        if pass_ == "inference":
            return lambda: self.forward(False, epilogue)
        self.forward(True, epilogue)
        return lambda: self.backward(epilogue)

    def compiled_call(self, pass_, epilogue):
        function = compiled(epilogue, pass_ != "inference")
        inputs = (self.x, self.residual, self.weight, self.bias, self.running_mean, self.running_var)
        if pass_ == "inference":
            def infer():
                with torch.no_grad():
                    self.y = None
                    self.y = function(*inputs)
            return infer
        wanted = [self.x, self.weight, self.bias] + ([self.residual] if epilogue == "add_relu" else [])
        for tensor in wanted:
            tensor.requires_grad_(True)

        def forward():
            self.y = None
            self.y = function(*inputs)

        def backward():
            self.dx = None
            self.dx = torch.autograd.grad(self.y, wanted, self.dy, retain_graph=True)
        if pass_ == "train_forward":
            return forward
        forward()
        return backward


@functools.cache
def compiled(epilogue, training):
    """One function for all shapes; each is compiled for itself."""
    def normalize(x, residual, weight, bias, running_mean, running_var):
        y = torch.nn.functional.batch_norm(
            x, running_mean, running_var, weight, bias, training, MOMENTUM, EPS)
        if epilogue == "add_relu":
            y = y + residual
        return torch.relu(y) if epilogue != "none" else y
    return torch.compile(normalize, dynamic=False)


def clock_cpu(calls, inner):
    """Time of the next `inner` calls."""
    start = time.perf_counter_ns()
    for call in itertools.islice(calls, inner):
        call()
    return (time.perf_counter_ns() - start) / inner


def clock_cuda(calls, inner):
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    for call in itertools.islice(calls, inner):
        call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) * 1e6 / inner


def graph_of(calls):
    """The calls as one, and how many they are."""
    for call in calls[:3]:
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    return graph.replay, len(calls)


def tensor_bytes(extents, dtype):
    elements = math.prod(int(extent) for extent in extents.split("x"))
    return elements * torch.empty((), dtype=DTYPES[dtype]).element_size()


def l2_bytes():
    return torch.cuda.get_device_properties(0).L2_cache_size


def sets_of(extents, dtype):
    """How many copies of the tensors take turns: as benches/cuda/sampling.rs has it."""
    tensor = tensor_bytes(extents, dtype)
    # What the allocator keeps of other shapes counts as taken.
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info()
    others = -(-3 * l2_bytes() // (2 * tensor))
    # x, dy, residual, y, what of dy ReLU lets pass, dx, and the step in f32 from which they come.
    return max(1, min(others + 1, 2048, int(0.6 * free) // (8 * tensor)))


def is_measured(way, pass_, dtype, extents, config):
    """Leaves out what benches/cuda leaves out, and copies but once."""
    if config == "gpu-in-cache":
        moved = 3 if pass_ == "train_backward" else 2
        if moved * tensor_bytes(extents, dtype) > l2_bytes() // 4:
            return False
    # What autograd does with a capture is another matter.
    if (way, config) == ("compile", "gpu-graph"):
        return False
    return pass_ != "copy" or way in ("eager", "native")


def measure(calls, device, seconds, least):
    """Medians of time and of page faults per call, of at least `least` samples over about `seconds`.

    The calls do the same on different tensors, and take turns."""
    clock = clock_cpu if device == "cpu" else clock_cuda
    # A sample goes on where the last one ended, or a slow call would never come to most tensors.
    turns = itertools.cycle(calls)
    for _ in range(3):
        once = clock(turns, len(calls) if device == "cuda" else 1)
    inner = max(1, round((2e6 if device == "cpu" else 1e7) / once))
    clock(turns, inner)
    samples, faults = [], []
    stop = time.perf_counter() + seconds
    while len(samples) < least or time.perf_counter() < stop:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        samples.append(clock(turns, inner))
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
    case = Case(device, "channels-last", "f32", "2x1", "eager" if device == "cpu" else "native")
    with torch.backends.cudnn.flags(enabled=False):
        return {pass_: round(measure([case.call(pass_, "none")], device, 0.1, 5)[0]) for pass_ in PASSES}


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
        if not 2 <= len(parts) <= 5 or not all(part.isdigit() and int(part) > 0 for part in parts):
            raise argparse.ArgumentTypeError(f"{item!r} is no shape; expected such as NxC or NxCxHxW")
    return items


def pattern(text):
    try:
        return re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"{text!r}: {error}")


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
    parser.add_argument("--shapes", type=extents_list, help="default: all of the project")
    parser.add_argument("--passes", type=listed(PASSES), default=PASSES)
    parser.add_argument("--layouts", type=listed(LAYOUTS), default=LAYOUTS)
    parser.add_argument("--dtypes", type=listed(DTYPES), default=list(DTYPES))
    parser.add_argument("--epilogues", type=listed(EPILOGUES), default=EPILOGUES)
    parser.add_argument("--threads", type=thread_counts, default=[1, 2], help="CPU only (default: 1,2)")
    parser.add_argument(
        "--ways", type=listed(WAYS), help="default: eager on the CPU; native, cudnn and compile on CUDA")
    parser.add_argument("--step", action="store_true", help="also time training steps of ResNet-50; CUDA only")
    parser.add_argument(
        "--filter", type=pattern, default="", help="only identifiers in which this regular expression is found")
    parser.add_argument(
        "--keep", action="store_true", help="what FILE.json holds and is not measured again stays in it")
    parser.add_argument("--full", action="store_true", help="CPU only: every element type and epilogue on every shape")
    parser.add_argument("--quick", action="store_true", help="a few repetitions: to try the script, not to quote")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch.cuda.is_available() is False here")
    if args.device == "cpu" and max(args.threads) > (os.cpu_count() or 1):
        parser.error(f"--threads {max(args.threads)}: this machine has {os.cpu_count()} cores")
    args.ways = args.ways or (["eager"] if args.device == "cpu" else ["native", "cudnn", "compile"])
    if args.device == "cpu" and not {"eager", "compile"}.issuperset(args.ways):
        parser.error("--ways: the CPU has eager and compile")
    return args


def identifiers(args):
    """What is to be measured, taken apart; what shares tensors side by side."""
    if args.device == "cuda":
        with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "gpu-ids.txt")) as lines:
            ids = [line.strip().split("/") for line in lines]
        return [
            id_ for id_ in ids
            if id_[0] in args.passes and id_[1] in args.layouts and id_[2] in args.dtypes
            and (args.shapes is None or id_[3] in args.shapes) and id_[4] in args.epilogues
        ]
    configs = [f"{count}t" for count in args.threads]
    groups = itertools.product(args.shapes or SHAPES, args.layouts, args.dtypes)
    return [
        [pass_, layout, dtype, extents, epilogue, config]
        for extents, layout, dtype in groups
        for pass_, epilogue, config in itertools.product(args.passes, args.epilogues, configs)
        if wanted(pass_, layout, dtype, extents, epilogue, args.full)
    ]


def run(args, way, found, save):
    """Adds one way's results to `found`, and what it refuses; saved as they come."""
    seconds, least = (0.02, 3) if args.quick else (1.0, 15) if args.device == "cpu" else (0.1, 10)
    shares_tensors = lambda id_: (*id_[1:4], id_[4])
    for (layout, dtype, extents, _), ids in itertools.groupby(identifiers(args), shares_tensors):
        cases = []
        for pass_, _, _, _, epilogue, config in ids:
            id_ = f"{pass_}/{layout}/{dtype}/{extents}/{epilogue}/{config}"
            if not args.filter.search(id_) or not is_measured(way, pass_, dtype, extents, config):
                continue
            try:
                if not cases:
                    count = 1 if args.device == "cpu" else sets_of(extents, dtype)
                    cases = [Case(args.device, layout, dtype, extents, way) for _ in range(count)]
                median, faults = measure_one(cases, args.device, pass_, epilogue, config, seconds, least)
            # Compilers fail in many ways, and none of them is to end the rest.
            except Exception as error:
                found["refused"][id_] = reason(error)
                print(f"{id_:60} not supported: {found['refused'][id_]}", file=sys.stderr)
                save()
                require_device(args.device)
                continue
            print(f"{id_:60} {median / 1e3:12.2f} us", file=sys.stderr)
            expected = 0.1 * cases[0].x.nbytes + resource.getpagesize()
            if args.device == "cpu" and faults * resource.getpagesize() > expected:
                print(f"warning: {id_}: {faults:.0f} page faults a call; its memory was not warm", file=sys.stderr)
            found["results"].append({"id": id_, "median_ns": round(median, 1)})
        save()


def reason(error):
    """Its first line."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def require_device(device):
    """Ends the program where an error has taken the device away: all else would fail of that."""
    if device == "cuda":
        try:
            torch.cuda.synchronize()
        except RuntimeError as error:
            sys.exit(f"the device is lost, and the rest is not measured: {reason(error)}")


def measure_one(cases, device, pass_, epilogue, config, seconds, least):
    if device == "cpu":
        torch.set_num_threads(int(config[:-1]))
    if config == "gpu-in-cache":
        cases = cases[:1]
    calls = [case.call(pass_, epilogue) for case in cases]
    if config != "gpu-graph":
        return measure(calls, device, seconds, least)
    replay, count = graph_of(calls)
    median, faults = measure([replay], device, seconds, least)
    return median / count, faults


def measure_way(args, way, found, save):
    """Fills a way's object in the output."""
    load = ForeignLoad()

    def save_with_load():
        found["foreign_cpu_share"] = load.share()
        save()

    # Autograd is part of what torch.compile compiles.
    mode = contextlib.nullcontext() if way == "compile" else torch.inference_mode()
    with mode, torch.backends.cudnn.flags(enabled=way != "native"):
        run(args, way, found, save_with_load)
    share = load.share()
    if share is not None and share > 0.05:
        print(f"warning: other processes used {share:.0%} of a core; measure again", file=sys.stderr)
    if args.step and args.device == "cuda":
        torch.cuda.empty_cache()
        for batch, outcome in torch_resnet.step_times(way):
            if isinstance(outcome, Exception):
                found["refused"][f"step/{batch}"] = reason(outcome)
                print(f"{WAYS[way]}: no step at N = {batch}: {reason(outcome)}", file=sys.stderr)
                require_device(args.device)
            else:
                found["resnet50_step_ns"][str(batch)] = outcome
            save()


def compile_every_shape():
    """By default eager calls silently take over after some hundred shapes."""
    from torch._dynamo import config as dynamo
    from torch._functorch import config as functorch
    # By the names of all versions: each knows some, and refuses the others.
    for limit in "recompile_limit", "accumulated_recompile_limit", "cache_size_limit", "accumulated_cache_size_limit":
        set_known(dynamo, limit, 1 << 16)
    for fails in "fail_on_recompile_limit_hit", "fail_on_cache_limit_hit":
        set_known(dynamo, fails, True)
    # The same graph is differentiated again and again.
    set_known(functorch, "donated_buffer", False)


def set_known(config, name, value):
    if hasattr(config, name):
        setattr(config, name, value)


def read(path):
    """The peers of an earlier run; none where there was none."""
    if not os.path.exists(path):
        return []
    with open(path) as file:
        found = json.load(file)
    return found if isinstance(found, list) else [found]


def merged(before, now):
    """Both runs' peers: what is new replaces what was there of an identifier, on the same device."""
    peers = {peer["peer"]: peer for peer in before}
    for new in now:
        old = peers.get(new["peer"])
        if old is None or old["device"] != new["device"]:
            peers[new["peer"]] = new
            continue
        steps = lambda peer: {f"step/{batch}": batch for batch in peer["resnet50_step_ns"]}
        measured = {result["id"] for result in new["results"]} | steps(new).keys()
        again = measured | new["refused"].keys()
        results = [result for result in old["results"] if result["id"] not in again]
        refused = {id_: reason for id_, reason in old["refused"].items() if id_ not in measured}
        peers[new["peer"]] = {
            **new,
            "results": results + new["results"],
            "refused": refused | new["refused"],
            "resnet50_step_ns": {
                batch: old["resnet50_step_ns"][batch] for id_, batch in steps(old).items() if id_ not in again
            } | new["resnet50_step_ns"],
        }
    return list(peers.values())


def write(path, peers):
    """All of it or nothing: a run may be ended at any time."""
    with open(path + ".unfinished", "w") as file:
        json.dump(peers[0] if len(peers) == 1 else peers, file, indent=1)
        file.write("\n")
    os.replace(path + ".unfinished", path)


def main():
    args = arguments()
    keep_freed_memory()
    if "compile" in args.ways:
        compile_every_shape()
    torch.manual_seed(1)
    with torch.inference_mode():
        if args.device == "cpu":
            torch.set_num_threads(1)
        overhead = call_overhead(args.device)
    before = read(args.output) if args.keep else []
    peers = []
    for way in args.ways:
        peers.append({
            "peer": WAYS[way], "device": device_name(args.device), "versions": versions(args.device),
            "call_overhead_ns": overhead, "foreign_cpu_share": None,
            "results": [], "refused": {}, "resnet50_step_ns": {},
        })
        measure_way(args, way, peers[-1], lambda: write(args.output, merged(before, peers)))
    if not any(found["results"] or found["resnet50_step_ns"] for found in peers):
        sys.exit("nothing measured: no identifier matches the options given")


if __name__ == "__main__":
    main()
