"""Loading: base + delta straight into memory, without a checkpoint on disk."""

from typing import Any

import torch

from impart_core.apply.reader import open_reader, require_base
from impart_core.artifacts.delta import Delta
from impart_core.base.errors import CheckpointError
from impart_core.base.files import scratch_folder
from impart_core.base.numerics import one_thread_per_kernel
from impart_core.base.parallel import making_a_model
from impart_core.checkpoint.index import Checkpoint


def load_state_dict(delta: Delta, base: Checkpoint) -> dict[str, torch.Tensor]:
    """Return the tensors of the fine-tuned checkpoint by name, rebuilt one by one, in its dtypes, on the CPU.

    They are those that `reconstruct` writes, bit for bit.

    Raises:
        WrongBaseError: the base is another one.
        CorruptArtifactError: a file of the delta is damaged.
    """
    require_base(delta, base)
    with open_reader(delta) as reader, one_thread_per_kernel():
        return {name: reader.rebuild(name, base) for name in reader.headers}


def load_model(delta: Delta, base: Checkpoint, device: torch.device) -> Any:
    """Return the fine-tuned model as one of transformers, in evaluation mode.

    Memory holds its weights once, and one tensor in float32. No code from the checkpoint is run.

    Args:
        delta: the published delta.
        base: the checkpoint that it was made against.
        device: where the model goes.

    Raises:
        WrongBaseError: the base is another one.
        CorruptArtifactError: a file of the delta is damaged.
        CheckpointError: transformers does not know the architecture, or cannot make the model.
    """
    import transformers

    require_base(delta, base)
    with open_reader(delta) as reader, scratch_folder() as folder, one_thread_per_kernel():
        reader.write_carried(base, folder)
        try:
            config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
            architecture = next(iter(config.architectures or ()), "")
            model_class = getattr(transformers, architecture, transformers.AutoModelForCausalLM)
        except (OSError, ValueError, KeyError) as error:
            raise CheckpointError(f"The model of {delta.manifest.id[:12]} cannot be made: {error}") from error
        state = {name: reader.rebuild(name, base) for name in reader.headers}
        with making_a_model():
            model = model_class.from_pretrained(
                None, config=config, state_dict=state, dtype="auto", trust_remote_code=False, cache_dir=folder
            )
        return model.eval().to(device)
