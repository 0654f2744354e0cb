"""Trains the built-in generator's transformer:  python -m training.generator.train_dalle --steps 4000 [--resume | --from-weights]

First its text encoder on captions alone (`text_pretraining`), then all of it on tokens of scenes that are drawn and
tokenized as it goes, while `slot_probe` asks it what stands where. Logs the loss with the caption, without it and with
another's: if those are equal, the caption is ignored, and training on is in vain. Writes a sample sheet.
Needs a trained VQGAN (checkpoint or committed weights), the sprites, 2 GB, 1.3 CPU seconds a step of 16 with
--bfloat16. Reached in 13,200 steps: names .97, names and colours .95, count .93, place 1.0 (training/NOTES.md).
"""

import argparse
import json
import math
import random
import time
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from PIL import Image
from tokenizers import Tokenizer
from torch import Tensor, nn

from services.generator.dalle.networks.dalle import TEXT_PAD_ID, DalleConfig
from training import checkpoint
from training.generator import train_vqgan
from training.generator.dalle_torch import TINY, UNCONDITIONAL, Dalle
from training.generator.pretrain_text_encoder import pretrain
from training.generator.slot_probe import SlotProbe
from training.generator.token_pool import TokenPool
from training.generator.train_tokenizer import EXTENDED_FOLDER, encode, extend_embeddings
from training.generator.vqgan_torch import Vqgan
from training.world.captions import caption
from training.world.drawing import Painter
from training.world.painters import Painters
from training.world.scenes import WORLDS, Scene, World, crowded, sample_scenes
from training.world.sprites import fluent_sprites

CHECKPOINT = checkpoint.FOLDER / "generator.pt"
SAVE_EVERY = 50
COOL_DOWN_SHARE = 0.2
POOL = checkpoint.FOLDER / "tokens.npz"
WEIGHTS = Path("services/generator/models/tiny/dalle/model.safetensors")
TOKENIZER = WEIGHTS.with_name("tokenizer.json")
EXTENDED_TOKENIZER = EXTENDED_FOLDER / TOKENIZER.name


@dataclass(frozen=True)
class Recipe:
    steps: int = 4000
    batch: int = 16
    fresh: int = 8  # so many of them are new scenes, until the pool is full
    learning_rate: float = 1.5e-3
    uncond_share: float = 0.1  # of the captions are left out: guidance needs it
    # What tokens weigh more that show an object or could have. If only those that do weighed more, it would be drawn
    # more often than it is there: the same object again in an empty slot.
    object_weight: float = 1.0
    # What the decoder is asked after three of its layers: `slot_probe`.
    probe_layer: int = 2
    probe_weight: float = 0.3
    # Up to so many tokens of a picture are replaced by another's: what is drawn is not always right either.
    corrupted_share: float = 0.1
    text_steps: int = 900
    text_learning_rate: float = 1.5e-3


