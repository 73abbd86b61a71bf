"""What one of four processes does in tests/test_vllm_engine.py: it shares an engine. Argument: folder."""

import json
import sys
from pathlib import Path

import torch
from torch import distributed

from vopd_recipes.recipe import RecipeError
from vopd_recipes.rollout import Completion, VLLMRollout
from vopd_recipes.rollout.shared_process import EngineSettings


class Echo(VLLMRollout):
    """Without an engine: a prompt's completion is the prompt."""

    def __init__(self, size: int) -> None:
        self._on_gpu, self._asleep = False, set()
        self._settings = EngineSettings(torch.device("cpu"))
        self.asked: list[list[int]] = []
        self._join_group(size)

    def _generate_all(self, prompts: list[list[int]], seeds: list[int], max_new_tokens: int) -> list[Completion]:
        assert seeds == [10 * prompt[0] + prompt[1] for prompt in prompts]
        self.asked = prompts
        return [Completion(prompt, [0.0, 0.0], True) for prompt in prompts]


def main(folder: Path) -> None:
    distributed.init_process_group("gloo")
    rank = distributed.get_rank()
    engine = Echo(2)
    mine = [[rank, i] for i in range(rank)]
    got = [completion.token_ids for completion in engine.generate(mine, [10 * r + i for r, i in mine], 4)]
    try:
        Echo(3)
        refused = "no"
    except RecipeError as error:
        refused = str(error)
    (folder / f"{rank}.json").write_text(json.dumps({"asked": engine.asked, "got": got, "refused": refused}))
    distributed.barrier()
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
