"""Catalogues that were never published, for tests of what is drawn from them."""

from hypothesis import strategies as st

from impart_core.store.catalog import CatalogEntry

BASE, TUNED = "b" * 64, "f" * 64


def number(n: int) -> str:
    """Return an artifact id."""
    return f"{n:064x}"


def deltas(count: int = 2, blocks: int = 3) -> list[CatalogEntry]:
    """Return deltas (ids 1…) of one pair of checkpoints with blocks (ids d·100…) on shared factors (ids 9000…)."""
    found = [CatalogEntry(id=number(9000 + k), kind="factors", summary=f"layers.{k}", bytes=50) for k in range(blocks)]
    for d in range(1, count + 1):
        parts = [
            CatalogEntry(
                id=number(100 * d + k), kind="block", summary=f"layers.{k}", bytes=10, parents=(number(9000 + k),)
            )
            for k in range(blocks)
        ]
        delta = CatalogEntry(
            id=number(d),
            kind="delta",
            summary=f"impart at CR {d}",
            bytes=500,
            started=f"2026-01-0{d}",
            parents=tuple(part.id for part in parts),
            checkpoints={"base": BASE, "finetuned": TUNED},
        )
        found += [*parts, delta]
    return found


KINDS = st.sampled_from(["delta", "block", "factors", "evaluation", "damaged"])
IDS = st.integers(0, 12).map(number)


@st.composite
def catalogues(draw: st.DrawFn) -> list[CatalogEntry]:
    """Draw any catalogue, circles, self-references and missing parents included, its texts from anywhere."""
    return [
        CatalogEntry(
            id=one,
            kind=draw(KINDS),
            summary=draw(st.text(max_size=30)),
            bytes=draw(st.integers(0, 10**12)),
            parents=tuple(draw(st.lists(IDS, max_size=4))),
            checkpoints=draw(st.dictionaries(st.sampled_from(["base", "finetuned", "checkpoint"]), IDS, max_size=2)),
        )
        for one in draw(st.lists(IDS, min_size=1, max_size=10, unique=True))
    ]
