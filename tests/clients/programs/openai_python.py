"""The openai package: a default picture, and the size that programs ask for most."""

import sys

import openai

client = openai.OpenAI(base_url=sys.argv[1], api_key="none")
for model in ("dall-e-2", "dall-e-3", "gpt-image-1"):
    for size in ({}, {"size": "1024x1024"}):
        (picture,) = client.images.generate(model=model, prompt="a red house", **size).data
        assert picture.url or picture.b64_json, model
print("made", openai.__version__)
