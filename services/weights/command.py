"""`triptych weights`: converts published files into model folders, makes random ones, checks and lists them.

Fetching and sharing them is in cache_command.py.
It knows folders and manifests. What a file holds is each stage's to know: its `convert`, `random_weights` and
`verify` are imported by name when they are needed, so that one stage's libraries are enough for its weights.
"""

import json
import math
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, fields
from pathlib import Path
from types import ModuleType
from typing import Any

import click

from services.device_memory import ITEMSIZES, ModelSize
from services.errors import ModelError
from services.families import FAMILIES, FAMILY_OF_PART, Family, find_family
from services.weights import cache_command, model_folder
from services.weights.cache import local_models, models_in_s3, s3_cache
from services.weights.catalog import KNOWN, model_size
from services.weights.conversion import conversion_module
from services.weights.formats.safetensors_file import halve_file
from services.weights.model_folder import (
    MANIFEST,
    GoldenDifference,
    Manifest,
)
from triptych._installation import missing_library
from triptych.cli.terminal.spinner import spinning
from triptych.stages import WORKER_NAMES
from triptych.terminal_text import echo, escape_json


@click.group(no_args_is_help=True)
def weights() -> None:
    """Fetch, share, convert, make, check and list models. A model is a folder of parts with a manifest."""


@weights.command()
@click.argument("source", type=click.Path(exists=True, path_type=Path))
@click.argument("to", type=click.Path(file_okay=False, path_type=Path))
@click.option(
    "--part", type=click.Choice(list(FAMILY_OF_PART)), required=True, help="Which network SOURCE holds."
)
@click.option("--name", help="The model's name; kept from an existing manifest, else TO's last component.")
@click.option("--origin", help="Where the weights come from; kept, else the name of SOURCE.")
@click.option("--licence", help="The licence of the weights; kept from an existing manifest.")
@click.option("--half", is_flag=True, help="Write float16 in place of float32: half of the disk.")
@spinning("converting")
def convert(
    source: Path,
    to: Path,
    part: str,
    name: str | None,
    origin: str | None,
    licence: str | None,
    *,
    half: bool,
) -> None:
    """Convert one published file or folder into a part of the model folder TO.

    Nothing in SOURCE is executed. The part appears whole or not at all.
    """
    if not source.is_file() and not source.is_dir():
        raise ModelError(f"expected a file or a folder to convert, got {source}, which is neither")
    model = to.parent if to.name == part else to
    family = FAMILY_OF_PART[part]
    stage = family.stage
    known = manifest_fields(model)
    if known.get("stage", stage) != stage:
        raise ModelError(
            f"{model} is a model of the {known['stage']}, {part} belongs to a {stage}; "
            "expected a folder of that stage or a new one"
        )
    there = find_family(stage, known.get("architecture", family.architecture))
    if there is not family:
        raise ModelError(
            f"{model} holds {', '.join(there.parts)}, {part} belongs to another kind of "
            f"{stage}; expected a folder of that kind or a new one"
        )
    with replacing(model / part) as temporary:
        stage_module(stage, "convert", family.architecture).convert(source, temporary, part)
        if half:
            halve_file(temporary / "model.safetensors")
    given = {
        "stage": stage,
        "name": name or known.get("name") or model.resolve().name,
        "origin": origin or known.get("origin") or source.name,
        "licence": licence or known.get("licence", ""),
        "architecture": family.written_architecture,
    }
    manifest = model_folder.write_manifest(model, **{**known, **given})
    echo(f"{model / part}: {len(of_part(manifest, part))} files, manifest {model / MANIFEST}")
    missing = [other for other in family.parts if f"{other}/model.safetensors" not in manifest.files]
    if missing:
        echo(f"{model} still lacks {', '.join(missing)}: convert them too before serving it", err=True)


@weights.command()
@click.argument("to", type=click.Path(file_okay=False, path_type=Path))
@click.option("--like", required=True, help="The family whose shape they take, such as mini.")
@click.option("--stage", type=click.Choice(list(WORKER_NAMES)), help="Needed only to take one of several.")
@click.option("--seed", type=int, default=0, help="The same seed gives the same weights.")
@spinning("writing random weights")
def random(to: Path, like: str, stage: str | None, seed: int) -> None:
    """Write a model folder of random weights in a known shape, to measure speed and memory with.

    A name that several stages have, such as tiny, gives TO/<stage> for each of them.
    """
    makers = random_makers(like, stage)
    for family, module in makers.items():
        folder = to if len(makers) == 1 else to / family.stage
        if folder.is_dir() and any(folder.iterdir()):
            raise ModelError(f"{folder} is not empty: expected a new or an empty folder; choose another")
        with replacing(folder) as temporary:
            module.write_random(like, temporary, seed=seed)
            model_folder.write_manifest(
                temporary,
                name=f"random-{like}",
                stage=family.stage,
                origin=f"random weights in the shape of {like}, seed {seed}",
                architecture=family.written_architecture,
            )
        echo(f"{folder}: {like}, a model of the {family.stage}, with random weights")


