"""The model card: a README.md made from the files of one published revision, and from nothing else.

Student, teacher, estimator and hyper-parameters come from its `recipe.yaml`, hardware and versions from its
`environment.json`, the curves from its `plots/training.png`. Every number under "Results" comes from a results file of
the evaluation, or is the paper's own and says so; without results files there is no such section.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult
from huggingface_hub.repocard_data import eval_results_to_model_index

from vopd_recipes.files import title_of
from vopd_recipes.hub.queue import MAIN
from vopd_recipes.loss import method_of
from vopd_recipes.paper import PAPER, datasets_of, distilled, samples_of
from vopd_recipes.recipe import is_hub_id, models_of_teachers

_HYPER_PARAMETERS = (
    "max_steps", "num_train_epochs", "per_device_train_batch_size", "gradient_accumulation_steps", "num_generations",
    "learning_rate", "lr_scheduler_type", "warmup_steps", "weight_decay", "max_grad_norm", "optim", "dtype", "bf16",
    "max_prompt_length", "max_completion_length", "temperature", "top_p", "top_k", "support_top_k",
    "importance_sampling_cap", "seed",
)  # fmt: skip
_LORA = ("lora_r", "lora_alpha", "lora_dropout", "lora_target_modules")


@dataclass(frozen=True)
class Published:
    """What a card is about.

    Args:
        folder: the revision's own files, or those that a card reads.
        repo_id: where it is published.
        revision: its branch or tag.
        results: revision → content of its results file; this revision's come first in the table.
        licence: `license` of the base model, and `license_name` and `license_link` of one that is `other`, as its own
            card says; empty where that is not known.
    """

    folder: Path
    repo_id: str
    revision: str
    results: dict[str, dict[str, Any]] = field(default_factory=dict)
    licence: dict[str, str] = field(default_factory=dict)

    def read(self, name: str) -> dict[str, Any]:
        """A JSON or YAML file of the revision; empty where it has none."""
        path = self.folder / name
        if not path.is_file():
            return {}
        text = path.read_text(encoding="utf-8")
        return json.loads(text) if name.endswith(".json") else yaml.safe_load(text)

    @property
    def is_adapter(self) -> bool:
        """Whether the weights are an adapter's."""
        return (self.folder / "adapter_config.json").is_file()


def model_card(about: Published) -> str:
    """The card's text, metadata included."""
    recipe, environment = about.read("recipe.yaml"), about.read("environment.json")
    state = about.read("trainer_state.json")
    parts = [
        f"---\n{yaml.safe_dump(_metadata(about, recipe), sort_keys=False, allow_unicode=True)}---\n",
        f"# {about.repo_id.split('/')[1]}\n",
        _summary(about, recipe, state),
        _method(recipe),
        _results(about, recipe),
        "## How to load it\n\n" + _loading(about, recipe),
        _training(about, recipe),
        _environment(environment),
        _licence(about, recipe),
    ]
    return "\n".join(part for part in parts if part)


def _metadata(about: Published, recipe: dict[str, Any]) -> dict[str, Any]:
    below = about.read("adapter_config.json") or {"base_model_name_or_path": recipe.get("model_name_or_path")}
    student = below["base_model_name_or_path"]
    name = method_of(recipe).title
    metadata: dict[str, Any] = {
        "library_name": "peft" if about.is_adapter else "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["on-policy-distillation", "reverse-kl", name.split(" ")[0].lower(), "vopd-recipes"],
    }
    metadata |= about.licence
    if is_hub_id(student):
        metadata |= {"base_model": student, "base_model_relation": "adapter" if about.is_adapter else "finetune"}
    named = [*datasets_of(recipe), *about.read("environment.json").get("prepared_from", [])]
    if datasets := [name for name in named if is_hub_id(name)]:
        metadata["datasets"] = datasets
    if own := about.results.get(about.revision):
        metadata |= _model_index(about, own)
    return metadata


