"""What one of two processes does in tests/test_weights.py and tests/test_distributed.py.

Started by torchrun; writes what it saw as JSON, from rank 0. Arguments: a function of this file, recipe, output file.
"""

import gc
import json
import os
import sys
import weakref
from pathlib import Path

import torch
from accelerate.utils import gather_object
from safetensors.torch import load_file
from test_trainer import build
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback

from vopd_recipes.models import FullCopy, causal_lm_of, check_models, full_weights
from vopd_recipes.packing import pack
from vopd_recipes.rollout import RolloutFailed
from vopd_recipes.teacher.local import shard_with_fsdp2
from vopd_recipes.training import TrainingStopped


def shard(model: nn.Module) -> None:
    for module in model.modules():
        if type(module).__name__ in causal_lm_of(model)._no_split_modules:
            fully_shard(module)
    fully_shard(model)


def most_alive(model: nn.Module) -> int:
    """The most full tensors that are alive at the same moment while `full_weights` goes through the model."""
    alive, most = [], 0
    for _, tensor in full_weights(model):
        alive.append(weakref.ref(tensor))
        del tensor
        gc.collect()
        most = max(most, sum(reference() is not None for reference in alive))
    return most


def loss_and_gradients(trainer, samples) -> tuple[float, dict[str, torch.Tensor]]:
    """Of this process's share; DDP's and FSDP's gradients are means over the processes."""
    mine = samples[trainer.accelerator.process_index :: 2]
    tokens = torch.tensor(sum(len(sample.completion_ids) for sample in samples))
    (batch,) = pack(mine, 1)
    (view,) = trainer.teacher.views([batch])
    trainer.model.train()
    loss = trainer.compute_loss(trainer.model, {"micro_batch": batch, "teacher_view": view}, num_items_in_batch=tokens)
    trainer.model.zero_grad()
    loss.backward()
    gradients = {}
    for name, parameter in trainer.model.named_parameters():
        if parameter.grad is not None:
            gradient = parameter.grad
            whole = (
                gradient.full_tensor() if isinstance(gradient, DTensor) else trainer.accelerator.reduce(gradient) / 2
            )
            gradients[name] = whole.clone()
    return trainer.accelerator.reduce(loss.detach()).item() / 2, gradients


def largest_difference(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> float:
    assert first.keys() == second.keys(), first.keys() ^ second.keys()
    return max((first[name] - second[name]).abs().max().item() for name in first)


def zero3(trainer) -> dict[str, object]:
    """The student as ZeRO-3 loads it, against the file it came from."""
    from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus

    parameters = list(trainer.student.parameters())
    assert all(parameter.numel() == 0 for parameter in parameters)  # nobody holds a whole one
    folder = trainer.student.config._name_or_path
    weights, most = {}, 0
    for name, tensor in full_weights(trainer.student):
        weights[name] = tensor.clone()
        most = max(most, sum(parameter.ds_status == ZeroParamStatus.AVAILABLE for parameter in parameters))
    expected = load_file(Path(folder) / "model.safetensors")
    expected["lm_head.weight"] = expected["model.embed_tokens.weight"]
    return {"weights": largest_difference(weights, expected), "most_alive": most}


def fsdp2(trainer) -> dict[str, object]:
    """One update's loss and gradients, and the weights, whole and sharded."""
    with torch.no_grad():  # LoRA's B begins at zero, where merging would change nothing
        for name, parameter in trainer.model.named_parameters():
            if ".lora_B." in name:
                parameter.normal_(generator=torch.Generator().manual_seed(0))
    check_models(trainer.student, trainer.teacher.model, trainer.train_dataset[0]["input_ids"])
    samples = trainer.sample(list(trainer.train_dataset)[:5], step=0, generations=1)  # three here, two there
    loss, gradients = loss_and_gradients(trainer, samples)
    weights = {name: tensor.clone() for name, tensor in full_weights(trainer.student)}

    shard(trainer.model)
    shard_with_fsdp2(trainer.teacher.model, offload=False)
    assert all(isinstance(parameter, DTensor) for parameter in trainer.model.parameters())
    assert all(isinstance(parameter, DTensor) for parameter in trainer.teacher.model.parameters())
    check_models(trainer.student, trainer.teacher.model, trainer.train_dataset[0]["input_ids"])
    sharded_loss, sharded_gradients = loss_and_gradients(trainer, samples)
    sharded_weights = {name: tensor.clone() for name, tensor in full_weights(trainer.student)}

    copy = FullCopy(trainer.student, torch.device("cpu"))
    copy.fill(full_weights(trainer.student))
    copied = dict(copy.model.named_parameters(remove_duplicate=False))
    return {
        "loss": abs(loss - sharded_loss),
        "gradients": largest_difference(gradients, sharded_gradients),
        "weights": largest_difference(weights, sharded_weights),
        "copy": largest_difference(weights, copied),
        "most_alive": most_alive(trainer.student),
        "largest_gradient": max(gradient.abs().max().item() for gradient in gradients.values()),
    }


def ddp_on_gpus(trainer) -> dict[str, object]:
    """The loss through DDP as it is on CPUs, and as GPUs make it: with devices, to which arguments are moved."""
    samples = trainer.sample(list(trainer.train_dataset)[:6], step=0, generations=1)
    trainer.model = trainer.accelerator.prepare_model(trainer.model)
    loss, gradients = loss_and_gradients(trainer, samples)
    trainer.model.device_ids, trainer.model.device_type = [0], "cpu"
    moved_loss, moved_gradients = loss_and_gradients(trainer, samples)
    return {
        "wrapper": type(trainer.model).__name__,
        "loss": abs(loss - moved_loss),
        "gradients": largest_difference(gradients, moved_gradients),
    }


def failing_sync(trainer) -> dict[str, object]:
    """The second step's weights do not arrive at one process: what each of them stops with."""
    if trainer.is_world_process_zero():
        trainer.add_callback(FailingSync(trainer))
    try:
        trainer.train()
        mine = "it went on"
    except TrainingStopped as error:
        mine = str(error)
    return {"messages": gather_object([mine])}


class FailingSync(TrainerCallback):
    """Takes three tensors and fails, from the second step on."""

    def __init__(self, trainer) -> None:
        self.trainer = trainer

    def on_step_end(self, args, state, control, **kwargs) -> None:
        self.trainer.rollout.sync = self.fail

    def fail(self, named_weights) -> None:
        for _ in zip(range(3), named_weights):
            pass
        raise RolloutFailed("no room")


def main(kind: str, recipe: Path, output: Path) -> None:
    trainer = build(recipe)
    assert trainer.accelerator.num_processes == 2
    seen = {"fsdp2": fsdp2, "zero3": zero3, "ddp_on_gpus": ddp_on_gpus, "failing_sync": failing_sync}[kind](trainer)
    if trainer.is_world_process_zero():
        output.write_text(json.dumps(seen))
    trainer.accelerator.end_training()
    os._exit(0)  # after a step that was broken off, a thread of the communication library may abort the exit


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