@weights.command()
@click.argument("model")
@click.option(
    "--stage",
    type=click.Choice(list(WORKER_NAMES)),
    help="Needed only where several stages have a model of that name.",
)
@click.option(
    "--golden",
    type=click.Path(exists=True, path_type=Path),
    help="Vectors of a reference implementation, a file or a folder: runs the network on them.",
)
@click.option("--json", "as_json", envvar="TRIPTYCH_JSON", is_flag=True, help="Print one JSON object.")
@click.pass_context
@spinning("verifying")
def verify(ctx: click.Context, model: str, stage: str | None, golden: Path | None, as_json: bool) -> None:
    """Check MODEL against its manifest and against golden vectors: a folder, one part of it, or a name that is here.

    Exits with 1 when a file differs from the manifest or an array is beyond its tolerance.
    """
    folder = Path(model) if Path(model).is_dir() else cache_command.folder_of(model, stage)
    root, wanted = model_and_parts(folder)
    manifest = model_folder.read_manifest(root)
    parts = tuple(part for part in wanted if of_part(manifest, part))
    needed = find_family(manifest.stage, manifest.architecture, str(root)).parts
    absent = [part for part in wanted if part not in parts and (part in needed or len(wanted) == 1)]
    if not parts:
        raise ModelError(
            f"{root / MANIFEST} names no file of {', '.join(absent)}; convert that part before it is verified"
        )
    model_folder.check_files(root, manifest, parts=parts)
    differences: list[GoldenDifference] = []
    if golden is not None:
        part = single_part(root, parts)
        differences = stage_module(manifest.stage, "verify", manifest.architecture).compare(
            root / part, part, golden
        )
    num_files = sum(len(of_part(manifest, part)) for part in parts)
    if as_json:
        echo(escape_json(json.dumps(report(manifest, parts, num_files, differences))))
    else:
        echo(f"{folder}: {num_files} files as the manifest says ({manifest.stage} {manifest.name})")
        if absent:
            echo(f"Note: {root} still lacks {', '.join(absent)} and cannot be served yet", err=True)
        for line in table(differences):
            echo(line)
    if not all(difference.ok for difference in differences):
        echo("Error: the network differs from the golden vectors beyond the tolerance", err=True)
        ctx.exit(1)


@weights.command("list")
@click.option("--json", "as_json", envvar="TRIPTYCH_JSON", is_flag=True, help="Print one JSON object a line.")
@spinning("looking for models")
def list_models(as_json: bool) -> None:
    """List the models that are here, in the S3 cache (TRIPTYCH_S3_CACHE), and those that `pull` knows where to find.

    The memory on a GPU, with eight slots, is computed from the sizes of the networks. It was not measured.
    """
    rows = [*_rows(_in_s3())]
    if as_json:
        for row in rows:
            echo(escape_json(json.dumps(row)))
        return
    header = ("stage", "name", "size", "GPU float32 / half", "licence", "needs", "folder")
    cells = [
        (
            row["stage"],
            row["name"],
            f"{row['num_bytes'] / 10**6:,.1f} MB",
            _memory(row["gpu_bytes"]),
            row["licence"],
            row["needs"],
            row["folder"] or row["s3"] or "not here: triptych weights pull",
        )
        for row in rows
    ]
    for line in aligned([header, *cells]):
        echo(line)


def _memory(gpu_bytes: dict[str, int]) -> str:
    if not gpu_bytes:
        return "unknown"
    return f"{gpu_bytes['float32'] / 1e9:.1f} / {gpu_bytes['float16'] / 1e9:.1f} GB"


def _in_s3() -> dict[tuple[str, str], tuple[str, int]]:
    """Place and bytes of each model in the S3 cache; a warning where it cannot be asked."""
    bucket = s3_cache()
    try:
        sizes = models_in_s3(bucket) if bucket else {}
    except ModelError as error:
        echo(f"Warning: {error}", err=True)
        return {}
    return {key: (f"{bucket}/{'/'.join(key)}", num_bytes) for key, num_bytes in sizes.items()}


def _rows(in_s3: dict[tuple[str, str], tuple[str, int]]) -> Iterator[dict[str, Any]]:
    """Models that are here, then those in S3 alone, then those that are known by name alone."""
    seen = set()

    def row(
        stage: str, name: str, num_bytes: int, size: ModelSize | None = None, **more: str
    ) -> dict[str, Any]:
        seen.add((stage, name))
        known = KNOWN.get((stage, name))
        if size is None and known is not None:
            size = known.size
        memory = {dtype: round(size.num_bytes(dtype)) for dtype in ITEMSIZES} if size else {}
        usual = {
            "digest": "",
            "licence": known.licence if known else "",
            "needs": f"triptych-server[{(known and known.architecture) or stage},weights]",
        }
        place = {"folder": "", "s3": in_s3.get((stage, name), ("", 0))[0]}
        computed = {"gpu_bytes": memory}
        return {"stage": stage, "name": name, "num_bytes": num_bytes, **computed, **usual, **place, **more}

    for stage, name, folder in local_models():
        try:
            manifest = model_folder.read_manifest(folder)
            size = model_size(folder, manifest)
        except ModelError as error:
            echo(f"Warning: {error}", err=True)
            continue
        yield row(
            stage, name, sum(entry.num_bytes for entry in manifest.files.values()), size,
            digest=manifest.digest, licence=manifest.licence, folder=str(folder),
            needs=f"triptych-server[{manifest.architecture or stage}]",
        )  # fmt: skip
    for (stage, name), (_, num_bytes) in in_s3.items():
        if (stage, name) not in seen:
            yield row(stage, name, num_bytes)
    for (stage, name), known in KNOWN.items():
        if (stage, name) not in seen:
            yield row(stage, name, known.num_bytes, needs=" ".join(known.needs))


