"""``vs-kernels train`` with the word tokenizer of test_train_command: what torchrun starts in every process."""

import sys

from test_train_command import Processor

from vs_kernels import cli
from vs_kernels.training import run

run.load_processor = lambda config: Processor()
sys.exit(cli.main(["train", *sys.argv[1:]]))
