"""What a stage's own fuzz tests share: any message and any bytes at every method of its service."""

from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message_factory import GetMessageClass
from hypothesis import strategies as st

from tests.fuzz.answers import call
from tests.fuzz.strategies import messages

# What gets past the first checks, so that later ones are met, too.
KNOWN = {"prompt": ("a red house",), "num_steps": (1, 2), "preview_every": (0, 1), "tile_size": (16,)}

raw = st.binary(max_size=200)


async def answer_any_message(channel, service: ServiceDescriptor, data: st.DataObject) -> None:
    """Fails unless whatever is drawn from `data` gets a good answer from a method of the service."""
    method = data.draw(st.sampled_from(list(service.methods)))
    request = data.draw(messages(method.input_type, KNOWN))
    for answer in await call(channel, method, request):
        GetMessageClass(method.output_type).FromString(answer)


async def answer_any_bytes(channel, service: ServiceDescriptor, data: bytes) -> None:
    """As above, for bytes in place of a message."""
    for method in service.methods:
        await call(channel, method, data, serializer=bytes)
