"""What a run was made with: versions, seeds, hardware, threads and a checksum of every input, in one file of its folder."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from shared.app.config import flatten
from shared.app.shipped import find_checkpoint
from shared.files import read_json
from shared.hub_names import HUB_PREFIX, HubName

PROVENANCE_FILE = "provenance.json"
LIBRARIES = ("torch", "torchvision", "timm", "diffusers", "accelerate", "safetensors", "numpy")
_MORE = (
    "restore-rl",
    "segmentation-models-pytorch",
    "opencv-python-headless",
    "scikit-image",
    "albumentations",
    "peft",
)
_ENVIRONMENT = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "CUBLAS_WORKSPACE_CONFIG")
_WEIGHTS = (".safetensors", ".parquet", ".pth", ".bin", ".param")
_TEXTS = ("config.json", "normaliser.json")  # the figures and logs beside them are no input
_PASSING = ("state", "state.part", "state.old")


def provenance_of(run: Path) -> dict[str, Any]:
    """Returns what is noted of a run: its pictures by subject, its inputs by name, and a session for each start.

    Empty where nothing is noted, or damaged.
    """
    try:
        found = read_json(run / PROVENANCE_FILE)
        return {
            "pictures": _records(found.get("pictures", {})),
            "inputs": _records(found["inputs"]),
            "sessions": list(_records(dict(enumerate(found["sessions"]))).values()),
        }
    except (OSError, ValueError, KeyError, TypeError):
        return {"pictures": {}, "inputs": {}, "sessions": []}


def session_of(command: Sequence[str]) -> dict[str, Any]:
    """Returns the machine and the software of one start of a run: what its last bits may depend on."""
    import torch  # slow to import, and a finished stage is asked without it

    versions = {name: found for name in (*LIBRARIES, *_MORE) if (found := _version(name))}
    gpus = (
        [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    )
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": list(command),
        "commit": head_commit(),
        "versions": {"python": platform.python_version(), **versions, "cuda": torch.version.cuda},
        "machine": {
            "system": platform.platform(),
            "cpu": _cpu_name(),
            "cores": os.cpu_count(),
            "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
            "gpus": gpus,
            # Which sums are made in which order: another library or instruction set moves the last bits.
            "instructions": torch.backends.cpu.get_cpu_capability(),
            "mkl": torch.backends.mkl.is_available(),
        },
        "threads": torch.get_num_threads(),
        "environment": {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
        "processes": int(os.environ.get("WORLD_SIZE", "1")),
    }


def seeds_of(config: Any) -> dict[str, int]:
    """Returns every seed among a config's settings, by its dotted key."""
    return {key: value for key, value in flatten(config).items() if key.rpartition(".")[2] == "seed"}


def fingerprint(where: str, known: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Returns the checksum of a file, or of the weights, data and configs in a folder; of what is not there, its name.

    Files that have the size and the time of `known`, an earlier fingerprint, are not read again.
    """
    place = _on_disk(where)
    earlier = dict((known or {}).get("files", {}))
    found = {}
    for path in [place] if place.is_file() else sorted(filter(_is_input, place.rglob("*"))):
        name = path.name if path == place else path.relative_to(place).as_posix()
        looks = [path.stat().st_size, path.stat().st_mtime_ns]
        if name in earlier and earlier[name][:2] == looks:
            found[name] = earlier[name]
        elif not any(part in _PASSING or part.endswith("_training") for part in Path(name).parts):
            with path.open("rb") as file:
                found[name] = [*looks, hashlib.file_digest(file, "sha256").hexdigest()]
    if not found:
        return {"place": where}
    lines = "".join(f"{digest} {name}\n" for name, (_, _, digest) in found.items())
    return {"place": where, "sha256": hashlib.sha256(lines.encode()).hexdigest(), "files": found}


def _on_disk(where: str) -> Path:
    """Returns where an input lies: of a repository hf:owner/name@revision, the description at the commit it is at now."""
    if not where.startswith(HUB_PREFIX):
        return Path(find_checkpoint(where))
    from shared.hub import fetch_snapshot  # huggingface_hub takes time to import

    name = HubName.parse(where)
    assert name is not None, f"{where} begins with {HUB_PREFIX}"
    return fetch_snapshot(name.repo, revision=name.revision, patterns=[name.file or "*.json"])


def changed_inputs(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Returns in words what is another file, or another file in a folder, than it was."""
    said = []
    for name in sorted(before.keys() & now.keys()):
        old, new = (each[name].get("files", {}) for each in (before, now))
        if old and new and before[name]["sha256"] != now[name]["sha256"]:
            files = [f for f in sorted(old.keys() | new.keys()) if old.get(f, [0])[-1] != new.get(f, [0])[-1]]
            said.append(f"{name} ({', '.join(files[:3])}{', …' if len(files) > 3 else ''})")
    return said


def head_commit() -> str:
    """Returns the checkout's commit, with a plus where files have changed since; "unknown" outside a checkout."""
    try:
        head, changed = (
            subprocess.run(
                ["git", "-C", str(Path(__file__).parent), *words],
                capture_output=True,
                encoding="utf-8",
                errors="replace",
                check=True,
            ).stdout.strip()
            for words in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{head}{'+' if changed else ''}"


def this_machine() -> str:
    """Returns this machine's processor, and its GPU where it has one."""
    import torch  # as above

    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{os.cpu_count()} cores of {_cpu_name()}{gpu}"


def words_for_machine(machine: Mapping[str, Any]) -> str:
    """Returns a session's machine in the words of `this_machine`."""
    return ", ".join([f"{machine.get('cores')} cores of {machine.get('cpu')}", *map(str, machine.get("gpus") or ())])


def _records(found: Any) -> dict[Any, dict[str, Any]]:
    return {name: each for name, each in dict(found).items() if isinstance(each, dict)}


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.is_file() else []
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())


def _is_input(path: Path) -> bool:
    return path.is_file() and (path.suffix in _WEIGHTS or path.name in _TEXTS)


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
