"""A device by name, and the commands that take one."""

from __future__ import annotations

import resource
import sys

import pytest
import torch
from accelerate.state import AcceleratorState

from data.pool.restorer_pool import RestorerPool
from reward_model import score
from rl_finetune import restore
from shared.app.devices import device_words, open_accelerator, open_device, require_strategy
from shared.app.errors import UserError
from tests.helpers.tiny import save_pictures, save_tiny_policy, save_tiny_reward_model


def test_a_device_is_opened_by_name():
    assert open_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize(("cuda", "mps", "chosen"), [(True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")])
def test_a_device_is_chosen_by_itself(monkeypatch, cuda, mps, chosen):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    monkeypatch.setattr(torch, "empty", lambda *shape, device: None)  # this machine may have none of them
    assert open_device("auto") == torch.device(chosen)
    assert device_words(torch.device("cpu")).startswith("cpu (")


@pytest.mark.skipif(sys.platform != "linux", reason="what the allocator returns is glibc's own business")
def test_memory_is_not_returned_to_the_kernel_between_layers():
    open_device("cpu")
    blocks, pages_each = 8, 2**26 // resource.getpagesize()
    for _ in range(blocks):  # the first ones may still find no hole that fits
        torch.ones(2**24)  # 64 MB
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(blocks):
        torch.ones(2**24)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before < pages_each  # not every block anew


@pytest.mark.parametrize("name", ["gpu", "cuda:99", "privateuseone"])
def test_a_device_that_is_not_there_is_one_line(name):
    with pytest.raises(UserError, match=f"no device '{name}' on this machine; expected cpu, or cuda"):
        open_device(name)


def test_every_command_that_takes_a_device_opens_it(tmp_path):
    pictures, model = save_pictures(tmp_path / "in", 1), save_tiny_reward_model(tmp_path / "rm")
    with pytest.raises(UserError, match="no device 'gpu'"):
        score.main([f"in={pictures}", f"checkpoint={model}", "device=gpu"])
    with pytest.raises(UserError, match="no device 'gpu'"):
        restore.main([f"in={pictures}", f"policy={save_tiny_policy(tmp_path / 'policy')}", "device=gpu"])
    with pytest.raises(UserError, match="no device 'gpu'"):
        RestorerPool({}, device="gpu")


def test_a_restorer_works_on_the_device_it_was_put_on(tmp_path, monkeypatch):
    pictures, policy = save_pictures(tmp_path / "in", 1), save_tiny_policy(tmp_path / "policy")
    moved = []
    monkeypatch.setattr(restore, "on_device", lambda restorer, device: moved.append(device) or restorer)
    restore.main([f"in={pictures}", f"policy={policy}", f"out={tmp_path / 'out'}", "device=cpu"])
    assert moved == [torch.device("cpu")]


def test_a_precision_that_this_machine_would_ignore_is_refused():
    with pytest.raises(UserError, match="expected mixed precision no, bf16 or fp16, got half"):
        open_accelerator("half")
    assert open_accelerator("no").mixed_precision == "no"
    AcceleratorState._reset_state(reset_partial_state=True)  # Accelerate holds one precision for a process
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="fp16 needs a GPU"):
            open_accelerator("fp16")


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (
            {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2"},
            "DeepSpeed ZeRO-2 cannot be used",
        ),
        (
            {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"},
            "DeepSpeed ZeRO-3 cannot be used",
        ),
        ({"ACCELERATE_USE_FSDP": "true"}, "FSDP1 cannot be used here: it flattens"),
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}, "FSDP2 cannot be used here: the weights' average"),
        (
            {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_OFFLOAD_PARAMS": "true"},
            "FSDP2 with CPU offload cannot be used",
        ),
        ({"ACCELERATE_USE_MEGATRON_LM": "true"}, "Megatron-LM cannot be used"),
        ({"ACCELERATE_USE_PARALLELISM_CONFIG": "true"}, "a parallelism_config cannot be used"),
        (
            {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4"},
            "gradient_accumulation_steps=4 of Accelerate would leave out",
        ),
    ],
)
def test_a_strategy_that_cannot_be_used_is_one_line_before_anything_is_loaded(asked, said, monkeypatch):
    for name, value in asked.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("shared.app.devices.Accelerator", None)  # not even asked for
    with pytest.raises(UserError, match=said) as refusal:
        open_accelerator("no")
    assert "\n" not in str(refusal.value)
    if "steps" not in said:
        assert "launch with configs/gpu/accelerate/ddp.yaml" in str(refusal.value)


def test_what_distributed_data_parallel_asks_for_is_taken():
    require_strategy({"ACCELERATE_USE_CPU": "false", "ACCELERATE_MIXED_PRECISION": "bf16"})
