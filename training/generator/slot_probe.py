"""What stands in each token's third of the picture, read off the decoder while it trains.

Tokens alone teach slowly which object goes where: few of them depend on it. So a linear probe is asked at every token,
the first ones included, for the object and the colour in its slot, and the decoder is trained to know. Not exported.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from training.world.drawing import SLOT_X
from training.world.scenes import Scene, World
from training.world.vocabulary import OBJECTS, SLOTS

NOTHING = 0


class SlotProbe(nn.Module):
    def __init__(self, world: World, width: int, side: int) -> None:
        super().__init__()
        colours = sorted({colour for name in world.objects for colour in OBJECTS[name].colours})
        # Class 0: nothing stands there, or it has no colour of its own.
        self._names = {name: i for i, name in enumerate(world.objects, NOTHING + 1)}
        self._colours = {colour: i for i, colour in enumerate(colours, NOTHING + 1)}
        self.names = nn.Linear(width, len(self._names) + 1)
        self.colours = nn.Linear(width, len(self._colours) + 1)
        columns = (torch.arange(side) + 0.5) / side
        centers = torch.tensor([SLOT_X[slot] for slot in SLOTS])
        self._slot_of_token = (columns[:, None] - centers).abs().argmin(1).repeat(side)

    def loss(self, hidden: Float[Tensor, "B S D"], scenes: list[Scene]) -> Float[Tensor, ""]:
        """The mean cross-entropy of the names and of the colours, added."""
        names, colours = (labels[:, self._slot_of_token].flatten() for labels in self.labels(scenes))
        rows = hidden.flatten(0, 1)
        return F.cross_entropy(self.names(rows).float(), names) + F.cross_entropy(
            self.colours(rows).float(), colours
        )

    def labels(self, scenes: list[Scene]) -> tuple[Int[Tensor, "B slots"], Int[Tensor, "B slots"]]:
        """The classes of the name and of the colour in each slot."""
        names = torch.full((len(scenes), len(SLOTS)), NOTHING)
        colours = names.clone()
        for row, scene in enumerate(scenes):
            for scene_object in scene.objects:
                slot = SLOTS.index(scene_object.slot)
                names[row, slot] = self._names[scene_object.name]
                if scene_object.colour:
                    colours[row, slot] = self._colours[scene_object.colour]
        return names, colours