def _model_index(about: Published, results: dict[str, Any]) -> dict[str, Any]:
    """An entry for each task whose data set its results name; the Hub's library would make one of equal data sets'."""
    name, entries = about.repo_id.split("/")[1], []
    for task, scores in results["tasks"].items():
        found = [
            EvalResult(
                task_type="text-generation",
                dataset_type=scores["dataset_name"],
                dataset_name=title_of(task, scores),
                dataset_config=scores.get("dataset_config"),
                dataset_split=scores.get("dataset_split"),
                metric_type="accuracy",
                metric_name=f"{metric}@{scores['n']}",
                metric_value=_percent(scores[metric]),
            )
            for metric in ("avg", "pass", "maj")
            if scores.get(metric) is not None and "dataset_name" in scores
        ]
        entries += [entry for model in eval_results_to_model_index(name, found) for entry in model["results"]]
    return {"model-index": [{"name": name, "results": entries}]} if entries else {}


def _link(name: str | None, kind: str = "") -> str:
    return f"[{name}](https://huggingface.co/{kind}{name})" if is_hub_id(name) else f"`{name}`"


def _summary(about: Published, recipe: dict[str, Any], state: dict[str, Any]) -> str:
    student, taught = recipe.get("model_name_or_path"), models_of_teachers(recipe)
    links = [_link(model) if name is None else f"{_link(model)} ({name})" for name, model in taught.items()]
    teachers = (
        f"teacher {links[0]} scores every token"
        if len(links) == 1
        else (f"teachers {', '.join(links)} score every token, each of its own prompts")
    )
    if recipe.get("teacher_prompt_template") or recipe.get("teacher_system_prompt"):
        teachers += ", after a prompt that says more than the student's"
    merged = recipe.get("use_peft") and not about.is_adapter
    form = "LoRA adapter of" if about.is_adapter else "LoRA run merged into" if merged else "Trained from"
    step = f" This revision (`{about.revision}`) is step {state['global_step']}." if state else ""
    sources = about.read("environment.json").get("prepared_from", [])
    prepared = f" (prepared from {', '.join(_link(name, 'datasets/') for name in sources)})" if sources else ""
    curves = "\n![Training curves](plots/training.png)\n" if (about.folder / "plots/training.png").is_file() else ""
    return (
        f"{form} {_link(student)} by on-policy distillation ({method_of(recipe).title}): the student writes, the "
        f"{teachers}.{step} Every saved step is a branch, such as "
        f"`step-00000100`.\n\n"
        f"Prompts: {', '.join(_link(name, 'datasets/') for name in datasets_of(recipe))}{prepared}.\n{curves}"
    )


def _method(recipe: dict[str, Any]) -> str:
    method = method_of(recipe)
    return (
        f"## Method: {method.title}\n\nStudent $p$, teacher $q$, a completion $y$ sampled from $p$, and the reward of "
        f"a token $r_t = \\log q(y_t) - \\log p(y_t)$. The gradient of the loss at a position is\n\n"
        f"$$ {method.latex} $$\n"
    )


def _percent(share: float) -> float:
    return round(100 * share, 2)


def _results(about: Published, recipe: dict[str, Any]) -> str:
    if not about.results:
        return ""
    own = about.results.get(about.revision, {"tasks": {}, "protocol": None})
    paper = distilled(recipe) if own["protocol"] == "paper" else {}
    own_first = sorted(about.results, key=lambda revision: (revision != about.revision, revision))
    lines = [
        f"| revision | task | avg ± 95 % | pass | maj | samples | problems | paper ({PAPER}) avg/pass |",
        "|---|---|--:|--:|--:|--:|--:|--:|",
    ]
    for revision in own_first:
        for task, scores in about.results[revision]["tasks"].items():
            is_theirs = "dataset_split" not in scores or scores["dataset_split"] is not None  # no file of one's own
            is_comparable = revision == about.revision and scores["n"] == samples_of(task) and is_theirs
            cells = [
                f"`{revision}`",
                title_of(task, scores),
                f"{_percent(scores['avg'])} ± {_percent(1.96 * scores['stderr'])}",
                *("" if scores.get(name) is None else str(_percent(scores[name])) for name in ("pass", "maj")),
                str(scores["n"]),
                str(scores["problems"]),
                paper.get(task, "") if is_comparable else "",
            ]
            lines.append("| " + " | ".join(cells) + " |")
    protocols = {str(about.results[revision]["protocol"]) for revision in own_first}
    notes = f"\nPercent; avg is the mean over samples and problems. Protocol: {', '.join(sorted(protocols))}."
    aime = [own["tasks"][task]["n"] == samples_of(task) for task in ("aime24", "aime25") if task in own["tasks"]]
    if "aime" in paper and aime and all(aime):
        notes += f" The paper reports AIME 2024 and 2025 together: {paper['aime']}."
    details = f"https://huggingface.co/datasets/{about.repo_id}-evals"
    return "## Results\n\n" + "\n".join(lines) + f"\n{notes} Every completion and its grade: {details}\n"


