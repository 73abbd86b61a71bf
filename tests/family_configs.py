"""A tiny model of every family that the table in docs/models.md names, in the shapes that vLLM's kernels take."""

from transformers import (
    AutoConfig,
    PreTrainedConfig,
)

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
_MAMBA2 = {"mamba_n_heads": 4, "mamba_d_head": 32, "mamba_n_groups": 1, "mamba_d_state": 16, "mamba_d_conv": 4, "mamba_expand": 2}

SETTINGS: dict[str, tuple[str, dict]] = {
    "Qwen2": ("qwen2", {}),
    "Qwen3": ("qwen3", {}),
    "Qwen3-MoE": ("qwen3_moe", _EXPERTS),
    "Qwen3.5": ("qwen3_5_text", _DELTA),
    "Qwen3-Next": ("qwen3_next", {**_DELTA, **_EXPERTS, "shared_expert_intermediate_size": 32}),
    "Llama": ("llama", {}),
    "Mistral": ("mistral", {"sliding_window": 24}),
    "Ministral": ("ministral", {"sliding_window": 24}),
    "Ministral 3": ("ministral3", {}),
    "Mixtral": ("mixtral", _LOCAL_EXPERTS),
    "Gemma": ("gemma", {}),
    "Gemma 2": ("gemma2", {"query_pre_attn_scalar": 32}),
    "Gemma 3": ("gemma3_text", {"query_pre_attn_scalar": 32, "sliding_window": 24}),
    "Gemma 3 (multimodal)": ("gemma3", {"vision_config": {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}, "mm_tokens_per_image": 4, "text_config": {"query_pre_attn_scalar": 32, "sliding_window": 24}}),
    "Olmo": ("olmo", {}),
    "Olmo 2": ("olmo2", {}),
    "Olmo 3": ("olmo3", {"sliding_window": 24}),
    "Olmo-hybrid": ("olmo_hybrid", {**_DELTA}),
    "Phi-3": ("phi3", {}),
    "Phi-MoE": ("phimoe", {**_LOCAL_EXPERTS, "sliding_window": 24}),
    "SmolLM3": ("smollm3", {}),
    "GLM-4": ("glm4", {}),
    "GLM-4-MoE": ("glm4_moe", {"moe_intermediate_size": 32, "n_routed_experts": 4, "num_experts_per_tok": 2, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1}),
    "Granite": ("granite", {}),
    "Granite 4 hybrid": ("granitemoehybrid", {**_LOCAL_EXPERTS, **_MAMBA2, "shared_intermediate_size": 32, "layer_types": ["mamba", "attention"]}),
    "GPT-2": ("gpt2", {}),
    "gpt-oss": ("gpt_oss", {**_LOCAL_EXPERTS, "sliding_window": 24}),
    "Mamba": ("mamba", {"state_size": 16}),
    "Mamba 2": ("mamba2", {"num_heads": 4, "head_dim": 32, "n_groups": 1, "state_size": 16}),
    "Jamba": ("jamba", {"num_experts": 2, "num_experts_per_tok": 1, "attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1, "mamba_d_state": 16}),
    "Falcon-H1": ("falcon_h1", {**_MAMBA2, "mamba_d_ssm": 128}),
    "Nemotron-H": ("nemotron_h", {"layers_block_type": ["mamba", "attention"], "mamba_num_heads": 4, "mamba_head_dim": 32, "n_groups": 1, "ssm_state_size": 16, "expand": 2}),
    "LFM2": ("lfm2", {"layer_types": ["conv", "full_attention"]}),
    "Doge": ("doge", {"keep_window_size": 24}),
    "Apertus": ("apertus", {}),
    "DeepSeek-V3": ("deepseek_v3", {}),
    "StableLM": ("stablelm", {}),
}


def settings_of(family: str) -> PreTrainedConfig:
    kind, more = SETTINGS[family]
    if "text_config" in more:
        return AutoConfig.for_model(kind, **{**more, "text_config": {**SHAPE, **more["text_config"]}})
    return AutoConfig.for_model(kind, **{**SHAPE, **more})
