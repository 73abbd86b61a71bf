"""Results of an evaluation go to the Hub: into the model's card, and every completion into a data set beside it.

The data set `<model>-evals` keeps what was measured: `results/<revision>/results.json`, and `details/<task>/` with one
parquet file per revision, a configuration per task and a split per revision. Cards are made from what is there, so
that results of another revision add a row and take none away. `main` moves on when a run is published anew; its
results are kept under the release tag whose weights it holds. Results stay with their weights: they say which files
they are of, and where a revision has come to hold others they are no row of a card any more.
"""

from __future__ import annotations

import json
import logging
import re
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    EvalResultEntry,
    HfApi,
    eval_result_entries_to_yaml,
)
from huggingface_hub.errors import HfHubHTTPError, RevisionNotFoundError

from vopd_recipes.files import SAME_MEASUREMENT, read_results
from vopd_recipes.hub.card import Published, model_card
from vopd_recipes.hub.queue import MAIN
from vopd_recipes.hub.revisions import CARD, EVAL_RESULTS, licence_of, release_of, remote_files, weights_of
from vopd_recipes.hub.scrub import scrub
from vopd_recipes.recipe import RecipeError, is_hub_id

logger = logging.getLogger(__name__)

# What the Hub has registered as a benchmark: data set and configuration → its task there, and the name of the file.
_BENCHMARKS = {("Idavidrein/gpqa", "gpqa_diamond"): ("diamond", "gpqa")}
_CARD_READS = (
    "recipe.yaml", "environment.json", "trainer_state.json", "adapter_config.json", "plots/training.png",
)  # fmt: skip
# What must be equal for a task measured again to take the place of the earlier measurement.
_SIZE = ("n", "problems")
_ATTEMPTS = 5  # against others who commit at the same time


@dataclass(frozen=True)
class Results:
    """A results file of the evaluation and the details beside it.

    Args:
        path: of `results.json`.
        content: of it.
    """

    path: Path
    content: dict[str, Any]

    @property
    def repo_id(self) -> str:
        """The model that was evaluated."""
        return str(self.content["model"])

    @property
    def revision(self) -> str:
        """The revision that was evaluated."""
        return str(self.content["revision"])

    def details(self, task: str) -> Path:
        """Every completion of a task."""
        return self.path.parent / "details" / f"{task}.parquet"


def publishable_results(path: Path) -> Results:
    """Read a results file.

    Raises:
        RecipeError: it is not one, or not one of a model on the Hub.
    """
    content = read_results(path)
    results = Results(path, content)
    if content["revision"] == "local" or not is_hub_id(results.repo_id):
        raise RecipeError(
            f"{path}: {results.repo_id} is no model on the Hub; publish it, then evaluate MODEL=org/name"
        )
    if re.fullmatch(r"[\w.-]+", results.revision) is None:
        raise RecipeError(f"{path}: revision {results.revision} cannot name a split; evaluate a branch or tag")
    for task, scores in content["tasks"].items():
        if scores.get("limit") is not None:
            raise RecipeError(f"{path}: {task} was limited to {scores['limit']} questions; evaluate it without LIMIT")
        if not results.details(task).is_file():
            raise RecipeError(f"{path}: {results.details(task)} is missing; evaluate {task} again")
    return results


def push_results(api: HfApi, results: Results) -> str:
    """Publish results and details; the revision under which they are kept. Harmless to repeat.

    Raises:
        RecipeError: the revision holds other weights than were measured, or other results of these are there,
            measured in another way, or with other numbers of samples or problems.
        HfHubHTTPError, httpx.TransportError: the Hub refuses or is away; what was committed before stays.
    """
    repo_id = results.repo_id
    name, weights = _kept_under(api, results)
    evals = f"{repo_id}-evals"
    api.create_repo(evals, repo_type="dataset", private=bool(api.model_info(repo_id).private), exist_ok=True)
    _again_if_outdated(lambda: _push_details(api, evals, name, weights, results))
    branches = [ref.name for ref in api.list_repo_refs(repo_id).branches]
    for branch in dict.fromkeys((results.revision, MAIN)):
        if branch in branches:
            _again_if_outdated(lambda branch=branch: _update_model(api, repo_id, branch))
    return name


