"""The training script with a vLLM engine that breaks after the second step. Arguments: recipe."""

import sys
from pathlib import Path

from test_trainer import build
from transformers import TrainerCallback

from vopd_recipes.training import TrainingStopped, start_run


class Break(TrainerCallback):
    """Takes the engine's executor away, as a crashed worker would."""

    def __init__(self, trainer) -> None:
        self.trainer = trainer

    def on_step_end(self, args, state, control, **kwargs) -> None:
        if state.global_step == 2:
            self.trainer.rollout._llm.llm_engine.engine_core = None


if __name__ == "__main__":
    trainer = build(Path(sys.argv[1]))
    start_run(trainer.recipe, trainer)
    trainer.add_callback(Break(trainer))
    try:
        trainer.train()
    except TrainingStopped as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
