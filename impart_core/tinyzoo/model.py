"""The shapes of the zoos' models: a small Llama, and a smaller Seed-OSS; both with grouped-query attention."""

from typing import TYPE_CHECKING, Any

from impart_core.tinyzoo.tokenizer import BOS, EOS, MAX_POSITIONS, PAD, vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def new_model(zoo: str = "first") -> "PreTrainedModel":
    """Return a freshly initialised float32 model of about 1.8 (first zoo) or 1.0 million parameters (second).

    The initial weights come from torch's global generator; seed it first.

    Args:
        zoo: "first" or "second".
    """
    from transformers import LlamaConfig, LlamaForCausalLM, SeedOssConfig, SeedOssForCausalLM

    if zoo == "first":
        return LlamaForCausalLM(
            LlamaConfig(
                hidden_size=256,
                intermediate_size=512,
                num_hidden_layers=3,
                num_attention_heads=8,
                num_key_value_heads=4,
                tie_word_embeddings=False,
                **_vocabulary(),
            )
        )
    return SeedOssForCausalLM(  # not a Qwen2, which it equals: `AutoTokenizer` reads that one's tokenizer its own way
        SeedOssConfig(
            hidden_size=192,
            intermediate_size=256,
            num_hidden_layers=4,
            num_attention_heads=6,
            num_key_value_heads=2,
            head_dim=32,
            attention_bias=True,
            attention_out_bias=False,
            attention_dropout=0.0,
            residual_dropout=0.0,
            tie_word_embeddings=True,
            **_vocabulary(),
        )
    )


def _vocabulary() -> dict[str, Any]:
    """Return the settings that follow from the tokenizer."""
    ids = vocabulary()
    return {
        "vocab_size": len(ids),
        "max_position_embeddings": MAX_POSITIONS,
        "pad_token_id": ids[PAD],
        "bos_token_id": ids[BOS],
        "eos_token_id": ids[EOS],
    }
