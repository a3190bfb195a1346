"""Is a training step in a pipeline the same on both sides? The independent model of tests/fixtures/reference_model.py,
cut into stages that hand over their streams [B,T,n,C] (plain: [B,T,C]), runs in PyTorch over gloo:

    1f1b       torch.distributed.pipelining.Schedule1F1B
    zb1p       ScheduleInterleavedZeroBubble, with one stage on each rank
    dualpipev  ScheduleDualPipeV, with two
    dualpipe   which PyTorch does not have: the lists of `birkhoff plan --schedule dualpipe --json`, run by the few lines of run_lists

in double precision. Losses of the micro-batches and every gradient are compared with those of the model run as a whole, and
with a birkhoff program (its device ref, ranks that are threads): what its executor leaves after a step, with some targets
ignored, and loss, gradient norm and gradients of the first step of its command.

    pipeline.py BIRKHOFF [OPTIONS]     BIRKHOFF is the program in its build folder, where tests/peers/pipeline_step is too

    --cases mhc,plain --schedules 1f1b,dualpipe --ranks 2,4    some of them; by default all
    --mpirun "mpirun --oversubscribe"                          the command's ranks are processes
    --torch                                                    PyTorch's side alone

Each line has the errors of losses and gradients, relative, each of which may be 1e-10. Exit status 0 if all agree.
"""

import argparse
import json
import os
import struct
import subprocess
import sys
import tempfile

from datetime import timedelta

import torch
import torch.distributed as dist
import torch.multiprocessing
from torch.distributed.pipelining import PipelineStage, Schedule1F1B
from torch.distributed.pipelining.schedules import ScheduleDualPipeV, ScheduleInterleavedZeroBubble

HERE = os.path.dirname(os.path.abspath(__file__))
FIXTURES = os.path.join(HERE, "..", "fixtures")
sys.path.insert(1, FIXTURES)
import reference_model as ref
from check import distance, read_safetensors

CASES = ("plain", "plain_qlora", "hc", "mhc", "mhc_eps", "mhc_lite", "mhc_lite_n3", "kromhc", "ihc")
SCHEDULES = {"1f1b": (2, 4), "zb1p": (2, 4), "dualpipev": (2, 3), "dualpipe": (2, 4)}  # on how many ranks
MICRO, T = 8, 7  # micro-batches of one sequence, tokens of it: at most 8 windows, so that the command takes all in its first step
BOUND = 1e-10
TIMEOUT = 120  # seconds without an answer, after which a side counts as hanging


# ------------------------------------------------------------------------------------------------ cases


def read_case(name):
    folder = os.path.join(FIXTURES, name)
    with open(os.path.join(folder, "config.json")) as file:
        cfg = json.load(file)
    weights = read_safetensors(os.path.join(folder, "model.safetensors"))
    return cfg, {name: t.to(ref.F64) for name, t in weights.items()}


def draw_inputs(cfg):
    """One run of tokens, cut into sequences; targets are the next tokens. `some`: with a different number of them ignored in
    each micro-batch, so that a mean of means would not pass for the mean."""
    gen = torch.Generator().manual_seed(3)
    tokens = torch.randint(cfg["vocab_size"], (MICRO * T + 1,), generator=gen)
    ids, targets = tokens[:-1].view(MICRO, T), tokens[1:].view(MICRO, T)
    keep = torch.rand(MICRO, T, generator=torch.Generator().manual_seed(5)) < 0.7
    return {"tokens": tokens, "ids": ids, "targets": targets, "some": torch.where(keep, targets, ref.IGNORED)}


