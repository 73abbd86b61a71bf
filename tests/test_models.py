"""Student and teacher load as asked, and a pair that cannot be distilled is refused before step 1."""

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import TinyPair, sharpened
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    DogeConfig,
    FalconH1Config,
    Gemma2Config,
    Gemma3Config,
    GPT2Config,
    GptOssConfig,
    GraniteConfig,
    MambaConfig,
    MistralConfig,
    OPTConfig,
    PhimoeConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3NextConfig,
    StableLmConfig,
)

from vopd_recipes.models import (
    PACKED_SDPA,
    base_of,
    causal_lm_of,
    check_end_tokens,
    check_models,
    check_prompts,
    check_tokenizers,
    completion_states,
    end_of_sequence_ids,
    full_weights,
    head_module,
    head_of,
    hidden_states,
    load_student,
    load_teacher,
    load_tokenizer,
    runs_each_alone,
    scale_logits,
    unshared_end,
    vocabulary_of,
)
from vopd_recipes.models.loading import default_attention
from vopd_recipes.packing import Sample, pack
from vopd_recipes.recipe import ModelConfig, RecipeError
from vopd_recipes.tiny import pair as tiny

PROMPT = list(range(40, 60))


def config(pair: TinyPair, **fields: object) -> ModelConfig:
    return ModelConfig(
        **{"model_name_or_path": str(pair.student), "teacher_model_name_or_path": str(pair.teacher)} | fields
    )


def refusal(function: Callable[..., object], *arguments: object) -> str:
    with pytest.raises(RecipeError) as caught:
        function(*arguments)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    return message


def random_model(settings: PreTrainedConfig, implementation: str = PACKED_SDPA) -> PreTrainedModel:
    torch.manual_seed(0)
    return sharpened(AutoModelForCausalLM.from_config(settings, attn_implementation=implementation))


@pytest.fixture
def pair(tiny_pair: TinyPair) -> tuple[PreTrainedModel, PreTrainedModel]:
    return load_student(config(tiny_pair)), load_teacher(config(tiny_pair))


# Loading -------------------------------------------------------------------------------------------------------------


def test_the_student_is_trained_and_the_teacher_frozen(pair: tuple[PreTrainedModel, PreTrainedModel]) -> None:
    student, teacher = pair
    assert all(parameter.requires_grad for parameter in student.parameters())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert not teacher.training
    assert not student.config.use_cache
    assert student.config._attn_implementation == teacher.config._attn_implementation == PACKED_SDPA
    check_models(student, teacher, PROMPT)


def test_types_and_attention(tiny_pair: TinyPair) -> None:
    settings = config(tiny_pair, dtype="float32", teacher_dtype="bfloat16", attn_implementation="sdpa")
    student, teacher = load_student(settings), load_teacher(settings)
    assert (student.dtype, teacher.dtype) == (torch.float32, torch.bfloat16)
    assert student.config._attn_implementation == "sdpa"
    assert load_teacher(config(tiny_pair, dtype="bfloat16")).dtype == torch.bfloat16
    assert default_attention(student.config, "float32") == PACKED_SDPA
    check_models(student, teacher, PROMPT)  # rounding in bfloat16 is not taken for a strange head


@pytest.mark.parametrize("teacher", [False, True])
def test_a_folder_that_is_not_there(tiny_pair: TinyPair, tmp_path: Path, teacher: bool) -> None:
    field = "teacher_model_name_or_path" if teacher else "model_name_or_path"
    settings = config(tiny_pair, **{field: str(tmp_path / "nowhere")})
    assert refusal(load_tokenizer, settings, teacher).startswith(f"{field}: cannot load a tokenizer from {tmp_path}")
    load = load_teacher if teacher else load_student
    assert refusal(load, settings).startswith(f"{field}: cannot load a model from {tmp_path}")
    (tmp_path / "nowhere").mkdir()
    assert refusal(load, settings).startswith(f"{field}: cannot load a model from {tmp_path}")


