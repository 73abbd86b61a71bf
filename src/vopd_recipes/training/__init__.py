"""The loop: rollout, teacher, loss, step; what it logs, how it is evaluated, and what a run leaves behind."""

from vopd_recipes.training.run import finish_run, publishing, start_run
from vopd_recipes.training.trainer import TrainingStopped, VOPDTrainer
