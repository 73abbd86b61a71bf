"""The command that trains: from a recipe to a finished run, or to the line that says why not.

`scripts/run_vopd.py` of a checkout and `python -m vopd_recipes.training` of an installation are both this. The same
command, started again, resumes an interrupted run. With `--explain [PROCESSES]` it only says what it would do.
"""

import atexit
import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any, NoReturn

import torch
from transformers import Trainer, set_seed

from vopd_recipes.console import Noise, screen
from vopd_recipes.files import (
    begun_from,
    check_own_folder,
    check_same_layout,
    check_same_prompts,
    check_same_recipe,
    checkpoint_to_resume,
    discard_incomplete,
    finished_step,
    only_process_in,
    step_of,
)
from vopd_recipes.hub import Target, check_write_access
from vopd_recipes.models import (
    layout,
    load_student,
    load_tokenizer,
)
from vopd_recipes.planner import FLAG, explain, take_flag
from vopd_recipes.prompts import build_prompts, content_hashes, read_by, read_rows
from vopd_recipes.recipe import (
    Recipe,
    RecipeError,
    VOPDConfig,
    fields_help,
    find_recipe,
    is_set,
    load_recipe,
    of_teacher,
    one_line,
)
from vopd_recipes.teacher import give_up, teacher_tokenizer
from vopd_recipes.training import announcement
from vopd_recipes.training.preparation import check_all, connect_to_servers, load_or_share
from vopd_recipes.training.run import finish_run, publish_finished, publishing, start_run
from vopd_recipes.training.trackers import TokenTables
from vopd_recipes.training.trainer import TrainingStopped, VOPDTrainer

logger = logging.getLogger(__name__)

USAGE = "usage: accelerate launch scripts/run_vopd.py RECIPE.yaml [--explain [PROCESSES]] [--field value ...]"


_PATIENCE = 15.0  # seconds


def train(recipe: Recipe, noise: Noise | None = None) -> None:
    """Train a recipe to its end, from its last complete checkpoint if there is one; a finished run stays as it is.

    Args:
        recipe: what to train.
        noise: what libraries print, to be kept in the run's folder.

    Raises:
        RecipeError: whatever is wrong with it, before weights are loaded where that can be known.
        TrainingStopped: the run cannot continue; what it has saved stays.
    """
    output_dir, first = Path(str(recipe.training.output_dir)), int(os.environ.get("RANK", 0)) == 0
    check_own_folder(output_dir)
    check_same_recipe(output_dir, recipe.resolved())
    step, named = finished_step(output_dir), recipe.training.resume_from_checkpoint
    if step is not None and named in (None, begun_from(output_dir)):
        if first:
            logger.info("%s: already finished, at step %d; another run needs another output_dir", output_dir, step)
            publish_finished(recipe)
        return
    with only_process_in(output_dir) if first else nullcontext():
        _train(recipe, output_dir, noise)


def build_trainer(
    recipe: Recipe, kind: Callable[..., VOPDTrainer] = VOPDTrainer
) -> tuple[VOPDTrainer, dict[str, dict[str, str]]]:
    """Everything up to the first step.

    Args:
        recipe: what is to be trained.
        kind: makes the trainer.

    Returns:
        The trainer, and the hashes of its prompts by their names in `environment.json`, see `check_same_prompts`.

    Raises:
        RecipeError: whatever is wrong with it.
    """
    ################
    # Prompts, then everything that can be wrong before weights are loaded
    ################
    output_dir = Path(str(recipe.training.output_dir))
    _check_precision(recipe)
    _check_optimizer(recipe)
    if recipe.training.push_to_hub and int(os.environ.get("RANK", 0)) == 0:
        check_write_access(Target.of(recipe.resolved()))
    rows = read_rows(recipe.data, recipe.training.seed, recipe.training.teachers or ())
    hashes = {"prompts_sha256": content_hashes(rows[0])}
    if rows[1] is not None and recipe.training.evaluates:
        hashes["held_out_sha256"] = content_hashes(rows[1])
    names = [str(source["dataset_name"]) for source in recipe.data.sources()]
    check_same_prompts(output_dir, hashes, names, recipe.data.max_test_prompts)
    tokenizer = load_tokenizer(recipe.model)
    tokenizers = {}
    for name, one in recipe.by_teacher().items():
        with of_teacher(name):
            tokenizers[name] = teacher_tokenizer(one, tokenizer)
    prompts = build_prompts(rows, recipe.data, tokenizer)
    _check_batches(recipe.training, len(prompts.train))
    read = {name: read_by(prompts, name) for name in recipe.by_teacher()}
    servers = connect_to_servers(recipe, tokenizer, read)

    ################
    # Models
    ################
    set_seed(recipe.training.seed)  # LoRA's initial weights
    student = load_student(recipe.model)
    teachers = {name: servers[name] or load_or_share(one, student) for name, one in recipe.by_teacher().items()}
    check_all(recipe, student, teachers, tokenizer, tokenizers, prompts, read)
    if recipe.model.use_peft and recipe.model.lora_dropout:
        logger.warning("lora_dropout: %g: the student trains with it and samples without", recipe.model.lora_dropout)

    ################
    # Training
    ################
    trainer = kind(
        student,
        teachers,
        recipe.training,
        processing_class=tokenizer,
        answer_format=recipe.data.answer_format,
        model_config=recipe.model,
        train_dataset=prompts.train,
        eval_dataset=prompts.test,
    )
    return trainer, hashes


