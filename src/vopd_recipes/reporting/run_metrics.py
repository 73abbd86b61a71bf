"""What came of the runs: the table, the curves, the gradient variance and where the time went."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean, stdev

from vopd_recipes.loss import METHODS
from vopd_recipes.reporting.charts import Band, Line, Points, bar_chart, line_chart, smoothed
from vopd_recipes.reporting.elements import cell, key, legend, section
from vopd_recipes.reporting.escaping import escaped
from vopd_recipes.reporting.runs import TIMES, Group, Run

# A trend is the running mean over this part of the steps.
_TREND = 1 / 15

# Title, training series, evaluation series, share.
_PANELS = (
    ("Held-out accuracy", None, "eval_accuracy", True),
    ("Reverse KL, nats per token", "reverse_kl", "eval_reverse_kl", False),
    ("Standard deviation of the advantage, nats", "advantage/std", None, False),
    ("Gradient norm", "grad_norm", None, False),
    ("Completion length, tokens", "completion/length", "eval_completion_length", False),
    ("Entropy, nats per token", "entropy", None, False),
)


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _three(value: float) -> str:
    return f"{value:.3f}"


# Heading, metric, form, and which end is the better one.
_RESULTS: tuple[tuple[str, str, Callable[[float], str], int], ...] = (
    ("accuracy", "eval_accuracy", _percent, 1),
    ("held-out reverse KL", "eval_reverse_kl", _three, -1),
    ("training reverse KL", "reverse_kl", _three, -1),
)


def results(groups: Sequence[Group]) -> str:
    """The part of the page with the table."""
    runs = [run for group in groups for run in group.runs]
    columns = [column for column in _RESULTS if any(run.ends(column[1])[1] is not None for run in runs)]
    top = "".join(f'<th colspan=2 class="number pair">{heading}</th>' for heading, *_ in columns)
    ends = "".join("<th class=number>first</th><th class=number>last</th>" for _ in columns)
    rows = []
    for index, group in enumerate(groups):
        if len(group.runs) > 1:
            rows.append(_result_row(f"{key(index)}{escaped(group.label)}", group.runs, columns, "mean"))
        rows += [
            _result_row(
                f"{key(index)}{escaped(_row_label(group, run))}", [run], columns, "seed" * (len(group.runs) > 1)
            )
            for run in group.runs
        ]
    note = (
        "First and last evaluation or log line. Accuracy and held-out reverse KL (nats per token) are of "
        f"{_samples(runs)} for each held-out prompt. Seconds a step: the median"
        + ("; ± is the standard deviation over seeds." if any(len(group.runs) > 1 for group in groups) else ".")
    )
    return section(
        "Results",
        note,
        f"<table><thead><tr><th rowspan=2>run</th><th rowspan=2 class=number>steps</th>{top}"
        f"<th rowspan=2 class=number>seconds a step</th></tr><tr>{ends}</tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table>",
    )


def _samples(runs: Sequence[Run]) -> str:
    """How many of each held-out prompt; a recipe from before there could be several says nothing."""
    given = [run.recipe.get("num_generations_eval") for run in runs]
    counts = [count if isinstance(count, int) else 1 for count in given]
    least, most = min(counts), max(counts)
    words = f"{least}" if least == most else f"{least} to {most}"
    return "one sample" if most == 1 else f"{words} samples"


def _row_label(group: Group, run: Run) -> str:
    return group.label if len(group.runs) == 1 else run.name


def _result_row(label: str, runs: Sequence[Run], columns: Sequence, kind: str) -> str:
    cells = [cell("steps", _mean([run.step for run in runs], lambda value: f"{value:,.0f}"), "number")]
    for heading, name, form, _ in columns:
        for end, place in enumerate(("first", "last")):
            values = [value for run in runs if (value := run.ends(name)[end]) is not None]
            strong = "number" if place == "first" else "number last"
            cells.append(cell(f"{heading}, {place}", _mean(values, form), strong))
    seconds = [value for run in runs if (value := run.seconds_per_step) is not None]
    cells.append(cell("seconds a step", _mean(seconds, lambda value: f"{value:.2f}"), "number"))
    return f"<tr{f' class={kind}' if kind else ''}><th>{label}</th>{''.join(cells)}</tr>"


def _mean(values: Sequence[float], form: Callable[[float], str]) -> str:
    if not values:
        return "–"
    spread = form(stdev(values)) if len(values) > 1 else form(0.0)
    return form(fmean(values)) + (f" <small>± {spread}</small>" if spread != form(0.0) else "")


def curves(groups: Sequence[Group]) -> str:
    """The part of the page with curves over steps."""
    charts = "".join(_panel(groups, *panel) for panel in _PANELS)
    several = any(len(group.runs) > 1 for group in groups)
    note = "Thin: every step; thick: a running mean over a fifteenth of them. Dashed, with dots: held-out prompts." + (
        " Shaded: lowest to highest over the seeds, the thick line their mean." if several else ""
    )
    return section("Curves", note, f"{legend(groups)}<div class=charts>{charts}</div>" if charts else "")


def _panel(groups: Sequence[Group], title: str, training: str | None, evaluation: str | None, percent: bool) -> str:
    lines: list[Line] = []
    bands: list[Band] = []
    for index, group in enumerate(groups):
        for name, kind, held_out in ((training, "trend", ""), (evaluation, "dots", ", held out")):
            found = [points for run in group.runs if name and (points := run.series(name))]
            if not found:
                continue
            if kind == "trend":
                if len(found) == 1 and round(len(found[0]) * _TREND) > 1:
                    lines.insert(0, Line(group.label, found[0], index, "raw"))
                found = [smoothed(points, round(len(points) * _TREND)) for points in found]
            shared = sorted(set.intersection(*(set(points) for points in found)))
            if len(found) > 1:
                bands.append(Band({step: _extent(found, step) for step in shared}, index))
            mean = {step: fmean(points[step] for points in found) for step in shared}
            lines.append(Line(group.label + held_out, mean, index, "trend" if kind == "trend" else "dots"))
    return line_chart(title, lines, bands, percent=percent)


def _extent(found: Sequence[Points], step: int) -> tuple[float, float]:
    values = [points[step] for points in found]
    return min(values), max(values)


def variance(groups: Sequence[Group]) -> str:
    """The part of the page about the gradient's variance; nothing where no run logged it."""
    logged = [(index, group) for index, group in enumerate(groups) if group.runs[0].variance_ratios]
    if not logged:
        return ""
    sampled = [row.key for row in METHODS.values() if row.samples and row.compared]  # nothing else has a variance
    names = [name for name in sampled if any(name in group.runs[0].variance_ratios for _, group in logged)]
    head = "".join(f"<th class=number>{_title(name)}</th>" for name in names)
    rows = "".join(
        f"<tr><th>{key(index)}{escaped(group.label)}</th>"
        + "".join(
            cell(
                _title(name),
                _mean(
                    [ratios[name] for run in group.runs if name in (ratios := run.variance_ratios)],
                    lambda v: f"{v:.2f}",
                ),
                "number last" if name == group.runs[0].estimator.method.key else "number",
            )
            for name in names
        )
        + "</tr>"
        for index, group in logged
    )
    charts = "".join(_variance_chart(group, names) for _, group in logged[:3])
    note = (
        "The exact variance of the logit gradient that each estimator would have had on the tokens of this run, over "
        "OPD’s. In the table both are averaged over the run; bold is the estimator that trained it (OPD full and OPD "
        "top-k sample nothing and have no column)."
    )
    keys = "".join(f"<span><i class='key v{place}'></i>{_title(name)}</span>" for place, name in enumerate(names))
    table = f"<table><thead><tr><th>run</th>{head}</tr></thead><tbody>{rows}</tbody></table>"
    return section("Gradient variance", note, f"{table}<div class=legend>{keys}</div><div class=charts>{charts}</div>")


def _title(key: str) -> str:
    """Of the method whose `gradient_variance/<key>` it is."""
    return next(row.title for row in METHODS.values() if row.key == key)


def _variance_chart(group: Group, names: Sequence[str]) -> str:
    run = group.runs[0]
    lines = []
    for place, name in enumerate(names):
        opd, points = run.series("gradient_variance/none"), run.series(f"gradient_variance/{name}")
        points = {step: value / opd[step] for step, value in points.items() if opd.get(step)}
        lines.append(Line(_title(name), smoothed(points, round(len(points) * _TREND)), place, "trend"))
    return line_chart(f"Variance over OPD’s, tokens of {group.label}", lines).replace(
        "<figure>", "<figure class=variance>"
    )


def times(groups: Sequence[Group]) -> str:
    """The part of the page about seconds."""
    rows = [(_row_label(group, run), times) for group in groups for run in group.runs if (times := run.time_breakdown)]
    note = "Mean seconds a step. Teacher and student: their forward and backward passes inside the update."
    return section("Time", note, bar_chart("", TIMES, rows))
