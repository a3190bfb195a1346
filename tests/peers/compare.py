"""Birkhoff, eager PyTorch and torch.compile in turn, round after round, on the same cores; prints speeds and ratios.

    compare.py --birkhoff PROGRAM [--model FILE.json]... [--rounds 5] [--seconds 4] [--json OUT.json]

A round is one measurement of each side, mhc and plain step by step in turn; the PyTorch processes stay alive between
their turns (idle, so that compiling and warming up happen once), `birkhoff bench step` starts each time and warms up
itself. A figure is the median over the rounds of the median over a round's steps; a ratio is the median of the rounds'
ratios, with the least and the largest. Run through run.sh.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
SIDES = ("birkhoff", "eager", "compile")
# glibc gives large blocks back to the kernel at once, and their pages fault again in every step: kept, PyTorch is faster.
KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(1 << 32), "MALLOC_TRIM_THRESHOLD_": str(1 << 34), "MALLOC_TOP_PAD_": str(1 << 28)}
FOREIGN = ("OMP_", "GOMP_", "KMP_", "MKL_", "OPENBLAS_", "BIRKHOFF_")  # each side runs with its own defaults


def clean_environment(extra=None):
    kept = {k: v for k, v in os.environ.items() if not k.startswith(FOREIGN) or k == "BIRKHOFF_BACKEND_DIR"}
    return kept | (extra or {})


class Birkhoff:
    def __init__(self, args, model):
        self.command = [args.birkhoff, "bench", "step", "--model", model, *common(args), "--json"]

    def measure(self):
        out = subprocess.run(self.command, check=True, stdout=subprocess.PIPE, text=True, env=clean_environment()).stdout
        return json.loads(out)

    def close(self):
        pass


class Peer:
    def __init__(self, args, model, compiled):
        command = [sys.executable, os.path.join(HERE, "peer.py"), "--model", model, *common(args), "--serve"]
        self.process = subprocess.Popen(command + (["--compile"] if compiled else []), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        text=True, env=clean_environment(KEEP_MEMORY))
        self.answer()

    def answer(self):
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"compare.py: {' '.join(self.process.args)} ended with status {self.process.wait()}")
        return json.loads(line)

    def measure(self):
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        return self.answer()

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def common(args):
    options = ["--set", "residual=mhc", "--compare", "plain", "--batch-size", str(args.batch_size), "--seq-len", str(args.seq_len)]
    return options + ["--seconds", str(args.seconds)]


def run_model(args, model):
    """A list over rounds of side -> measurement."""
    sides = {}
    try:
        for side in args.sides:
            note(f"{os.path.basename(model)}: {side} gets ready")
            sides[side] = Birkhoff(args, model) if side == "birkhoff" else Peer(args, model, side == "compile")
        rounds = []
        for i in range(args.rounds):
            rounds.append({side: one.measure() for side, one in sides.items()})
            note(f"{os.path.basename(model)}: round {i + 1} of {args.rounds}: " + ", ".join(
                f"{side} mhc {r['tokens_per_s']:.0f} plain {r['compare']['tokens_per_s']:.0f}" for side, r in rounds[-1].items()))
        return rounds
    finally:
        for one in sides.values():
            one.close()


def note(text):
    print(text, file=sys.stderr, flush=True)


def spread(values):
    values = list(values)
    return {"median": statistics.median(values), "least": min(values), "largest": max(values)}


def speed(measurement, residual):
    return (measurement["compare"] if residual == "plain" else measurement)["tokens_per_s"]


def summary(args, rounds):
    """tokens_per_s[side][residual], ratio[residual][peer] = birkhoff / peer, step[side] = mhc / plain step time."""
    kinds = ("mhc", "plain")
    out = {"tokens_per_s": {s: {k: spread(speed(r[s], k) for r in rounds) for k in kinds} for s in args.sides}}
    peers = [s for s in args.sides if s != "birkhoff"] if "birkhoff" in args.sides else []
    out["ratio"] = {k: {p: spread(speed(r["birkhoff"], k) / speed(r[p], k) for r in rounds) for p in peers} for k in kinds}
    out["step"] = {s: spread(r[s]["ratio"] for r in rounds) for s in args.sides}
    return out


def show(value, digits):
    return f"{value['median']:.{digits}f} ({value['least']:.{digits}f} to {value['largest']:.{digits}f})"


def print_table(model, result):
    print(f"\n{model}")
    print(f"{'side':10} {'residual':9} {'tokens/s':>22} {'birkhoff is times as fast':>28} {'step, times plain':>24}")
    for side, kinds in result["tokens_per_s"].items():
        for kind, value in kinds.items():
            ratio = result["ratio"].get(kind, {}).get(side)
            step = show(result["step"][side], 3) if kind == "mhc" else ""
            print(f"{side:10} {kind:9} {show(value, 0):>22} {show(ratio, 2) if ratio else '':>28} {step:>24}")


def machine():
    with open("/proc/cpuinfo") as file:
        names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    return {"cpu": names[0] if names else platform.machine(), "cores": len(os.sched_getaffinity(0)), "load": os.getloadavg()[0]}


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--birkhoff", required=True, metavar="PROGRAM")
    parser.add_argument("--model", action="append", metavar="FILE.json", help="default: bench-512.json and bench-1280.json")
    parser.add_argument("--sides", default=",".join(SIDES), type=lambda text: text.split(","))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4, help="per side and round")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--seq-len", type=int, default=256)
    parser.add_argument("--json", metavar="FILE", help="everything measured")
    args = parser.parse_args()
    if not set(args.sides) <= set(SIDES):
        parser.error(f"--sides: expected some of {', '.join(SIDES)}")
    args.model = args.model or [os.path.join(HERE, f"bench-{width}.json") for width in (512, 1280)]
    return args


def main():
    args = arguments()
    where, models = machine(), {}
    for model in args.model:
        rounds = run_model(args, model)
        models[os.path.basename(model)] = {"rounds": rounds, **summary(args, rounds)}
    torch = [r[s]["torch"] for m in models.values() for r in m["rounds"] for s in r if s != "birkhoff"]
    print(f"{where['cpu']}, {where['cores']} cores, load before {where['load']:.1f}; {args.batch_size} x {args.seq_len} tokens, fp32; "
          f"PyTorch {torch[0] if torch else '-'}; median of {args.rounds} rounds (least to largest)")
    for name, result in models.items():
        print_table(name, result)
    if args.json:
        with open(args.json, "w") as file:
            json.dump({"machine": where, "models": models}, file, indent=1)


if __name__ == "__main__":
    main()
