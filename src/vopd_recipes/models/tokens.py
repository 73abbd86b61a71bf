"""Before step 1: the two models agree on their tokens, on where a text ends, and have room for every prompt.

**Where a text ends.** A completion is sampled up to the first token of a set E. Stopped there, the two models are
distributions over texts, and the reverse KL between those is Σ_t KL(p(·|x, y_<t) ‖ q(·|x, y_<t)) in expectation over
y ~ p, t up to the end, whatever E is: the stated objective, for every E. But a teacher has learnt nothing about what
comes after its own end token. Where E lacks that token (Qwen3 ends with <|im_end|>, Qwen3-Base with <|endoftext|>),
the student learns to emit it, goes on, and is taught noise up to the limit. With E the student's tokens *and* the
teacher's, every term is one that the teacher means: a student that ends with its own token where the teacher would use
the other is moved to the other by the term of that position, and nothing after it is counted. A teacher that does not
know one of the student's end tokens needs nothing: it gives it little probability, and the student unlearns it.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn
from transformers import GenerationConfig, PreTrainedTokenizerBase

from vopd_recipes.models.architecture import causal_lm_of
from vopd_recipes.recipe import RecipeError


def check_tokenizers(student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase) -> None:
    """The same id must mean the same text to both models.

    Ids that only one of them names are fine: extra special tokens in the padding of the other's vocabulary.

    Raises:
        RecipeError: some id differs.
    """
    ours = {index: token for token, index in student.get_vocab().items()}
    theirs = {index: token for token, index in teacher.get_vocab().items()}
    common = ours.keys() & theirs.keys()
    differing = sorted(index for index in common if ours[index] != theirs[index])
    if differing or len(common) < 0.9 * max(len(ours), len(theirs)):
        example = f"; id {differing[0]} is {ours[differing[0]]!r} and {theirs[differing[0]]!r}" if differing else ""
        raise RecipeError(
            f"teacher_model_name_or_path: its tokenizer differs from the student's in "
            f"{len(differing) + abs(len(ours) - len(theirs))} tokens{example}; on-policy distillation compares token "
            "by token and needs one vocabulary"
        )


def end_of_sequence_ids(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Every token that ends a completion: the tokenizer's, and those of the model's generation settings."""
    configured = causal_lm_of(model).generation_config
    found = _ids(configured.eos_token_id if configured is not None else None) | _ids(tokenizer.eos_token_id)
    if not found:
        raise RecipeError("model_name_or_path: neither tokenizer nor model names an end-of-sequence token")
    return found


def published_end_ids(name: str | None, revision: str | None) -> set[int]:
    """Tokens that end the texts of a model which is elsewhere, by its generation settings; none where it has no such.

    Args:
        name: folder or Hub id; `None` where nobody has said.
        revision: of it.
    """
    try:
        ids = GenerationConfig.from_pretrained(name, revision=revision or "main").eos_token_id if name else None
    except Exception:  # it is asked for a warning's sake, and may be anything on a server's disk
        return set()
    return _ids(ids)


def _ids(tokens: int | list[int] | None) -> set[int]:
    """Of one token, several or none, as settings have them."""
    return {index for index in (tokens if isinstance(tokens, list) else [tokens]) if index is not None}


def unshared_end(
    student: nn.Module, tokenizer: PreTrainedTokenizerBase, ends: set[int], names: PreTrainedTokenizerBase
) -> str | None:
    """What to say of tokens that end the teacher's texts and not the student's; `None` where there are none.

    Args:
        student: samples.
        tokenizer: its own.
        ends: tokens that end the teacher's texts.
        names: a tokenizer that knows them.
    """
    missing = ends - end_of_sequence_ids(student, tokenizer)
    if not missing:
        return None
    tokens = [str(names.convert_ids_to_tokens(index)) for index in sorted(missing)]
    return (
        f"warning: the teacher ends its texts with {' or '.join(tokens)}, at which the student's completions go on, "
        f"and knows nothing of what follows; set eos_token: '{tokens[0]}'"
    )


def check_end_tokens(ids: Iterable[int], tokenizer: PreTrainedTokenizerBase, vocabulary: int) -> None:
    """An end token that is never drawn ends nothing.

    Args:
        ids: tokens that end a completion.
        tokenizer: names them.
        vocabulary: tokens from this id on are never drawn.

    Raises:
        RecipeError: one lies beyond the vocabulary.
    """
    for index in sorted(ids):
        if index >= vocabulary:
            raise RecipeError(
                f"eos_token: {tokenizer.convert_ids_to_tokens(index)} ({index}) is not among the {vocabulary} tokens "
                "that both models score, so no completion would end with it; name one that is"
            )


def check_prompts(
    prompts: Iterable[list[int]], completion_length: int, student: nn.Module | None, teacher: nn.Module | None
) -> None:
    """Every prompt with its completion can be read by both models.

    Raises:
        RecipeError: a token without an embedding, or more tokens than positions.
    """
    lengths_and_ids = [(len(prompt), max(prompt, default=0)) for prompt in prompts]
    longest, largest = (max(values, default=0) for values in zip(*lengths_and_ids))
    for field, model in (("model_name_or_path", student), ("teacher_model_name_or_path", teacher)):
        if model is None:
            continue
        settings = causal_lm_of(model).config.get_text_config()
        positions = getattr(settings, "max_position_embeddings", None)
        if largest >= settings.vocab_size:
            raise RecipeError(
                f"{field}: a prompt holds token {largest}, and the model has embeddings for {settings.vocab_size}; "
                "its tokenizer is another model's"
            )
        if positions is not None and longest + completion_length > positions:
            raise RecipeError(
                f"{field}: a prompt of {longest} tokens and max_completion_length: {completion_length} exceed the "
                f"{positions} positions of the model; lower max_prompt_length or max_completion_length"
            )
