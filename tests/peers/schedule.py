"""Compares the pipeline schedules of `birkhoff plan --schedule` with PyTorch's own (torch.distributed.pipelining).

    schedule.py [BIRKHOFF]       the program; default: birkhoff

1f1b, zb1p and dualpipev must be the lists of Schedule1F1B, ScheduleInterleavedZeroBubble and ScheduleDualPipeV. What
PyTorch has besides (GPipe, interleaved schedules, the zero-bubble V) is written as JSON: the program must accept it and
give the same lists back, or refuse it where W come out of order or ranks would wait for each other for ever. Time,
bubble and peak of all that is accepted, and what must be refused, is worked out below in another way than in the program. No process group is needed: PyTorch's fake one takes every message.
Exit status: 0; 1 where something differs; 77 where PyTorch has no such schedules.
"""

import collections
import json
import os
import subprocess
import sys
import tempfile

try:
    import torch
    import torch.distributed as dist
    from torch.distributed.pipelining import PipelineStage
    from torch.distributed.pipelining import schedules as theirs
    from torch.testing._internal.distributed.fake_pg import FakeStore

    FULL, INPUT, WEIGHT = theirs.FULL_BACKWARD, theirs.BACKWARD_INPUT, theirs.BACKWARD_WEIGHT
    FORWARD, PAIR = theirs.FORWARD, theirs.OVERLAP_F_B
except (ImportError, AttributeError) as error:
    print(f"schedule.py: skipped: this PyTorch has no pipeline schedules to compare with: {error}", file=sys.stderr)
    sys.exit(77)

COSTS = [{"F": 1, "B": 2, "W": 1, "FB": 3}, {"F": 3, "B": 7, "W": 2, "FB": 8}]
KINDS = {FORWARD: "F", FULL: "B", INPUT: "I", WEIGHT: "W"}

# ---- PyTorch's lists ----


class Recorder(PipelineStage):
    """A stage that notes what it is told to do, and does nothing."""

    def __init__(self, index, stages):
        x = torch.zeros(1, 2)
        super().__init__(torch.nn.Linear(2, 2), index, stages, torch.device("cpu"), input_args=(x,), output_args=x)
        self.done = []

    def forward_one_chunk(self, micro, *args, **kwargs):
        self.done.append(f"0F{micro}")
        return torch.zeros(1, 2)

    def backward_one_chunk(self, micro, *args, **kwargs):
        self.done.append(f"0B{micro}")

    def nothing(self, *args, **kwargs):
        return []

    get_fwd_recv_ops = get_fwd_send_ops = get_bwd_recv_ops = get_bwd_send_ops = perform_reduce_grad = nothing


def join(rank, ranks):
    if dist.is_initialized():
        dist.destroy_process_group()
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=ranks)


def single_stage(kind, ranks, micro):
    """The lists that a schedule with one stage a rank carries out. (The table that Schedule1F1B prints of itself is no
    use: it counts the last rank's forward passes from 1.)"""
    lines = []
    for rank in range(ranks):
        join(rank, ranks)
        stage = Recorder(rank, ranks)
        schedule = kind(stage, micro, loss_fn=lambda output, target: output.sum())
        inputs = [torch.zeros(micro, 2)] if rank == 0 else []
        target = {"target": torch.zeros(micro, 2)} if rank == ranks - 1 else {}
        schedule.step(*inputs, **target, return_outputs=False)
        lines.append(" ".join(stage.done))
    return [[rank] for rank in range(ranks)], lines


def one_pass(action, stages):
    return f"{stages.index(action.stage_index)}{KINDS[action.computation_type]}{action.microbatch_index}"


def record(action, stages):
    if action.computation_type != PAIR:
        return one_pass(action, stages)
    return "(" + ";".join(one_pass(part, stages) for part in action.sub_actions) + ")"


def several_stages(kind, ranks, micro, stages):
    """The table of a schedule; stages[rank] are those of a rank, chunk 0 first."""
    join(0, ranks)
    total = sum(len(held) for held in stages)
    schedule = kind([Recorder(index, total) for index in stages[0]], micro, loss_fn=lambda output, target: output.sum())
    known = set(KINDS) | {PAIR}
    return stages, [
        " ".join(record(a, stages[rank]) for a in schedule.pipeline_order[rank] if a and a.computation_type in known)
        for rank in range(ranks)
    ]


def looped(ranks, chunks):
    return [[rank + chunk * ranks for chunk in range(chunks)] for rank in range(ranks)]


def folded(ranks):
    return [[rank, 2 * ranks - 1 - rank] for rank in range(ranks)]


# ---- what is right, worked out once more ----


