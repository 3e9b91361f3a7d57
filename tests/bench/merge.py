"""Merging: time over the bare work on tensors, memory by the number of models, and mergekit beside it."""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import torch
import yaml
from safetensors import safe_open
from safetensors.torch import save_file

import impart_core as impart
from impart_core.checkpoint.digest import tensor_digests
from impart_core.checkpoint.index import open_checkpoint
from tests.mergekit_env import mergekit_python
from tests.support import llama_shapes, random_tensors, save_checkpoint

SHAPES = {"layers": 4, "hidden": 1024, "intermediate": 2816, "key_value": 1024, "vocab": 2048}  # 56 M parameters
CONFIG = {
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_hidden_layers": 4,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "vocab_size": 2048,
    "torch_dtype": "bfloat16",
    "rms_norm_eps": 1e-6,
}
METHODS = {"task_arithmetic": {}, "ties": {"density": 0.4}}
RUNS = 5
THREADS = 2

Measured = dict[str, float]


def measure_merge() -> dict[str, Any]:
    """Return what merging takes over bare work on tensors, and (`merge_rss`) eight models beside two, in tensors."""
    with tempfile.TemporaryDirectory() as scratch:
        base, *models = save_models(Path(scratch), 8)
        figures: dict[str, Any] = {}
        for method, options in METHODS.items():
            pairs = []
            for _ in range(RUNS):
                bare = bare_run(method, base, models[:3], Path(scratch) / "bare.safetensors")
                pairs.append((own_run(method, options, base, models[:3], scratch), bare))
            figures |= _ratios(pairs, {"seconds": f"merge_overhead_{method}", "cpu": f"merge_cpu_overhead_{method}"})
            few, many = (own_run(method, options, base, models[:count], scratch)["rss"] for count in (2, 8))
            figures[f"merge_rss_{method}"] = (many - few) / largest_bytes(base)
        return figures


def measure_against_mergekit() -> dict[str, Any]:
    """Return time and peak memory over mergekit's, by method; also of a first run, which digests its models."""
    python, figures = mergekit_python(), {}
    with tempfile.TemporaryDirectory() as scratch:
        base, *models = save_models(Path(scratch), 3)
        for method, options in METHODS.items():
            runs = []
            for _ in range(RUNS):
                theirs = mergekit_run(python, method, options, base, models)
                own, first = (own_run(method, options, base, models, scratch, known=known) for known in (True, False))
                runs.append((own, first, theirs))
            names = {key: f"merge_{key}_over_mergekit_{method}" for key in ("seconds", "cpu", "rss")}
            figures |= _ratios([(own, theirs) for own, _, theirs in runs], names)
            figures |= _ratios([(first, theirs) for _, first, theirs in runs], _prefixed("first_", names))
            for which, one in (("", 0), ("first_", 1), ("mergekit_", 2)):
                figures[f"{which}merge_seconds_{method}"] = statistics.median(run[one]["seconds"] for run in runs)
                figures[f"{which}merge_cpu_{method}"] = statistics.median(run[one]["cpu"] for run in runs)
        return figures


def _prefixed(prefix: str, names: Mapping[str, str]) -> dict[str, str]:
    return {key: prefix + name for key, name in names.items()}


def _ratios(pairs: Sequence[tuple[Measured, Measured]], names: Mapping[str, str]) -> dict[str, Any]:
    """Return the median, and the least and the most, of the ratios of what was measured in turns."""
    figures: dict[str, Any] = {}
    for key, name in names.items():
        ratios = [a[key] / b[key] for a, b in pairs]
        figures[name] = statistics.median(ratios)
        figures[f"{name}_range"] = [round(min(ratios), 3), round(max(ratios), 3)]
    return figures


def save_models(folder: Path, count: int) -> list[Path]:
    """Save a base and so many fine-tunes; what is known of their content is remembered, as after any first use."""
    base = random_tensors(llama_shapes(**SHAPES))
    places = [save_checkpoint(folder / "base", base, CONFIG)]
    for seed in range(1, count + 1):
        noise = random_tensors(llama_shapes(**SHAPES), seed, scale=0.005)
        tuned = {name: (tensor.float() + noise[name].float()).bfloat16() for name, tensor in base.items()}
        places.append(save_checkpoint(folder / f"model{seed}", tuned, CONFIG))
    for place in places:
        tensor_digests(open_checkpoint(place))
    return places


def largest_bytes(place: Path) -> int:
    """Return the bytes of a checkpoint's largest tensor in float32."""
    return max(4 * info.numel for info in open_checkpoint(place).tensors.values())


def bare_run(method: str, base: Path, models: Sequence[Path], out: Path) -> Measured:
    """Return what reading, selecting, summing and writing take with torch alone, in a process of its own."""
    places = [str(place) for place in (out, base, *models)]
    return _measured([sys.executable, "-m", "tests.bench.merge", "--bare", method, *places])


