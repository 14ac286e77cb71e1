"""``python -m bench NAME [options]`` runs a suite or a command; without arguments it lists them."""

import ast
import importlib
import os
import sys
from pathlib import Path

HERE = Path(__file__).parent


def described(folder: str) -> dict[str, str]:
    """Name and one-line description of every module in ``suites`` or ``commands``, read without importing any."""
    files = [path for path in sorted((HERE / folder).glob("*.py")) if path.stem != "__init__"]
    return {path.stem: (ast.get_docstring(ast.parse(path.read_text())) or "").partition("\n")[0] for path in files}


def main(argv: list[str]) -> int:
    folders = {folder: described(folder) for folder in ("suites", "commands")}
    if not argv or argv[0] in ("-h", "--help"):
        print("usage: python -m bench SUITE [options]    (python -m bench SUITE --help for its options)")
        print("       python -m bench SUITE --processes N [options]    in N processes, as compare wants them")
        for folder, known in folders.items():
            print(f"\n{folder}")
            for name, description in known.items():
                print(f"  {name:10} {description}")
        return 0
    name, *options = argv
    folder = next((folder for folder, known in folders.items() if name in known), None)
    if folder is None:
        expected = ", ".join(name for known in folders.values() for name in known)
        print(f"python -m bench: no suite {name!r}, expected one of: {expected}", file=sys.stderr)
        return 2
    # By default threads that wait for each other spin. On a machine with other work they then burn the time slice in
    # which the thread they wait for could run, and their CPU time counts as this process's.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # torch's profiler announces itself otherwise
    if folder == "suites":
        from bench import processes

        if processes.wanted(options):
            return processes.main(name, options)
    return importlib.import_module(f"bench.{folder}.{name}").main(options)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
