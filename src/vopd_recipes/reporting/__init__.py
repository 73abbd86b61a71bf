"""One HTML page from the files of any runs, readable without a network.

`runs` reads and groups the folders, `charts` draws; `methods`, `run_metrics` and `completions` are the page's parts
and `page` puts them together, `watch` again and again while the runs train; `escaping` stands between all of them and
whatever a model has written.
"""

from vopd_recipes.reporting.page import write_report
from vopd_recipes.reporting.watch import watch_report