def _bare_here(method: str, out: str, base: str, *models: str) -> None:
    torch.set_num_threads(THREADS)
    with _clock() as found:
        files = [safe_open(Path(place) / "model.safetensors", "pt") for place in (base, *models)]
        merge: Callable[..., torch.Tensor] = {"task_arithmetic": _bare_sum, "ties": _bare_ties}[method]
        merged = {}
        for name in files[0].keys():  # noqa: SIM118 - no mapping
            start, *tuned = (file.get_tensor(name).float() for file in files)
            merged[name] = start.add_(merge([tensor.sub_(start) for tensor in tuned])).bfloat16()
        save_file(merged, out, {"format": "pt"})
    print(json.dumps(found | {"rss": peak_bytes()}))


@contextmanager
def _clock() -> Iterator[Measured]:
    """Give what the block takes, once it has ended: seconds, and seconds of processors in all threads."""
    found: Measured = {}
    started, processors = perf_counter(), process_time()
    yield found
    found |= {"seconds": perf_counter() - started, "cpu": process_time() - processors}


def _bare_sum(deltas: list[torch.Tensor]) -> torch.Tensor:
    merged = deltas[0].mul_(0.3)
    for delta in deltas[1:]:
        merged.add_(delta, alpha=0.3)
    return merged


def _bare_ties(deltas: list[torch.Tensor]) -> torch.Tensor:
    for delta in deltas:
        flat = delta.abs().reshape(-1)
        kept = int(0.4 * flat.numel())
        threshold = flat.kthvalue(flat.numel() - kept + 1).values if kept else flat.max() + 1
        delta[delta.abs() < threshold] = 0
        delta.mul_(0.3)
    total = deltas[0].clone()
    for delta in deltas[1:]:
        total.add_(delta)
    up = total >= 0
    merged, divisor = torch.zeros_like(total), torch.zeros_like(total)
    for delta in deltas:
        agrees = torch.where(up, delta > 0, delta < 0)
        merged.add_(delta * agrees)
        divisor.add_(agrees, alpha=0.3)
    return merged.div_(divisor.masked_fill_(divisor == 0, 1))


def file_of(method: str, options: dict[str, float], base: Path, models: Sequence[Path]) -> dict[str, Any]:
    """Return the merge file, which is mergekit's too."""
    return {
        "merge_method": method,
        "base_model": str(base),
        "models": [{"model": str(model), "parameters": {"weight": 0.3, **options}} for model in models],
        "dtype": "bfloat16",
    }


def own_run(
    method: str, options: dict[str, float], base: Path, models: Sequence[Path], scratch: str, *, known: bool = True
) -> Measured:
    """Merge in a process of its own; return its seconds without the start of Python, and its peak memory in bytes.

    Args:
        method: the method.
        options: those of each model.
        base: the base.
        models: the models.
        scratch: a folder for what is written.
        known: whether the models' digests are remembered.
    """
    file = json.dumps(file_of(method, options, base, models))
    with tempfile.TemporaryDirectory() as empty:
        cache = {} if known else {"IMPART_CACHE": empty}
        return _measured([sys.executable, "-m", "tests.bench.merge", "--own", file, scratch], cache)


def mergekit_run(python: Path, method: str, options: dict[str, float], base: Path, models: Sequence[Path]) -> Measured:
    """Merge with mergekit; as `own_run`."""
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "merge.yaml"
        path.write_text(yaml.safe_dump(file_of(method, options, base, models)))
        return _measured([str(python), "-c", _MERGEKIT, str(path), str(Path(scratch) / "out")])


_MERGEKIT = """
import json, re, sys, time, yaml
from mergekit.config import MergeConfiguration
from mergekit.merge import MergeOptions, run_merge
config = MergeConfiguration.model_validate(yaml.safe_load(open(sys.argv[1])))
started, processors = time.perf_counter(), time.process_time()
run_merge(config, sys.argv[2], MergeOptions(copy_tokenizer=False, quiet=True, write_model_card=False))
seconds, cpu = time.perf_counter() - started, time.process_time() - processors
peak = re.search("VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]
print(json.dumps({"seconds": seconds, "cpu": cpu, "rss": 1024 * int(peak)}))
"""


# Threads of torch that wait for others do so without taking a processor from these, or from what else runs here.
_PASSIVE = {"OMP_WAIT_POLICY": "passive"}


def _measured(command: list[str], environment: Mapping[str, str] | None = None) -> Measured:
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env=os.environ | _PASSIVE | dict(environment or {})
    )
    found: Measured = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def _merge_here(file: str, scratch: str) -> None:
    merge = impart.merge  # what it imports is imported here, as mergekit's is before its clock starts
    with tempfile.TemporaryDirectory(dir=scratch) as folder, _clock() as found:
        merge(json.loads(file), out=Path(folder) / "out", store=Path(folder) / "store")
    print(json.dumps(found | {"rss": peak_bytes()}))


def peak_bytes() -> int:
    """Return the most memory that this process has held; what `getrusage` tells counts that of its parent, too."""
    found = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found is not None
    return 1024 * int(found[1])


def main() -> None:
    """Merge once, in a process that the bench starts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--own", nargs=2, metavar=("FILE", "SCRATCH"))
    parser.add_argument("--bare", nargs="+", metavar="METHOD OUT BASE MODEL")
    arguments = parser.parse_args()
    if arguments.bare:
        _bare_here(*arguments.bare)
    else:
        _merge_here(*arguments.own)


if __name__ == "__main__":
    main()
