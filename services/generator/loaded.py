"""What a family of the generator gives the service: its stepper, what to say of it, and how it reads a request.

It imports no network, so that a process loads only the libraries of its own family.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from services.engine.stepper import JobRequest, Stepper
from services.errors import InvalidRequest
from services.generator.vocabulary import Vocabulary
from services.serving.limits.request_checks import PromptLength, check_prompt
from triptych.v1.generator_pb2 import GenerateRequest, GenerateSettings
from triptych.v1.stage_pb2 import ModelInfo, PromptReading, WordReplacement

GUIDANCE_SCALES = ModelInfo.Range(lowest=0, highest=100)


@dataclass(frozen=True)
class LoadedGenerator:
    stepper: Stepper[Any, Any]
    info: ModelInfo
    # Checks a whole request and makes its jobs; raises InvalidRequest naming the field.
    read_request: Callable[[GenerateRequest, ModelInfo, Vocabulary | None], list[JobRequest[Any]]]
    # Of the text that is drawn.
    measure_prompt: Callable[[str], PromptLength]
    # Of a small model; others know all words.
    vocabulary: Vocabulary | None = None


def check_setting_names(settings: GenerateSettings, info: ModelInfo) -> None:
    """Raises InvalidRequest for a setting that this family does not have."""
    for field, _ in settings.ListFields():
        if field.name not in (*info.defaults, "preview_every"):
            raise InvalidRequest(
                f"settings.{field.name}",
                f"must be left out: the model '{info.name}' has no such setting, only {', '.join(sorted(info.defaults))}",
            )


def check_image_prompts(request: GenerateRequest, info: ModelInfo) -> None:
    """Raises InvalidRequest for more image prompts than the model takes, and for a text difference where it takes none."""
    most, count = info.limits.max_image_prompts, len(request.image_prompts)
    if count > most:
        expected = f"must be at most {most}" if most else f"must be empty: '{info.name}' cannot see pictures"
        raise InvalidRequest("image_prompts", f"{expected}, got {count}")
    if request.HasField("text_difference") and not most:
        raise InvalidRequest("text_difference", f"must be left out: '{info.name}' draws from text alone")


def known_words(prompt: str, info: ModelInfo, vocabulary: Vocabulary | None) -> str:
    """The prompt as it is drawn; raises InvalidRequest when it is blank or too long."""
    return read_prompt(check_prompt(prompt, info.limits.max_prompt_bytes), vocabulary).prompt


def read_prompt(prompt: str, vocabulary: Vocabulary | None) -> PromptReading:
    """What is drawn for a prompt: itself, unless the model has a table of the words that it replaces."""
    if vocabulary is None:
        return PromptReading(prompt=prompt)
    replaced = vocabulary.replace_words(prompt)
    replacements = [
        WordReplacement(word=one.word, replacement=one.replacement, similarity=one.similarity)
        for one in replaced.replacements
    ]
    return PromptReading(
        prompt=replaced.prompt,
        replacements=replacements,
        is_unknown=not replaced.known,
        suggestions=replaced.suggestions,
    )