class Trainer:
    def __init__(
        self,
        network: Dalle,
        tokenizer: Tokenizer,
        pool: TokenPool,
        world: World,
        recipe: Recipe,
        *,
        device: str = "cpu",
        bfloat16: bool = False,
        compiled: bool = False,
    ) -> None:
        self.device = torch.device(device)
        self.network, self.tokenizer, self.pool, self.recipe = network.to(device), tokenizer, pool, recipe
        self.step = 0
        # Of a run's time budget: it cools down with it, if that ends before its steps.
        self.share_of_time = 0.0
        self.rng = random.Random(0)
        probe = SlotProbe(world, network.config.d_model, math.isqrt(network.config.image_length))
        self.probe = probe.to(device)
        parameters = [*network.parameters(), *self.probe.parameters()]
        matrices = [p for p in parameters if p.ndim > 1]
        vectors = [p for p in parameters if p.ndim < 2]
        self.optimizer = torch.optim.AdamW(
            [{"params": matrices, "weight_decay": 0.05}, {"params": vectors, "weight_decay": 0.0}],
            lr=1e-3,
            betas=(0.9, 0.97),
        )
        self._bfloat16 = bfloat16
        self._forward = torch.compile(self._states_and_logits) if compiled else self._states_and_logits

    def learning_rate(self) -> float:
        """Warm, level, and down to nothing in the last fifth: a run that is resumed with more steps goes on where it was."""
        left = 1 - max(self.step / self.recipe.steps, self.share_of_time)
        level = max(0.0, min(1.0, (self.step + 1) / 100, left / COOL_DOWN_SHARE))
        return self.recipe.learning_rate * level

    def train_step(self) -> dict[str, float]:
        recipe = self.recipe
        # Its own generator for each step: a resumed run goes on as an unbroken one.
        self.rng.seed(f"{recipe.steps} {self.step}")
        if not self.pool.is_full:
            self.pool.grow(recipe.fresh)
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate()
        scenes, *drawn = self.pool.draw(recipe.batch, self.rng)
        image_tokens, near_object = (tensor.to(self.device) for tensor in drawn)
        text_tokens = self.text_tokens(scenes)
        for row in range(len(scenes)):
            if self.rng.random() < recipe.uncond_share:
                text_tokens[row] = unconditional(text_tokens.shape[1])
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._bfloat16):
            probed, logits = self._forward(text_tokens.to(self.device), self._corrupted(image_tokens))
            probe_loss = self.probe.loss(probed, scenes)
        losses = F.cross_entropy(logits.float().flatten(0, 1), image_tokens.flatten(), reduction="none")
        weight = 1 + recipe.object_weight * near_object.flatten()
        ((losses * weight).mean() + recipe.probe_weight * probe_loss).backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        return {"loss": float(losses.detach().mean()), "probe": float(probe_loss.detach())}

    def _states_and_logits(
        self, text_tokens: Int[Tensor, "B T"], image_tokens: Int[Tensor, "B S"]
    ) -> tuple[Float[Tensor, "B S D"], Float[Tensor, "B S V"]]:
        states = self.network.hidden_states(text_tokens, image_tokens)
        return states[self.recipe.probe_layer], self.network.logits(states[-1])

    def text_tokens(self, scenes: list[Scene]) -> Int[Tensor, "B T"]:
        texts = [caption(scene, self.rng, plain=self.rng.random() < 0.15).text for scene in scenes]
        return encode(self.tokenizer, texts, self.network.config.max_text_length)

    def _corrupted(self, image_tokens: Int[Tensor, "B S"]) -> Int[Tensor, "B S"]:
        """Each row with a share of its own of another row's tokens, so that the text and the rest must tell."""
        rng = torch.Generator().manual_seed(self.step)
        share = self.recipe.corrupted_share * torch.rand(len(image_tokens), 1, generator=rng)
        is_corrupted = torch.rand(image_tokens.shape, generator=rng) < share
        return torch.where(is_corrupted.to(self.device), image_tokens.roll(1, 0), image_tokens)

    @torch.no_grad()
    def validate(self, scenes: list[Scene], image_tokens: Int[Tensor, "B S"]) -> dict[str, float]:
        """The loss with the caption, without it, and with another picture's."""
        rng = random.Random(1)
        texts = [caption(scene, rng, plain=True).text for scene in scenes]
        text_tokens = encode(self.tokenizer, texts, self.network.config.max_text_length)
        prompts = {
            "caption": text_tokens,
            "none": unconditional(text_tokens.shape[1]).expand_as(text_tokens),
            "shuffled": text_tokens.roll(1, 0),
        }
        losses = {}
        image_tokens = image_tokens.to(self.device)
        for name, tokens in prompts.items():
            logits = self.network(tokens.to(self.device), image_tokens)
            losses[name] = float(F.cross_entropy(logits.flatten(0, 1), image_tokens.flatten()))
        return losses

    def state(self) -> dict[str, object]:
        return {
            "network": self.network.state_dict(),
            "probe": self.probe.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
        }

    def resume(self, state: dict[str, object]) -> None:
        self.network.load_state_dict(state["network"])  # type: ignore[arg-type]
        self.probe.load_state_dict(state["probe"])  # type: ignore[arg-type]
        self.optimizer.load_state_dict(state["optimizer"])  # type: ignore[arg-type]
        self.step = state["step"]  # type: ignore[assignment]


