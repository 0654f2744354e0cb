"""Semantic Kernel's text-to-image service over OpenAI's client."""

import asyncio
import sys

from openai import AsyncOpenAI
from semantic_kernel.connectors.ai.open_ai import OpenAITextToImage


async def main() -> None:
    client = AsyncOpenAI(base_url=sys.argv[1], api_key="none")
    service = OpenAITextToImage(ai_model_id="dall-e-3", async_client=client)
    picture = await service.generate_image("a red house", width=1024, height=1024)
    assert picture


asyncio.run(main())
print("made")
