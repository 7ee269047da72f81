"""Torch without its compiler, for a run that compiles nothing.

Every optimizer and DDP import `torch._dynamo` when they are made, to tell the compiler where not to look, and that
takes a process as long as `import torch`. A module in its place answers those calls, and is replaced by the real one at
any other wish.
"""

import sys
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import torch

NAME = "torch._dynamo"


class CompilerPutOff(ModuleType):
    """Stands for `torch._dynamo` until something is asked of it that eager torch does not ask."""

    def __init__(self) -> None:
        super().__init__(NAME)
        self._told: list[Callable[..., Any]] = []
        self._answers = {
            "disable": self._leave_alone,
            "graph_break": lambda msg="": None,
            "utils": SimpleNamespace(get_optimize_ddp_mode=lambda: "ddp_optimizer"),  # the compiler's default
            "trace_rules": SimpleNamespace(clear_lru_cache=lambda: None),
        }
        self.__dict__.update(self._answers)

    def _leave_alone(self, fn: Any = None, recursive: bool = True, *, wrapping: bool = True, **options: Any) -> Any:
        if wrapping or options:  # no call of torch's own functions, which keep the answer until it is taken back
            return self._give_way().disable(fn, recursive, wrapping=wrapping, **options)
        self._told.append(fn)
        return fn

    def __getattr__(self, name: str) -> Any:
        """What the compiler itself says, which is imported now.

        Not for what a look at all modules asks, as `inspect` does for a module's file: it may come while torch imports
        what the compiler needs. A package's path is asked for its submodules alone.
        """
        if name.startswith("__") and name != "__path__":
            raise AttributeError(name)
        return getattr(self._give_way(), name)

    def _give_way(self) -> Any:
        if sys.modules.get(NAME) is self:
            del sys.modules[NAME], torch._dynamo
            for answer in self._answers:
                delattr(self, answer)
            for fn in self._told:
                fn.__dict__.pop("__dynamo_disable", None)
        import torch._dynamo as compiler

        return compiler


def put_off_compiler() -> None:
    """Import `torch._dynamo` when something is to be compiled, and not with the first optimizer."""
    if NAME not in sys.modules:
        sys.modules[NAME] = torch._dynamo = CompilerPutOff()
