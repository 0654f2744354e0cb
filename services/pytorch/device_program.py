"""CUDA graphs: a function of tensors as one launch for each shape. On a CPU the function itself.

A function may change tensors that it holds. What it returns is overwritten by the next call.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

# direct: calls the function. graph: captures it once a shape and replays that. compile: torch.compile's own graphs.
# padded: calls it with the shapes that would be captured, so that a CPU can test them.
Mode = Literal["direct", "graph", "compile", "padded"]
# Calls before a capture: libraries choose their kernels and allocate workspaces in them.
NUM_WARM_UP_CALLS = 2


class DeviceProgram:
    """Runs `function`, which takes and returns tensors of `device`, without gradients.

    Rows, the first axis, come in a few `sizes` where shapes are captured: callers pad to `num_rows`.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        device: torch.device,
        *,
        sizes: Sequence[int],
        mode: Mode | None = None,
    ) -> None:
        """`mode` is by default "graph" on a GPU and "direct" on a CPU; `sizes` are in rising order."""
        self.mode: Mode = mode or ("graph" if device.type == "cuda" else "direct")
        self._function = function
        if self.mode == "compile":
            self._function = torch.compile(function, mode="reduce-overhead", dynamic=False)
        self._device = device
        self._sizes = tuple(sizes)
        self._graphs: dict[tuple[Any, ...], _Graph] = {}
        # Graphs never run at once, so all shapes share one memory.
        self._pool: Any = None
        self._is_sealed = False

    @property
    def sizes(self) -> tuple[int, ...]:
        """Numbers of rows that warming up must touch: all that are captured, else one row and the most."""
        return self._sizes if self.mode != "direct" else tuple(sorted({self._sizes[0], self._sizes[-1]}))

    def seal(self) -> None:
        """Ends capturing: a shape that is new from here on is run directly."""
        self._is_sealed = True

    def num_rows(self, count: int) -> int:
        """How many rows to compute for `count`."""
        if self.mode == "direct":
            return count
        return next(size for size in self._sizes if size >= count)

    @torch.inference_mode()
    def __call__(self, *tensors: Tensor) -> Any:
        if self.mode != "graph":
            return self._function(*tensors)
        shapes = tuple((tensor.shape, tensor.dtype) for tensor in tensors)
        if shapes not in self._graphs:
            if self._is_sealed:
                return self._function(*tensors)
            self._pool = self._pool or torch.cuda.graph_pool_handle()
            self._graphs[shapes] = _Graph(self._function, tensors, self._device, self._pool)
        return self._graphs[shapes].replay(tensors)


class _Graph:
    """One captured shape: static inputs, static outputs, and the graph between them."""

    def __init__(
        self, function: Callable[..., Any], tensors: Sequence[Tensor], device: torch.device, pool: Any
    ) -> None:
        self._inputs = [tensor.clone() for tensor in tensors]
        stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call] # torch has no annotation there
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            for _ in range(NUM_WARM_UP_CALLS):
                function(*self._inputs)
        torch.cuda.current_stream(device).wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        # Other threads decode pictures meanwhile, which a stricter mode forbids.
        with torch.cuda.graph(self._graph, pool, stream, capture_error_mode="thread_local"):
            self._outputs = function(*self._inputs)

    def replay(self, tensors: Sequence[Tensor]) -> Any:
        for static, tensor in zip(self._inputs, tensors, strict=True):
            static.copy_(tensor, non_blocking=True)
        self._graph.replay()
        return self._outputs


class RowNetwork:
    """A network whose arguments and result are tensors of rows, as a program: rows are padded to a power of two.

    Arguments may be None or tuples of tensors. Each of `num_rows` that serving can meet is captured by a first call.
    """

    def __init__(
        self, network: Callable[..., Tensor], device: torch.device, mode: Mode | None = None
    ) -> None:
        self._network = network
        self._structure: Any = None
        self.program = DeviceProgram(self._call, device, sizes=[2**i for i in range(12)], mode=mode)

    def __call__(self, *arguments: Any) -> Tensor:
        if self.program.mode == "direct":
            return self._network(*arguments)
        tensors, self._structure = tree_flatten(arguments)
        count = len(tensors[0])
        padding = self.program.num_rows(count) - count
        padded: Tensor = self.program(
            *(torch.cat([tensor, *[tensor[:1]] * padding]) if padding else tensor for tensor in tensors)
        )
        return padded[:count]

    def _call(self, *tensors: Tensor) -> Tensor:
        return self._network(*tree_unflatten(tensors, self._structure))


def bucket_sizes(largest: int) -> list[int]:
    """1, 2, 4, ... and `largest` itself."""
    return [size for size in (2**i for i in range(largest.bit_length())) if size < largest] + [largest]
