"""``python -m bench SUITE [options]`` runs a suite; without arguments it lists them."""

import ast
import importlib
import os
import sys
from pathlib import Path

SUITES = Path(__file__).parent / "suites"


def suites() -> dict[str, str]:
    """Name and one-line description of every suite, read without importing any of them."""
    files = [path for path in sorted(SUITES.glob("*.py")) if path.stem != "__init__"]
    return {path.stem: (ast.get_docstring(ast.parse(path.read_text())) or "").partition("\n")[0] for path in files}


def main(argv: list[str]) -> int:
    known = suites()
    if not argv or argv[0] in ("-h", "--help"):
        print("usage: python -m bench SUITE [options]    (python -m bench SUITE --help for its options)\n")
        for name, description in known.items():
            print(f"  {name:10} {description}")
        return 0
    suite, *options = argv
    if suite not in known:
        print(f"python -m bench: no suite {suite!r}, expected one of: {', '.join(known)}", file=sys.stderr)
        return 2
    # By default threads that wait for each other spin. On a machine with other work they then burn the time slice in
    # which the thread they wait for could run, and their CPU time counts as this process's.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    return importlib.import_module(f"bench.suites.{suite}").main(options)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
