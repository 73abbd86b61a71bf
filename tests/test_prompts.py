"""Every form of data set gives the same prompts, and what cannot be read is refused in one line."""

import json
import logging
import re
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import pytest
from datasets import Dataset, DatasetDict
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from vopd_recipes.prompts import Prompts, build_prompts, fill_template, read_rows
from vopd_recipes.recipe import DataConfig, RecipeError
from vopd_recipes.tiny import byte_tokenizer

ROWS = [{"prompt": f"{n}+{n}=?", "answer": 2 * n, "hint": f"twice {n}"} for n in range(12)]
THINKING_TEMPLATE = (
    "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% if enable_thinking is defined and not enable_thinking %}"
    "<think></think>{% endif %}{% endif %}"
)


def write(path: Path, rows: list[dict[str, Any]] = ROWS) -> str:
    """A file of the form that its name says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        Dataset.from_list(rows).to_parquet(path)
    else:
        text = json.dumps(rows) if path.suffix == ".json" else "".join(json.dumps(row) + "\n" for row in rows)
        path.write_text(text, encoding="utf-8")
    return str(path)


def build(name: str | None, tokenizer: PreTrainedTokenizerFast, seed: int = 0, **fields: Any) -> Prompts:
    config = DataConfig(dataset_name=name, **fields)
    return build_prompts(read_rows(config, seed), config, tokenizer)


def refusal(name: str | None, tokenizer: PreTrainedTokenizerFast, **fields: Any) -> str:
    with pytest.raises(RecipeError) as caught:
        build(name, tokenizer, **fields)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    return message


@pytest.fixture(scope="module")
def thinking() -> PreTrainedTokenizerFast:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = THINKING_TEMPLATE
    return tokenizer


# Forms --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["p.json", "p.jsonl", "p.parquet", "folder", "parquet_folder", "saved", "saved_dict"])
def test_every_form_gives_the_same_prompts(tmp_path: Path, tokenizer: PreTrainedTokenizerFast, form: str) -> None:
    path = tmp_path / form
    if form.endswith("folder"):
        suffix = "parquet" if form.startswith("parquet") else "jsonl"
        write(path / f"train.{suffix}")
        write(path / f"test.{suffix}", ROWS[:2])
        (path / "README.md").write_text("not a split")
    elif form == "saved":
        Dataset.from_list(ROWS).save_to_disk(path)
    elif form == "saved_dict":
        DatasetDict(train=Dataset.from_list(ROWS), test=Dataset.from_list(ROWS[:2])).save_to_disk(path)
    else:
        write(path)
    has_test = form in ("folder", "parquet_folder", "saved_dict")
    prompts = build(
        str(path), tokenizer, answer_column="answer", dataset_test_split="test" if has_test else None
    )  # fmt: skip
    assert list(prompts.train["prompt"]) == [row["prompt"] for row in ROWS]
    assert list(prompts.train["answer"]) == [str(row["answer"]) for row in ROWS]
    assert [tokenizer.decode(ids) for ids in prompts.train["input_ids"]] == [row["prompt"] for row in ROWS]
    assert list(prompts.train["prompt_id"]) == list(range(12))
    assert prompts.dropped == 0
    assert (prompts.test is not None) == has_test
    if prompts.test is not None:
        assert list(prompts.test["answer"]) == ["0", "2"]


def test_columns_answers_and_nulls(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    rows = [{"q": "a", "gold": 3.5}, {"q": "b", "gold": None}, {"q": "ünï 🙂", "gold": 4.0}]
    prompts = build(write(tmp_path / "p.jsonl", rows), tokenizer, prompt_column="q", answer_column="gold")
    assert list(prompts.train["answer"]) == ["3.5", None, "4.0"]
    assert tokenizer.decode(prompts.train[2]["input_ids"]) == "ünï 🙂"
    assert list(build(write(tmp_path / "p.jsonl"), tokenizer).train["answer"]) == [None] * 12


def test_held_out_prompts_are_limited(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    write(tmp_path / "train.jsonl")
    write(tmp_path / "test.jsonl", ROWS[:5])
    prompts = build(str(tmp_path), tokenizer, dataset_test_split="test", max_test_prompts=3)
    assert prompts.test is not None
    assert list(prompts.test["prompt"]) == [row["prompt"] for row in ROWS[:3]]


def test_held_out_prompts_are_of_every_source(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """A limit is dealt out in turn: the second source is not what is left of the first."""
    for name, rows in (("one", ROWS[:6]), ("two", ROWS[6:8])):
        write(tmp_path / name / "train.jsonl", rows)
        write(tmp_path / name / "test.jsonl", rows)
    sources = [{"dataset_name": str(tmp_path / name)} for name in ("one", "two")]
    asked = {"dataset_mixture": sources, "dataset_test_split": "test"}
    for count, chosen in ((3, [0, 1, 6]), (4, [0, 1, 6, 7]), (6, [0, 1, 2, 3, 6, 7])):
        prompts = build(None, tokenizer, **asked, max_test_prompts=count)
        assert prompts.test is not None
        assert list(prompts.test["prompt"]) == [ROWS[place]["prompt"] for place in chosen]


# Templates -----------------------------------------------------------------------------------------------------------


def test_an_answer_that_latex_means_is_not_filled_in() -> None:
    """The row has one, and the student would read it; in double braces it is meant."""
    row = {"prompt": "1+1?", "answer": "2", "n": "3"}
    for template in (r"{prompt} within \boxed{answer}", r"{prompt} \frac{n}{answer}, x^{n}, x_{n}"):
        assert fill_template(template, row) == template.replace("{prompt}", "1+1?")
    assert fill_template(r"{prompt} is \boxed{{answer}}\n{answer}", row) == r"1+1? is \boxed{2}\n2"


def test_fill_template_leaves_other_braces_alone() -> None:
    row = {"prompt": "1+1 {hint}?", "hint": 7}
    assert fill_template(r"{prompt} {hint} \boxed{} \boxed{answer} {} {no such}", row) == (
        r"1+1 {hint}? 7 \boxed{} \boxed{answer} {} {no such}"
    )


def test_a_column_of_any_name(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    row = {"prompt": "1+1?", "my-col": 2, "my col": "two", "m.a": 3, "a": 4, "b": 5, "Größe?": "ü"}
    file = write(tmp_path / "p.jsonl", [row])
    for template, text in (
        ("{prompt} {my-col} {my col}, {m.a}: {Größe?}", "1+1? 2 two, 3: ü"),
        ("{my col}", "two"),
        (
            r"{a} \frac{a}{b}, \text{my col} = \text{{my col}}, x^{m.a}",
            r"4 \frac{a}{b}, \text{my col} = \text{two}, x^{m.a}",
        ),
        ("{a} { my col } {my  col} {m.b} {my-} {}", "4 { my col } {my  col} {m.b} {my-} {}"),
    ):
        assert build(file, tokenizer, prompt_template=template).train[0]["prompt"] == text


def test_prompt_template(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    rows = [{"question": "1+1?", "hint": 2}]
    prompts = build(
        write(tmp_path / "p.jsonl", rows), tokenizer, prompt_column="question",
        prompt_template="{prompt} ({question}, {hint})\nAnswer within \\boxed{}.",
    )  # fmt: skip
    assert prompts.train[0]["prompt"] == "1+1? (1+1?, 2)\nAnswer within \\boxed{}."
    assert tokenizer.decode(prompts.train[0]["input_ids"]) == prompts.train[0]["prompt"]


@pytest.mark.parametrize(("kwargs", "end"), [({}, ""), ({"enable_thinking": False}, "<think></think>")])
def test_chat_template_of_text(
    tmp_path: Path, thinking: PreTrainedTokenizerFast, kwargs: dict[str, Any], end: str
) -> None:
    prompts = build(
        write(tmp_path / "p.jsonl"), thinking, chat_template=True, chat_template_kwargs=kwargs,
        prompt_template="{prompt} \\boxed{}",
    )  # fmt: skip
    assert thinking.decode(prompts.train[3]["input_ids"]) == f"<user>3+3=? \\boxed{{}}<assistant>{end}"


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("enable_thinkin", "; did you mean 'enable_thinking'?"),  # part of a word that is there
        ("tools", ""),
        ("xyzzy", ""),
    ],
)
def test_what_a_chat_template_does_not_know(
    tmp_path: Path, thinking: PreTrainedTokenizerFast, name: str, hint: str
) -> None:
    file = write(tmp_path / "p.jsonl")
    message = refusal(file, thinking, chat_template=True, chat_template_kwargs={name: []})
    why = f"the tokenizer's chat template says nothing of '{name}', which would change no prompt"
    assert message == f"chat_template_kwargs: {why}{hint}"


def test_what_another_chat_template_knows(tmp_path: Path) -> None:
    """One of the tokenizer's several, or of the recipe."""
    file, tokenizer = write(tmp_path / "p.jsonl", [{"prompt": "1+1?"}]), byte_tokenizer()
    own = "{{ messages[0].content }}{{ mood }}"
    tokenizer.chat_template = {"default": THINKING_TEMPLATE, "own": own}
    for given in ({"chat_template": "own", "mood": "!"}, {"chat_template": own, "mood": "!"}):
        prompts = build(file, tokenizer, chat_template=True, chat_template_kwargs=given)
        assert tokenizer.decode(prompts.train[0]["input_ids"]) == "1+1?!"
    assert "nothing of 'mod'" in refusal(file, tokenizer, chat_template=True, chat_template_kwargs={"mod": "!"})


