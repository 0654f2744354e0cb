"""The table of the model families: for each architecture of a stage its parts, its package, its libraries and its memory.

A manifest's `architecture` selects a family. What a family computes is in its package.
"""

from dataclasses import dataclass

from services.errors import ModelError


@dataclass(frozen=True, kw_only=True)
class Family:
    """One architecture of one stage. `parts` are the folders of a model: those that it needs, and those that it may have."""

    # The worker's name, such as "generator".
    stage: str
    # As a manifest names it.
    architecture: str
    # Below `services`; it has `service.py` or is the stage's own, and `conversion/`.
    package: str
    # Of triptych-server: what pip installs for it.
    extra: str
    framework: str
    parts: tuple[str, ...]
    optional_parts: tuple[str, ...] = ()
    # Numbers that a step and the decoding of images hold at once, from the widths of the published networks.
    working_numbers: float

    @property
    def all_parts(self) -> tuple[str, ...]:
        return (*self.parts, *self.optional_parts)

    @property
    def written_architecture(self) -> str:
        """As new manifests have it: the first family of a stage is left out, so that older versions read them."""
        return "" if self is default_family(self.stage) else self.architecture


# The first of a stage is its default: every manifest without an `architecture` is of it.
FAMILIES = (
    Family(
        stage="generator",
        architecture="dalle",
        package="generator.dalle",
        extra="generator",
        framework="jax",
        parts=("dalle", "vqgan"),
        # Four images in the VQGAN.
        working_numbers=0.13e9,
    ),
    Family(
        stage="generator",
        architecture="unclip",
        package="generator.unclip",
        extra="unclip",
        framework="torch",
        parts=("text_encoder", "text_proj", "decoder"),
        optional_parts=("prior", "image_encoder", "super_res_first", "super_res_last"),
        # Eight rows of Karlo's super-resolution.
        working_numbers=1.0e9,
    ),
    Family(
        stage="refiner",
        architecture="glid-3-xl",
        package="refiner",
        extra="refiner",
        framework="torch",
        parts=("bert", "clip", "unet", "autoencoder"),
        # 16 rows of GLID-3-xl's UNet and eight images in its autoencoder.
        working_numbers=0.4e9,
    ),
    Family(
        stage="upscaler",
        architecture="swinir",
        package="upscaler",
        extra="upscaler",
        framework="torch",
        parts=("swinir",),
        # A tile of SwinIR-L.
        working_numbers=0.17e9,
    ),
)
FAMILY_OF_PART = {part: family for family in FAMILIES for part in family.all_parts}


def default_family(stage: str) -> Family:
    return next(family for family in FAMILIES if family.stage == stage)


def find_family(stage: str, architecture: str = "", where: str = "the manifest") -> Family:
    """Raises ModelError for an architecture that the stage does not have; "" is the stage's default."""
    if not architecture:
        return default_family(stage)
    of_stage = [family for family in FAMILIES if family.stage == stage]
    for family in of_stage:
        if family.architecture == architecture:
            return family
    known = ", ".join(f"'{family.architecture}'" for family in of_stage)
    raise ModelError(f"{where} is of the architecture '{architecture}': expected {known} or '', of a {stage}")
