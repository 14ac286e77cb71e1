"""The operators, one file each: public function, autograd.Function, schema, fake, kernel in plain PyTorch.

The public functions check their arguments and differentiate. ``torch.ops.vs_kernels.<name>`` is the bare kernel of
the forward or the backward: it has no autograd formula of its own.
"""
