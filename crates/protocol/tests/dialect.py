"""Prints cases for dialect.rs, one JSON object a line: what this Python writes, reads and shows."""
import json, random, struct, sys

rng = random.Random(int(sys.argv[1]))
CHARS = "abc \"'\\/\b\f\n\r\t\x00\x1f\x7f\x80\xa0\xad\xe9äß日本語ключ😀\u200b\u2028\u202e\ufeff"


def text(lone):
    chars = [rng.choice(CHARS) for _ in range(rng.randrange(12))]
    if lone and rng.random() < 0.1:
        chars.append(rng.choice(["\ud800", "\udfff"]))
    return "".join(chars)


def number():
    kind = rng.randrange(6)
    if kind == 0:
        return rng.randrange(-100, 100)
    if kind == 1:
        return rng.randrange(-(10**40), 10**40)
    if kind == 2:
        return rng.choice([float("nan"), float("inf"), float("-inf"), 0.0, -0.0, 1e16, 1e-5, 123456789012345680.0])
    if kind == 3:
        return round(rng.random() * 10 ** rng.randrange(20), rng.randrange(10))
    return struct.unpack("<d", rng.randbytes(8))[0]


def value(depth, lone):
    kind = rng.randrange(7 if depth else 4)
    if kind == 0:
        return rng.choice([None, True, False])
    if kind < 3:
        return text(lone)
    if kind == 3:
        return number()
    if kind < 6:
        return [value(depth - 1, lone) for _ in range(rng.randrange(5))]
    return {text(lone): value(depth - 1, lone) for _ in range(rng.randrange(5))}


def reads(candidate):
    try:
        json.loads(candidate)
        return True
    except (ValueError, RecursionError):
        return False


for _ in range(1000):
    lone = rng.random() < 0.2
    sample = value(4, lone)
    if rng.random() < 0.1:
        sample = [sample, "x" * rng.randrange(1000, 1100)]
    options = rng.choice([{}, {"ensure_ascii": False}, {"separators": (",", ":")}, {"indent": 1}])
    if lone:
        options.pop("ensure_ascii", None)
    written = json.dumps(sample, **options)
    broken = list(written)
    for _ in range(rng.randrange(1, 3)):
        at = rng.randrange(len(broken) + 1)
        if rng.random() < 0.5 and at < len(broken):
            broken[at] = rng.choice('{}[]",:\\ue0-+.19EtnfNI \n\t\x0b')
        else:
            broken.insert(at, rng.choice('{}[]",:\\ue0-+.19EtnfNI \n\t\x0b'))
    broken = "".join(broken)
    shown = repr(sample)
    if len(shown) > 1024:
        shown = shown[:1024] + "..."
    case = {"written": written, "broken": broken, "reads": reads(broken), "repr": None if lone else shown}
    if options == {} and not lone:
        case["default"] = True
    print(json.dumps(case))
for _ in range(1000):
    sample = struct.unpack("<d", rng.randbytes(8))[0]
    if sample - sample == 0:
        print(json.dumps({"float": repr(sample), "bits": str(struct.unpack("<Q", struct.pack("<d", sample))[0])}))