def test_a_name_that_is_not_cached(tiny_pair: TinyPair) -> None:
    settings = config(tiny_pair, model_name_or_path="someone/nothing", model_revision="step-1")
    assert "cannot load a model from someone/nothing, revision step-1: " in refusal(load_student, settings)


def test_an_unknown_attention(tiny_pair: TinyPair) -> None:
    assert "nonsense" in refusal(load_student, config(tiny_pair, attn_implementation="nonsense"))


def test_pickled_weights_are_refused(tiny_pair: TinyPair, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_pair.student, tmp_path / "pickled")
    weights = folder / "model.safetensors"
    torch.save(load_file(weights), folder / "pytorch_model.bin")
    weights.unlink()
    message = refusal(load_student, config(tiny_pair, model_name_or_path=str(folder)))
    assert message.startswith(f"model_name_or_path: cannot load a model from {folder}: ")
    assert "model.safetensors" in message


def test_code_that_comes_with_a_model_is_not_run(tiny_pair: TinyPair, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_pair.student, tmp_path / "remote")
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'bad')!r}, 'w')\nclass Config: pass\nclass Model: pass\n")
    settings = json.loads((folder / "config.json").read_text())
    settings |= {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}}
    (folder / "config.json").write_text(json.dumps(settings))
    assert "trust_remote_code" in refusal(load_student, config(tiny_pair, model_name_or_path=str(folder)))
    assert not (tmp_path / "bad").exists()


def test_incomplete_weights_are_refused(tiny_pair: TinyPair, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_pair.student, tmp_path / "incomplete")
    settings = config(tiny_pair, model_name_or_path=str(folder))
    weights = load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if "layers.1.mlp" not in name}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    assert "3 weights are missing, model.layers.1.mlp.down_proj.weight first" in refusal(load_student, settings)
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])
    assert refusal(load_student, settings).startswith(f"model_name_or_path: cannot load a model from {folder}: ")


# LoRA ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "v_proj"]])
def test_only_adapters_are_trained(tiny_pair: TinyPair, targets: str | list[str]) -> None:
    settings = config(tiny_pair, use_peft=True, lora_r=4, lora_alpha=8, lora_target_modules=targets)
    student, teacher, plain = load_student(settings), load_teacher(settings), load_student(config(tiny_pair))
    assert isinstance(student, PeftModel)
    assert causal_lm_of(student) is student.get_base_model()
    for name, parameter in student.named_parameters():
        assert parameter.requires_grad == ("lora_" in name)
    adapted = {name.split(".lora_A")[0].split(".")[-1] for name, _ in student.named_parameters() if "lora_A" in name}
    assert adapted == (set(targets) if isinstance(targets, list) else {
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"
    })  # fmt: skip
    check_models(student, teacher, PROMPT)
    ids, positions = torch.tensor([PROMPT]), torch.arange(len(PROMPT))[None]
    before = hidden_states(student, ids, positions)
    torch.testing.assert_close(before, hidden_states(plain, ids, positions))  # adapters begin at zero
    with torch.no_grad():
        for name, parameter in student.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    assert (hidden_states(student, ids, positions) - before).abs().max() > 0.1
    check_models(student, teacher, PROMPT)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("dropout", [0.0, 0.25])
