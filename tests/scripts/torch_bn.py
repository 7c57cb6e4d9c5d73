#!/usr/bin/env python3
"""What benches/peers/torch_bn.py asks of PyTorch's versions, with a PyTorch that only pretends."""

import importlib
import os
import sys
import types
from unittest import mock

PEERS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../benches/peers")


class Config(types.ModuleType):
    """Refuses what it does not know, as PyTorch's configurations do."""

    def __init__(self, name, *known):
        super().__init__(name)
        self.__dict__.update(dict.fromkeys(known))

    def __setattr__(self, name, value):
        if name not in self.__dict__:
            raise AttributeError(f"{self.__name__}.{name} does not exist")
        super().__setattr__(name, value)


def pretend(dynamo, functorch):
    """torch_bn.py beside a PyTorch whose configurations know these names."""
    configs = Config("torch._dynamo.config", *dynamo), Config("torch._functorch.config", *functorch)
    modules = {name: mock.MagicMock() for name in ("torch", "torch.nn", "torch._dynamo", "torch._functorch")}
    # Classes are derived from this one.
    modules["torch"].nn = modules["torch.nn"]
    modules["torch.nn"].Module = modules["torch.nn"].BatchNorm2d = object
    for config in configs:
        modules[config.__name__] = config
        modules[config.__name__.rpartition(".")[0]].config = config
    sys.modules.update(modules)
    for name in "torch_bn", "torch_resnet":
        sys.modules.pop(name, None)
    return importlib.import_module("torch_bn"), *configs


sys.path.insert(0, PEERS)
NEWER = ["recompile_limit", "accumulated_recompile_limit", "fail_on_recompile_limit_hit"]
OLDER = ["cache_size_limit", "accumulated_cache_size_limit", "fail_on_cache_limit_hit"]
for dynamo, functorch in (NEWER, ["donated_buffer"]), (OLDER, []), (NEWER + OLDER, ["donated_buffer"]):
    torch_bn, of_dynamo, of_functorch = pretend(dynamo, functorch)
    torch_bn.compile_every_shape()
    for limit in dynamo:
        expected = True if limit.startswith("fail") else 1 << 16
        assert getattr(of_dynamo, limit) == expected, limit
    assert all(getattr(of_functorch, name) is False for name in functorch)

# Ways that compile nothing do without the compiler.
torch_bn, *_ = pretend([], [])
options = ["torch_bn.py", "--device", "cuda", "--output", "/nowhere/out.json", "--ways"]
for ways, compiles in ("native,cudnn", False), ("native,compile", True):
    with mock.patch.object(sys, "argv", options + [ways]), \
            mock.patch.object(torch_bn, "compile_every_shape") as compile_every_shape, \
            mock.patch.object(torch_bn, "measure_way"), mock.patch.object(torch_bn, "call_overhead"), \
            mock.patch.object(torch_bn, "versions"), mock.patch.object(torch_bn, "keep_freed_memory"):
        try:
            torch_bn.main()
        except SystemExit as nothing:
            assert "nothing measured" in str(nothing), nothing
    assert compile_every_shape.called == compiles, ways
