"""Baselines on cases small enough to follow by hand."""

import copy
import math

import pytest
import torch
from torch import Tensor

from vs_kernels import ImportanceScorer, SelectionPlan
from vs_kernels.baselines import (
    AttentionReceived,
    Baseline,
    ByScore,
    Dart,
    DivPrune,
    Mmr,
    Random,
    TokenNorm,
    UniformGrid,
    VisionZip,
    attention_received,
)


def norms(tokens: Tensor, plan: SelectionPlan) -> Tensor:
    return tokens.float().norm(dim=1)


ALL = {
    "random": Random,
    "uniform grid": UniformGrid,
    "token norm": TokenNorm,
    "by score": lambda **options: ByScore(norms, **options),
    "divprune": DivPrune,
    "dart": Dart,
    "mmr": lambda **options: Mmr(ImportanceScorer(8), **options),
    "visionzip": lambda **options: VisionZip(norms, **options),
    "visionzip without merging": lambda **options: VisionZip(norms, merge=False, **options),
}


@pytest.fixture(params=ALL)
def make(request: pytest.FixtureRequest):
    return ALL[request.param]


def at_angles(*degrees: float) -> Tensor:
    """Unit vectors [N, 2]: the cosine distance of two grows with the angle between them."""
    radians = torch.tensor(degrees) * math.pi / 180
    return torch.stack([radians.cos(), radians.sin()], dim=1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_interface(make, dtype: torch.dtype) -> None:
    tokens, lengths = torch.randn(70, 8, dtype=dtype), [40, 1, 0, 29]
    baseline = make(budget=0.25)
    selection = baseline(tokens, lengths)
    assert selection.plan == baseline.plan(lengths) == SelectionPlan(lengths, [10, 1, 0, 7])
    assert selection.scores.shape == (70,) and selection.scores.dtype == torch.float32
    assert selection.tokens.shape == (18, 8) and selection.tokens.dtype == dtype
    assert (selection.indices.diff() > 0).all()
    per_pool = [
        int(((selection.indices >= a) & (selection.indices < b)).sum()) for a, b in ((0, 40), (40, 41), (41, 70))
    ]
    assert per_pool == [10, 1, 7]
    if make is not ALL["visionzip"]:
        assert torch.equal(selection.tokens, tokens[selection.indices])
    assert make(budget=0.25, pool="call")(tokens, lengths).plan == SelectionPlan([70], [17])
    assert baseline(tokens, lengths, [0.5, 1.0, 1.0, 0.1]).plan.ks == (20, 1, 0, 2)
    everything = baseline(tokens, lengths, 1.0)
    assert torch.equal(everything.tokens, tokens) and everything.indices.tolist() == list(range(70))
    assert baseline(torch.randn(2, 20, 8, dtype=dtype)).scores.shape == (2, 20)


@pytest.mark.parametrize("name", [name for name in ALL if name != "random"])
def test_pools_do_not_see_each_other(name: str) -> None:
    tokens, baseline = torch.randn(50, 8), ALL[name](budget=0.3)
    together = baseline(tokens, [30, 20])
    assert torch.equal(together.tokens, torch.cat([baseline(tokens[:30]).tokens, baseline(tokens[30:]).tokens]))


def test_kept_tokens_carry_the_gradient(make) -> None:
    tokens = torch.randn(30, 8, requires_grad=True)
    selection = make(budget=0.5)(tokens)
    selection.tokens.sum().backward()
    assert (tokens.grad[selection.indices] > 0).all()


def test_no_baseline_holds_an_n_by_n_matrix(make) -> None:
    """Of 6,000 tokens it would be 144 MB; nothing above a third of it is ever allocated."""
    tokens, baseline = torch.randn(6000, 8), make(budget=0.01)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        baseline(tokens)
    allocations = [event.cpu_memory_usage for event in profile.events()]
    assert 0 < max(allocations) < 6000 * 6000 * 4 // 3


def test_random_draws_go_on_and_repeat_from_the_seed() -> None:
    tokens = torch.randn(1000, 4)
    baseline = Random(0.2, seed=7)
    twin = copy.deepcopy(baseline)
    first, second = baseline(tokens).indices, baseline(tokens).indices
    assert not torch.equal(first, second)
    assert torch.equal(first, twin(tokens).indices) and torch.equal(first, Random(0.2, seed=7)(tokens).indices)
    assert not torch.equal(first, Random(0.2, seed=8)(tokens).indices)
    assert (first < 500).float().mean() == pytest.approx(0.5, abs=0.1)


def test_uniform_grid() -> None:
    indices = UniformGrid(0.3)(torch.zeros(15, 2), [10, 5]).indices
    assert indices.tolist() == [1, 5, 8, 12]  # stretches of 3 1/3 tokens, and the middle of the second pool


def test_token_norm() -> None:
    tokens = torch.tensor([[3.0, 0.0], [0.0, 1.0], [0.0, -4.0], [2.0, 2.0]])
    selection = TokenNorm(0.5)(tokens)
    assert selection.indices.tolist() == [0, 2]
    assert selection.scores[2] == 4


def test_attention_received() -> None:
    """Two heads, two queries: one head attends evenly, the other with weights 3/4 and 1/4 to two of three keys."""
    query = torch.tensor([[[0.0], [0.0]], [[1.0], [1.0]]])
    key = torch.tensor([[[0.0], [0.0], [0.0]], [[math.log(3.0)], [0.0], [-1e9]]])
    received = attention_received(query, key, 1.0)
    expected = torch.tensor([1 / 3 + 3 / 4, 1 / 3 + 1 / 4, 1 / 3]) / 2
    torch.testing.assert_close(received, expected)
    assert AttentionReceived(lambda: received, 0.4)(torch.zeros(3, 2)).indices.tolist() == [0]


def test_attention_received_against_float64_and_across_blocks() -> None:
    query, key = torch.randn(4, 1500, 8), torch.randn(2, 1300, 8)
    full = (query.double() @ key.double().repeat_interleave(2, 0).transpose(1, 2) * 0.4).softmax(-1).mean((0, 1))
    received = attention_received(query, key, 0.4)
    torch.testing.assert_close(received.double(), full, rtol=1e-5, atol=1e-9)
    assert received.sum() == pytest.approx(1, abs=1e-5)


def test_attention_received_holds_no_n_by_n_matrix() -> None:
    """Of 4,000 tokens and two heads it would be 128 MB; nothing above a third of it is ever allocated."""
    query, key = torch.randn(2, 4000, 8), torch.randn(2, 4000, 8)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        attention_received(query, key, 0.4)
    allocations = [event.cpu_memory_usage for event in profile.events()]
    assert 0 < max(allocations) < 2 * 4000 * 4000 * 4 // 3


def test_divprune() -> None:
    """90 has the farthest nearest neighbour, 50 degrees away; 0 is farthest from it; 40 is 40 from both, 10 less."""
    tokens = at_angles(0, 10, 40, 90) * torch.tensor([1.0, 5.0, 2.0, 3.0])[:, None]
    selection = DivPrune(0.75)(tokens)
    assert selection.scores.tolist() == [2, 0, 1, 3]
    assert selection.indices.tolist() == [0, 2, 3]
    assert DivPrune(1.0)(tokens).scores.tolist() == [1, 1, 1, 1]


def test_divprune_matches_the_distance_matrix() -> None:
    tokens = torch.randn(1100, 6)
    units = torch.nn.functional.normalize(tokens.double(), dim=1)
    distances = 1 - units @ units.T
    taken = [int(distances.clone().fill_diagonal_(torch.inf).amin(1).argmax())]
    while len(taken) < 12:
        nearest = distances[taken].amin(0)
        nearest[taken] = -1
        taken.append(int(nearest.argmax()))
    selection = DivPrune(12.5 / 1100)(tokens)
    assert selection.scores.argsort(descending=True)[:12].tolist() == taken


def test_divprune_takes_no_token_twice() -> None:
    assert DivPrune(0.5)(torch.ones(8, 3)).indices.tolist() == [0, 1, 2, 3]


def test_dart() -> None:
    """Pivots 2 and 4 are the longest in L1; 4, taken second, finds the token that is least like it gone."""
    tokens = at_angles(0, 90, 20, 80, 70, 100) * torch.tensor([1.0, 1.0, 9.0, 1.0, 9.0, 1.0])[:, None]
    selection = Dart(4.5 / 6, pivots=2)(tokens)
    # 2 (20 degrees) takes 5 (100); 4 (70) takes 0 (0)
    assert selection.indices.tolist() == [0, 2, 4, 5]
    assert Dart(3.5 / 6, pivots=2)(tokens).indices.tolist() == [2, 4, 5]  # the first pivot takes what is left over
    assert Dart(1.5 / 6, pivots=2)(tokens).indices.numel() == 1
    # Longer in L1, 6 and 5, though not in L2, 4.2 and 5.
    assert Dart(0.5, pivots=1)(torch.tensor([[5.0, 0.0], [3.0, 3.0]])).indices.tolist() == [1]
    with pytest.raises(ValueError, match=r"^pivots: got 0"):
        Dart(pivots=0)


def test_mmr() -> None:
    """0 is the most relevant; 1 is nearly as relevant and the same, so 2, less relevant and different, comes first."""
    tokens = at_angles(0, 0, 90, 80)
    relevance = torch.tensor([10.0, 9.0, 5.0, 0.0])
    mmr = Mmr(lambda tokens, plan: relevance, 0.5)
    assert mmr(tokens).scores.tolist() == [2, 0, 1, 0]
    # step 2: 0.5 * 0.9 - 0.5 * 1 = -0.05; 0.5 * 0.5 - 0.5 * 0 = 0.25; 0 - 0.5 * cos 80 = -0.09
    assert mmr(tokens, budget=0.75).scores.tolist() == [3, 1, 2, 0]
    assert Mmr(lambda tokens, plan: relevance, 0.5, balance=1.0)(tokens).indices.tolist() == [0, 1]
    flat = Mmr(lambda tokens, plan: torch.ones(4), 0.5)(tokens)
    assert flat.indices.tolist() == [0, 2]
    with pytest.raises(ValueError, match=r"^balance: got 1.5"):
        Mmr(norms, balance=1.5)


def test_mmr_on_learned_scores_moves_with_the_scorer() -> None:
    scorer, tokens = ImportanceScorer(8), torch.randn(40, 8)
    for parameter in scorer.parameters():
        torch.nn.init.normal_(parameter)
    best = int(scorer(tokens).argmax())
    assert Mmr(scorer, 0.1)(tokens).scores[best] == 4


def test_visionzip() -> None:
    """Of k = 6, round(6 * 10 / 64) = 1 is contextual: the first of the rest, which takes in all others."""
    tokens = torch.arange(12.0).repeat_interleave(2).view(12, 2) + 1
    dominance = torch.tensor([0.0, 9, 8, 0, 7, 0, 0, 6, 0, 0, 5, 0])
    merged = VisionZip(lambda tokens, plan: dominance, 0.5)(tokens)
    plain = VisionZip(lambda tokens, plan: dominance, 0.5, merge=False)(tokens)
    assert merged.indices.tolist() == plain.indices.tolist() == [0, 1, 2, 4, 7, 10]
    assert torch.equal(plain.tokens, tokens[plain.indices])
    rest = [0, 3, 5, 6, 8, 9, 11]
    assert torch.equal(merged.tokens[1:], tokens[[1, 2, 4, 7, 10]])
    torch.testing.assert_close(merged.tokens[0], tokens[rest].mean(0))


def test_visionzip_merges_into_the_most_similar() -> None:
    """Of k = 13, two are contextual: 0 and 2 at equal steps in the rest, and each takes what points its way."""
    rest = at_angles(0, 80, 90, 10)
    tokens = torch.cat([rest, 5 * torch.ones(11, 2)])
    dominance = torch.tensor([0.0] * 4 + [1.0] * 11)
    selection = VisionZip(lambda tokens, plan: dominance, 13.5 / 15)(tokens)
    assert selection.indices.tolist() == [0, 2, *range(4, 15)]
    torch.testing.assert_close(selection.tokens[:2], torch.stack([rest[[0, 3]].mean(0), rest[[1, 2]].mean(0)]))
    # Contextual tokens that point the same way stay themselves; the first takes in the others.
    tokens[:4] = at_angles(0, 0, 0, 0) * torch.tensor([1.0, 2.0, 6.0, 3.0])[:, None]
    selection = VisionZip(lambda tokens, plan: dominance, 13.5 / 15)(tokens)
    torch.testing.assert_close(selection.tokens[:2], torch.tensor([[2.0, 0.0], [6.0, 0.0]]))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: TokenNorm(0.0), "budget: got 0.0"),
        (lambda: TokenNorm(pool="batch"), "pool: got 'batch', expected one of"),
        (lambda: TokenNorm()(torch.zeros(4)), r"tokens: got shape \(4,\)"),
        (lambda: TokenNorm()(torch.zeros(4, 2), [3]), "tokens: got 4 rows, expected 3"),
        (lambda: TokenNorm()(torch.zeros(1, 4, 2), [4]), "lengths: got it with dense tokens"),
        (lambda: TokenNorm()(torch.zeros(4, 2), [2, 2], [0.5]), "budget: got 1 entries, expected 2"),
        (lambda: ByScore(lambda tokens, plan: torch.zeros(3))(torch.zeros(4, 2)), "scores: "),
    ],
)
def test_errors(call, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        call()


def test_a_baseline_says_what_it_is() -> None:
    assert repr(DivPrune(0.3)) == "DivPrune(budget=0.3, pool='image')"
    assert isinstance(DivPrune(), Baseline) and not list(DivPrune().parameters())