def test_chat_messages(tmp_path: Path, thinking: PreTrainedTokenizerFast) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1+1?"}]
    prompts = build(write(tmp_path / "p.jsonl", [{"prompt": messages}]), thinking, chat_template=True)
    assert thinking.decode(prompts.train[0]["input_ids"]) == "<system>Be brief.<user>1+1?<assistant>"


def test_a_special_token_is_not_added_twice(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    prompts = build(write(tmp_path / "p.jsonl", [{"prompt": "a"}]), tokenizer)
    assert prompts.train[0]["input_ids"] == tokenizer.convert_tokens_to_ids(["a"])


@pytest.mark.parametrize(
    "template",
    [
        r"{prompt} within \boxed{answer}, \boxed{}",  # LaTeX's braces are no columns
        r"{prompt} as \frac{a}{b} or x^{n}, a_{ij}, \sqrt[n]{x}, \text{cm}",
        "{prompt} as {} or { x } or {1}",
    ],
)
def test_braces_that_are_no_columns(tmp_path: Path, tokenizer: PreTrainedTokenizerFast, template: str) -> None:
    prompts = build(write(tmp_path / "p.jsonl", [{"prompt": "1+1?"}]), tokenizer, prompt_template=template)
    assert prompts.train[0]["prompt"] == template.replace("{prompt}", "1+1?")


@pytest.mark.parametrize(
    ("template", "name"),
    [
        ("{problem}", "problem"),
        (r"{prompt}\n{hnit}", "hnit"),
        ("{prompt}{typo}", "typo"),
        (r"\boxed{} {a_b}", "a_b"),
    ],
)
def test_a_template_names_columns_that_are_there(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, template: str, name: str
) -> None:
    file = write(tmp_path / "p.jsonl")
    message = refusal(file, tokenizer, prompt_template=template)
    assert message.startswith(f"prompt_template: {{{name}}} is no column of {file}")
    assert "it has prompt, answer, hint" in message
    assert ("did you mean 'hint'?" in message) == (name == "hnit")
    mixture = [{"dataset_name": file, "prompt_template": "{hint}"}, {"dataset_name": file, "prompt_template": "{q}"}]
    assert "{q} is no column" in refusal(None, tokenizer, dataset_mixture=mixture)


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("Solve the problem.", "names no {column}, so that every prompt would be the same; write {prompt} where"),
        ("$prompt", "names no {column}"),
        ("<prompt>", "names no {column}"),
        (" ", "names no {column}"),
        (r"Answer in \boxed{}, {} or { prompt }", "names no {column}"),
        ("{{ prompt }}\n\nAnswer:", "{{ prompt }} is no column; write {prompt}, in single braces without spaces"),
        ("{{prompt}}", "{{prompt}} is no column; write {prompt}, in single braces"),
        ("{{ question }}", "{{ question }} is no column; write {question}"),
    ],
)
def test_a_template_without_a_column(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, template: str, says: str
) -> None:
    file = write(tmp_path / "p.jsonl")
    mixture = [{"dataset_name": file}, {"dataset_name": file, "prompt_template": template}]
    for fields in ({"dataset_name": file, "prompt_template": template}, {"dataset_mixture": mixture}):
        assert refusal(fields.pop("dataset_name", None), tokenizer, **fields).startswith(f"prompt_template: {says}")
    message = refusal(file, tokenizer, teacher_prompt_template=template)
    assert message.startswith(f"teacher_prompt_template: {says}")


