"""Damage to files: what random bytes, broken copies and hostile hands do; used by test_fuzz.py."""

import random

from hypothesis import strategies as st

EXTREME = (0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 0x7FFFFFFFFFFFFFFF, 0xFFFFFFFFFFFFFFFF)
TOKENS = (
    *(b"null", b"NaN", b"-1", b"1e999", b"0", b"[]", b"{}", b'""', b"true", b"9" * 30, b"9" * 5000, b"[" * 3000),
    *(b'{"a":' * 3000, b"../" * 3, b"/etc/passwd", b"\0", b"\xff\xfe", b"\n", b"\r\n", b",", b":", b'"', b"'"),
    *(b"&a *a", b"!!python/object/apply:os.system [id]", b"- ", b"\t", b"|U9", b"|O", b"<f8", b">c16", b"BF16"),
)  # fmt: skip


def _flip(raw: bytearray, at: int, rng: random.Random) -> None:
    raw[at] ^= 1 << rng.randrange(8)


def _overwrite(raw: bytearray, at: int, rng: random.Random) -> None:
    raw[at] = rng.randrange(256)


def _cut(raw: bytearray, at: int, rng: random.Random) -> None:
    del raw[at:]


def _remove(raw: bytearray, at: int, rng: random.Random) -> None:
    del raw[at : at + rng.randrange(1, 40)]


def _splice(raw: bytearray, at: int, rng: random.Random) -> None:
    """A piece of the file once more, somewhere else."""
    start = rng.randrange(len(raw))
    raw[at:at] = raw[start : start + rng.randrange(1, 200)]


def _noise(raw: bytearray, at: int, rng: random.Random) -> None:
    raw[at:at] = rng.randbytes(rng.randrange(1, 60))


def _extreme(raw: bytearray, at: int, rng: random.Random) -> None:
    """A number of 1 to 8 bytes, as in a header, of an absurd size."""
    width = rng.choice((1, 2, 4, 8))
    value = rng.choice(EXTREME) & (256**width - 1)
    raw[at : at + width] = value.to_bytes(width, rng.choice(("little", "big")))


def _token(raw: bytearray, at: int, rng: random.Random) -> None:
    """Another word in the place of a few letters."""
    raw[at : at + rng.randrange(8)] = rng.choice(TOKENS)


def _digits(raw: bytearray, at: int, rng: random.Random) -> None:
    """A longer number, where there is one."""
    place = next((i for i in range(at, len(raw)) if 48 <= raw[i] <= 57), at)
    raw[place:place] = str(rng.choice(EXTREME)).encode()


OPERATIONS = (_flip, _overwrite, _cut, _remove, _splice, _noise, _extreme, _token, _digits)


@st.composite
def plans(draw):
    """Which whole file, whether sums are mended after the damage, and up to four pieces of damage."""
    number = st.integers(0, 2**32)
    damage = draw(st.lists(st.tuples(st.sampled_from(OPERATIONS), number), min_size=1, max_size=4))
    return draw(number), draw(st.booleans()), damage, draw(st.integers(0, 19))


def damaged(raw: bytes, damage: list, random_bytes: bool) -> bytes:
    """`raw` after some damage, half of it in the first 200 bytes, where headers are; or nothing but random bytes."""
    if random_bytes:
        return random.Random(damage[0][1]).randbytes(damage[0][1] % 300)
    out = bytearray(raw)
    for operation, seed in damage:
        rng = random.Random(seed)
        if out:
            operation(out, rng.randrange(min(len(out), rng.choice((200, len(out))))), rng)
    return bytes(out)
