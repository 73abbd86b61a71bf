"""lighteval 0.13 over our own tasks: its pipeline, tasks, documents, metrics and trackers.

Three things are done in lighteval's place. Its registry imports every built-in task, of which one downloads a file and
two call the Hub: ours holds the tasks that were asked for and nothing else. Its data sets are loaded before, so that
one that cannot be had costs one task and not the run. And a document's number of samples is the protocol's.
"""

from __future__ import annotations

import collections
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluation.grades import METRIC, Graded, metric
from evaluation.harness import (
    Doc,
    EvaluationTracker,
    LightevalTask,
    LightevalTaskConfig,
    ParallelismManager,
    Pipeline,
    PipelineParameters,
    Registry,
)
from evaluation.model import EvaluatedModel
from evaluation.tasks import Question, Task
from vopd_recipes.grading import MathGrader

_SPLIT = "test"


@dataclass(frozen=True)
class Prepared:
    """A task whose questions are here and fit the model.

    Args:
        task: which.
        questions: all of them.
        samples: completions per question.
    """

    task: Task
    questions: list[Question]
    samples: int


@dataclass(frozen=True)
class Measured:
    """What came of a task.

    Args:
        scores: see `grades.scores`.
        questions: graded, in the data set's order.
    """

    scores: dict[str, Any]
    questions: list[Graded]


def run_suite(
    model: EvaluatedModel, tasks: list[Prepared], grader: MathGrader, limit: int | None, scratch: Path
) -> dict[str, Measured]:
    """Answer and grade every task's questions: task → what came of it.

    Args:
        model: answers.
        tasks: at least one.
        grader: for mathematics.
        limit: questions per task, lighteval's fixed choice of them; all where `None`.
        scratch: a folder that lighteval's tracker names and nothing is written to.
    """
    for name in ("lighteval", "git"):
        logging.getLogger(name).setLevel(logging.WARNING)
    tracker = EvaluationTracker(output_dir=str(scratch), save_details=False)
    parameters = PipelineParameters(
        launcher_type=ParallelismManager.CUSTOM,
        max_samples=limit,
        remove_reasoning_tags=False,  # grading does, over all samples
        bootstrap_iters=0,  # the standard error has a closed form
    )
    logging.getLogger("lighteval.pipeline").setLevel(logging.ERROR)  # a limit is shouted about; results carry it
    pipeline = _Pipeline([_LightevalTask(prepared, grader) for prepared in tasks], parameters, tracker, model)
    pipeline.evaluate()
    measured = {}
    for prepared in tasks:
        name = f"{prepared.task.name}|0"
        graded: list[Graded] = [detail.metric[METRIC] for detail in tracker.details_logger.details[name]]
        graded.sort(key=lambda question: int(question.doc.id))
        measured[prepared.task.name] = Measured(dict(tracker.metrics_logger.metric_aggregated[name]), graded)
    return measured


def _config(prepared: Prepared, grader: MathGrader) -> LightevalTaskConfig:
    task = prepared.task

    def document(row: dict[str, Any], name: str) -> Doc:
        question = Question(row["text"], row["gold"], row["letters"])
        specific = {"question": question.text, "gold": question.gold, "letters": question.letters}
        return Doc(
            query=task.prompt(question), choices=[question.gold], gold_index=0, specific=specific, task_name=name
        )

    return LightevalTaskConfig(
        name=task.name,
        prompt_function=document,
        hf_repo="",
        hf_subset="",
        metrics=[metric(task.kind, grader)],
        hf_avail_splits=[_SPLIT],
        evaluation_splits=[_SPLIT],
        few_shots_split=_SPLIT,  # none are taken; unset, lighteval warns about them
    )


class _LightevalTask(LightevalTask):
    """A task over questions that are here already."""

    def __init__(self, prepared: Prepared, grader: MathGrader) -> None:
        super().__init__(_config(prepared, grader))
        self.num_samples = [prepared.samples]
        self.dataset = {_SPLIT: [vars(question).copy() for question in prepared.questions]}


class _Registry(Registry):
    """The tasks that were asked for; nothing else is imported."""

    def __init__(self, tasks: list[_LightevalTask]) -> None:
        self.task_to_configs: Any = {task.name: [task.config] for task in tasks}


class _Pipeline(Pipeline):
    """lighteval's pipeline over tasks that are given, not named."""

    def __init__(
        self,
        tasks: list[_LightevalTask],
        parameters: PipelineParameters,
        tracker: EvaluationTracker,
        model: EvaluatedModel,
    ) -> None:
        self._given = tasks
        super().__init__(
            tasks=",".join(task.name for task in tasks),
            pipeline_parameters=parameters,
            evaluation_tracker=tracker,
            model=model,
        )

    def _init_tasks_and_requests(self, tasks: str) -> None:
        self.registry = _Registry(self._given)
        self.tasks_dict = {task.full_name: task for task in self._given}
        self.documents_dict = {
            name: task.get_docs(self.pipeline_parameters.max_samples) for name, task in self.tasks_dict.items()
        }
        self.sampling_docs = collections.defaultdict(list)
        for docs in self.documents_dict.values():
            for doc in docs:
                for method in doc.sampling_methods:
                    self.sampling_docs[method].append(doc)
        self.evaluation_tracker.task_config_logger.log(self.tasks_dict)