def test_a_column_within_latex_and_a_constant_system_prompt(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, thinking: PreTrainedTokenizerFast
) -> None:
    file = write(tmp_path / "p.jsonl", [{"prompt": "1+1?", "hint": 2}])
    for template, text in (
        (r"\text{{prompt}} = \boxed{{hint}}", r"\text{1+1?} = \boxed{2}"),
        (r"x^{{hint}}", "x^{2}"),
    ):
        assert build(file, tokenizer, prompt_template=template).train[0]["prompt"] == text
    assert build(file, tokenizer, prompt_template="{hint} of {{hint}}").train[0]["prompt"] == "2 of {2}"
    build(file, thinking, chat_template=True, teacher_system_prompt="Be brief.")


@pytest.mark.parametrize("null", [None, float("nan")])
@pytest.mark.parametrize("form", ["p.jsonl", "p.parquet"])
def test_nulls_never_become_text(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, null: float | None, form: str
) -> None:
    file = write(tmp_path / form, [{"prompt": "a", "n": 1.5}, {"prompt": "b", "n": null}])
    message = refusal(file, tokenizer, prompt_template="{prompt} {n}")
    assert f"prompt_template: column 'n' of {file}, row 1, is null" in message
    assert list(build(file, tokenizer, answer_column="n").train["answer"]) == ["1.5", None]
    unfilled = build(file, tokenizer, answer_column="n", prompt_template=r"{prompt} \boxed{n} x^{n}")
    assert list(unfilled.train["prompt"]) == [rf"{prompt} \boxed{{n}} x^{{n}}" for prompt in "ab"]


