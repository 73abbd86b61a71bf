"""What teachers need: weights, a forward, and the hidden states [N, H'] that the loss reads.

Several take turns: the weights of all that stay are there at once, and a forward, a visit to the device and hidden
states are those of the one that needs most, as if every token were its own. A student's own base has no weights of its
own. A privileged teacher reads longer prompts.
"""

from __future__ import annotations

from dataclasses import replace

from vopd_recipes.planner.activations import inference_peak
from vopd_recipes.planner.architectures import parameters_of
from vopd_recipes.planner.items import Item, gathered
from vopd_recipes.planner.states import Setup, elements_of


def teacher_items(setup: Setup) -> list[Item]:
    """Of all teachers."""
    each = [_of_one(one) for one in setup.of_each_teacher if one.teacher]
    if len(each) <= 1:
        return [item for items in each for item in items]
    names = [one.teacher_name for one in setup.of_each_teacher if one.teacher]
    resident = [
        replace(weights, name=f"teacher {name}: weights", teacher=weights.rollout, loss=weights.rollout)
        for name, (weights, _) in zip(names, each)
    ]
    in_turn = Item(
        "teachers: in turn, hidden states",
        teacher=max(weights.teacher - weights.rollout + work.teacher for weights, work in each),
        loss=max(weights.loss - weights.rollout + work.loss for weights, work in each),
        backward=max(work.backward for _, work in each),
    )
    return [*resident, in_turn]


def _of_one(setup: Setup) -> tuple[Item, Item]:
    """Its weights, and what it works with."""
    teacher = setup.computed_in if setup.own_base else setup.teacher
    assert teacher is not None
    parameters = parameters_of(teacher)
    itemsize, width = parameters[0].itemsize, teacher.config.hidden_size
    head = width * teacher.config.vocab_size * itemsize
    hidden = setup.targets * width * itemsize
    if setup.teacher_head_only:
        return Item.always("teacher: head", head), Item("teacher: hidden states", 0, 0, hidden, 0, 0)
    autocast = setup.autocast if setup.own_base else None
    forward = inference_peak(teacher, setup.teacher_sequences, autocast, frozen=True) + hidden
    whole = sum(parameter.numel for parameter in parameters) * itemsize
    if setup.own_base:
        weights = Item("teacher: weights, the student's own")
    elif setup.sharded:
        elements = 0 if setup.teacher_offload else sum(elements_of(parameter, setup) for parameter in parameters)
        shards = elements * itemsize
        on_the_way = gathered(setup, parameters, teacher.layers)
        weights = Item("teacher: weights", shards, shards + on_the_way, shards + head, shards, shards)
    elif setup.teacher_offload:
        weights = Item("teacher: weights", head, whole, head, head, head)
        hidden *= setup.accumulation  # of the whole window: the backbone visits once
        forward += hidden
    else:
        weights = Item.always("teacher: weights", whole)
    kept = hidden if setup.teacher_offload and not setup.sharded and not setup.own_base else 0
    return weights, Item("teacher: forward, hidden states", 0, forward, hidden, kept, 0)
