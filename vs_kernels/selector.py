"""The learned scorer and the module that selects tokens with it (VisionSelector, arXiv 2510.16598)."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from vs_kernels.ops.checks import check_scale, check_share, check_temperature
from vs_kernels.ops.gather_tokens import gather_tokens
from vs_kernels.ops.importance_scores import importance_scores
from vs_kernels.ops.select_tokens import select_tokens
from vs_kernels.ops.soft_topk_with_loss import soft_topk_with_loss
from vs_kernels.ops.straight_through_gather import straight_through_gather
from vs_kernels.ops.straight_through_mask import straight_through_mask
from vs_kernels.ops.topk_consistency_loss import topk_consistency_loss
from vs_kernels.ops.topk_indices import topk_indices
from vs_kernels.ops.topk_mask import topk_mask
from vs_kernels.plan import SelectionPlan, check_budget
from vs_kernels.selection import Selection

if TYPE_CHECKING:
    from vs_kernels.capture import CapturedSelection

TRAIN_MODES = ("soft", "blend", "straight_through_gather", "straight_through_mask", "score_function")
POOLS = ("image", "call")


class ImportanceScorer(nn.Module):
    """Two linear maps whose product scores a token against the mean of its pool; see :func:`importance_scores`.

    Args:
        in_features: width D of the visual tokens, the hidden size of the language model.
        hidden_features: width h of queries and keys; D // 2 as published.

    Weights start as published, N(0, 1e-4) with zero biases: fresh scores are tiny and the soft Top-K starts flat.
    """

    def __init__(self, in_features: int, hidden_features: int | None = None):
        super().__init__()
        self.in_features = in_features
        self.hidden_features = in_features // 2 if hidden_features is None else hidden_features
        for name, value in (("in_features", in_features), ("hidden_features", self.hidden_features)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}: got {value!r}, expected an integer >= 1")
        self.q_proj = nn.Linear(self.in_features, self.hidden_features)
        self.k_proj = nn.Linear(self.in_features, self.hidden_features)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for projection in (self.q_proj, self.k_proj):
            nn.init.normal_(projection.weight, std=1e-4)
            nn.init.zeros_(projection.bias)

    def forward(self, tokens: Tensor, plan: SelectionPlan | None = None) -> Tensor:
        """Scores, float32 [T] or [B, N], of tokens [T, D] or [B, N, D]."""
        return importance_scores(tokens, *self.weights(), plan)

    def weights(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """q_weight [h, D], q_bias [h], k_weight [h, D], k_bias [h]: the order of the operators."""
        return self.q_proj.weight, self.q_proj.bias, self.k_proj.weight, self.k_proj.bias

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, hidden_features={self.hidden_features}"


class VisionTokenSelector(nn.Module):
    """Keeps a budget of the visual tokens.

    ``.eval()`` drops the other tokens. ``.train()`` makes the choice differentiable, by ``train_mode``:

    - ``"soft"``: all tokens stay, each times its soft Top-K probability (as published);
    - ``"blend"``: all tokens stay, each times ``(1 - hard_share) * probability + hard_share * (1 if kept else 0)``;
    - ``"straight_through_gather"``: the others are dropped, as in inference, and the kept ones are multiplied by
      ``scale``; the gradient is the soft one;
    - ``"straight_through_mask"``: the others stay, times ``dropped_scale``; the gradient is the soft one;
    - ``"score_function"``: the others are dropped; the tokens carry no gradient to the scores, which learn from the
      losses of noisy selections in :class:`vs_kernels.training.SelectorTraining`.

    :class:`vs_kernels.training.Curriculum` moves the numbers of these modes while training goes on.

    Args:
        scorer: scores the tokens.
        budget: retention budget, the share of tokens kept, in (0, 1].
        train_mode: what ``.train()`` does.
        pool: ``"image"``: every image has its own budget; ``"call"``: all images of a call share one (as published).
        temperature: of the soft Top-K, > 0.
        dropped_scale: factor of dropped tokens in ``"straight_through_mask"``, >= 0; 0 upsets pre-norm models.
        scale: factor of kept tokens in ``"straight_through_gather"``, >= 0. Behind the RMSNorm of a pre-norm model
            the size of a token hardly matters at 1, so its gradient says little about its worth; 0.3 is better.
        noise: the last three modes keep the tokens that rank highest with this much Gumbel noise on their
            scores, >= 0; the probabilities and the loss stay without noise.
        hard_share: of ``"blend"``, in [0, 1].

    Attributes:
        noise_generator: where the noise is drawn from; None: the device's default generator.

    Raises:
        TypeError, ValueError: an unknown mode or pool, a number of the wrong type or outside of its range.
    """

    def __init__(
        self,
        scorer: ImportanceScorer,
        budget: float = 0.2,
        train_mode: str = "soft",
        pool: str = "image",
        *,
        temperature: float = 1.0,
        dropped_scale: float = 0.1,
        scale: float = 1.0,
        noise: float = 0.0,
        hard_share: float = 0.0,
    ):
        super().__init__()
        check_budget(budget)
        if train_mode not in TRAIN_MODES:
            raise ValueError(f"train_mode: got {train_mode!r}, expected one of {TRAIN_MODES}")
        if pool not in POOLS:
            raise ValueError(f"pool: got {pool!r}, expected one of {POOLS}")
        check_temperature(temperature)
        for name, value in (("dropped_scale", dropped_scale), ("scale", scale), ("noise", noise)):
            check_scale(value, name)
        check_share(hard_share, "hard_share")
        self.scorer = scorer
        self.budget = budget
        self.train_mode = train_mode
        self.pool = pool
        self.temperature = temperature
        self.dropped_scale = dropped_scale
        self.scale = scale
        self.noise = noise
        self.hard_share = hard_share
        self.noise_generator: torch.Generator | None = None

    def plan(self, lengths: Sequence[int], budget: float | None = None) -> SelectionPlan:
        """The plan for images of ``lengths`` tokens: one pool each, or one of all, as ``pool`` says."""
        budget = self.budget if budget is None else budget
        return SelectionPlan.from_budget([sum(lengths)] if self.pool == "call" else lengths, budget)

    def forward(
        self,
        tokens: Tensor,
        lengths: Sequence[int] | None = None,
        budget: float | None = None,
        *,
        plan: SelectionPlan | None = None,
    ) -> Selection:
        """Select among the tokens of one or several images.

        Args:
            tokens: packed [T, D] or dense [B, N, D]; float32, bfloat16 or float16.
            lengths: tokens per image, host integers that sum to T; without it [T, D] is one image and
                [B, N, D] is B images.
            budget: another budget than the module's for this call.
            plan: pools and kept tokens in place of those that lengths, budget and ``pool`` make.

        Raises:
            TypeError, ValueError: an argument of the wrong type, dtype, shape, device or value.
        """
        if not isinstance(tokens, Tensor) or tokens.dim() not in (2, 3) or tokens.shape[-1] != self.scorer.in_features:
            got = f"shape {tuple(tokens.shape)}" if isinstance(tokens, Tensor) else type(tokens).__name__
            width = self.scorer.in_features
            raise ValueError(f"tokens: got {got}, expected a tensor [T, {width}] or [B, N, {width}]")
        if lengths is None:
            lengths = [tokens.shape[0]] if tokens.dim() == 2 else [tokens.shape[1]] * tokens.shape[0]
        elif tokens.dim() == 3:
            raise ValueError("lengths: got it with dense tokens [B, N, D], expected it only with packed tokens [T, D]")
        plan = self.plan(lengths, budget) if plan is None else plan
        rows = tokens.flatten(0, -2)
        selection = self._train(rows, plan) if self.training else select_tokens(rows, *self.scorer.weights(), plan)
        if tokens.dim() == 2:
            return selection
        return selection._replace(
            tokens=selection.tokens if selection.indices is not None else selection.tokens.view(tokens.shape),
            scores=selection.scores.view(tokens.shape[:-1]),
            probs=None if selection.probs is None else selection.probs.view(tokens.shape[:-1]),
        )

    def _train(self, tokens: Tensor, plan: SelectionPlan) -> Selection:
        scores = self.scorer(tokens, plan)
        if self.train_mode in ("soft", "blend"):
            probs, _, loss = soft_topk_with_loss(scores, plan, self.temperature)
            factors = probs
            if self.train_mode == "blend":
                factors = torch.lerp(probs, topk_mask(scores, plan).to(probs.dtype), self.hard_share)
            return Selection(tokens * factors[:, None].to(tokens.dtype), None, scores, probs, loss, plan)
        loss = topk_consistency_loss(scores, plan, self.temperature)
        indices = None
        if self.train_mode == "straight_through_gather":
            kept, indices = straight_through_gather(
                tokens, scores, plan, self.temperature, scale=self.scale, selection_scores=self._noisy(scores)
            )
        elif self.train_mode == "score_function":
            noisy = self._noisy(scores)
            indices = topk_indices(scores if noisy is None else noisy, plan)
            kept = gather_tokens(tokens, indices)
        else:
            kept = straight_through_mask(
                tokens,
                scores,
                plan,
                self.temperature,
                dropped_scale=self.dropped_scale,
                selection_scores=self._noisy(scores),
            )
        return Selection(kept, indices, scores, None, loss, plan)

    def capture(
        self, lengths: Sequence[int], budget: float | None = None, dtype: torch.dtype = torch.bfloat16
    ) -> "CapturedSelection":
        """The selection of images of these lengths as one CUDA graph: a replay costs one launch on the host.

        Args:
            lengths: tokens per image, host integers.
            budget: another budget than the module's.
            dtype: of the tokens.

        Raises:
            ValueError: the module is not on a CUDA device, or is training.
        """
        from vs_kernels.capture import CapturedSelection

        return CapturedSelection(self, lengths, budget, dtype)

    def _noisy(self, scores: Tensor) -> Tensor | None:
        """float32 [T], scores with Gumbel noise, whose Top-K is a draw without replacement; None without noise."""
        if not self.noise:
            return None
        waits = torch.empty_like(scores).exponential_(generator=self.noise_generator)
        return scores.detach() - self.noise * waits.log()

    def config(self) -> dict[str, int | float | str]:
        """The arguments that rebuild this module, with the scorer's sizes."""
        return {
            "in_features": self.scorer.in_features,
            "hidden_features": self.scorer.hidden_features,
            "budget": self.budget,
            "train_mode": self.train_mode,
            "pool": self.pool,
            "temperature": self.temperature,
            "dropped_scale": self.dropped_scale,
            "scale": self.scale,
            "noise": self.noise,
            "hard_share": self.hard_share,
        }

    def save_pretrained(self, directory: str | Path, is_main_process: bool = True) -> None:
        """Write ``config.json`` and ``model.safetensors`` into ``directory``, made if absent.

        Args:
            is_main_process: of several processes one writes. All of them call this where FSDP2 shares out the weights.
        """
        from vs_kernels import checkpoints

        checkpoints.save(self, directory, is_main_process)

    @classmethod
    def from_pretrained(cls, path_or_hub_id: str | Path) -> "VisionTokenSelector":
        """The selector that was saved in a directory, a repository of the Hugging Face hub or a file.

        Takes what :meth:`save_pretrained` writes; a full checkpoint in the published layout, of which only the shards
        with the scorer are read, and whose scorer selects with the defaults of this class; and a file of the scorer's
        four tensors, ``.safetensors`` or of ``torch.save``, with the prefixes that training tools leave.

        Returns:
            The selector in eval mode on the CPU, in the dtype it was saved in.

        Raises:
            FileNotFoundError: no such directory, or a file is missing in it.
            ValueError: the config or a tensor does not fit; the message names it.
        """
        from vs_kernels import checkpoints

        return checkpoints.load(path_or_hub_id)

    def extra_repr(self) -> str:
        return f"budget={self.budget}, train_mode={self.train_mode!r}, pool={self.pool!r}"
