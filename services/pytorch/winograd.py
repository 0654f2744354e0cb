"""3 x 3 convolutions with 4/9 of the multiplications, for processors: Winograd's F(2, 3) along both axes.

Computes a tile of 2 x 2 pixels with 16 products instead of 36: Lavin and Gray 2016, "Fast Algorithms for Convolutional
Neural Networks". The sums before and after the products are matrix products themselves. F(4, 3) would take 1/4 of the
multiplications, but four times the memory of the weights, and be 1e-5 of the largest value off where this is 5e-7.
Dimension key: B pictures, I O channels in and out, H W pixels.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

TILE = 2
REACH = TILE + 2  # a tile sees one pixel more on each side
# What a convolution of fewer channels saves, the sums take.
FEWEST_CHANNELS = 256
# As many pictures go together as have so many tiles times channels: their sums stay in a processor's cache.
MOST_TOGETHER = 2**18
_INPUT_SUMS = torch.tensor([[1.0, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, -1, 0, 1]])
_KERNEL_SUMS = torch.tensor([[1.0, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])
_OUTPUT_SUMS = torch.tensor([[1.0, 1, 1, 0], [0, 1, -1, 1]])


@runtime_checkable  # for the type checks of the tests
class Chooser(Protocol):
    """See services/pytorch/choices.py."""

    def choose(self, what: str, candidates: Mapping[str, Callable[[], object]]) -> str: ...


def use_winograd(
    network: nn.Module,
    *,
    choices: Chooser | None = None,
    sizes: Mapping[nn.Module, tuple[int, int]] | None = None,
    num_rows: Sequence[int] = (),
) -> None:
    """Puts a `WinogradConv` in the place of each convolution that is faster so, and frees its weights.

    With `choices` each shape is measured with batches of `num_rows`; `sizes` are the inputs' height and width. Where the
    batches differ, both kinds of weights are kept. Without, wide convolutions are taken to be faster.
    """
    for name, child in network.named_children():
        if not isinstance(child, nn.Conv2d) or not _suits(child):
            use_winograd(child, choices=choices, sizes=sizes, num_rows=num_rows)
            continue
        found = WinogradConv(child)
        if choices is None or sizes is None:
            setattr(network, name, found)
            continue
        is_faster = {rows: _is_faster(found, child, rows, sizes[child], choices) for rows in sorted(num_rows)}
        if all(is_faster.values()):
            setattr(network, name, found)
        elif any(is_faster.values()):
            setattr(network, name, EitherConv(child, found, is_faster))


def _is_faster(
    winograd: "WinogradConv", conv: nn.Conv2d, rows: int, size: tuple[int, int], choices: Chooser
) -> bool:
    x = torch.zeros(rows, conv.in_channels, *size, dtype=conv.weight.dtype)
    x = x.contiguous(memory_format=torch.channels_last)
    channels = f"{conv.in_channels} to {conv.out_channels} channels"
    what = f"convolution of {rows} x {size[0]} x {size[1]}, {channels}, {str(conv.weight.dtype).removeprefix('torch.')}"
    with torch.inference_mode():
        return (
            choices.choose(what, {"winograd": lambda: winograd(x), "direct": lambda: conv(x)}) == "winograd"
        )


class EitherConv(nn.Module):
    """A convolution in both ways; the number of rows decides, by the measured one that is nearest from above."""

    def __init__(self, conv: nn.Conv2d, winograd: "WinogradConv", is_faster: Mapping[int, bool]) -> None:
        super().__init__()
        self.conv, self.winograd = conv, winograd
        self._is_faster = dict(sorted(is_faster.items()))

    def uses_winograd(self, num_rows: int) -> bool:
        measured = next((rows for rows in self._is_faster if rows >= num_rows), max(self._is_faster))
        return self._is_faster[measured]

    def forward(self, x: Float[Tensor, "B I H W"]) -> Float[Tensor, "B O H W"]:
        return self.winograd(x) if self.uses_winograd(len(x)) else self.conv(x)


class WinogradConv(nn.Module):
    """Computes what `conv` does, in 16/9 of the memory of its weights. Only for inference."""

    bias: Tensor
    points: Tensor
    input_sums: Tensor
    output_sums: Tensor

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        weight = conv.weight.detach()
        taps = rearrange(weight.float(), "o i y x -> (y x) (o i)")
        points = (_both_axes(_KERNEL_SUMS) @ taps).view(-1, *weight.shape[:2])
        self.register_buffer("points", points.to(weight.dtype))
        self.register_buffer("input_sums", _both_axes(_INPUT_SUMS).to(weight.dtype))
        self.register_buffer("output_sums", _both_axes(_OUTPUT_SUMS).to(weight.dtype))
        self.register_buffer("bias", conv.bias)

    def forward(self, x: Float[Tensor, "B I H W"]) -> Float[Tensor, "B O H W"]:
        _, channels, height, width = x.shape
        size_of_one = -(-height // TILE) * -(-width // TILE) * channels
        together = max(1, MOST_TOGETHER // size_of_one)
        if len(x) <= together:
            return self._convolve(x)
        return torch.cat([self._convolve(part) for part in torch.split(x, together)])

    def _convolve(self, x: Float[Tensor, "B I H W"]) -> Float[Tensor, "B O H W"]:
        batch, channels, height, width = x.shape
        # An odd side gets a row or a column more, which is cut off again.
        padded = F.pad(rearrange(x, "b i h w -> b h w i"), (0, 0, 1, 1 + width % TILE, 1, 1 + height % TILE))
        tiles = padded.unfold(1, REACH, TILE).unfold(2, REACH, TILE)
        columns = tiles.shape[2]
        sums = self.input_sums @ rearrange(tiles, "b th tw i y x -> (y x) (b th tw i)")
        products = torch.bmm(sums.view(len(sums), -1, channels), self.points.mT)
        pixels = self.output_sums @ products.flatten(1)
        out = rearrange(
            pixels, "(y x) (b th tw o) -> b (th y) (tw x) o", y=TILE, b=batch, tw=columns, o=len(self.bias)
        )
        return rearrange(out[:, :height, :width] + self.bias, "b h w o -> b o h w")


def _suits(conv: nn.Conv2d) -> bool:
    return (
        conv.bias is not None
        and (conv.kernel_size, conv.stride, conv.padding) == ((3, 3), (1, 1), (1, 1))
        and min(conv.in_channels, conv.out_channels) >= FEWEST_CHANNELS
    )


def _both_axes(sums: Float[Tensor, "N M"]) -> Float[Tensor, "NN MM"]:
    return torch.kron(sums, sums)
