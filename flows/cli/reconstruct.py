"""The verb `reconstruct`: base + delta → a model folder."""

from impart_core.engine.reconstruct import Reconstruction
from impart_core.engine.reconstruct import reconstruct as rebuild
from impart_core.engine.requests import ReconstructRequest
from impart_flows.cli import options as opt
from impart_flows.cli.flags import from_flags
from impart_flows.cli.output import human_bytes, human_seconds, progress, say, shortened, show


@from_flags(ReconstructRequest, base=opt.BASE_OF_DELTA)
def reconstruct(request: ReconstructRequest, json: opt.JsonOption = False) -> None:
    """Rebuild a fine-tuned checkpoint from its base and an artifact, as an ordinary Hugging Face folder.

    Example: impart reconstruct math@cr16 --base BASE --out rebuilt
    """
    with progress(quiet=json) as reporter:
        made = rebuild(request, lambda done, total: reporter("reconstruct", done, total, ""))
    show(made, json, _print_report)


def _print_report(made: Reconstruction) -> None:
    for one in made.retried:
        say(f"retried {one.what}, {one.times}×: {one.why}")
    if made.code:
        _tell_of_code(made.code, made.code_written)
    if made.code_elsewhere:
        say(f"code    of {shortened(made.code_elsewhere)} on the Hub runs where it is loaded with trust_remote_code")
    if made.lossless:
        say("lossless: every tensor has the fine-tune's bytes, by its digest")
    say(f"{made.out}  {human_bytes(made.bytes)} of weights in {human_seconds(made.seconds)}")


def _tell_of_code(code: tuple[str, ...], written: bool) -> None:
    """Say which code the delta brings: it runs where somebody loads the model with `trust_remote_code`."""
    names = shortened(code)
    if written:
        say(f"code    {names}: written, as the delta brings it; read it before you trust it")
    else:
        say(f"code    {names}: left out, as only the delta brings it; --with-code writes it")
