"""The gateway's HTTP API on a real port, over scripted stages."""

from contextlib import asynccontextmanager
from dataclasses import dataclass

import httpx
import openai
import pytest

from gateway.access.authentication import Authentication
from gateway.http.context import RequestContext
from gateway.http.server import serving_http
from tests.gateway.fake_stage import Pipeline, pipeline
from tests.gateway.http.description import check_answer
from tests.gateway.http.painting import set_up

# Made once: to read the authorities of the world takes longer than most tests.
TLS = httpx.create_ssl_context()


@dataclass
class Web:
    """A gateway with both APIs, and clients of HTTP."""

    gateway: Pipeline
    api: RequestContext
    url: str
    http: httpx.AsyncClient
    openai: openai.AsyncOpenAI


@asynccontextmanager
async def web_gateway(*, tokens=None, token="", heartbeat_s=15.0, **more):
    async with pipeline(tokens=tokens, **more) as gateway:
        api = RequestContext(gateway.facade, Authentication(tokens), heartbeat_s=heartbeat_s)
        async with serving_http(api, grace_s=1) as serving:
            url = f"http://{serving.address}"
            hooks = {"response": [check_answer]}
            headers = {"authorization": f"Bearer {token}"} if token else {}
            async with (
                httpx.AsyncClient(
                    base_url=url, headers=headers, timeout=120, event_hooks=hooks, verify=TLS
                ) as http,
                openai.AsyncOpenAI(
                    base_url=f"{url}/v1",
                    api_key=token or "none",
                    http_client=openai.DefaultAsyncHttpxClient(timeout=120, verify=TLS),
                ) as client,
            ):
                yield Web(gateway, api, url, http, client)


@pytest.fixture
async def web():
    """Scripted stages as they are elsewhere: one preview, at once."""
    async with web_gateway() as running:
        yield running


@pytest.fixture
async def painter():
    """Stages with true previews and models with sizes: 8x8 sketches and variations, 32x32 upscaled."""
    async with web_gateway() as running:
        await set_up(running.gateway)
        yield running
