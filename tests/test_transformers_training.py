"""Labels, losses and gradients of a model that selects."""

import pytest
import torch
from oracle import LOGIT_TOLERANCE, TWO_AND_ONE, make_selector, oracle_inputs
from tiny_models import IMAGE, prompt, qwen2_5_vl
from torch import nn
from transformers import PreTrainedModel

from vs_kernels.integrations.transformers import SelectorHandle, attach_selector

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("mode", ["soft", "straight_through_gather", "straight_through_mask", "eval"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_training(mode: str, side: str) -> None:
    model, inputs = qwen2_5_vl(), prompt(*TWO_AND_ONE, side=side)
    labels = inputs["input_ids"].masked_fill((inputs["attention_mask"] == 0) | (inputs["input_ids"] == IMAGE), -100)
    training = mode != "eval"
    selector = make_selector(train_mode=mode if training else "soft").train(training)
    with attach_selector(model, selector, budget=0.5) as handle:
        output = model(**inputs, labels=labels)
        gathered = mode in ("straight_through_gather", "eval")
        assert (handle.last_prompt is not None) == gathered
        columns = handle.last_prompt.length if gathered else inputs["input_ids"].shape[1]
        assert output.logits.shape[1] == columns
        shifted = labels if handle.last_prompt is None else handle.last_prompt.take(labels, -100)
        expected = nn.functional.cross_entropy(output.logits[:, :-1].flatten(0, 1), shifted[:, 1:].flatten())
        torch.testing.assert_close(output.loss, expected)
        assert output.loss.isfinite() and (handle.loss is not None) == training
        (output.loss + handle.loss if training else output.loss).backward()
    gradient = selector.scorer.q_proj.weight.grad
    assert (gradient is not None and bool(gradient.any())) == training
    assert model.lm_head.weight.grad.abs().sum() > 0


def test_model_gradient_reaches_the_scorer_without_the_selection_loss(model: PreTrainedModel) -> None:
    inputs = prompt(*TWO_AND_ONE)
    for mode in ("soft", "straight_through_gather", "straight_through_mask"):
        selector = make_selector(train_mode=mode).train()
        with attach_selector(model, selector, budget=0.5):
            model(**inputs, labels=inputs["input_ids"]).loss.backward()
        assert selector.scorer.k_proj.weight.grad.abs().sum() > 0


def test_labels_follow_their_tokens(attached: SelectorHandle) -> None:
    model, inputs = attached.model, prompt(*TWO_AND_ONE)
    after_text = nn.functional.pad(inputs["mm_token_type_ids"][:, :-1] == 0, (1, 0))
    ignored = (inputs["attention_mask"] == 0) | (inputs["input_ids"] == IMAGE) | ~after_text
    ignored[:, :1] = True
    first = inputs["attention_mask"].argmax(1)
    ignored[torch.arange(2), first] = True
    labels = inputs["input_ids"].masked_fill(ignored, -100)
    loss = model(**inputs, labels=labels).loss
    attached.detach()
    expected = model(**oracle_inputs(attached, inputs), labels=labels).loss
    torch.testing.assert_close(loss, expected, **LOGIT_TOLERANCE)
