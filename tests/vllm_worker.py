"""What tests/test_vllm_rollout.py asks of one real engine, in a process of its own: it stays to the process's end.

Arguments: student folder, `full` or `lora`, output file. Writes what it saw as JSON.
"""

import json
import sys
import time
from pathlib import Path

import torch
from test_weights import with_adapters
from transformers import AutoModelForCausalLM

from vopd_recipes.models import full_weights
from vopd_recipes.rollout import Completion, RolloutFailed, Sampling, TransformersRollout, VLLMRollout
from vopd_recipes.tiny import byte_tokenizer

EOS = byte_tokenizer().eos_token_id
VOCABULARY = 250  # of 264: the rest must never be drawn
PROMPTS = [list(range(40, 40 + length)) for length in (3, 17, 5, 9, 30, 1, 12)]
SEEDS = [2**62 + 1009 * i for i in range(len(PROMPTS))]
NEW_TOKENS = 12


def trainer_logprobs(model, prompt: list[int], completion: Completion) -> torch.Tensor:
    """Of the sampled tokens, from one forward, as training computes them."""
    with torch.no_grad():
        logits = model(torch.tensor([prompt + completion.token_ids])).logits[0, len(prompt) - 1 : -1, :VOCABULARY]
    return logits.log_softmax(-1).gather(1, torch.tensor(completion.token_ids)[:, None])[:, 0]


def gaps(model, completions: list[Completion]) -> dict[str, float]:
    pairs = [(trainer_logprobs(model, p, c), torch.tensor(c.logprobs)) for p, c in zip(PROMPTS, completions)]
    difference = torch.cat([ours - theirs for ours, theirs in pairs])
    return {"gap": difference.abs().max().item(), "importance": (difference.exp() - 1).abs().mean().item()}


def failure(call) -> str:
    try:
        call()
    except RolloutFailed as error:
        return str(error)
    return "nothing"


def breaking(weights):
    """A stream of weights that ends with an error in its middle."""
    for index, pair in enumerate(weights):
        if index == 5:
            raise OSError("the other node is gone")
        yield pair


def main(folder: str, kind: str, output: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    start = time.perf_counter()
    engine = VLLMRollout(
        model=folder, revision=None, device=torch.device("cpu"), dtype="float32", eos_token_ids={EOS},
        vocabulary=VOCABULARY, sampling=Sampling(),
        max_model_len=64, gpu_memory_utilization=0.1, max_num_seqs=128,
    )  # fmt: skip
    seen: dict[str, object] = {"start_seconds": time.perf_counter() - start}
    if kind == "lora":
        model = with_adapters(model).eval()
        base = {name: tensor.clone() for name, tensor in model.named_parameters() if ".base_layer." in name}
        engine.sync(full_weights(model))

    completions = engine.generate(PROMPTS, SEEDS, NEW_TOKENS)
    seen["first"] = gaps(model, completions)
    seen["lengths"] = [len(completion.token_ids) for completion in completions]
    seen["finished"] = [(c.finished, c.token_ids[-1] == EOS) for c in completions]
    seen["largest_token"] = max(max(completion.token_ids) for completion in completions)
    alone = [engine.generate([p], [s], NEW_TOKENS)[0].token_ids for p, s in zip(PROMPTS, SEEDS)]
    reverse = engine.generate(PROMPTS[::-1], SEEDS[::-1], NEW_TOKENS)[::-1]
    tokens = [completion.token_ids for completion in completions]
    seen["alone"] = alone == tokens
    seen["reverse"] = [completion.token_ids for completion in reverse] == tokens
    # 128 prompts of 50 tokens: more than the engine reads in a step, the 82nd stands across its limit of 4096
    crowd = [[40 + (i + j) % 200 for j in range(50)] for i in range(128)]
    together = engine.generate(crowd, list(range(128)), 4)
    apart = [engine.generate([crowd[i]], [i], 4)[0].token_ids for i in (80, 81, 82)]
    seen["crowd"] = apart == [together[i].token_ids for i in (80, 81, 82)]
    seen["none"] = engine.generate([], [], NEW_TOKENS)
    # A run of one token over and over ends when that token ends completions.
    common = max(set(sum(tokens, [])), key=sum(tokens, []).count)
    engine._eos_token_ids = [EOS, common]
    ended = engine.generate(PROMPTS, SEEDS, NEW_TOKENS)
    seen["ended"] = [(c.finished, c.token_ids[-1] in (EOS, common), common in c.token_ids[:-1]) for c in ended]
    engine._eos_token_ids = [EOS]

    greedy = Sampling(top_k=1)
    engine.sampling = greedy
    ours = TransformersRollout(lambda: model, {EOS}, VOCABULARY, greedy, batch_size=8).generate(
        PROMPTS, SEEDS, NEW_TOKENS
    )
    seen["greedy"] = [c.token_ids for c in engine.generate(PROMPTS, SEEDS, NEW_TOKENS)] == [c.token_ids for c in ours]
    engine.sampling = Sampling()

    with torch.no_grad():  # a step
        generator = torch.Generator().manual_seed(0)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * parameter.std() * torch.randn(parameter.shape, generator=generator))
    seen["forgotten"] = gaps(model, engine.generate(PROMPTS, SEEDS, NEW_TOKENS))
    start = time.perf_counter()
    engine.sync(full_weights(model))
    seen["sync_seconds"] = time.perf_counter() - start
    seen["synced"] = gaps(model, engine.generate(PROMPTS, SEEDS, NEW_TOKENS))
    if kind == "lora":
        now = dict(model.named_parameters())
        seen["base_unchanged"] = all(torch.equal(now[name], tensor) for name, tensor in base.items())

    seen["too_long"] = failure(lambda: engine.generate([[1] * 60], [0], NEW_TOKENS))
    seen["wrong_shape"] = failure(lambda: engine.sync([("model.norm.weight", torch.ones(7))]))
    seen["broken_stream"] = failure(lambda: engine.sync(breaking(full_weights(model))))
    output.write_text(json.dumps(seen))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