def _kept_under(api: HfApi, results: Results) -> tuple[str, dict[str, str]]:
    """The revision whose results these are, and its weights. Between measuring and now it may have got others."""
    repo_id = results.repo_id
    commit = results.content.get("commit")  # files of before this field are taken at their word
    try:
        weights = weights_of(api, repo_id, commit or results.revision)
    except RevisionNotFoundError:
        raise RecipeError(
            f"{repo_id}: nothing is there any more of commit {commit or results.revision}, which was evaluated; "
            "evaluate it again"
        ) from None
    name = release_of(api, repo_id, results.revision, weights)
    if weights_of(api, repo_id, name) != weights:
        raise RecipeError(
            f"{repo_id}: {name} holds other weights by now than were evaluated (commit {commit}); evaluate it again"
        )
    return name, weights


def _again_if_outdated(commit: Any) -> None:
    """Others may commit between our reading and our writing: the Hub says 412, and we read again."""
    for attempt in range(_ATTEMPTS):
        try:
            commit()
            return
        except HfHubHTTPError as error:
            if error.response.status_code != 412 or attempt == _ATTEMPTS - 1:
                raise


def published_results(api: HfApi, repo_id: str) -> dict[str, dict[str, Any]]:
    """Revision → results, of all that were pushed for a model."""
    evals = f"{repo_id}-evals"
    commit = str(api.repo_info(evals, repo_type="dataset").sha)
    found = {}
    for path in sorted(remote_files(api, evals, commit, repo_type="dataset")):
        if match := re.fullmatch(r"results/([^/]+)/results\.json", path):
            local = api.hf_hub_download(evals, path, revision=commit, repo_type="dataset")
            found[match[1]] = json.loads(Path(local).read_text(encoding="utf-8"))
    return found


def _push_details(api: HfApi, evals: str, name: str, weights: dict[str, str], results: Results) -> None:
    parent = str(api.repo_info(evals, repo_type="dataset").sha)
    before = published_results(api, evals.removesuffix("-evals")).get(name)
    paths = {f"details/{task}/{name}.parquet": results.details(task) for task in results.content["tasks"]}
    operations: list[CommitOperationAdd | CommitOperationDelete]
    operations = [CommitOperationAdd(path, str(local)) for path, local in paths.items()]
    there = {path for path in remote_files(api, evals, parent, repo_type="dataset") if path.startswith("details/")}
    if before and before.get("weights", weights) != weights:
        logger.warning("%s: results of weights that %s no longer holds make room; its history has them", evals, name)
        gone = {path for path in there if path.endswith(f"/{name}.parquet")} - paths.keys()
        operations += [CommitOperationDelete(path) for path in sorted(gone)]
        before, there = None, there - gone
    merged = scrub(_merged(before, results.content, name) | {"revision": name, "weights": weights})
    text = json.dumps(merged, indent=2) + "\n"
    card = _evals_card(evals, sorted({*there, *paths}))
    for path, content in ((f"results/{name}/results.json", text), (CARD, card)):
        operations.append(CommitOperationAdd(path, content.encode()))
    api.create_commit(
        evals, operations, commit_message=f"results of {name}", repo_type="dataset", parent_commit=parent
    )


def _merged(before: dict[str, Any] | None, new: dict[str, Any], name: str) -> dict[str, Any]:
    """Both evaluations' tasks; of a task measured twice in the same way, the newer."""
    if before is None:
        return new
    for field in SAME_MEASUREMENT:
        if before[field] != new[field]:
            raise RecipeError(
                f"{new['model']}: results of {name} are there with {field}: {before[field]}, these have {new[field]}; "
                "results are never overwritten: evaluate as before, or publish other weights as another revision"
            )
    for task, scores in new["tasks"].items():
        there = before["tasks"].get(task, scores)
        for field in _SIZE:
            if there[field] != scores[field]:
                raise RecipeError(
                    f"{new['model']}: {task} of {name} is there with {field}: {there[field]}, this one has "
                    f"{scores[field]}; results are never overwritten: evaluate it as before"
                )
    return {**before, **new, "tasks": {**before["tasks"], **new["tasks"]}}


