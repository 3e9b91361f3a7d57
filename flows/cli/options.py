"""Every flag that verbs share, described once: by name in signatures, by field of a request model in `FLAGS`."""

from typing import Annotated, Any

import typer

_PLACES = "Folder, Hub id (org/name@revision) or fsspec URL (s3://…)."
ARTIFACT = "An artifact: its name, its id, or the id's first six or more digits."
SEED_OF_REF = typer.Option(show_default="that of REF", help="Seed of the masks.")
BASE_MOVED = typer.Option(help="The base, where it has moved since REF was made.")
FINETUNED_MOVED = typer.Option(help="The fine-tuned checkpoint, where it has moved.")
BASE_OF_DELTA = typer.Option("--base", help=f"The base that it was compressed with. {_PLACES}")
_STORE = typer.Option(
    "--store", show_default="IMPART_STORE, else your data folder", help="Where artifacts live: folder or URL."
)

Ref = Annotated[str, typer.Argument(help=ARTIFACT)]
StoreOption = Annotated[str | None, _STORE]
TinyZoo = Annotated[
    str, typer.Option(help="Which zoo: first (a Llama), second (a Seed-OSS), flat (first, flat deltas).")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")]

FLAGS: dict[str, Any] = {
    "base": typer.Argument(help="The base: folder, Hub id (org/name@revision) or URL (s3://…)."),
    "finetuned": typer.Argument(help="The checkpoint fine-tuned from it, likewise."),
    "stages": typer.Argument(metavar="FILE", help="The merge file (YAML)."),
    "ref": typer.Argument(help=ARTIFACT),
    "refs": typer.Argument(metavar="REF", help="Artifacts: names, ids, or the beginnings of ids."),
    "file": typer.Argument(help="The search file (YAML)."),
    "model": typer.Argument(help="A model: folder, Hub id or URL; or a delta, by name or id."),
    "tasks": typer.Option(help="lm-eval tasks or YAML files, with commas; built in: tinyzoo_math, _code, _chat."),
    "split": typer.Option(help="validation or test."),
    "limit": typer.Option(help="Only this many items of each task."),
    "include_path": typer.Option("--include-path", metavar="FOLDER", help="Folder of more tasks; repeat for more."),
    "metadata": typer.Option("--task-args", metavar="K=V,…", help="Arguments that tasks take."),
    "num_fewshot": typer.Option("--num-fewshot", help="Examples before each item."),
    "batch_size": typer.Option("--batch-size", metavar="N|auto", help="Sequences a forward pass."),
    "apply_chat_template": typer.Option("--apply-chat-template", help="Put items into the chat template."),
    "system_instruction": typer.Option("--system-instruction", help="Text before everything else."),
    "gen_kwargs": typer.Option("--gen-kwargs", metavar="K=V,…", help="Settings of generation."),
    "model_args": typer.Option("--model-args", metavar="K=V,…", help="Settings of lm-eval's model."),
    "log_samples": typer.Option("--log-samples", help="Keep every item, answer and score."),
    "run_code": typer.Option("--run-code", help="Let code tasks run what it writes, in a sandbox."),
    "run_code_without_sandbox": typer.Option("--run-code-without-sandbox", help="Let them run it without one."),
    "out": typer.Option(help="The folder to make."),
    "overwrite": typer.Option(help="Replace OUT when it holds files."),
    "with_code": typer.Option(help="Write the Python files that the delta brings, too."),
    "max_shard_bytes": typer.Option(help="Largest weights file, in bytes."),
    "to": typer.Option("--to", help="The store to copy to. Folder or fsspec URL."),
    "source_store": typer.Option("--from", help="The store to copy from. Folder or fsspec URL."),
    "factors": typer.Option("--factors", help="Copy the decompositions of blocks as well."),
    "evaluations": typer.Option(help="Copy the evaluations that measured a delta as well."),
    "move_names": typer.Option("--move-names", help="Move names that point elsewhere in the store that is written."),
    "verify_cache": typer.Option("--verify-cache", help="Read what is there, too, and replace what differs."),
    "repo": typer.Option("--repo", help="The Hub repository (org/name)."),
    "upload": typer.Option("--upload", help="Upload the folder; without this, no network is used."),
    "private": typer.Option("--private", help="Create the repository as a private one."),
    "method": typer.Option(help="How deltas are coded; see `impart methods`."),
    "cr": typer.Option("--cr", help="Compression ratio of projections, against 16 bits."),
    "options": typer.Option(
        "--option", metavar="KEY=VALUE", help="A setting, as in `impart methods NAME`; repeat for more."
    ),
    "seed": typer.Option(help="Seed of the masks."),
    "accounting": typer.Option(help="bytes: count all; paper: kept entries."),
    "embeddings": typer.Option(help="keep (16 bits), a method, or auto (fewest)."),
    "embeddings_cr": typer.Option("--embeddings-cr", show_default="--cr", help="Their ratio, with a method."),
    "factors_for": typer.Option(show_default="4, at usual settings", help="Lowest ratio that decompositions serve."),
    "keep_factors": typer.Option(show_default=False, help="Publish decompositions, for other requests."),
    "store": _STORE,
    "results_store": typer.Option(help="Write metrics here, and only read STORE. Folder or URL."),
    "over": typer.Option(metavar="REF", help="Lossy delta to which lossless stores the residual."),
    "name": typer.Option(help="Name for the artifact (wizardmath-13b@prod)."),
    "source": typer.Option(
        "--calibration",
        help="Text or JSONL file, hub:org/name[:config[:split[:field]]], or tinyzoo:math, code or chat.",
    ),
    "sequences": typer.Option("--calibration-sequences", show_default="128", help="Sequences of it that are run."),
    "length": typer.Option("--calibration-length", show_default="2048, or the model's most", help="Tokens of each."),
    "device": typer.Option(help="auto, cpu, cuda or cuda:N."),
    "runner": typer.Option(help="threads, or a ray or dask cluster."),
    "cluster": typer.Option(metavar="ADDRESS", show_default="IMPART_CLUSTER", help="Where it runs."),
    "workers": typer.Option(show_default="one for each core", help="Blocks worked on at once."),
    "quality": typer.Option(help="Read and code some layers, and foretell the share kept."),
    "reread": typer.Option("--verify-cache", help="Read what is reused; remake what differs."),
    "imported": typer.Option("--trust-imported", help="Reuse what was made elsewhere and imported."),
    "refresh_from": typer.Option(
        "--refresh-from",
        metavar="STAGE",
        help="Reuse nothing from here on: digest, decompose, sparsify, gather.",
    ),
}
