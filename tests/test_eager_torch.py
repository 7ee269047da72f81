"""Torch without its compiler: the same numbers, and the compiler as soon as it is asked for."""

import shutil
import subprocess
import sys

import pytest

OPTIMIZERS = ("SGD", "Adam", "AdamW", "Muon")
TRAIN = """
import sys, torch

def steps(rule):
    torch.manual_seed(0)
    layer = torch.nn.Linear(6, 3, bias=False)
    optimizer = getattr(torch.optim, rule)(layer.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        layer(torch.rand(5, 6)).square().sum().backward()
        optimizer.step()
    optimizer.load_state_dict(optimizer.state_dict())
    return [value.hex() for value in layer.weight.flatten().tolist()]
"""
WITHOUT = """
from nn_train.eager_torch import put_off_compiler
put_off_compiler()
"""
SHOW = f"""
for rule in {OPTIMIZERS}:
    print(rule, steps(rule))
print("torch._dynamo.eval_frame" in sys.modules)
"""
ASKED = """
steps("AdamW")
disabled = torch.optim.Optimizer.zero_grad.__wrapped__
assert disabled.__dynamo_disable is disabled
compiled = torch.compile(torch.nn.Linear(6, 3))
assert isinstance(compiled, torch._dynamo.eval_frame.OptimizedModule)
import torch._dynamo.utils
from torch._dynamo import graph_break
assert sys.modules["torch._dynamo"] is torch._dynamo and torch._dynamo.__spec__.origin.endswith(".py")
assert not hasattr(disabled, "__dynamo_disable")
print(compiled(torch.ones(2, 6)).shape, steps("AdamW"))
assert disabled.__dynamo_disable is not disabled
"""


def run(*parts: str) -> str:
    """What a program prints."""
    done = subprocess.run([sys.executable, "-c", "\n".join(parts)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_optimizers_do_the_same_to_the_bit_and_import_no_compiler() -> None:
    found, expected = run(WITHOUT, TRAIN, SHOW).splitlines(), run(TRAIN, SHOW).splitlines()
    assert found[:-1] == expected[:-1]
    assert len(found) == len(OPTIMIZERS) + 1
    assert (found[-1], expected[-1]) == ("False", "True")


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on the CPU")
def test_the_compiler_is_there_once_something_is_compiled() -> None:
    shape, _, weights = run(WITHOUT, TRAIN, ASKED).strip().partition("]) ")
    assert shape == "torch.Size([2, 3"
    assert weights == run(TRAIN, 'print(steps("AdamW"))').strip()


def test_a_function_of_somebody_elses_is_kept_from_the_compiler() -> None:
    code = """
@torch.compiler.disable()
def own(x):
    return x
assert own._torchdynamo_disable and own(1) == 1 and "torch._dynamo.eval_frame" in sys.modules
"""
    run("import sys, torch", WITHOUT, code)


def test_a_look_at_all_modules_while_torch_imports_what_the_compiler_needs_wakes_no_compiler() -> None:
    code = """
import torch.distributed.tensor, inspect
inspect.getmodule(object, "of no file")
assert "torch._dynamo.eval_frame" not in sys.modules
"""
    run("import sys, torch", WITHOUT, code)


def test_nothing_is_put_off_that_is_there_already() -> None:
    code = "import torch._dynamo, sys; there = torch._dynamo\n" + WITHOUT
    run(code + "assert torch._dynamo is there is sys.modules['torch._dynamo']")