for command in (cache_command.pull, cache_command.push, cache_command.rm):
    weights.add_command(command)


def stage_module(stage: str, role: str, architecture: str = "") -> ModuleType:
    """Imports the stage's conversion code; a missing library becomes an error that names the extra."""
    try:
        return conversion_module(stage, role, architecture)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] == "services":
            raise
        raise click.ClickException(
            missing_library(error.name, f"the conversion of the {stage}'s weights")
        ) from None


def random_makers(like: str, stage: str | None) -> dict[Family, ModuleType]:
    """The modules that know the shape `like`, by family; raises ModelError listing the known names."""
    makers: dict[Family, ModuleType] = {}
    known: list[str] = []
    absent: list[click.ClickException] = []
    for family in FAMILIES:
        if stage not in (None, family.stage):
            continue
        try:
            module = stage_module(family.stage, "random_weights", family.architecture)
        except click.ClickException as error:
            absent.append(error)
            continue
        known += [f"{name} ({family.stage})" for name in module.NAMES]
        if like in module.NAMES:
            makers[family] = module
    if makers:
        return makers
    if absent:
        raise absent[0]
    raise ModelError(f"no family '{like}': expected one of {', '.join(known)}")


def manifest_fields(model: Path) -> dict[str, Any]:
    """The fields of an existing manifest but for its files; none when there is no manifest yet."""
    if not (model / MANIFEST).exists():
        return {}
    manifest = model_folder.read_manifest(model)
    return {field.name: getattr(manifest, field.name) for field in fields(Manifest) if field.name != "files"}


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """Gives a temporary folder beside `folder` that takes its place when the block ends well.

    A block that fails leaves everything as it was, folders above included.
    """
    made = [parent for parent in folder.parents if not parent.exists()]
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    temporary.chmod(0o755)
    try:
        yield temporary
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.old.") as old:
            if folder.exists():
                folder.rename(Path(old) / folder.name)
            temporary.rename(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        for parent in made:
            with suppress(OSError):
                parent.rmdir()
        raise


def model_and_parts(folder: Path) -> tuple[Path, tuple[str, ...]]:
    """Which model and which of its parts `folder` means: itself with all, or one part of the folder above."""
    if (folder / MANIFEST).exists():
        manifest = model_folder.read_manifest(folder)
        return folder, find_family(manifest.stage, manifest.architecture).all_parts
    if folder.resolve().name in FAMILY_OF_PART:
        return folder.resolve().parent, (folder.resolve().name,)
    raise ModelError(
        f"{folder} holds no {MANIFEST} and is no part of a model: expected MODEL or MODEL/PART, PART being one of "
        + ", ".join(FAMILY_OF_PART)
    )


def single_part(model: Path, parts: Sequence[str]) -> str:
    if len(parts) != 1:
        examples = " or ".join(str(model / part) for part in parts)
        raise click.UsageError(f"--golden compares one part: give {examples} instead of {model}")
    return parts[0]


def of_part(manifest: Manifest, part: str) -> list[str]:
    return [name for name in manifest.files if name.startswith(f"{part}/")]


def report(
    manifest: Manifest, parts: Sequence[str], num_files: int, differences: Sequence[GoldenDifference]
) -> dict[str, Any]:
    """What `verify --json` prints; a difference that is no number is null there, since JSON has none."""
    arrays = [
        asdict(one)
        | {"max_abs_diff": one.max_abs_diff if math.isfinite(one.max_abs_diff) else None, "ok": one.ok}
        for one in differences
    ]
    return {
        "name": manifest.name,
        "stage": manifest.stage,
        "digest": manifest.digest,
        "parts": list(parts),
        "num_files": num_files,
        "arrays": arrays,
        "ok": all(one.ok for one in differences),
    }


def table(differences: Sequence[GoldenDifference]) -> list[str]:
    if not differences:
        return []
    header = ("array", "largest absolute difference", "tolerance", "ok")
    rows = [
        (one.name, f"{one.max_abs_diff:.3g}", f"{one.tolerance:.3g}", "yes" if one.ok else "NO")
        for one in differences
    ]
    return aligned([header, *rows])


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns as wide as their widest cell, whatever the terminal: a name is never cut."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