def cut(cfg, stages):
    """Sublayers of each stage. Of two stages the first ends between attention and feed-forward layer."""
    count = 2 * cfg["num_hidden_layers"]
    if count < stages:
        return None
    ends = [count * (i + 1) // stages for i in range(stages)]
    if stages == 2:
        ends[0] |= 1
    return [end - begin for begin, end in zip([0] + ends, ends)]


def stages_of(schedule, ranks):
    return 2 * ranks if schedule == "dualpipev" else ranks


def sum_of_losses(logits, targets):
    return ref.mean_loss(logits, targets) * (targets != ref.IGNORED).sum()


def sequential(cfg, p, ids, targets):
    """Losses by micro-batch (sums over its targets), and gradients of the mean, of the model as a whole."""
    losses = [sum_of_losses(ref.forward(cfg, p, ids[m : m + 1]).logits, targets[m : m + 1]) for m in range(len(ids))]
    _, _, grads = ref.gradients(cfg, p, ids, targets)
    return torch.stack(losses), grads


# ----------------------------------------------------------------------------------------------- stages


class Held(dict):
    """The tensors of a stage. Of others there is None, which no formula takes."""

    def __missing__(self, name):
        return None


def is_held(cfg, name, begin, end):
    count = 2 * cfg["num_hidden_layers"]
    if not name.startswith("model.layers."):
        return begin == 0 if name.startswith("model.embed") else end == count
    layer, part = name.split(".")[2:4]
    ffn = part.startswith(("post_attention", "mlp", "hc_ffn"))
    return begin <= 2 * int(layer) + ffn < end


class Stage(torch.nn.Module):
    """Sublayers [begin, end) of the reference model, with what comes before the first and after the last."""

    def __init__(self, cfg, weights, begin, end):
        super().__init__()
        self.cfg, self.begin, self.end = cfg, begin, end
        self.first, self.last = begin == 0, end == 2 * cfg["num_hidden_layers"]
        self.p = Held((name, t.clone()) for name, t in weights.items() if is_held(cfg, name, begin, end))
        for name in filter(ref.is_trainable, self.p):
            self.p[name] = torch.nn.Parameter(self.p[name])
            self.register_parameter(name.replace(".", "/"), self.p[name])

    def forward(self, x):
        if self.first:
            x = ref.embed(self.cfg, self.p, x)
        out = ref.Output(logits=None)
        for i, sublayer in enumerate(ref.sublayers(self.cfg, self.p, out)):
            if self.begin <= i < self.end:
                x, _ = ref.run_sublayer(self.cfg, self.p, sublayer, x)
        return ref.head(self.cfg, self.p, x) if self.last else x

    def grads(self):
        return {name.replace("/", "."): p.grad for name, p in self.named_parameters() if p.grad is not None}


def make_stage(cfg, weights, sizes, index):
    begin = sum(sizes[:index])
    return Stage(cfg, weights, begin, begin + sizes[index])


# ------------------------------------------------------------------------------------ PyTorch's schedules


def run_torch(schedule, cfg, weights, sizes, ids, targets):
    """This rank's losses (those that it has) and gradients."""
    rank, ranks, kept = dist.get_rank(), dist.get_world_size(), (targets != ref.IGNORED).sum()
    held = [rank, 2 * ranks - 1 - rank] if schedule == "dualpipev" else [rank]
    modules = [make_stage(cfg, weights, sizes, s) for s in held]
    stages = [PipelineStage(m, s, len(sizes), torch.device("cpu")) for m, s in zip(modules, held)]

    def loss(logits, wanted):
        return sum_of_losses(logits, wanted) / kept

    how = dict(loss_fn=loss, scale_grads=False)
    if schedule == "1f1b":
        runs = Schedule1F1B(stages[0], MICRO, **how)
    else:
        runs = {"zb1p": ScheduleInterleavedZeroBubble, "dualpipev": ScheduleDualPipeV}[schedule](stages, MICRO, **how)
    losses, last = [], any(m.last for m in modules)
    runs.step(*([ids] if rank == 0 else []), **({"target": targets, "losses": losses} if last else {}))
    return {m: l.detach() * kept for m, l in enumerate(losses)}, [m.grads() for m in modules]


# ---------------------------------------------------------------------------------------------- DualPipe


class Stream:
    """What a rank does for one chunk: stage `stage` of stream number `number`, whose micro-batches begin at `first`."""

    def __init__(self, module, number, stage, first, ids, targets, kept):
        self.module, self.number, self.stage, self.first = module, number, stage, first
        self.ids, self.targets, self.kept = ids, targets, kept
        self.live, self.deferred, self.losses, self.sent = {}, {}, {}, []

    def peer(self, stage):
        return stage if self.number == 0 else dist.get_world_size() - 1 - stage

    def tag(self, edge, micro, gradient):
        """A message is known by what it is, not by when it was sent."""
        return ((self.number * 64 + edge) * 64 + micro) * 2 + gradient

    def send(self, tensor, to, edge, micro, gradient):
        tensor = tensor.detach().contiguous()
        self.sent.append((dist.isend(tensor, self.peer(to), tag=self.tag(edge, micro, gradient)), tensor))

    def receive(self, shape, source, edge, micro, gradient):
        tensor = torch.empty(shape, dtype=ref.F64)
        dist.irecv(tensor, self.peer(source), tag=self.tag(edge, micro, gradient)).wait()
        return tensor

    def forward(self, m):
        cfg, at = self.module.cfg, self.first + m
        if self.module.first:
            x = self.ids[at : at + 1]
        else:
            streams = () if cfg["residual"] == "plain" else (cfg["hc_mult"],)
            x = self.receive((1, T, *streams, cfg["hidden_size"]), self.stage - 1, self.stage - 1, m, False).requires_grad_()
        y = self.module(x)
        if self.module.last:
            y = sum_of_losses(y, self.targets[at : at + 1])
            self.losses[at] = y.detach()
            y = y / self.kept
        else:
            self.send(y, self.stage + 1, self.stage, m, False)
        self.live[m] = x, y

    def take(self, m):
        """The micro-batch's input, its output and the gradient of that."""
        x, y = self.live.pop(m)
        return x, y, None if self.module.last else self.receive(y.shape, self.stage + 1, self.stage, m, True)

    def hand_back(self, grad, m):
        if not self.module.first:
            self.send(grad, self.stage - 1, self.stage - 1, m, True)

    def add(self, grads):
        for p, g in zip(self.module.parameters(), grads):
            p.grad = g if p.grad is None else p.grad + g

    def backward(self, m):
        x, y, grad = self.take(m)
        wanted = list(self.module.parameters()) + ([] if self.module.first else [x])
        grads = torch.autograd.grad(y, wanted, grad)
        self.add(grads[: len(wanted) - (not self.module.first)])
        self.hand_back(grads[-1], m)

    def inputs(self, m):
        x, y, grad = self.take(m)
        if not self.module.first:
            self.hand_back(torch.autograd.grad(y, x, grad, retain_graph=True)[0], m)
        self.deferred[m] = y, grad

    def weights(self, m):
        y, grad = self.deferred.pop(m)
        self.add(torch.autograd.grad(y, list(self.module.parameters()), grad))


def run_lists(lists, cfg, weights, sizes, ids, targets):
    """DualPipe: chunk 0 is stage r of the micro-batches that enter at rank 0, chunk 1 the stage that enters at the other end. A
    pair in brackets is run one after the other: what it overlaps is time, not numbers."""
    rank, ranks, kept = dist.get_rank(), dist.get_world_size(), (targets != ref.IGNORED).sum()
    chunks = []
    for number, stage in enumerate((rank, ranks - 1 - rank)):
        module = make_stage(cfg, weights, sizes, stage)
        chunks.append(Stream(module, number, stage, number * MICRO // 2, ids, targets, kept))
    work = {"F": Stream.forward, "B": Stream.backward, "I": Stream.inputs, "W": Stream.weights}
    for word in lists[rank].replace("(", "").replace(")", "").replace(";", " ").split():
        work[word[1]](chunks[int(word[0])], int(word[2:]))
    for sent, _ in [each for c in chunks for each in c.sent]:
        sent.wait()
    if any(c.live or c.deferred for c in chunks):
        raise RuntimeError(f"rank {rank}: the list leaves micro-batches unfinished")
    return chunks[0].losses | chunks[1].losses, [c.module.grads() for c in chunks]


# ----------------------------------------------------------------------------------------------- workers


def work(rank, ranks, jobs, folder):
    """One rank of all jobs, in a process of its own."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store-{ranks}", rank=rank, world_size=ranks,
                            timeout=timedelta(seconds=TIMEOUT))
    for number, job in enumerate(jobs):
        cfg, weights = read_case(job["case"])
        inputs = draw_inputs(cfg)
        args = cfg, weights, job["sizes"], inputs["ids"], inputs["some"]
        run = run_lists(job["lists"], *args) if job["schedule"] == "dualpipe" else run_torch(job["schedule"], *args)
        torch.save(run, os.path.join(folder, f"{ranks}-{number}-{rank}"))
    dist.barrier()
    dist.destroy_process_group()


def run_ranks(ranks, jobs, folder):
    """Losses by micro-batch and gradients of each job. DualPipe's two replicas of a stage each have a part of its gradient."""
    torch.multiprocessing.spawn(work, (ranks, jobs, folder), nprocs=ranks)
    out = []
    for number in range(len(jobs)):
        losses, grads = {}, {}
        for rank in range(ranks):
            some, chunks = torch.load(os.path.join(folder, f"{ranks}-{number}-{rank}"))
            losses |= some
            for name, g in [item for chunk in chunks for item in chunk.items()]:
                grads[name] = grads[name] + g if name in grads else g
        out.append((torch.stack([losses[m] for m in range(MICRO)]), grads))
    return out


def worst(grads, wanted):
    """The largest error of a tensor, relative to it. Of the smallest, some of which are zero in theory and hold rounding,
    relative to a thousandth of the largest."""
    if set(grads) != set(wanted):
        raise RuntimeError(f"tensors of one side alone: {sorted(set(grads) ^ set(wanted))}")
    least = 1e-3 * max(g.norm().item() for g in wanted.values())
    return max((grads[name] - g).norm().item() / max(g.norm().item(), least) for name, g in wanted.items())


def compare(losses, grads, wanted_losses, wanted_grads):
    return {"losses": distance(losses, wanted_losses), "gradients": worst(grads, wanted_grads)}


# ------------------------------------------------------------------------------------------- the program


def read_lists(args, ranks):
    """What each rank does in DualPipe, in the grammar of doc/files.md."""
    command = [args.program, "plan", "--schedule", "dualpipe", "--pp", str(ranks), "--micro", str(MICRO), "--json"]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)["ranks"]


def run_program(command):
    try:
        subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=TIMEOUT)
    except subprocess.SubprocessError as error:
        raise RuntimeError(f"{error}\n{error.stdout}") from None


def write_tensors(path, tensors):
    """I32 alone."""
    header, data = {}, b""
    for name, t in tensors.items():
        begin, data = len(data), data + t.to(torch.int32).numpy().tobytes()
        header[name] = {"dtype": "I32", "shape": list(t.shape), "data_offsets": [begin, len(data)]}
    header = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(header)) + header + data)


