"""A plain training loop: python examples/train_selector.py MODEL CONVERSATIONS.jsonl OUTPUT

MODEL is a directory or hub id of a vision-language model; CONVERSATIONS.jsonl has the layout of the published data.
Interrupt it and start it again: it goes on where it was.
"""

import sys
from pathlib import Path

import torch
from tqdm import tqdm
from transformers import AutoModelForImageTextToText, AutoProcessor

from vs_kernels import ImportanceScorer, VisionTokenSelector
from vs_kernels.integrations.transformers import attach_selector
from vs_kernels.training import RECIPES, SelectorTraining, TrainingLog, load_training, save_training, step_record
from vs_kernels.training.data import Collator, Conversations

STEPS, BATCH, RECIPE = 1000, 8, RECIPES["score_function"]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def main(name: str, conversations: str, output: str) -> None:
    model = AutoModelForImageTextToText.from_pretrained(name, dtype="auto").to(DEVICE)
    collate = Collator(AutoProcessor.from_pretrained(name), RECIPE.end_of_answer)
    data = Conversations(conversations)
    scorer = ImportanceScorer(model.config.get_text_config().hidden_size)
    selector = VisionTokenSelector(scorer, budget=0.2, train_mode=RECIPE.train_mode)
    training = SelectorTraining(attach_selector(model, selector, train=True), RECIPE.curriculum)
    optimizer = torch.optim.AdamW(training.selector.parameters(), 5e-5, weight_decay=0.0)
    state = Path(output) / "training.pt"
    with TrainingLog(output) as log:
        first = load_training(state, training, optimizer=optimizer) if state.is_file() else 0
        for step in tqdm(range(first, STEPS), initial=first, total=STEPS):
            generator = torch.Generator().manual_seed(step)  # the batch, too, depends on the step alone
            batch = collate([data[i] for i in torch.randint(len(data), (BATCH,), generator=generator).tolist()])
            training.start_step(step, STEPS)
            losses = training(**{key: value.to(DEVICE) for key, value in batch.items()})
            losses["loss"].backward()
            optimizer.step()
            optimizer.zero_grad()
            log.write(step + 1, step_record(training, training.last_losses))
            if (step + 1) % 100 == 0 or step + 1 == STEPS:
                save_training(state, training, step + 1, optimizer=optimizer)
    selector.save_pretrained(output)


if __name__ == "__main__":
    main(*sys.argv[1:])
