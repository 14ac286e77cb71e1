"""The CUDA kernels of the straight-through backward, run from their PTX: results, traffic and synchronisation."""

import numpy as np
import pytest
import torch
from backends import BACKENDS, HAS_TRITON, use_backend
from hypothesis import given, settings
from hypothesis import strategies as st
from straight_through_cases import DTYPES, Case
from vs_kernels_nvcc import find_nvcc

from ptx.device import PtxDevice, kernel_named, kernels
from ptx.machine import Deadlock, launch
from ptx.memory import Memory, RaceCondition
from ptx.parse import parse
from vs_kernels import SelectionPlan

pytestmark = pytest.mark.skipif(find_nvcc() is None, reason="no nvcc: CUDA_HOME, the path, /usr/local/cuda")

ARCHS = ("compute_80", "compute_90")
SLICE_ROWS = 8192  # of a pool, to one block, as in straight_through.cuh
FORMS = ("gather", "mask")
RAGGED = SelectionPlan([120, 1, 0, 43, 20], [24, 1, 0, 9, 0])


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients(arch: str, form: str, dtype: str) -> None:
    case = Case.make(form, RAGGED, 64, DTYPES[dtype], noise=0.5)
    case.check(*PtxDevice(case, arch=arch, chunk_rows=4, warps_per_row=1).backward())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("width", "padding"), [(1, 0), (13, 3), (136, 8), (1304, 0)])
def test_any_width_and_stride(form: str, dtype: str, width: int, padding: int) -> None:
    case = Case.make(form, SelectionPlan([9, 7], [3, 2]), width, DTYPES[dtype], padding=padding)
    for chunk_rows, warps_per_row in ((4, 1), (1, 4), (8, 4)):
        case.check(*PtxDevice(case, chunk_rows=chunk_rows, warps_per_row=warps_per_row).backward())


@settings(max_examples=12, deadline=None, derandomize=True)
@given(data=st.data())
def test_ragged_pools(data: st.DataObject) -> None:
    """As by the definition and by all other kernels, among them those in Triton, whatever the pools, the ranking, the
    layout and the cut of the work."""
    lengths = data.draw(st.lists(st.integers(0, 90), min_size=1, max_size=40).filter(any))
    ks = [data.draw(st.integers(0, length)) for length in lengths]
    case = Case.make(
        data.draw(st.sampled_from(FORMS)),
        SelectionPlan(lengths, ks),
        data.draw(st.sampled_from([1, 8, 20, 33])),
        data.draw(st.sampled_from(list(DTYPES.values()))),
        temperature=data.draw(st.sampled_from([0.05, 0.5, 3.0])),
        factor=data.draw(st.sampled_from([0.0, 0.1, 1.0])),
        noise=data.draw(st.sampled_from([0.0, 2.0])),
        padding=data.draw(st.sampled_from([0, 4])),
        seed=data.draw(st.integers(0, 99)),
    )
    device = PtxDevice(case, chunk_rows=data.draw(st.integers(1, 32)), warps_per_row=data.draw(st.sampled_from([1, 4])))
    grad_tokens, grad_scores = device.backward(slices=data.draw(st.integers(1, 3)))
    case.check(grad_tokens, grad_scores)
    for backend in [*BACKENDS, *(["triton"] if HAS_TRITON else [])]:
        with use_backend(backend):
            others = case.on_cpu()
        case.check(*others)
        torch.testing.assert_close(grad_scores, others[1], rtol=1e-4, atol=4e-6 * float(grad_scores.abs().max()))
        if backend != "pytorch":  # which multiplies by a factor that is rounded to the dtype of the tokens
            torch.testing.assert_close(grad_tokens, others[0], rtol=0, atol=0)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("wanted", [(True, False), (False, True)])
@pytest.mark.parametrize(("width", "padding"), [(16, 0), (27, 5)])
def test_only_the_gradient_that_is_wanted(form: str, wanted: tuple[bool, bool], width: int, padding: int) -> None:
    """Credits alone take vectors and a rest of single entries where the rows allow it."""
    case = Case.make(form, RAGGED, width, torch.bfloat16, padding=padding)
    device = PtxDevice(case)
    device.run_rows(*wanted)
    if wanted[0]:
        case.check(device.results["grad_tokens"], None)
        assert "tokens" not in device.memory.reads and "credits" not in device.memory.writes
    else:
        device.run_pools()
        case.check(None, device.results["grad_scores"])
        assert "grad_tokens" not in device.memory.writes


