"""Options that several verbs share, each described once."""

from pathlib import Path
from typing import Annotated

import typer

_PLACES = "Folder, Hub id (org/name@revision) or fsspec URL (s3://…)"
Base = Annotated[str, typer.Argument(help=f"The base checkpoint. {_PLACES}.", show_default=False)]
Finetuned = Annotated[str, typer.Argument(help=f"The checkpoint fine-tuned from it. {_PLACES}.", show_default=False)]
BaseOption = Annotated[
    str, typer.Option("--base", help=f"The base that it was compressed with. {_PLACES}.", show_default=False)
]
Ref = Annotated[
    str,
    typer.Argument(
        help="An artifact: its name, its id, or the first six or more digits of its id.", show_default=False
    ),
]
OptionalRef = Annotated[
    str | None,
    typer.Argument(
        help="An artifact: its name, its id, or the first six or more digits of its id.", show_default=False
    ),
]
StoreOption = Annotated[
    str | None,
    typer.Option(
        "--store",
        help="Where artifacts live: a folder or an fsspec URL (s3://…). "
        "[default: IMPART_STORE, else a folder in your data directory]",
        show_default=False,
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Ratio = Annotated[
    float,
    typer.Option("--cr", help="Compression ratio of the projections against their 16-bit size.", show_default=False),
]
# The help of these two ends with what the registry knows; see `flows.cli.method`.
Method = Annotated[str, typer.Option(help="How deltas are sparsified.")]
MethodOption = Annotated[
    list[str] | None,
    typer.Option(
        "--option",
        metavar="KEY=VALUE",
        help="A setting of the method, such as rescale=false; repeat it for more. VALUE is JSON, else text.",
        show_default=False,
    ),
]
Beta = Annotated[
    float | None, typer.Option(help="Pre-prune ratio β of method impart: --option beta=…", show_default=False)
]
Exponent = Annotated[
    float | None, typer.Option("--c", help="Exponent C of method impart: --option c=…", show_default=False)
]
Seed = Annotated[int, typer.Option(help="Seed of the masks.")]
AccountingOption = Annotated[
    str,
    typer.Option(
        "--accounting",
        help="bytes: the ratio holds for stored bytes. paper: the paper's count of kept entries.",
    ),
]
Embeddings = Annotated[
    str,
    typer.Option(
        help="Embeddings and head: keep (16 bits, or just the rows that changed), a method's name, "
        "or auto (what takes the fewest bytes)."
    ),
]
EmbeddingsRatio = Annotated[
    float | None,
    typer.Option("--embeddings-cr", help="Their ratio, where a method codes them. [default: --cr]", show_default=False),
]
FactorsFor = Annotated[
    float | None,
    typer.Option(
        "--factors-for",
        help="Lowest ratio that the decompositions must serve. They are made once and reused by every request that "
        "they serve: by default all from CR 4, β 0.6 and C 1 on. A higher value is quicker and stores less.",
        show_default=False,
    ),
]
ArtifactName = Annotated[
    str | None, typer.Option("--name", help="Name for the artifact (wizardmath-13b@prod).", show_default=False)
]
Calibration = Annotated[
    str | None,
    typer.Option(
        help="Calibration text for methods that quantise: a text or JSONL file, hub:org/name[:config[:split[:field]]], "
        "or tinyzoo:math, code or chat.",
        show_default=False,
    ),
]
CalibrationSequences = Annotated[
    int | None, typer.Option(help="How many sequences of it are run. [default: 128]", show_default=False)
]
CalibrationLength = Annotated[
    int | None,
    typer.Option(help="Tokens of each. [default: 2048, or as many as the model takes]", show_default=False),
]
VerifyCache = Annotated[
    bool,
    typer.Option("--verify-cache", help="Read what is to be reused, too, and make anew what has another digest."),
]
Refresh = Annotated[bool, typer.Option("--refresh", help="Reuse nothing: compute everything again.")]
RefreshFrom = Annotated[
    str | None,
    typer.Option(
        "--refresh-from",
        metavar="STAGE",
        help="Reuse only what comes before a stage: digest, decompose, sparsify or gather.",
        show_default=False,
    ),
]
Workers = Annotated[
    int | None,
    typer.Option(help="Blocks worked on at once. [default: one for each core]", show_default=False),
]
Out = Annotated[Path, typer.Option(help="The folder to make.", show_default=False)]
