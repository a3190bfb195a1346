#!/usr/bin/env python3
"""Proves, without a GPU, that kernels of the cuda backend have no races: in their PTX, at recorded launches.

usage: prove.py --build DIR --work DIR [--nvcc NVCC] [--verifier PROGRAM] [--long] [--row TEXT] [--loops] [--mutants]

For each row of verdicts.txt
  - the harness runs the row's case with the cuda backend on the host (tests/cuda-on-host), which records its launches;
  - nvcc makes the PTX of the kernel's file;
  - what the launch says of memory is checked here, because the verifier takes distinct pointers for distinct, boundless memory: the
    kernel leaves the same bytes when each of its pointers has memory of its own, operands do not overlap, every pointer lies in an operand of the case or in the workspace, and
    what is written through it stays inside of that operand, or short of the next piece of the workspace;
  - the verifier (sentryward, from PyPI) gets the PTX with the launch's sizes and arguments;
  - its answer must be the row's verdict. One that is worse fails; one that is better is said.
Then the mutants (mutants.txt): the PTX of a row without one of its barriers or waits, which the verifier must find, and a formula that is not the kernel's, which it must not
prove equal.

Without --long only the rows and mutants marked `quick` are proved. --loops says how often each loop of a row's kernel runs each time it is entered
(a race between two rounds of a loop shows only where there are some); --mutants tries every barrier and wait of a row, to choose from.
The last line is "N passed, N failed, N skipped".
"""
import argparse
import concurrent.futures
import itertools
import json
import os
import re
import struct
import subprocess
import sys
import tempfile
import threading
import time

HERE = os.path.dirname(os.path.abspath(__file__))
SOURCE = os.path.abspath(os.path.join(HERE, "..", "..", ".."))
KERNELS = os.path.join(SOURCE, "backends", "cuda", "kernels")
ORDER = ["undecided", "path", "block", "proved", "equal"]  # from worst to best
SECONDS = {"quick": 60, "long": 600}  # limits of one proof; quick ones take up to 10 s on an idle machine
MEBIBYTES = {"quick": 4000, "long": 9000}

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
    told = subprocess.run(command, cwd=SOURCE, capture_output=True, text=True, timeout=600, check=False)
    if told.returncode:
        raise ValueError(f"nvcc says: {(told.stderr or told.stdout).strip().splitlines()[:1]}")


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
    if pointer["written"]:
        raise ValueError(f"the launch writes the table at {place}")
    base, size = pointer["allocation"]
    ends = [base + size, *(p["address"] for p in launch["pointers"] if p["allocation"][0] == base and p["address"] > pointer["address"])]
    ends += [o[2] + o[3] for o in operand_at(launch["case"], pointer["address"])]
    raw, length = bytes.fromhex(pointer["bytes"]), min(ends) - pointer["address"]
    if len(raw) < length:
        raise ValueError(f"the table at {place} has {length} bytes, of which {len(raw)} are recorded")
    raw = raw[:length]
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
        elif (parameter, at) in addresses and any(raw):
            raise ValueError(f"the address at {parameter}:{at} is of no memory that the device has")
        elif (parameter, at) in addresses:
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
        "assumptions": {"duplicate_tma_store_benign": False, "representative_election": False, "clc_always_fails": False},
    }
    if "tables" in settings:
        made["shape_arrays"] = [table_of(launch, place) for place in settings["tables"].split(",")]
    if "branches" in settings:  # the path on which every test of data falls through, and loops that depend on data run so often
        made["assumptions"].update(representative_branches=True, bounded_computation_loops=True)
        made["data_branch_loop_iterations"] = int(settings["branches"])
    return made


# ---- launches ----

RECORDED = {"sms": "BK_CUDA_SMS", "blaslt": "BK_CUDA_BLASLT", "capability": "BK_CUDA_CAPABILITY"}