def read_moments(folder):
    """m.NAME of a checkpoint, from one file or from the slices of several ranks."""
    whole, index = (os.path.join(folder, "optimizer.safetensors" + end) for end in ("", ".index.json"))
    if os.path.exists(whole):
        tensors = read_safetensors(whole)
    else:
        with open(index) as file:
            slices = json.load(file)["slices"]
        files = {s["file"] for t in slices.values() for s in t["slices"]}
        files = {name: read_safetensors(os.path.join(folder, name)) for name in files}
        tensors = {name: torch.cat([files[s["file"]][s["name"]] for s in t["slices"]]).reshape(t["shape"])
                   for name, t in slices.items()}
    return {name[2:]: t for name, t in tensors.items() if name.startswith("m.")}


def run_command(args, job, folder):
    """Loss, gradient norm and gradients of the first step of `birkhoff train`. With adam_beta1 = 0 and no clipping the first
    moments after it are its gradients."""
    launch, how = (args.mpirun.split() + ["-n", str(job["ranks"])], []) if args.mpirun else ([], ["--comm", "threads"])
    cfg, _ = read_case(job["case"])
    data, out = (os.path.join(folder, name) for name in ("tokens.bin", f"run-{job['number']}"))
    draw_inputs(cfg)["tokens"].to(torch.int16).numpy().tofile(data)
    sizes = ",".join(map(str, job["sizes"]))
    keys = ["adam_beta1=0", "grad_clip=0", "micro_batch_size=1", "bin_validation=false"]
    run_program(launch + [args.program, "train", "--init", os.path.join(FIXTURES, job["case"]), "--data", data, "--out", out,
                 "--steps", "1", "--batch-size", str(MICRO), "--seq-len", str(T), "--device", "ref", "--dtype", "fp64",
                 "--threads", "1", *how, "--pp", str(job["ranks"]), "--schedule", job["schedule"], "--stages", sizes]
                + [word for key in keys for word in ("--set", key)])
    with open(os.path.join(out, "metrics.jsonl")) as file:
        row = json.loads(file.readline())
    loss, norm = (torch.tensor(row[key], dtype=ref.F64) for key in ("loss", "grad_norm"))
    return loss, norm, read_moments(os.path.join(out, "step-000001"))


