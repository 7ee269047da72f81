"""A cluster's profile: what every job on it needs to say, written once in configs/clusters/NAME.yaml."""

import difflib
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, ValidationError

from nn_train.config import project_root, read_yaml
from nn_train.errors import ConfigError
from nn_train.settings import Section, duration_s

Lines = Annotated[
    tuple[str, ...], BeforeValidator(lambda value: value.splitlines() if isinstance(value, str) else value)
]


class Profile(Section):
    """What a job asks the cluster for; whatever is left out, the cluster decides."""

    partition: str | None = None
    """Partition of the job."""
    account: str | None = None
    """Account that is charged."""
    qos: str | None = None
    """Quality of service."""
    constraint: str | None = None
    """Features that every node must have, such as `a100&ib`."""
    nodes: int = Field(default=1, ge=1)
    """Nodes of a job that does not say."""
    gpus_per_node: int = Field(default=0, ge=0)
    """GPUs of each node; 0 on nodes without any."""
    gpu_type: str | None = Field(default=None, pattern=r"^[\w.\-]+$")
    """Type of GPU, where the cluster has several."""
    processes_per_node: int | None = Field(default=None, ge=1)
    """Processes of each node; default: one per GPU, else 1."""
    cpus_per_process: int | None = Field(default=None, ge=1)
    """CPUs for each process."""
    memory_per_node: str | None = Field(default=None, pattern=r"^\d+[KMGT]?$")
    """Memory of each node, such as 64G; 0 is all of it."""
    time: str | None = Field(default=None, pattern=r"^(\d+-)?\d+(:\d+){0,2}$")
    """Walltime of a job that does not say, as sbatch reads it: minutes, HH:MM:SS, D-HH:MM:SS."""
    lead: Annotated[float, BeforeValidator(duration_s)] = Field(default=120.0, ge=1)
    """Time between the signal to save and the end, in seconds or as 2m."""
    exclusive: bool = False
    """Take whole nodes."""
    network_interface: str = ""
    """Interface through which nodes meet, such as ib0; default: what the system chooses."""
    setup: Lines = ()
    """Shell lines before anything runs: module load, source, export."""
    container: tuple[str, ...] = ()
    """Words before each command that runs in a container: [apptainer, exec, --nv, image.sif]."""
    srun_options: tuple[str, ...] = ()
    """More options for srun, as pyxis takes its container: ["--container-image=image.sqsh"]."""
    sbatch_options: tuple[str, ...] = ()
    """More options for sbatch, as they are."""


def load_profile(path: str | Path | None) -> Profile:
    """Read a cluster's profile; an empty one where none is named. A bare name means configs/clusters/NAME.yaml.

    Raises:
        ConfigError: no such file, an unknown key, a wrong type or range.
    """
    if path is None:
        return Profile()
    file = Path(path)
    if not file.suffix and not file.exists():
        file = project_root() / "configs" / "clusters" / f"{path}.yaml"
    if not file.is_file():
        near = ", ".join(sorted(other.stem for other in (project_root() / "configs" / "clusters").glob("*.yaml")))
        raise ConfigError(
            "there is no such cluster profile", where=str(file), fix=f"--cluster FILE; configs/clusters/ holds {near}"
        )
    values = read_yaml(file)
    unknown = [name for name in values if name not in Profile.model_fields]
    if unknown:
        near = difflib.get_close_matches(str(unknown[0]), Profile.model_fields, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"the keys are {', '.join(Profile.model_fields)}"
        raise ConfigError(
            f"unknown key '{unknown[0]}'; {hint}", where=str(file), fix="see configs/clusters/example.yaml"
        )
    try:
        return Profile.model_validate(values)
    except ValidationError as error:
        lines = [_problem(dict(item)) for item in error.errors()]
        raise ConfigError("\n  ".join(lines), where=str(file), fix="see configs/clusters/example.yaml") from None


def _problem(error: dict[str, Any]) -> str:
    key = ".".join(str(part) for part in error["loc"] if not str(part).startswith("function-"))
    return f"{key}={error['input']!r}: {error['msg'][0].lower()}{error['msg'][1:]}"
