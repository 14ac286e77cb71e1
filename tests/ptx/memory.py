"""The memory of the interpreted device: named arrays at made-up addresses, every access checked and counted."""

from collections import defaultdict
from dataclasses import dataclass

import numpy as np

SECTOR = 32  # bytes that memory moves at least
WARP = 32
BANKS = 32
_FIRST_ADDRESS, _SPACING = 1 << 40, 1 << 36  # far enough apart that a small mistake does not hit the next array


class RaceCondition(RuntimeError):
    """Two warps use the same word of shared memory in an order that nothing fixes."""


@dataclass
class Traffic:
    """Of all accesses to one array, in one direction."""

    bytes: int = 0
    sectors: int = 0  # touched by the requests of warps, each of them once per request

    def efficiency(self) -> float:
        """Bytes asked for, of those that move."""
        return self.bytes / (SECTOR * self.sectors)


class Memory:
    """Global memory: the arrays of ``named``, of which only those in ``writable`` may be written.

    Of those in ``counted``, ``times_read`` and ``times_written`` say how often each byte was.
    """

    def __init__(self, named: dict[str, np.ndarray], writable: set[str], counted: set[str]) -> None:
        self.names = list(named)
        self.writable = writable
        self.bytes = [np.ascontiguousarray(array).reshape(-1).view(np.uint8) for array in named.values()]
        self.bases = {name: _FIRST_ADDRESS + i * _SPACING for i, name in enumerate(self.names)}
        self.reads: dict[str, Traffic] = defaultdict(Traffic)
        self.writes: dict[str, Traffic] = defaultdict(Traffic)
        sizes = {name: len(data) for name, data in zip(self.names, self.bytes, strict=True) if name in counted}
        self.times_read = {name: np.zeros(size, np.uint8) for name, size in sizes.items()}
        self.times_written = {name: np.zeros(size, np.uint8) for name, size in sizes.items()}

    def size(self, name: str) -> int:
        return len(self.bytes[self.names.index(name)])

    def address(self, name: str) -> int:
        return self.bases[name]

    def _locate(self, addresses: np.ndarray, size: int, text: str) -> tuple[int, np.ndarray]:
        """The array that all addresses lie in, and the offsets there."""
        which = (int(addresses[0]) - _FIRST_ADDRESS) // _SPACING
        if not 0 <= which < len(self.names):
            raise IndexError(f"{text}: address {int(addresses[0]):#x} is in no array")
        offsets = addresses.astype(np.int64) - (_FIRST_ADDRESS + which * _SPACING)
        if offsets.min() < 0 or offsets.max() + size > len(self.bytes[which]):
            bad = offsets[(offsets < 0) | (offsets + size > len(self.bytes[which]))][0]
            raise IndexError(f"{text}: offset {bad} in {self.names[which]} of {len(self.bytes[which])} bytes")
        if (offsets % size).any():
            raise IndexError(f"{text}: address in {self.names[which]} is no multiple of {size}")
        return which, offsets

    def load(self, addresses: np.ndarray, size: int, warps: np.ndarray, text: str) -> np.ndarray:
        """uint8 [threads, size]"""
        which, offsets = self._locate(addresses, size, text)
        name = self.names[which]
        self._count(self.reads[name], self.times_read.get(name), offsets, size, warps)
        return self.bytes[which].reshape(-1)[offsets[:, None] + np.arange(size)]

    def store(self, addresses: np.ndarray, values: np.ndarray, warps: np.ndarray, text: str) -> None:
        size = values.shape[1]
        which, offsets = self._locate(addresses, size, text)
        name = self.names[which]
        if name not in self.writable:
            raise PermissionError(f"{text}: writes {name}")
        self._count(self.writes[name], self.times_written.get(name), offsets, size, warps)
        self.bytes[which][offsets[:, None] + np.arange(size)] = values

    def _count(
        self, traffic: Traffic, times: np.ndarray | None, offsets: np.ndarray, size: int, warps: np.ndarray
    ) -> None:
        traffic.bytes += offsets.size * size
        traffic.sectors += np.unique(warps.astype(np.int64) * (_SPACING // SECTOR) + offsets // SECTOR).size
        if times is not None:
            np.add.at(times, (offsets[:, None] + np.arange(size)).reshape(-1), 1)


class SharedMemory:
    """Of a batch of blocks: 32-bit words, with the worst bank conflict that occurred.

    Between two barriers a word belongs to the warp that writes it; any other warp's access is a race.
    """

    def __init__(self, blocks: int, size: int) -> None:
        self.words_of_block = size // 4
        words = blocks * self.words_of_block
        self.words = np.zeros(words, np.uint32)
        self.epoch = np.zeros(blocks, np.int64)  # barriers that a block has passed
        self.writer = np.full(words, -1)  # warp
        self.reader = np.full(words, -1)  # warp, or -2 for several
        self.write_epoch = np.full(words, -1)
        self.read_epoch = np.full(words, -1)
        self.worst_conflict = 1

    def _locate(self, addresses: np.ndarray, size: int, warps: np.ndarray, blocks: np.ndarray, text: str) -> np.ndarray:
        if size != 4:
            raise NotImplementedError(f"{text}: bank conflicts of accesses of {size} bytes")
        if addresses.min() < 0 or addresses.max() + 4 > 4 * self.words_of_block or (addresses % 4).any():
            raise IndexError(
                f"{text}: shared memory of {4 * self.words_of_block} bytes at {addresses.min()} to {addresses.max()}"
            )
        words = addresses // 4
        distinct = np.unique(warps.astype(np.int64) * self.words_of_block + words)
        banks = distinct // self.words_of_block * BANKS + distinct % self.words_of_block % BANKS
        self.worst_conflict = max(self.worst_conflict, int(np.unique(banks, return_counts=True)[1].max()))
        return blocks * self.words_of_block + words

    def _check_race(
        self, others: np.ndarray, epochs: np.ndarray, warps: np.ndarray, now: np.ndarray, text: str
    ) -> None:
        racing = (epochs == now) & (others != warps)
        if racing.any():
            raise RaceCondition(f"{text}: warps {warps[racing][0]} and {others[racing][0]}, no barrier between them")

    def load(self, addresses: np.ndarray, size: int, blocks: np.ndarray, warps: np.ndarray, text: str) -> np.ndarray:
        at = self._locate(addresses, size, warps, blocks, text)
        now = self.epoch[blocks]
        if (self.writer[at] < 0).any():
            raise ValueError(f"{text}: shared memory is read before it is written")
        self._check_race(self.writer[at], self.write_epoch[at], warps, now, text)
        several = (self.read_epoch[at] == now) & (self.reader[at] != warps)
        self.reader[at] = np.where(several, -2, warps)
        self.read_epoch[at] = now
        return self.words[at][:, None].view(np.uint8)

    def store(
        self, addresses: np.ndarray, values: np.ndarray, blocks: np.ndarray, warps: np.ndarray, text: str
    ) -> None:
        at = self._locate(addresses, values.shape[1], warps, blocks, text)
        now = self.epoch[blocks]
        self._check_race(self.writer[at], self.write_epoch[at], warps, now, text)
        self._check_race(self.reader[at], self.read_epoch[at], warps, now, text)
        self.words[at] = values.view(np.uint32)[:, 0]
        self.writer[at] = warps
        self.write_epoch[at] = now