def record(build, work, row):
    """The launches of the row's case on the host, of any kernel."""
    handle, path = tempfile.mkstemp(dir=work, prefix="launches-")
    os.close(handle)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("BK_CUDA_") and name != "BK_TEST_QUICK"}
    environment.update(BK_CUDA_RECORD=path, BIRKHOFF_BACKEND_DIR=os.path.join(build, "tests/cuda-on-host/.libs"))
    environment.update({name: row["settings"][key] for key, name in RECORDED.items() if key in row["settings"]})
    command = [os.path.join(build, "tests/ops/test_ops"), "--device", "cuda", "--case", row["case"]]
    told = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    with open(path, encoding="utf-8") as file:
        lines = [json.loads(line) for line in file]
    os.remove(path)
    if told.returncode:
        raise ValueError(f"the harness says: {told.stdout.splitlines()[-1:]} {told.stderr.splitlines()[-1:]}")
    launches, case = [], None
    for line in lines:
        if "case" in line:
            case = line
        elif case and case["case"] == row["case"]:
            launches.append(dict(line, case=case))
    return launches


def launch_of(launches, row):
    names = demangled(entry["launch"] for entry in launches)
    fitting = [entry for entry in launches if short_name(names[entry["launch"]]) == (row["function"], row["instance"])]
    nth = int(row["settings"].get("nth", 0))
    if nth >= len(fitting):
        raise ValueError(f"the case launches it {len(fitting)} times")
    return fitting[nth]


def operand_at(case, address):
    return [o for o in case["operands"] if o[2] <= address < o[2] + max(o[3], 1)]


def wrong_about_operands(case, size):
    """Operands lie in the buffer, and apart, but for those that the harness gives the same memory."""
    ranges = sorted((o[2], o[2] + o[3], o[0]) for o in case["operands"])
    for at, end, name in ranges:
        if at < case["buffer"] or end > case["buffer"] + size:
            return f"{name} does not lie in the buffer"
    for (at, end, name), (next_at, _, next_name) in zip(ranges, ranges[1:]):
        if at != next_at and next_at < end:
            return f"{name} and {next_name} overlap"
    return None


def may_be_written(launch, pointer):
    """Ranges that a write through the pointer may reach: outputs at it, or its piece of the workspace."""
    base, size = pointer["allocation"]
    if base == launch["case"]["buffer"]:
        return [(o[2], o[2] + o[3]) for o in operand_at(launch["case"], pointer["address"]) if o[1] != "in"]
    later = [p["address"] for p in launch["pointers"] if p["allocation"][0] == base and p["address"] > pointer["address"]]
    return [(pointer["address"], min(later + [base + size]))]


def wrong_about_pointer(launch, pointer):
    case, base = launch["case"], pointer["allocation"][0]
    operands = operand_at(case, pointer["address"])
    if base == case["buffer"] and not operands:
        return f"a pointer lies {pointer['address'] - base} bytes into the buffer, where no operand is"
    if not pointer["written"]:
        return None
    first, end = [base + n for n in pointer["written"]]
    if any(at <= first and end <= to for at, to in may_be_written(launch, pointer)):
        return None
    where = ", ".join(o[0] for o in operands) if base == case["buffer"] else "the workspace"
    return f"bytes {first - pointer['address']} to {end - pointer['address']} are written through a pointer into {where}"


def wrong_about_memory(launch):
    """Why the verifier's view of memory would be wrong, or None."""
    buffer = launch["case"]["buffer"]
    sizes = dict(p["allocation"] for p in launch["pointers"])
    if not launch["apart"]:
        return "with memory of its own for each pointer the kernel does something else"
    if len(set(sizes) - {buffer}) > 1:
        return "it has more memory than the operands and one workspace"
    wrong = [wrong_about_pointer(launch, p) for p in launch["pointers"]] + ([wrong_about_operands(launch["case"], sizes[buffer])] if buffer in sizes else [])
    return next((what for what in wrong if what), None)


