"""Check that ``stream/`` stays shallow: ``python -m docs.floors``, part of ``make check``.

A module stands one floor above the highest module of stream that it imports, inside functions and
under TYPE_CHECKING too. Whoever follows an import never goes down more than ``MOST`` floors, and
never in a circle.
"""

import sys
from graphlib import TopologicalSorter

from grimp import build_graph

PACKAGE, MOST = "stream", 8


def tallest(package: str) -> list[str]:
    """Return the longest chain of imports, lowest floor first. Raises CycleError on a circle."""
    graph = build_graph(package, cache_dir=None)
    below = {m: sorted(graph.find_modules_directly_imported_by(m)) for m in sorted(graph.modules)}
    chains: dict[str, list[str]] = {}
    for module in TopologicalSorter(below).static_order():
        highest = max((chains[other] for other in below[module]), key=len, default=[])
        chains[module] = [*highest, module]
    return max(chains.values(), key=len)


if __name__ == "__main__":
    floors = tallest(PACKAGE)
    print(f"{PACKAGE} has {len(floors)} floors: {' <- '.join(floors)}")
    sys.exit(f"expected at most {MOST} floors" if len(floors) > MOST else 0)