def run_executor(step, job, folder):
    """Losses by micro-batch and gradients, as the executor leaves them on each rank; some targets are ignored."""
    cfg, _ = read_case(job["case"])
    inputs = draw_inputs(cfg)
    at, out = (os.path.join(folder, f"{name}-{job['number']}") for name in ("input", "step"))
    write_tensors(at, {"input_ids": inputs["ids"], "targets": inputs["some"]})
    sizes = ",".join(map(str, job["sizes"]))
    run_program([step, os.path.join(FIXTURES, job["case"]), at, job["schedule"], str(job["ranks"]), sizes, out])
    losses, grads = {}, {}
    for rank in range(job["ranks"]):
        for name, t in read_safetensors(f"{out}-{rank}").items():
            kind, name = name.split(".", 1)
            part = losses if kind == "loss" else grads
            part[name] = part[name] + t if name in part else t
    return torch.cat([losses[str(m)] for m in range(MICRO)]), grads


# --------------------------------------------------------------------------------------------------- main


def make_jobs(args):
    """Each case by each schedule on so many ranks, and how many are left out because the model has not that many sublayers."""
    jobs, skipped = [], 0
    for schedule in args.schedules:
        for ranks in args.ranks or SCHEDULES[schedule]:
            lists = read_lists(args, ranks) if schedule == "dualpipe" else None
            for case in args.cases:
                sizes = cut(read_case(case)[0], stages_of(schedule, ranks))
                if sizes:
                    jobs.append(dict(case=case, schedule=schedule, ranks=ranks, sizes=sizes, lists=lists, number=len(jobs)))
                else:
                    skipped += 1
                    print(f"skip {case} {schedule} {ranks} ranks: fewer sublayers than stages")
    return sorted(jobs, key=lambda job: job["ranks"]), skipped