def unconditional(length: int) -> Int[Tensor, " T"]:
    """The empty prompt, as the services encode it."""
    tokens = torch.full((length,), TEXT_PAD_ID)
    tokens[: len(UNCONDITIONAL)] = torch.tensor(UNCONDITIONAL)
    return tokens


def load_dalle(weights: Path = WEIGHTS) -> Dalle:
    """The committed transformer, of the size that its configuration names."""
    config = json.loads(weights.with_name("config.json").read_text("utf-8"))
    known = {field.name for field in fields(DalleConfig)}
    network = Dalle(DalleConfig(**{name: value for name, value in config.items() if name in known}))
    checkpoint.load_flax_tensors(network, checkpoint.read_tensors(weights))
    return network


def load_vqgan() -> Vqgan:
    """The checkpoint, or the committed weights; its tokens must be those that the transformer learnt."""
    network = Vqgan()
    if train_vqgan.CHECKPOINT.exists():
        network.load_state_dict(checkpoint.load(train_vqgan.CHECKPOINT)["network"])
    else:
        checkpoint.load_flax_tensors(network, checkpoint.read_tensors(train_vqgan.WEIGHTS))
    return network.eval().requires_grad_(False).to(memory_format=torch.channels_last)


@torch.no_grad()
def pictures(network: Vqgan, image_tokens: Int[Tensor, "B S"]) -> UInt8[np.ndarray, "B H W 3"]:
    side = math.isqrt(image_tokens.shape[1])
    grids = image_tokens.to(network.codebook.device).unflatten(1, (side, side))
    return np.concatenate(
        [train_vqgan.to_pictures(network.decode(network.look_up(grid))) for grid in grids.split(8)]
    )


