"""Positions above 256, which bfloat16 cannot hold, reach the language model exactly in a bfloat16 model."""

from pathlib import Path
from typing import Any

import pytest
import torch
from engine import answers, engine
from requests_and_truth import IMAGE, VIDEO, Request, Truth, image, video

from vs_kernels.integrations.vllm.model import SelectingModel

LONG = Request(
    "a text of more than 256 tokens " * 10 + f"{IMAGE} then {VIDEO} and {IMAGE}?",
    (image(560, 840), image(280, 140)),
    (video(4, 112, 140),),
)


@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl"])
def test_positions_are_those_of_the_full_prompt(
    models: dict[str, Path], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    original = SelectingModel.recompute_mrope_positions

    def recompute(self: SelectingModel, *arguments: Any, **named: Any) -> Any:
        outcome = original(self, *arguments, **named)
        seen.append((outcome[1].clone(), outcome[2]))
        return outcome

    monkeypatch.setattr(SelectingModel, "recompute_mrope_positions", recompute)
    llm = engine(models[name], models["selector"], dtype="bfloat16", max_model_len=4096, max_num_batched_tokens=256)
    truth = Truth(models[name], models["selector"])
    inputs = truth.inputs(LONG)
    sources = ("attention_mask", "image_grid_thw", "video_grid_thw", "mm_token_type_ids", "second_per_grid_ts")
    full, _ = truth.model.model.get_rope_index(
        inputs["input_ids"], **{key: inputs[key] for key in sources if key in inputs}
    )
    for budget in (1.0, 0.3):
        seen.clear()
        (answer,) = answers(llm, LONG.for_vllm(budget))
        positions, delta = seen[-1]
        assert positions.shape == (3, answer.prompt_length)
        assert delta == int(full.max()) + 1 - answer.prompt_length
        columns = {tuple(column) for column in full[:, 0].T.tolist()}
        got = [tuple(column) for column in positions.T.tolist()]
        assert len(set(got)) == len(got)
        assert set(got) <= columns
        assert budget < 1 or torch.equal(positions, full[:, 0])
        text = (inputs["mm_token_type_ids"][0] == 0).nonzero()[:, 0]
        assert set(map(tuple, full[:, 0, text].T.tolist())) <= set(got)
