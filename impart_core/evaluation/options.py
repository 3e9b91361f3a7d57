"""How a model is measured, beside tasks, split and limit: part of an evaluation's id where it differs from usual."""

import difflib
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, field_validator

from impart_core.base.settings import Frozen

BATCH_SIZE = 64
# Of lm-eval's `hf` model. Others name another model than the one that is measured, or run code from its folder.
MODEL_ARGS = (
    "add_bos_token",
    "attn_implementation",
    "chat_template_args",
    "dtype",
    "enable_thinking",
    "logits_cache",
    "max_length",
    "mixed_precision_dtype",
    "parallelize",
    "prefix_token_id",
    "softmax_dtype",
    "think_end_token",
    "truncation",
)


class MeasureOptions(Frozen):
    """What lm-evaluation-harness is told, in its own words."""

    include_path: tuple[str, ...] = Field(default=(), description="folders of more tasks")
    metadata: dict[str, Any] = Field(default_factory=dict, description="arguments that tasks take")
    num_fewshot: int | None = Field(default=None, ge=0, description="examples before each item")
    batch_size: int | Literal["auto"] = Field(default=BATCH_SIZE, description="sequences a forward pass, or auto")
    apply_chat_template: bool = Field(default=False, description="put items into the model's chat template")
    system_instruction: str | None = Field(default=None, description="text before everything else")
    gen_kwargs: dict[str, Any] = Field(default_factory=dict, description="settings of generation")
    model_args: dict[str, Any] = Field(default_factory=dict, description="settings of lm-eval's model")
    log_samples: bool = Field(default=False, description="keep each item, answer and score")
    seed: int = Field(default=0, ge=0, lt=1 << 32, description="seed of all draws")

    @field_validator("batch_size")
    @classmethod
    def _at_least_one(cls, value: int | str) -> int | str:
        if isinstance(value, int) and value < 1:
            raise ValueError("it must be at least 1, or auto")
        return value

    @field_validator("model_args")
    @classmethod
    def _known(cls, value: Mapping[str, Any]) -> Mapping[str, Any]:
        for name in value:
            if name not in MODEL_ARGS:
                near = difflib.get_close_matches(name, MODEL_ARGS, n=1)
                guess = f" did you mean {near[0]!r}?" if near else ""
                raise ValueError(f"{name!r} cannot be set:{guess} known are {', '.join(MODEL_ARGS)}")
        return value

    def of_recipe(self) -> dict[str, Any]:
        """Return what is part of an evaluation's id beside the seed: all that is not as usual.

        What lies at `include_path` is told by the tasks' digests.
        """
        return self.model_dump(mode="json", exclude={"include_path", "seed"}, exclude_defaults=True)