def test_adapters_cast_only_what_autocast_does_not(tiny_pair: TinyPair, dtype: str, dropout: float) -> None:
    """To the last bit, in fewer bytes kept for the backward; outside autocast inputs still fit the weights."""
    fields = {"use_peft": True, "lora_r": 4, "lora_alpha": 8, "lora_dropout": dropout, "dtype": dtype}
    found = []
    for as_peft_does in (True, False):
        torch.manual_seed(0)
        student = load_student(config(tiny_pair, **fields)).train()
        for module in student.modules():
            if isinstance(module, LoraLayer):
                nn.init.normal_(module.lora_B["default"].weight, generator=torch.Generator().manual_seed(1))
                if as_peft_does:
                    module.cast_input_dtype_enabled = True
        kept: dict[int, int] = {}

        def keep(tensor: torch.Tensor, kept: dict[int, int] = kept) -> torch.Tensor:
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        saving = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
        with saving, torch.autocast("cpu", torch.bfloat16):
            logits = student(torch.tensor([PROMPT]), use_cache=False).logits
        logits.float().square().mean().backward()
        found.append((logits, [p.grad for p in student.parameters() if p.grad is not None], sum(kept.values())))
        outside = student(torch.tensor([PROMPT]), use_cache=False).logits
        assert outside.isfinite().all()
    (theirs, expected, before), (ours, gradients, after) = found
    if dropout == 0:
        assert torch.equal(ours, theirs)
        assert all(torch.equal(one, other) for one, other in zip(gradients, expected, strict=True))
    assert after < before


def test_wrong_target_modules(tiny_pair: TinyPair) -> None:
    settings = config(tiny_pair, use_peft=True, lora_target_modules=["no_such_proj"])
    message = refusal(load_student, settings)
    assert message.startswith("lora_target_modules: ")
    assert "no_such_proj" in message


def test_an_adapted_head_is_refused(tiny_pair: TinyPair) -> None:
    student = load_student(config(tiny_pair, use_peft=True, lora_target_modules=["q_proj", "lm_head"]))
    assert "leave lm_head out of lora_target_modules" in refusal(head_of, student)


def test_an_adapted_embedding_that_is_the_head_is_refused(tiny_pair: TinyPair) -> None:
    settings = config(tiny_pair, use_peft=True, lora_target_modules=["q_proj", "embed_tokens"])
    message = refusal(load_student, settings)
    assert message.startswith("lora_target_modules: model.embed_tokens shares its weight with the head")
    untied = config(tiny_pair, model_name_or_path=str(tiny_pair.teacher), use_peft=True)
    untied.lora_target_modules = ["q_proj", "embed_tokens"]
    check_models(load_student(untied), None, PROMPT)


@pytest.mark.parametrize("fields", [{}, {"use_peft": True}, {"use_peft": True, "lora_target_modules": ["q_proj"]}])
def test_what_reads_pictures_is_neither_trained_nor_adapted(tiny_pair: TinyPair, tmp_path: Path, fields: dict) -> None:
    """Gemma 3's tower and projector; its tower has layers of the same names as its text part."""
    vision = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    settings = Gemma3Config(
        vision_config={**vision, "image_size": 28, "patch_size": 14}, mm_tokens_per_image=4,
        text_config={**SHAPE, "query_pre_attn_scalar": 8},
    )  # fmt: skip
    random_model(settings).save_pretrained(tmp_path)
    student = load_student(config(tiny_pair, model_name_or_path=str(tmp_path), **fields))
    check_models(student, None, PROMPT)
    completion_states(student, *pack([Sample(0, PROMPT, [7, 8], [0.0] * 2, True)], 1)).sum().backward()
    names = {name for name, parameter in student.named_parameters() if parameter.requires_grad}
    assert names == {name for name, parameter in student.named_parameters() if parameter.grad is not None}
    assert names and all("language_model" in name for name in names)
    assert any("vision_tower" in name for name, _ in full_weights(student))  # still handed over
    if fields:
        student.save_pretrained(tmp_path / "adapter")
        again = config(tiny_pair, model_name_or_path=str(tmp_path / "adapter"), **fields)
        assert {n for n, p in load_student(again).named_parameters() if p.requires_grad} == names


def trained_adapter(pair: TinyPair, folder: Path, **fields: object) -> PeftModel:
    """A student whose adapter has moved, saved to a folder."""
    student = load_student(config(pair, use_peft=True, lora_r=4, lora_alpha=8, **fields))
    torch.manual_seed(3)
    with torch.no_grad():
        for name, parameter in student.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    student.save_pretrained(folder)
    return student


