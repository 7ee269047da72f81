"""Tensors of simulated GPUs: computed by the CPU's kernels, and kept apart from the host's.

An operation that mixes them with tensors of the host fails as it would on a GPU, and what crosses between the two is
noted: by what a copy is told, and whether its memory is pinned, the host waits for it or does not. So it can be
checked without a GPU that all tensors of a step are on its device, that no number depends on where they are, and where
the host waits. Processes that have one each train together over gloo. Not simulated: kernels and the order of their
sums, streams, the compiler, NCCL, speed.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

aten = torch.ops.aten
c10d = torch.ops.c10d
CPU = torch.device("cpu")
PROJECT = "nn_train"
BY_INDEX = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_}
# they return a number to the host, or tensors whose size the device alone knows
WAITING = {aten._local_scalar_dense, aten._unique2, aten.bincount, aten.equal, aten.masked_select, aten.nonzero,
           aten.unique_consecutive, aten.unique_dim}  # fmt: skip
LIBRARY = torch.library.Library("_", "IMPL")
listeners: list[Callable[[str], Any]] = []  # who wants to hear of crossings, each a line of JSON
refused: list[torch.dtype] = []


class OnGpu(Tensor):
    """A tensor of a simulated GPU; `held` has its values."""

    held: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held: Tensor, device: torch.device) -> "OnGpu":
        """Around a tensor of the host."""
        if held.dtype in refused:
            raise TypeError(f"the device has no {held.dtype}")
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=device,
        )
        made.held = held
        return made

    def __tensor_flatten__(self) -> tuple[list[str], torch.device]:
        """So torch knows that a network's weights cannot become this by a change of their memory alone."""
        return ["held"], self.device

    @staticmethod
    def __tensor_unflatten__(inner: dict[str, Tensor], device: torch.device, *_: Any) -> "OnGpu":
        """The other way."""
        return OnGpu(inner["held"], device)

    def tolist(self) -> Any:
        """Read its values: torch does that for tensors of its own class alone."""
        return self.cpu().tolist()

    def __repr__(self) -> str:
        """Its values."""
        return f"OnGpu({self.held!r})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """What torch does with such a tensor."""
        return operate(func, *args, **kwargs or {})


def operate(func: Any, *args: Any, **options: Any) -> Any:
    """Do what torch does on the device."""
    if func is aten._to_copy.default:
        return _copied(args[0], **options)
    if func is aten.copy_.default:
        return _overwritten(*args)
    if func is aten._pin_memory.default:
        raise RuntimeError("only dense CPU tensors can be pinned")
    if func is aten.is_pinned.default:
        return False
    if func.namespace == "c10d":
        return _told_others(func, args, options)
    _look_at(func, args, options)
    device = options.get("device")
    own = options if device is None else options | {"device": CPU}
    result = func(*tree_map(_held, args), **tree_map(_held, own))
    if device is None or device.type == "cuda":
        place = _numbered(device) if device is not None else _first_device(args, options)
        result = tree_map(lambda value: OnGpu(value, place) if isinstance(value, Tensor) else value, result)
    return return_and_correct_aliasing(func, args, options, result)


def _held(value: Any) -> Any:
    return value.held if isinstance(value, OnGpu) else value


def _numbered(device: torch.device) -> torch.device:
    return torch.device("cuda", torch.accelerator.current_device_index()) if device.index is None else device


def _first_device(args: Any, options: Any) -> torch.device:
    return next(leaf.device for leaf in tree_leaves((args, options)) if isinstance(leaf, OnGpu))


def _told_others(func: Any, args: Any, options: Any) -> Any:
    """What processes tell each other goes into the tensors that were given."""
    held = list(tree_map(_held, args))
    if func is c10d._allgather_base_.default:  # NCCL looks at the number of elements alone
        held[:2] = [each.reshape(-1) for each in held[:2]]
    result = func(*held, **options)
    return (args[0], *result[1:]) if isinstance(result, tuple) else result


def _look_at(func: Any, args: Any, options: Any) -> None:
    """Refuse what a GPU refuses, and note what the host waits for."""
    tensors = [leaf for leaf in tree_leaves((args, options)) if isinstance(leaf, Tensor)]
    indices = [index for index in args[1] if index is not None] if func.overloadpacket in BY_INDEX else []
    # numbers may be the host's, and so may indices
    foreign = [each for each in tensors if not isinstance(each, OnGpu) and each.dim()]
    if any(all(each is not index for index in indices) for each in foreign):
        raise RuntimeError(f"{func}: expected all tensors to be on the same device, but found cuda and cpu")
    for index in foreign:
        _tell("to", index, waits=True)
    if func.overloadpacket in WAITING or any(index.dtype in (torch.bool, torch.uint8) for index in indices):
        _tell(func.overloadpacket.__name__, tensors[0], waits=True)


def _copied(
    source: Tensor, *, device: torch.device | None = None, non_blocking: bool = False, **options: Any
) -> Tensor:
    place = source.device if device is None else device
    _note_copy(source, to=place, non_blocking=non_blocking)
    made = aten._to_copy.default(_held(source), **{name: options[name] for name in options if name != "pin_memory"})
    return OnGpu(made, _numbered(place)) if place.type == "cuda" else made


def _overwritten(target: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
    _note_copy(source, to=target.device, non_blocking=non_blocking)
    _held(target).copy_(_held(source))
    return target


def _note_copy(source: Tensor, *, to: torch.device, non_blocking: bool) -> None:
    if source.device.type == to.type:
        return
    is_sent = to.type == "cuda"
    _tell("to" if is_sent else "from", source, waits=not (is_sent and non_blocking and source.is_pinned()))


def _tell(what: str, tensor: Tensor, *, waits: bool) -> None:
    """`places` are the project's functions that this happened in, the innermost first; none on autograd's threads."""
    frame, places = sys._getframe(1), []
    while frame is not None:
        module = str(frame.f_globals.get("__name__"))
        if module.partition(".")[0] == PROJECT:
            places.append(f"{module.rpartition('.')[2]}.{frame.f_code.co_name}")
        frame = frame.f_back
    line = {"what": what, "waits": waits, "shape": list(tensor.shape), "dtype": str(tensor.dtype), "places": places}
    for listener in listeners:
        listener(json.dumps(line) + "\n")


def install(*, memory: int, has_double: bool, crossings: Path | None) -> None:
    """Let torch in Python find the devices, with so many free bytes each."""
    if not has_double:
        refused.append(torch.float64)
    if crossings is not None:
        listeners.append(crossings.open("a", encoding="utf-8", buffering=1).write)
    LIBRARY.fallback(operate, "CUDA")  # what makes a tensor on the device, where none is given
    torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(values, device="cuda") copies where it can be seen
    cuda: Any = torch.cuda
    for module in (cuda, cuda.random, cuda.memory):
        module._lazy_init = lambda: None
    cuda._initialized = True
    cuda.is_available = lambda: True
    cuda.is_bf16_supported = lambda *_, **__: True
    compiled: Any = torch._C
    compiled._cuda_getDevice = torch.accelerator.current_device_index
    cuda.device_count = compiled._accelerator_hooks_device_count
    cuda.set_device = lambda device: compiled._accelerator_setDeviceIndex(torch.device(device).index)
    cuda.synchronize = lambda device=None: None
    cuda.mem_get_info = lambda device=None: (memory, memory)
    cuda.get_device_name = lambda device=None: "simulated GPU"
    cuda.default_generators = (torch.default_generator,) * cuda.device_count()
    world: Any = torch.distributed
    meet = world.init_process_group
    world.init_process_group = lambda backend=None, **options: meet("cpu:gloo,cuda:gloo", **options)
    tracer: Any = torch.profiler.profile
    make = tracer.__init__
    tracer.__init__ = lambda self, *, activities, **options: make(self, activities=activities[:1], **options)
