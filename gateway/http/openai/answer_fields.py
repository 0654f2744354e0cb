"""How the pictures of a request to OpenAI's API are to be answered: as links or base64, streamed or at once.

What OpenAI accepts and this gateway cannot do is an error under a family's own name, and a warning under OpenAI's.
"""

from gateway.http.openai.fields import FormFields
from gateway.http.openai.models import ModelFamily
from services.errors import InvalidRequest

MAX_PARTIAL_IMAGES = 3


def check_background(fields: FormFields, family: ModelFamily) -> None:
    """Raises InvalidRequest for a transparent background, or warns of it."""
    options = ("auto", "opaque", "transparent")
    if fields.choice("background", options, "auto", ignore_others=family.is_openai) != "transparent":
        return
    if not family.is_openai:
        raise InvalidRequest("background", "pictures are opaque here, got 'transparent'")
    fields.warnings.append("background: pictures are opaque here; 'transparent' has no effect")


def forms_of_answer(fields: FormFields, family: ModelFamily, *, is_stream: bool) -> tuple[bool, bool]:
    """Whether pictures come as links, and whether as base64: each of OpenAI's models has a default of its own."""
    asked = fields.choice("response_format", ("b64_json", "url"), "") if fields.has("response_format") else ""
    if is_stream:
        if asked == "url" and not family.is_openai:
            raise InvalidRequest(
                "response_format", "a stream carries its pictures: must be b64_json with stream"
            )
        return False, True
    if not asked and family.asked_as.startswith("dall-e-"):
        asked = "url"
    if not asked and not family.asked_as:
        # OpenAI's default model is one that answers with links; programs for its newer ones expect base64.
        return True, True
    return asked == "url", asked != "url"


def read_compression(fields: FormFields, family: ModelFamily, output_format: str) -> int:
    """0 to 100, the best. PNG loses nothing: less than 100 is refused for it, or warned of."""
    compression = fields.integer("output_compression", 100, low=0, high=100)
    if output_format == "png" and compression < 100:
        if not family.is_openai:
            raise InvalidRequest("output_compression", "is for jpeg and webp; leave it out for png")
        fields.warnings.append("output_compression: PNG files lose nothing; it has no effect")
    return compression


def read_partial_images(fields: FormFields, family: ModelFamily, *, is_stream: bool) -> int:
    """How many previews of each picture a stream has."""
    partial_images = fields.integer("partial_images", 0, low=0, high=MAX_PARTIAL_IMAGES)
    if not partial_images or is_stream:
        return partial_images
    if not family.is_openai:
        raise InvalidRequest("partial_images", "come in a stream; set stream, too")
    fields.warnings.append("partial_images: come in a stream; without stream it has no effect")
    return 0