def check_job(args, job, pipelined, whole, folder):
    """What the pipelines of both sides make of a case: PyTorch's against the model as a whole, the program's against PyTorch's,
    but for the command, which cannot ignore targets, against the model as a whole."""
    errors = {"PyTorch": compare(*pipelined, *whole["some"])}
    if not args.torch:
        errors["executor"] = compare(*run_executor(args.step, job, folder), *pipelined)
        loss, norm, grads = run_command(args, job, folder)
        wanted, theirs = whole["targets"][0].sum() / (MICRO * T), whole["targets"][1]
        square = sum(g.square().sum() for g in theirs.values())
        errors["command"] = compare(loss, grads, wanted, theirs) | {"norm": distance(norm, square.sqrt())}
    return errors


def show(job, errors):
    good = all(error <= BOUND for side in errors.values() for error in side.values())
    sides = {side: ", ".join(f"{what} {error:.0e}" for what, error in each.items()) for side, each in errors.items()}
    text = "; ".join(f"{side} {each}" for side, each in sides.items())
    print(f"{'ok  ' if good else 'FAIL'} {job['case']:11} {job['schedule']:9} {job['ranks']} ranks: {text}", flush=True)
    return good


def parse():
    def words(text):
        return text.split(",")

    parser = argparse.ArgumentParser(usage="see the head of this file")
    parser.add_argument("program")
    parser.add_argument("--cases", type=words, default=CASES)
    parser.add_argument("--schedules", type=words, default=list(SCHEDULES))
    parser.add_argument("--ranks", type=lambda text: [int(n) for n in words(text)])
    parser.add_argument("--mpirun")
    parser.add_argument("--torch", action="store_true")
    args = parser.parse_args()
    args.step = os.path.join(os.path.dirname(args.program), "tests", "peers", "pipeline_step")
    if not args.torch and not os.access(args.step, os.X_OK):
        parser.error(f"{args.step} is missing: {args.program} must be the program in its build folder")
    return args


def main():
    args = parse()
    torch.set_num_threads(1)
    jobs, skipped = make_jobs(args)
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        pipelined, whole = [], {}
        for ranks in sorted({job["ranks"] for job in jobs}):
            pipelined += run_ranks(ranks, [job for job in jobs if job["ranks"] == ranks], folder)
        for case in args.cases:
            cfg, weights = read_case(case)
            inputs = draw_inputs(cfg)
            whole[case] = {kind: sequential(cfg, weights, inputs["ids"], inputs[kind]) for kind in ("targets", "some")}
        for job, result in zip(jobs, pipelined):
            try:
                failed += not show(job, check_job(args, job, result, whole[job["case"]], folder))
            except RuntimeError as error:
                failed += 1
                print(f"FAIL {job['case']} {job['schedule']} {job['ranks']} ranks: {error}", flush=True)
    print(f"{len(jobs) - failed} passed, {failed} failed, {skipped} skipped")
    return 1 if failed or not jobs else 0


if __name__ == "__main__":
    sys.exit(main())
