"""A folder for `DATA_DIR`: a few problems of our own for each task, in the schema that its data set has on the Hub."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

_SCIENCE = {f"sciknoweval_{part}": part for part in ("chemistry", "biology", "physics", "material")}
# Task → title, data set on the Hub, configuration (SciKnowEval has none: the part that a task asks), split.
ON_THE_HUB = {
    "math500": ("MATH-500", "HuggingFaceH4/MATH-500", None, "test"),
    "minerva": ("Minerva Math", "math-ai/minervamath", None, "test"),
    "amc23": ("AMC 2023", "math-ai/amc23", None, "test"),
    "aime24": ("AIME 2024", "math-ai/aime24", None, "test"),
    "aime25": ("AIME 2025", "math-ai/aime25", None, "test"),
    "gpqa": ("GPQA Diamond", "Idavidrein/gpqa", "gpqa_diamond", "train"),
    **{
        name: (f"SciKnowEval {part.title()} L3", "hicai-zju/SciKnowEval", f"{part}-L3", "test")
        for name, part in _SCIENCE.items()
    },
}


def named(name: str) -> dict[str, str | None]:
    """What a results file says of a task's questions; nothing of one that is not known here."""
    return dict(zip(("title", "dataset_name", "dataset_config", "dataset_split"), ON_THE_HUB.get(name, ())))


MATH = [
    ("What is $2+3$?", "5"),
    ("Expand $x(x+2)$.", "x^2+2x"),
    ("Half of a cake is shared by three. Which part has each?", r"\frac{1}{6}"),
]


def chemistry(number: int, domain: str = "Chemistry", level: str = "L3", choices: int = 4) -> dict:
    """A row of SciKnowEval."""
    return {
        "question": f"A flask holds {number} mol of helium and nothing else. How many moles of atoms does it hold?",
        "choices": {
            "text": [str(number + step) for step in range(choices)],
            "label": list("ABCD"[:choices]),
        },
        "answerKey": "A",
        "type": f"mcq-{choices}-choices",
        "domain": domain,
        "details": {"level": level, "task": "counting", "subtask": "atoms", "source": "own"},
    }


def sciknoweval() -> list[dict]:
    """Forty rows per domain that belong to its set, and some of every kind that does not."""
    rows = []
    for domain in ("Chemistry", "Biology", "Physics", "Material"):
        rows += [chemistry(number, domain, choices=2 if number % 4 == 0 else 4) for number in range(40)]
        rows += [chemistry(number + 100, domain, level="L1") for number in range(3)]
        rows += [{**chemistry(200, domain), "type": "open-ended-qa"}]
    return rows


def gpqa(number: int) -> dict:
    """A row of GPQA; the real one has some seventy columns, of which these are read or look alike."""
    return {
        "Pre-Revision Question": "?",
        "Question": f"A spring of {number} N/m is stretched by 2 m. What force does it exert?",
        "Correct Answer": f"{2 * number} N\n",
        "Incorrect Answer 1": f"{number} N",
        "Incorrect Answer 2": f"{number + 2} N",
        "Incorrect Answer 3": f"{4 * number} N",
        "Explanation": "Force is stiffness times extension.",
        "Subdomain": "Mechanics",
    }


def write_records(folder: Path) -> Path:
    """One file per data set: JSON lines, but MATH-500 as JSON and AMC as parquet."""
    folder.mkdir(parents=True, exist_ok=True)
    questions = [
        {"problem": text, "solution": "", "answer": gold, "subject": "Algebra", "level": 1, "unique_id": f"test/{i}"}
        for i, (text, gold) in enumerate(MATH)
    ]
    (folder / "math500.json").write_text(json.dumps(questions))
    tables = {
        "minerva": [{"question": text, "answer": gold} for text, gold in MATH],
        "aime24": [
            {"id": i, "problem": text, "solution": rf"\boxed{{{gold}}}"} for i, (text, gold) in enumerate(MATH)
        ],
        "aime25": [{"id": str(i), "problem": text, "answer": "17"} for i, (text, _) in enumerate(MATH)],
        "gpqa": [gpqa(number) for number in range(3, 9)],
        "sciknoweval": sciknoweval(),
    }
    for name, rows in tables.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    amc = [{"id": i, "question": text, "answer": 27.0, "url": ""} for i, (text, _) in enumerate(MATH)]
    pq.write_table(pa.Table.from_pylist(amc), folder / "amc23.parquet")
    return folder
