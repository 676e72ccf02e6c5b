"""Measures what an RL iteration costs: time by part beside the bare passes of its networks, samples a second, memory.

python -m rl_finetune.bench configs/train_rl_sr.yaml base=… reward_model=…      # prints a table, and the figures as JSON
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import median

import torch

from rl_finetune.loop.config import TrainRlConfig
from rl_finetune.loop.groups import draw, groups_of
from rl_finetune.loop.iteration import iterate
from rl_finetune.loop.session import Session
from rl_finetune.methods.trajectory import Rollout
from rl_finetune.methods.window import WindowConfig, stochastic_range
from rl_finetune.rewards.learned import judge_pictures
from shared.app.config import load_config
from shared.app.devices import open_accelerator
from shared.app.entry import run_command
from shared.app.errors import UserError
from shared.app.timing import Clock, peak_memory_mb
from shared.policies.interface import repeat, take
from shared.runs.run_folder import RunFolder

ITERATIONS = 5  # timed; one more goes before
PARTS = ("data", "rollout", "judge", "update")
BARE = PARTS[1:]  # the parts that run networks


@dataclass(frozen=True)
class Shape:
    """What an iteration's memory depends on."""

    group_size: int
    steps: int
    trained_steps: int

    @classmethod
    def of(cls, config: TrainRlConfig) -> Shape:
        moving = config.window.kind != "declared"
        trained = config.window.steps if moving else len(stochastic_range(config.sampler))
        return cls(config.group_size, config.sampler.steps, trained)


def main(argv: Sequence[str]) -> None:
    config = at_last_stage(load_config(TrainRlConfig, argv))
    torch.set_num_threads(config.cpu_threads)
    accelerator = open_accelerator(config.mixed_precision)
    session = Session.open(config, RunFolder(config.out), accelerator)
    figures = {"device": str(accelerator.device), "threads": torch.get_num_threads(), **asdict(Shape.of(config))}
    print(f"RL {config.task}, {config.groups} groups of {config.group_size}, on {figures['device']}:")
    figures |= measure_time(session)
    for part in PARTS:
        print(part_line(part, figures))
    print(
        f"  samples a second: {figures['rollout_per_second']:.1f} drawn, {figures['update_per_second']:.1f} learnt from"
    )
    print(f"the whole iteration over the bare passes of its networks: {figures['times_networks']:.3f}")
    figures["update_by_steps_per_pass"] = measure_rescoring(session)
    for steps, seconds in figures["update_by_steps_per_pass"].items():
        print(f"  update with {steps} trained steps re-scored in one pass: {1000 * seconds:.0f} ms")
    figures["memory"] = []
    for shape in memory_shapes(Shape.of(config)):
        figures["memory"].append(measure_memory(session, shape))
        print(memory_line(figures["memory"][-1]))
    print(json.dumps(figures))


def at_last_stage(config: TrainRlConfig) -> TrainRlConfig:
    """Returns the config on the curriculum's last, most expensive stage alone. Raises UserError for reward gradients."""
    if config.method != "policy_gradient":
        raise UserError(f"the benchmark takes method=policy_gradient apart, got {config.method}")
    return replace(config, curriculum=replace(config.curriculum, stages=config.curriculum.stages[-1:]))


def measure_time(session: Session) -> dict[str, object]:
    """Returns the median seconds of an iteration by part, of its networks' bare passes, and what follows from them.

    Iterations and bare passes take turns, so that what else the machine does slows both alike.
    """
    taken: dict[str, list[float]] = {}
    clock, samples = Clock(session.learner.accelerator.device), session.config.groups * session.config.group_size
    for iteration in range(ITERATIONS + 1):
        clock.seconds.clear()
        with clock("data"):
            groups_of(session, iteration)  # kept, so that the iteration finds them made
        with clock("whole"):
            figures = iterate(session, iteration)
        for part, run in bare_passes(session, draw(session, iteration)).items():
            with clock(f"bare {part}"):
                run()
        session.learner.optimizer.zero_grad(set_to_none=True)
        seconds = {**clock.seconds, **{part: figures[f"seconds/{part}"] for part in BARE}}
        for name, value in seconds.items() if iteration else ():
            taken.setdefault(name, []).append(value)
    seconds = {name: median(values) for name, values in taken.items()}
    whole = seconds["data"] + seconds["whole"]
    return {
        "seconds": seconds,
        "share": {part: seconds[part] / whole for part in PARTS},
        "rollout_per_second": samples / seconds["rollout"],
        "update_per_second": samples / seconds["update"],
        "times_networks": whole / sum(seconds[f"bare {part}"] for part in BARE),
    }


