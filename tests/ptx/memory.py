"""The memory of the interpreted device: named arrays at made-up addresses, every access checked and counted."""

from collections import defaultdict
from dataclasses import dataclass

import numpy as np

SECTOR = 32  # bytes that memory moves at least
WARP = 32
BANKS = 32
_FIRST_ADDRESS, _SPACING = 1 << 40, 1 << 36  # far enough apart that a small mistake does not hit the next array


@dataclass
class Traffic:
    """Of all accesses to one array, in one direction."""

    bytes: int = 0
    sectors: int = 0  # touched by the requests of warps, each of them once per request

    def efficiency(self) -> float:
        """Bytes asked for, of those that move."""
        return self.bytes / (SECTOR * self.sectors)


class Memory:
    """Global memory: the arrays of ``named``, of which only those in ``writable`` may be written."""

    def __init__(self, named: dict[str, np.ndarray], writable: set[str]) -> None:
        self.names = list(named)
        self.writable = writable
        # at an odd multiple of 16 bytes less than the page, as slices of a tensor may be
        self.bytes = [np.ascontiguousarray(array).reshape(-1).view(np.uint8) for array in named.values()]
        self.bases = {name: _FIRST_ADDRESS + i * _SPACING for i, name in enumerate(self.names)}
        self.reads: dict[str, Traffic] = defaultdict(Traffic)
        self.writes: dict[str, Traffic] = defaultdict(Traffic)
        self.times_read = {name: np.zeros(len(data), np.uint8) for name, data in zip(self.names, self.bytes, strict=True)}
        self.times_written = {name: np.zeros_like(counts) for name, counts in self.times_read.items()}

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
        self._count(self.reads[name], self.times_read[name], offsets, size, warps)
        return self.bytes[which].reshape(-1)[offsets[:, None] + np.arange(size)]

    def store(self, addresses: np.ndarray, values: np.ndarray, warps: np.ndarray, text: str) -> None:
        size = values.shape[1]
        which, offsets = self._locate(addresses, size, text)
        name = self.names[which]
        if name not in self.writable:
            raise PermissionError(f"{text}: writes {name}")
        self._count(self.writes[name], self.times_written[name], offsets, size, warps)
        self.bytes[which][offsets[:, None] + np.arange(size)] = values

    def _count(
        self, traffic: Traffic, times: np.ndarray, offsets: np.ndarray, size: int, warps: np.ndarray
    ) -> None:
        traffic.bytes += offsets.size * size
        traffic.sectors += np.unique(warps.astype(np.int64) * (_SPACING // SECTOR) + offsets // SECTOR).size
        np.add.at(times, (offsets[:, None] + np.arange(size)).reshape(-1), 1)


class SharedMemory:
    """Of a batch of blocks, with the worst bank conflict that occurred."""

    def __init__(self, blocks: int, size: int) -> None:
        self.size = size
        self.bytes = np.zeros(blocks * size, np.uint8)
        self.written = np.zeros(blocks * size, bool)
        self.worst_conflict = 1

    def _offsets(
        self, addresses: np.ndarray, size: int, blocks: np.ndarray, warps: np.ndarray, text: str
    ) -> np.ndarray:
        if size != 4:
            raise NotImplementedError(f"{text}: bank conflicts of accesses of {size} bytes")
        addresses = addresses.astype(np.int64)
        if addresses.min() < 0 or addresses.max() + size > self.size or (addresses % size).any():
            raise IndexError(f"{text}: shared memory of {self.size} bytes at {addresses.min()} to {addresses.max()}")
        words = np.unique(warps.astype(np.int64) * (self.size // 4) + addresses // 4)
        banks = words // (self.size // 4) * BANKS + words % (self.size // 4) % BANKS
        self.worst_conflict = max(self.worst_conflict, int(np.unique(banks, return_counts=True)[1].max()))
        return (blocks * self.size + addresses)[:, None] + np.arange(size)

    def load(
        self, addresses: np.ndarray, size: int, blocks: np.ndarray, warps: np.ndarray, text: str
    ) -> np.ndarray:
        at = self._offsets(addresses, size, blocks, warps, text)
        if not self.written[at].all():
            raise ValueError(f"{text}: shared memory is read before it is written")
        return self.bytes[at]

    def store(
        self, addresses: np.ndarray, values: np.ndarray, blocks: np.ndarray, warps: np.ndarray, text: str
    ) -> None:
        at = self._offsets(addresses, values.shape[1], blocks, warps, text)
        self.bytes[at] = values
        self.written[at] = True