def _train(recipe: Recipe, output_dir: Path, noise: Noise | None) -> None:
    begun = time.perf_counter()
    checkpoint = checkpoint_to_resume(
        output_dir, recipe.training.resume_from_checkpoint, recipe.training.resume_only_model
    )
    if noise and int(os.environ.get("RANK", 0)) == 0:
        screen.line("reading prompts, loading models")
    trainer, hashes = build_trainer(recipe)
    trainer.add_callback(TokenTables(output_dir, trainer.tokenizer, trainer.callback_handler.callbacks))
    start_run(recipe, trainer, hashes)
    if checkpoint:
        check_same_layout(checkpoint, layout(trainer.accelerator), trainer.accelerator.num_processes)
        logger.info("resuming from %s, after step %d", checkpoint, step_of(checkpoint))
    log = noise.keep(output_dir) if noise else None
    if trainer.is_world_process_zero():
        resumed = step_of(checkpoint) if checkpoint else 0
        screen.box(announcement.title(recipe), announcement.beginning(recipe, trainer, resumed, log), "cyan")
    with publishing(recipe, trainer):
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        trainer.check_ended()
        finish_run(trainer)
    if trainer.is_world_process_zero():
        screen.box("done", announcement.ending(trainer, time.perf_counter() - begun), "green")


def _check_batches(training: VOPDConfig, prompts: int) -> None:
    batch = training.per_device_train_batch_size * training.world_size
    if training.dataloader_drop_last and prompts < batch:
        raise RecipeError(
            f"dataloader_drop_last: true leaves none of {prompts} prompts: a batch has per_device_train_batch_size × "
            f"processes = {batch}; set it to false, or lower per_device_train_batch_size"
        )


def _check_precision(recipe: Recipe) -> None:
    """Updates of a whole model need float32: of bfloat16 weights, 8% moved in 20 steps at a learning rate of 1e-5.

    Gradients need the exponents of float32, which bfloat16 has: there is no loss scale to keep float16's from zero.
    """
    model, training = recipe.model, recipe.training
    if model.dtype == "float16":
        raise RecipeError(
            "dtype: float16: the student's gradients would underflow, and nothing scales the loss; use dtype: "
            "bfloat16 with use_peft: true, else dtype: float32 with bf16: true (teacher_dtype: float16 is fine)"
        )
    mixed = training.bf16 or os.environ.get("ACCELERATE_MIXED_PRECISION") == "bf16"
    sharded = training.deepspeed or is_set("ACCELERATE_USE_DEEPSPEED") or is_set("ACCELERATE_USE_FSDP")
    if model.dtype != "float32" and not model.use_peft and not (mixed and sharded):
        raise RecipeError(
            f"dtype: {model.dtype}: most updates of the student's weights would round away; use dtype: float32 with "
            "bf16: true, or use_peft: true, or bf16: true with ZeRO or FSDP, which keep a float32 copy"
        )