def faked_launch(**changes):
    """Operands x and y in one buffer, two pieces of a workspace; KIND_INDEX_FIELD=VALUE spoils it."""
    operands = [["x", "in", 1000, 100, "fp32", [25], [1]], ["y", "out", 1200, 100, "fp32", [25], [1]]]
    buffer, workspace = [900, 1000], [5000, 64]
    pointers = [{"at": [[i, 0]], "address": address, "allocation": memory, "written": written}
                for i, (address, memory, written) in enumerate([(1000, buffer, None), (1200, buffer, [300, 400]), (5000, workspace, [0, 32]), (5032, workspace, [32, 64])])]
    for place, value in changes.items():
        kind, index, field = place.split("_")
        {"operand": operands, "pointer": pointers}[kind][int(index)][int(field) if field.isdigit() else field] = value
    return {"case": {"case": "faked", "buffer": 900, "operands": operands}, "pointers": pointers, "apart": True}


def missed_about_memory():
    """A test of wrong_about_memory itself: launches that are wrong and pass."""
    faked = {
        "shared memory": dict(faked_launch(), apart=False),
        "behind the operand": faked_launch(pointer_1_written=[300, 401]),
        "into an input": faked_launch(pointer_0_written=[100, 104]),
        "between operands": faked_launch(pointer_0_address=1150),
        "into the next piece": faked_launch(pointer_2_written=[0, 33]),
        "behind the workspace": faked_launch(pointer_3_written=[32, 65]),
        "overlapping operands": faked_launch(operand_0_3=201),
        "behind the buffer": faked_launch(operand_1_3=701),
        "a third allocation": faked_launch(pointer_3_allocation=[4900, 200]),
    }
    missed = [what for what, fake in faked.items() if not wrong_about_memory(fake)]
    return missed + ([] if wrong_about_memory(faked_launch()) is None else ["nothing wrong, and it is refused"])


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
    folder = os.path.join(work, f"reference-{row['line']}-{row['settings']['equal']}")
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, "reference.py"), "w", encoding="utf-8") as file:
        file.write("import torch\n\n" + body.group(0).replace(f"def {row['settings']['equal']}(", "def reference(", 1))
    with open(os.path.join(folder, "reference_binding.json"), "w", encoding="utf-8") as file:
        json.dump(make_binding(launch, [name.strip() for name in body.group(1).split(",")]), file)
    return ["--reference", os.path.join(folder, "reference.py")]


# ---- proofs ----


class Verifier:
    """Calls of the verifier for one row, within the limits of a level."""

    def __init__(self, options, level, name, reference=()):
        self.program, self.work, self.name, self.reference = options.verifier, options.work, name, list(reference)
        self.mebibytes, self.end = MEBIBYTES[level], time.monotonic() + SECONDS[level]

    def once(self, ptx, given):
        left = max(1, int(self.end - time.monotonic()))
        path = os.path.join(self.work, f"{self.name}.json")
        with open(path, "w", encoding="utf-8") as file:
            json.dump(given, file)
        command = [self.program, ptx, "--input", path, "--timeout", str(left), "--memory-limit-mib", str(self.mebibytes), *self.reference]
        told = subprocess.run(command, capture_output=True, text=True, timeout=left + 60, check=False)
        try:
            return json.loads(told.stdout)
        except ValueError:
            return {"result": "tool_failure", "diagnostics": [{"code": " ".join(told.stderr.strip().splitlines()[-1:])}]}

    def taken(self, ptx, given):
        """The path on which every branch that depends on data is taken: the verifier names the next such branch until it is through."""
        given, lines = dict(given), []
        while True:
            given["branch_decisions"] = [{"line": line, "taken": True} for line in lines]
            answer = self.once(ptx, given)
            first = (answer.get("diagnostics") or [{}])[0]
            line = (first.get("details") or {}).get("location", {}).get("line")
            if first.get("code") != "control_predicate_not_static" or line in lines or len(lines) == 20:
                return answer
            lines.append(line)

    def answer(self, ptx, given, settings):
        return self.taken(ptx, given) if "taken" in settings else self.once(ptx, given)


