"""Haystack's generator."""

import os
import sys

os.environ["OPENAI_API_KEY"] = "none"
from haystack.components.generators import openai_dalle

generator = openai_dalle.DALLEImageGenerator(api_base_url=sys.argv[1])
generator.warm_up()
assert generator.run(prompt="a red house")["images"][0]
print("made")
