"""Shows a picture before RL and after it in the browser, on this machine alone: scores, maps, the best of several samples.

python -m rl_finetune.demo
python -m rl_finetune.demo run=runs/mine task=face port=7861

Needs the package gradio, which is the extra `demo`. Nothing leaves the machine.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from data.degradation.records import SCALES, Task
from reward_model.network.checkpoint import locate_checkpoint
from reward_model.network.model import RewardModel
from rl_finetune.restore import policy_of_run
from rl_finetune.restoring.before_after import BeforeAfter, Comparison
from rl_finetune.restoring.tiles import SMALLEST_TILE_PX
from shared.app.config import require_range
from shared.app.devices import device_words, open_device
from shared.app.entry import run_command
from shared.app.errors import UserError
from shared.app.shipped import DEFAULT_RUN, PREFIX, choose_checkpoint
from shared.app.words import read_words
from shared.pictures.reading import UnreadableImage, read_picture
from shared.policies.load import load_restorer
from shared.restorers.protocol import RestorerSettings, on_device
from shared.runs.run_folder import CONFIG_FILE

HOST = "127.0.0.1"
MOST_SAMPLES = 8
ABOUT = "Everything happens on this machine. Maps are painted orange to red where the reward model sees defects."


@dataclass(frozen=True)
class DemoConfig:
    """Which policies are shown, judged by what, and where."""

    policy: str = ""  # after RL: a policy's folder, or shipped:rl_sr; empty: that of `run`
    before: str = ""  # before RL; empty: what that policy started from
    run: str = DEFAULT_RUN  # the run whose policies are shown; where the default run has none, the shipped ones are
    task: Task = "sr"  # sr (×4) | face (same size)
    reward_model: str = ""  # a folder or a Hub repository; empty: the run's own, else the shipped one
    tile_px: int = 512  # side of lq tiles; larger ones need more memory
    most_megapixels: float = 2.0  # of a picture that is taken; larger ones are for the command restore
    port: int = 7860  # of the page, http://127.0.0.1:7860
    device: str = "auto"  # auto (the GPU where there is one) | cpu | cuda | cuda:1 | mps

    def __post_init__(self) -> None:
        require_range(tile_px=(self.tile_px, SMALLEST_TILE_PX, 1_000_000), port=(self.port, 1, 65535))
        require_range(most_megapixels=(self.most_megapixels, 0.001, 1000))


def main(argv: Sequence[str]) -> None:
    config = read_words(DemoConfig, argv, expected="run=<a run's folder>", optional=True)
    gradio = open_gradio()
    app = demo_app(gradio, open_policies(config), config)
    try:
        serve(app, gradio, port=config.port)
    except OSError:
        raise UserError(f"port {config.port} is taken; choose another with port=") from None
    print(f"open http://{HOST}:{config.port} in a browser; Ctrl-C ends it", flush=True)
    app.block_thread()


def open_gradio() -> Any:
    """Returns the package, its telemetry off. Raises UserError where it is not installed."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    try:
        import gradio
    except ImportError:
        raise UserError("the demo needs gradio; install it with: pip install 'restore-rl[demo]'") from None
    return gradio


def open_policies(config: DemoConfig) -> BeforeAfter:
    """Returns both policies and the reward model. Raises UserError where one of them is missing."""
    device = open_device(config.device)
    after = config.policy or policy_of_run(config.run, config.task)
    before = config.before or before_of(after)
    advice = "name one with reward_model=, or train one with make train-rm"
    where = config.reward_model
    if not where:
        choice = choose_checkpoint(config.run, "reward_model/checkpoint", "reward_model", advice=advice)
        where = choice.where
        print(f"reward model: {choice.says}")
    print(f"before RL: {before}\nafter RL: {after}\ndevice: {device_words(device)}")
    settings = RestorerSettings(scale=SCALES[config.task])
    restorers = [on_device(load_restorer(each, settings), device) for each in (before, after)]
    model = RewardModel.from_pretrained(locate_checkpoint(where)).to(device).eval()
    return BeforeAfter(*restorers, model, device, config.tile_px)


