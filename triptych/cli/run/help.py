"""How `triptych run --help` looks, and errors of the contract in the words of its options."""

from collections.abc import Mapping

import click

from triptych.cli.run.options import SETTINGS
from triptych.errors import CallError
from triptych.stages import STAGES, WORKER_NAMES

EXAMPLES = """\b
Examples:
  triptych run "a red house under a full moon"
  triptych run "a red house" -n 4 --no-upscale -o house --format jpeg
  triptych run "a red house" "a blue boat" --seed 7
  cat prompts.txt | triptych run --prompt-file - -q
  triptych run --image photo.jpg --no-refine              upscales a picture of yours
  triptych run "oil painting" --image photo.jpg --skip-ratio 0.6
  triptych run --image-prompt cat.jpg --no-refine --generator-model karlo
  triptych run "a red house" --gateway 127.0.0.1:50050 --detach
"""

SECTIONS: Mapping[str, tuple[str, ...]] = {
    "What to make": (
        "prompt_file",
        "images",
        "mask",
        "fit",
        "image_prompts",
        "text_difference",
        "text_difference_weight",
        "candidates",
        "seed",
        "manual",
    ),
    "What goes on": (
        *("refine_top", "variations"),
        *(f"{stage.name}_top" for stage in STAGES[2:]),
        *(f"no_{stage.name}" for stage in STAGES[1:]),
    ),
    **{"Sketch" if name == "generate" else name.capitalize(): names for name, names in SETTINGS.items()},
    "Where": (
        "gateway",
        "detach",
        "token",
        "ca",
        "cert",
        "key",
        *(f"{worker}_model" for worker in WORKER_NAMES),
    ),
    "Output": ("out", "file_format", "preview_every", "show", "quiet", "verbose", "as_json"),
}

# The contract's fields as options; the longest that fits counts.
OPTIONS_OF_FIELDS = {
    "spec.prompt": "PROMPT",
    "spec.seed": "--seed",
    "spec.init_images": "--image",
    "spec.generate.count": "--candidates",
    "spec.generate.image_prompts": "--image-prompt",
    "spec.generate.text_difference": "--text-difference",
    "spec.generate.text_difference.weight": "--text-difference-weight",
    "spec.generate.settings.guidance_scale": "--guidance-scale",
    "spec.refine.count": "--variations",
    "spec.refine.mask": "--mask",
    "spec.refine.settings.guidance_scale": "--refine-guidance-scale",
    **{f"spec.{stage.name}.model": f"--{stage.worker_name}-model" for stage in STAGES},
    **{f"spec.{stage.name}": "--image" for stage in STAGES if not stage.draws},
    **{
        f"spec.automatic.top_k_after_{stage.name}": " or ".join(
            f"--{later.name}-top" for later in STAGES[index:]
        )
        for index, stage in enumerate(STAGES[:-1], 1)
    },
    # Each setting has an option of its name.
    **{f"spec.{stage.name}.settings": "" for stage in STAGES},
}


class GroupedCommand(click.Command):
    """Shows its options in the sections above; one that is in none comes last."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        records = {
            param.name: record
            for param in self.get_params(ctx)
            if (record := param.get_help_record(ctx)) is not None
        }
        for title, names in SECTIONS.items():
            if found := [records.pop(name) for name in names if name in records]:
                with formatter.section(title):
                    formatter.write_dl(found)
        with formatter.section("Other"):
            formatter.write_dl(list(records.values()))


def in_options(error: CallError) -> str:
    """A refused request, with the options to blame in place of the contract's fields."""
    if not error.violations:
        return str(error)
    return "; ".join(f"{option_of(field)}: {words}" for field, words in error.violations.items())


def option_of(field: str) -> str:
    for beginning in sorted(OPTIONS_OF_FIELDS, key=len, reverse=True):
        if field.startswith(beginning):
            return OPTIONS_OF_FIELDS[beginning] or f"--{field.rpartition('.')[2].replace('_', '-')}"
    return field
