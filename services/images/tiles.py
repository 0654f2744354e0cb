"""The rules of tiles, for the upscaler that cuts them and for the gateway that checks requests."""

from services.errors import InvalidRequest


def padded_size(size: int, multiple: int) -> int:
    """The side of an image in one piece, in pixels: the next multiple above its own."""
    return (size // multiple + 1) * multiple


def check_tiling(
    tile_size: int, tile_overlap: int, *, multiple: int, max_tile_size: int, path: str = ""
) -> None:
    """Raises InvalidRequest by the field, after `path`; a `tile_size` of 0 is the image in one piece. In pixels."""
    if tile_size == 0:
        if tile_overlap < 0:
            raise InvalidRequest(f"{path}tile_overlap", f"must be 0 or more, got {tile_overlap}")
        return
    if not 2 * multiple <= tile_size <= max_tile_size or tile_size % multiple:
        raise InvalidRequest(
            f"{path}tile_size",
            f"must be 0 (the picture in one piece) or a multiple of {multiple} from {2 * multiple} to {max_tile_size}, "
            f"got {tile_size}",
        )
    if not 0 <= tile_overlap <= tile_size - multiple:
        raise InvalidRequest(
            f"{path}tile_overlap",
            f"must be 0 to {tile_size - multiple} with tiles of {tile_size}, got {tile_overlap}",
        )
