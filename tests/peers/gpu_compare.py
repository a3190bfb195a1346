"""The ops of an mHC sublayer in Birkhoff, eager PyTorch, torch.compile and the kernel packages that are installed, on one card in
turn, round after round; prints a table a shape.

    gpu_compare.py --birkhoff PROGRAM [--device cuda] [--dtype bf16] [--shape 32768x7168]... [--rounds 5] [--json OUT.json]

Every form is first held to plain double precision (gpu_ops.py); what computes something else is named and not timed. Then a round
is: Birkhoff's `bench ops`, and each op of each side, forward and backward, the median of a few samples. A sample is a run of
launches between two events, about a millisecond, on Birkhoff's side too; on a host, by the clock. Figures are medians over the rounds.
Exit status: 0; 1 when a side fails or computes something else.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time

import torch

import gpu_packages
from gpu_ops import ADAM, SUBLAYER_PARTS, Call, Sizes, bytes_of, cross_entropy, operands, sublayer_forms, table, tolerance

SAMPLES = 5
OPS = ("pre", "pre_norm", "post_res", "project", "maps", "coefficients", "sublayer")
GOALS = {"post_res": 3, "maps": 3, "sublayer": 2}  # times faster than torch.compile


def note(text):
    print(text, file=sys.stderr, flush=True)


# ---- timing ----


class Clock:
    def __init__(self, device):
        self.cuda = device != "cpu"

    def sync(self):
        if self.cuda:
            torch.cuda.synchronize()

    def once(self, work, launches):
        if not self.cuda:
            begin = time.perf_counter()
            for _ in range(launches):
                work()
            return (time.perf_counter() - begin) / launches
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        for _ in range(launches):
            work()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) * 1e-3 / launches

    def median(self, work):
        """After two to warm up; enough launches a sample that an event can tell."""
        for _ in range(2):
            self.once(work, 1)
        first = self.once(work, 1)
        launches = max(1, min(100, int(1e-3 / max(first, 1e-9)) + 1)) if self.cuda else 1
        return statistics.median(self.once(work, launches) for _ in range(SAMPLES))

    def kernels(self, work, launches=5):
        """Seconds that the device itself was busy a call, without the gaps between launches; None where the profiler cannot say."""
        if not self.cuda:
            return None
        try:
            from torch.profiler import ProfilerActivity, profile
            with profile(activities=[ProfilerActivity.CUDA]) as p:
                for _ in range(launches):
                    work()
                self.sync()
            total = sum(getattr(e, "self_device_time_total", 0) for e in p.key_averages())
            return total * 1e-6 / launches or None
        except Exception as error:  # the profiler is an extra: said, and done without
            note(f"gpu_compare.py: the profiler does not work here ({error})")
            return None


def measure(clock, call, kernels):
    """{direction: (seconds, busy seconds)} of a call; its graph is made here and gone afterwards."""
    forward = clock.median(call.run), clock.kernels(call.run) if kernels else None
    outs = call.run()
    backward = clock.median(lambda: call.backward(outs)), clock.kernels(lambda: call.backward(outs)) if kernels else None
    return {"forward": forward, "backward": backward}


# ---- AdamW and cross entropy: one direction ----


class Adam:
    """AdamW(fused=True) on fp32 weights, then the copy in the streams' dtype that a mixed-precision step needs."""

    def __init__(self, z):
        g = torch.Generator(device=z.device).manual_seed(2)
        self.p = torch.nn.Parameter(torch.empty(z.N * z.C, device=z.device).normal_(0, 0.3, generator=g))
        self.p.grad = torch.empty_like(self.p).normal_(0, 0.3, generator=g)
        self.copy = self.p.detach().to(z.st) if z.st != torch.float32 else None
        self.optimizer = torch.optim.AdamW([self.p], fused=True, **ADAM)

    def both(self):
        self.optimizer.step()
        if self.copy is not None:
            self.copy.copy_(self.p.detach())

    def error(self):
        w, g = (a[:100000].detach().double().clone() for a in (self.p, self.p.grad))
        self.both()
        (b1, b2), lr = ADAM["betas"], ADAM["lr"]
        m, v = (1 - b1) * g, (1 - b2) * g * g
        step = (m / (1 - b1)) / ((v / (1 - b2)).sqrt() + ADAM["eps"]) + ADAM["weight_decay"] * w
        moved = (self.p[:100000].detach().double() - (w - lr * step)).abs().max().item()
        return moved / w.abs().max().item()


