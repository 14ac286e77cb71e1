"""``vs-kernels evaluate``: a user's own questions about images, at several budgets of a user's own model."""
