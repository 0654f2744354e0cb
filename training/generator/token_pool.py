"""A growing pool of tokenized scenes for the transformer: drawn and tokenized while it trains.

A small model overfits a few thousand pictures, and a tokenizer costs a quarter of a training step: so every step adds
some new scenes, and trains on old ones too, each time with a new caption. Scene i is made from seed and i alone.
"""

import random
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from training.generator.train_vqgan import STRIDE, to_pixels
from training.generator.vqgan_torch import Vqgan
from training.world.painters import Painters
from training.world.scenes import Scene, World, in_every_slot, sample_lesson

# Of scenes show a place and nothing else: "a beach at sunset" asks for no object.
EMPTY_SHARE = 0.04
ENCODED_TOGETHER = 64


class TokenPool:
    def __init__(
        self,
        vqgan: Vqgan,
        painters: Painters,
        world: World,
        *,
        seed: int,
        capacity: int,
        lookalike_share: float = 0.0,
    ) -> None:
        self._lookalike_share = lookalike_share
        self._vqgan, self._painters, self._world = vqgan, painters, world
        self._seed = seed
        self.length = (painters.size // STRIDE) ** 2
        self.scenes: list[Scene] = []
        self.tokens = torch.zeros(capacity, self.length, dtype=torch.int16)
        self.near_object = torch.zeros(capacity, self.length, dtype=torch.bool)

    def __len__(self) -> int:
        return len(self.scenes)

    @property
    def is_full(self) -> bool:
        return len(self) >= len(self.tokens)

    @torch.no_grad()
    def grow(self, count: int) -> None:
        """Adds `count` scenes."""
        scenes = [self._scene(len(self) + i) for i in range(count)]
        pictures, masks = self._painters.paint(scenes, [in_every_slot(scene) for scene in scenes])
        device = self._vqgan.codebook.device
        chunks = [
            to_pixels(chunk).to(device) for chunk in np.array_split(pictures, -(-count // ENCODED_TOGETHER))
        ]
        # In bfloat16 it takes half as long, and one token in sixty differs.
        with torch.autocast(device.type, torch.bfloat16):
            encoded = [self._vqgan.encode(chunk) for chunk in chunks]
        tokens = torch.cat([self._vqgan.tokens(each.float()).cpu() for each in encoded])
        covered = F.avg_pool2d(torch.from_numpy(masks).float()[:, None], STRIDE).flatten(1)
        start = len(self)
        self.tokens[start : start + count] = tokens.flatten(1).to(torch.int16)
        self.near_object[start : start + count] = covered > 0.1
        self.scenes += scenes

    def draw(
        self, count: int, rng: random.Random
    ) -> tuple[list[Scene], Int[Tensor, "B S"], Float[Tensor, "B S"]]:
        """Scenes with their tokens, and which of those show an object or could have."""
        rows = [rng.randrange(len(self)) for _ in range(count)]
        return [self.scenes[i] for i in rows], self.tokens[rows].long(), self.near_object[rows].float()

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.stem}.partial.npz")
        n = len(self)
        np.savez_compressed(
            partial,
            seed=np.array(str(self._seed)),
            tokens=self.tokens[:n].numpy(),
            near_object=np.packbits(self.near_object[:n].numpy(), axis=1),
        )
        partial.replace(path)

    def restore(self, path: Path) -> None:
        """Takes what `save` wrote; the scenes are sampled again. Only for the same world and tokenizer.

        Raises ValueError for a pool of another seed: its tokens would be paired with captions of other scenes.
        """
        with np.load(path, allow_pickle=False) as stored:
            if str(stored["seed"]) != str(self._seed):
                raise ValueError(
                    f"{path} has scenes of seed {stored['seed']}, not {self._seed}; give that --seed, or delete it"
                )
            n = min(len(stored["tokens"]), len(self.tokens))
            self.tokens[:n] = torch.from_numpy(stored["tokens"][:n])
            self.near_object[:n] = torch.from_numpy(
                np.unpackbits(stored["near_object"][:n], axis=1).astype(bool)
            )
        self.scenes = [self._scene(i) for i in range(n)]

    def _scene(self, index: int) -> Scene:
        rng = random.Random(f"{self._seed} {index}")
        return sample_lesson(rng, self._world, lookalike_share=self._lookalike_share, empty_share=EMPTY_SHARE)