class CrossEntropy:
    """Loss of every row and the gradient of the logits, one chunk of rows."""

    def __init__(self, z, form):
        g = torch.Generator(device=z.device).manual_seed(3)
        self.form = form
        self.logits = torch.empty(z.rows, z.vocabulary, device=z.device, dtype=z.st).normal_(0, 1, generator=g).requires_grad_()
        self.targets = torch.randint(z.vocabulary, (z.rows,), device=z.device, generator=g)
        self.scale = torch.full((z.rows,), 1.0, device=z.device)

    def both(self):
        loss = self.form(self.logits, self.targets)
        return loss, torch.autograd.grad(loss, self.logits, self.scale)[0]

    def error(self):
        loss, grad = self.both()
        some = slice(0, 16)
        x, at = self.logits[some].detach().double(), self.targets[some]
        lse = x.logsumexp(1)
        right = (x - lse.unsqueeze(1)).exp()
        right[torch.arange(len(at)), at] -= 1
        wrong_loss = (loss[some] - (lse - x.gather(1, at.unsqueeze(1))[:, 0])).abs().max().item() / lse.abs().max().item()
        return max(wrong_loss, ((grad[some].double() - right).norm() / right.norm()).item())


# ---- sides ----


def compiler(form):
    return torch.compile(form, fullgraph=True, dynamic=False)


class Torch:
    """Eager PyTorch, or compiled: of each op the fastest of its forms."""

    def __init__(self, name, z, t, clock, ops):
        self.name, self.z, self.t, self.clock, self.best, self.calls, self.failed = name, z, t, clock, {}, {}, []
        make = compiler if name == "compile" else None
        for op in OPS:
            missing = [part for part in SUBLAYER_PARTS if op == "sublayer" and part not in self.best]
            if missing:
                self.failed.append("sublayer: no form of " + ", ".join(missing))
                continue
            forms = sublayer_forms(ops, self.best, make) if op == "sublayer" else (ops[op].compiled if make else None) or ops[op].eager
            self.choose(op, ops[op], {k: make(f) if make and op != "sublayer" else f for k, f in forms.items()})
        self.single = {"cross_entropy": lambda: CrossEntropy(z, make(cross_entropy) if make else cross_entropy)}
        if not make:
            self.single["adamw"] = lambda: Adam(z)

    def choose(self, op, entry, forms):
        times = {}
        for form, f in forms.items():
            note(f"{self.name}: {op} as {form}")
            call = Call(entry, f, self.t)
            if right(self, op, form, call):
                times[form] = sum(v[0] for v in measure(self.clock, call, False).values()), call
        if times:
            self.best[op] = min(times, key=lambda k: times[k][0])
            self.calls[op] = times[self.best[op]][1]


class Package:
    def __init__(self, name, calls, z, t, clock):
        self.name, self.z, self.t, self.clock, self.failed, self.single = name, z, t, clock, [], {}
        self.calls = {op: call for op, call in calls.items() if right(self, op, name, call)}


