"""litellm's image_generation."""

import sys

import litellm

answer = litellm.image_generation(
    prompt="a red house", model="openai/dall-e-3", size="1024x1024", api_base=sys.argv[1], api_key="none"
)
assert answer.data[0].url or answer.data[0].b64_json
print("made")
