"""Is the peer the same model? Loss, every gradient and the losses of ten training steps, plain and mhc, held to
tests/fixtures/reference_model.py in double precision; with a path to the birkhoff program as the argument, loss and
gradients in single precision also to that program, on checkpoints that it wrote itself.

    check.py [BIRKHOFF]       exit status 0 if all agree
"""

import json
import os
import struct
import subprocess
import sys
import tempfile

import torch

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(1, os.path.join(HERE, "..", "fixtures"))
import reference_model as ref
from peer import BETAS, CLIP, DECAY, Stepper, make_optimizer, read_config
from torch_model import Model, from_checkpoint, rope_table

SMALL = dict(hidden_size=48, intermediate_size=40, moe_intermediate_size=24, num_hidden_layers=3, num_attention_heads=2,
             num_key_value_heads=2, n_routed_experts=8, kv_lora_rank=16, qk_nope_head_dim=12, qk_rope_head_dim=8, v_head_dim=10)
DTYPES = {"F64": torch.float64, "F32": torch.float32, "I64": torch.int64, "I32": torch.int32}


def small_config(kind):
    return read_config(os.path.join(HERE, "bench-512.json")) | SMALL | {"residual": kind}


def draw(cfg, seed):
    """Livelier than a fresh model, so that no gradient is near zero."""
    torch.manual_seed(seed)
    p = {name: 0.3 * torch.randn(shape, dtype=torch.float64) for name, shape in ref.param_shapes(cfg).items()}
    for name in p:
        if name.endswith("norm.weight"):
            p[name] += 1.0
    return p


def load(cfg, p, dtype):
    model = Model(cfg).to(dtype)
    model.load_state_dict({name: t.to(dtype) for name, t in from_checkpoint(p).items()})
    model.cos, model.sin = rope_table(cfg, dtype)  # not the one that was rounded to single first
    return model


def distance(ours, theirs):
    """|difference| / |reference| of a tensor, largest of a dict."""
    if isinstance(ours, dict):
        return max(distance(ours[name], theirs[name]) for name in theirs)
    return ((ours - theirs).norm() / theirs.norm().clamp(min=1e-30)).item()


def peer_gradients(model, ids, targets, compiled=False):
    loss = Stepper(model, None, compiled).loss(ids, targets)
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in model.named_parameters()}


def without_zero(grads):
    """Gradients that are zero in theory hold only rounding; an expert without tokens is zero on both sides."""
    largest = max(g.norm().item() for g in grads.values())
    return {name: g for name, g in grads.items() if g.norm().item() > 1e-9 * largest}


def tokens(cfg, seed, count=1):
    torch.manual_seed(seed)
    return [torch.randint(cfg["vocab_size"], (2, 13)) for _ in range(count)]


def check_gradients(cfg):
    """Compiled too: some pieces are written otherwise there."""
    p, (ids,) = draw(cfg, 1), tokens(cfg, 2)
    targets = ref.default_targets(ids)
    _, loss, grads = ref.gradients(cfg, p, ids, targets)
    theirs = without_zero({n: g for n, g in from_checkpoint(grads).items() if not n.endswith("bias")})
    results = {}
    for side in ("eager", "compile"):
        our_loss, ours = peer_gradients(load(cfg, p, torch.float64), ids, targets, side == "compile")
        results |= {f"{side} loss": (distance(our_loss, loss), 1e-12), f"{side} gradients": (distance(ours, theirs), 1e-9)}
    return results


def check_training(cfg):
    """Ten steps from the same weights; the balance rate is large so that the biases matter. PyTorch clips by the norm + 1e-6,
    the reference by the norm: that is all of the difference (with the 1e-6 in both it is 1e-13)."""
    recipe = dict(lr=1e-2, weight_decay=DECAY, adam_beta1=BETAS[0], adam_beta2=BETAS[1], adam_eps=1e-8, grad_clip=CLIP, router_bias_lr=0.02)
    p, batches = draw(cfg, 3), tokens(cfg, 4, 10)
    model = load(cfg, p, torch.float64)
    stepper = Stepper(model, make_optimizer(model, recipe["lr"], recipe["adam_eps"]), bias_rate=recipe["router_bias_lr"])
    ours = [stepper.step(ids, ref.default_targets(ids)) for ids in batches]
    trace = ref.train(cfg, p, recipe, batches)
    losses = [loss.item() for loss, _, _ in ours], trace.losses
    norms = [norm.item() for _, norm, _ in ours], trace.grad_norms
    results = {"losses of ten steps": losses, "gradient norms of ten steps": norms}
    return {what: (distance(*(torch.tensor(v, dtype=torch.float64) for v in pair)), 1e-7) for what, pair in results.items()}


# -------------------------------------------------------------------------------------------- safetensors


def read_safetensors(path):
    with open(path, "rb") as file:
        (size,) = struct.unpack("<Q", file.read(8))
        header, data = json.loads(file.read(size)), bytearray(file.read())
    header.pop("__metadata__", None)
    out = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        out[name] = torch.frombuffer(data[begin:end], dtype=DTYPES[entry["dtype"]]).reshape(entry["shape"])
    return out


def write_ids(path, ids):
    data = ids.to(torch.int32).numpy().tobytes()
    header = json.dumps({"input_ids": {"dtype": "I32", "shape": list(ids.shape), "data_offsets": [0, len(data)]}}).encode()
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(header)) + header + data)


def check_birkhoff(program, cfg, folder):
    """On a fresh model of Birkhoff's own: its initial values, its forward and backward pass."""
    at = {name: os.path.join(folder, f"{cfg['residual']}-{name}") for name in ("config.json", "ckpt", "ids", "out")}
    (ids,) = tokens(cfg, 5)
    with open(at["config.json"], "w") as file:
        json.dump(cfg, file)
    write_ids(at["ids"], ids)
    quiet = dict(check=True, stdout=subprocess.DEVNULL)
    subprocess.run([program, "init", "--model", at["config.json"], "--out", at["ckpt"]], **quiet)
    subprocess.run([program, "forward", at["ckpt"], "--tokens", at["ids"], "--out", at["out"], "--backward"], **quiet)
    out = read_safetensors(at["out"])
    grads = {name.removeprefix("grad."): g for name, g in out.items() if name.startswith("grad.")}
    p = read_safetensors(os.path.join(at["ckpt"], "model.safetensors"))
    loss, ours = peer_gradients(load(cfg, p, torch.float32), ids, ref.default_targets(ids))
    theirs = from_checkpoint(grads)
    whole = [torch.cat([each[n].flatten() for n in theirs]) for each in (ours, theirs)]
    return {"loss": (distance(loss, out["loss"][0]), 1e-6), "gradients": (distance(*whole), 1e-5)}


# --------------------------------------------------------------------------------------------------- main


def report(against, kind, results):
    good = True
    for what, (error, bound) in results.items():
        good &= error <= bound
        print(f"{'ok  ' if error <= bound else 'FAIL'} {kind:5} against {against}: {what}, relative error {error:.1e} (at most {bound:.0e})")
    return good


def main():
    good, program = True, sys.argv[1] if len(sys.argv) > 1 else None
    with tempfile.TemporaryDirectory() as folder:
        for kind in ("plain", "mhc"):
            cfg = small_config(kind)
            good &= report("reference", kind, check_gradients(cfg) | check_training(cfg))
            if program:
                good &= report("birkhoff", kind, check_birkhoff(program, cfg, folder))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