def without_torch(answer):
    return answer["result"] == "missing_input" and any("reference_dependency" in str(d.get("code")) for d in answer.get("diagnostics") or [])


def is_race_free(answer):
    checks = answer.get("checks") or {}
    return answer["result"] in ("race_free", "equivalence_not_proven", "verified") and checks.get("synchronization") == checks.get("memory") == "passed"


def verdict_of(answer, settings):
    """What of ORDER the answer means, and why it is not better."""
    if not is_race_free(answer):
        first = (answer.get("diagnostics") or [{}])[0]
        return "undecided", f"{answer['result']}: {first.get('code', '')} {first.get('message') or ''}".strip()
    if answer["result"] == "verified":
        return "equal", ""
    return ("path" if {"branches", "taken", "tables"} & set(settings) else "block" if "grid" in settings else "proved"), ""


def is_worse(answer, got, verdict):
    """Of what it could not decide before, the verifier must still say that it cannot; to find a race or to break is worse."""
    return ORDER.index(got) < ORDER.index(verdict) or (got == "undecided" and answer["result"] != "unsupported")


def title(row):
    return f"{row['kernel']}<{row['instance']}>, {row['case']}"


class Prover:
    def __init__(self, options):
        self.options = options
        self.files = {}
        self.lock, self.recorded = threading.Lock(), {}
        self.recorders = concurrent.futures.ThreadPoolExecutor(options.jobs)

    def compile(self, names):
        """The PTX of these files of kernels; where there is none, why."""
        os.makedirs(self.options.work, exist_ok=True)

        def one(name):
            path = os.path.join(self.options.work, f"{name}.ptx")
            try:
                make_ptx(self.options.nvcc, os.path.join(KERNELS, f"{name}.cu"), path)
                return name, (path, entries(path))
            except (ValueError, OSError, subprocess.SubprocessError) as error:
                return name, ValueError(str(error))

        with concurrent.futures.ThreadPoolExecutor(self.options.jobs) as pool:
            self.files = dict(pool.map(one, sorted(names)))

    def entry(self, row):
        made = self.files[row["file"]]
        if isinstance(made, ValueError):
            raise made
        if (row["function"], row["instance"]) not in made[1]:
            raise ValueError(f"{row['file']}.cu has no {row['function']}<{row['instance']}>")
        return (made[0], *made[1][row["function"], row["instance"]])

    def launches(self, row):
        """A case is recorded once for all that want it."""
        key = (row["case"], *[row["settings"].get(name) for name in RECORDED])
        with self.lock:
            if key not in self.recorded:
                self.recorded[key] = self.recorders.submit(record, self.options.build, self.options.work, row)
        return self.recorded[key].result()

    def given(self, row):
        """Everything that a proof takes: the PTX file, the kernel's text, the verifier's input, the launch."""
        path, name, body = self.entry(row)
        launch = launch_of(self.launches(row), row)
        wrong = wrong_about_memory(launch)
        if wrong:
            raise ValueError(wrong)
        return path, body, make_input(name, body, launch, row["settings"]), launch

    def answer(self, row, path, given, reference=()):
        return Verifier(self.options, row["level"], f"row-{row['line']}", reference).answer(path, given, row["settings"])

    def row(self, row):
        """(good, line to print, comparisons left out)"""
        begin = time.monotonic()
        path, _, given, launch = self.given(row)
        answer = self.answer(row, path, given, write_reference(self.options.work, row, launch) if "equal" in row["settings"] else [])
        left_out = without_torch(answer)
        wanted = "proved" if left_out else row["verdict"]
        if left_out:
            answer = self.answer(row, path, given)
        got, why = verdict_of(answer, row["settings"])
        took = f"{time.monotonic() - begin:.1f} s"
        if is_worse(answer, got, wanted):
            return False, f"FAIL: {title(row)}: {got}, it was {wanted}: {why} ({took})", 0
        notes = f"; better than {wanted}, which verdicts.txt has" if got != wanted else ""
        notes += "; for want of PyTorch not compared with its formula" if left_out else ""
        return True, f"{got}: {title(row)} ({took}){notes}{': ' + why if why else ''}", int(left_out)

    def wrong_reference(self, row, name, level):
        """The answer to the row's kernel beside a formula that is not its own."""
        path, _, given, launch = self.given(row)
        reference = write_reference(self.options.work, dict(row, settings={"equal": name}), launch)
        return Verifier(self.options, level, f"wrong-{row['line']}", reference).once(path, given), name

    def mutant(self, row, which, level):
        """The answer to the row's kernel without the `which`-th of its barriers and waits."""
        path, body, given, _ = self.given(row)
        lines = waits_in(body)
        if which >= len(lines):
            raise ValueError(f"it has {len(lines)} barriers and waits")
        start, end = lines[which]
        mutated = os.path.join(self.options.work, f"mutant-{row['line']}-{which}.ptx")
        with open(path, encoding="utf-8") as file:
            text = file.read()
        with open(mutated, "w", encoding="utf-8") as file:
            file.write(text.replace(body, body[:start] + body[end:]))
        return Verifier(self.options, level, f"mutant-{row['line']}-{which}").answer(mutated, given, row["settings"]), body[start:end].strip()


