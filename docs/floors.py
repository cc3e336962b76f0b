"""Check that ``stream/`` stays shallow: ``python -m docs.floors``, part of ``make check``.

A module stands one floor above the highest module of stream that it imports, inside functions and
under TYPE_CHECKING too. Whoever follows an import never goes down more than ``MOST`` floors, and
never in a circle.
"""

import ast
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE, MOST = "stream", 8


def imports_of(package: str) -> dict[str, set[str]]:
    """Return, for each module of a package, those of the package that it imports."""
    paths = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in (ROOT / package).rglob("*.py")
    }
    imports: dict[str, set[str]] = {}
    for module, path in paths.items():
        found: set[str] = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {name.name for name in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path} has a relative import"
                names = {f"{node.module}.{name.name}" for name in node.names}
                found |= (names & paths.keys()) or {str(node.module)}
        imports[module] = found & paths.keys() - {module}
    return imports


def tallest(imports: Mapping[str, set[str]]) -> list[str]:
    """Return the longest chain of imports, lowest floor first. Raises ValueError on a circle."""
    chains: dict[str, list[str]] = {}

    def chain(module: str, above: tuple[str, ...]) -> list[str]:
        if module in above:
            raise ValueError(f"circle: {' -> '.join((*above[above.index(module) :], module))}")
        if module not in chains:
            below = (chain(other, (*above, module)) for other in sorted(imports[module]))
            chains[module] = [*max(below, key=len, default=[]), module]
        return chains[module]

    return max((chain(module, ()) for module in sorted(imports)), key=len)


if __name__ == "__main__":
    floors = tallest(imports_of(PACKAGE))
    print(f"{PACKAGE} has {len(floors)} floors: {' <- '.join(floors)}")
    sys.exit(f"expected at most {MOST} floors" if len(floors) > MOST else 0)