def right(side, op, form, call):
    try:
        worst = call.errors(side.z, side.t)
    except Exception as error:  # of a package or of the compiler: said, and the op left out
        side.failed.append(f"{op} as {form}: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
        return False
    wrong = {k: v for k, v in worst.items() if not v <= tolerance(side.z)}
    if wrong:
        side.failed.append(f"{op} as {form}: not the same: " + ", ".join(f"{k} {v:.2g}" for k, v in wrong.items()) + f" (bound {tolerance(side.z):.2g})")
    return not wrong


class Birkhoff:
    def __init__(self, args, z):
        self.name, self.wrong_bytes = "birkhoff", {}
        common = [args.birkhoff, "bench", "ops", "--device", args.device, "--dtype", args.dtype, "--json"]
        common += ["--seconds", str(args.seconds), "--width", str(z.C)]
        names = ["copy", "adamw"] + sorted({n for op in table().values() for way in op.birkhoff for n in way})
        self.commands = [common + ["--tokens", str(z.N), "--op", *names],
                         common + ["--tokens", str(z.rows), "--vocabulary", str(z.vocabulary), "--op", "cross_entropy"]]
        self.bytes = bytes_of(z)

    def measure(self):
        """Op -> seconds, and kernel; its count of bytes must be ours, or the two sides may not do the same."""
        times, kernels = {}, {}
        for command in self.commands:
            out = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
            for o in out["ops"]:
                times[o["op"]], kernels[o["op"]] = o["seconds"], o["kernel"]
                counted = o["seconds"] * o["gb_per_s"] * 1e9
                if abs(counted - self.bytes[o["op"]]) > 0.01 * counted:
                    self.wrong_bytes[o["op"]] = counted / self.bytes[o["op"]]
        return times, kernels


def torch_copy(clock, device, total):
    """Bytes a second of copy_, half of `total` read and half written."""
    x = torch.ones(total // 2 // 4, device=device)
    y = torch.empty_like(x)
    return total / clock.median(lambda: y.copy_(x))


# ---- a shape ----


def forget(clock):
    if clock.cuda:
        torch.cuda.empty_cache()


def run_shape(args, tokens, width):
    z = Sizes(tokens, width, torch.bfloat16 if args.dtype == "bf16" else torch.float32, args.device, vocabulary=args.vocabulary)
    torch._dynamo.reset()
    clock, t, ops, bytes_ = Clock(args.device), operands(z), table(), bytes_of(z)
    sides = [Torch(name, z, t, clock, ops) for name in ("eager", "compile") if name in args.sides]
    calls, why = gpu_packages.load(z, t) if "packages" in args.sides else ({}, {})
    sides += [Package(name, c, z, t, clock) for name, c in calls.items()]
    singles = check_singles(sides, z)
    birkhoff = Birkhoff(args, z)
    rows = {}  # (op, direction) -> side -> list of (seconds, busy seconds)
    copies, kernels = {"torch": [], "birkhoff": []}, {}
    for i in range(args.rounds):
        forget(clock)
        note(f"{tokens} x {width}: round {i + 1} of {args.rounds}")
        times, kernels = birkhoff.measure()
        copies["torch"].append(torch_copy(clock, args.device, args.copy_bytes))
        copies["birkhoff"].append(bytes_["copy"] / times["copy"])
        for op in OPS:
            for way, names in zip(("forward", "backward"), ops[op].birkhoff):
                rows.setdefault((op, way), {}).setdefault("birkhoff", []).append((sum(times[n] for n in names), None))
        for name in ("adamw", "cross_entropy"):
            rows.setdefault((name, "both"), {}).setdefault("birkhoff", []).append((times[name], None))
        for side in sides:
            for op, call in side.calls.items():
                for way, value in measure(clock, call, i == 0).items():
                    rows[op, way].setdefault(side.name, []).append(value)
                forget(clock)
            for name in singles[side.name]:
                work = side.single[name]()
                rows[name, "both"].setdefault(side.name, []).append((clock.median(work.both), clock.kernels(work.both) if i == 0 else None))
                del work
                forget(clock)
    result = summary(args, z, ops, sides, rows, copies, why, kernels)
    if birkhoff.wrong_bytes:
        result["failed"]["birkhoff"] = [f"{op} counts {ratio:.3f} times the bytes of gpu_ops.py" for op, ratio in birkhoff.wrong_bytes.items()]
    return result


def check_singles(sides, z):
    kept = {}
    for side in sides:
        kept[side.name] = []
        for name, make in side.single.items():
            note(f"{side.name}: {name}")
            try:
                error = make().error()
            except Exception as e:  # as in right()
                side.failed.append(f"{name}: {type(e).__name__}: {e}")
                continue
            if error <= tolerance(z):
                kept[side.name].append(name)
            else:
                side.failed.append(f"{name}: not the same: {error:.2g} (bound {tolerance(z):.2g})")
    return kept


def summary(args, z, ops, sides, rows, copies, why, kernels):
    bytes_ = bytes_of(z)
    roof = max(statistics.median(v) for v in copies.values())
    table_rows = []
    for (op, way), by_side in rows.items():
        names = [op] if op in bytes_ else ops[op].birkhoff[0 if way == "forward" else 1]
        moved = sum(bytes_[n] for n in names)
        row = {"op": op, "direction": way, "bytes": moved, "ops": names, "kernels": [kernels.get(n) for n in names], "sides": {}}
        own = statistics.median(v[0] for v in by_side["birkhoff"])
        for name, values in by_side.items():
            seconds = statistics.median(v[0] for v in values)
            busy = next((v[1] for v in values if v[1]), None)
            row["sides"][name] = {"seconds": seconds, "busy_seconds": busy, "gb_per_s": moved / seconds * 1e-9, "share": moved / seconds / roof,
                                  "over_birkhoff": seconds / own}
        table_rows.append(row)
    result = {"tokens": z.N, "width": z.C, "streams": z.n, "loss_rows": z.rows, "vocabulary": z.vocabulary, "rows": table_rows,
              "copy_gb_per_s": {k: statistics.median(v) * 1e-9 for k, v in copies.items()}, "missing": why,
              "forms": {s.name: getattr(s, "best", {}) for s in sides}, "failed": {s.name: s.failed for s in sides if s.failed}}
    totals = {}
    for row in table_rows:
        if row["op"] == "sublayer":
            for name, s in row["sides"].items():
                totals.setdefault(name, []).append(s["seconds"])
    result["sublayer_seconds"] = {k: sum(v) for k, v in totals.items() if len(v) == 2}
    return result


def print_shape(result):
    names = ["birkhoff"] + list(result["forms"])
    print(f"\n{result['tokens']} tokens x {result['width']}, {result['streams']} streams; copy: " +
          ", ".join(f"{k} {v:.0f} GB/s" for k, v in result["copy_gb_per_s"].items()))
    print(f"{'op':<14}{'':<10}" + "".join(f"{n:>30}" for n in names))
    print(f"{'':<24}" + f"{'us      GB/s    of copy':>30}" + "".join(f"{'us  (busy)    GB/s   ratio':>30}" for n in names[1:]))
    for row in result["rows"]:
        line = f"{row['op']:<14}{row['direction']:<10}"
        for name in names:
            s = row["sides"].get(name)
            if not s:
                line += f"{'-':>30}"
            elif name == "birkhoff":
                line += f"{s['seconds'] * 1e6:>12.1f}{s['gb_per_s']:>9.1f}{100 * s['share']:>8.1f}%"
            else:
                busy = f"({s['busy_seconds'] * 1e6:.0f})" if s["busy_seconds"] else ""
                line += f"{s['seconds'] * 1e6:>9.1f}{busy:>8}{s['gb_per_s']:>6.0f}{s['over_birkhoff']:>7.2f}"
        print(line)
    own = result["sublayer_seconds"]["birkhoff"]  # its ops are always timed
    print("whole sublayer, forward and backward: " + ", ".join(f"{k} {v * 1e6:.1f} us ({v / own:.2f})" for k, v in result["sublayer_seconds"].items()))
    for op, wanted in GOALS.items():
        times = {s: [r["sides"][s] for r in result["rows"] if r["op"] == op and s in r["sides"]] for s in ("birkhoff", "compile")}
        if len(times["compile"]) != 2:
            print(f"{op}, forward and backward, torch.compile over birkhoff: not measured (goal: {wanted})")
            continue
        own = sum(t["seconds"] for t in times["birkhoff"])
        busy = [t["busy_seconds"] for t in times["compile"]]
        alone = f", {sum(busy) / own:.2f} by the time that its kernels run" if all(busy) else ""
        print(f"{op}, forward and backward, torch.compile over birkhoff: {sum(t['seconds'] for t in times['compile']) / own:.2f}{alone} (goal: {wanted})")
    for side, best in result["forms"].items():
        if best:
            print(f"forms, {side}: " + "; ".join(f"{op}: {form}" for op, form in best.items() if op != "sublayer"))
    for name, reason in result["missing"].items():
        print(f"{name}: {reason}")
    for side, failed in result["failed"].items():
        for text in failed:
            print(f"{'wrong' if side == 'birkhoff' else 'not timed'}, {side}: {text}")


def positive(text):
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: expected a whole number, at least 1")
    return int(text)


def shape(text):
    tokens, x, width = text.lower().partition("x")
    if not x or not tokens.isdigit() or not width.isdigit() or int(tokens) < 1 or int(width) < 64 or int(width) % 64:
        raise argparse.ArgumentTypeError(f"{text}: expected TOKENSxWIDTH, the width a multiple of 64")
    return int(tokens), int(width)


def some_sides(text):
    sides = text.split(",")
    if not set(sides) <= {"eager", "compile", "packages"}:
        raise argparse.ArgumentTypeError(f"{text}: expected some of eager,compile,packages")
    return sides


def write(path, whole):
    if path:
        with open(path, "w") as file:
            json.dump(whole, file, indent=1)


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--birkhoff", required=True, metavar="PROGRAM")
    p.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    p.add_argument("--dtype", default="bf16", choices=("bf16", "fp32"))
    p.add_argument("--shape", action="append", type=shape, metavar="TOKENSxWIDTH", help="default: 32768x7168 and 4096x2560")
    p.add_argument("--sides", default="eager,compile,packages", type=some_sides, help="besides Birkhoff")
    p.add_argument("--rounds", type=positive, default=5)
    p.add_argument("--seconds", type=float, default=0.1, help="Birkhoff's time for an op in a round")
    p.add_argument("--vocabulary", type=positive, default=129280)
    p.add_argument("--copy-bytes", type=int, default=1 << 32, help="of the copy that bandwidth is measured with, read and written")
    p.add_argument("--json", metavar="FILE")
    args = p.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("gpu_compare.py: this PyTorch finds no CUDA device (--device cpu tries the script without)")
    torch.backends.cuda.matmul.allow_tf32 = True  # fn in TF32, as in the paper; bf16 streams lose nothing
    import torch._functorch.config as functorch
    functorch.donated_buffer = False  # the backward pass runs many times on one graph
    results = []
    whole = {"device": torch.cuda.get_device_name() if args.device == "cuda" else "cpu", "torch": torch.__version__, "dtype": args.dtype,
             "rounds": args.rounds, "shapes": results}
    for tokens, width in args.shape or ((32768, 7168), (4096, 2560)):
        results.append(run_shape(args, tokens, width))
        print_shape(results[-1])
        write(args.json, whole)
    own = ("birkhoff", "eager", "compile")
    return 1 if any(side in own and failed for r in results for side, failed in r["failed"].items()) else 0


if __name__ == "__main__":
    sys.exit(main())
