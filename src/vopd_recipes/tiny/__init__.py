"""The built-in pair: problems made from a seed, and a teacher and a weaker student trained on them from nothing."""

from vopd_recipes.tiny.building import Blueprint, accuracy, build_models
from vopd_recipes.tiny.pair import byte_tokenizer, save, tiny_qwen3, train_supervised
from vopd_recipes.tiny.problems import KINDS, Problem, split, write