def _loading(about: Published, recipe: dict[str, Any]) -> str:
    at = "" if about.revision == MAIN else f', revision="{about.revision}"'
    ours = f'"{about.repo_id}"{at}'
    tokenizer = f"tokenizer = AutoTokenizer.from_pretrained({ours})\n\n# vLLM\n"
    if about.is_adapter:
        adapter = about.read("adapter_config.json")
        base, revision = adapter["base_model_name_or_path"], adapter.get("revision")
        of_base = f', revision="{revision}"' if revision else ""
        return (
            f"```python\n# transformers and PEFT\nfrom peft import PeftModel\nfrom transformers import "
            f'AutoModelForCausalLM, AutoTokenizer\n\nbase = AutoModelForCausalLM.from_pretrained("{base}"{of_base})\n'
            f"model = PeftModel.from_pretrained(base, {ours})\n{tokenizer}"
            "from huggingface_hub import snapshot_download\nfrom vllm import LLM\n"
            f"from vllm.lora.request import LoRARequest\n\n"
            f'llm = LLM("{base}"{of_base}, enable_lora=True, max_lora_rank={adapter["r"]})\n'
            f'adapter = LoRARequest("{about.repo_id.split("/")[1]}", 1, snapshot_download({ours}))\n'
            'llm.generate(["…"], lora_request=adapter)\n```\n'
        )
    return (
        "```python\n# transformers\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        f"model = AutoModelForCausalLM.from_pretrained({ours})\n{tokenizer}"
        f"from vllm import LLM\n\nllm = LLM({ours})\n```\n"
    )


def _training(about: Published, recipe: dict[str, Any]) -> str:
    if not recipe:
        return ""
    names = _HYPER_PARAMETERS + (_LORA if recipe.get("use_peft") else ())
    rows = [f"| `{name}` | {recipe[name]} |" for name in names if recipe.get(name) is not None]
    text = (about.folder / "recipe.yaml").read_text(encoding="utf-8")
    fence = _fence(text)
    return (
        "## Training\n\n| hyper-parameter | value |\n|---|---|\n"
        + "\n".join(rows)
        + f"\n\nThe whole recipe, with every default:\n\n{fence}yaml\n{text.rstrip()}\n{fence}\n"
    )


def _fence(text: str) -> str:
    """Longer than any run of backticks in a text that it is to stand around."""
    return "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))


def _environment(environment: dict[str, Any]) -> str:
    if not environment:
        return ""
    devices = environment["devices"]
    counted = [f"{devices.count(name)} × {name}" if "CPU" not in name else name for name in dict.fromkeys(devices)]
    processes = environment["processes"]
    packages = ", ".join(f"{name} {version}" for name, version in environment["packages"].items())
    return (
        f"## Hardware and versions\n\n{', '.join(counted)}; {processes} process{'es' if processes > 1 else ''} "
        f"({environment['distributed_type']}), mixed precision: {environment['mixed_precision']}. "
        f"Python {environment['python']}, {packages}"
        + (f"; recipes at commit `{environment['git_revision']}`" if environment.get("git_revision") else "")
        + ".\n"
    )


def _licence(about: Published, recipe: dict[str, Any]) -> str:
    base = _link(recipe.get("model_name_or_path"))
    name = about.licence.get("license_name") or about.licence.get("license")
    link = about.licence.get("license_link", "")
    shown = f"[`{name}`]({link})" if link.startswith("https://") else f"`{name}`"
    found = f"{shown}, as " if name else "That of "
    return f"## Licence\n\n{found}the base model {base}.\n"