def logits_of(student: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return student.eval()(input_ids=torch.tensor([PROMPT])).logits


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "v_proj"], r".*layers\.1\..*up_proj"])
def test_training_goes_on_with_an_adapter(tiny_pair: TinyPair, tmp_path: Path, targets: str | list[str]) -> None:
    trained = trained_adapter(tiny_pair, tmp_path / "adapter", lora_target_modules=targets, model_revision="v2")
    fields = {"use_peft": True, "lora_r": 4, "lora_alpha": 8, "lora_dropout": 0.25, "lora_target_modules": targets}
    settings = config(tiny_pair, model_name_or_path=str(tmp_path / "adapter"), **fields)
    student = load_student(settings)
    torch.testing.assert_close(logits_of(student), logits_of(trained))
    assert (logits_of(student) - logits_of(load_student(config(tiny_pair)))).abs().max() > 0.1
    trainable = {name for name, parameter in student.named_parameters() if parameter.requires_grad}
    assert trainable == {name for name, _ in student.named_parameters() if "lora_" in name} != set()
    assert {module.p for name, module in student.named_modules() if name.endswith("lora_dropout.default")} == {0.25}
    assert not student.config.use_cache
    below = base_of(student, settings)  # what vLLM loads
    assert (below.model_name_or_path, below.model_revision) == (str(tiny_pair.student), "v2")
    student.save_pretrained(tmp_path / "again")
    saved = json.loads((tmp_path / "again" / "adapter_config.json").read_text())
    assert (saved["base_model_name_or_path"], saved["revision"]) == (str(tiny_pair.student), "v2")


def test_fresh_adapters_and_whole_models_are_loaded_from_their_own_name(tiny_pair: TinyPair) -> None:
    for settings in (config(tiny_pair), config(tiny_pair, use_peft=True, model_revision="v2")):
        assert base_of(load_student(settings), settings) == settings


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"use_peft": False}, "is a LoRA adapter; set use_peft: true, or start from its -merged repository"),
        ({"lora_r": 8}, "lora_r: 8, but the adapter {} has 4; set lora_r: 4"),
        ({"lora_alpha": 16}, "lora_alpha: 16, but the adapter {} has 8; set lora_alpha: 8"),
        ({"lora_target_modules": ["q_proj"]}, "the adapter {} adapts; set lora_target_modules: [k_proj, q_proj]"),
        ({"lora_target_modules": "all-linear"}, "lora_target_modules: all-linear is not what the adapter {} adapts"),
    ],
)
def test_an_adapter_that_is_not_the_recipes(tiny_pair: TinyPair, tmp_path: Path, fields: dict, message: str) -> None:
    trained_adapter(tiny_pair, tmp_path, lora_target_modules=["k_proj", "q_proj"])
    same = {"use_peft": True, "lora_r": 4, "lora_alpha": 8, "lora_target_modules": ["q_proj", "k_proj"]}
    assert message.format(tmp_path) in refusal(
        load_student, config(tiny_pair, **{"model_name_or_path": str(tmp_path)} | same | fields)
    )


def test_adapters_that_are_damaged(tiny_pair: TinyPair, tmp_path: Path) -> None:
    trained_adapter(tiny_pair, tmp_path)
    settings = config(tiny_pair, model_name_or_path=str(tmp_path), use_peft=True, lora_r=4, lora_alpha=8)
    path, about = tmp_path / "adapter_model.safetensors", tmp_path / "adapter_config.json"
    weights = load_file(path)
    gone = min(weights)
    save_file({name: weight for name, weight in weights.items() if name != gone}, path)
    assert f"1 of the adapter's weights are missing or unknown, {gone} first" in refusal(load_student, settings)
    torch.save(weights, tmp_path / "adapter_model.bin")
    path.unlink()
    assert "adapter_model.safetensors" in refusal(load_student, settings)  # no pickle in its place
    save_file(weights, path)
    content = json.loads(about.read_text())
    about.write_text(json.dumps({**content, "base_model_name_or_path": "./gone"}))
    assert f"{tmp_path} is a LoRA adapter; its base: model_name_or_path: cannot load a model from ./gone" in refusal(
        load_student, settings
    )
    about.write_text(json.dumps({**content, "use_dora": True}))
    assert "more than a plain LoRA adapter" in refusal(load_student, settings)


