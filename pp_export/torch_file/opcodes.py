"""What a pickle would make Python's unpickler do, found out before that runs.

The unpickler believes numbers: nine bytes make it take 32 GB for its memo. And it hashes what a pickle uses
as a key: tuples in tuples, which a megabyte can nest so deep that the process dies, or share so often that
it never ends. So every instruction is looked at first, with a stack that holds, instead of values, how many
values each tuple spells out.
"""

from __future__ import annotations

import re
import struct

MAX_IN_KEY = 256
"""How many values a key may spell out. Real ones are texts, numbers, or a few of these in a tuple."""

_BIG = MAX_IN_KEY + 1
_CAP = 1 << 40
_LONG_KEY_BYTES, _LONG_KEY_DIGITS = 8, 22
"""Larger numbers can be chosen so that they all have one hash."""

_U32, _U64 = struct.Struct("<I").unpack_from, struct.Struct("<Q").unpack_from

# Instructions that put one value on the stack, by the number of bytes that follow.
_PUSHES = {
    **dict.fromkeys(b"N\x88\x89])}\x8f", 0),
    **{ord("K"): 1, ord("M"): 2, ord("J"): 4, ord("G"): 8},
}
# The same, where a length comes first: that of a text or number, in so many bytes.
_COUNTED = {
    **dict.fromkeys(b"\x8cUC\x8a", 1),
    **dict.fromkeys(b"XTB\x8b", 4),
    **dict.fromkeys(b"\x8d\x8e\x96", 8),
}
_LONGS = frozenset(b"\x8a\x8b")

# What Python's own pickler writes for every object, for every torch.Size, and for attributes that are numbers
# or known already: each looked at as one instruction.
_OBJECT, _SIZE, _BUILT = b"\x81\x94}\x94(", b"\x94\x85\x94R\x94", b"b"
_ATTRIBUTES = re.compile(
    rb"(?:h.|j.{4}|K.|J.{4}|M..|N|\x88|\x89|\x8a(?:\x05.{5}|\x06.{6}|\x04.{4})){0,64}u", re.DOTALL
)


def check(data: bytes) -> None:
    """Raise ValueError where the pickle `data` claims more bytes than it has, names entries of the memo that
    it can't have, uses as a key what would take long to hash, or holds an instruction that no pickler of
    Python 3 writes. It may be wrong otherwise: the unpickler finds that out without harm.
    """
    try:
        _Walk(data).run()
    except (IndexError, struct.error):
        raise ValueError("it is cut off, or takes values that are not there") from None