def before_of(after: str) -> str:
    """Returns the policy that a tuned one started from. Raises UserError where nothing says which."""
    if after.startswith(f"{PREFIX}rl_"):
        return after.replace("rl_", "base_", 1)
    config = Path(after) / CONFIG_FILE
    base = yaml.safe_load(config.read_text(encoding="utf-8")).get("base") if config.is_file() else None
    if not base:
        raise UserError(f"nothing says which policy {after} started from; name it with before=")
    return str(base)


def demo_app(gradio: Any, policies: BeforeAfter, config: DemoConfig) -> Any:
    """Returns the page: a picture and settings in; before and after with a slider, maps and scores out."""

    drawing = gradio.Progress()  # Gradio finds it among the defaults

    def restored(path: str | None, samples: float, seed: float, progress=drawing):
        if path is None:
            raise gradio.Error("Choose a picture first.", print_exception=False)
        try:
            picture = read_picture(Path(path))
        except UnreadableImage as error:
            raise gradio.Error(str(error), print_exception=False) from None
        height, width = picture.levels.shape[:2]
        if width * height > config.most_megapixels * 1e6:
            raise gradio.Error(
                f"{width}×{height} is more than {config.most_megapixels:g} megapixels: restore-rl restore takes any size",
                print_exception=False,
            )
        found = policies.compare(
            picture.on_white(), samples=int(samples), seed=int(seed), on_step=lambda share: progress(share, "restoring")
        )
        before, after = found.before[found.best(found.before)], found.after[found.best(found.after)]
        said = "; ".join([f"{width}×{height} → {after.picture.shape[1]}×{after.picture.shape[0]}", *picture.notes])
        return (before.picture, after.picture), before.overlay, after.overlay, score_rows(found), after.picture, said

    own = ["download", "fullscreen"]  # Gradio's third button would send the picture to a server
    with gradio.Blocks(title="restore-rl", analytics_enabled=False) as app:
        gradio.Markdown(f"# Before and after RL\n{ABOUT}")
        with gradio.Row():
            with gradio.Column(scale=1):
                source = gradio.Image(type="filepath", sources=["upload", "clipboard"], label="Picture", height=280)
                samples = gradio.Slider(1, MOST_SAMPLES, value=1, step=1, label="Samples, of which the best is shown")
                seed = gradio.Number(0, label="Seed of the noise", precision=0, minimum=0)
                start = gradio.Button("Restore", variant="primary")
                said = gradio.Textbox(label="What was done", interactive=False)
            with gradio.Column(scale=2):
                both = gradio.ImageSlider(label="Before RL | after RL", format="png", interactive=False)
                with gradio.Row():
                    maps = [
                        gradio.Image(label=f"Defects seen {which} RL", buttons=own, interactive=False)
                        for which in ("before", "after")
                    ]
                scores = gradio.Dataframe(
                    headers=["sample", "score before", "score after", "worst 1 % before", "worst 1 % after"],
                    label="Scores of the reward model: higher is better; * is shown. Worst 1 % of the map: lower is better",
                    interactive=False,
                )
                result = gradio.Image(label="After RL, to save", format="png", buttons=own, interactive=False)
        start.click(restored, [source, samples, seed], [both, *maps, scores, result, said], api_name="restore")
    return app


def serve(app: Any, gradio: Any, *, port: int) -> None:
    """Serves the page on this machine alone, in threads of its own. Raises OSError where the port is taken."""
    app.launch(
        server_name=HOST,
        server_port=port,
        share=False,
        quiet=True,
        show_error=True,
        prevent_thread_lock=True,
        ssr_mode=False,
        footer_links=[],
        theme=_theme(gradio),
    )


def score_rows(found: Comparison) -> list[list[str]]:
    """Returns the table of all samples' scores, the shown ones with an asterisk."""
    best = [found.best(of) for of in (found.before, found.after)]

    def row(k: int) -> list[str]:
        pair = (found.before[k], found.after[k])
        scores = [f"{each.score:.4f}{' *' if k == best[i] else ''}" for i, each in enumerate(pair)]
        return [str(k + 1), *scores, *("–" if each.worst is None else f"{each.worst:.3f}" for each in pair)]

    return [row(k) for k in range(len(found.before))]


def _theme(gradio: Any) -> Any:
    # Named fonts would be fetched from a server of Google's.
    fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
    return gradio.themes.Default(**fonts)


if __name__ == "__main__":
    run_command(main)
