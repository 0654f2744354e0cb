"""Pictures as telephones, scanners and drawing programs write them, each with the value that is right for it.

`python -m tests.services.images.everyday_images` prints the table of docs/compatibility.md.
"""

import io
import zlib
from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image, ImageCms

from services.images.codec import DecodedImage, ImageLimits, decode_image, decode_with_alpha

LIMITS = ImageLimits()
RAMP = np.linspace(0, 65535, 64 * 48).reshape(48, 64).astype(np.uint16)
COLOURS = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
# x and y of the red, green and blue of a display, and its white, D65.
P3 = ((0.68, 0.32), (0.265, 0.69), (0.15, 0.06))
D65 = (0.3127, 0.3290)


def as_file(image: Image.Image, file_format: str, **more: object) -> bytes:
    file = io.BytesIO()
    image.save(file, file_format, **more)
    return file.getvalue()


def decoded(image: Image.Image, file_format: str = "PNG", **more: object) -> DecodedImage:
    return decode_with_alpha(as_file(image, file_format, **more), LIMITS, "image")


def distance(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(one.astype(float) - other.astype(float)).max())


def shared_profile(name: str) -> bytes:
    """An ICC profile in which no colour changes but by its tone curve or primaries, made by Pillow."""
    return ImageCms.ImageCmsProfile(ImageCms.createProfile(name)).tobytes()


def noise(mode: str) -> Image.Image:
    bands = {"L": 1, "LA": 2, "RGB": 3, "RGBA": 4, "CMYK": 4}[mode]
    values = np.random.default_rng(1).integers(0, 256, (48, 64, bands), dtype=np.uint8)
    return Image.fromarray(values.squeeze(), mode=mode if mode == "CMYK" else None)


def on_white(image: Image.Image) -> np.ndarray:
    rgba = np.asarray(image.convert("RGBA")).astype(float)
    share = rgba[..., 3:] / 255
    return rgba[..., :3] * share + 255 * (1 - share)


def wide_gray() -> Image.Image:
    return Image.fromarray(RAMP)


