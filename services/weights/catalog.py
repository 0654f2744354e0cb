"""The catalog of published models: names, files, licences.

Addresses are those of the original projects. Some may be gone: `triptych weights pull NAME --from FOLDER` takes the
same files from anywhere else. Numbers of parameters come from the published configurations.
"""

from dataclasses import dataclass
from math import prod
from pathlib import Path

from services.device_memory import ModelSize
from services.errors import ModelError
from services.families import Family, find_family
from services.weights.formats.safetensors_file import read_safetensors
from services.weights.model_folder import Manifest, read_config


@dataclass(frozen=True)
class Source:
    """The published file or files that one part is converted from."""

    part: str
    # With several files: the folder that they are in.
    location: str
    files: tuple[str, ...] = ()
    # Addresses of files that make the part better and that it does without.
    optional: tuple[str, ...] = ()
    num_params: float = 0.0
    # Of a number as it was published, and as it is kept.
    itemsize: int = 4
    # Of the one file, if its publisher states it.
    sha256: str = ""


@dataclass(frozen=True)
class KnownModel:
    name: str
    stage: str
    licence: str
    sources: tuple[Source, ...]
    # Of a family in services/families.py; "": the stage's default.
    architecture: str = ""
    # What its users and operators must know.
    notices: str = ""
    # Numbers of the keys and values that one picture takes while it is drawn.
    cache_numbers: float = 0

    @property
    def family(self) -> Family:
        return find_family(self.stage, self.architecture)

    @property
    def needs(self) -> tuple[str, ...]:
        """What pip must have installed where it is pulled from where it was published."""
        from_wandb = any(source.location.startswith("wandb://") for source in self.sources)
        return (
            f"triptych-server[{self.family.extra},weights]",
            *(("wandb",) if from_wandb else ()),
        )

    @property
    def size(self) -> ModelSize:
        """What its memory on a GPU follows from."""
        num_params = sum(source.num_params for source in self.sources)
        return ModelSize(self.family, num_params, self.cache_numbers)

    @property
    def num_bytes(self) -> int:
        """Of its weights as they were published: what is downloaded, and lies on the disk."""
        return round(sum(source.num_params * source.itemsize for source in self.sources))


# By which hashtags are split into words; the original code takes it from here for every model.
_WORDS = ("hf://dalle-mini/dalle-mini/enwiki-words-frequency.txt",)
_TOKENIZED = ("config.json", "flax_model.msgpack", "merges.txt", "tokenizer.json", "vocab.json")
_CODES = Source(
    "vqgan",
    "hf://dalle-mini/vqgan_imagenet_f16_16384",
    ("config.json", "flax_model.msgpack"),
    num_params=76.1e6,
)
_DALLE_LICENCE = "Apache-2.0"

_GLID = "https://dall-3.com/models/glid-3-xl"
_CLIP_SHA256 = "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836"
_CLIP = Source(
    "clip",
    f"https://openaipublic.azureedge.net/clip/models/{_CLIP_SHA256}/ViT-L-14.pt",
    num_params=427.6e6,
    itemsize=2,
    sha256=_CLIP_SHA256,
)
_SWINIR = "https://github.com/JingyunLiang/SwinIR/releases/download/v0.0"


def _cache_numbers(decoder_layers: int, d_model: int) -> int:
    """Keys and values of 256 positions in the rows with the prompt and without."""
    return 2 * 2 * decoder_layers * 256 * d_model


def _glid(name: str, unet: str, num_params: float) -> KnownModel:
    return KnownModel(
        name,
        "refiner",
        "MIT",
        (
            Source("bert", f"{_GLID}/bert.pt", num_params=582.0e6),
            _CLIP,
            Source("unet", f"{_GLID}/{unet}", num_params=num_params),
            Source("autoencoder", f"{_GLID}/kl-f8.pt", num_params=83.7e6),
        ),
    )


def _swinir(name: str, file: str, num_params: float) -> KnownModel:
    source = Source("swinir", f"{_SWINIR}/{file}", num_params=num_params)
    return KnownModel(name, "upscaler", "Apache-2.0", (source,))


_KARLO = "hf://kakaobrain/karlo-v1-alpha"
_KARLO_NOTICES = (
    "Code and weights of Karlo are under the CreativeML Open RAIL-M licence "
    "(https://github.com/kakaobrain/karlo/blob/main/LICENSE). Its use-based restrictions (Attachment A) bind every user, "
    "also one who is served over a network: who serves it must bind users to them and give them a copy."
)


