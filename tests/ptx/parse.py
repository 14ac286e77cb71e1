"""PTX text as kernels: registers, parameters, shared memory and instructions."""

import re
from dataclasses import dataclass, field

import numpy as np

# Registers hold bits; an instruction says what they mean.
WIDTH_OF_TYPE = {"pred": 0, "8": 1, "16": 2, "32": 4, "64": 8}
BITS = {
    0: np.dtype(bool),
    1: np.dtype(np.uint8),
    2: np.dtype(np.uint16),
    4: np.dtype(np.uint32),
    8: np.dtype(np.uint64),
}
_KINDS = {"f": "f", "u": "u", "s": "i", "b": "u"}


def dtype_of(name: str) -> np.dtype:
    """The NumPy type of a PTX type such as "s32"."""
    if name == "pred":
        return BITS[0]
    return np.dtype(f"{_KINDS[name[0]]}{int(name[1:]) // 8}")


@dataclass(frozen=True)
class Register:
    name: str


@dataclass(frozen=True)
class Special:
    """%tid.x and its like."""

    name: str


@dataclass(frozen=True)
class Immediate:
    """Of bits for a float, of a value for an integer."""

    value: int


@dataclass(frozen=True)
class Address:
    """[base + offset]"""

    base: "Operand"
    offset: int


@dataclass(frozen=True)
class Vector:
    """{a, b} or a|b"""

    parts: tuple["Operand", ...]


Operand = Register | Special | Immediate | Address | Vector


@dataclass(frozen=True)
class Instruction:
    text: str
    guard: str | None  # predicate register
    negated: bool
    op: tuple[str, ...]
    operands: tuple[Operand, ...]
    target: int = -1  # of a branch


@dataclass
class Kernel:
    name: str
    threads: int  # of a block
    param_bytes: int = 0
    shared_bytes: int = 0
    registers: dict[str, np.dtype] = field(default_factory=dict)
    code: list[Instruction] = field(default_factory=list)


_ENTRY = re.compile(r"\.entry\s+(\w+)\s*\((.*?)\)(.*?)\n\{(.*?)\n\}", re.S)
_PARAM = re.compile(r"\.param\s+\.align\s+\d+\s+\.b8\s+(\w+)\[(\d+)\]")
_THREADS = re.compile(r"\.maxntid\s+(\d+)")
_MANY_REGISTERS = re.compile(r"\.reg\s+\.(\w+)\s+(%\w+)<(\d+)>")
_NAMED_REGISTERS = re.compile(r"\.reg\s+\.(\w+)\s+([\w\s,]+)")
_SHARED = re.compile(r"\.shared\s+\.align\s+\d+\s+\.b8\s+(\w+)\[(\d+)\]")
_INSTRUCTION = re.compile(r"(?:@(!?)(%p\d+)\s+)?([\w.]+)\s*(.*)", re.S)
_OPERAND = re.compile(r"\[[^\]]*\]|\{[^}]*\}|[^,\s]+")


def parse(ptx: str) -> dict[str, Kernel]:
    """The kernels of a module, by name; each takes one parameter, a struct."""
    ptx = re.sub(r"//[^\n]*", "", ptx)
    return {entry[1]: _kernel(*entry.groups()) for entry in _ENTRY.finditer(ptx)}


def _kernel(name: str, params: str, directives: str, body: str) -> Kernel:
    param = _PARAM.fullmatch(params.strip())
    threads = _THREADS.search(directives)
    if param is None or threads is None:
        raise NotImplementedError(f"{name}: expected one struct as parameter and .maxntid")
    kernel = Kernel(name, int(threads[1]), param_bytes=int(param[2]))
    symbols = {param[1]: 0}
    labels: dict[str, int] = {}
    for statement in _statements(body):
        if many := _MANY_REGISTERS.match(statement):
            width = BITS[WIDTH_OF_TYPE[many[1].lstrip("bf")] if many[1] != "pred" else 0]
            kernel.registers |= {f"{many[2]}{i}": width for i in range(int(many[3]))}
        elif named := _NAMED_REGISTERS.match(statement):
            width = BITS[WIDTH_OF_TYPE[named[1].lstrip("bf")]]
            kernel.registers |= {register.strip(): width for register in named[2].split(",")}
        elif shared := _SHARED.match(statement):
            symbols[shared[1]] = kernel.shared_bytes
            kernel.shared_bytes += -(-int(shared[2]) // 16) * 16
        elif statement.endswith(":"):
            labels[statement[:-1]] = len(kernel.code)
        elif not statement.startswith(".pragma"):
            kernel.code.append(_instruction(statement, symbols, kernel.registers))
    kernel.code = [_with_target(instruction, labels) for instruction in kernel.code]
    return kernel


def _statements(body: str) -> list[str]:
    """Statements and labels. A brace where a statement may begin opens or closes a scope, which says nothing here:
    its names are written before they are read."""
    found, current = [], ""
    for char in body:
        if char == ";" or (char in "{}" and not current.strip()):
            found.append(current.strip())
            current = ""
        elif char == ":" and current.strip().startswith("$"):
            found.append(current.strip() + ":")
            current = ""
        else:
            current += char
    return [statement for statement in [*found, current.strip()] if statement]


def _instruction(statement: str, symbols: dict[str, int], registers: dict[str, np.dtype]) -> Instruction:
    match = _INSTRUCTION.fullmatch(statement)
    if match is None:
        raise NotImplementedError(f"statement {statement!r}")
    op = tuple(match[3].split("."))
    if op[0] == "bra":
        return Instruction(match[4].strip(), match[2], match[1] == "!", op, ())
    operands = tuple(_operand(text, symbols, registers) for text in _OPERAND.findall(match[4]))
    return Instruction(statement, match[2], match[1] == "!", op, operands)


def _with_target(instruction: Instruction, labels: dict[str, int]) -> Instruction:
    if instruction.op[0] != "bra":
        return instruction
    label = instruction.text
    return Instruction(f"bra {label}", instruction.guard, instruction.negated, instruction.op, (), labels[label])


def _operand(text: str, symbols: dict[str, int], registers: dict[str, np.dtype]) -> Operand:
    if text[0] == "{" or "|" in text:
        return Vector(tuple(_operand(part.strip(), symbols, registers) for part in re.split(r"[,|]", text.strip("{}"))))
    if text[0] == "[":
        base, _, offset = text[1:-1].partition("+")
        return Address(_operand(base.strip(), symbols, registers), int(offset or 0))
    if text in registers:
        return Register(text)
    if text in symbols:
        return Immediate(symbols[text])
    if text[0] == "%":
        return Special(text)
    if text.startswith("0f"):
        return Immediate(int(text[2:], 16))
    return Immediate(int(text, 0))
