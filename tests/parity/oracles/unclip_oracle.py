"""diffusers' two unCLIP pipelines, built from parts with random weights, and what they computed at every step.

Runs in its own environment: `python unclip_oracle.py FOLDER`. FOLDER/cases.json: {name: case}; a case has the settings of
every part, the prompts (or the sizes of pictures), the steps and the guidance scales. For each, NAME/hub is written as
diffusers saves its parts, and NAME/golden holds the vectors under the names of tests/golden/unclip/README.md.
"""

import inspect
import json
import shutil
import sys
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

warnings.simplefilter("ignore")

from diffusers import (  # noqa: E402
    PriorTransformer,
    UnCLIPImageVariationPipeline,
    UnCLIPPipeline,
    UnCLIPScheduler,
    UNet2DConditionModel,
    UNet2DModel,
)
from diffusers.pipelines.deprecated.unclip import (  # noqa: E402
    pipeline_unclip,
    pipeline_unclip_image_variation,
)
from diffusers.pipelines.deprecated.unclip.text_proj import UnCLIPTextProjModel  # noqa: E402
from diffusers.schedulers import scheduling_unclip  # noqa: E402
from transformers import (  # noqa: E402
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

NETWORKS = {
    "prior": PriorTransformer,
    "text_proj": UnCLIPTextProjModel,
    "decoder": UNet2DConditionModel,
    "super_res_first": UNet2DModel,
    "super_res_last": UNet2DModel,
}


@torch.no_grad()
def main() -> None:
    folder = Path(sys.argv[1])
    for seed, (name, case) in enumerate(json.loads((folder / "cases.json").read_text()).items()):
        compute(folder / name, folder / "tokenizer", case, seed, name)


def compute(folder: Path, tokenizer: Path, case: dict, seed: int, name: str) -> None:
    parts = build(folder / "hub", tokenizer, case, torch.Generator().manual_seed(seed))
    recorder = Recorder(parts, torch.Generator().manual_seed(seed + 1000))
    if "prompt" in case:
        pipeline = UnCLIPPipeline(**{p: parts[p] for p in inspect.signature(UnCLIPPipeline).parameters})
        inputs = {"prompt": case["prompt"], "prior_num_inference_steps": case["steps"][0]}
        inputs["prior_guidance_scale"] = case["guidance"][0]
    else:
        pipeline = UnCLIPImageVariationPipeline(
            **{p: parts[p] for p in inspect.signature(UnCLIPImageVariationPipeline).parameters}
        )
        pictures = [picture(size, i) for i, size in enumerate(case["sizes"])]
        for i, one in enumerate(pictures):
            one.save(folder / f"{i}.png")
        inputs = {"image": pictures}
    pipeline.set_progress_bar_config(disable=True)
    drawn = pipeline(
        **inputs,
        num_images_per_prompt=case["num"],
        decoder_num_inference_steps=case["steps"][1],
        super_res_num_inference_steps=case["steps"][2],
        decoder_guidance_scale=case["guidance"][1],
        output_type="np",
    ).images
    recorder.arrays["picture"] = torch.from_numpy(np.ascontiguousarray(drawn))
    (folder / "golden").mkdir()
    save_file(
        {n: t.contiguous() for n, t in recorder.arrays.items()}, folder / "golden" / f"{name}.safetensors"
    )
    (folder / "golden" / "cases.json").write_text(json.dumps({"cases": {name: case | recorder.timesteps}}))


def build(folder: Path, tokenizer: Path, case: dict, rng: torch.Generator) -> dict:
    """All parts, saved as the hub has them."""
    text, vision = case["text_encoder"], case["image_encoder"]
    act = {"hidden_act": "quick_gelu"}
    # With 2 the state of the highest id is read, as in the published CLIP.
    ids = {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}
    parts = {
        "text_encoder": CLIPTextModelWithProjection(CLIPTextConfig(**text, **act, **ids)),
        "image_encoder": CLIPVisionModelWithProjection(CLIPVisionConfig(**vision, **act)),
        **{name: network(**case[name]) for name, network in NETWORKS.items()},
    }
    for name, network in parts.items():
        randomize(network.eval(), rng)
        network.save_pretrained(folder / name)
    for name in ("prior_scheduler", "decoder_scheduler", "super_res_scheduler"):
        parts[name] = UnCLIPScheduler(**case[name])
        parts[name].save_pretrained(folder / name)
    shutil.copytree(tokenizer, folder / "tokenizer")
    side = vision["image_size"]
    parts["tokenizer"] = CLIPTokenizer.from_pretrained(
        folder / "tokenizer", model_max_length=text["max_position_embeddings"]
    )
    parts["feature_extractor"] = CLIPImageProcessor(
        size={"shortest_edge": side}, crop_size={"height": side, "width": side}
    )
    return parts


def randomize(network: torch.nn.Module, rng: torch.Generator) -> None:
    """Of a size at which every tensor matters."""
    for name, parameter in network.named_parameters():
        noise = torch.randn(parameter.shape, generator=rng)
        if name == "clip_std":
            parameter.copy_(1 + 0.2 * noise.abs())
        elif parameter.ndim == 1:
            parameter.copy_(0.1 * noise + float("norm" in name and name.endswith("weight")))
        else:
            parameter.copy_(noise / parameter[0].numel() ** 0.5)


def picture(size: list[int], seed: int) -> Image.Image:
    height, width = size
    pixels = np.random.RandomState(seed).randint(0, 256, (height // 4 + 1, width // 4 + 1, 3), np.uint8)
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)


class Recorder:
    """Follows the parts of a pipeline and draws its noise, in float16 as the vectors have it."""

    def __init__(self, parts: dict, rng: torch.Generator) -> None:
        self.arrays: dict[str, torch.Tensor] = {}
        self.timesteps: dict[str, list[int]] = {}
        self.rng = rng
        self.drawn = self.raw = self.ids = torch.empty(0)
        for module in (scheduling_unclip, pipeline_unclip, pipeline_unclip_image_variation):
            module.randn_tensor = self.draw
        for part in ("prior", "decoder", "super_res_first", "super_res_last"):
            parts[part].register_forward_hook(self.output, with_kwargs=True)
        for part in ("prior", "decoder", "super_res"):
            self.follow(part, parts[f"{part}_scheduler"])
        parts["text_encoder"].register_forward_hook(self.text)
        parts["text_encoder"].register_forward_pre_hook(self.tokens)
        parts["image_encoder"].register_forward_hook(self.image)
        parts["text_proj"].register_forward_hook(self.conditioning, with_kwargs=True)

    def draw(self, shape, generator=None, device=None, dtype=None, layout=None) -> torch.Tensor:
        self.drawn = torch.randn(tuple(shape), generator=self.rng).half().float()
        return self.drawn

    def follow(self, part: str, scheduler: UnCLIPScheduler) -> None:
        advance = scheduler.step

        def step(output, timestep, sample, **options):
            timesteps = self.timesteps.setdefault(f"{part}.timesteps", [])
            i = len(timesteps)
            timesteps.append(int(timestep))
            if i == 0:
                self.arrays[f"{part}.initial"] = sample.clone()
            self.arrays[f"{part}.{i}.output"] = self.raw
            found = advance(output, timestep, sample, **options)
            if int(timestep) > 0:
                self.arrays[f"{part}.{i}.noise"] = self.drawn
            self.arrays[f"{part}.{i}.prev"] = found.prev_sample
            return found

        scheduler.step = step

    def output(self, network, _inputs, options, output) -> None:
        self.raw = output[0].clone()
        if isinstance(network, UNet2DModel):
            self.arrays["upscaled"] = options["sample"].chunk(2, dim=1)[1]

    def tokens(self, _network, inputs) -> None:
        self.ids = inputs[0]

    def text(self, _network, _inputs, output) -> None:
        kind = "empty" if "input_ids" in self.arrays else "text"
        self.arrays[f"{kind}.text_embeds"] = output.text_embeds
        self.arrays[f"{kind}.last_hidden_state"] = output.last_hidden_state
        if kind == "text":
            self.arrays["input_ids"] = self.ids
            ends = self.ids.argmax(dim=1, keepdim=True)
            self.arrays["attention_mask"] = (torch.arange(self.ids.shape[1]) <= ends).long()

    def image(self, _network, inputs, output) -> None:
        self.arrays["pixel_values"] = inputs[0]
        self.arrays["image_embeds"] = output.image_embeds

    def conditioning(self, _network, _inputs, options, output) -> None:
        if "image_embeds" not in self.arrays:
            self.arrays["image_embedding"] = options["image_embeddings"]
        self.arrays["text_proj.encoder_hidden_states"], self.arrays["text_proj.class_labels"] = output


if __name__ == "__main__":
    main()