@pytest.mark.parametrize(
    ("whole", "holey"),
    [
        (["a", "b"], ["a", None]),
        ([1.5, 2.5], [float("nan"), 1.5]),
        ({"a": "x", "b": "y"}, {"a": "x", "b": None}),
        ([{"a": ["x"]}], [{"a": ["x", None]}]),
    ],
)
def test_nulls_in_lists_and_structs_are_nulls(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, whole: object, holey: object
) -> None:
    file = write(tmp_path / "p.parquet", [{"prompt": "a", "n": whole}, {"prompt": "b", "n": holey}])
    message = refusal(file, tokenizer, prompt_template="{prompt} {n}")
    assert message == (
        f"prompt_template: column 'n' of {file}, row 1, holds a null, and {{n}} needs its text; leave such rows out "
        "of the data set"
    )
    assert list(build(file, tokenizer, answer_column="n").train["answer"]) == [str(whole), None]
    file = write(tmp_path / "whole.parquet", [{"prompt": "a", "n": whole}])
    assert build(file, tokenizer, prompt_template="{prompt} {n}").train[0]["prompt"] == f"a {whole}"


def test_parquets_nulls_in_messages(tmp_path: Path, thinking: PreTrainedTokenizerFast) -> None:
    """A column of structs has every key in every message; the template sees those that were written."""
    calls = [{"name": "add", "arguments": {"a": 1}}]
    rows = [
        {"prompt": [{"role": "user", "content": "hi"}]},
        {
            "prompt": [
                {"role": "user", "content": "1+1?"},
                {"role": "assistant", "content": None, "tool_calls": calls},
                {"role": "tool", "content": "2", "name": "add"},
            ]
        },
    ]
    template = thinking.chat_template
    thinking.chat_template = "{% for message in messages %}{{ message }}{% endfor %}"
    try:
        prompts = build(write(tmp_path / "p.parquet", rows), thinking, chat_template=True)
        texts = [thinking.decode(ids) for ids in prompts.train["input_ids"]]
    finally:
        thinking.chat_template = template
    assert texts[0] == "{'role': 'user', 'content': 'hi'}"
    assert texts[1].endswith("{'role': 'tool', 'content': '2', 'name': 'add'}")
    assert "None" not in "".join(texts)


