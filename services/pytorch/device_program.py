"""CUDA graphs: a function of tensors as one launch for each shape. On a CPU the function itself.

A function may change tensors that it holds. What it returns is overwritten by the next call.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

log = logging.getLogger(__name__)

# direct: calls the function. graph: captures it once a shape and replays that. padded: calls it with the shapes that would
# be captured, so that a CPU can test them.
Mode = Literal["direct", "graph", "padded"]
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
        self._device = device
        self._sizes = tuple(sizes)
        self._graphs: dict[tuple[Any, ...], _Graph] = {}
        # Graphs never run at once, so all shapes share one memory, which they must fill on one stream.
        self._pool: Any = None
        self._stream: Any = None
        self._is_capturing = False

    @property
    def sizes(self) -> tuple[int, ...]:
        """Numbers of rows that warming up must touch: all that are captured, else one row and the most."""
        return self._sizes if self.mode != "direct" else tuple(sorted({self._sizes[0], self._sizes[-1]}))

    @contextmanager
    def capturing(self) -> Iterator[None]:
        """While it holds, shapes are captured. That calls the function several times, with all that it changes.

        Later a shape that is new is run directly.
        """
        self._is_capturing = True
        try:
            yield
        finally:
            self._is_capturing = False

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
        if shapes not in self._graphs and not (self._is_capturing and self._capture(shapes, tensors)):
            return self._function(*tensors)
        return self._graphs[shapes].replay(tensors)

    @property
    def num_captured(self) -> int:
        return len(self._graphs)

    def _capture(self, shapes: tuple[Any, ...], tensors: Sequence[Tensor]) -> bool:
        """False where the device or the function does not allow it: it is slower then, but runs."""
        try:
            if self._pool is None:
                self._pool = torch.cuda.graph_pool_handle()
                self._stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call] # torch has no annotation there
            self._graphs[shapes] = _Graph(self._function, tensors, self._pool, self._stream)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            log.warning("no CUDA graph of %s: %s", shapes, error)
            return False
        return True


class _Graph:
    """One captured shape: static inputs, static outputs, and the graph between them."""

    def __init__(
        self, function: Callable[..., Any], tensors: Sequence[Tensor], pool: Any, stream: torch.cuda.Stream
    ) -> None:
        self._inputs = [tensor.clone() for tensor in tensors]
        current = torch.cuda.current_stream(stream.device)
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            for _ in range(NUM_WARM_UP_CALLS):
                function(*self._inputs)
        current.wait_stream(stream)
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

    Arguments may be None or tuples of tensors. The first call with a number of rows captures it.
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
        rows = [torch.cat([tensor, *[tensor[:1]] * padding]) if padding else tensor for tensor in tensors]
        with self.program.capturing():
            padded: Tensor = self.program(*rows)
        return padded[:count]

    def _call(self, *tensors: Tensor) -> Tensor:
        return self._network(*tree_unflatten(tensors, self._structure))


def bucket_sizes(largest: int) -> list[int]:
    """1, 2, 4, ... and `largest` itself."""
    return [size for size in (2**i for i in range(largest.bit_length())) if size < largest] + [largest]