# Vocabularies --------------------------------------------------------------------------------------------------------


def renamed(tokenizer: PreTrainedTokenizerFast, old: str, new: str) -> PreTrainedTokenizerFast:
    """The same tokenizer with one token under another name."""
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    content["model"]["vocab"] = {new if token == old else token: n for token, n in content["model"]["vocab"].items()}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(content)), eos_token=tiny.END)


def test_tokenizers_that_agree(tokenizer: PreTrainedTokenizerFast) -> None:
    check_tokenizers(tokenizer, tiny.byte_tokenizer())
    more = tiny.byte_tokenizer()
    more.add_special_tokens({"extra_special_tokens": ["<|think|>", "<|tool|>"]})
    check_tokenizers(tokenizer, more)
    check_tokenizers(more, tokenizer)


def test_tokenizers_that_differ(tokenizer: PreTrainedTokenizerFast) -> None:
    other = renamed(tokenizer, "a", "ㅏ")
    message = refusal(check_tokenizers, tokenizer, other)
    assert message.startswith("teacher_model_name_or_path: its tokenizer differs from the student's in 1 tokens; id ")
    assert f"id {tokenizer.convert_tokens_to_ids('a')} is 'a' and 'ㅏ'" in message
    larger = tiny.byte_tokenizer()
    larger.add_tokens([f"word{n}" for n in range(40)])
    for ours, theirs in ((tokenizer, larger), (larger, tokenizer)):
        assert "needs one vocabulary" in refusal(check_tokenizers, ours, theirs)


def test_vocabularies_padded_differently(pair: tuple[PreTrainedModel, PreTrainedModel]) -> None:
    wider = sharpened(tiny.tiny_qwen3(64, 1, seed=0, vocab_size=320, tie_word_embeddings=False))
    assert [vocabulary_of(model) for model in pair] == [264, 264]
    assert vocabulary_of(wider) == 320
    check_models(pair[0], wider, PROMPT)


def test_end_tokens(pair: tuple[PreTrainedModel, PreTrainedModel], tokenizer: PreTrainedTokenizerFast) -> None:
    student = pair[0]
    assert end_of_sequence_ids(student, tokenizer) == {256}
    student.generation_config.eos_token_id = [7, 9]
    assert end_of_sequence_ids(student, tokenizer) == {7, 9, 256}
    student.generation_config.eos_token_id = None
    endless = tiny.byte_tokenizer()
    endless.eos_token = None
    assert "names an end-of-sequence token" in refusal(end_of_sequence_ids, student, endless)


def test_the_teachers_end_token_ends_the_student_too(
    tiny_pair: TinyPair, pair: tuple[PreTrainedModel, PreTrainedModel], tokenizer: PreTrainedTokenizerFast
) -> None:
    student, teacher = pair
    assert unshared_end(student, tokenizer, end_of_sequence_ids(teacher, tokenizer), tokenizer) is None
    teacher.generation_config.eos_token_id = [256, 10]
    ends = end_of_sequence_ids(teacher, tokenizer)
    said = unshared_end(student, tokenizer, ends, tokenizer)
    assert said is not None and said.endswith("knows nothing of what follows; set eos_token: '+'")
    told = load_tokenizer(config(tiny_pair, eos_token="+"))
    assert end_of_sequence_ids(student, told) == {10, 256}  # and its own
    assert unshared_end(student, told, ends, tokenizer) is None
    assert load_tokenizer(config(tiny_pair, eos_token="+"), teacher=True).eos_token_id == 256
    message = refusal(load_tokenizer, config(tiny_pair, eos_token="<|nothing|>"))
    assert message == f"eos_token: <|nothing|> is no token of {tiny_pair.student}"