def test_a_last_message_of_the_assistants(tmp_path: Path, thinking: PreTrainedTokenizerFast) -> None:
    started = [{"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "It is"}]
    file = write(tmp_path / "p.jsonl", [{"prompt": started}, {"prompt": started[:1]}])
    message = refusal(file, thinking, chat_template=True)
    assert f"'prompt' of {file}, row 0, ends with the assistant's message; set continue_final_message: true" in message
    prompts = build(file, thinking, chat_template=True, continue_final_message=True)
    texts = [thinking.decode(ids) for ids in prompts.train["input_ids"]]
    assert texts == ["<user>1+1?<assistant>It is", "<user>1+1?<assistant>"]


@pytest.mark.parametrize(
    ("template", "why"),
    [
        ("{{ raise_exception('roles must alternate') }}", "TemplateError: roles must alternate"),
        ("{{ messages[0].content.no.such }}", "UndefinedError: 'str object' has no attribute 'no'"),
        ("{% for message in messages %}", "TemplateSyntaxError: Unexpected end of template"),
    ],
)
def test_a_template_that_fails_says_why(tmp_path: Path, template: str, why: str) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    file = write(tmp_path / "p.jsonl", [{"prompt": "1+1?"}])
    message = refusal(file, tokenizer, chat_template=True)
    assert message.startswith(f"chat_template: cannot render '1+1?' (row 0 of {file}): {why}")


def with_special_tokens(before: str, behind: str) -> PreTrainedTokenizerFast:
    """A byte tokenizer that puts these around a text."""
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"bos_token": "<s>", "additional_special_tokens": ["<x>"]})
    tokens = [(token, tokenizer.convert_tokens_to_ids(token)) for token in ("<s>", "<x>", tokenizer.eos_token)]
    backend = tokenizer.backend_tokenizer
    backend.post_processor = TemplateProcessing(single=f"{before} $A {behind}".strip(), special_tokens=tokens)
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token=tokenizer.eos_token)


@pytest.mark.parametrize(
    ("before", "behind", "text", "expected"),
    [
        ("<s>", "", "a", "<s>a"),
        ("<s>", "", "<s>a", "<s>a"),  # rendered before: one BOS all the same
        ("<s>", "", "<s><s>a", "<s><s>a"),  # both are its author's
        ("", "", "<s>a", "<s>a"),
        ("<s> <x>", "", "<s><x>a", "<s><x>a"),
        ("<s> <x>", "", "<s>a", "<s><x><s>a"),
        ("", "<|endoftext|>", "a", "a"),
        ("<s>", "<|endoftext|>", "<s>a", "<s>a"),
        ("<s>", "<|endoftext|>", "a<|endoftext|>", "<s>a<|endoftext|>"),  # its author's
    ],
)
def test_special_tokens_around_a_text(tmp_path: Path, before: str, behind: str, text: str, expected: str) -> None:
    tokenizer = with_special_tokens(before, behind)
    prompts = build(write(tmp_path / "p.jsonl", [{"prompt": text}]), tokenizer)
    assert tokenizer.decode(prompts.train[0]["input_ids"]) == expected


# Mixtures ------------------------------------------------------------------------------------------------------------


