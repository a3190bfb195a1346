#!/usr/bin/env python3
"""Proves, without a GPU, that kernels of the cuda backend have no races: in their PTX, at recorded launches.

usage: prove.py --build DIR --work DIR [--nvcc NVCC] [--verifier PROGRAM] [--long] [--row TEXT] [--loops] [--mutants ROW]

For each row of verdicts.txt
  - the harness runs the row's case with the cuda backend on the host (tests/cuda-on-host), which records its launches;
  - nvcc makes the PTX of the kernel's file;
  - what the launch says of memory is checked here, because the verifier takes distinct pointers for distinct, boundless memory: the
    kernel leaves the same bytes when each of its pointers has memory of its own, every pointer lies in an operand of the case or in the workspace, and
    what is written through it stays inside of that operand, or short of the next piece of the workspace;
  - the verifier (sentryward, from PyPI) gets the PTX with the launch's sizes and arguments;
  - its answer must be the row's verdict. One that is worse fails; one that is better is said.
Then the mutants: the PTX of a row without one of its barriers or waits (mutants.txt), which the verifier must find.

Without --long only the rows and mutants marked `quick` are proved. --loops says how often each loop of a row's kernel runs each time it is entered
(a race between two rounds of a loop shows only where there are some); --mutants tries every barrier and wait of a row, to choose from.
The last line is "N passed, N failed, N skipped".
"""
import argparse
import concurrent.futures
import json
import os
import re
import struct
import subprocess
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
SOURCE = os.path.abspath(os.path.join(HERE, "..", "..", ".."))
KERNELS = os.path.join(SOURCE, "backends", "cuda", "kernels")
ORDER = ["undecided", "path", "block", "proved", "equal"]  # from worst to best
SECONDS = {"quick": 60, "long": 600}  # limits of one proof; quick ones take up to 10 s on an idle machine
MEBIBYTES = 9000

# ---- the tables ----


def read_table(name, columns):
    """Rows of a table whose columns are separated by " | "; # begins a comment line."""
    rows = []
    with open(os.path.join(HERE, name), encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            line = line.strip()
            if not line or line.startswith("#"):
                continue
            cells = [cell.strip() for cell in line.split("|")]
            if len(cells) != len(columns):
                sys.exit(f"{name}:{number}: {len(cells)} columns, not {len(columns)}")
            rows.append(dict(zip(columns, cells), line=number))
    return rows


def read_rows():
    rows = read_table("verdicts.txt", ["kernel", "instance", "case", "settings", "verdict", "level", "note"])
    for row in rows:
        row["file"], row["function"] = row["kernel"].split("/")
        row["given"] = row["settings"]
        row["settings"] = dict(word.split("=") for word in row["settings"].split()) if row["settings"] != "-" else {}
        unknown = set(row["settings"]) - {"sms", "blaslt", "capability", "nth", "grid", "tables", "branches", "taken", "equal"}
        if unknown or row["verdict"] not in ORDER or row["level"] not in [*SECONDS, "none"]:
            sys.exit(f"verdicts.txt:{row['line']}: what is {', '.join(unknown) or row['verdict'] + ' ' + row['level']}?")
    return rows


# ---- PTX ----


def demangled(names):
    """What c++filt calls the names; those of nvcc and of the host's compiler agree in it."""
    names = sorted(set(names))
    told = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True)
    return dict(zip(names, told.stdout.splitlines()))


def short_name(signature):
    """(kernel, template arguments) of a demangled name."""
    name = signature.replace("(anonymous namespace)::", "").removeprefix("void ")
    function = re.match(r"\w+", name).group(0)
    depth, end = 0, len(function)
    if name[end] == "<":
        for end in range(end, len(name)):
            depth += {"<": 1, ">": -1}.get(name[end], 0)
            if depth == 0:
                break
    return function, name[len(function) + 1 : end].strip() or "-"


def make_ptx(nvcc, source, target):
    command = [nvcc, "-std=c++17", "-O3", "-lineinfo", "-arch=compute_100", "-ptx", "-Icore", "-Icore/include", "-I.", "-o", target, source]
    subprocess.run(command, cwd=SOURCE, check=True)