def test_scores_that_are_no_numbers_and_saturated_pools() -> None:
    scores = torch.tensor([torch.nan, torch.inf, -torch.inf, 0.5, 0.1, 3e38, -3e38, 1e-3] * 4)
    scores[16:] *= 1e4
    case = Case.make("mask", SelectionPlan([8, 8, 16], [3, 5, 4]), 8, torch.float32, scores=scores)
    _, grad_scores = PtxDevice(case).backward()
    case.check(None, grad_scores)
    assert (grad_scores[~scores.isfinite()] == 0).all()


def test_gradients_of_a_pool_add_up_to_zero_where_credits_hardly_vary() -> None:
    case = Case.make("mask", SelectionPlan([500], [100]), 8, torch.float32)
    # credits of 8 and some units in the last place, exact in float32
    case.tokens.fill_(1.0)
    case.grads.fill_(1.0).add_(torch.randint(-8, 9, (500, 8)) * 2.0**-20)
    _, grad_scores = PtxDevice(case, chunk_rows=16).backward()
    case.check(None, grad_scores)
    assert float(grad_scores.abs().max()) > 0
    assert abs(float(grad_scores.double().sum())) < 1e-6 * float(grad_scores.double().abs().sum())


@pytest.mark.parametrize("form", FORMS)
def test_the_same_in_every_run(form: str) -> None:
    case = Case.make(form, RAGGED, 24, torch.float16)
    first, second = (PtxDevice(case, chunk_rows=8).backward(slices=2) for _ in range(2))
    assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])


