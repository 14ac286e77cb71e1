import pytest
import torch
from backends import BACKENDS, use_backend

import vs_kernels as vk


@pytest.mark.interpreted
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("width", [1, 7, 64, 1000])
def test_rows_and_their_gradient(backend: str, width: int, dtype: torch.dtype) -> None:
    tokens = torch.randn(50, width).to(dtype).requires_grad_()
    indices = torch.tensor([0, 3, 4, 48, 49])
    kept = vk.gather_tokens(tokens, indices)
    assert torch.equal(kept, tokens[indices])
    grad = torch.randn(5, width).to(dtype)
    expected = torch.zeros(50, width, dtype=dtype)
    expected[indices] = grad
    assert torch.equal(torch.autograd.grad(kept, tokens, grad)[0], expected)


@pytest.mark.interpreted
def test_no_rows(backend: str) -> None:
    tokens = torch.randn(4, 8, requires_grad=True)
    kept = vk.gather_tokens(tokens, torch.zeros(0, dtype=torch.int64))
    assert kept.shape == (0, 8)
    assert torch.equal(torch.autograd.grad(kept.sum(), tokens)[0], torch.zeros(4, 8))


@pytest.mark.interpreted
@pytest.mark.parametrize("axes", [(), (1,), (3,)])
def test_positions_and_mask_come_with_the_rows(backend: str, axes: tuple[int, ...]) -> None:
    tokens = torch.randn(30, 12, requires_grad=True)
    positions, mask = torch.randint(1000, (*axes, 30)), torch.rand(30) < 0.5
    indices = torch.tensor([1, 2, 17, 29])
    kept, kept_positions, kept_mask = vk.gather_tokens(tokens, indices, position_ids=positions, mask=mask)
    assert torch.equal(kept, tokens[indices])
    assert torch.equal(kept_positions, positions[..., indices])
    assert torch.equal(kept_mask, mask[indices])
    assert torch.equal(vk.gather_tokens(tokens, indices, position_ids=positions)[1], positions[..., indices])
    assert torch.equal(vk.gather_tokens(tokens, indices, mask=mask)[1], mask[indices])
    grad = torch.autograd.grad(kept.sum(), tokens)[0]
    assert torch.equal(grad, torch.zeros(30, 12).index_fill(0, indices, 1.0))


@pytest.mark.parametrize(
    ("extras", "error", "message"),
    [
        ({"position_ids": torch.zeros(4)}, TypeError, "position_ids: got torch.float32, expected int64"),
        ({"position_ids": torch.arange(5)}, ValueError, r"position_ids: got shape \(5,\), expected \[4\] or \[R, 4\]"),
        ({"position_ids": [0]}, TypeError, "position_ids: got list"),
        ({"mask": torch.ones(1, 4, dtype=torch.bool)}, ValueError, r"mask: got shape \(1, 4\), expected \[4\]"),
        ({"mask": torch.ones(4)}, TypeError, "mask: got torch.float32, expected bool"),
    ],
)
def test_errors_of_positions_and_mask(extras: dict, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        vk.gather_tokens(torch.randn(4, 8), torch.tensor([0]), **extras)


@pytest.mark.parametrize(
    ("indices", "error", "message"),
    [
        ([0, 4], TypeError, "indices: got list"),
        (torch.tensor([0, 1], dtype=torch.int32), TypeError, "indices: got torch.int32, expected int64"),
        (torch.tensor([[0, 1]]), ValueError, r"indices: got shape \(1, 2\), expected \[K\]"),
        (torch.tensor([1], device="meta"), ValueError, "indices: got a tensor on meta, expected cpu"),
    ],
)
def test_errors(backend: str, indices, error, message) -> None:
    with pytest.raises(error, match=message):
        vk.gather_tokens(torch.randn(4, 8), indices)


@pytest.mark.parametrize("backend_name", BACKENDS)
@pytest.mark.parametrize(
    ("indices", "message"),
    [
        ([0, 4], "indices: got 4 after 0, expected strictly ascending rows below 4"),
        ([-1, 2], "indices: got -1 after -1"),
        ([2, 1], "indices: got 1 after 2"),
        ([1, 1], "indices: got 1 after 1"),
    ],
)
def test_wrong_rows(backend_name: str, indices: list[int], message: str) -> None:
    """Checked by the kernels of a CPU alone: on a GPU the check would wait for the device."""
    with use_backend(backend_name), pytest.raises(ValueError, match=message):
        vk.gather_tokens(torch.randn(4, 8), torch.tensor(indices))