def test_mixture_weights(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    other = [{"question": f"other {n}", "gold": f"gold {n}"} for n in range(8)]
    third = [{"prompt": f"third {n}"} for n in range(4)]
    mixture = [
        {"dataset_name": write(tmp_path / "a.jsonl"), "weight": 0.5, "answer_column": "answer"},
        {"dataset_name": write(tmp_path / "b.parquet", other), "prompt_column": "question", "answer_column": "gold"},
        {"dataset_name": write(tmp_path / "c.json", third), "weight": 2, "prompt_template": "{prompt}!"},
        {"dataset_name": write(tmp_path / "d.jsonl", third), "weight": 1.5},
    ]
    rows = build(None, tokenizer, dataset_mixture=mixture).train
    counts = Counter(rows["prompt"])
    assert sum(counts[row["prompt"]] for row in ROWS) == 6
    assert max(counts[row["prompt"]] for row in ROWS) == 1
    assert all(counts[row["question"]] == 1 for row in other)
    assert all(counts[f"{row['prompt']}!"] == 2 for row in third)
    assert sorted(counts[row["prompt"]] for row in third) == [1, 1, 2, 2]
    assert len(rows) == 6 + 8 + 8 + 6
    answers = dict(zip(rows["prompt"], rows["answer"]))
    assert answers["other 3"] == "gold 3"
    assert answers["third 0"] is None
    assert list(rows["prompt_id"]) == list(range(28))  # repeated rows are other prompts to the sampler

    again = build(None, tokenizer, dataset_mixture=mixture).train
    assert list(again["prompt"]) == list(rows["prompt"])
    other_seeds = [list(build(None, tokenizer, seed, dataset_mixture=mixture).train["prompt"]) for seed in (1, 2, 3)]
    assert any(prompts != list(rows["prompt"]) for prompts in other_seeds)


def test_a_mixture_of_text_and_messages(tmp_path: Path, thinking: PreTrainedTokenizerFast) -> None:
    messages = [{"prompt": [{"role": "user", "content": "hi"}]}]
    mixture = [
        {"dataset_name": write(tmp_path / "a.jsonl", [{"prompt": "ho"}]), "prompt_template": "{prompt}!"},
        {"dataset_name": write(tmp_path / "b.jsonl", messages)},
    ]
    rows = build(None, thinking, dataset_mixture=mixture, chat_template=True).train
    assert [thinking.decode(ids) for ids in rows["input_ids"]] == ["<user>ho!<assistant>", "<user>hi<assistant>"]


# Held out, dropped ---------------------------------------------------------------------------------------------------


def test_held_out_split_is_seeded_and_disjoint(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    name = write(tmp_path / "p.jsonl", [*ROWS, *ROWS[:6], *ROWS[:3]])
    chosen = []
    for seed in (0, 0, 1, 2):
        prompts = build(name, tokenizer, seed, test_size=4)
        assert prompts.test is not None
        train, test = set(prompts.train["prompt"]), set(prompts.test["prompt"])
        assert len(prompts.test) == 4
        assert not train & test
        assert train | test == {row["prompt"] for row in ROWS}
        chosen.append((list(prompts.train["prompt"]), list(prompts.test["prompt"])))
    assert chosen[0] == chosen[1]
    assert chosen[0] != chosen[2] or chosen[0] != chosen[3]


def test_long_and_empty_prompts_are_dropped_and_counted(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [{"prompt": "x" * length} for length in (4, 9, 5, 0, 6)]
    with caplog.at_level(logging.WARNING):
        prompts = build(write(tmp_path / "p.jsonl", rows), tokenizer, max_prompt_length=5)
    assert list(prompts.train["prompt"]) == ["xxxx", "xxxxx"]
    assert list(prompts.train["prompt_id"]) == [0, 2]  # a number stays with its row, whatever else is dropped
    assert prompts.dropped == 3
    assert "3 of 5 prompts are empty or over 5 tokens" in caplog.text


# Refusals ------------------------------------------------------------------------------------------------------------


def test_splits_and_columns_that_are_not_there(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    folder, file = tmp_path / "folder", write(tmp_path / "p.jsonl")
    write(folder / "train.jsonl")
    DatasetDict(train=Dataset.from_list(ROWS)).save_to_disk(tmp_path / "saved_dict")
    Dataset.from_list(ROWS).save_to_disk(tmp_path / "saved")
    for name in (folder, tmp_path / "saved_dict", tmp_path / "saved", file):
        assert "dev" in refusal(str(name), tokenizer, dataset_test_split="dev")
        assert "dev" in refusal(str(name), tokenizer, dataset_train_split="dev")
    assert refusal(file, tokenizer, prompt_column="question").endswith(
        "no column 'question'; it has prompt, answer, hint"
    )
    assert refusal(file, tokenizer, answer_column="gold").startswith("answer_column: ")


def test_files_that_are_not_there_or_not_data(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("./nowhere", "/nowhere/at/all", "nowhere.jsonl"):
        assert refusal(name, tokenizer) == f"dataset_name: no such file or folder: {name}"
    assert refusal("someone/nothing", tokenizer).startswith("dataset_name: cannot read someone/nothing, split train: ")
    Path("p.csv").write_text("prompt\na\n")
    assert "expected a .json, .jsonl or .parquet file" in refusal("p.csv", tokenizer)
    Path("broken.jsonl").write_text('{"prompt": "a"}\n{"prompt": \n')
    assert "JSON parse error" in refusal("broken.jsonl", tokenizer)
    Path("broken.parquet").write_bytes(b"PAR1 not really")
    assert refusal("broken.parquet", tokenizer).startswith("dataset_name: cannot read broken.parquet")
    Path("empty.jsonl").touch()
    assert "no rows" in refusal("empty.jsonl", tokenizer)
    Dataset.from_list(ROWS).select([]).to_parquet("empty.parquet")
    assert "no data" in refusal("empty.parquet", tokenizer)


@pytest.mark.parametrize(
    ("prompts", "fields", "says"),
    [
        (["a", None], {}, "row 1, holds 'None'"),
        ([1, 2], {}, "row 0, holds '1'; expected text or a list of chat messages"),
        ([[{"role": "user", "content": "a"}]], {}, "set chat_template: true"),
        ([["a", "b"]], {"chat_template": True}, "expected text or a list of chat messages"),
        ([[]], {"chat_template": True}, "expected text or a list of chat messages"),
        ([[{"from": "user", "value": "a"}]], {"chat_template": True}, "chat_template: cannot render"),
        (
            [[{"role": "user", "content": "a"}]],
            {"chat_template": True, "prompt_template": "{prompt}!"},
            "which prompt_template cannot fill",
        ),
        ([[{"role": "user", "content": None}]], {"chat_template": True}, "null as the content of message 0"),
        ([[{"role": None, "content": "a"}]], {"chat_template": True}, "null as the role of message 0"),
        ([[{"role": "user", "content": [None]}]], {"chat_template": True}, "null as the content of message 0"),
        ([[None]], {"chat_template": True}, "row 0, holds '[None]'; expected text or a list of chat messages"),
        (["too long"], {"max_prompt_length": 3}, "no training prompt is within max_prompt_length: 3"),
        (["a", "b"], {"test_size": 1, "answer_column": "empty"}, "answer 'empty' of"),
        (["a", "b"], {"test_size": 1, "answer_column": "empty"}, "is empty; text, or null where there is none"),
        (
            ["a", "b"],
            {"test_size": 1, "answer_column": "wrong", "answer_format": "choice"},
            "is not one of the choices 'ABCD'",
        ),
        (["a"], {"test_size": 1}, "leave none of 1 to train on"),
        (["a", "a"], {"test_size": 1}, "none is left to train on"),
        (["a", "bbbbb"], {"test_size": 1, "max_prompt_length": 1}, "is within max_prompt_length: 1"),
    ],
)
def test_prompts_of_the_wrong_form(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, prompts: list[Any], fields: dict[str, Any], says: str
) -> None:
    assert says in refusal(
        write(tmp_path / "p.jsonl", [{"prompt": p, "empty": " ", "wrong": "E"} for p in prompts]), tokenizer, **fields
    )


def test_golds_of_every_form(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    rows = [{"prompt": str(n), "gold": gold} for n, gold in enumerate(("B", " c ", None))]
    fields = {"answer_column": "gold", "answer_format": "choice", "dataset_test_split": "test"}
    write(tmp_path / "train.jsonl", rows)
    write(tmp_path / "test.jsonl", rows)
    test = build(str(tmp_path), tokenizer, **fields).test
    assert test is not None and list(test["answer"]) == ["B", " c ", None]
    rows.append({"prompt": "3", "gold": ""})  # an answer that is only trained beside
    write(tmp_path / "train.jsonl", rows)
    assert len(build(str(tmp_path), tokenizer, answer_column="gold").train) == 4
    write(tmp_path / "test.jsonl", rows)
    assert "row 3, is empty" in refusal(str(tmp_path), tokenizer, **fields)


def test_a_tokenizer_without_chat_template(tmp_path: Path) -> None:
    plain = byte_tokenizer()
    plain.chat_template = None
    assert "the student's tokenizer has none" in refusal(write(tmp_path / "p.jsonl"), plain, chat_template=True)


def test_nothing_is_cached_across_contents(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    assert datasets.config.HF_DATASETS_CACHE.name.startswith("vopd-datasets-")
    for text in ("first", "second"):
        rows = build(write(tmp_path / "p.jsonl", [{"prompt": text}]), tokenizer).train
        assert list(rows["prompt"]) == [text]


def test_nothing_is_cached_across_versions_of_this_package(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An update changes what is called, and not the function whose rows are asked for."""
    file = write(tmp_path / "p.jsonl", [{"prompt": "a", "n": 1}])
    for pattern, text in ((r"\{(prompt)\}", "a {n}"), (r"\{(\w+)\}", "a 1")):
        monkeypatch.setattr("vopd_recipes.prompts.templates._COLUMN", re.compile(pattern))
        rows = build(file, tokenizer, prompt_template="{prompt} {n}").train
        assert list(rows["prompt"]) == [text] and tokenizer.decode(rows["input_ids"][0]) == text