def sample_sheet(
    network: Dalle, tokenizer: Tokenizer, decoder: Vqgan, scenes: list[Scene], seed: int
) -> tuple[Image.Image, UInt8[np.ndarray, "B H W 3"]]:
    rng = random.Random(seed)
    text_tokens = encode(tokenizer, [caption(s, rng).text for s in scenes], network.config.max_text_length)
    text_tokens = text_tokens.to(network.lm_head.weight.device)
    found = pictures(decoder, network.sample(text_tokens, torch.Generator().manual_seed(seed)))
    return train_vqgan.sheet([found[i : i + 8] for i in range(0, len(found) // 8 * 8, 8)]), found


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=Recipe.steps)
    parser.add_argument("--batch", type=int, default=Recipe.batch)
    parser.add_argument("--fresh", type=int, default=Recipe.fresh)
    parser.add_argument("--learning-rate", type=float, default=Recipe.learning_rate)
    parser.add_argument("--text-steps", type=int, default=Recipe.text_steps)
    parser.add_argument("--text-learning-rate", type=float, default=Recipe.text_learning_rate)
    parser.add_argument("--text-only", action="store_true", help="pretrain the text encoder and stop")
    parser.add_argument("--world", choices=sorted(WORLDS), default="wide")
    parser.add_argument("--pool", type=int, default=40000, help="most scenes to keep tokenized")
    parser.add_argument("--first-pool", type=int, default=2000, help="fewest scenes to begin with")
    parser.add_argument(
        "--lookalike-share", type=float, default=0.1, help="of scenes: dogs and cats, and such"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint")
    parser.add_argument("--from-weights", action="store_true", help="start from the committed weights")
    parser.add_argument("--bfloat16", action="store_true", help="faster where the CPU knows bfloat16")
    parser.add_argument("--compile", action="store_true", help="a fifth faster, after half a minute")
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda or cuda:N")
    parser.add_argument("--painters", type=int, default=1, help="processes that draw scenes")
    parser.add_argument(
        "--minutes", type=float, default=math.inf, help="cool down and stop then; go on with --resume"
    )
    parser.add_argument("--report-every", type=int, default=250)
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT)
    options = parser.parse_args(arguments)

    torch.set_num_threads(1)
    torch.manual_seed(options.seed)
    world, painter = WORLDS[options.world], Painter(fluent_sprites(), 128)
    tokenizer = Tokenizer.from_file(str(EXTENDED_TOKENIZER if EXTENDED_TOKENIZER.exists() else TOKENIZER))
    recipe = Recipe(
        options.steps,
        options.batch,
        options.fresh,
        options.learning_rate,
        text_steps=options.text_steps,
        text_learning_rate=options.text_learning_rate,
    )
    network = Dalle(TINY).to(options.device)
    text_checkpoint = options.checkpoint.with_name("text_encoder.pt")
    if options.from_weights:
        tensors = extend_embeddings(checkpoint.read_tensors(WEIGHTS), tokenizer)
        checkpoint.load_flax_tensors(network, tensors)
    if not options.resume and options.text_steps:
        _start_text_encoder(network, tokenizer, world, recipe, text_checkpoint)
    if options.text_only:
        return
    tokenizing = load_vqgan().to(options.device)
    with Painters(painter, options.painters) as painters:
        pool = TokenPool(
            tokenizing,
            painters,
            crowded(world),
            seed=options.seed,
            capacity=options.pool,
            lookalike_share=options.lookalike_share,
        )
        trainer = Trainer(
            network,
            tokenizer,
            pool,
            world,
            recipe,
            device=options.device,
            bfloat16=options.bfloat16,
            compiled=options.compile,
        )
        pool_file = options.checkpoint.with_name(POOL.name)
        if options.resume:
            trainer.resume(checkpoint.load(options.checkpoint))
            if pool_file.exists():
                pool.restore(pool_file)
        # Weights that know thousands of scenes would only learn a handful by heart.
        while (missing := min(options.first_pool, options.pool) - len(pool)) > 0:
            pool.grow(min(missing, max(recipe.fresh, painters.most_at_once)))
        _train(trainer, tokenizing, painter, world, options, pool_file)


def _start_text_encoder(
    network: Dalle, tokenizer: Tokenizer, world: World, recipe: Recipe, path: Path
) -> None:
    if path.exists():
        network.encoder.load_state_dict(checkpoint.load(path)["encoder"])
        return
    pretrain(network, tokenizer, world, steps=recipe.text_steps, learning_rate=recipe.text_learning_rate)
    checkpoint.save(path, encoder=network.encoder.state_dict())


def _train(
    trainer: Trainer,
    decoder: Vqgan,
    painter: Painter,
    world: World,
    options: argparse.Namespace,
    pool_file: Path,
) -> None:
    scenes = sample_scenes(24, seed=1, world=world, held_out=True)
    pixels = [train_vqgan.to_pixels(painter.paint(scene)[None]).to(trainer.device) for scene in scenes]
    held_out = torch.cat([decoder.tokens(decoder.encode(each)).flatten(1) for each in pixels])
    losses, started = [], time.process_time()
    began = time.monotonic()
    while trainer.step < trainer.recipe.steps and trainer.share_of_time < 1:
        trainer.share_of_time = (time.monotonic() - began) / (60 * options.minutes)
        losses.append(trainer.train_step())
        is_last = trainer.step == trainer.recipe.steps or trainer.share_of_time >= 1
        reports = trainer.step % options.report_every == 0 or trainer.step == 20 or is_last
        if reports or trainer.step % SAVE_EVERY == 0:
            checkpoint.save(options.checkpoint, **trainer.state())
            trainer.pool.save(pool_file)
        if reports:
            validation = trainer.validate(scenes, held_out)
            sheet, _ = sample_sheet(trainer.network, trainer.tokenizer, decoder, scenes[:16], seed=2)
            sheet.save(options.checkpoint.with_suffix(".png"))
            print(
                f"step {trainer.step}  {time.process_time() - started:.0f} CPU s  pool {len(trainer.pool)}  "
                + "  ".join(f"{name} {np.mean([one[name] for one in losses]):.4f}" for name in losses[0])
                + "  held out: "
                + "  ".join(f"{name} {loss:.3f}" for name, loss in validation.items()),
                flush=True,
            )
            losses.clear()


if __name__ == "__main__":
    main()
