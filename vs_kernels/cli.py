"""The command ``vs-kernels``: what is installed, and whether it computes the right thing here."""

import argparse
import platform
import sys

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
    print(f"accelerator   {', '.join(devices()[1:]) or 'none found by torch'}")
    print()
    print(f"{'operator':<26}" + "".join(f"{device:<10}" for device in devices()))
    for name in verify.CALLS:
        print(f"{name:<26}" + "".join(f"{library.kernel_of(name, device):<10}" for device in devices()))
    print()
    print("C++: compiled kernel. PyTorch: the same result composed of PyTorch operators, slower.")
    return 0


def _verify(options: argparse.Namespace) -> int:
    plan = vs_kernels.SelectionPlan([1021, 1, 0, 256, 64], [204, 1, 0, 26, 64])
    print(f"{'operator':<26}{'device':<8}{'tokens':<10}{'kernel':<9}{'largest error / allowed':<40}")
    failed = 0
    for device in options.device or devices():
        for name in verify.CALLS:
            for dtype in TOKEN_DTYPES if name in verify.TAKES_TOKENS else (torch.float32,):
                inputs = verify.Inputs.random(plan, width=256, hidden=128, dtype=dtype, device=device)
                worst, ok = verify.worst_error(vs_kernels, name, inputs)
                failed += not ok
                row = f"{name:<26}{device:<8}{str(dtype).removeprefix('torch.'):<10}"
                print(f"{row}{library.kernel_of(name, device):<9}{worst:<40}{'ok' if ok else 'WRONG'}", flush=True)
    print(f"{failed} of the lines above are wrong" if failed else "every operator agrees with float64")
    return 1 if failed else 0


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
