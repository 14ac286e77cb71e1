"""The operators as torch.autograd.Function classes, for callers that have packed arguments already."""

from vs_kernels.ops.gather_tokens import GatherTokensFunction
from vs_kernels.ops.gather_tokens_with import GatherTokensWithFunction
from vs_kernels.ops.importance_scores import ImportanceScoresFunction
from vs_kernels.ops.select_tokens import SelectTokensFunction
from vs_kernels.ops.soft_topk import SoftTopKFunction
from vs_kernels.ops.soft_topk_with_loss import SoftTopKWithLossFunction
from vs_kernels.ops.straight_through_gather import StraightThroughGatherFunction
from vs_kernels.ops.straight_through_mask import StraightThroughMaskFunction
from vs_kernels.ops.topk_consistency_loss import TopKConsistencyLossFunction
from vs_kernels.ops.topk_indices import TopKIndicesFunction
from vs_kernels.ops.topk_mask import TopKMaskFunction

__all__ = [
    "GatherTokensFunction",
    "GatherTokensWithFunction",
    "ImportanceScoresFunction",
    "SelectTokensFunction",
    "SoftTopKFunction",
    "SoftTopKWithLossFunction",
    "StraightThroughGatherFunction",
    "StraightThroughMaskFunction",
    "TopKConsistencyLossFunction",
    "TopKIndicesFunction",
    "TopKMaskFunction",
]
