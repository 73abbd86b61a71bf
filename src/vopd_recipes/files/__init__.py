"""What is written to disk, whole or not at all: checkpoints, completions, results, pictures."""

from typing import TYPE_CHECKING

from vopd_recipes.exports import on_demand
from vopd_recipes.files.atomic import check_writable, sha256_of, to_disk, write_text, written_whole
from vopd_recipes.files.checkpoints import (
    ENVIRONMENT,
    METRICS,
    RECIPE,
    begun_from,
    check_own_folder,
    check_same_layout,
    check_same_prompts,
    check_same_recipe,
    checkpoint_to_resume,
    complete_checkpoints,
    discard_incomplete,
    finished_step,
    keep_newest,
    last_complete_checkpoint,
    mark_complete,
    step_of,
)
from vopd_recipes.files.lock import only_process_in
from vopd_recipes.files.results_json import SAME_MEASUREMENT, SCHEMA_VERSION, read_results, results_path, title_of

if TYPE_CHECKING:
    from vopd_recipes.files.completions import RECORDED, SCHEMA, read_completions, write_completions
    from vopd_recipes.files.plots import (
        RunError,
        compare_runs,
        finish_axis,
        history_of,
        markdown_table,
        names_of,
        new_figure,
        plot_comparison,
        plot_training,
        save_figure,
        series,
    )

__getattr__ = on_demand(__name__, "plots", "completions")
