"""LangChain's wrapper of dall-e, which reads `.url`."""

import os
import sys

os.environ |= {"OPENAI_API_KEY": "none", "OPENAI_API_BASE": sys.argv[1]}
from langchain_community.utilities.dalle_image_generator import DallEAPIWrapper

assert DallEAPIWrapper().run("a red house").startswith("http")
print("made")
