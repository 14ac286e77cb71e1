"""Linear layers that hold their weights as the CPU's matrix kernels read them."""

import torch
from torch import Tensor, nn

SUPPORT = {torch.bfloat16: "_is_mkldnn_bf16_supported", torch.float16: "_is_mkldnn_fp16_supported"}


class PackedLinear(nn.Module):
    """A linear layer for inference, in place of ``linear``.

    nn.Linear hands the kernels a weight that they pack into blocks again at every call, whatever the number of tokens:
    work that no shorter prompt saves. Servers on a CPU pack it once, as this does.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), None)
        self.bias = linear.bias

    def forward(self, input: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(input, self.weight, self.bias, "none", [], "")


def can_pack(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether this build of PyTorch and this processor have packed linear layers."""
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    return dtype == torch.float32 or getattr(torch.ops.mkldnn, SUPPORT[dtype])()


@torch.no_grad()
def pack_linear_layers(module: nn.Module) -> None:
    """Put a packed layer in place of every nn.Linear in ``module``, one after the other: one is in memory twice."""
    for name, child in module.named_children():
        if type(child) is nn.Linear:
            setattr(module, name, PackedLinear(child))
        else:
            pack_linear_layers(child)
