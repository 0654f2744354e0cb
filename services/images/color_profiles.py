"""Converts an embedded ICC profile to sRGB. An unusable profile is ignored."""

import io
import logging

import numpy as np
from PIL import Image, ImageCms

log = logging.getLogger(__name__)

# Of a profile's colour space: Pillow's mode that has its channels.
_MODES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}
_SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
# Colours that show whether a profile is another one than sRGB; its name may say anything.
_PROBE = Image.fromarray(
    np.stack(np.meshgrid(*[np.arange(0, 256, 51).astype(np.uint8)] * 3), -1).reshape(6, 36, 3)
)


def to_srgb(image: Image.Image) -> Image.Image:
    """In mode L, LA, RGB or RGBA and sRGB, by its profile where it has one. `image` has 8 bits a channel and may change."""
    alpha = image.getchannel("A") if "A" in image.getbands() else None
    colours = image.convert(image.mode.rstrip("Aa")) if alpha is not None else image
    transform = _transform(image.info.get("icc_profile"), colours.mode)
    if transform is not None:
        if colours.mode == "RGB":
            # A photo has a hundred megabytes.
            transform.apply_in_place(colours)
        else:
            is_gray = colours.mode == "L"
            colours = transform.apply(colours)
            if is_gray:
                colours = colours.convert("L")
    if colours.mode not in ("L", "RGB"):
        colours = colours.convert("RGB")
    if alpha is not None:
        colours = colours.copy()
        colours.putalpha(alpha)
    return colours


def _transform(data: object, mode: str) -> ImageCms.ImageCmsTransform | None:
    """From the profile to sRGB; None where there is none for these channels, or none that changes a colour."""
    if not isinstance(data, bytes) or not data:
        return None
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(data))
        if _MODES.get(profile.profile.xcolor_space.strip()) != mode:
            return None
        transform = ImageCms.buildTransform(
            profile,
            _SRGB,
            mode,
            "RGB",
            renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
            flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
    except (OSError, ImageCms.PyCMSError, ValueError, AttributeError) as error:
        log.info("a colour profile is not used: %s", error)
        return None
    if mode != "RGB":
        return transform
    change = np.abs(np.asarray(transform.apply(_PROBE)).astype(int) - np.asarray(_PROBE))
    return transform if change.max() > 1 else None
