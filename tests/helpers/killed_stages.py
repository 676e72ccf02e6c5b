"""Every stage at its smallest, forked from a process that has imported everything, killed inside its writes, and resumed.

A trial costs the stage's own second, not the five that Python takes to start.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from shared.app.entry import run_command
from tests.helpers import small_dataset, tiny
from tests.helpers.places import CONFIGS
from tests.helpers.pool_networks import UNCHECKED

SOURCE = ("source.images={here}/faces", "source.faces={here}/faces", "source.cache_folder={here}/cache",
          "source.val_fraction=0.2")  # fmt: skip
# Name → the command's module and its words; {here} holds what it needs, {out} is what it writes.
STAGES: dict[str, tuple[str, tuple[str, ...]]] = {
    "base-policies": (
        "rl_finetune.pretrain",
        (f"{CONFIGS}/base_sr.yaml", "out={out}", "iterations=5", "early_iteration=2", "checkpoint_every=1", "batch_size=2",
         "pairs.pairs=4", "pairs.crop_px=32", "policy.channels=[8,16]", "policy.norm_groups=4", "policy.pixel_channels=0",
         "sampler.steps=2", "log_every=1", "cpu_threads=1", *SOURCE),
    ),
    "train-pool": (
        "data.train_pool",
        (f"{CONFIGS}/pool.yaml", "task=sr", "out={out}", "l1_iterations=2", "gan_iterations=3", "batch_size=2", "channels=8",
         "blocks=1", "exemplars=100", "checkpoint_every=1", "sr_pairs.pairs=4", "sr_pairs.crop_px=32", "log_every=1",
         "cpu_threads=1", *UNCHECKED, *SOURCE),
    ),
    "dataset": (
        "data.build",
        ("{here}/dataset.yaml", "out={out}", "workers=1", "pairs.train=4", "pairs.test=2", "pairs_per_file=1"),
    ),
    "train-rm": (
        "reward_model.train",
        (f"{CONFIGS}/train_rm.yaml", "out={out}", "dataset={here}/whole", "stage_iterations=[2,2,2,2]", "workers=0",
         "optim.batch_triplets=2", "optim.save_every=1", "optim.validate_every=1", "validation_samples=2", "device=cpu",
         "augment.crop_px=0"),
    ),
    "train-rl": (
        "rl_finetune.train",
        (f"{CONFIGS}/train_rl_face.yaml", "out={out}", "base={here}/policy", "reward_model={here}/rm", "iterations=4",
         "groups=2", "group_size=2", "checkpoint_every=1", "check_every=2", "check_images=2", "eval_images=2",
         "eval_crop_px=32", "sampler.steps=2", "pairs.crop_px=32", "pairs.pairs=4", "curve_images=0", "cpu_threads=1",
         "source.test_fraction=0.4", *SOURCE),
    ),
    "restore": (
        "rl_finetune.restore",
        ("in={here}/few", "out={out}", "policy={here}/policy", "overwrite=replace", "device=cpu", "compare=true"),
    ),
    "score": ("reward_model.score", ("in={here}/few", "out={out}", "checkpoint={here}/rm")),
}  # fmt: skip
# Where the clock stands in a run's files, and what is another at every start.
# The state of the global generators is another, too, after a loader was opened twice; no step draws from them.
_CLOCK = ("second", "random_", "says", "table", "sessions", "command", "started", "timing", "peak_memory")
_CLOCKED = re.compile("seconds|/random_")
_ROOMY = 600_000_000  # bytes of a disk on which every stage begins
_NO_RESULT = ("tensorboard", ".lock", "provenance.json", "build_log")


@dataclass(frozen=True)
class Ended:
    """How one forked process came to its end."""

    code: int  # 0: well; -9: killed
    events: int  # changes to the disk that it began
    seconds: float
    said: str


@dataclass
class Trial:
    """One run of a stage that was killed, some times, and then finished."""

    kills: list[str] = field(default_factory=list)  # where it was killed, in words
    wrong: list[str] = field(default_factory=list)  # files that are not those of a run never killed, or what it said


def prepare(here: Path) -> None:
    """Makes what the stages need: pictures, a dataset, a policy, a reward model."""
    tiny.save_pictures(here / "faces", 12, side_px=64)
    tiny.save_pictures(here / "few", 3, side_px=24)
    tiny.save_tiny_policy(here / "policy")
    tiny.save_tiny_reward_model(here / "rm")
    for name, seed in (("lake", 0), ("town", 1)):
        small_dataset.save_pictures(here / "photos" / name, 5, seed=seed)
    yaml = small_dataset.YAML.format(here=here)
    (here / "dataset.yaml").write_text(yaml.partition("  net:")[0])
    done = fork("dataset", here, here / "whole")
    assert done.code == 0, done.said


for _module, _ in STAGES.values():
    import_module(_module)


def fork(
    stage: str,
    here: Path,
    out: Path,
    *,
    die_at: int = 0,
    die_after: float = 0.0,
    full_at: int = 0,
    after: tuple[float, Callable[[], None]] | None = None,
) -> Ended:
    """Runs a stage in a process of its own, and kills its process group at the `die_at`-th change to the disk, or after
    `die_after` seconds; from the `full_at`-th change on, its disk is full; `after` some seconds something happens to it."""
    log, counted = here / "logs" / f"{stage}.log", here / "logs" / f"{stage}.events"
    log.parent.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    pid = os.fork()
    if pid == 0:
        _child(stage, here, out, log, counted, die_at, full_at)
    if die_after:
        while (
            time.monotonic() - began < die_after
            and os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
        ):
            time.sleep(0.002)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
    if after is not None:
        time.sleep(after[0])
        after[1]()
    _, status = os.waitpid(pid, 0)
    events = int(counted.read_text() or 0) if counted.exists() else 0
    counted.unlink(missing_ok=True)
    return Ended(os.waitstatus_to_exitcode(status), events, time.monotonic() - began, log.read_text()[-3000:])


def _child(stage: str, here: Path, out: Path, log: Path, counted: Path, die_at: int, full_at: int) -> None:
    code = 1
    try:
        os.setpgrp()
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        sys.stdout, sys.stderr = (
            io.TextIOWrapper(io.FileIO(1, "w"), line_buffering=True),
            io.TextIOWrapper(io.FileIO(2, "w"), line_buffering=True),
        )
        torch.set_num_threads(1)
        module, words = STAGES[stage]
        changes = Changes(out, die_at=die_at, full_at=full_at)
        changes.watch()
        try:
            run_command(import_module(module).main, [word.format(here=here, out=out) for word in words])
            code = 0
        finally:
            changes.stop()
            counted.write_text(str(changes.count))
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


class Changes:
    """Counts what a process does to a folder's disk: files opened for writing, halves and wholes of them written, flushed,
    renamed, removed; folders made. Dies at one of them, or answers that the disk is full from one of them on."""

    def __init__(self, folder: Path, *, die_at: int, full_at: int) -> None:
        self.folder, self.die_at, self.full_at, self.count, self.on = str(folder), die_at, full_at, 0, True

    def watch(self) -> None:
        """Begins to count."""
        sys.addaudithook(self._audited)
        fsync, write_bytes, write_text = os.fsync, Path.write_bytes, Path.write_text

        def flushed(handle: Any) -> None:
            self.happen("fsync")
            fsync(handle)
            self.happen("fsync done")

        def written(path: Path, content: bytes) -> int:
            if self.mine(path):
                write_bytes(path, content[: len(content) // 2])
                self.happen("half a file")
            return write_bytes(path, content)

        def written_text(path: Path, content: str, *words: Any, **options: Any) -> int:
            if self.mine(path):
                write_text(path, content[: len(content) // 2], *words, **options)
                self.happen("half a text")
            return write_text(path, content, *words, **options)

        os.fsync, Path.write_bytes, Path.write_text = flushed, written, written_text

    def stop(self) -> None:
        self.on = False

    def mine(self, path: Any) -> bool:
        return isinstance(path, str | bytes | os.PathLike) and os.fsdecode(path).startswith(self.folder)

    def happen(self, what: str) -> None:
        if not self.on:
            return
        self.count += 1
        if self.count == self.die_at:
            os.killpg(0, signal.SIGKILL)
        if self.full_at and self.count >= self.full_at and what not in ("os.remove", "os.rmdir", "fsync done"):
            raise OSError(28, "No space left on device", self.folder)

    def _audited(self, event: str, arguments: tuple) -> None:
        if not self.on:
            return
        if event == "open":
            path, _, flags = arguments
            if isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) and self.mine(path):
                self.happen("open")
        elif event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link") and any(
            map(self.mine, arguments[:2])
        ):
            self.happen(event)


def result_of(out: Path) -> dict[str, str]:
    """Returns {file: checksum} of what a stage has left, without what the clock says in it."""
    found = {}
    for path in sorted(out.rglob("*")):
        name = path.relative_to(out).as_posix()
        if path.is_file() and not _CLOCKED.search(name) and not any(part in _NO_RESULT for part in Path(name).parts):
            found[name] = hashlib.sha256(_timeless(path)).hexdigest()
    return found


def _timeless(path: Path) -> bytes:
    content = path.read_bytes()
    if path.suffix == ".json":
        return json.dumps(_without_clock(json.loads(content))).encode()
    if path.name == "config.yaml":  # says where it lies
        return b"\n".join(line for line in content.splitlines() if not line.startswith(b"out: "))
    if path.suffix == ".jsonl":
        return "\n".join(json.dumps(_without_clock(json.loads(line))) for line in content.splitlines()).encode()
    return content


def _without_clock(node: Any) -> Any:
    if isinstance(node, dict):
        return {k: _without_clock(v) for k, v in node.items() if not any(word in k for word in _CLOCK)}
    return [_without_clock(v) for v in node] if isinstance(node, list) else node


def kill_and_resume(
    stage: str, here: Path, out: Path, whole: dict[str, str], usual: Ended, rng: random.Random
) -> Trial:
    """Runs a stage that is killed one to three times, mostly inside writes, and compares it with one never killed."""
    trial = Trial()
    shutil.rmtree(out, ignore_errors=True)
    for _ in range(rng.randint(1, 3)):
        if rng.random() < 0.8:
            at = rng.randint(1, usual.events)
            ended = fork(stage, here, out, die_at=at)
            where = f"change {at} of {usual.events}"
        else:
            after = rng.uniform(0.01, usual.seconds)
            ended = fork(stage, here, out, die_after=after)
            where = f"{after:.2f} s of {usual.seconds:.2f}"
        if ended.code == -signal.SIGKILL:
            trial.kills.append(where)
        elif ended.code != 0:
            trial.wrong.append(f"after a kill it ended with {ended.code}: {ended.said[-500:]}")
            return trial
    _finish(stage, here, out, whole, trial)
    return trial


def fill_and_resume(
    stage: str, here: Path, out: Path, whole: dict[str, str], usual: Ended, rng: random.Random
) -> Trial:
    """Runs a stage whose disk is full from some moment on; then with room again, and compares it with one never stopped."""
    trial = Trial()
    shutil.rmtree(out, ignore_errors=True)
    at = rng.randint(1, usual.events)
    ended = fork(stage, here, out, full_at=at)
    trial.kills.append(f"full from change {at} of {usual.events}")
    _require_one_line(ended, trial)
    _finish(stage, here, out, whole, trial)
    return trial


@contextlib.contextmanager
def small_disk(place: Path) -> Iterator[Callable[[int | None], None]]:
    """Yields resize(free bytes) of a disk in memory mounted at `place`; None: as large as any stage wants.

    Raises OSError where this process may mount none.
    """
    place.mkdir(parents=True, exist_ok=True)

    def mount(*words: str) -> None:
        done = subprocess.run(["mount", *words], capture_output=True, text=True, check=False)
        if done.returncode:
            raise OSError(f"cannot mount a disk in memory: {done.stderr.strip()}")

    def resize(free: int | None) -> None:
        whole = os.statvfs(place)
        used = (whole.f_blocks - whole.f_bfree) * whole.f_frsize
        with contextlib.suppress(OSError):  # written meanwhile: it stays as it is
            mount("-o", f"remount,size={_ROOMY if free is None else used + free}", str(place))

    mount("-t", "tmpfs", "-o", f"size={_ROOMY}", "tmpfs", str(place))
    try:
        yield resize
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def shrink_and_resume(
    stage: str, here: Path, out: Path, whole: dict[str, str], usual: Ended, rng: random.Random
) -> Trial:
    """Runs a stage on a disk of its own, which in one moment has 0 to 200 MB left; then with room again."""
    trial = Trial()
    with small_disk(here / "disk") as resize:
        inside = here / "disk" / stage
        free = rng.choice([1, rng.randint(1, 65_536), rng.randint(10**6, 2 * 10**8)])
        when = rng.uniform(0.0, usual.seconds)
        ended = fork(stage, here, inside, after=(when, lambda: resize(free)))
        trial.kills.append(f"{free} bytes left after {when:.2f} s")
        _require_one_line(ended, trial)
        resize(None)
        _finish(stage, here, inside, whole, trial)
    return trial


def _require_one_line(ended: Ended, trial: Trial) -> None:
    lines = [line for line in ended.said.splitlines() if line.startswith("error: ")]
    if ended.code not in (0, 2) or "Traceback" in ended.said or (ended.code == 2 and len(lines) != 1):
        trial.wrong.append(f"a full disk ended with {ended.code}: {ended.said[-700:]}")


def _finish(stage: str, here: Path, out: Path, whole: dict[str, str], trial: Trial) -> None:
    ended = fork(stage, here, out)
    if ended.code != 0:
        trial.wrong.append(f"it did not go on ({ended.code}): {ended.said[-700:]}")
        return
    found = result_of(out)
    differing = [name for name in sorted(found.keys() | whole.keys()) if found.get(name) != whole.get(name)]
    if differing:
        trial.wrong.append(f"{', '.join(differing[:5])} differ{'' if len(differing) < 6 else ' and more'}")


def reference(stage: str, here: Path, out: Path) -> tuple[dict[str, str], Ended]:
    """Returns what a run that nobody killed leaves, and how it went."""
    shutil.rmtree(out, ignore_errors=True)
    usual = fork(stage, here, out)
    assert usual.code == 0, usual.said
    return result_of(out), usual
