"""Run by mergekit's interpreter: reads cases from a safetensors file and what to do with them, writes its results.

Usage: python mergekit_calls.py CASES.safetensors RESULTS.safetensors. The header's `calls` is a JSON list; each call
has `result`, `method`, `tensors` (names), `base_index`, `parameters`, and `seeds`: with some, the mean and variance of
the results over so many seeds are written instead.
"""

import json
import sys

import torch
from mergekit.merge_methods import merge_tensors
from safetensors import safe_open
from safetensors.torch import save_file


def main(source: str, target: str) -> None:
    with safe_open(source, "pt") as file:
        calls = json.loads(file.metadata()["calls"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    results = {}
    for call in calls:
        given = [tensors[name] for name in call["tensors"]]

        def run(call=call, given=given):
            return merge_tensors(
                [one.clone() for one in given],
                call["method"],
                parameters=call["parameters"],
                base_index=call["base_index"],
            )

        if not call["seeds"]:
            results[call["result"]] = run().contiguous()
            continue
        sampled = []
        for seed in range(call["seeds"]):
            torch.manual_seed(seed)
            sampled.append(run().double())
        stacked = torch.stack(sampled)
        results[f"{call['result']}.mean"] = stacked.mean(dim=0)
        results[f"{call['result']}.var"] = stacked.var(dim=0)
    save_file(results, target)


main(*sys.argv[1:])