def test_an_end_token_that_is_never_drawn(tokenizer: PreTrainedTokenizerFast) -> None:
    check_end_tokens({10, 256}, tokenizer, 257)
    message = refusal(check_end_tokens, {10, 256}, tokenizer, 256)
    assert message.startswith("eos_token: <|endoftext|> (256) is not among the 256 tokens that both models score")


def test_prompts_that_a_model_cannot_read(pair: tuple[PreTrainedModel, PreTrainedModel]) -> None:
    """Both have 1024 positions and 264 embeddings; then the teacher fewer positions."""
    student, teacher = pair
    prompts = [[1, 2, 3], list(range(200)), [263]]
    check_prompts(prompts, 824, student, teacher)
    check_prompts(prompts, 824, student, None)
    message = refusal(check_prompts, prompts, 825, student, teacher)
    assert message.startswith(
        "model_name_or_path: a prompt of 200 tokens and max_completion_length: 825 exceed the 1024"
    )
    teacher.config.max_position_embeddings = 220
    message = refusal(check_prompts, prompts, 21, student, teacher)
    assert message.startswith(
        "teacher_model_name_or_path: a prompt of 200 tokens and max_completion_length: 21 exceed"
    )
    message = refusal(check_prompts, [*prompts, [264]], 8, student, teacher)
    assert message.startswith("model_name_or_path: a prompt holds token 264, and the model has embeddings for 264")


# Checks before step 1 ------------------------------------------------------------------------------------------------

SHAPE = {
    "vocab_size": 264, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2,
}  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "implementation", "scale", "softcap"),
    [
        (Gemma2Config(**SHAPE, query_pre_attn_scalar=8, final_logit_softcapping=2.0), "eager", 1.0, 2.0),
        (GraniteConfig(**SHAPE, logits_scaling=0.25), PACKED_SDPA, 4.0, None),
        (CohereConfig(**SHAPE, logit_scale=3.0), PACKED_SDPA, 3.0, None),
    ],
)
def test_heads_with_a_scale_or_a_cap(
    settings: PreTrainedConfig, implementation: str, scale: float, softcap: float | None
) -> None:
    model = random_model(settings, implementation)
    head = head_of(model)
    assert (head.logit_scale, head.softcap) == (scale, softcap)
    check_models(model, model, PROMPT)
    ids = torch.tensor([PROMPT])
    with torch.no_grad():
        hidden = hidden_states(model, ids, torch.arange(len(PROMPT))[None])
        ours = scale_logits(head_module(model)(hidden).float(), head)
        torch.testing.assert_close(ours, model(input_ids=ids).logits[0], atol=1e-5, rtol=1e-5)


def test_a_head_with_a_bias(pair: tuple[PreTrainedModel, PreTrainedModel]) -> None:
    teacher = pair[1]
    teacher.lm_head.bias = nn.Parameter(torch.linspace(-2, 2, 264))
    check_models(*pair, PROMPT)
    assert head_of(teacher).bias is teacher.lm_head.bias


@pytest.mark.parametrize("which", [0, 1])
def test_a_head_that_does_something_else(pair: tuple[PreTrainedModel, PreTrainedModel], which: int) -> None:
    head = pair[which].lm_head
    head.forward = lambda hidden: 3 * nn.functional.linear(hidden, head.weight)
    message = refusal(check_models, *pair, PROMPT)
    assert message.startswith("teacher " if which else "student ")
    assert "its head is not softcap·tanh" in message