class _Walk:
    """The stack and the memo of the unpickler: of a tuple how many values it spells out, else 1."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._stack: list[int] = []
        self._memo: list[int] = []
        self._marks: list[int] = []
        self._has_big = False

    def run(self) -> None:  # noqa: PLR0912, PLR0915 -- one loop: a call for each instruction would double the time
        """Look at all instructions up to the end."""
        data, stack, memo, marks = self._data, self._stack, self._memo, self._marks
        push, pop, remember, startswith = stack.append, stack.pop, memo.append, data.startswith
        attributes = _ATTRIBUTES.match
        pushes = [_PUSHES.get(code, -1) for code in range(256)]
        at = 0
        while True:
            code = data[at]
            at += 1
            if code == 0x94:  # MEMOIZE
                remember(stack[-1])
            elif code == 0x6A:  # LONG_BINGET
                push(memo[_U32(data, at)[0]])
                at += 4
            elif code == 0x68:  # BINGET
                push(memo[data[at]])
                at += 1
            elif code == 0x29 and startswith(_OBJECT, at):  # an object of a class, its state to come
                stack[-1] = 1
                memo += (1, 1)
                at += len(_OBJECT)
                if not self._has_big and (found := attributes(data, at)):
                    at = found.end()
                    if startswith(_BUILT, at):
                        at += 1
                        continue
                    push(1)
                    continue
                push(1)
                marks.append(len(stack))
            elif (num_bytes := pushes[code]) >= 0:
                push(1)
                at += num_bytes
            elif code == 0x86:  # TUPLE2
                size = 1 + pop() + pop()
                if startswith(_SIZE, at):
                    memo += (size, size + 1, size + 1)
                    stack[-1] = size + 1
                    self._grown(size + 1)
                    at += len(_SIZE)
                else:
                    push(size)
                    self._grown(size)
            elif code == 0x28:  # MARK
                marks.append(len(stack))
            elif code == 0x75:  # SETITEMS
                begin = marks.pop()
                self._check_keys(stack[begin::2])
                del stack[begin:]
                if startswith(_BUILT, at):  # BUILD
                    pop()
                    at += 1
            elif code == 0x52:  # REDUCE: of tuples, a torch.Size may come out
                size = pop()
                stack[-1] = size
            elif code == 0x71:  # BINPUT
                self._put(data[at], at)
                at += 1
            elif code == 0x72:  # LONG_BINPUT
                self._put(_U32(data, at)[0], at)
                at += 4
            elif code in _COUNTED:
                at = self._counted(code, at)
            elif code == 0x2E:  # STOP
                return
            else:
                at = self._other(code, at)

    def _other(self, code: int, at: int) -> int:
        """Instructions that are rarer; where the next one begins."""
        if code in b"\x85\x87t":
            self._tuple(code)
        elif code in b"edl\x90\x91":
            self._collect(code)
        elif code in b"ab\x81\x93s\x92":
            self._take(code)
        elif code in b"01":
            self._drop(code)
        elif code == 0x95:  # FRAME
            self._within(_U64(self._data, at)[0], at + 8)
            return at + 8
        elif code in b"Q\x80":  # BINPERSID, which leaves what it finds; PROTO
            return at + (code == 0x80)
        else:
            return self._lines(code, at)
        return at

    def _tuple(self, code: int) -> None:
        """TUPLE1, TUPLE3, TUPLE."""
        stack = self._stack
        begin = self._marks.pop() if code == 0x74 else len(stack) - (1 if code == 0x85 else 3)
        if begin < 0:
            raise IndexError
        size = 1 + sum(stack[begin:])
        stack[begin:] = [size]
        self._grown(size)

    def _collect(self, code: int) -> None:
        """APPENDS, DICT, LIST, ADDITEMS, FROZENSET take all down to a mark."""
        begin = self._marks.pop()
        if code not in b"el":
            self._check_keys(self._stack[begin :: 2 if code == 0x64 else 1])
        self._stack[begin:] = [1] if code in b"dl\x91" else []

    def _take(self, code: int) -> None:
        """APPEND, BUILD, SETITEM change what is below; NEWOBJ, NEWOBJ_EX, STACK_GLOBAL replace it."""
        stack = self._stack
        if code == 0x73:
            self._check_keys(stack[-2:-1])
        for _ in range(2 if code in b"s\x92" else 1):
            stack.pop()
        if code in b"\x81\x93\x92":
            stack[-1] = 1

    def _drop(self, code: int) -> None:
        """POP, POP_MARK."""
        stack, marks = self._stack, self._marks
        if code == 0x31 or (marks and marks[-1] == len(stack)):
            del stack[marks.pop() :]
        else:
            stack.pop()

    def _lines(self, code: int, at: int) -> int:
        """Instructions whose arguments are lines of text, as protocol 0 has them."""
        if code not in b"cSVFILPgp":
            raise ValueError(
                f"it holds the instruction {bytes([code])!r}, which no pickler of Python 3 writes"
            )
        end = self._line(at)
        if code == 0x63:  # GLOBAL
            self._stack.append(1)
            return self._line(end)
        if code in b"SVFILP":
            is_big = code in b"IL" and end - at > _LONG_KEY_DIGITS
            self._stack.append(_BIG if is_big else 1)
            self._has_big |= is_big
        elif code == 0x67:  # GET
            self._stack.append(self._memo[self._number(at)])
        elif code == 0x70:  # PUT
            self._put(self._number(at), at)
        else:
            raise ValueError(
                f"it holds the instruction {bytes([code])!r}, which no pickler of Python 3 writes"
            )
        return end

    def _counted(self, code: int, at: int) -> int:
        """A text, bytes or a large number, whose length comes first."""
        num_bytes = _COUNTED[code]
        length = int.from_bytes(self._data[at : at + num_bytes], "little")
        is_big = code in _LONGS and length > _LONG_KEY_BYTES
        self._stack.append(_BIG if is_big else 1)
        self._has_big |= is_big
        return self._within(length, at + num_bytes)

    def _within(self, length: int, at: int) -> int:
        if at + length > len(self._data):
            raise ValueError(f"it claims {length} bytes at byte {at} of {len(self._data)}")
        return at + length

    def _put(self, number: int, at: int) -> None:
        """Remember the top of the stack. Picklers number what they remember from 0 on, or from 1."""
        memo, top = self._memo, self._stack[-1]
        if number == len(memo):
            memo.append(top)
            return
        if not 0 <= number <= at:
            raise ValueError(f"it remembers a value as number {number}, after {at} bytes")
        memo += [1] * (number + 1 - len(memo))
        memo[number] = top

    def _grown(self, size: int) -> None:
        if size >= _BIG:
            self._has_big = True
            self._stack[-1] = min(size, _CAP)

    def _check_keys(self, sizes: list[int]) -> None:
        if self._has_big and sizes and max(sizes) > MAX_IN_KEY:
            raise ValueError(f"a key spells out more than {MAX_IN_KEY} values, or is a huge number")

    def _line(self, at: int) -> int:
        """Where the line that begins at `at` has ended."""
        end = self._data.find(b"\n", at)
        if end < 0:
            raise IndexError
        return end + 1

    def _number(self, at: int) -> int:
        line = self._data[at : self._line(at)]
        if len(line) > _LONG_KEY_DIGITS:
            raise ValueError("it names an entry of the memo by a huge number")
        return int(line)