# What it is; how it is made; what is right; how far from that the result may be.
TABLE: list[tuple[str, Callable[[], bytes], Callable[[], np.ndarray], float]] = [
    *(
        (
            f"{mode} as {name}",
            lambda m=mode, n=name: as_file(noise(m), n, **({"lossless": True} if n == "WEBP" else {})),
            lambda m=mode: on_white(noise(m)),
            1.0,
        )
        for mode, name in [("L", "PNG"), ("LA", "PNG"), ("RGB", "PNG"), ("RGBA", "PNG"), ("RGB", "WEBP")]
    ),
    *(
        (
            f"gray JPEG of quality {q}",
            lambda q=q: as_file(Image.linear_gradient("L"), "JPEG", quality=q),
            lambda: np.dstack([np.asarray(Image.linear_gradient("L"))] * 3),
            6.0,
        )
        for q in (60, 80, 95)
    ),
    *(
        (
            f"smooth {name} {mode}",
            lambda m=mode, n=name: as_file(Image.linear_gradient("L").convert(m), n),
            lambda: np.dstack([np.asarray(Image.linear_gradient("L"))] * 3),
            8.0,
        )
        for name in ("JPEG", "WEBP", "AVIF")
        for mode in ("RGB",)
    ),
    ("16-bit gray", lambda: as_file(wide_gray(), "PNG"), lambda: np.dstack([RAMP / 257] * 3), 0.51),
    ("16-bit black", lambda: as_file(Image.fromarray(RAMP * 0), "PNG"), lambda: np.zeros((48, 64, 3)), 0),
    (
        "16-bit white",
        lambda: as_file(Image.fromarray(RAMP * 0 + 65535), "PNG"),
        lambda: np.full((48, 64, 3), 255),
        0,
    ),
    (
        "16-bit dark",
        lambda: as_file(Image.fromarray(RAMP // 256), "PNG"),
        lambda: np.dstack([RAMP // 256 / 257] * 3),
        0.51,
    ),
    (
        "1 bit",
        lambda: as_file(Image.fromarray(RAMP > 30000), "PNG"),
        lambda: np.dstack([(RAMP > 30000) * 255] * 3),
        0,
    ),
    (
        "palette",
        lambda: as_file(Image.fromarray(COLOURS).quantize(16), "PNG"),
        lambda: np.asarray(Image.fromarray(COLOURS).quantize(16).convert("RGB")),
        0,
    ),
    *(
        (
            f"palette of {n}",
            lambda n=n: as_file(Image.fromarray(COLOURS).quantize(n), "PNG"),
            lambda n=n: np.asarray(Image.fromarray(COLOURS).quantize(n).convert("RGB")),
            0,
        )
        for n in (2, 4, 256)
    ),
    (
        "palette with a transparent colour",
        lambda: as_file(Image.fromarray(COLOURS).quantize(4), "PNG", transparency=0),
        lambda: np.where(
            (np.asarray(Image.fromarray(COLOURS).quantize(4)) == 0)[..., None],
            255,
            np.asarray(Image.fromarray(COLOURS).quantize(4).convert("RGB")),
        ),
        0,
    ),
    (
        "RGB with a transparent colour",
        lambda: as_file(Image.new("RGB", (9, 9), (1, 2, 3)), "PNG", transparency=(1, 2, 3)),
        lambda: np.full((9, 9, 3), 255),
        0,
    ),
    (
        "gray with a transparent level",
        lambda: as_file(Image.new("L", (9, 9), 7), "PNG", transparency=7),
        lambda: np.full((9, 9, 3), 255),
        0,
    ),
    (
        "gray that is not the transparent level",
        lambda: as_file(Image.new("L", (9, 9), 8), "PNG", transparency=7),
        lambda: np.full((9, 9, 3), 8),
        0,
    ),
    (
        "CMYK JPEG without ink",
        lambda: as_file(Image.new("CMYK", (16, 16)), "JPEG"),
        lambda: np.full((16, 16, 3), 255),
        1,
    ),
    (
        "CMYK JPEG of black",
        lambda: as_file(Image.new("CMYK", (16, 16), (0, 0, 0, 255)), "JPEG"),
        lambda: np.zeros((16, 16, 3)),
        1,
    ),
    (
        "sRGB profile",
        lambda: as_file(Image.fromarray(COLOURS), "PNG", icc_profile=shared_profile("sRGB")),
        lambda: COLOURS,
        0,
    ),
    (
        "damaged profile",
        lambda: as_file(Image.fromarray(COLOURS), "PNG", icc_profile=b"no profile"),
        lambda: COLOURS,
        0,
    ),
    (
        "cut profile",
        lambda: as_file(Image.fromarray(COLOURS), "PNG", icc_profile=shared_profile("sRGB")[:200]),
        lambda: COLOURS,
        0,
    ),
    (
        "RGB profile on gray",
        lambda: as_file(noise("L"), "PNG", icc_profile=shared_profile("sRGB")),
        lambda: np.dstack([np.asarray(noise("L"))] * 3),
        0,
    ),
    (
        "Lab profile",
        lambda: as_file(Image.fromarray(COLOURS), "PNG", icc_profile=shared_profile("LAB")),
        lambda: COLOURS,
        0,
    ),
    *(
        (
            f"turned by EXIF {turn}",
            lambda t=turn: as_file(Image.fromarray(COLOURS), "PNG", exif=exif_of(t)),
            lambda t=turn: turned(COLOURS, t),
            0,
        )
        for turn in range(1, 9)
    ),
    (
        "EXIF that is none",
        lambda: as_file(Image.fromarray(COLOURS), "JPEG", exif=b"Exif\0\0junk", quality=100, subsampling=0),
        lambda: COLOURS,
        6,
    ),
    *(
        (
            f"EXIF that is none in {kind}",
            lambda k=kind: _with_damaged_exif(k),
            lambda: COLOURS,
            0,
        )
        for kind in ("PNG", "WEBP")
    ),
    (
        "progressive JPEG",
        lambda: as_file(Image.linear_gradient("L").convert("RGB"), "JPEG", progressive=True),
        lambda: np.dstack([np.asarray(Image.linear_gradient("L"))] * 3),
        6,
    ),
    (
        "optimized PNG",
        lambda: as_file(Image.fromarray(COLOURS), "PNG", optimize=True),
        lambda: COLOURS,
        0,
    ),
    (
        "one pixel",
        lambda: as_file(Image.new("RGB", (1, 1), (9, 8, 7)), "PNG"),
        lambda: np.array([[[9, 8, 7]]]),
        0,
    ),
    *(
        (
            f"RGB as {name}",
            lambda n=name: as_file(Image.fromarray(COLOURS), n),
            lambda: COLOURS,
            0,
        )
        for name in ("BMP", "TIFF")
    ),
    ("16-bit gray TIFF", lambda: as_file(wide_gray(), "TIFF"), lambda: np.dstack([RAMP / 257] * 3), 0.51),
    *(
        (
            f"TIFF turned by {turn}",
            lambda t=turn: as_file(Image.fromarray(COLOURS), "TIFF", exif=exif_of(t)),
            lambda t=turn: turned(COLOURS, t),
            0,
        )
        for turn in (6, 7)
    ),
    (
        "first picture of an animated GIF",
        lambda: as_file(
            Image.new("RGB", (8, 8), "red"),
            "GIF",
            save_all=True,
            append_images=[Image.new("RGB", (8, 8), "blue")],
        ),
        lambda: np.full((8, 8, 3), (255, 0, 0)),
        1,
    ),
    (
        "GIF with a transparent colour",
        lambda: as_file(Image.fromarray(COLOURS).quantize(4), "GIF", transparency=0),
        lambda: np.where(
            (np.asarray(Image.fromarray(COLOURS).quantize(4)) == 0)[..., None],
            255,
            np.asarray(Image.fromarray(COLOURS).quantize(4).convert("RGB")),
        ),
        0,
    ),
    *(
        (
            f"Display P3 as {name}",
            lambda n=name: as_file(Image.new("RGB", (64, 48), (200, 80, 60)), n, icc_profile=display_p3()),
            lambda: np.full((48, 64, 3), (216, 69, 50)),
            most,
        )
        for name, most in (("PNG", 1), ("JPEG", 3), ("HEIF", 3))
    ),
    (
        "first picture of an animation",
        lambda: as_file(
            Image.new("RGB", (8, 8), "red"),
            "WEBP",
            save_all=True,
            append_images=[Image.new("RGB", (8, 8), "blue")],
            lossless=True,
        ),
        lambda: np.full((8, 8, 3), (255, 0, 0)),
        1,
    ),
]


def _with_damaged_exif(kind):
    """Pillow refuses to write such a block, so that a whole one is damaged."""
    more = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    data = as_file(Image.fromarray(COLOURS), kind, exif=exif_of(1), **more)
    place = data.index(b"eXIf" if kind == "PNG" else b"EXIF") + (4 if kind == "PNG" else 8)
    chunk = bytearray(data)
    length = int.from_bytes(chunk[place - 8 : place - 4], "big") if kind == "PNG" else 8
    chunk[place : place + 4] = b"junk"
    if kind == "PNG":
        end = place + length
        chunk[end : end + 4] = zlib.crc32(chunk[place - 4 : end]).to_bytes(4, "big")
    return bytes(chunk)


def exif_of(turn: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = turn
    return exif


def turned(pixels: np.ndarray, turn: int) -> np.ndarray:
    """By the definition of each value: where the first row and the first column are seen."""
    swapped = pixels.transpose(1, 0, 2) if turn >= 5 else pixels
    flips = {1: "", 2: "x", 3: "xy", 4: "y", 5: "", 6: "x", 7: "xy", 8: "y"}[turn]
    return swapped[:: -1 if "y" in flips else 1, :: -1 if "x" in flips else 1]


def display_p3() -> bytes:
    """A profile of Display P3: sRGB's from Pillow, with other primaries (ICC.1:2010, 9.2: rXYZ, gXYZ, bXYZ)."""
    x, y = D65
    to_xyz = np.array([[a / b, 1, (1 - a - b) / b] for a, b in P3]).T
    white = np.array([x / y, 1, (1 - x - y) / y])
    primaries = to_xyz * np.linalg.solve(to_xyz, white)
    # Bradford's adaptation to D50, which profiles are written for.
    bradford = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
    d50 = np.array([0.9642, 1.0, 0.8249])
    scale = np.diag((bradford @ d50) / (bradford @ white))
    adapted = np.linalg.inv(bradford) @ scale @ bradford @ primaries
    profile = bytearray(shared_profile("sRGB"))
    for place in range(int.from_bytes(profile[128:132], "big")):
        entry = 132 + 12 * place
        name = bytes(profile[entry : entry + 4])
        if name in (b"rXYZ", b"gXYZ", b"bXYZ"):
            start = int.from_bytes(profile[entry + 4 : entry + 8], "big") + 8
            for row in range(3):
                value = round(adapted[row, "rgb".index(chr(name[0]))] * 65536)
                profile[start + 4 * row : start + 4 * row + 4] = value.to_bytes(4, "big", signed=True)
    return bytes(profile)


def rows() -> Iterator[str]:
    """Of a table in Markdown: what it is, its format and size, and how far the result is from what is right."""
    yield "| picture | file | result | largest difference from the right value, of 255 | at most |"
    yield "|---|---|---|---|---|"
    for name, make, right, most in TABLE:
        data = make()
        with Image.open(io.BytesIO(data)) as image:
            file = f"{image.format}, {image.mode}, {image.width}x{image.height}"
        got = decode_image(data, LIMITS, "image")
        yield f"| {name} | {file} | {got.shape[1]}x{got.shape[0]} | {distance(got, right()):.2g} | {most:g} |"


if __name__ == "__main__":
    print("\n".join(rows()))