@pytest.mark.parametrize("which", [0, 1])
def test_weights_that_are_not_finite(pair: tuple[PreTrainedModel, PreTrainedModel], which: int) -> None:
    with torch.no_grad():
        pair[which].model.layers[1].mlp.down_proj.weight[3, 3] = torch.nan
    assert "not finite; check its weights and dtype" in refusal(check_models, *pair, PROMPT)


def test_a_teacher_that_knows_nothing(pair: tuple[PreTrainedModel, PreTrainedModel]) -> None:
    student, teacher = pair
    untrained = tiny.tiny_qwen3(64, 2, seed=0).eval()
    assert "its next-token distribution is uniform" in refusal(check_models, student, untrained, PROMPT)
    check_models(untrained, teacher, PROMPT)  # a student may know nothing
    with torch.no_grad():
        teacher.lm_head.weight.zero_()
    assert "were its weights loaded?" in refusal(check_models, student, teacher, PROMPT)


QWEN3_NEXT = Qwen3NextConfig(
    **SHAPE, linear_num_key_heads=2, linear_num_value_heads=2, linear_key_head_dim=8, linear_value_head_dim=8,
    num_experts=2, num_experts_per_tok=1, moe_intermediate_size=8, shared_expert_intermediate_size=8,
    layer_types=["linear_attention", "full_attention"],
)  # fmt: skip
FALCON_H1 = FalconH1Config(
    **SHAPE, mamba_n_heads=4, mamba_d_head=8, mamba_n_groups=1, mamba_d_state=8, mamba_expand=1, mamba_d_ssm=32
)
PHIMOE = PhimoeConfig(**SHAPE, num_local_experts=2, num_experts_per_tok=1, sliding_window=24, router_jitter_noise=0.0)


def packing_of(pair: tuple[nn.Module, nn.Module], which: int, caplog: pytest.LogCaptureFixture, *longest: int) -> str:
    """What the check says of one model of a pair; nothing where it is packed. The other one is."""
    with caplog.at_level(logging.INFO):
        check_models(*pair, PROMPT, *longest)
    said = [record.message for record in caplog.records if "its sequences run one by one" in record.message]
    assert len(said) <= 1 and all(line.startswith("teacher " if which else "student ") for line in said)
    assert [runs_each_alone(model) for model in pair] == [bool(said) and which == n for n in (0, 1)]
    caplog.clear()
    return said[0] if said else ""


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize(
    ("settings", "implementation", "dtype", "says"),
    [
        (OPTConfig(**SHAPE, ffn_dim=48, word_embed_proj_dim=32), "sdpa", torch.float32, "its layers carry something"),
        (QWEN3_NEXT, PACKED_SDPA, torch.float32, "its layers carry something from one sequence of a packed row"),
        (QWEN3_NEXT, PACKED_SDPA, torch.bfloat16, "its layers carry something from one sequence of a packed row"),
        (FALCON_H1, PACKED_SDPA, torch.float32, "its layers carry something"),  # no more than 2% of it
        (StableLmConfig(**SHAPE), PACKED_SDPA, torch.float32, "does not pass sequence_lengths on"),
    ],
)
def test_sequences_that_cannot_share_a_row_run_one_by_one(
    pair: tuple[PreTrainedModel, PreTrainedModel],
    settings: PreTrainedConfig,
    implementation: str,
    dtype: torch.dtype,
    says: str,
    which: int,
    caplog: pytest.LogCaptureFixture,
) -> None:
    models = list(pair)
    models[which] = random_model(settings, implementation).to(dtype)
    assert says in packing_of(models, which, caplog)
    samples = [Sample(n, [40, 41 + n], [50 + n] * n, [0.0] * n, True) for n in (7, 3, 1)]
    (batch,) = pack(samples, 1)
    with torch.no_grad():
        together = completion_states(models[which], batch)
        apart = [completion_states(models[which], *pack([sample], 1)) for sample in samples]
    assert together.shape == (11, 32)
    torch.testing.assert_close(together, torch.cat(apart))


