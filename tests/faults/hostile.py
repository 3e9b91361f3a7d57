"""Seeded damage to files: bits, slices, lengths, and JSON that is still JSON but says something else."""

import copy
import json
import random
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

LENGTH_BYTES = 8  # a safetensors file begins with its header's length
EXTREMES = (0, 1, 7, 2**16, 2**31, 2**32 - 1, 2**40, 2**62, 2**63 - 1, 2**63, 2**64 - 1)
STRANGE: tuple[Any, ...] = (
    None,
    True,
    False,
    -1,
    0,
    1,
    1.5,
    -0.0,
    1e308,
    float("nan"),
    float("inf"),
    2**31,
    2**53 + 1,
    2**60,
    2**63 - 1,
    2**63,
    2**200,
    10**4000,
    "",
    "1",
    "²",
    "\x00",
    "\ud800",
    "‮evil",
    "../../escape",
    "/etc/passwd",
    "x" * 5000,
    [],
    {},
    [[]],
    [0] * 500,
    [2**62] * 100,
    [0, 2**62, 2**62],
    {"": {}},
)


def damage(data: bytes, rng: random.Random) -> bytes:
    """Return bytes with one seeded damage that knows nothing of their format."""
    at, other = rng.randrange(len(data)), rng.randrange(len(data))
    size = rng.randint(1, 64)
    kind = rng.randrange(8)
    changed = bytearray(data)
    if kind == 0:
        changed[at] ^= 1 << rng.randrange(8)
    elif kind == 1:
        for _ in range(rng.randint(2, 20)):
            changed[rng.randrange(len(changed))] = rng.randrange(256)
    elif kind == 2:
        del changed[at:]
    elif kind == 3:
        del changed[at : at + size]
    elif kind == 4:
        changed[at:at] = rng.randbytes(size)
    elif kind == 5:
        changed[at:at] = changed[other : other + size]
    elif kind == 6:
        one, two = changed[at : at + size], changed[other : other + size]
        changed[at : at + len(two)], changed[other : other + len(one)] = two, one
    else:
        changed[:LENGTH_BYTES] = rng.choice(EXTREMES).to_bytes(LENGTH_BYTES, "little")
    return bytes(changed)


def damage_value(value: Any, rng: random.Random) -> Any:
    """Return a JSON value with one place in it replaced, removed, renamed, doubled, swapped or nested deeply."""
    value = copy.deepcopy(value)
    places = list(_places(value))
    if not places:
        return rng.choice(STRANGE)
    parent, key = rng.choice(places)
    kind = rng.randrange(8)
    if kind < 3:
        parent[key] = rng.choice(STRANGE)
    elif kind == 3:
        del parent[key]
    elif kind == 4:
        if isinstance(parent, dict):
            parent[str(rng.choice(STRANGE))[:4000]] = parent.pop(key)
        else:
            parent.append(copy.deepcopy(parent[key]))
    elif kind == 5:
        theirs, name = rng.choice(places)
        parent[key], theirs[name] = copy.deepcopy(theirs[name]), copy.deepcopy(parent[key])
    elif kind == 6 and type(parent[key]) is int:
        parent[key] = rng.choice(
            [parent[key] + 1, parent[key] - 1, -parent[key], parent[key] << 1, rng.choice(EXTREMES)]
        )
    else:
        for _ in range(rng.choice([2, 90, 500])):
            parent[key] = rng.choice([[parent[key]], {"a": parent[key]}])
    return value


def damage_json(text: bytes, rng: random.Random) -> bytes:
    """Return a JSON text whose value was damaged, with a key twice now and then, and in other encodings."""
    plain = json.dumps(damage_value(json.loads(text), rng), separators=(",", ":"), ensure_ascii=rng.random() < 0.5)
    kind = rng.randrange(12)
    if kind == 0 and plain.startswith("{") and len(plain) > 2:
        plain = plain[:-1] + "," + plain[1:]
    if kind == 1:
        return plain.encode("utf-16", "surrogatepass")
    if kind == 2:
        plain = rng.choice([" ", "\n", "\ufeff"]) + plain
    if kind == 3:
        plain = plain.replace("1", "9" * 5000, 1)
    return plain.encode("utf-8", "surrogatepass")


def damage_header(data: bytes, rng: random.Random) -> bytes:
    """Return a safetensors file whose header was damaged but is as long as its length field says."""
    end = LENGTH_BYTES + int.from_bytes(data[:LENGTH_BYTES], "little")
    header = json.loads(data[LENGTH_BYTES:end])
    inner = header.get("__metadata__", {}).get("impart")
    if inner and rng.random() < 0.7:
        header["__metadata__"]["impart"] = damage_json(inner.encode(), rng).decode("utf-8", "replace")
        text = json.dumps(header).encode()
    else:
        text = damage_json(data[LENGTH_BYTES:end], rng)
    return len(text).to_bytes(LENGTH_BYTES, "little") + text + data[end:]


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise TimeoutError in the block when it takes longer; in the main thread alone."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"it took more than {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def variants(
    samples: list[bytes], count: int, seed: int, *ways: Callable[[bytes, random.Random], bytes]
) -> Iterator[bytes]:
    """Give so many damaged variants of the samples, in turn by each of the ways."""
    rng = random.Random(seed)
    for number in range(count):
        yield ways[number % len(ways)](samples[number // len(ways) % len(samples)], rng)


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield every container in a JSON value with each of its keys."""
    waiting = [value]
    while waiting:
        one = waiting.pop()
        keys = list(one) if isinstance(one, dict) else list(range(len(one))) if isinstance(one, list) else []
        for key in keys:
            yield one, key
            waiting.append(one[key])
