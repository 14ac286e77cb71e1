"""importance_scores: two reads of the tokens and one of each weight, in four launches for any number of pools.

1. sums of the columns of every tile; 2. mean tokens and mean keys ``k = Wk mean + bk``; 3. directions ``u = Wq^T k``;
4. scores ``(x . u + bq . k) / sqrt(h)``, last rows first, because those are what the L2 cache still holds; where a
selection is to follow, it also counts the scores of long pools by their first bytes.

The backward: 1. weighted sums ``y`` of the tokens; 2. ``dk = (Wq y + G bq) / sqrt(h)``; 3. all gradients of weights and
biases; and, where tokens need theirs, 4. ``Wk^T dk / N``; 5. the gradient of every token.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from vs_kernels.kernels import select_digits
from vs_kernels.kernels.launch import launch, row_major
from vs_kernels.kernels.pools import find_tile, first_tile, num_tiles
from vs_kernels.kernels.scores import score_key
from vs_kernels.kernels.select_digits import count_digits, counts_of_pool
from vs_kernels.kernels.tiles import next_power_of_two, tile_of

# Sums of tiles are read again by every program of the second launch: few tiles, each the work of many programs.
SUM_TILES = 4
# Pools that share one read of a weight.
MOST_POOLS = 8
# That a program sets to zero in one go.
ZEROS = tl.constexpr(4096)
# Of the sum of absolute values: a few units in the last place of float32.
SUM_ROUNDING = tl.constexpr(2.0**-22)


@triton.jit(do_not_specialize=["num_pools", "tile_rows"])
def _column_sums_kernel(
    tokens,  # [T, D]
    weights,  # float32 [T]; None: ones
    cu_lengths,  # int64 [S + 1]
    sums,  # float32 [tiles, D], of every tile
    totals,  # float64 [tiles, 2], of the weights and of their absolute values; None without weights
    stride,
    num_pools,
    tile_rows,
    WIDTH: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
):
    tile, block = tl.program_id(0), tl.program_id(1)
    _, first, end = find_tile(cu_lengths, num_pools, tile, tile_rows)
    columns = block * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    inside = columns < WIDTH
    sum_of_rows = tl.zeros([BLOCK_ROWS, BLOCK_COLUMNS], tl.float32)
    total = tl.zeros([BLOCK_ROWS], tl.float64)
    size = tl.zeros([BLOCK_ROWS], tl.float64)
    for start in range(0, (end - first).to(tl.int32), BLOCK_ROWS):
        rows = first + start + tl.arange(0, BLOCK_ROWS)
        here = rows < end
        mask = here[:, None] & inside[None, :]
        x = tl.load(tokens + rows[:, None] * stride + columns[None, :], mask=mask, other=0.0).to(tl.float32)
        if weights is not None:
            weight = tl.load(weights + rows, mask=here, other=0.0)
            x = x * weight[:, None]
            total += weight.to(tl.float64)
            size += tl.abs(weight).to(tl.float64)
        sum_of_rows += x
    tl.store(sums + tile.to(tl.int64) * WIDTH + columns, tl.sum(sum_of_rows, axis=0), mask=inside)
    if weights is not None:
        if block == 0:
            tl.store(totals + 2 * tile, tl.sum(total, axis=0))
            tl.store(totals + 2 * tile + 1, tl.sum(size, axis=0))


@triton.jit
def _sums_of_pools(sums, first, tiles, most, columns, mask, WIDTH: tl.constexpr):
    """[pools, columns]: tiles of each pool added in order."""
    total = tl.zeros([first.shape[0], columns.shape[0]], tl.float32)
    for tile in range(0, most):
        there = (tile < tiles)[:, None] & mask
        total += tl.load(sums + (first + tile)[:, None] * WIDTH + columns[None, :], mask=there, other=0.0)
    return total


@triton.jit
def _sums_beyond_rounding(totals, first, tiles, most):
    """[pools]: the sum of the weights of each pool, or zero where it is within the rounding of its float32 terms.

    A Top-K passes back gradients that sum to zero; what is left of the sum is noise, and would be the whole gradient of
    the query bias, which a Top-K cannot move.
    """
    total = tl.zeros([first.shape[0]], tl.float64)
    size = tl.zeros([first.shape[0]], tl.float64)
    for tile in range(0, most):
        total += tl.load(totals + 2 * (first + tile), mask=tile < tiles, other=0.0)
        size += tl.load(totals + 2 * (first + tile) + 1, mask=tile < tiles, other=0.0)
    return tl.where(tl.abs(total) <= SUM_ROUNDING * size, 0.0, total).to(tl.float32)


@triton.jit(do_not_specialize=["num_pools", "tile_rows"])
def _project_kernel(
    weight,  # [h, D]
    bias,  # [h]
    sums,  # float32 [tiles, D]
    totals,  # float64 [tiles, 2]; None: the vectors are means, and every pool has the bias once
    cu_lengths,  # int64 [S + 1]
    vectors,  # float32 [S, D]: mean, or scale times sum
    factors,  # float32 [S]: scale times total, of the bias; None with means
    projected,  # float32 [S, h]: weight vector + factor bias; None: not wanted
    stride,
    num_pools,
    tile_rows,
    scale,
    WIDTH: tl.constexpr,
    HIDDEN: tl.constexpr,
    BLOCK_POOLS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
):
    block = tl.program_id(0)
    pools = tl.program_id(1) * BLOCK_POOLS + tl.arange(0, BLOCK_POOLS)
    there = pools < num_pools
    begin = tl.load(cu_lengths + pools, mask=there, other=0)
    length = tl.load(cu_lengths + pools + 1, mask=there, other=0) - begin
    first = first_tile(begin, pools, tile_rows)
    tiles = (length + tile_rows - 1) // tile_rows
    most = tl.max(tiles, axis=0).to(tl.int32)
    factor = tl.full([BLOCK_POOLS], 1.0, tl.float32)
    if totals is not None:
        factor = _sums_beyond_rounding(totals, first, tiles, most) * scale
        if block == 0:
            tl.store(factors + pools, factor, mask=there)

    rows = block * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    below = rows < HIDDEN
    dots = tl.zeros([BLOCK_POOLS, BLOCK_ROWS, BLOCK_COLUMNS], tl.float32)
    for start in range(0, WIDTH, BLOCK_COLUMNS):
        columns = start + tl.arange(0, BLOCK_COLUMNS)
        inside = columns < WIDTH
        mask = there[:, None] & inside[None, :]
        vector = _sums_of_pools(sums, first, tiles, most, columns, mask, WIDTH)
        if totals is not None:
            vector = vector * scale
        else:
            vector = vector / tl.maximum(length, 1).to(tl.float32)[:, None]
        if block == 0:
            tl.store(vectors + pools[:, None] * WIDTH + columns[None, :], vector, mask=mask)
        if projected is not None:
            matrix = tl.load(
                weight + rows.to(tl.int64)[:, None] * stride + columns[None, :],
                mask=below[:, None] & inside[None, :],
                other=0.0,
                eviction_policy="evict_first",
            ).to(tl.float32)
            dots += matrix[None, :, :] * vector[:, None, :]
    if projected is not None:
        offset = tl.load(bias + rows, mask=below, other=0.0).to(tl.float32)
        out = tl.sum(dots, axis=2) + factor[:, None] * offset[None, :]
        tl.store(projected + pools[:, None] * HIDDEN + rows[None, :], out, mask=there[:, None] & below[None, :])


@triton.jit(do_not_specialize=["num_zeros", "num_pools"])
def _directions_kernel(
    weight,  # [h, D]
    factors,  # float32 [S, h]
    bias,  # [h]; None: no common terms wanted
    cu_lengths,  # int64 [S + 1], to divide by the lengths; None: do not
    directions,  # float32 [S, D]: weight^T factors
    common,  # float32 [S]: bias . factors
    zeros,  # int32 [num_zeros]: to set to zero for the next launch; None: nothing
    num_zeros,
    stride,
    num_pools,
    WIDTH: tl.constexpr,
    HIDDEN: tl.constexpr,
    BLOCK_POOLS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
):
    block = tl.program_id(0)
    if zeros is not None:
        programs = tl.num_programs(0) * tl.num_programs(1)
        for start in range((block + tl.num_programs(0) * tl.program_id(1)) * ZEROS, num_zeros, programs * ZEROS):
            place = start + tl.arange(0, ZEROS)
            tl.store(zeros + place, tl.zeros([ZEROS], tl.int32), mask=place < num_zeros)
    pools = tl.program_id(1) * BLOCK_POOLS + tl.arange(0, BLOCK_POOLS)
    there = pools < num_pools
    columns = block * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    inside = columns < WIDTH
    products = tl.zeros([BLOCK_POOLS, BLOCK_ROWS, BLOCK_COLUMNS], tl.float32)
    for start in range(0, HIDDEN, BLOCK_ROWS):
        rows = start + tl.arange(0, BLOCK_ROWS)
        below = rows < HIDDEN
        matrix = tl.load(
            weight + rows.to(tl.int64)[:, None] * stride + columns[None, :],
            mask=below[:, None] & inside[None, :],
            other=0.0,
            eviction_policy="evict_first",
        ).to(tl.float32)
        mask = there[:, None] & below[None, :]
        factor = tl.load(factors + pools[:, None] * HIDDEN + rows[None, :], mask=mask, other=0.0)
        products += matrix[None, :, :] * factor[:, :, None]
    direction = tl.sum(products, axis=1)
    if cu_lengths is not None:
        begin = tl.load(cu_lengths + pools, mask=there, other=0)
        length = tl.load(cu_lengths + pools + 1, mask=there, other=0) - begin
        direction = direction / tl.maximum(length, 1).to(tl.float32)[:, None]
    tl.store(directions + pools[:, None] * WIDTH + columns[None, :], direction, mask=there[:, None] & inside[None, :])
    if bias is not None:
        if block == 0:
            terms = tl.zeros([BLOCK_POOLS, BLOCK_ROWS], tl.float32)
            for start in range(0, HIDDEN, BLOCK_ROWS):
                rows = start + tl.arange(0, BLOCK_ROWS)
                below = rows < HIDDEN
                mask = there[:, None] & below[None, :]
                factor = tl.load(factors + pools[:, None] * HIDDEN + rows[None, :], mask=mask, other=0.0)
                terms += factor * tl.load(bias + rows, mask=below, other=0.0).to(tl.float32)[None, :]
            tl.store(common + pools, tl.sum(terms, axis=1), mask=there)


@triton.jit(do_not_specialize=["num_pools", "tiles"])
def _row_dots_kernel(
    tokens,  # [T, D]
    directions,  # float32 [S, D]
    common,  # float32 [S]
    cu_lengths,  # int64 [S + 1]
    scores,  # float32 [T]: scale (token . direction + common)
    counts,  # int32, of the long pools' digits, to add to; None: not wanted
    stride,
    num_pools,
    tiles,
    scale,
    LONG: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
):
    # From the end: what the first read of the tokens left in the L2 cache.
    pool, first, end = find_tile(cu_lengths, num_pools, tiles - 1 - tl.program_id(0), BLOCK_ROWS)
    rows = first + tl.arange(0, BLOCK_ROWS)
    here = rows < end
    products = tl.zeros([BLOCK_ROWS, BLOCK_COLUMNS], tl.float32)
    for start in range(0, WIDTH, BLOCK_COLUMNS):
        columns = start + tl.arange(0, BLOCK_COLUMNS)
        inside = columns < WIDTH
        mask = here[:, None] & inside[None, :]
        x = tl.load(tokens + rows[:, None] * stride + columns[None, :], mask=mask, other=0.0).to(tl.float32)
        products += x * tl.load(directions + pool * WIDTH + columns, mask=inside, other=0.0)[None, :]
    score = (tl.sum(products, axis=1) + tl.load(common + pool)) * scale
    tl.store(scores + rows, score, mask=here)
    if counts is not None:
        begin = tl.load(cu_lengths + pool)
        if tl.load(cu_lengths + pool + 1) - begin > LONG:
            # Loaded again: on the bits of the sums in place, Triton 3.9's compiler for AMD gives up.
            tl.debug_barrier()
            key = score_key(tl.load(scores + rows, mask=here, other=0.0))
            count_digits(counts_of_pool(counts, begin, LONG), key, here)


@triton.jit
def _outer_products(
    left, right, bias_factors, grad_weight, grad_bias, num_pools,
    WIDTH: tl.constexpr, HIDDEN: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    below = rows < HIDDEN
    if grad_weight is not None:
        columns = tl.program_id(1) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
        inside = columns < WIDTH
        total = tl.zeros([BLOCK_ROWS, BLOCK_COLUMNS], tl.float32)
        for pool in range(0, num_pools):
            factor = tl.load(left + pool * HIDDEN + rows, mask=below, other=0.0)
            total += factor[:, None] * tl.load(right + pool * WIDTH + columns, mask=inside, other=0.0)[None, :]
        out = grad_weight + rows.to(tl.int64)[:, None] * WIDTH + columns[None, :]
        tl.store(out, total.to(grad_weight.dtype.element_ty), mask=below[:, None] & inside[None, :])
    if grad_bias is not None:
        if tl.program_id(1) == 0:
            biases = tl.zeros([BLOCK_ROWS], tl.float32)
            for pool in range(0, num_pools):
                factor = tl.load(left + pool * HIDDEN + rows, mask=below, other=0.0)
                if bias_factors is not None:
                    factor = factor * tl.load(bias_factors + pool)
                biases += factor
            tl.store(grad_bias + rows, biases.to(grad_bias.dtype.element_ty), mask=below)


@triton.jit(do_not_specialize=["num_pools"])
def _weight_grads_kernel(
    mean_keys,  # float32 [S, h]
    weighted,  # float32 [S, D]
    factors,  # float32 [S]
    grad_q_weight,  # [h, D]: sum over pools of mean key x weighted; None: not wanted, as for the others
    grad_q_bias,  # [h]: sum of factor times mean key
    grad_keys,  # float32 [S, h]
    mean_tokens,  # float32 [S, D]
    grad_k_weight,  # [h, D]: sum of grad key x mean token
    grad_k_bias,  # [h]: sum of grad key
    num_pools,
    WIDTH: tl.constexpr,
    HIDDEN: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
):
    _outer_products(
        mean_keys, weighted, factors, grad_q_weight, grad_q_bias, num_pools, WIDTH, HIDDEN, BLOCK_ROWS, BLOCK_COLUMNS
    )
    _outer_products(
        grad_keys, mean_tokens, None, grad_k_weight, grad_k_bias, num_pools, WIDTH, HIDDEN, BLOCK_ROWS, BLOCK_COLUMNS
    )


@triton.jit(do_not_specialize=["num_pools"])
def _token_grads_kernel(
    grad_scores,  # float32 [T]
    directions,  # float32 [S, D]
    shared,  # float32 [S, D]
    cu_lengths,  # int64 [S + 1]
    grad_tokens,  # [T, D]: scale grad direction + shared
    num_pools,
    scale,
    WIDTH: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
):
    pool, first, end = find_tile(cu_lengths, num_pools, tl.program_id(0), BLOCK_ROWS)
    rows = first + tl.arange(0, BLOCK_ROWS)
    here = rows < end
    grad = tl.load(grad_scores + rows, mask=here, other=0.0) * scale
    for start in range(0, WIDTH, BLOCK_COLUMNS):
        columns = start + tl.arange(0, BLOCK_COLUMNS)
        inside = columns < WIDTH
        direction = tl.load(directions + pool * WIDTH + columns, mask=inside, other=0.0)
        rest = tl.load(shared + pool * WIDTH + columns, mask=inside, other=0.0)
        out = (grad[:, None] * direction[None, :] + rest[None, :]).to(grad_tokens.dtype.element_ty)
        tl.store(grad_tokens + rows[:, None] * WIDTH + columns[None, :], out, mask=here[:, None] & inside[None, :])


def importance_scores(
    tokens: Tensor,  # [T, D]
    q_weight: Tensor,  # [h, D]
    q_bias: Tensor,  # [h]
    k_weight: Tensor,  # [h, D]
    k_bias: Tensor,  # [h]
    cu_lengths: Tensor,  # int64 [S + 1]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    scores, mean_tokens, mean_keys, directions, _ = score_tokens(
        tokens, q_weight, q_bias, k_weight, k_bias, cu_lengths, counted=False
    )
    return scores, mean_tokens, mean_keys, directions


def score_tokens(
    tokens: Tensor,  # [T, D]
    q_weight: Tensor,  # [h, D]
    q_bias: Tensor,  # [h]
    k_weight: Tensor,  # [h, D]
    k_bias: Tensor,  # [h]
    cu_lengths: Tensor,  # int64 [S + 1]
    counted: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    """Scores, mean tokens, mean keys and directions; with ``counted`` the counts of :mod:`select_digits`, else None."""
    total, width = tokens.shape
    hidden, num_pools, device = q_weight.shape[0], cu_lengths.shape[0] - 1, tokens.device
    tokens = row_major(tokens)
    scores = tokens.new_empty(total, dtype=torch.float32)
    mean_tokens, directions = (tokens.new_empty(num_pools, width, dtype=torch.float32) for _ in range(2))
    mean_keys = tokens.new_empty(num_pools, hidden, dtype=torch.float32)
    common = scores.new_empty(num_pools)
    counts = select_digits.new_counts(scores, num_pools) if counted else None

    sums, _, tile_rows = _column_sums(tokens, None, cu_lengths)
    _project(k_weight, k_bias, sums, None, cu_lengths, mean_tokens, None, mean_keys, tile_rows, 1.0)
    _directions(q_weight, mean_keys, q_bias.contiguous(), None, directions, common, counts)
    tile = tile_of("row_dots", width, device)
    tiles = num_tiles(total, num_pools, tile.rows)
    launch(
        _row_dots_kernel, (tiles,), tokens, directions, common, cu_lengths, scores, counts, tokens.stride(0), num_pools,
        tiles, hidden**-0.5, LONG=select_digits.LONG, WIDTH=width, BLOCK_ROWS=tile.rows, BLOCK_COLUMNS=tile.columns,
        num_warps=tile.num_warps,
    )  # fmt: skip
    return scores, mean_tokens, mean_keys, directions, counts


def importance_scores_backward(
    grad_scores: Tensor,  # float32 [T]
    tokens: Tensor,  # [T, D]
    q_weight: Tensor,  # [h, D]
    q_bias: Tensor,  # [h]
    k_weight: Tensor,  # [h, D]
    mean_tokens: Tensor,  # float32 [S, D]
    mean_keys: Tensor,  # float32 [S, h]
    directions: Tensor,  # float32 [S, D]
    cu_lengths: Tensor,  # int64 [S + 1]
    output_mask: list[bool],  # tokens, q_weight, q_bias, k_weight, k_bias
) -> tuple[Tensor, ...]:
    (total, width), hidden, num_pools = tokens.shape, q_weight.shape[0], cu_lengths.shape[0] - 1
    wants_tokens, *_, wants_k_weight, wants_k_bias = output_mask
    likes = (tokens, q_weight, q_bias, k_weight, q_bias)
    grads = [like.new_empty(like.shape) if want else None for like, want in zip(likes, output_mask, strict=True)]
    grad_tokens, grad_q_weight, grad_q_bias, grad_k_weight, grad_k_bias = grads
    grad_scores, tokens, scale = grad_scores.contiguous(), row_major(tokens), hidden**-0.5
    weighted, factors = torch.empty_like(mean_tokens), mean_tokens.new_empty(num_pools)
    wants_keys = wants_tokens or wants_k_weight or wants_k_bias
    grad_keys = torch.empty_like(mean_keys) if wants_keys else None

    sums, totals, tile_rows = _column_sums(tokens, grad_scores, cu_lengths)
    _project(q_weight, q_bias, sums, totals, cu_lengths, weighted, factors, grad_keys, tile_rows, scale)
    if any(output_mask[1:]):
        tile = tile_of("outer_products", width, tokens.device)
        columns = triton.cdiv(width, tile.columns) if grad_q_weight is not None or grad_k_weight is not None else 1
        launch(
            _weight_grads_kernel, (triton.cdiv(hidden, tile.rows), columns), mean_keys, weighted, factors,
            grad_q_weight, grad_q_bias, grad_keys, mean_tokens, grad_k_weight, grad_k_bias, num_pools,
            WIDTH=width, HIDDEN=hidden, BLOCK_ROWS=tile.rows, BLOCK_COLUMNS=tile.columns, num_warps=tile.num_warps,
        )  # fmt: skip
    if grad_tokens is not None and grad_keys is not None:
        shared = torch.empty_like(mean_tokens)
        _directions(k_weight, grad_keys, None, cu_lengths, shared, None)
        tile = tile_of("rows", width, tokens.device)
        launch(
            _token_grads_kernel, (num_tiles(total, num_pools, tile.rows),), grad_scores, directions, shared, cu_lengths,
            grad_tokens, num_pools, scale, WIDTH=width, BLOCK_ROWS=tile.rows, BLOCK_COLUMNS=tile.columns,
            num_warps=tile.num_warps,
        )  # fmt: skip
    return tuple(like.new_empty(0) if grad is None else grad for grad, like in zip(grads, likes, strict=True))


def _column_sums(tokens: Tensor, weights: Tensor | None, cu_lengths: Tensor) -> tuple[Tensor, Tensor | None, int]:
    """Sums [tiles, D], totals [tiles, 2] of the weights, and the rows of a tile."""
    (total, width), num_pools = tokens.shape, cu_lengths.shape[0] - 1
    tile = tile_of("column_sums", width, tokens.device)
    tile_rows = tile.rows * triton.cdiv(max(1, triton.cdiv(total, SUM_TILES)), tile.rows)
    tiles = num_tiles(total, num_pools, tile_rows)
    sums = tokens.new_empty(tiles, width, dtype=torch.float32)
    totals = None if weights is None else tokens.new_empty(tiles, 2, dtype=torch.float64)
    launch(
        _column_sums_kernel, (tiles, triton.cdiv(width, tile.columns)), tokens, weights, cu_lengths, sums, totals,
        tokens.stride(0), num_pools, tile_rows, WIDTH=width, BLOCK_ROWS=tile.rows, BLOCK_COLUMNS=tile.columns,
        num_warps=tile.num_warps,
    )  # fmt: skip
    return sums, totals, tile_rows


def _project(
    weight: Tensor, bias: Tensor, sums: Tensor, totals: Tensor | None, cu_lengths: Tensor, vectors: Tensor,
    factors: Tensor | None, projected: Tensor | None, tile_rows: int, scale: float,
) -> None:  # fmt: skip
    weight, (num_pools, width), hidden = row_major(weight), vectors.shape, weight.shape[0]
    tile = tile_of("project", width, weight.device)
    pools = min(MOST_POOLS, next_power_of_two(num_pools))
    rows = max(1, tile.rows // pools)
    blocks = 1 if projected is None else triton.cdiv(hidden, rows)
    launch(
        _project_kernel, (blocks, triton.cdiv(num_pools, pools)), weight, bias.contiguous(), sums, totals, cu_lengths,
        vectors, factors, projected, weight.stride(0), num_pools, tile_rows, scale, WIDTH=width, HIDDEN=hidden,
        BLOCK_POOLS=pools, BLOCK_ROWS=rows, BLOCK_COLUMNS=tile.columns, num_warps=tile.num_warps,
    )  # fmt: skip


def _directions(
    weight: Tensor, factors: Tensor, bias: Tensor | None, cu_lengths: Tensor | None, directions: Tensor,
    common: Tensor | None, zeros: Tensor | None = None,
) -> None:  # fmt: skip
    weight, (num_pools, width), hidden = row_major(weight), directions.shape, weight.shape[0]
    tile = tile_of("directions", width, weight.device)
    pools = min(MOST_POOLS, next_power_of_two(num_pools))
    launch(
        _directions_kernel, (triton.cdiv(width, tile.columns), triton.cdiv(num_pools, pools)), weight, factors, bias,
        cu_lengths, directions, common, zeros, 0 if zeros is None else zeros.numel(), weight.stride(0), num_pools,
        WIDTH=width, HIDDEN=hidden, BLOCK_POOLS=pools, BLOCK_ROWS=max(1, tile.rows // pools),
        BLOCK_COLUMNS=tile.columns, num_warps=tile.num_warps,
    )  # fmt: skip