# ---- mutants ----


def waits_in(body):
    """Where the barriers and waits of a kernel stand in its text."""
    wait = re.compile(r"^\s*(?:bar\.sync|barrier\.sync|bar\.warp\.sync|cp\.async\.wait_\w+|bar\.red)[^;]*;", re.M)
    return [m.span() for m in wait.finditer(body)]


def found(answer):
    return answer["result"] in ("potential_race", "not_wellsynced")


# ---- loops ----

# Instructions that few kernels have: those that a kernel has not serve as markers in it, because the verifier counts what it has executed by kind of instruction.
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
    path, body, given, _ = prover.given(row)
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
        answer = Verifier(prover.options, "long", f"marked-{row['line']}").answer(ptx, given, row["settings"])
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
    parser.add_argument("--jobs", type=int, help="side by side; by default one for each processor that has the memory")
    parser.add_argument("--long", action="store_true")
    parser.add_argument("--row", help="rows whose kernel contains this text only")
    parser.add_argument("--loops", action="store_true")
    parser.add_argument("--mutants", action="store_true")
    options = parser.parse_args()
    options.build = os.path.abspath(options.build)
    options.work = os.path.abspath(options.work)
    options.jobs = options.jobs or jobs_here("long" if options.long else "quick")
    return options


def jobs_here(level):
    with open("/proc/meminfo", encoding="utf-8") as file:
        free = int(re.search(r"MemAvailable:\s+(\d+)", file.read()).group(1)) // 1024
    return max(1, min(len(os.sched_getaffinity(0)), free // MEBIBYTES[level]))


def chosen_rows(options):
    rows = [row for row in read_rows() if row["level"] != "none" and (not options.row or options.row in row["kernel"])]
    return [row for row in rows if options.long or options.row or row["level"] == "quick"]


def unlike_the_sources(prover):
    """Kernels that verdicts.txt does not name, and those that it names and are not there."""
    named = {row["kernel"] for row in read_rows()}
    there = {f"{file}/{function}" for file, made in prover.files.items() if not isinstance(made, ValueError) for function, _ in made[1]}
    return [f"{kernel} has no row in verdicts.txt" for kernel in sorted(there - named)] + [f"{kernel} of verdicts.txt is not there" for kernel in sorted(named - there)]


def report(rows):
    """How many kernels have which verdict, by the best of their rows."""
    best = {}
    for row in rows:
        best[row["kernel"]] = max(best.get(row["kernel"], "undecided"), row["verdict"], key=ORDER.index)
    counts = ", ".join(f"{sum(v == verdict for v in best.values())} {verdict}" for verdict in reversed(ORDER))
    print(f"verdicts.txt: {len(best)} kernels: {counts}")


def all_kernels():
    return {name[:-3] for name in os.listdir(KERNELS) if name.endswith(".cu")}


def chosen_mutants(options):
    mutants = read_table("mutants.txt", ["kernel", "instance", "case", "settings", "which", "level"])
    mutants = [m for m in mutants if not options.row or options.row in m["kernel"]]
    return [m for m in mutants if options.long or options.row or m["level"] == "quick"]


def run_mutant(prover, rows, mutant):
    """(good, or None for one that is left out, line to print, comparisons left out)"""
    wait = mutant["which"].isdigit()
    what = title(mutant) + (f", without its wait {mutant['which']}" if wait else ", beside a wrong formula")
    key = ("kernel", "instance", "case", "given")
    matching = [row for row in rows if [row[k] for k in key] == [mutant["settings" if k == "given" else k] for k in key]]
    if not matching:
        raise ValueError("verdicts.txt has no such row")
    try_it = prover.mutant if wait else prover.wrong_reference
    answer, changed = try_it(matching[0], int(mutant["which"]) if wait else mutant["which"], mutant["level"])
    if without_torch(answer):
        return None, f"SKIP: {what}: there is no PyTorch", 1
    if found(answer) if wait else answer["result"] == "equivalence_not_proven":
        return True, f"{'found' if wait else 'not proved equal'}: {what} ({changed})", 0
    return False, f"FAIL: {what} ({changed}): {answer['result']}", 0


def safely(what, function, *given):
    """A job that breaks says so in a line of its own, and keeps none from running."""
    try:
        return function(*given)
    except Exception as error:  # pylint: disable=broad-except
        kind = "" if isinstance(error, ValueError) else type(error).__name__ + ": "
        return False, f"FAIL: {what}: {kind}{error}", 0


def run_all(prover, rows, mutants):
    """What each row and mutant says, in the order of the tables."""
    every = read_rows()
    with concurrent.futures.ThreadPoolExecutor(prover.options.jobs) as pool:
        jobs = [pool.submit(safely, title(row), prover.row, row) for row in rows]
        jobs += [pool.submit(safely, f"mutant of {title(m)}", run_mutant, prover, every, m) for m in mutants]
        for job in jobs:
            yield job.result()


def prove(prover, options):
    report(read_rows())
    rows, mutants = chosen_rows(options), chosen_mutants(options)
    whole = options.long and not options.row
    prover.compile(all_kernels() if whole else {row["kernel"].split("/")[0] for row in rows + mutants})
    missed = missed_about_memory()
    before = [(not missed, "FAIL: wrong about memory, and passes: " + ", ".join(missed) if missed else "launches that are wrong about memory are refused", 0)]
    before += [(False, f"FAIL: {what}", 0) for what in (unlike_the_sources(prover) if whole else [])]
    passed = failed = skipped = 0
    for good, line, left_out in itertools.chain(before, run_all(prover, rows, mutants)):
        passed, failed, skipped = passed + (good is True), failed + (good is False), skipped + left_out
        print(line, flush=True)
    print(f"{passed} passed, {failed} failed, {skipped} skipped")
    return 1 if failed else 0


def explore(prover, options):
    """For whoever adds a row: loops and mutants of rows."""
    rows = chosen_rows(options)
    prover.compile({row["file"] for row in rows})
    for row in rows:
        print(f"{title(row)}:")
        if options.loops:
            print("  rounds of its loops each time: " + (", ".join(f"{n:.1f}" for n in count_rounds(prover, row)) or "it has none"), flush=True)
        for which in range(len(waits_in(prover.entry(row)[2])) if options.mutants else 0):
            answer, removed = prover.mutant(row, which, "long")
            print(f"  without {which} ({removed}): {answer['result']}", flush=True)
    return 0


def main():
    options = arguments()
    prover = Prover(options)
    return explore(prover, options) if options.loops or options.mutants else prove(prover, options)


if __name__ == "__main__":
    sys.exit(main())
