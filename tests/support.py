"""Small real checkpoints and helpers that tests share."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from impart_core.checkpoint.index import Checkpoint
from impart_core.checkpoint.writer import spec_of, write_checkpoint
from tests.faults import warm
from tests.faults.warm import Environment

VECTORS = Path(__file__).parent / "vectors"


def weight_files(checkpoint: Checkpoint) -> list[str]:
    """Return where the files lie that hold a checkpoint's tensors, sorted."""
    return sorted({str(info.file) for info in checkpoint.tensors.values()})


def calls_of(work: Callable[[], object]) -> int:
    """Return how many functions a piece of work calls: its cost, whatever the machine is busy with."""
    count = 0

    def counted(_frame: object, event: str, _argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(counted)
    try:
        work()
    finally:
        sys.setprofile(None)
    return count


def llama_shapes(
    layers: int = 2, hidden: int = 32, intermediate: int = 48, key_value: int = 16, vocab: int = 40
) -> dict[str, tuple[int, ...]]:
    """Return the tensor shapes of a Llama-architecture model with grouped-query attention."""
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (vocab, hidden),
        "model.norm.weight": (hidden,),
        "lm_head.weight": (vocab, hidden),
    }
    for layer in range(layers):
        prefix = f"model.layers.{layer}"
        shapes |= {
            f"{prefix}.self_attn.q_proj.weight": (hidden, hidden),
            f"{prefix}.self_attn.k_proj.weight": (key_value, hidden),
            f"{prefix}.self_attn.v_proj.weight": (key_value, hidden),
            f"{prefix}.self_attn.o_proj.weight": (hidden, hidden),
            f"{prefix}.mlp.gate_proj.weight": (intermediate, hidden),
            f"{prefix}.mlp.up_proj.weight": (intermediate, hidden),
            f"{prefix}.mlp.down_proj.weight": (hidden, intermediate),
            f"{prefix}.input_layernorm.weight": (hidden,),
            f"{prefix}.post_attention_layernorm.weight": (hidden,),
        }
    return shapes


def random_tensors(
    shapes: dict[str, tuple[int, ...]], seed: int = 0, dtype: torch.dtype = torch.bfloat16, scale: float = 0.05
) -> dict[str, torch.Tensor]:
    """Return seeded Gaussian tensors of these shapes."""
    generator = torch.Generator().manual_seed(seed)
    return {name: (torch.randn(shape, generator=generator) * scale).to(dtype) for name, shape in sorted(shapes.items())}


def decaying_delta(m: int, n: int, seed: int = 0, power: float = 0.8, scale: float = 0.02) -> torch.Tensor:
    """Return a float32 (m, n) matrix whose singular values fall as k^−power, as those of real deltas do."""
    generator = torch.Generator().manual_seed(seed)
    r = min(m, n)
    u, _ = torch.linalg.qr(torch.randn(m, r, generator=generator, dtype=torch.float64))
    v, _ = torch.linalg.qr(torch.randn(n, r, generator=generator, dtype=torch.float64))
    sigma = scale * (m * n) ** 0.5 * torch.arange(1, r + 1, dtype=torch.float64) ** -power
    return ((u * sigma) @ v.T).float()


def finetune(tensors: dict[str, torch.Tensor], seed: int = 1, scale: float = 0.02) -> dict[str, torch.Tensor]:
    """Return the tensors plus seeded deltas with falling spectra (matrices) or small noise (vectors)."""
    generator = torch.Generator().manual_seed(seed)
    tuned = {}
    for number, (name, tensor) in enumerate(sorted(tensors.items())):
        if tensor.dim() == 2:
            delta = decaying_delta(*tensor.shape, seed=seed * 1000 + number, scale=scale)
        else:
            delta = torch.randn(tensor.shape, generator=generator) * scale
        tuned[name] = (tensor.float() + delta).to(tensor.dtype)
    return tuned


def save_checkpoint(
    folder: Path,
    tensors: dict[str, torch.Tensor],
    config: dict[str, Any] | None = None,
    max_shard_bytes: int = 10**9,
) -> Path:
    """Save tensors as a checkpoint folder with a config."""
    folder.mkdir(parents=True, exist_ok=True)
    specs = [spec_of(name, tensor) for name, tensor in sorted(tensors.items())]
    write_checkpoint(folder, specs, tensors.__getitem__, max_shard_bytes)
    described = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], **(config or {})}
    (folder / "config.json").write_text(json.dumps(described))
    return folder


def make_pair(root: Path, **shapes: int) -> tuple[Path, Path]:
    """Save a base and a fine-tuned checkpoint of a small Llama-shaped model; return their folders."""
    base = random_tensors(llama_shapes(**shapes))
    return save_checkpoint(root / "base", base), save_checkpoint(root / "finetuned", finetune(base))