def parts(word):
    """[(kind, chunk, micro)] of a record."""
    result = []
    for one in word.strip("()").split(";"):
        at = next(i for i, letter in enumerate(one) if letter.isalpha())
        result.append((one[at], int(one[:at]), int(one[at + 1 :])))
    return result


def simulate(stages, lines, costs):
    """Time of a step, idle time of the rank that is idle most, and the most micro-batches that each rank holds."""
    last = sum(len(held) for held in stages) - 1
    cost = {"F": costs["F"], "B": costs["B"], "I": costs["B"] - costs["W"], "W": costs["W"]}
    lists = [collections.deque(parts(word) for word in line.split()) for line in lines]
    clock, busy, done = [0] * len(lists), [0] * len(lists), {}
    held, peak = [0] * len(lists), [0] * len(lists)
    while any(lists):
        before = sum(len(todo) for todo in lists)
        for rank, todo in enumerate(lists):
            if not todo:
                continue
            needs, makes = [], []
            for kind, chunk, micro in todo[0]:
                stage = stages[rank][chunk]
                if kind == "F" and stage > 0:
                    needs.append(("F", stage - 1, micro))
                if kind in "BI" and stage < last:
                    needs.append(("B", stage + 1, micro))
                makes.append(("B" if kind == "I" else kind, stage, micro))
            if any(need not in done for need in needs):
                continue
            length = costs["FB"] if len(todo[0]) == 2 else cost[todo[0][0][0]]
            clock[rank] = max([clock[rank]] + [done[need] for need in needs]) + length
            busy[rank] += length
            done.update((made, clock[rank]) for made in makes)
            kinds = [kind for kind, _, _ in todo.popleft()]
            held[rank] += "F" in kinds
            peak[rank] = max(peak[rank], held[rank])
            held[rank] -= "B" in kinds or "W" in kinds
        if sum(len(todo) for todo in lists) == before:
            raise SystemExit("schedule.py: the lists never end")
    return max(clock), max(clock) - min(busy), peak


class Rank:
    """A rank on its way through its list: what it waits for, then what it sends, one thing after the other."""

    def __init__(self, rank, line, stages, holder):
        self.steps, last = [], len(holder) - 1
        for word in line.split():
            takes, sends = [], []
            for kind, chunk, micro in parts(word):
                stage = stages[rank][chunk]
                before, after = (stage - 1, stage + 1) if kind == "F" else (stage + 1, stage - 1)
                if kind in "FBI" and 0 <= before <= last and holder[before] != rank:
                    takes.append((holder[before], rank, stage, kind == "F", micro))
                if kind in "FBI" and 0 <= after <= last and holder[after] != rank:
                    sends.append((rank, holder[after], after, kind == "F", micro))
            self.steps.append(("take", takes))
            # of the two of an overlapped pair the gradient goes first
            self.steps += [("send", [message]) for message in reversed(sends)]


def ends(stages, lines, ahead=2):
    """Whether all lists end if a rank holds at most `ahead` messages of each kind that it has not used yet, and a
    sender waits until its message before to the same rank was received. A message is (from, to, stage, forward, micro)."""
    holder = {stage: rank for rank, held in enumerate(stages) for stage in held}
    ranks = [Rank(rank, line, stages, holder) for rank, line in enumerate(lines)]
    under_way, received, moved = {}, collections.Counter(), True
    stored = collections.defaultdict(set)
    while moved:
        moved = False
        for pair, message in list(under_way.items()):
            if received[message[1:4]] < ahead:
                received[message[1:4]] += 1
                stored[message[1]].add(message)
                del under_way[pair]
                moved = True
        for rank, state in enumerate(ranks):
            if not state.steps:
                continue
            what, messages = state.steps[0]
            if what == "take" and stored[rank].issuperset(messages):
                stored[rank].difference_update(messages)
                received.subtract(message[1:4] for message in messages)
            elif what == "send" and messages[0][:2] not in under_way:
                under_way[messages[0][:2]] = messages[0]
            else:
                continue
            state.steps.pop(0)
            moved = True
    return not any(state.steps for state in ranks)


def in_order(line):
    """Whether the W of each chunk come in the order of their I."""
    words = [parts(word)[0] for word in line.split() if not word.startswith("(")]
    return all(
        [w[1:] for w in words if w[0] == "W" and w[1] == chunk] == [i[1:] for i in words if i[0] == "I" and i[1] == chunk]
        for chunk in {word[1] for word in words}
    )


def refusal(stages, lines):
    """A part of what the program must say of lists that cannot be run; None: they can."""
    if not all(in_order(line) for line in lines):
        return "W of a chunk come in the order of their I"
    return None if ends(stages, lines) else "the lists never end"


