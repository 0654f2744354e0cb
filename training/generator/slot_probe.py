"""What stands in each token's part of the picture, read off the decoder while it trains.

Tokens alone teach slowly which object goes where: few of them depend on it. So a linear probe is asked at every token,
the first ones included, for the object and the colour in its slot, and the decoder is trained to know. Not exported.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from training.world.drawing import SLOT_X
from training.world.scenes import Scene, World
from training.world.vocabulary import FOUR_SLOTS, OBJECTS, RELATIONS, SLOTS

NOTHING = 0
# Where what is above another or on it ends, and where what is in front of it begins: shares of the height.
LOWER_EDGE, FRONT_EDGE = 0.5, 0.68


class SlotProbe(nn.Module):
    def __init__(self, world: World, width: int, side: int) -> None:
        super().__init__()
        colours = sorted({colour for name in world.objects for colour in OBJECTS[name].colours})
        # Class 0: nothing stands there, or it has no colour of its own.
        self._names = {name: i for i, name in enumerate(world.objects, NOTHING + 1)}
        self._colours = {colour: i for i, colour in enumerate(colours, NOTHING + 1)}
        self.names = nn.Linear(width, len(self._names) + 1)
        self.colours = nn.Linear(width, len(self._colours) + 1)
        self._side = side
        self._columns = {slots: _nearest(slots, side) for slots in (SLOTS, FOUR_SLOTS)}

    def loss(self, hidden: Float[Tensor, "B S D"], scenes: list[Scene]) -> Float[Tensor, ""]:
        """The mean cross-entropy of the names and of the colours, added."""
        names, colours = (labels.flatten().to(hidden.device) for labels in self.labels(scenes))
        rows = hidden.flatten(0, 1)
        return F.cross_entropy(self.names(rows).float(), names) + F.cross_entropy(
            self.colours(rows).float(), colours
        )

    def labels(self, scenes: list[Scene]) -> tuple[Int[Tensor, "B S"], Int[Tensor, "B S"]]:
        """The classes of the name and of the colour in each token's part of the picture."""
        names = torch.full((len(scenes), self._side, self._side), NOTHING)
        colours = names.clone()
        for row, scene in enumerate(scenes):
            for o in scene.objects:
                part = (row, *self._part(o.slot))
                names[part] = self._names[o.name]
                colours[part] = self._colours[o.colour] if o.colour else NOTHING
        return names.flatten(1), colours.flatten(1)

    def _part(self, slot: str) -> tuple[slice, slice]:
        """The rows and the columns of a slot. What a relation puts there comes after what stands in the center."""
        slots = FOUR_SLOTS if slot in FOUR_SLOTS else SLOTS
        rows = slice(None)
        if slot in RELATIONS:
            rows = (
                slice(round(self._side * FRONT_EDGE), None)
                if slot == "front"
                else slice(round(self._side * LOWER_EDGE))
            )
            slot = "center"
        columns = (self._columns[slots] == slots.index(slot)).nonzero()
        return rows, slice(int(columns.min()), int(columns.max()) + 1)


def _nearest(slots: tuple[str, ...], side: int) -> Int[Tensor, " side"]:
    """The slot that each column of tokens is nearest to."""
    columns = (torch.arange(side) + 0.5) / side
    return (columns[:, None] - torch.tensor([SLOT_X[slot] for slot in slots])).abs().argmin(1)