def test_capped_scores_are_refused_by_sdpa(pair: tuple[PreTrainedModel, PreTrainedModel]) -> None:
    model = random_model(Gemma2Config(**SHAPE, query_pre_attn_scalar=8))
    assert "set attn_implementation: eager" in refusal(check_models, model, pair[1], PROMPT)
    assert "set attn_implementation: eager" in refusal(check_models, pair[0], model, PROMPT)


@pytest.mark.parametrize(
    ("settings", "attention"),
    [
        (Qwen3Config(**SHAPE), PACKED_SDPA),
        (Gemma2Config(**SHAPE), "eager"),  # capped scores
        (GptOssConfig(**SHAPE, num_local_experts=2, num_experts_per_tok=1), "eager"),  # sinks
        (MambaConfig(**SHAPE), "eager"),  # it has none
    ],
)
def test_attention_is_one_that_computes_the_model(settings: PreTrainedConfig, attention: str) -> None:
    assert default_attention(settings, "float32") == attention


@pytest.mark.parametrize("which", [0, 1])
def test_a_window_that_only_a_mask_keeps(
    pair: tuple[PreTrainedModel, PreTrainedModel], which: int, caplog: pytest.LogCaptureFixture
) -> None:
    """PhiMoE's attention knows nothing of its window; Mistral's does. On sequences that exceed it."""
    models = list(pair)
    models[which] = random_model(PHIMOE)
    assert not packing_of(models, which, caplog)  # shorter sequences than the window
    said = packing_of(models, which, caplog, 64)
    assert "its attention has a window that it keeps in a mask alone, and none in a packed row" in said
    models[which] = random_model(PHIMOE, "sdpa")
    assert not packing_of(models, which, caplog, 64)
    models[which] = random_model(MistralConfig(**SHAPE, sliding_window=24))
    assert not packing_of(models, which, caplog, 64)


@pytest.mark.parametrize("which", [0, 1])
def test_a_token_that_depends_on_those_after_it(
    pair: tuple[PreTrainedModel, PreTrainedModel], which: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Beyond its window Doge attends to the likeliest keys of the whole text, which a sampler has not yet."""
    models = list(pair)
    models[which] = random_model(DogeConfig(**SHAPE, keep_window_size=24))
    assert not packing_of(models, which, caplog)
    assert "what it computes for a token depends on those after it" in refusal(check_models, *models, PROMPT, 64)


def test_the_student_has_no_dropout_unless_asked_for(tiny_pair: TinyPair, tmp_path: Path) -> None:
    """GPT-2's configuration has 0.1 in three places, which moved its log-probabilities by 1.1 nats."""
    folder = tmp_path / "gpt2"
    settings = GPT2Config(vocab_size=264, n_positions=64, n_embd=32, n_layer=2, n_head=2, eos_token_id=256)
    random_model(settings, "eager").save_pretrained(folder)
    fields = {"model_name_or_path": str(folder), "attn_implementation": "sdpa"}
    student = load_student(config(tiny_pair, **fields))
    assert {module.p for module in student.modules() if isinstance(module, nn.Dropout)} == {0.0}
    check_models(student, None, PROMPT)
    adapted = load_student(config(tiny_pair, **fields, use_peft=True, lora_dropout=0.5))
    check_models(adapted, None, PROMPT)  # said, not refused
    kept = load_student(config(tiny_pair, **fields, dropout=True))
    assert {module.p for module in kept.modules() if isinstance(module, nn.Dropout)} == {0.1}
    check_models(kept, None, PROMPT)
    student.transformer.h[1].mlp.dropout.p = 0.1
    assert "compute something else while it trains" in refusal(check_models, student, None, PROMPT)


def test_a_prompt_of_one_token_and_modes(pair: tuple[PreTrainedModel, PreTrainedModel]) -> None:
    pair[0].train()
    check_models(*pair, [65])
    assert pair[0].training
    assert not pair[1].training
