"""Haystack's generator of images, under the name that the installed version has."""

import os
import sys

os.environ["OPENAI_API_KEY"] = "none"
from haystack.components import generators

Generator = getattr(generators, "OpenAIImageGenerator", None) or generators.DALLEImageGenerator
generator = Generator(api_base_url=sys.argv[1])
generator.warm_up()
assert generator.run(prompt="a red house")["images"][0]
print("made")
