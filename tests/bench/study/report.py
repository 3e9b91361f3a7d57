"""`make study-report`: tables and curves of the study from its JSON file, put into docs/results.md.

What stands there between the marks is made by this command alone; a test holds it against docs/study.json.
"""

import argparse
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

from impart_core.base.errors import ConfigError
from impart_core.base.files import write_atomically
from tests.bench.arguments import require_place, write_figures
from tests.bench.study.grid import ROWS
from tests.bench.study.tables import all_tables, curve, read_study, zoos_of

BEGIN, END = "<!-- study: made by make study-report -->", "<!-- /study -->"
FIGURES, PICTURE = "study.json", "study.svg"


def main(arguments: list[str] | None = None) -> None:
    """Write tables and curves."""
    parser = argparse.ArgumentParser(prog="make study-report", description=__doc__)
    parser.add_argument("study", type=Path, nargs="?", default=Path(FIGURES), help="what `make study` wrote")
    parser.add_argument("--docs", type=Path, default=Path("docs"), help="folder of results.md")
    given = parser.parse_args(arguments)
    study = read_study(parser, given.study)
    if not any(study["cells"].values()):
        parser.error(f"{given.study} has no figures, or is not there. Make it by `make study`, or name another file.")
    page = given.docs / "results.md"
    require_place(parser, page)
    try:
        written = with_tables(page.read_text(), study).encode()
    except (OSError, ConfigError) as error:
        parser.error(f"{page} cannot get the tables: {error}")
    picture = draw(study)  # all is made before anything is written
    write_figures(given.docs / FIGURES, study)
    write_atomically(page, written)
    write_atomically(given.docs / PICTURE, picture)


def with_tables(page: str, study: Mapping[str, Any]) -> str:
    """Return a page with the tables of a study between its marks, in the place of what stood there."""
    before, mark, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (mark and end):
        raise ConfigError(f"The page has no {BEGIN} and {END}, between which the tables go.")
    return f"{before}{BEGIN}\n\n{all_tables(study)}\n\n{END}{after}"


def draw(study: Mapping[str, Any]) -> bytes:
    """Return a picture (SVG) of the share kept against bytes on disk, a panel for each zoo."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = zoos_of(study)
    # The same figures give the same bytes: neither a date nor random ids in them.
    with matplotlib.rc_context({"svg.hashsalt": "impart"}):
        figure, axes = plt.subplots(1, len(names), figsize=(6 * len(names), 4.5), squeeze=False, sharey=True)
        for panel, name in zip(axes[0], names, strict=True):
            for number, row in enumerate(ROWS):
                points = [] if ROWS[row].ablation else sorted(curve(study, name, row))
                if points:
                    size, share = zip(*points, strict=True)
                    panel.semilogx(size, share, marker="o", markersize=4, color=f"C{number % 10}", label=row)
            panel.set(title=f"{name} zoo", xlabel="bytes on disk, mean over tasks", ylim=(0, 1.03))
            panel.grid(alpha=0.3)
        axes[0][0].set_ylabel("share of the loss gap kept")
        axes[0][0].legend(fontsize=8)
        figure.tight_layout()
        written = BytesIO()
        figure.savefig(written, format="svg", metadata={"Date": None})
        plt.close(figure)
    return written.getvalue()


if __name__ == "__main__":
    main()
