"""vs_kernels: score, select and gather visual tokens."""

from vs_kernels import functions, reference
from vs_kernels.ops.gather_tokens import gather_tokens
from vs_kernels.ops.importance_scores import importance_scores
from vs_kernels.ops.select_tokens import select_tokens
from vs_kernels.ops.soft_topk import soft_topk
from vs_kernels.ops.soft_topk_with_loss import soft_topk_with_loss
from vs_kernels.ops.straight_through_gather import straight_through_gather
from vs_kernels.ops.straight_through_mask import straight_through_mask
from vs_kernels.ops.topk_consistency_loss import topk_consistency_loss
from vs_kernels.ops.topk_indices import topk_indices
from vs_kernels.ops.topk_mask import topk_mask
from vs_kernels.plan import SelectionPlan
from vs_kernels.selection import Selection
from vs_kernels.selector import ImportanceScorer, VisionTokenSelector

__version__ = "0.1.0"

__all__ = [
    "ImportanceScorer",
    "Selection",
    "SelectionPlan",
    "VisionTokenSelector",
    "functions",
    "gather_tokens",
    "importance_scores",
    "reference",
    "select_tokens",
    "soft_topk",
    "soft_topk_with_loss",
    "straight_through_gather",
    "straight_through_mask",
    "topk_consistency_loss",
    "topk_indices",
    "topk_mask",
]
