"""An interpreter of PTX: NumPy arrays with one entry per thread, for many blocks at once.

Every thread has its own program counter; those with the lowest one go first, so that branches join again where the
code does. Unknown instructions raise. Barriers and warp instructions wait for their threads: when nobody can go on,
a report says who waits where.
"""

import numpy as np

from .arithmetic import CONVERSIONS, OPERATIONS, compare
from .memory import WARP, Memory, SharedMemory
from .parse import Address, Immediate, Instruction, Kernel, Operand, Register, Special, Vector, dtype_of

_RUNS, _AT_BARRIER, _IN_WARP, _DONE = range(4)
_SPACE_MODIFIERS = {"cs", "nc"}  # of loads and stores: hints that change no result
_MANY_THREADS = 8192  # of a batch


class Deadlock(RuntimeError):
    """Threads wait for others that never come."""


def launch(kernel: Kernel, grid: tuple[int, int], params: bytes, memory: Memory) -> int:
    """Run every block; returns the worst bank conflict (1 is none)."""
    if len(params) != kernel.param_bytes:
        raise ValueError(f"params: got {len(params)} bytes, expected {kernel.param_bytes}")
    blocks = np.stack(np.meshgrid(np.arange(grid[0]), np.arange(grid[1]), indexing="ij"), axis=-1).reshape(-1, 2)
    batch = max(1, _MANY_THREADS // kernel.threads)
    worst = 1
    with np.errstate(all="ignore"):
        for first in range(0, len(blocks), batch):
            state = _Batch(kernel, blocks[first : first + batch], grid, np.frombuffer(params, np.uint8), memory)
            state.run()
            worst = max(worst, state.shared.worst_conflict)
    return worst


class _Batch:
    def __init__(
        self, kernel: Kernel, blocks: np.ndarray, grid: tuple[int, int], params: np.ndarray, memory: Memory
    ) -> None:
        count, threads = len(blocks), kernel.threads
        self.kernel, self.memory, self.params = kernel, memory, params
        self.block = np.repeat(np.arange(count), threads)
        self.block_ids = blocks
        self.warp = np.arange(count * threads) // WARP
        self.shared = SharedMemory(count, kernel.shared_bytes)
        self.registers = {name: np.zeros(count * threads, dtype) for name, dtype in kernel.registers.items()}
        self.specials = {
            "%tid.x": np.tile(np.arange(threads), count),
            "%ctaid.x": np.repeat(blocks[:, 0], threads),
            "%ctaid.y": np.repeat(blocks[:, 1], threads),
            "%nctaid.y": np.full(count * threads, grid[1]),
        }
        self.pc = np.zeros(count * threads, np.int64)
        self.status = np.full(count * threads, _RUNS, np.int8)

    def run(self) -> None:
        while True:
            running = np.flatnonzero(self.status == _RUNS)
            if running.size == 0:
                if self.status.min() == _DONE:
                    return
                self._report()
            pcs = self.pc[running]
            lowest = int(pcs.min())
            now = pcs == lowest
            threads, later = running[now], pcs[~now]
            stop = int(later.min()) if later.size else len(self.kernel.code)
            self._run_until(lowest, stop, threads)

    def _run_until(self, pc: int, stop: int, threads: np.ndarray) -> None:
        """These threads, from ``pc`` until they meet others or part."""
        code = self.kernel.code
        while pc < stop:
            instruction = code[pc]
            active = threads
            if instruction.guard:
                active = threads[self.registers[instruction.guard][threads] != instruction.negated]
            match instruction.op[0]:
                case "bra":
                    self.pc[threads] = pc + 1
                    self.pc[active] = instruction.target
                    if active.size == threads.size and instruction.target > pc:
                        pc = instruction.target
                        continue
                    return
                case "ret":
                    self.pc[threads] = pc + 1
                    self.status[active] = _DONE
                    return
                case "bar" | "shfl" | "vote" if instruction.guard:
                    raise NotImplementedError(f"{instruction.text!r} of some threads")
                case "bar":
                    self.pc[threads] = pc
                    self.status[threads] = _AT_BARRIER
                    self._release_barriers()
                    return
                case "shfl" | "vote":
                    ready = self._whole_warps(threads, pc)
                    if ready.size:
                        self._warp_instruction(instruction, ready)
                        self.pc[ready] = pc + 1
                        self.status[ready] = _RUNS
                    if ready.size != threads.size:
                        return
                case _ if active.size:
                    self._execute(instruction, active)
            pc += 1
        self.pc[threads] = pc

    # Waiting

    def _release_barriers(self) -> None:
        shape = (-1, self.kernel.threads)
        waits = (self.status == _AT_BARRIER).reshape(shape)
        ready = np.flatnonzero(waits.all(axis=1))
        for block in ready:
            span = slice(block * self.kernel.threads, (block + 1) * self.kernel.threads)
            if np.ptp(self.pc[span]):
                self._report()
            self.status[span] = _RUNS
            self.pc[span] += 1
            self.shared.epoch[block] += 1

    def _whole_warps(self, threads: np.ndarray, pc: int) -> np.ndarray:
        """Of the threads that have come to a warp instruction, those whose warp is complete."""
        self.pc[threads] = pc
        self.status[threads] = _IN_WARP
        here = ((self.status == _IN_WARP) & (self.pc == pc)).reshape(-1, WARP)
        return np.flatnonzero(np.repeat(here.all(axis=1), WARP))

    def _report(self) -> None:
        waiting = np.flatnonzero((self.status == _AT_BARRIER) | (self.status == _IN_WARP))
        block = self.block[waiting[0]]
        mates = np.flatnonzero(self.block == block)
        lines = [f"{self.kernel.name}, block {tuple(map(int, self.block_ids[block]))}:"]
        for pc in np.unique(self.pc[mates]):
            here = mates[(self.pc[mates] == pc) & (self.status[mates] != _DONE)]
            if here.size:
                lines.append(f"  {here.size} threads wait at {self.kernel.code[pc].text!r}")
        lines.append(f"  {(self.status[mates] == _DONE).sum()} threads have left")
        raise Deadlock("\n".join(lines))

    # Operands

    def _value(self, operand: Operand, dtype: np.dtype, threads: np.ndarray) -> np.ndarray:
        if isinstance(operand, Register):
            bits = self.registers[operand.name][threads]
            if bits.dtype.itemsize > dtype.itemsize:  # the lower part
                bits = bits.astype(f"u{dtype.itemsize}")
            return bits if dtype.kind == "b" else bits.view(dtype)
        if isinstance(operand, Special):
            return self.specials[operand.name][threads].astype(dtype)
        if isinstance(operand, Immediate):
            if dtype.kind == "b":
                return np.full(threads.size, bool(operand.value))
            bits = operand.value & ((1 << 8 * dtype.itemsize) - 1)
            return np.full(threads.size, bits, f"u{dtype.itemsize}").view(dtype)
        raise NotImplementedError(f"operand {operand}")

    def _set(self, operand: Operand, value: np.ndarray, threads: np.ndarray) -> None:
        assert isinstance(operand, Register)
        register = self.registers[operand.name]
        if register.dtype.kind != "b" and value.dtype != register.dtype:
            if value.dtype.itemsize == register.dtype.itemsize:
                value = value.view(register.dtype)
            elif value.dtype.kind in "iu":  # a load of fewer bytes: extended by its sign or by zeros
                value = value.astype(f"i{register.dtype.itemsize}").view(register.dtype)
            else:
                raise NotImplementedError(f"{value.dtype} into {operand.name}")
        register[threads] = value

    # Instructions

    def _execute(self, instruction: Instruction, threads: np.ndarray) -> None:
        op, operands = instruction.op, instruction.operands
        match op[0]:
            case "ld" | "st":
                self._access(instruction, threads)
            case "mov":
                self._move(dtype_of(op[1]), operands, threads)
            case "cvta":
                self._set(operands[0], self._value(operands[1], dtype_of(op[-1]), threads), threads)
            case "setp":
                a, b = (self._value(operand, dtype_of(op[-1]), threads) for operand in operands[1:])
                self._set(operands[0], compare(op[1], a, b), threads)
            case "selp":
                a, b = (self._value(operand, dtype_of(op[-1]), threads) for operand in operands[1:3])
                self._set(operands[0], np.where(self._value(operands[3], np.dtype(bool), threads), a, b), threads)
            case "cvt":
                self._convert(instruction, threads)
            case "mul" if op[1] == "wide":
                wide = dtype_of(f"{op[2][0]}{2 * int(op[2][1:])}")
                a, b = (self._value(operand, dtype_of(op[2]), threads).astype(wide) for operand in operands[1:])
                self._set(operands[0], a * b, threads)
            case _:
                name, dtype = ".".join(op[:-1]), dtype_of(op[-1])
                if name not in OPERATIONS:
                    raise NotImplementedError(f"instruction {instruction.text!r}")
                values = [self._value(operand, dtype, threads) for operand in operands[1:]]
                if name in ("shl", "shr"):
                    values[1] = self._value(operands[2], np.dtype(np.uint32), threads)
                self._set(operands[0], OPERATIONS[name](*values), threads)

    def _move(self, dtype: np.dtype, operands: tuple[Operand, ...], threads: np.ndarray) -> None:
        to, source = operands
        if isinstance(to, Vector):
            parts = self._value(source, dtype, threads).view(f"u{dtype.itemsize // len(to.parts)}")
            for i, part in enumerate(to.parts):
                self._set(part, parts.reshape(threads.size, -1)[:, i], threads)
        else:
            self._set(to, self._value(source, dtype, threads), threads)

    def _convert(self, instruction: Instruction, threads: np.ndarray) -> None:
        name, operands = ".".join(instruction.op[1:]), instruction.operands
        types = instruction.op[1:]
        if len(types) == 2 and all(kind[0] in "us" for kind in types):
            value = self._value(operands[1], dtype_of(types[1]), threads).astype(dtype_of(types[0]))
        elif name in CONVERSIONS:
            values = [self._value(operand, dtype_of(types[-1]), threads) for operand in operands[1:]]
            value = CONVERSIONS[name](*values)
        else:
            raise NotImplementedError(f"instruction {instruction.text!r}")
        self._set(operands[0], value, threads)

    def _access(self, instruction: Instruction, threads: np.ndarray) -> None:
        kind, space, *modifiers, type_name = instruction.op
        vectors = [int(name[1:]) for name in modifiers if name in ("v2", "v4")]
        if set(modifiers) - _SPACE_MODIFIERS - {"v2", "v4"}:
            raise NotImplementedError(f"instruction {instruction.text!r}")
        dtype = dtype_of(type_name)
        size = dtype.itemsize * (vectors[0] if vectors else 1)
        address, data = instruction.operands if kind == "st" else reversed(instruction.operands)
        assert isinstance(address, Address)
        parts = data.parts if isinstance(data, Vector) else (data,)
        at = self._value(address.base, np.dtype(np.int64), threads) if isinstance(address.base, Immediate) else None
        if at is None:
            wide = self.registers[address.base.name].dtype.itemsize  # type: ignore[union-attr]
            at = self._value(address.base, np.dtype(f"i{wide}"), threads).astype(np.int64)
        at = at + address.offset
        blocks, warps, text = self.block[threads], self.warp[threads], instruction.text
        if kind == "st":
            values = np.stack([self._value(part, dtype, threads) for part in parts], axis=1).view(np.uint8)
            if space == "global":
                self.memory.store(at, values, warps, text)
            elif space == "shared":
                self.shared.store(at, values, blocks, warps, text)
            else:
                raise NotImplementedError(f"instruction {text!r}")
            return
        if space == "global":
            raw = self.memory.load(at, size, warps, text)
        elif space == "shared":
            raw = self.shared.load(at, size, blocks, warps, text)
        elif space == "param":
            raw = self.params[at[:, None] + np.arange(size)]
        else:
            raise NotImplementedError(f"instruction {text!r}")
        values = np.ascontiguousarray(raw).view(dtype)
        for i, part in enumerate(parts):
            self._set(part, np.ascontiguousarray(values[:, i]), threads)

    def _warp_instruction(self, instruction: Instruction, threads: np.ndarray) -> None:
        op, operands = instruction.op, instruction.operands
        bits = np.dtype(np.uint32)
        if (self._value(operands[-1], bits, threads) != 0xFFFFFFFF).any():
            raise NotImplementedError(f"{instruction.text!r} of a part of the warp")
        lanes = np.arange(threads.size) % WARP
        if op[:3] == ("shfl", "sync", "bfly") and isinstance(operands[3], Register | Immediate):
            if (self._value(operands[3], bits, threads) != WARP - 1).any():
                raise NotImplementedError(f"{instruction.text!r} of a part of the warp")
            value = self._value(operands[1], bits, threads)
            source = np.arange(threads.size) - lanes + (lanes ^ self._value(operands[2], bits, threads))
            to = operands[0]
            if isinstance(to, Vector):
                self._set(to.parts[1], np.full(threads.size, True), threads)
                to = to.parts[0]
            self._set(to, value[source], threads)
        elif op[:3] == ("vote", "sync", "ballot"):
            votes = self._value(operands[1], np.dtype(bool), threads).reshape(-1, WARP)
            ballots = (votes.astype(np.uint32) << np.arange(WARP, dtype=np.uint32)).sum(axis=1, dtype=np.uint32)
            self._set(operands[0], np.repeat(ballots, WARP), threads)
        else:
            raise NotImplementedError(f"instruction {instruction.text!r}")