# ---- the program ----


def plan(birkhoff, costs, *options):
    text = ",".join(f"{name}={value}" for name, value in costs.items())
    done = subprocess.run(
        [birkhoff, "plan", "--json", "--costs", text, "--schedule", *options], capture_output=True, text=True
    )
    if done.returncode:
        return {"error": done.stderr.strip()}
    return json.loads(done.stdout)


def differs(said, stages, lines):
    """What is wrong with a plan; None: nothing."""
    refused = refusal(stages, lines)
    if "error" in said or refused:
        good = refused and refused in said.get("error", "")
        return None if good else f"{said.get('error', 'accepted')}, where {refused or 'nothing'} is wrong"
    if said["stages"] != stages:
        return f"stages {said['stages']}, not {stages}"
    for rank, (ours, other) in enumerate(zip(said["ranks"], lines)):
        if ours != other:
            return f"rank {rank}: {ours}\n{' ' * 10}not {other}"
    time, bubble, peak = simulate(stages, lines, said["costs"])
    found = said["time"], said["bubble"], said["peak_activations"]
    return None if found == (time, bubble, peak) else f"time, bubble and peak {found}, not {(time, bubble, peak)}"


def named(ranks):
    """(name, numbers of micro-batches, their class and how its lists are made)"""
    one = [[rank] for rank in range(ranks)]
    v = theirs.ScheduleDualPipeV
    z = theirs.ScheduleInterleavedZeroBubble
    yield "1f1b", range(ranks, 2 * ranks + 3), lambda m: single_stage(theirs.Schedule1F1B, ranks, m)
    yield "zb1p", whole_rounds(ranks), lambda m: several_stages(z, ranks, m, one)
    yield "dualpipev", range(2 * ranks, 2 * ranks + 5), lambda m: several_stages(v, ranks, m, folded(ranks))


def whole_rounds(ranks):
    """PyTorch's interleaved schedules want a multiple of the number of rounds, which is micro-batches by ranks."""
    return [m for m in range(1, 3 * ranks + 1) if m % max(1, m // ranks) == 0]


def foreign(ranks):
    z, one = theirs.ScheduleInterleavedZeroBubble, theirs.ScheduleInterleaved1F1B
    yield "GPipe", range(1, ranks + 3), lambda m: single_stage(theirs.ScheduleGPipe, ranks, m)
    for chunks in (2, 3):
        held = looped(ranks, chunks)
        yield f"Interleaved1F1B-{chunks}", whole_rounds(ranks), lambda m, h=held: several_stages(one, ranks, m, h)
        yield f"InterleavedZeroBubble-{chunks}", whole_rounds(ranks), lambda m, h=held: several_stages(z, ranks, m, h)
    v = theirs.ScheduleZBVZeroBubble
    yield "ZBVZeroBubble", range(2 * ranks, 2 * ranks + 5), lambda m: several_stages(v, ranks, m, folded(ranks))


def main():
    birkhoff = sys.argv[1] if len(sys.argv) > 1 else "birkhoff"
    same, refused, wrong, folder = collections.Counter(), collections.Counter(), 0, tempfile.mkdtemp()
    path = os.path.join(folder, "schedule.json")

    def report(name, ranks, micro, said, stages, lines):
        nonlocal wrong
        difference = differs(said, stages, lines)
        if difference is not None:
            wrong += 1
            print(f"differs: {name}, {ranks} ranks, {micro} micro-batches: {difference}")
        elif "error" in said:
            refused[name] += 1
        else:
            same[name] += 1

    for ranks in range(1, 7):
        for name, sizes, make in named(ranks):
            for micro in sizes:
                stages, lines = make(micro)
                for costs in COSTS:
                    said = plan(birkhoff, costs, name, "--pp", str(ranks), "--micro", str(micro))
                    report(name, ranks, micro, said, stages, lines)
        for name, sizes, make in foreign(ranks):
            for micro in sizes:
                stages, lines = make(micro)
                with open(path, "w") as file:
                    json.dump({"schedule": name, "stages": stages, "ranks": lines}, file)
                report(name, ranks, micro, plan(birkhoff, COSTS[1], path), stages, lines)
    os.remove(path)
    os.rmdir(folder)
    for name in {**same, **refused}:
        print(f"{name:24} {same[name]:4} plans are the same, {refused[name]:3} are refused for what is wrong with them")
    return 1 if wrong or any(refused[name] for name in ("1f1b", "zb1p", "dualpipev")) else 0


if __name__ == "__main__":
    sys.exit(main())
