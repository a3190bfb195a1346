"""Trains the model of a config.json in PyTorch and says how fast: the counterpart of `birkhoff bench step`.

    peer.py --model bench-512.json [--set residual=plain] [--compare plain] [--compile] [--seconds 5]
        one line of JSON: median times of a step, and tokens per second; with --compare also of the same model with
        another residual connection, one step of each in turn
    peer.py ... --serve
        makes and warms up the model, writes a line, then the same measurement for each line read
    peer.py --profile ...
        the operations of two steps by time

A step: zero the gradients, forward, backward, clip by the global norm, AdamW, update of the correction biases.
check.py holds the same model and step to the reference.
"""

import argparse
import json
import os
import statistics
import sys
import time

import torch
from torch_model import Model

# As in `birkhoff bench step`: a rate that leaves made-up data where it is, the rest as its recipe has it.
LR, BETAS, ADAM_EPS, DECAY, CLIP, BIAS_RATE = 1e-6, (0.9, 0.95), 1e-20, 0.1, 1.0, 1e-3
WARM_UP_STEPS = 3


def read_config(path, assignments=()):
    with open(path) as file:
        cfg = json.load(file)
    for assignment in assignments:
        key, _, value = assignment.partition("=")
        if key not in cfg:
            raise SystemExit(f"--set {assignment}: {path} has no {key}")
        try:
            cfg[key] = json.loads(value)
        except json.JSONDecodeError:
            cfg[key] = value
    return cfg


def make_optimizer(model, lr=LR, eps=ADAM_EPS):
    """AdamW in one fused pass; matrices decay (stacked experts are matrices), vectors do not."""
    decayed = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() == 1]
    groups = [{"params": decayed, "weight_decay": DECAY}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=lr, betas=BETAS, eps=eps, fused=True)


class Stepper:
    """Training steps of one model. step returns loss, gradient norm and the seconds of forward, backward, optimiser."""

    def __init__(self, model, optimizer, compiled=False, bias_rate=BIAS_RATE):
        self.model, self.optimizer, self.bias_rate = model, optimizer, bias_rate
        self.parameters = list(model.parameters())
        self.loss = torch.compile(model, fullgraph=True, dynamic=False) if compiled else model

    def step(self, ids, targets):
        at = [time.perf_counter()]
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.loss(ids, targets)
        at.append(time.perf_counter())
        loss.backward()
        at.append(time.perf_counter())
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, CLIP, foreach=True)
        self.optimizer.step()
        self.model.balance(self.bias_rate)
        at.append(time.perf_counter())
        return loss, norm, [b - a for a, b in zip(at, at[1:])]


class Contender:
    """One residual connection of the benchmark: a model, made-up tokens, and how long its steps take."""

    def __init__(self, args, cfg):
        self.residual, self.tokens, self.times = cfg["residual"], args.batch_size * args.seq_len, []
        model = Model(cfg).draw(cfg)
        self.stepper = Stepper(model, make_optimizer(model), args.compile)
        shape = (args.batch_size, args.seq_len)
        self.batch = [torch.randint(cfg["vocab_size"], shape) for _ in range(2)]
        for _ in range(WARM_UP_STEPS):
            self.step()

    def step(self):
        loss, _, times = self.stepper.step(*self.batch)
        if not torch.isfinite(loss):
            raise SystemExit("the loss is not finite")
        self.times.append(times)

    def result(self):
        seconds = statistics.median(sum(parts) for parts in self.times)
        forward, backward, update = (statistics.median(column) for column in zip(*self.times))
        return dict(residual=self.residual, tokens_per_s=self.tokens / seconds, seconds=seconds, forward_seconds=forward,
                    backward_seconds=backward, optimizer_seconds=update)


def measure(args, contenders):
    for c in contenders:
        c.times.clear()
    end = time.perf_counter() + args.seconds
    while len(contenders[0].times) < 3 or time.perf_counter() < end:
        for c in contenders:
            c.step()
    result = contenders[0].result() | dict(side="compile" if args.compile else "eager", torch=torch.__version__,
                                           threads=torch.get_num_threads(), steps=len(contenders[0].times))
    if len(contenders) > 1:
        result["compare"] = contenders[1].result()
        result["ratio"] = result["seconds"] / result["compare"]["seconds"]
    print(json.dumps(result), flush=True)


def profile(contender):
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        for _ in range(2):
            contender.step()
    print(profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=30, max_name_column_width=60))


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, metavar="FILE.json")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--compare", metavar="RESIDUAL")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--seq-len", type=int, default=256)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--serve", action="store_true")
    parser.add_argument("--profile", action="store_true")
    return parser.parse_args()


def main():
    args = arguments()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.set_flush_denormal(True)
    cfg = read_config(args.model, args.set)
    kinds = [cfg["residual"]] + ([args.compare] if args.compare else [])
    contenders = [Contender(args, cfg | {"residual": kind}) for kind in kinds]
    if args.profile:
        return profile(contenders[0])
    if not args.serve:
        return measure(args, contenders)
    print(json.dumps({"ready": True}), flush=True)
    for _ in sys.stdin:
        measure(args, contenders)


if __name__ == "__main__":
    main()
