"""Makes a RunSpec from the few numbers that most callers set."""

from collections.abc import Sequence

from triptych.v1.pipeline_pb2 import RunSpec


def make_spec(
    prompt: str,
    *,
    seed: int | None = None,
    candidates: int = 8,
    refine_top: int = 1,
    variations: int = 8,
    upscale_top: int = 1,
    preview_every: int = 0,
    manual: bool = False,
    generator_model: str = "",
    refiner_model: str = "",
    upscaler_model: str = "",
    image_prompts: Sequence[bytes | tuple[bytes, float]] = (),
    text_difference: tuple[str, str] | tuple[str, str, float] | None = None,
) -> RunSpec:
    """As the options of `triptych run`: so many sketches, of the best so many variations each, the best upscaled.

    0 leaves a stage out. With `manual` the run waits after each stage for images to be selected, and `refine_top` and
    `upscale_top` say no more than whether the stage is there. Nothing is checked here; the gateway refuses what it
    cannot serve by the name of the field.

    `image_prompts` are files, each with its weight if it has one, whose content and style the sketches take up: for a
    generator that can see pictures, which `generator_model` may name where several are served. `prompt` may be "" then.
    `text_difference` is a source, a target and a share of the way, 0 to 1: away from what the one means, towards the other.
    """
    spec = RunSpec(prompt=prompt, seed=seed)
    spec.generate.count = candidates
    spec.generate.settings.preview_every = preview_every
    spec.generate.model = generator_model
    for one in image_prompts:
        data, weight = (one, 1.0) if isinstance(one, bytes) else one
        added = spec.generate.image_prompts.add(weight=weight)
        added.image.data = data
    if text_difference:
        source, target, *share = text_difference
        spec.generate.text_difference.source, spec.generate.text_difference.target = source, target
        if share:
            spec.generate.text_difference.weight = share[0]
    refines = refine_top > 0 and variations > 0
    if refines:
        spec.refine.model = refiner_model
        spec.refine.count = variations
        spec.refine.settings.preview_every = preview_every
    if upscale_top > 0:
        spec.upscale.SetInParent()
        spec.upscale.model = upscaler_model
    if manual:
        spec.manual.SetInParent()
        return spec
    spec.automatic.SetInParent()
    if refines:
        spec.automatic.top_k_after_generate = top_k(refine_top, candidates)
    if upscale_top > 0:
        if refines:
            spec.automatic.top_k_after_refine = top_k(upscale_top, refine_top * variations)
        elif prompt.strip():
            spec.automatic.top_k_after_generate = top_k(upscale_top, candidates)
        else:  # without words there is nothing to rank by
            spec.automatic.top_k_after_generate = 0
    return spec


def top_k(top: int, num_images: int) -> int:
    """The contract's `top_k` of the best `top`: 0 for all, so that no image waits for the others."""
    return 0 if top == num_images else top