def entries(path):
    """The text of each kernel of a PTX file, by (function, template arguments)."""
    with open(path, encoding="utf-8") as file:
        text = file.read()
    found = {m.group(1): m.group(0) for m in re.finditer(r"^(?:\.visible |\.weak )?\.entry (\w+)\(.*?^\}", text, re.M | re.S)}
    names = demangled(found)
    return {short_name(names[name]): (name, body) for name, body in found.items()}


SCALARS = {"b8": "u8", "b16": "u16", "b32": "u32", "b64": "u64"}


def size_of(kind):
    return int(kind[1:]) // 8


def parameters_of(name, body):
    """What the kernel reads of its parameters: {(parameter, offset): type}; which 8-byte fields are used as addresses; parameters whose own
    address is taken."""
    fields, addresses, taken, registers = {}, set(), set(), {}
    load = re.compile(r"ld\.param(\.v[24])?\.(\w+)\s+(\{[^}]*\}|%\w+),\s*\[" + name + r"_param_(\d+)(?:\+(\d+))?\]")
    mention = re.compile(name + r"_param_(\d+)")
    head, text = body.split("{", 1)
    for line in text.splitlines():
        m = load.search(line)
        if m:
            kind, at = m.group(2), int(m.group(5) or 0)
            for i, register in enumerate(re.findall(r"%\w+", m.group(3))):
                place = (int(m.group(4)), at + i * size_of(kind))
                fields[place] = max(fields.get(place, kind), kind, key=size_of)
                registers[register] = place
        elif mention.search(line):
            taken.add(int(mention.search(line).group(1)))
        m = re.search(r"cvta\.to\.global\.u64\s+%\w+,\s*(%\w+);", line)
        if m and m.group(1) in registers:
            addresses.add(registers[m.group(1)])
    for m in re.finditer(r"\.param \.(\w+) " + name + r"_param_(\d+)[,\s]", head):  # the verifier wants the types of the declaration
        fields[int(m.group(2)), 0] = m.group(1)
    return fields, addresses, taken


def cover(fields, parameter, size, pointers):
    """A structure whose address is taken is declared whole: addresses, and between what is read by name words or bytes."""
    for at in range(0, size, 8):
        if (parameter, at) in pointers:
            fields.setdefault((parameter, at), "u64")
    read = {b for (p, at), kind in fields.items() if p == parameter for b in range(at, at + size_of(kind))}
    for at in range(0, size, 4):
        left = [b for b in range(at, min(at + 4, size)) if b not in read]
        if len(left) == 4:
            fields[parameter, at] = "u32"
        else:
            fields.update({(parameter, b): "u8" for b in left})


def value_of(raw, kind):
    if kind[0] == "f":
        return struct.unpack({"f32": "<f", "f64": "<d"}[kind], raw)[0]
    return int.from_bytes(raw, "little", signed=kind[0] == "s")