def _karlo(part: str, num_params: float, *beside: str) -> Source:
    name = "model" if part == "text_encoder" else "diffusion_pytorch_model"
    return Source(
        part,
        f"{_KARLO}/{part}",
        ("config.json", f"{name}.safetensors"),
        tuple(f"{_KARLO}/{file}" for file in beside),
        num_params=num_params,
    )


KNOWN = {
    (model.stage, model.name): model
    for model in (
        KnownModel(
            "mini",
            "generator",
            _DALLE_LICENCE,
            (Source("dalle", "hf://dalle-mini/dalle-mini", _TOKENIZED, _WORDS, num_params=437.8e6), _CODES),
            cache_numbers=_cache_numbers(12, 1024),
        ),
        KnownModel(
            "mega",
            "generator",
            _DALLE_LICENCE,
            (
                Source(
                    "dalle",
                    "wandb://dalle-mini/dalle-mini/mega-1-fp16:latest",
                    _TOKENIZED,
                    _WORDS,
                    num_params=2587.5e6,
                    itemsize=2,
                ),
                _CODES,
            ),
            cache_numbers=_cache_numbers(24, 2048),
        ),
        KnownModel(
            "mega_full",
            "generator",
            _DALLE_LICENCE,
            (Source("dalle", "hf://dalle-mini/dalle-mega", _TOKENIZED, _WORDS, num_params=2587.5e6), _CODES),
            cache_numbers=_cache_numbers(24, 2048),
        ),
        KnownModel(
            "karlo",
            "generator",
            "CreativeML Open RAIL-M",
            (
                _karlo("text_encoder", 123.7e6, "tokenizer/vocab.json", "tokenizer/merges.txt"),
                _karlo("text_proj", 7.9e6),
                _karlo("decoder", 885.4e6, "decoder_scheduler/scheduler_config.json"),
                _karlo("prior", 1022.0e6, "prior_scheduler/scheduler_config.json"),
                # CLIP's other tower is not in Karlo's own folder of safetensors.
                Source(
                    "image_encoder",
                    "hf://openai/clip-vit-large-patch14",
                    ("config.json", "model.safetensors"),
                    num_params=427.6e6,
                ),
                _karlo("super_res_first", 691.6e6, "super_res_scheduler/scheduler_config.json"),
                _karlo("super_res_last", 691.6e6, "super_res_scheduler/scheduler_config.json"),
            ),
            architecture="unclip",
            notices=_KARLO_NOTICES,
        ),
        _glid("glid-3-xl", "diffusion.pt", 872.3e6),
        _glid("glid-3-xl-finetuned", "finetune.pt", 873.3e6),
        _glid("glid-3-xl-inpaint", "inpaint.pt", 873.3e6),
        _swinir("real-l", "003_realSR_BSRGAN_DFOWMFC_s64w8_SwinIR-L_x4_GAN.pth", 28.0e6),
        _swinir("real-m", "003_realSR_BSRGAN_DFO_s64w8_SwinIR-M_x4_GAN.pth", 11.7e6),
        _swinir("classical", "001_classicalSR_DF2K_s64w8_SwinIR-M_x4.pth", 11.9e6),
        _swinir("lightweight", "002_lightweightSR_DIV2K_s64w8_SwinIR-S_x4.pth", 0.93e6),
    )
}


def model_size(folder: Path, manifest: Manifest) -> ModelSize:
    """What the memory of a model that is here follows from. Raises ModelError for a damaged file."""
    num_params = sum(
        prod(tensor.shape)
        for name in manifest.files
        if name.endswith("/model.safetensors")
        for tensor in read_safetensors(folder / name).values()
    )
    family = find_family(manifest.stage, manifest.architecture)
    if family.architecture != "dalle":
        return ModelSize(family, num_params)
    config = read_config(folder / "dalle")
    names = ("decoder_layers", "image_length", "d_model")
    return ModelSize(family, num_params, 4 * prod(int(config[name]) for name in names))


def known_model(name: str, stage: str | None = None) -> KnownModel:
    """Raises ModelError listing the names."""
    for (of_stage, known), model in KNOWN.items():
        if known == name and stage in (None, of_stage):
            return model
    of = f" {stage}" if stage else ""
    names = ", ".join(known for of_stage, known in KNOWN if stage in (None, of_stage))
    raise ModelError(f"no{of} model is known as '{name}': expected one of {names}")