def _evals_card(evals: str, paths: list[str]) -> str:
    configs: dict[str, list[dict[str, str]]] = {}
    for path in paths:
        _, task, file = path.split("/")
        split = re.sub(r"\W", "_", file.removesuffix(".parquet"))
        configs.setdefault(task, []).append({"split": split, "path": path})
    model, (task, splits) = evals.removesuffix("-evals"), next(iter(configs.items()))
    metadata = {
        "configs": [{"config_name": name, "data_files": files} for name, files in configs.items()],
        "tags": ["evaluation", "vopd-recipes"],
    }
    return (
        f"---\n{yaml.safe_dump(metadata, sort_keys=False)}---\n\n# {evals.split('/')[1]}\n\n"
        f"Every completion of [{model}](https://huggingface.co/{model}) in its evaluations, with its grade: a "
        "configuration per task, a split per revision.\n\n```python\nfrom datasets import load_dataset\n\n"
        f'load_dataset("{evals}", "{task}", split="{splits[0]["split"]}")\n```\n'
    )


def _update_model(api: HfApi, repo_id: str, branch: str) -> None:
    """The card of a branch with every revision's results; the registered benchmarks' entries of its own.

    The results are read after the commit that the card replaces, so that whoever pushes in between outdates this one.
    """
    parent = str(api.repo_info(repo_id, revision=branch).sha)
    known, own = _of_their_weights(api, repo_id), release_of(api, repo_id, branch)
    remote = remote_files(api, repo_id, parent)
    operations = [
        CommitOperationAdd(f"{EVAL_RESULTS}{file}.yaml", yaml.safe_dump(entry, sort_keys=False).encode())
        for file, entry in _benchmark_entries(repo_id, own, known.get(own, {"tasks": {}})).items()
    ]
    if "recipe.yaml" in remote:
        with TemporaryDirectory() as folder:
            for name in _CARD_READS:
                if name in remote:
                    api.hf_hub_download(repo_id, name, revision=parent, local_dir=folder)
            about = Published(Path(folder), repo_id, branch, results=_named(known, own, branch))
            base = about.read("recipe.yaml").get("model_name_or_path")
            card = model_card(Published(about.folder, repo_id, branch, about.results, licence_of(api, base)))
        operations.append(CommitOperationAdd(CARD, card.encode()))
    else:
        logger.warning("%s, %s: not published by this library, its card stays as it is", repo_id, branch)
    if operations:
        api.create_commit(
            repo_id, operations, commit_message=f"results of {own}", revision=branch, parent_commit=parent
        )


def _of_their_weights(api: HfApi, repo_id: str) -> dict[str, dict[str, Any]]:
    """What was pushed, less the results of revisions that have got other weights since."""
    return {
        name: content
        for name, content in published_results(api, repo_id).items()
        if "weights" not in content or content["weights"] == _weights_if_there(api, repo_id, name, content)
    }


def _weights_if_there(api: HfApi, repo_id: str, name: str, content: dict[str, Any]) -> dict[str, str]:
    try:
        return weights_of(api, repo_id, name)
    except RevisionNotFoundError:  # removed by somebody: its results stay what they are
        return dict(content["weights"])


def _named(known: dict[str, dict[str, Any]], own: str, branch: str) -> dict[str, dict[str, Any]]:
    """Results by the names of this branch's card: a release's are `main`'s own while it holds those weights."""
    return {branch if name == own else name: content for name, content in known.items()}


def _benchmark_entries(repo_id: str, own: str, results: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """File → entries, in percent, as the leaderboards of the registered benchmarks have them."""
    entries: dict[str, list[EvalResultEntry]] = {}
    for scores in results["tasks"].values():
        dataset = scores.get("dataset_name"), scores.get("dataset_config")
        if dataset in _BENCHMARKS:
            name, file = _BENCHMARKS[dataset]
            entry = EvalResultEntry(
                dataset_id=dataset[0],
                task_id=name,
                value=round(100 * scores["avg"], 2),
                source_url=f"https://huggingface.co/datasets/{repo_id}-evals",
                source_name="Every completion",
                notes=f"{own}, avg@{scores['n']}, protocol {results['protocol']}",
            )
            entries.setdefault(file, []).append(entry)
    return {file: eval_result_entries_to_yaml(found) for file, found in entries.items()}