def table_of(launch, place):
    """The 32-bit integers behind a pointer, "parameter:offset", as far as its operand or its piece of the workspace goes."""
    at = [int(n) for n in place.split(":")]
    pointer = next((p for p in launch["pointers"] if at in p["at"]), None)
    if not pointer:
        raise ValueError(f"no address lies at {place}")
    base, size = pointer["allocation"]
    ends = [base + size, *(p["address"] for p in launch["pointers"] if p["allocation"][0] == base and p["address"] > pointer["address"])]
    ends += [o[2] + o[3] for o in operand_at(launch["case"], pointer["address"])]
    raw = bytes.fromhex(pointer["bytes"])[: min(ends) - pointer["address"]]
    values = [n for (n,) in struct.iter_unpack("<I", raw[: len(raw) // 4 * 4])]
    return {"parameter": at[0], "offset": at[1], "element_type": "u32", "shapes": [values]}


def make_input(name, body, launch, settings):
    """The verifier's input: the launch with the values of its arguments; each address is an object of its own."""
    fields, addresses, taken = parameters_of(name, body)
    pointers = {tuple(at): f"g{i}" for i, p in enumerate(launch["pointers"]) for at in p["at"]}
    data = [bytes.fromhex(p) for p in launch["parameters"]]
    for parameter in taken:
        cover(fields, parameter, len(data[parameter]), pointers)
    declarations, arguments, covered = [], [], set()
    for (parameter, at), kind in sorted(fields.items()):
        field = {"parameter": parameter, "offset": at}
        if (parameter, at) in covered:  # within a wider one
            continue
        covered |= {(parameter, b) for b in range(at, at + size_of(kind))}
        raw = data[parameter][at : at + size_of(kind)]
        if (parameter, at) in pointers and size_of(kind) == 8:
            declarations.append({**field, "type": "pointer", "space": "global", "object": pointers[parameter, at]})
        elif (parameter, at) in addresses and not any(raw):
            arguments.append({**field, "type": "pointer", "value": None})
        else:
            arguments.append({**field, "type": SCALARS.get(kind, kind), "value": value_of(raw, kind)})
    grid = [int(n) for n in settings["grid"].split(",")] if "grid" in settings else launch["grid"]
    made = {
        "schema": "spverify.kernel-input/v1",
        "entry": name,
        "launch": {"grid_dim": grid, "block_dim": launch["block"], "dynamic_shared_bytes": launch["shared"]},
        "declarations": declarations,
        "arguments": arguments,
    }
    if "tables" in settings:
        made["shape_arrays"] = [table_of(launch, place) for place in settings["tables"].split(",")]
    if "branches" in settings:  # the path on which every test of data falls through, and loops that depend on data run so often
        made["assumptions"] = {"representative_branches": True, "bounded_computation_loops": True}
        made["data_branch_loop_iterations"] = int(settings["branches"])
    return made


# ---- launches ----


def record(build, work, row):
    """The launches of the row's case on the host, of any kernel."""
    settings = row["settings"]
    path = os.path.join(work, f"launches-{os.getpid()}-{row['line']}")
    environment = dict(os.environ, BK_CUDA_RECORD=path, BIRKHOFF_BACKEND_DIR=os.path.join(build, "tests/cuda-on-host/.libs"))
    environment.pop("BK_TEST_QUICK", None)
    for key, name in (("sms", "BK_CUDA_SMS"), ("blaslt", "BK_CUDA_BLASLT"), ("capability", "BK_CUDA_CAPABILITY")):
        if key in settings:
            environment[name] = settings[key]
    command = [os.path.join(build, "tests/ops/test_ops"), "--device", "cuda", "--case", row["case"]]
    told = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    launches, case = [], None
    if not os.path.exists(path):
        raise ValueError(f"the harness has no such case: {told.stdout.splitlines()[-1:]} {told.stderr.splitlines()[-1:]}")
    with open(path, encoding="utf-8") as file:
        for line in file:
            entry = json.loads(line)
            if "case" in entry:
                case = entry
            elif case and case["case"] == row["case"]:
                launches.append(dict(entry, case=case))
    os.remove(path)
    if told.returncode:
        raise ValueError(f"the harness says: {told.stdout.splitlines()[-1:]}")
    return launches


def launch_of(build, work, row):
    launches = record(build, work, row)
    names = demangled(entry["launch"] for entry in launches)
    fitting = [entry for entry in launches if short_name(names[entry["launch"]]) == (row["function"], row["instance"])]
    nth = int(row["settings"].get("nth", 0))
    if nth >= len(fitting):
        raise ValueError(f"{row['case']} launches {row['function']}<{row['instance']}> {len(fitting)} times")
    return fitting[nth]


def operand_at(case, address):
    return [o for o in case["operands"] if o[2] <= address < o[2] + max(o[3], 1)]


def wrong_about_memory(launch):
    """Why the verifier's view of memory would be wrong, or None."""
    case, pointers = launch["case"], launch["pointers"]
    if not launch["apart"]:
        return "with memory of its own for each pointer the kernel writes something else"
    for p in pointers:
        base, size = p["allocation"]
        first, end = [base + n for n in p["written"] or (0, 0)]
        operands = operand_at(case, p["address"])
        if base == case["buffer"]:
            if not operands:
                return f"a pointer lies {p['address'] - base} bytes into the buffer, where no operand is"
            good = any(o[1] != "in" and o[2] <= first and end <= o[2] + o[3] for o in operands)
        else:
            later = [q["address"] for q in pointers if q["allocation"][0] == base and q["address"] > p["address"]]
            good = p["address"] <= first and end <= min(later + [base + size])
        if p["written"] and not good:
            where = ", ".join(o[0] for o in operands) or "the workspace"
            return f"bytes {first - p['address']} to {end - p['address']} are written through a pointer into {where}"
    return None


# ---- equality with PyTorch ----

TYPES = {"fp32": ("float32", 4), "bf16": ("bfloat16", 2)}


def object_id(name):
    return f"6:global{len(name)}:{name}"


def layout_of(operand):
    size = TYPES[operand[4]][1]
    target, bytes_of = [], size
    for n in reversed(operand[5]):
        target.insert(0, bytes_of)
        bytes_of *= n
    return {"source_offset": 0, "target_offset": 0, "element_bytes": size, "shape": operand[5],
            "source_strides_bytes": [size * n for n in operand[6]], "target_strides_bytes": target}


def make_binding(launch, names):
    """Which tensor of the reference is which pointer of the kernel: `names` are the parameters of the reference, inputs of the op; its result is the op's output."""
    objects = {o[0]: f"g{i}" for i, p in enumerate(launch["pointers"]) for o in operand_at(launch["case"], p["address"])}
    operands = {o[0]: o for o in launch["case"]["operands"]}
    missing = [name for name in names if name not in operands]
    if missing:
        raise ValueError(f"the case has no operand {missing[0]}, which the reference wants")
    (out,) = [o for o in operands.values() if o[1] == "out"]
    layouts = {name: layout_of(operands[name]) for name in names}
    result = layout_of(out)

    def side(identify):
        # What the kernel's side reads lies as the launch has it; the reference's tensors are dense.
        dense = identify is object_id
        return {
            "allocations": {identify(name): name for name in names},
            "parameters": {},
            "layouts": {identify(name): {**at, "source_strides_bytes": at["target_strides_bytes"]} if dense else at for name, at in layouts.items()},
        }

    return {
        "schema": "spverify.equivalence-mapping.v1",
        "left_inputs": side(object_id),
        "right_inputs": side(lambda name: object_id(objects[name])),
        "output_value_semantics": "ideal_real",
        "outputs": {"kind": "dense_tensor", "left_allocation": object_id(out[0]), "right_allocation": object_id(objects[out[0]]), "left_offset": 0, "right_offset": 0,
                    "element_bytes": result["element_bytes"], "shape": out[5], "left_strides_bytes": result["target_strides_bytes"],
                    "right_strides_bytes": result["source_strides_bytes"]},
        "reference": {"arguments": [{"name": name, "allocation": object_id(name), "dtype": TYPES[operands[name][4]][0]} for name in names]},
    }


def write_reference(work, row, launch):
    """The files of the row's reference: the function by itself, and the binding that its parameters ask for."""
    with open(os.path.join(HERE, "references.py"), encoding="utf-8") as file:
        text = file.read()
    body = re.search(rf"^def {row['settings']['equal']}\(([^)]*)\):\n(?:    .*\n|\n)*", text, re.M)
    if not body:
        raise ValueError(f"references.py has no {row['settings']['equal']}")
    folder = os.path.join(work, f"reference-{row['line']}")
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, "reference.py"), "w", encoding="utf-8") as file:
        file.write("import torch\n\n" + body.group(0).replace(f"def {row['settings']['equal']}(", "def reference(", 1))
    with open(os.path.join(folder, "reference_binding.json"), "w", encoding="utf-8") as file:
        json.dump(make_binding(launch, [name.strip() for name in body.group(1).split(",")]), file)
    return ["--reference", os.path.join(folder, "reference.py")]


# ---- proofs ----


def verify(verifier, ptx, given, work, name, seconds, reference=()):
    path = os.path.join(work, f"{name}.json")
    with open(path, "w", encoding="utf-8") as file:
        json.dump(given, file)
    command = [verifier, ptx, "--input", path, "--timeout", str(seconds), "--memory-limit-mib", str(MEBIBYTES), *reference]
    told = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        return json.loads(told.stdout)
    except ValueError:
        return {"result": "tool_failure", "diagnostics": [{"code": told.stderr.strip().splitlines()[-1:]}]}


def verify_taken(verifier, ptx, given, work, name, seconds, reference=()):
    """The path on which every branch that depends on data is taken: the verifier names the next such branch until it is through."""
    given, lines = dict(given), []
    while True:
        given["branch_decisions"] = [{"line": line, "taken": True} for line in lines]
        answer = verify(verifier, ptx, given, work, name, seconds, reference)
        first = (answer.get("diagnostics") or [{}])[0]
        line = (first.get("details") or {}).get("location", {}).get("line")
        if first.get("code") != "control_predicate_not_static" or line in lines or len(lines) == 20:
            return answer
        lines.append(line)


def verdict_of(answer, settings):
    """What of ORDER the answer means, and why it is not better."""
    if answer["result"] == "verified":
        return "equal", ""
    if answer["result"] != "race_free" and not (answer["result"] == "equivalence_not_proven" and answer["checks"]["memory"] == "passed"):
        first = (answer.get("diagnostics") or [{}])[0]
        return "undecided", f"{answer['result']}: {first.get('code', '')} {first.get('message') or ''}".strip()
    return ("path" if {"branches", "taken", "tables"} & set(settings) else "block" if "grid" in settings else "proved"), ""


class Prover:
    def __init__(self, options):
        self.options = options
        self.files = {}

    def compile(self, names):
        """The PTX of these files of kernels."""
        os.makedirs(self.options.work, exist_ok=True)
        jobs = {name: os.path.join(self.options.work, f"{name}.ptx") for name in sorted(names)}
        with concurrent.futures.ThreadPoolExecutor(self.options.jobs) as pool:
            list(pool.map(lambda name: make_ptx(self.options.nvcc, os.path.join(KERNELS, f"{name}.cu"), jobs[name]), jobs))
        self.files = {name: (path, entries(path)) for name, path in jobs.items()}

    def entry(self, row):
        path, found = self.files[row["file"]]
        if (row["function"], row["instance"]) not in found:
            raise ValueError(f"{row['file']}.cu has no {row['function']}<{row['instance']}>")
        return (path, *found[row["function"], row["instance"]])

    def given(self, row):
        """Everything that a proof takes: the PTX file, the kernel's name and text, the input."""
        path, name, body = self.entry(row)
        launch = launch_of(self.options.build, self.options.work, row)
        wrong = wrong_about_memory(launch)
        if wrong:
            raise ValueError(wrong)
        return path, name, body, make_input(name, body, launch, row["settings"]), launch

    def row(self, row):
        """(good, line to print)"""
        begin = time.monotonic()
        what = f"{row['kernel']}<{row['instance']}>, {row['case']}"
        try:
            path, _, _, given, launch = self.given(row)
            reference = write_reference(self.options.work, row, launch) if "equal" in row["settings"] else []
        except ValueError as error:
            return False, f"FAIL: {what}: {error}"
        way = verify_taken if "taken" in row["settings"] else verify
        answer = way(self.options.verifier, path, given, self.options.work, f"row-{row['line']}", SECONDS[row["level"]], reference)
        got, why = verdict_of(answer, row["settings"])
        took = f"{time.monotonic() - begin:.1f} s"
        if answer["result"] in ("potential_race", "not_wellsynced", "invalid_lifecycle", "invalid_input") or ORDER.index(got) < ORDER.index(row["verdict"]):
            return False, f"FAIL: {what}: {got}, it was {row['verdict']}: {why} ({took})"
        better = f"; better than {row['verdict']}, which verdicts.txt has" if got != row["verdict"] else ""
        return True, f"{got}: {what} ({took}){better}{': ' + why if why else ''}"

    def wrong_reference(self, row, name, seconds):
        """The answer to the row's kernel beside a reference that computes something else."""
        path, _, _, given, launch = self.given(row)
        reference = write_reference(self.options.work, dict(row, settings={"equal": name}), launch)
        return verify(self.options.verifier, path, given, self.options.work, f"wrong-{row['line']}", seconds, reference), name

    def mutant(self, row, which, seconds):
        """The answer to the row's kernel without the `which`-th of its barriers and waits."""
        path, _, body, given, _ = self.given(row)
        lines = waits_in(body)
        if which >= len(lines):
            raise ValueError(f"{row['kernel']} has {len(lines)} barriers and waits")
        start, end = lines[which]
        mutated = os.path.join(self.options.work, f"mutant-{row['line']}-{which}.ptx")
        with open(path, encoding="utf-8") as file:
            text = file.read()
        with open(mutated, "w", encoding="utf-8") as file:
            file.write(text.replace(body, body[:start] + body[end:]))
        way = verify_taken if "taken" in row["settings"] else verify
        return way(self.options.verifier, mutated, given, self.options.work, f"mutant-{row['line']}-{which}", seconds), body[start:end].strip()


# ---- mutants ----


def waits_in(body):
    """Where the barriers and waits of a kernel stand in its text."""
    wait = re.compile(r"^\s*(?:bar\.sync|barrier\.sync|bar\.warp\.sync|cp\.async\.wait_\w+|bar\.red)[^;]*;", re.M)
    return [m.span() for m in wait.finditer(body)]


def found(answer):
    return answer["result"] in ("potential_race", "not_wellsynced", "equivalence_not_proven")


# ---- loops ----

# Instructions that no kernel here has: markers, because the verifier counts what it has executed by kind of instruction.
MARKERS = ["brev.b32 %bkr, 7", "brev.b64 %bkrd, 7", "clz.b32 %bkr, 7", "clz.b64 %bkr, 7", "popc.b32 %bkr, 7", "popc.b64 %bkr, 7", "bfind.u32 %bkr, 7",
           "bfind.s32 %bkr, 7", "bfind.u64 %bkr, 7", "bfind.s64 %bkr, 7", "cnot.b32 %bkr, 7", "cnot.b64 %bkrd, 7", "abs.s64 %bkrd, 7", "sad.u32 %bkr, 7, 7, 7"]


def loops_of(body):
    """Labels that a later branch goes back to."""
    labels = {m.group(1): m.start() for m in re.finditer(r"^(\$?\w+):", body, re.M)}
    backward = {label for label, at in labels.items() if re.search(r"\bbra(?:\.uni)?\s+" + re.escape(label) + r";", body[at:])}
    return sorted(backward, key=labels.get)


def mark(body, label, before, inside):
    """One marker on the way into a loop, another at the head of its every round."""
    at = re.search("^" + re.escape(label) + ":", body, re.M).start()
    entry = label + "_entry"
    ahead = re.sub(r"(\bbra(?:\.uni)?\s+)" + re.escape(label) + ";", r"\g<1>" + entry.replace("\\", "") + ";", body[:at])
    rest = body[at + len(label) + 1 :]
    return f"{ahead}{entry}:\n{before};\n{label}:\n{inside};\n{rest}"


def count_rounds(prover, row):
    """Mean rounds of each loop of the kernel each time that it is entered."""
    path, _, body, given, _ = prover.given(row)
    with open(path, encoding="utf-8") as file:
        text = file.read()
    free = [m for m in MARKERS if m.split()[0] + " " not in body and m.split()[0] + "\t" not in body]
    pairs = [free[i : i + 2] for i in range(0, len(free) - 1, 2)]
    loops, rounds = loops_of(body), []
    for first in range(0, len(loops), len(pairs)):
        marked = body.replace("{", "{\n.reg .b32 %bkr;\n.reg .b64 %bkrd;", 1)
        part = loops[first : first + len(pairs)]
        for label, (before, inside) in zip(part, pairs):
            marked = mark(marked, label, before, inside)
        ptx = os.path.join(prover.options.work, f"marked-{row['line']}.ptx")
        with open(ptx, "w", encoding="utf-8") as file:
            file.write(text.replace(body, marked))
        way = verify_taken if "taken" in row["settings"] else verify
        answer = way(prover.options.verifier, ptx, given, prover.options.work, f"marked-{row['line']}", SECONDS["long"])
        reached = answer.get("frontend", {}).get("reached_opcodes", {})
        for _, (before, inside) in zip(part, pairs):
            entered = reached.get(before.split()[0], 0)
            rounds.append(reached.get(inside.split()[0], 0) / entered if entered else 0.0)
    return rounds


# ---- all of it ----


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", required=True, help="build folder with tests/ops/test_ops and the cuda backend on the host")
    parser.add_argument("--work", required=True, help="folder for what is made on the way")
    parser.add_argument("--nvcc", default="nvcc")
    parser.add_argument("--verifier", default="sentryward")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--long", action="store_true")
    parser.add_argument("--row", help="rows whose kernel contains this text only")
    parser.add_argument("--loops", action="store_true")
    parser.add_argument("--mutants", action="store_true")
    options = parser.parse_args()
    options.build = os.path.abspath(options.build)
    options.work = os.path.abspath(options.work)
    return options


def chosen_rows(options):
    rows = [row for row in read_rows() if row["level"] != "none" and (not options.row or options.row in row["kernel"])]
    return [row for row in rows if options.long or options.row or row["level"] == "quick"]


def run_mutant(prover, rows, mutant):
    key = ("kernel", "instance", "case", "given")
    matching = [row for row in rows if [row[k] for k in key] == [mutant["settings" if k == "given" else k] for k in key]]
    wait = mutant["which"].isdigit()
    what = f"{mutant['kernel']}<{mutant['instance']}> " + (f"without its wait {mutant['which']}" if wait else "beside a wrong reference")
    if not matching:
        return False, f"FAIL: {what}: verdicts.txt has no such row"
    try:
        try_it = prover.mutant if wait else prover.wrong_reference
        answer, removed = try_it(matching[0], int(mutant["which"]) if wait else mutant["which"], SECONDS[mutant["level"]])
    except ValueError as error:
        return False, f"FAIL: {what}: {error}"
    if found(answer):
        return True, f"found: {what} ({removed})"
    return False, f"FAIL: {what} ({removed}) is not found: {answer['result']}"


def without_row(prover):
    """Kernels that verdicts.txt does not name."""
    named = {row["kernel"] for row in read_rows()}
    return sorted({f"{file}/{function}" for file, (_, found) in prover.files.items() for function, _ in found} - named)


def report(rows):
    """How many kernels have which verdict, by the best of their rows."""
    best = {}
    for row in rows:
        best[row["kernel"]] = max(best.get(row["kernel"], "undecided"), row["verdict"], key=ORDER.index)
    counts = ", ".join(f"{sum(v == verdict for v in best.values())} {verdict}" for verdict in reversed(ORDER))
    print(f"verdicts.txt: {len(best)} kernels: {counts}")


def all_kernels():
    return {name[:-3] for name in os.listdir(KERNELS) if name.endswith(".cu")}


def prove(prover, options):
    every = read_rows()
    report(every)
    rows = chosen_rows(options)
    mutants = [m for m in read_table("mutants.txt", ["kernel", "instance", "case", "settings", "which", "level"])
               if (options.long or options.row or m["level"] == "quick") and (not options.row or options.row in m["kernel"])]
    whole = options.long and not options.row
    prover.compile(all_kernels() if whole else {row["file"] for row in rows} | {m["kernel"].split("/")[0] for m in mutants})
    passed = failed = 0
    for kernel in without_row(prover) if whole else []:
        print(f"FAIL: {kernel} has no row in verdicts.txt")
        failed += 1
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        results = [pool.submit(prover.row, row) for row in rows] + [pool.submit(run_mutant, prover, every, m) for m in mutants]
        for result in results:
            good, line = result.result()
            passed, failed = passed + good, failed + (not good)
            print(line, flush=True)
    print(f"{passed} passed, {failed} failed, 0 skipped")
    return 0 if passed and not failed else 1


def explore(prover, options):
    """For whoever adds a row: loops and mutants of rows."""
    rows = chosen_rows(options)
    prover.compile({row["file"] for row in rows})
    for row in rows:
        print(f"{row['kernel']}<{row['instance']}>, {row['case']}:")
        if options.loops:
            print("  rounds of its loops each time: " + (", ".join(f"{n:.1f}" for n in count_rounds(prover, row)) or "it has none"), flush=True)
        for which in range(len(waits_in(prover.entry(row)[2])) if options.mutants else 0):
            answer, removed = prover.mutant(row, which, SECONDS["quick"])
            print(f"  without {which} ({removed}): {answer['result']}", flush=True)
    return 0


def main():
    options = arguments()
    prover = Prover(options)
    return explore(prover, options) if options.loops or options.mutants else prove(prover, options)


if __name__ == "__main__":
    sys.exit(main())
