"""Rules of the decoder that most families share: RMS norms, rotary positions, SwiGLU."""

from nemo_skills.conversion.families._table import HFTensor, Rule
from nemo_skills.conversion.model_config import Axis

_LAYER = "model.layers.{layer}."


def per_layer(nemo: str, hf: str, *axes: Axis, others: tuple[str, ...] = ()) -> Rule:
    """Return the rule for one tensor of each layer that is the same in both formats."""
    return Rule(nemo=nemo, hf=(HFTensor(_LAYER + hf, axes),), others=others)


def attention_inputs(kind: str, *rest: Axis) -> Rule:
    """Return the rule for what makes queries, keys and values: the `weight`s, or the `bias`es."""
    return Rule(
        nemo=f"self_attention.linear_qkv.{kind}",
        hf=(
            HFTensor(f"{_LAYER}self_attn.q_proj.{kind}", ("q", *rest)),
            HFTensor(f"{_LAYER}self_attn.k_proj.{kind}", ("kv", *rest)),
            HFTensor(f"{_LAYER}self_attn.v_proj.{kind}", ("kv", *rest)),
        ),
        how="interleave",
    )


EMBEDDING = Rule(
    nemo="embedding.word_embeddings.weight",
    hf=(HFTensor("model.embed_tokens.weight", ("vocab", "hidden")),),
)
INPUT_NORM = per_layer(
    "self_attention.linear_qkv.layer_norm_weight",
    "input_layernorm.weight",
    "hidden",
    # a layer spec without Transformer Engine keeps norms apart from the layers that follow them
    others=("input_layernorm.weight",),
)
QKV = attention_inputs("weight", "hidden")
QKV_BIAS = attention_inputs("bias")
ATTENTION_OUTPUT = per_layer("self_attention.linear_proj.weight", "self_attn.o_proj.weight", "hidden", "q")
Q_NORM = per_layer("self_attention.q_layernorm.weight", "self_attn.q_norm.weight", "head_size")
K_NORM = per_layer("self_attention.k_layernorm.weight", "self_attn.k_norm.weight", "head_size")
MLP_NORM = per_layer(
    "mlp.linear_fc1.layer_norm_weight",
    "post_attention_layernorm.weight",
    "hidden",
    others=("pre_mlp_layernorm.weight",),
)
GATE_UP = Rule(
    nemo="mlp.linear_fc1.weight",
    hf=(
        HFTensor(f"{_LAYER}mlp.gate_proj.weight", ("ffn", "hidden")),
        HFTensor(f"{_LAYER}mlp.up_proj.weight", ("ffn", "hidden")),
    ),
)
DOWN = per_layer("mlp.linear_fc2.weight", "mlp.down_proj.weight", "hidden", "ffn")
FINAL_NORM = Rule(
    nemo="decoder.final_layernorm.weight",
    hf=(HFTensor("model.norm.weight", ("hidden",)),),
)
OUTPUT = Rule(
    nemo="output_layer.weight",
    hf=(HFTensor("lm_head.weight", ("vocab", "hidden")),),
    when=lambda shape: not shape.tied,
)

DECODER = (
    EMBEDDING, INPUT_NORM, QKV, ATTENTION_OUTPUT, MLP_NORM, GATE_UP, DOWN, FINAL_NORM, OUTPUT,
)  # fmt: skip
"""A decoder without biases."""
