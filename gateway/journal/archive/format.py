"""The format of an archive of runs: names and sizes of its members, and a run as one of them.

An archive is a tar file. `archive.json` comes first and has the format's version. Every picture comes before the first run
that has it. `SHA256SUMS` comes last, so an archive that was cut off is noticed; `sha256sum -c` reads it, too.
"""

import base64
import binascii
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import DecodeError

from gateway.events.run_state import RunState, attachments_in_event, image_name, without_data
from services.errors import TriptychError
from triptych.v1.pipeline_pb2 import Event, Image

FORMAT = 1
HEADER, SUMS = "archive.json", "SHA256SUMS"
RUN = re.compile(r"runs/[0-9a-f]{16}")
RUN_MEMBER = re.compile(r"(runs/[0-9a-f]{16})\.json")
PICTURE_MEMBER = re.compile(r"pictures/([0-9a-f]{64})")
SHA256 = re.compile(r"[0-9a-f]{64}")
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
_MIME_TYPE = re.compile(r"image/[a-z0-9.+-]{1,40}")

MAX_HEADER_BYTES = 64 * 2**10
# A run of 32 images with 23 events each has 0.2 MB here.
MAX_RUN_BYTES = 64 * 2**20
# The largest upscaled picture, of 400 megapixels, as the PNG of noise.
MAX_PICTURE_BYTES = 2 * 2**30
MAX_SUMS_BYTES = 256 * 2**20
MAX_TEXT_CHARS = 1_000


class InvalidArchive(TriptychError):
    """The archive is damaged, cut off, or none of ours; nothing of it was taken."""

    reason = "BAD_ARCHIVE"


@dataclass(frozen=True)
class ArchivedRun:
    """What cannot be derived from the events, and the events themselves; a preview has no content."""

    name: str
    caller: str
    request_id: str
    asked: bytes
    is_detached: bool
    deadline_ns: int | None
    traceparent: str
    events: tuple[Event, ...]
    init_images: tuple[Image, ...]

    def state(self) -> RunState:
        return RunState(self.events)

    def images(self) -> list[Image]:
        """Every picture of the run, masks and those that it started from included, without their files."""
        images = list(self.init_images)
        for event in self.events:
            if event.HasField("image_ready"):
                images.append(without_data(event.image_ready.image))
            images += attachments_in_event(event, self.name)
        return images

    def to_json(self) -> bytes:
        fields = {
            "name": self.name,
            "caller": self.caller,
            "request_id": self.request_id,
            "asked": self.asked.hex(),
            "is_detached": self.is_detached,
            "deadline_ns": self.deadline_ns,
            "traceparent": self.traceparent,
            "events": [_encode(b"" if _is_preview(one) else one.SerializeToString()) for one in self.events],
            "init_images": [_encode(one.SerializeToString()) for one in self.init_images],
        }
        return json.dumps(fields).encode()

    @classmethod
    def from_json(cls, data: bytes) -> "ArchivedRun":
        """Raises InvalidArchive for anything that a gateway would not have written."""
        try:
            fields: Mapping[str, Any] = json.loads(data)
            run = cls(
                name=_text(fields["name"]),
                caller=_text(fields["caller"]),
                request_id=_text(fields["request_id"]),
                asked=bytes.fromhex(_text(fields["asked"])),
                is_detached=fields["is_detached"],
                deadline_ns=fields["deadline_ns"],
                traceparent=_text(fields["traceparent"]),
                events=tuple(_events(fields["events"])),
                init_images=tuple(Image.FromString(_decode(one)) for one in fields["init_images"]),
            )
            run._check()
        # A tree that is too deep, a number that is too long, and events that do not follow from each other.
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError, DecodeError) as error:
            raise InvalidArchive(f"is no run: {type(error).__name__} {str(error)[:120]}") from None
        return run

    def _check(self) -> None:
        """Raises ValueError, or what the state's fold raises."""
        # As JSON has them.
        deadline: Any = self.deadline_ns
        is_detached: Any = self.is_detached
        if not (
            RUN.fullmatch(self.name)
            and len(self.asked) == 32
            and isinstance(is_detached, bool)
            and (deadline is None or isinstance(deadline, int) and 0 <= deadline < 2**63)
            and (not self.traceparent or _TRACEPARENT.fullmatch(self.traceparent))
        ):
            raise ValueError("a field that no gateway writes")
        if not self.events or self.events[0].state.run != self.name:
            raise ValueError("its first event is not that of the run")
        self.state()
        for index, image in enumerate(self.init_images):
            if image.name != f"{self.name}/images/init-{index}" or image.data:
                raise ValueError(f"a picture that it starts from with the name {image.name[:60]!r}")
        for event in self.events:
            if event.HasField("image_ready"):
                image = event.image_ready.image
                if image.name != image_name(self.name, image.stage, image.index):
                    raise ValueError(f"an image of another run: {image.name[:60]!r}")
        for image in self.images():
            if not SHA256.fullmatch(image.sha256):
                raise ValueError(f"{image.name} names no file: {image.sha256[:80]!r}")
            if image.mime_type and not _MIME_TYPE.fullmatch(image.mime_type) or "svg" in image.mime_type:
                raise ValueError(f"{image.name} is no picture: {image.mime_type[:40]!r}")


def _events(encoded: Sequence[str]) -> Iterable[Event]:
    for sequence, text in enumerate(encoded, 1):
        event = Event.FromString(_decode(text)) if text else Event(preview=Event.ImagePreview())
        if text and event.sequence != sequence:
            raise ValueError(f"event {sequence} has the number {event.sequence}")
        event.sequence = sequence
        yield event


def _is_preview(event: Event) -> bool:
    return event.HasField("preview")


def _encode(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _decode(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError(str(error)) from None


def _text(value: Any) -> str:
    if not isinstance(value, str) or len(value) > MAX_TEXT_CHARS or "\0" in value:
        raise ValueError(f"expected a short text, got {str(value)[:40]!r}")
    return value
