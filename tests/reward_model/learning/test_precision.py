"""Training the reward model in bfloat16 and through torch.compile: the numbers stay those of plain float32 training."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from reward_model.network.model import RewardModel
from reward_model.train import TrainConfig, accelerator_of
from shared.app.errors import UserError
from shared.runs.run_folder import RunFolder
from shared.runs.tracking import read_metrics
from tests.helpers.reward_training import run_training, weights_of

STEPS = (2, 0, 2)


@pytest.fixture(autouse=True)
def own_precision() -> Iterator[None]:
    """Accelerate refuses a second precision in one process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> RunFolder:
    run = run_training(tmp_path_factory.mktemp("plain") / "run", stage_iterations=STEPS)
    AcceleratorState._reset_state(reset_partial_state=True)
    return run


def losses(run: RunFolder, stage: int) -> list[float]:
    records = read_metrics(run.path)
    return [record[f"stage_{stage}/loss"] for record in records if f"stage_{stage}/loss" in record]


def test_bf16_trains_close_to_fp32_and_leaves_fp32_weights(plain, tmp_path, monkeypatch):
    kinds, whole = set(), torch.nn.functional.conv2d

    def conv2d(*inputs, **options):
        result = whole(*inputs, **options)
        if result.requires_grad:  # the network while it trains
            kinds.add(result.dtype)
        return result

    monkeypatch.setattr(torch.nn.functional, "conv2d", conv2d)
    run = run_training(tmp_path / "run", stage_iterations=STEPS, precision="bf16")
    assert kinds == {torch.bfloat16}
    for record in read_metrics(run.path):
        assert all(math.isfinite(value) for value in record.values())
    first, in_full = losses(run, 0)[0], losses(plain, 0)[0]
    assert first == pytest.approx(in_full, rel=0.05)  # of small differences: two digits are left of eight bits
    assert len(losses(run, 2)) == 2
    assert losses(run, 2)[0] == pytest.approx(losses(plain, 2)[0], rel=0.3)  # stage 0 has moved a little differently
    images = torch.rand(2, 3, 40, 33, generator=torch.Generator().manual_seed(0))
    for stage in range(3):
        weights = load_file(run.path / "checkpoint" / f"stage_{stage}" / "model.safetensors")
        counters = {name for name, tensor in weights.items() if tensor.dtype != torch.float32}
        assert all(name.endswith("num_batches_tracked") for name in counters)
        # What the optimizer moved was float32 as well: steps too small for bfloat16 are kept.
        moved = torch.cat([tensor.flatten() for name, tensor in weights.items() if name not in counters])
        assert (moved != moved.bfloat16()).float().mean() > 0.5
        model = RewardModel.from_pretrained(run.path / "checkpoint", stage=stage)
        with torch.no_grad():
            output = model(images)
        assert output.score.dtype == torch.float32
        assert torch.isfinite(output.score).all()
        if stage:
            assert output.require_map().dtype == torch.float32


def test_a_compiled_network_trains_to_the_same_weights(plain, tmp_path, monkeypatch):
    # Traced and run as traced: what Inductor makes of it takes minutes to build on two cores.
    graphs, whole = [], torch.compile

    def as_traced(graph, inputs):
        graphs.append(graph)
        return graph

    monkeypatch.setattr(torch, "compile", lambda model: whole(model, backend=as_traced))
    try:
        run = run_training(tmp_path / "run", stage_iterations=STEPS, compile=True)
    finally:
        torch._dynamo.reset()
    assert len(graphs) >= 2  # a network for each stage that trained
    expected, found = weights_of(plain), weights_of(run)
    assert expected.keys() == found.keys()  # nothing of the wrapper in their names
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, atol=1e-5, rtol=1e-4)
    assert losses(run, 2) == pytest.approx(losses(plain, 2), rel=1e-4)


def test_half_precision_without_a_gpu_is_refused(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(UserError, match="fp16 needs a GPU"):
        accelerator_of(TrainConfig(out=str(tmp_path), device="cpu", precision="fp16"))
