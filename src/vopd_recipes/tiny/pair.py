"""The built-in pair: a teacher and a weaker student, made on the spot from nothing.

Both are real Qwen3 models of under a million parameters over a byte vocabulary, trained by supervised learning on
`arithmetic.chain` problems with worked solutions. The teacher is trained until it is right nearly always; the student
is smaller and stopped half-way, because a student that is never right learns nothing from its own samples.
"""

from __future__ import annotations

import random
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM
from transformers.utils.logging import tqdm

from vopd_recipes.files import written_whole
from vopd_recipes.tiny.problems import Problem

END = "<|endoftext|>"
_CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of the 256 bytes and an end token: any text, no training."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(BPE(vocab={symbol: index for index, symbol in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, pad_token=END)
    fast.chat_template = _CHAT_TEMPLATE
    return fast


def tiny_qwen3(
    hidden_size: int, layers: int, seed: int, vocab_size: int = 264, tie_word_embeddings: bool = True
) -> Qwen3ForCausalLM:
    """A Qwen3 model with random weights; its vocabulary is padded to `vocab_size`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Qwen3ForCausalLM(
            Qwen3Config(
                vocab_size=vocab_size,
                hidden_size=hidden_size,
                intermediate_size=3 * hidden_size,
                num_hidden_layers=layers,
                num_attention_heads=4,
                num_key_value_heads=2,
                head_dim=32,
                max_position_embeddings=1024,
                tie_word_embeddings=tie_word_embeddings,
                bos_token_id=None,
                eos_token_id=256,
                pad_token_id=256,
            )
        )


def train_supervised(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    problems: list[Problem],
    *,
    steps: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
    label: str,
) -> None:
    """Teach worked solutions by cross-entropy on their tokens; the rate rises for 20 steps, then falls to a tenth."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / 20, 1 - 0.9 * max(step - 20, 0) / max(steps - 20, 1))
    )
    generator = random.Random(seed)
    model.train()
    bar = tqdm(range(steps), desc=label)
    for _ in bar:
        tokens, labels = _batch(generator.sample(problems, batch_size), tokenizer)
        loss = model(input_ids=tokens, labels=labels, use_cache=False).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        bar.set_postfix(loss=f"{loss.item():.3f}")
    model.eval()


def _batch(problems: list[Problem], tokenizer: PreTrainedTokenizerFast) -> tuple[Tensor, Tensor]:
    """Right-padded tokens and labels [B, T]; only solutions, with their end token, are labelled."""
    rows = []
    for problem in problems:
        prompt = tokenizer(problem.prompt)["input_ids"]
        solution = [*tokenizer(problem.solution)["input_ids"], tokenizer.eos_token_id]
        rows.append((prompt + solution, [-100] * len(prompt) + solution))
    width = max(len(tokens) for tokens, _ in rows)
    tokens = [tokens + [tokenizer.eos_token_id] * (width - len(tokens)) for tokens, _ in rows]
    labels = [labels + [-100] * (width - len(labels)) for _, labels in rows]
    return torch.tensor(tokens), torch.tensor(labels)


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Weights (safetensors), configuration and tokenizer, whole or not there."""
    with written_whole(folder) as temporary:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
