"""The table of the stages, in their order: names, ports, and what each makes of an image.

Client, command line, gateway, deployments and generated manifests read it. It imports no proto, so that
`triptych --help` stays fast.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class StageInfo:
    """One stage. `name` is its field in RunSpec and the first part of its images' names, such as `refine-2`."""

    # In the contract's enum Stage.
    number: int
    name: str
    # Of the process: `triptych serve WORKER_NAME`.
    worker_name: str
    # Of one worker, unless it is given another.
    port: int
    # Its images, in texts for people.
    title: str
    # The line of `triptych serve --help`.
    summary: str
    # Whether it draws, from a prompt and a seed, as many images of a parent as requested; otherwise it makes one.
    draws: bool = True
    # Images of each parent, if the spec has no `count`.
    default_count: int = 1

    @property
    def service(self) -> str:
        """Its gRPC service."""
        return f"triptych.v1.{self.worker_name.capitalize()}Service"


STAGES = (
    StageInfo(
        number=1,
        name="generate",
        worker_name="generator",
        port=50051,
        title="sketches",
        summary="Candidates from a prompt (DALL·E Mini in JAX, or unCLIP in PyTorch).",
        default_count=8,
    ),
    StageInfo(
        number=2,
        name="refine",
        worker_name="refiner",
        port=50052,
        title="variations",
        summary="Variations of a candidate (GLID-3-xl, PyTorch).",
        default_count=8,
    ),
    StageInfo(
        number=3,
        name="upscale",
        worker_name="upscaler",
        port=50053,
        title="upscaled",
        summary="Images four times as large (SwinIR, PyTorch).",
        draws=False,
    ),
)
WORKER_NAMES = tuple(stage.worker_name for stage in STAGES)
