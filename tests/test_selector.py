import pytest
import torch

import vs_kernels as vk
from vs_kernels import SelectionPlan, reference


def make(**arguments) -> vk.VisionTokenSelector:
    scorer = vk.ImportanceScorer(32, 16)
    for projection in (scorer.q_proj, scorer.k_proj):
        torch.nn.init.normal_(projection.weight, std=0.2)
    return vk.VisionTokenSelector(scorer, **{"budget": 0.25} | arguments)


def test_the_published_size() -> None:
    scorer = vk.ImportanceScorer(3584)
    assert sum(parameter.numel() for parameter in scorer.parameters()) == 12_848_640  # 12.85 M
    assert scorer.q_proj.weight.detach().std() == pytest.approx(1e-4, rel=0.01)
    assert not scorer.q_proj.bias.any() and not scorer.k_proj.bias.any()


def test_scores_are_the_mean_product_of_queries_and_keys() -> None:
    scorer, tokens = make().scorer.double(), torch.randn(30, 32, dtype=torch.float64)
    for projection in (scorer.q_proj, scorer.k_proj):
        torch.nn.init.normal_(projection.bias)
    truth = (scorer.q_proj(tokens) @ scorer.k_proj(tokens).T).mean(dim=1) / 16**0.5
    scores = scorer.float()(tokens.float())
    torch.testing.assert_close(scores.double(), truth, rtol=1e-5, atol=1e-5)


def test_eval_drops_tokens() -> None:
    selector, tokens = make().eval(), torch.randn(60, 32)
    selection = selector(tokens, [40, 20])
    assert selection.plan == SelectionPlan([40, 20], [10, 5])
    assert torch.equal(selection.indices, reference.topk_indices(selection.scores, selection.plan))
    assert torch.equal(selection.tokens, tokens[selection.indices])
    assert selection.probs is None and selection.loss is None


def test_kept_tokens_alone_give_the_scorer_no_gradient() -> None:
    selector, tokens = make().eval(), torch.randn(60, 32, requires_grad=True)
    selection = selector(tokens)
    selection.tokens.sum().backward()
    assert torch.equal(tokens.grad, vk.topk_mask(selection.scores, selection.plan)[:, None].expand(60, 32).float())
    assert all(parameter.grad is None for parameter in selector.parameters())


def test_dense_images_are_separate_pools() -> None:
    selector, tokens = make().eval(), torch.randn(3, 20, 32)
    selection = selector(tokens)
    packed = selector(tokens.flatten(0, 1), [20, 20, 20])
    assert torch.equal(selection.indices, packed.indices)
    assert selection.scores.shape == (3, 20) and selection.tokens.shape == (15, 32)
    for mode in ("soft", "straight_through_mask"):
        selector.train().train_mode = mode
        assert selector(tokens).tokens.shape == tokens.shape


def test_pool_call_shares_one_budget() -> None:
    tokens = torch.cat([torch.randn(40, 32), 5 * torch.randn(20, 32)])
    selector = make(pool="call").eval()
    selection = selector(tokens, [40, 20])
    assert selection.plan == SelectionPlan([60], [15])
    assert torch.equal(selection.scores, selector(tokens).scores)


def test_budget_of_a_call() -> None:
    selector, tokens = make().eval(), torch.randn(60, 32)
    assert selector(tokens, budget=1.0).indices.tolist() == list(range(60))
    assert selector(tokens, budget=0.5).plan.ks == (30,)
    assert selector(torch.zeros(0, 32), []).tokens.shape == (0, 32)


def test_soft_training_scales_all_tokens() -> None:
    selector, tokens = make(train_mode="soft", temperature=0.5).train(), torch.randn(60, 32)
    selection = selector(tokens, [40, 20])
    assert selection.indices is None
    torch.testing.assert_close(selection.probs.detach(), reference.soft_topk(selection.scores, selection.plan, 0.5)[0])
    torch.testing.assert_close(selection.tokens, tokens * selection.probs[:, None])


def test_straight_through_training_is_hard_in_the_forward() -> None:
    tokens = torch.randn(60, 32)
    gather = make(train_mode="straight_through_gather").train()
    assert torch.equal(gather(tokens, [40, 20]).tokens, gather.eval()(tokens, [40, 20]).tokens)
    mask = make(train_mode="straight_through_mask", dropped_scale=0.1).train()
    selection = mask(tokens, [40, 20])
    kept = vk.topk_mask(selection.scores.detach(), selection.plan)[:, None]
    torch.testing.assert_close(selection.tokens, torch.where(kept, tokens, 0.1 * tokens))


@pytest.mark.parametrize("train_mode", vk.selector.TRAIN_MODES)
def test_training_reaches_the_scorer(train_mode: str) -> None:
    selector = make(train_mode=train_mode).train()
    tokens = torch.randn(60, 32).bfloat16()
    selection = selector(tokens, [40, 20])
    assert selection.tokens.dtype == torch.bfloat16
    (selection.tokens.float().square().sum() + selection.loss).backward()
    for projection in (selector.scorer.q_proj, selector.scorer.k_proj):
        assert projection.weight.grad.abs().max() > 0


def test_training_finds_the_informative_tokens() -> None:
    """Twenty of a hundred tokens carry the signal that the loss wants; the scorer learns to keep them."""
    signal = torch.randn(32)
    selector = make(train_mode="soft", budget=0.2).train()
    optimizer = torch.optim.Adam(selector.parameters(), lr=3e-3)
    for _ in range(60):
        tokens = torch.randn(4, 100, 32)
        tokens[:, :20] += signal
        tokens = tokens[:, torch.randperm(100)]
        selection = selector(tokens)
        loss = -(selection.tokens @ signal).mean() + 0.1 * selection.loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    tokens = torch.randn(1, 100, 32)
    tokens[:, :20] += signal
    assert (selector.eval()(tokens).indices < 20).sum() >= 19


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: make(budget=0.0), ValueError, "budget: got 0.0"),
        (lambda: make(train_mode="hard"), ValueError, "train_mode: got 'hard', expected one of"),
        (lambda: make(pool="batch"), ValueError, "pool: got 'batch', expected one of"),
        (lambda: make(temperature=0.0), ValueError, "temperature: got 0.0"),
        (lambda: make(dropped_scale=-1.0), ValueError, "dropped_scale: got -1.0"),
        (lambda: vk.ImportanceScorer(0), ValueError, "in_features: got 0"),
        (lambda: vk.ImportanceScorer(1), ValueError, "hidden_features: got 0"),
        (lambda: make()(torch.randn(4, 31)), ValueError, r"tokens: got shape \(4, 31\)"),
        (lambda: make()([1]), ValueError, "tokens: got list"),
        (lambda: make()(torch.randn(4, 32), [3]), ValueError, "tokens: got 4 rows, expected 3"),
        (lambda: make()(torch.randn(2, 4, 32), [4, 4]), ValueError, "lengths: got it with dense tokens"),
        (lambda: make()(torch.randn(4, 32), budget=2.0), ValueError, "budget: got 2.0"),
    ],
)
def test_errors(call, error, message) -> None:
    with pytest.raises(error, match=message):
        call()
