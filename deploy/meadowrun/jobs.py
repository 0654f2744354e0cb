"""The job of a worker on a Meadowrun machine: its command, options, files and machine requirements."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deploy.deployer import DeployError
from services.serving.spot_notices import EC2_METADATA
from triptych.stages import STAGES

# One value for all of them: Meadowrun opens ports to machines that were given the same.
PORT = {stage.worker_name: stage.port for stage in STAGES}
PORTS = f"{min(PORT.values())}-{max(PORT.values())}"
# Meadowrun's: on the machine, and at the same path in containers; all jobs of a machine share it.
MACHINE_CACHE = "/var/meadowrun/machine_cache"
# Of the two minutes between a notice and its machine's end.
GRACE_S = 100


@dataclass(frozen=True)
class Needs:
    """What a machine must have. Both of the GPU's are needed: by `gpu_memory` alone Meadowrun takes the GPU for free."""

    logical_cpu: float = 2
    memory_gb: float = 12
    gpus: float | None = 1
    gpu_memory: float | None = 12
    flags: str | None = "nvidia"
    # In percent a month, as AWS states it; 0: no spot machines.
    max_eviction_rate: float = 80


@dataclass(frozen=True)
class Settings:
    """Where workers run, and from what."""

    region: str
    # With {stage} for the stage's name: "registry/triptych-{stage}:tag". Or the Python of an image that has Triptych.
    image: str = ""
    interpreter: str = ""
    # Instead of Meadowrun's.
    ami: str = ""
    needs: Mapping[str, Needs] = field(default_factory=dict)
    # Further options of `triptych serve`, by stage.
    options: Mapping[str, Sequence[str]] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    certificates: Path | None = None
    insecure: bool = False
    spot_notices: str = EC2_METADATA


def job_of(settings: Settings, stage: str, worker_id: str) -> dict[str, Any]:
    options = ["--host", "0.0.0.0", "--port", str(PORT[stage]), "--grace", str(GRACE_S)]  # noqa: S104 - see files_of
    options += ["--spot-notices", settings.spot_notices, *settings.options.get(stage, ())]
    if settings.certificates is None:
        options += ["--insecure"]
    else:
        folder = _folder(worker_id)
        options += ["--tls-cert", f"{folder}/stage.crt", "--tls-key", f"{folder}/stage.key"]
        options += ["--tls-client-ca", f"{folder}/ca.crt"]
    return {**started_from(settings, stage, options), "ports": [PORTS]}


def started_from(settings: Settings, service: str, options: Sequence[str]) -> dict[str, Any]:
    """An image's entry point is its service, to which Meadowrun adds the options."""
    environment = {
        "TRIPTYCH_MACHINE_CACHE": MACHINE_CACHE,
        "AWS_DEFAULT_REGION": settings.region,
        **settings.environment,
    }
    if settings.image:
        image = settings.image.replace("{stage}", service)
        return {"image": image, "command": list(options), "environment": environment}
    if not settings.interpreter:
        raise DeployError(
            "what are workers started from? name images, --image registry/triptych-{stage}:tag, or the Python of a "
            "machine image that has Triptych, --interpreter"
        )
    serve = [] if service == "weights" else ["serve"]
    command = [settings.interpreter, "-P", "-m", "triptych", *serve, service, *options]
    return {"interpreter": settings.interpreter, "command": command, "environment": environment}


def files_of(settings: Settings, stage: str, worker_id: str) -> dict[str, str]:
    """What the worker needs of the folder of `triptych certs`. Raises DeployError where others could use it."""
    certificates = settings.certificates
    if certificates is None:
        if not settings.insecure:
            raise DeployError(
                "prompts and pictures would cross the internet as they are: make certificates (triptych certs certificates "
                f"--hostname '{_names(settings.region)}') and give them (--certificates certificates), or say --insecure"
            )
        return {}
    names = {"ca.crt": "ca.crt", f"{stage}.crt": "stage.crt", f"{stage}.key": "stage.key"}
    try:
        return {
            f"{_folder(worker_id)}/{there}": (certificates / name).read_text()
            for name, there in names.items()
        }
    except OSError as error:
        raise DeployError(
            f"cannot read {error.filename}: {error.strerror}; `triptych certs {certificates}` makes it"
        ) from None


def _names(region: str) -> str:
    """Of EC2's machines there, as certificates may have it."""
    return f"*.{'compute-1' if region == 'us-east-1' else f'{region}.compute'}.amazonaws.com"


def _folder(worker_id: str) -> str:
    """Of a worker's files, on its machine and in its container."""
    return f"{MACHINE_CACHE}/triptych-{worker_id}"