def test_a_million_tokens_in_one_pool() -> None:
    """The second launch alone: the first one's work does not depend on how long pools are."""
    total, chunk_rows = 1_000_003, 32
    case = Case.make("mask", SelectionPlan([17, total - 17], [5, total // 5]), 1, torch.float32)
    device = PtxDevice(case, chunk_rows=chunk_rows)
    credits = (case.grads * case.tokens)[:, 0]
    device.results["credits"].copy_(credits)
    pool = torch.tensor([0] * 17 + [1] * (total - 17))
    logits = (case.scores.double() - case.pivots[pool]) / case.temperature + case.shifts[pool]
    v = torch.sigmoid(logits) * torch.sigmoid(-logits)
    whole = total // chunk_rows * chunk_rows
    weights, products = (x[:whole].view(-1, chunk_rows).sum(dim=1) for x in (v, v * credits))
    means = products / weights
    device.results["moments"][: total // chunk_rows] = torch.stack([weights, means, means - means.float()], dim=1)
    device.run_pools(slices=-(-total // (2 * SLICE_ROWS)))
    case.check(None, device.results["grad_scores"])


def test_offsets_of_64_bits() -> None:
    far = (1 << 31) + 8
    case = Case.make("mask", SelectionPlan([2], [1]), 8, torch.bfloat16)
    rows = {"tokens": case.tokens, "grads": case.grads}
    for name, near in rows.items():
        memory = torch.empty(2 * far, dtype=torch.bfloat16)  # of which the system provides what is touched
        apart = memory.as_strided((2, 8), (far, 1))
        apart.copy_(near)
        setattr(case, name, apart)
    results = PtxDevice(case).backward()
    case.tokens, case.grads = rows["tokens"], rows["grads"]
    case.check(*results)


# Traffic


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_move_once_and_whole(form: str, dtype: str) -> None:
    case = Case.make(form, SelectionPlan([70, 30], [14, 6]), 1024, DTYPES[dtype])
    device = PtxDevice(case, chunk_rows=4, warps_per_row=4)
    conflict = max(device.run_rows(), device.run_pools())
    memory = device.memory
    assert (memory.times_written["grad_tokens"] == 1).all()
    assert (memory.times_read["grads"] == 1).all()
    rows_read = memory.times_read["tokens"].reshape(100, -1)
    expected = torch.ones(100, 1) if form == "mask" else torch.zeros(100, 1).index_fill_(0, case.kept, 1)
    assert (rows_read == expected.numpy()).all()
    for traffic in (memory.reads["grads"], memory.reads["tokens"], memory.writes["grad_tokens"]):
        assert traffic.efficiency() >= 0.95
    # What else there is in memory, once in each launch, is little beside the rows.
    rows = sum(
        int(times.sum()) for times in (rows_read, memory.times_read["grads"], memory.times_written["grad_tokens"])
    )
    others = [name for name in memory.names if name not in ("grads", "tokens", "grad_tokens")]
    assert 2 * sum(memory.size(name) for name in others) <= 0.05 * rows
    assert conflict <= 2


def test_loads_of_rows_are_of_16_bytes() -> None:
    for name, kernel in kernels("compute_80").items():
        if "straight_through_rows" in name:
            assert any(instruction.op[:5] == ("ld", "global", "cs", "v4", "u32") for instruction in kernel.code), name


# What the interpreter finds. Each fault is planted in the PTX of a small kernel.

SMALL = """
.visible .entry small(
	.param .align 8 .b8 task[16]
)
.maxntid 64, 1, 1
{
	.reg .pred 	%p<3>;
	.reg .b32 	%r<6>;
	.reg .b64 	%rd<4>;
	.shared .align 4 .b8 room[256];
	ld.param.u64 	%rd1, [task];
	ld.param.u64 	%rd2, [task+8];
	mov.u32 	%r1, %tid.x;
	setp.lt.s32 	%p1, %r1, 32;
	shl.b32 	%r2, %r1, 2;
	mul.wide.u32 	%rd3, %r1, 4;
	add.s64 	%rd1, %rd1, %rd3;
	add.s64 	%rd2, %rd2, %rd3;
	ld.global.u32 	%r3, [%rd1];
	st.shared.u32 	[%r2], %r3;
	bar.sync 	0;
	xor.b32 	%r4, %r2, 128;
	ld.shared.u32 	%r5, [%r4];
	st.global.u32 	[%rd2], %r5;
	ret;
}
"""


def run_small(ptx: str) -> tuple[np.ndarray, int]:
    memory = Memory(
        {"in": np.arange(64, dtype=np.uint32), "out": np.zeros(64, np.uint32)}, writable={"out"}, counted=set()
    )
    params = np.array([memory.address("in"), memory.address("out")], np.uint64).tobytes()
    (kernel,) = parse(ptx).values()
    worst = launch(kernel, (3, 1), params, memory)
    return memory.bytes[1].view(np.uint32), worst


def test_interpreter_runs_a_small_kernel() -> None:
    out, conflict = run_small(SMALL)
    assert out.tolist() == [*range(32, 64), *range(32)] and conflict == 1


@pytest.mark.parametrize(
    ("old", "new", "error", "message"),
    [
        ("bar.sync 	0;", "@%p1 bra 	$L1; bar.sync 0; $L1:", RaceCondition, "no barrier between them"),
        ("bar.sync 	0;", "@%p1 ret; bar.sync 0;", Deadlock, "32 threads have left"),
        ("bar.sync 	0;", "@%p1 bra $L1; bar.sync 0; bra $L2; $L1: bar.sync 0; $L2:", Deadlock, "32 threads wait at"),
        ("bar.sync 	0;", "@%p1 ret; vote.sync.ballot.b32 %r4, %p1, -1; bar.sync 0;", Deadlock, "have left"),
        ("bar.sync 	0;", "", RaceCondition, "no barrier between them"),
        ("st.shared.u32 	[%r2], %r3;", "", ValueError, "read before it is written"),
        ("%rd3, %r1, 4", "%rd3, %r1, 8", IndexError, "offset 256 in in of 256 bytes"),
        ("add.s64 	%rd1, %rd1, %rd3", "add.s64 %rd1, %rd1, 2", IndexError, "no multiple of 4"),
        ("xor.b32 	%r4, %r2, 128", "add.s32 %r4, %r2, 128", IndexError, "shared memory of 256 bytes"),
        ("[%rd2], %r5", "[%rd1], %r5", PermissionError, "writes in"),
        ("xor.b32", "lop3.b32", NotImplementedError, "lop3"),
        ("ld.global.u32", "ld.volatile.global.u32", NotImplementedError, "volatile"),
    ],
)
def test_interpreter_reports(old: str, new: str, error: type[Exception], message: str) -> None:
    assert old in SMALL
    with pytest.raises(error, match=message):
        run_small(SMALL.replace(old, new))


def test_interpreter_counts_bank_conflicts() -> None:
    # 32 threads at every second word: two in each bank.
    planted = SMALL.replace("xor.b32 	%r4, %r2, 128", "and.b32 %r4, %r1, 31; shl.b32 %r4, %r4, 3")
    assert run_small(planted)[1] == 2


def test_a_barrier_of_the_kernel_is_missed() -> None:
    kernel = kernel_named("compute_90", "straight_through_rows", "Float32", "FormE1", "Lb1ELb1E")
    (at,) = (i for i, instruction in enumerate(kernel.code) if instruction.op[0] == "bar")
    barrier = kernel.code[at]
    kernel.code[at] = kernel.code[at - 1]
    try:
        with pytest.raises(RaceCondition, match="no barrier between them"):
            PtxDevice(Case.make("mask", RAGGED, 64, torch.float32), chunk_rows=8, warps_per_row=4).run_rows()
    finally:
        kernel.code[at] = barrier
