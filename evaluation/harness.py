"""The names of lighteval 0.13 that are used here.

Importing its models switches autograd off for the whole process, without a word: whoever trains after that gets
"element 0 of tensors does not require grad". Here the mode is put back.
"""

import torch

with torch.set_grad_enabled(torch.is_grad_enabled()):
    from lighteval.logging.evaluation_tracker import EvaluationTracker
    from lighteval.metrics.metrics_sample import SampleLevelComputation
    from lighteval.metrics.utils.metric_utils import CorpusLevelMetric
    from lighteval.models.abstract_model import LightevalModel, ModelConfig
    from lighteval.models.model_output import ModelResponse
    from lighteval.pipeline import ParallelismManager, Pipeline, PipelineParameters
    from lighteval.tasks.lighteval_task import LightevalTask, LightevalTaskConfig
    from lighteval.tasks.registry import Registry
    from lighteval.tasks.requests import Doc, SamplingMethod

__all__ = [
    "CorpusLevelMetric", "Doc", "EvaluationTracker", "LightevalModel", "LightevalTask", "LightevalTaskConfig",
    "ModelConfig", "ModelResponse", "ParallelismManager", "Pipeline", "PipelineParameters", "Registry",
    "SampleLevelComputation", "SamplingMethod",
]  # fmt: skip