def _check_optimizer(recipe: Recipe) -> None:
    """The optimiser is installed and can be made: made once, for a weight that nobody trains.

    Not while the recipe is read, which happens on machines that lack a package that only training needs.
    """
    training = recipe.training
    name = str(getattr(training.optim, "value", training.optim))
    try:
        make, given = Trainer.get_optimizer_cls_and_kwargs(training)
        make([{"params": [torch.zeros(1, requires_grad=True)], "weight_decay": training.weight_decay}], **given)
    except Exception as error:  # each optimiser says in its own way what it lacks
        if name.startswith(("galore", "apollo", "lomo", "adalomo")) and not isinstance(error, ImportError):
            return  # it asks for the model, which is not there yet
        fields = ("optim_args", "optim", "adam_beta1", "adam_beta2", "adam_epsilon")
        where = next((f"{recipe.sources[field]}: " for field in fields if field in recipe.sources), "")
        what = f"{name} cannot be made with optim_args: {training.optim_args}" if training.optim_args else name
        raise RecipeError(f"{where}optim: {what}: {one_line(error)}") from error


def description(usage: str) -> str:
    """A command's help: how it is called, and every field of a recipe."""
    return f"{usage}\n\nA recipe's fields, each also a flag; [in brackets] the default.\n{fields_help()}"


def main(words: list[str] | None = None) -> None:
    """Do what a command line says, and exit with 2 for a mistake in it, 1 for a run that had to stop, 130 at Ctrl-C.

    Args:
        words: the recipe and its overrides; default: those of the process.
    """
    rank = int(os.environ.get("RANK", 0))
    words = sys.argv[1:] if words is None else words
    if not words or words[0] in ("-h", "--help"):
        print(description(USAGE))
        sys.exit(0 if words else 2)
    output_dir = None
    try:
        if FLAG in words:
            processes, words = take_flag(words)
            if rank == 0:
                print(explain(find_recipe(words[0]), words[1:], processes))
            return
        signal.signal(signal.SIGINT, _interrupt_once)
        with Noise(rank) as noise:
            try:
                recipe = load_recipe(find_recipe(words[0]), words[1:])
                output_dir = Path(str(recipe.training.output_dir))
                train(recipe, noise)
                leave_the_group(recipe)
            except (RecipeError, TrainingStopped) as error:
                _end(rank, str(error), 2 if isinstance(error, RecipeError) else 1)
            except KeyboardInterrupt:
                _leave(rank, output_dir)
    except RecipeError as error:
        _end(rank, str(error), 2)


def leave_the_group(recipe: Recipe) -> None:
    """One of several processes, whose run is finished, ends here.

    NCCL's processes say good-bye; an engine of vLLM has groups of its own in theirs, and leaves them itself.
    """
    if not _in_a_group():
        return
    if torch.distributed.get_backend() != "gloo" and recipe.training.rollout_backend == "transformers":
        torch.distributed.destroy_process_group()
    _end_at_once(0)


def _in_a_group() -> bool:
    return int(os.environ.get("WORLD_SIZE", 1)) > 1 and torch.distributed.is_initialized()


def _end_at_once(status: int) -> NoReturn:
    """End this process, once what is to run at exit has run, and take no interpreter down.

    Gloo's threads outlive what they use: one that drops a tensor meanwhile wants the interpreter's lock, is ended for
    it, and aborts the process ("terminate called without an active exception"): a finished run would count as failed.
    And threads that wait for a server would be waited for.
    """
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _exit(status: int, is_waiting: bool) -> NoReturn:
    """As an interpreter does, unless its end would be waited for or may abort."""
    if is_waiting or _in_a_group():
        _end_at_once(status)
    sys.exit(status)


def _end(rank: int, reason: str, status: int) -> NoReturn:
    """The first process speaks for all, and its end is the launcher's reason to end the others; who is still there
    then met something that the first did not.
    """
    is_waiting = give_up()  # another teacher's server may be away too
    if rank:
        time.sleep(_PATIENCE)
    print(f"{f'[rank {rank}] ' if rank else ''}error: {reason}", file=screen.errors, flush=True)
    _exit(status, is_waiting)


def _interrupt_once(*_: Any) -> NoReturn:
    """Ctrl-C; a launcher sends it a second time, which must not cut the last line off."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise KeyboardInterrupt


def _leave(rank: int, output_dir: Path | None) -> NoReturn:
    """Leave what can be resumed, and say how."""
    is_waiting = give_up()
    if rank == 0:
        if output_dir is not None and output_dir.is_dir():
            with suppress(OSError):  # other processes may still be writing there; the next start does it then
                discard_incomplete(output_dir)
        behind = "\n" if screen.is_terminal else ""  # which has written ^C, or a bar
        print(f"{behind}{announcement.interrupted(output_dir)}", file=screen.errors, flush=True)
    _exit(130, is_waiting)
