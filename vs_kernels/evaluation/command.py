"""The command ``vs-kernels evaluate``."""

import argparse
import sys
from pathlib import Path
from typing import Any

from vs_kernels.arguments import budget

BUDGETS = [1.0, 0.3, 0.2, 0.1]


def add_to(commands: Any) -> None:
    """Add the command to the sub-commands of a parser."""
    parser = commands.add_parser(
        "evaluate",
        help="accuracy and prefill time of a model against budget, on your own questions",
        description='Ask a model the questions of a JSONL file of {"image": path or paths, "question": text, "answer": '
        "text or texts} at several budgets; write answers, results.json and accuracy.png. Run again to go on.",
    )
    parser.add_argument("data", type=Path, help="JSONL file; paths of images start at its directory")
    parser.add_argument("--model", required=True, help="directory or hub id of a model and its processor")
    parser.add_argument(
        "--selector",
        required=True,
        help="directory, file or hub id of a trained selector, or random, uniform_grid, token_norm, divprune, dart",
    )
    parser.add_argument("--budgets", type=budget, nargs="+", default=BUDGETS, help="default: 1.0 0.3 0.2 0.1")
    parser.add_argument("--pool", choices=("image", "call"), default="image", help="what competes for a budget")
    parser.add_argument("--out", type=Path, default=Path("out/evaluate"), help="directory of answers and results")
    parser.add_argument("--max-new-tokens", type=int, default=32, metavar="N")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N questions")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="auto", choices=("auto", "float32", "bfloat16", "float16"))
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    try:
        from vs_kernels.evaluation.run import CHART, RESULTS, evaluate

        summary = evaluate(
            options.data,
            options.model,
            options.selector,
            options.budgets,
            options.out,
            pool=options.pool,
            max_new_tokens=options.max_new_tokens,
            limit=options.limit,
            device=options.device,
            dtype=options.dtype,
        )
    except ImportError as error:
        print(f"vs-kernels evaluate: {error}; pip install 'vs_kernels[evaluate]'", file=sys.stderr)
        return 2
    except (OSError, ValueError, TypeError) as error:
        print(f"vs-kernels evaluate: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"vs-kernels evaluate: interrupted; the same command goes on from {options.out}", file=sys.stderr)
        return 130
    print(f"{'budget':>8}{'exact match':>13}{'ANLS':>8}{'visual tokens':>15}{'prefill':>12}{'questions':>11}")
    for row in summary["budgets"]:
        scores = f"{row['exact_match']:>13.3f}{row['anls']:>8.3f}{row['visual_tokens']:>15.1f}"
        print(f"{row['budget']:>8}{scores}{row['prefill_seconds'] * 1e3:>9.1f} ms{row['questions']:>11}")
    print(f"{options.out / RESULTS}, {options.out / CHART}")
    return 0