# Ctrl-C reaches the command even where the tests run in the background of a shell, which has it ignored.
_PROGRAM = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
from impart_flows.cli import main
main()
"""


def start_impart(
    *arguments: str, environment: Environment | None = None, inherited: Mapping[str, str] = os.environ
) -> subprocess.Popen[str]:
    """Start the command line in a process and session of its own, with standard output and error piped.

    Args:
        arguments: what follows `impart`.
        environment: variables to set on top of the inherited ones; those that are None are removed.
        inherited: by default this process's own; a copy where another thread may change those meanwhile.
    """
    merged = {**inherited, **(environment or {})}
    return subprocess.Popen(
        [sys.executable, "-c", _PROGRAM, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={name: value for name, value in merged.items() if value is not None},
        start_new_session=True,  # Ctrl-C for the child is not one for the tests
    )


def halt_when(
    condition: Callable[[], object],
    send: Callable[[signal.Signals], object],
    running: Callable[[], object],
    seconds: float = 240,
) -> None:
    """Stop a process once a condition holds, which is looked at while the process stands still.

    So the process cannot end between the look and what a test does next; SIGCONT lets it go on.

    Args:
        condition: what is waited for.
        send: sends the process a signal.
        running: whether it still runs.
        seconds: how long to wait.
    """
    deadline = time.monotonic() + seconds
    while True:
        send(signal.SIGSTOP)
        looked = time.monotonic()
        if condition():
            return
        took = time.monotonic() - looked
        send(signal.SIGCONT)
        assert running(), "it was over before it could be stopped; its work must be larger"
        assert time.monotonic() < deadline, "what is waited for did not come about"
        time.sleep(min(max(took, 0.02), 0.2))  # as long as it stood still, or it would hardly come forward


def run_impart(
    *arguments: str,
    environment: Environment | None = None,
    inherited: Mapping[str, str] = os.environ,
    timeout: float = 300,
) -> subprocess.CompletedProcess[str]:
    """Run the command line to its end and return exit code, standard output and standard error.

    It runs in a process of its own, which is forked from a warm one where this environment allows.
    """
    if warm.fits({**inherited, **(environment or {})}):
        command = warm.Command(warm.impart, arguments, environment or {}, inherited)
        try:
            return command.wait(timeout)
        finally:
            command.end()
    process = start_impart(*arguments, environment=environment, inherited=inherited)
    try:
        out, err = process.communicate(timeout=timeout)
    finally:
        process.kill()
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def run_json(*arguments: str, environment: Environment | None = None) -> dict[str, Any]:
    """Run the command line with `--json`, which must succeed, and return the one object that it prints."""
    done = run_impart(*arguments, "--json", environment=environment)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert isinstance(found, dict)
    return found


def run_together(*commands: Sequence[str], environment: Environment | None = None) -> list[dict[str, Any]]:
    """Run `--json` commands at the same time and return their objects."""
    with ThreadPoolExecutor(max_workers=2) as pool:
        return list(pool.map(lambda command: run_json(*command, environment=environment), commands))


def data_files(store: Path, *kinds: str) -> dict[str, str]:
    """Return the SHA-256 of data files (all but the manifests) of a local store, by path under it.

    Args:
        store: the store's folder.
        kinds: of which kinds of artifacts; every file, if it belongs to one or not, where none is given.
    """
    wanted = manifests(store, *kinds) if kinds else None
    return {
        str(path.relative_to(store)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(store.glob("artifacts/*/*"))
        if path.name != "manifest.json" and (wanted is None or path.parent.name in wanted)
    }


def whole_files(store: Path, *kinds: str) -> dict[str, str]:
    """Return the same without what killed processes were writing, which lies there until it is cleaned up."""
    return {path: digest for path, digest in data_files(store, *kinds).items() if not path.endswith(".tmp")}


def manifests(store: Path, *kinds: str) -> dict[str, dict[str, Any]]:
    """Return the manifests of a local store by artifact id, read as plain JSON: those of these kinds, or all."""
    found = {
        path.parent.name: json.loads(path.read_bytes()) for path in sorted(store.glob("artifacts/*/manifest.json"))
    }
    return {made: found[made] for made in found if not kinds or found[made]["content"]["kind"] in kinds}


def without_notes(stderr: str) -> str:
    """Return what a command said, but for the warning that a test's configuration says too little to be checked."""
    lines = stderr.splitlines(keepends=True)
    return "".join(line for line in lines if not line.startswith("warning: It was not checked that"))
