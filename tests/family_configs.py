"""A tiny model of every family that the table in docs/models.md names, in the shapes that vLLM's kernels take."""

from dataclasses import dataclass, field
from typing import Any

from transformers import AutoConfig, PreTrainedConfig

SHAPE = {
    "vocab_size": 264, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 32, "max_position_embeddings": 128, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 256,
}  # fmt: skip
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
_LOCAL_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
_DELTA = {
    "linear_num_key_heads": 2, "linear_num_value_heads": 2, "linear_key_head_dim": 32, "linear_value_head_dim": 32,
    "layer_types": ["linear_attention", "full_attention"],
}  # fmt: skip
_MAMBA2 = {
    "mamba_n_heads": 4, "mamba_d_head": 32, "mamba_n_groups": 1, "mamba_d_state": 16, "mamba_d_conv": 4,
    "mamba_expand": 2,
}  # fmt: skip
_WINDOW = {"sliding_window": 24}
_SCALE = {"query_pre_attn_scalar": 32}
_VISION = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")


@dataclass(frozen=True)
class Family:
    """A row of the table: the type of its configuration, what that has beside `SHAPE`, and what adapters adapt."""

    model_type: str
    fields: dict[str, Any] = field(default_factory=dict)
    adapted: tuple[str, ...] = ()  # default: all-linear

    def settings(self) -> PreTrainedConfig:
        """The configuration of a tiny model."""
        own = dict(self.fields)
        if "text_config" in own:
            return AutoConfig.for_model(self.model_type, **own | {"text_config": SHAPE | own["text_config"]})
        return AutoConfig.for_model(self.model_type, **SHAPE | own)


FAMILIES = {
    "Qwen2, Qwen2.5": Family("qwen2"),
    "Qwen3": Family("qwen3"),
    "Qwen3-MoE": Family("qwen3_moe", _EXPERTS, _ATTENTION),
    "Qwen3.5": Family("qwen3_5_text", _DELTA),
    "Qwen3-Next": Family("qwen3_next", {**_DELTA, **_EXPERTS, "shared_expert_intermediate_size": 32}, _ATTENTION),
    "Llama": Family("llama"),
    "Mistral": Family("mistral", _WINDOW),
    "Ministral": Family("ministral", _WINDOW),
    "Ministral 3": Family("ministral3"),
    "Mixtral": Family("mixtral", _LOCAL_EXPERTS, _ATTENTION),
    "Gemma": Family("gemma"),
    "Gemma 2": Family("gemma2", _SCALE),
    "Gemma 3, text": Family("gemma3_text", _SCALE | _WINDOW),
    "Gemma 3, text and pictures": Family(
        "gemma3",
        {
            "vision_config": {**_VISION, "image_size": 28, "patch_size": 14}, "mm_tokens_per_image": 4,
            "text_config": _SCALE | _WINDOW,
        },
    ),
    "OLMo": Family("olmo"),
    "OLMo 2": Family("olmo2"),
    "OLMo 3": Family("olmo3", _WINDOW),
    "OLMo Hybrid": Family("olmo_hybrid", _DELTA),
    "Phi-3, Phi-4": Family("phi3"),
    "Phi-3.5-MoE": Family("phimoe", {**_LOCAL_EXPERTS, **_WINDOW}, _ATTENTION),
    "SmolLM3": Family("smollm3"),
    "GLM-4": Family("glm4"),
    "GLM-4-MoE": Family(
        "glm4_moe",
        {
            "moe_intermediate_size": 32, "n_routed_experts": 4, "num_experts_per_tok": 2, "first_k_dense_replace": 1,
            "n_group": 1, "topk_group": 1,
        },
        _ATTENTION,
    ),
    "Granite": Family("granite"),
    "Granite 4 Hybrid": Family(
        "granitemoehybrid",
        {**_LOCAL_EXPERTS, **_MAMBA2, "shared_intermediate_size": 32, "layer_types": ["mamba", "attention"]},
        _ATTENTION,
    ),
    "GPT-2": Family("gpt2"),
    "gpt-oss": Family("gpt_oss", {**_LOCAL_EXPERTS, **_WINDOW}, _ATTENTION),
    "Mamba": Family("mamba", {"state_size": 16, "intermediate_size": 128}, ("in_proj", "x_proj")),
    "Mamba 2": Family(
        "mamba2",
        {"num_heads": 4, "head_dim": 32, "n_groups": 1, "state_size": 16, "intermediate_size": 128},
        ("in_proj",),
    ),
    "Jamba": Family(
        "jamba",
        {
            "num_experts": 2, "num_experts_per_tok": 1, "attn_layer_period": 2, "attn_layer_offset": 1,
            "expert_layer_period": 2, "expert_layer_offset": 1, "mamba_d_state": 16,
        },
        _ATTENTION,
    ),
    "Falcon-H1": Family("falcon_h1", {**_MAMBA2, "mamba_d_ssm": 128}, (*_ATTENTION, "in_proj")),
    "Nemotron-H": Family(
        "nemotron_h",
        {
            "layers_block_type": ["mamba", "attention"], "mamba_num_heads": 4, "mamba_head_dim": 32, "n_groups": 1,
            "ssm_state_size": 16, "expand": 2,
        },
        _ATTENTION,
    ),
    "LFM2": Family("lfm2", {"layer_types": ["conv", "full_attention"]}),
    "Apertus": Family("apertus", {"tie_word_embeddings": False}),
    "StableLM": Family("stablelm"),
    "Doge": Family("doge", {"keep_window_size": 24}),
}  # fmt: skip