def measure_rescoring(session: Session) -> dict[int, float]:
    """Returns {steps_per_pass: median seconds of an update}: one trained step in a forward pass, and all of them."""
    trained = Shape.of(session.config).trained_steps
    taken: dict[int, list[float]] = {1: [], trained: []}
    for iteration in range(ITERATIONS + 1):
        for steps, seconds in taken.items():
            config = replace(session.config, steps_per_pass=steps)
            figures = iterate(replace(session, config=config), iteration)
            if iteration:
                seconds.append(figures["seconds/update"])
    return {steps: median(seconds) for steps, seconds in taken.items()}


def bare_passes(session: Session, drawn: Rollout) -> dict[str, Callable[[], None]]:
    """Returns, by part, the network passes of an iteration in the same slices and nothing else.

    The rollout's forwards, one reward-model forward for each judged picture, the update's forwards and backwards.
    """
    config, learner = session.config, session.learner
    size = config.samples_per_pass or config.groups // config.updates_per_rollout * config.group_size
    condition, x_t = repeat(drawn.condition, drawn.group_size), drawn.steps[0].x_t
    windows = [slice(start, start + size) for start in range(0, len(x_t), size)]
    slices = [(x_t[window], take(condition, window)) for window in windows]
    reward_model = session.judge.final.toolbox.given["reward_model"]

    def passes(network: Callable[..., torch.Tensor], times: int, backward: bool) -> None:
        for x_t, condition in slices:
            timesteps = learner.policy.schedule.batch_at(drawn.steps[0].times.t, len(x_t), x_t.device)
            for _ in range(times):
                with learner.accelerator.autocast():
                    output = network(x_t, timesteps, condition)
                if backward:
                    learner.accelerator.backward(output.float().sum())

    @torch.no_grad()
    def rollout() -> None:
        passes(learner.policy.predict, config.sampler.steps, False)

    @torch.no_grad()
    def judge() -> None:
        lq = drawn.each_sample(drawn.lq)
        for pictures in drawn.pictures:
            share = session.judge.final.images_per_call or len(pictures)
            for part, its_lq in zip(pictures.split(share), lq.split(share), strict=True):
                judge_pictures(reward_model, part, its_lq)

    return {"rollout": rollout, "judge": judge, "update": lambda: passes(learner.model, len(drawn.steps), True)}


def memory_shapes(shape: Shape) -> list[Shape]:
    """Returns the shape, and others that differ from it in one thing: what each costs is their difference."""
    few = min(2, shape.trained_steps)
    return [
        shape,
        replace(shape, group_size=2 * shape.group_size),
        replace(shape, trained_steps=few),
        replace(shape, steps=2 * shape.steps, trained_steps=few),
        replace(shape, steps=2 * shape.steps, trained_steps=2 * shape.steps - 1),
    ]


def measure_memory(session: Session, shape: Shape) -> dict[str, float]:
    """Returns the peak of an iteration of this shape beyond weights and optimizer, and what its rollout keeps, in MB."""
    sampler = replace(session.config.sampler, steps=shape.steps, window_start=0, window=-1)
    config = replace(
        session.config,
        group_size=shape.group_size,
        sampler=sampler,
        window=WindowConfig(kind="last", steps=shape.trained_steps),
    )
    shaped = replace(session, config=config)
    drawn = draw(shaped, 0)
    kept = sum(t.nbytes for s in drawn.steps for t in (s.x_t, s.prev, s.mean, s.log_prob_map)) + drawn.sr.nbytes
    del drawn
    peak = peak_memory_mb(lambda: iterate(shaped, 0), device=session.learner.accelerator.device)
    return {**asdict(shape), "peak_mb": peak, "rollout_keeps_mb": kept / 2**20}


def part_line(part: str, figures: dict) -> str:
    """Returns one part's time as a row of text."""
    bare = figures["seconds"].get(f"bare {part}")
    beside = f"   (bare network passes {1000 * bare:.0f})" if bare else ""
    return f"  {part:<9}{1000 * figures['seconds'][part]:8.0f} ms {100 * figures['share'][part]:5.1f} %{beside}"


def memory_line(memory: dict[str, float]) -> str:
    """Returns one shape's memory as a row of text."""
    shape = f"G {memory['group_size']}, T {memory['steps']}, {memory['trained_steps']} trained"
    return (
        f"  {shape:<24}{memory['peak_mb']:8.0f} MB at the peak, of which the rollout {memory['rollout_keeps_mb']:.1f}"
    )


if __name__ == "__main__":
    run_command(main)
