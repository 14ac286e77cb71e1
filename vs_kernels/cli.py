"""The command ``vs-kernels``: what is installed, and whether it computes the right thing here."""

import argparse
import contextlib
import platform
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch

import vs_kernels
from vs_kernels import library, verify
from vs_kernels.evaluation import command
from vs_kernels.ops.checks import TOKEN_DTYPES


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="vs-kernels", description="Score, select and gather visual tokens.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    info = commands.add_parser("info", help="what is built, and which kernel serves which device")
    info.set_defaults(run=_info)
    verify = commands.add_parser("verify", help="every operator on every device of this machine against float64")
    verify.set_defaults(run=_verify)
    verify.add_argument(
        "--device",
        action="append",
        choices=devices(),
        help="only this device; may be repeated",
    )
    tune = commands.add_parser("tune", help="measure tile sizes of the Triton kernels on this machine's GPU")
    tune.set_defaults(run=_tune)
    tune.add_argument("--width", type=int, default=3584, metavar="D", help="columns of a token (default: 3584)")
    tune.add_argument("--length", type=int, default=4096, metavar="N", help="number of tokens (default: 4096)")
    tune.add_argument("--out", type=Path, metavar="FILE", help="default: where the launchers look, VS_KERNELS_TILES")
    train = commands.add_parser("train", help="a selector, as a YAML file says")
    train.set_defaults(run=_train)
    train.add_argument("config", metavar="CONFIG.yaml", help="see examples/train.yaml")
    train.add_argument("--resume", action="store_true", help="go on from the last checkpoint in the output directory")
    command.add_to(commands)
    options = parser.parse_args(arguments)
    return options.run(options)


def devices() -> list[str]:
    """The CPU and, where there is one, the accelerator of this torch."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return ["cpu", *([accelerator.type] if accelerator else [])]


def _info(_: argparse.Namespace) -> int:
    print(f"vs_kernels    {vs_kernels.__version__}")
    print(f"torch         {torch.__version__}")
    print(f"python        {platform.python_version()} on {platform.machine()}")
    print(f"CPU library   {library.CPU_PROBLEM or f'loaded, instruction set {library.cpu_isa()}'}")
    print(f"CUDA library  {library.CUDA_PROBLEM or 'loaded, CUDA {}.{}'.format(*library.cuda_version())}")
    print(f"accelerator   {', '.join(devices()[1:]) or 'none found by torch'}")
    print()
    print(f"{'operator':<34}" + "".join(f"{device:<10}" for device in devices()))
    for name in (*verify.CALLS, *library.CUDA_OPERATORS):
        print(f"{name:<34}" + "".join(f"{library.kernel_of(name, device):<10}" for device in devices()))
    print()
    print("C++: compiled kernel. Triton: compiled at its first call. PyTorch: composed of PyTorch operators, slower.")
    return 0


class Check(NamedTuple):
    """What :func:`_verify` checks in one line: an operator, pools, the dtype of tokens, and whether by Triton where
    another kernel serves the operator."""

    name: str
    pools: str
    dtype: torch.dtype
    by_triton: bool


# A GPU takes other paths for pools beyond 16,384 tokens. Columns of the tokens: few where the tokens are many.
PLANS = {"short": ([1021, 1, 0, 256, 64], [204, 1, 0, 26, 64]), "long": ([20000, 5, 0, 17000], [4000, 1, 0, 9])}
WIDTHS = {"short": 256, "long": 64}


def checks(device: str) -> Iterator[Check]:
    """What can go wrong on a device: on a GPU also long pools, and Triton where the CUDA library comes first."""
    for pools in ("short",) if device == "cpu" else PLANS:
        for name in verify.CALLS:
            for dtype in TOKEN_DTYPES if name in verify.TAKES_TOKENS else (torch.float32,):
                yield Check(name, pools, dtype, by_triton=False)
                backward = f"{name}_backward"
                if device == "cuda" and backward in library.CUDA_OPERATORS and library.CUDA_PROBLEM is None:
                    yield Check(name, pools, dtype, by_triton=True)


def _verify(options: argparse.Namespace) -> int:
    print(f"{'operator':<26}{'device':<8}{'pools':<7}{'tokens':<10}{'kernel':<9}{'largest error / allowed':<40}")
    failed = 0
    for device in options.device or devices():
        for check in checks(device):
            plan, width = vs_kernels.SelectionPlan(*PLANS[check.pools]), WIDTHS[check.pools]
            inputs = verify.Inputs.random(plan, width, width // 2, check.dtype, device)
            definition = verify.Collapsed() if check.pools == "long" else verify.reference
            with library.triton_kernels(device) if check.by_triton else contextlib.nullcontext():
                worst, ok = verify.worst_error(vs_kernels, check.name, inputs, definition)
            failed += not ok
            kernel = "Triton" if check.by_triton else library.kernel_of(check.name, device)
            row = f"{check.name:<26}{device:<8}{check.pools:<7}{str(check.dtype).removeprefix('torch.'):<10}"
            print(f"{row}{kernel:<9}{worst:<40}{'ok' if ok else 'WRONG'}", flush=True)
    print(f"{failed} of the lines above are wrong" if failed else "every operator agrees with float64")
    return 1 if failed else 0


def _tune(options: argparse.Namespace) -> int:
    problem = library.TRITON_PROBLEM or (None if torch.cuda.is_available() else "torch finds no CUDA or ROCm device")
    if problem:
        print(f"vs-kernels tune: {problem}", file=sys.stderr)
        return 2
    from triton.testing import do_bench

    from vs_kernels.kernels.tiles import default_file
    from vs_kernels.kernels.tune import tune

    file, device = options.out or default_file(), torch.device("cuda", torch.cuda.current_device())
    print(f"{'kernel':<18}{'rows':>6}{'columns':>9}{'warps':>7}{'µs':>10}{'before, µs':>12}")
    found = tune(device, options.width, options.length, file, lambda call: do_bench(call) / 1e3)
    for kernel, tile, seconds, before in found:
        print(
            f"{kernel:<18}{tile.rows:>6}{tile.columns:>9}{tile.num_warps:>7}{seconds * 1e6:>10.1f}{before * 1e6:>12.1f}"
        )
    print(
        f"the launchers read {file}"
        if file == default_file()
        else f"VS_KERNELS_TILES={file} makes the launchers read it"
    )
    return 0


def _train(options: argparse.Namespace) -> int:
    try:
        from vs_kernels.training.config import read_config

        config = read_config(options.config)
        from vs_kernels.training.run import train

        print(f"selector: {train(config, options.resume)}")
    except ImportError as error:
        print(f"vs-kernels train: {error}; pip install 'vs_kernels[training]'", file=sys.stderr)
        return 1
    except (OSError, TypeError, ValueError) as error:
        print(f"vs-kernels train: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
