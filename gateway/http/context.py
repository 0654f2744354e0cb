"""The request context of every route: the pipeline, the caller, and limits.

Routes find it with `api_of(request)` and the caller with `caller_of(request)`.
"""

import asyncio
from dataclasses import dataclass, field
from typing import cast

from starlette.requests import Request

from gateway.access.authentication import Authentication
from gateway.access.caller import Caller
from gateway.http.image_files.example_gallery import ExampleGallery
from gateway.http.image_files.signed_links import LinkSigner
from gateway.http.proto_json import EventEncoder
from gateway.http.sse import HEARTBEAT_S
from gateway.journal.storage_audit import StorageAudit
from gateway.pipeline import Pipeline
from services.serving.limits.request_budget import RequestBudget
from services.serving.request_log import RequestLog, current_request


@dataclass(frozen=True)
class Limits:
    """What one request may bring. A spec may hold pictures in base64, as a gRPC message of 32 MiB may hold them raw."""

    max_run_bytes: int = 44 * 2**20
    max_body_bytes: int = 2**20
    max_upload_bytes: int = 34 * 2**20
    # For the whole of a body: a caller who sends a byte a minute holds nothing for long.
    body_timeout_s: float = 60.0


@dataclass
class RequestContext:
    pipeline: Pipeline
    authentication: Authentication = field(default_factory=Authentication)
    limits: Limits = field(default_factory=Limits)
    heartbeat_s: float = HEARTBEAT_S
    # Shared with gRPC.
    budget: RequestBudget = field(default_factory=RequestBudget)
    request_log: RequestLog = field(default_factory=RequestLog)
    # Set when the process is asked to stop: event streams end, and their readers reconnect.
    closing: asyncio.Event = field(default_factory=asyncio.Event)
    # For answers that have an end of their own, which they are given the time to reach.
    never: asyncio.Event = field(default_factory=asyncio.Event)
    events: EventEncoder = field(default_factory=EventEncoder)
    # None: nothing is made for the page's first screen.
    examples: ExampleGallery | None = None
    # None: nobody compares the journal with the store.
    audit: StorageAudit | None = None
    links: LinkSigner = field(default_factory=LinkSigner)
    # Where callers reach us, for links; empty: as each of them does.
    public_url: str = ""


def api_of(request: Request) -> RequestContext:
    return cast(RequestContext, request.app.state.api)


def base_url_of(request: Request) -> str:
    """What links begin with, without a slash at the end."""
    return (api_of(request).public_url or str(request.base_url)).rstrip("/")


def caller_of(request: Request) -> Caller:
    """Raises Unauthenticated or PermissionDenied where callers need tokens."""
    host = request.client.host if request.client else ""
    family = "ipv6" if ":" in host else "ipv4"
    # As gRPC writes it, so that the calls of one machine over both APIs share their turns.
    peer = f"{family}:[{host}]" if family == "ipv6" else f"{family}:{host}"
    caller = api_of(request).authentication.authenticate(request.headers.get("authorization"), peer=peer)
    if (record := current_request()) is not None:
        record.caller = caller.name
    return caller
