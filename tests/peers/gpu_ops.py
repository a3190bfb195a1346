"""The ops of `birkhoff bench ops` that make an mHC sublayer, and AdamW and cross entropy, as one writes them in PyTorch, and
the same in plain double precision to hold them to.

Names and shapes are those of core/runtime/op.h: x [N,n,C] streams, pre and post [N,n], comb [N,n,n] with comb[m][k] the weight
from source m to destination k, fn [R,nC] with R = n(n+2), proj [N,R], rinv [N], scale [3], base [R], w [C]. Streams are bf16
(or fp32), all else fp32.

An op is a table entry: what it takes, of which operands it wants gradients, and forms: functions that compute the same in
different words, because no one form is the fastest everywhere; gpu_compare.py times each and keeps the fastest.
"""

import math
from dataclasses import dataclass, field
from typing import Callable

import torch
import torch.nn.functional as F

ITERS = 20
EPS = 1e-6
VOCABULARY = 129280
LOSS_ROWS = 4096  # rows of logits at once: a chunk
ADAM = dict(lr=1e-6, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)


@dataclass
class Sizes:
    N: int
    C: int
    st: torch.dtype
    device: str
    n: int = 4
    vocabulary: int = VOCABULARY

    @property
    def R(self):
        return self.n * (self.n + 2)

    @property
    def rows(self):
        return min(self.N, LOSS_ROWS)


# ---- operands ----


def operands(z, seed=1):
    """All operands and incoming gradients, by name. Small numbers: Sinkhorn's logits stay within a few units."""
    g = torch.Generator(device=z.device).manual_seed(seed)

    def normal(*shape, dtype=torch.float32, by=0.3):
        return torch.empty(shape, dtype=dtype, device=z.device).normal_(0, by, generator=g)

    t = dict(x=normal(z.N, z.n, z.C, dtype=z.st, by=1), f=normal(z.N, z.C, dtype=z.st, by=1), dy=normal(z.N, z.C, dtype=z.st, by=1),
             dout=normal(z.N, z.n, z.C, dtype=z.st, by=1), fn=normal(z.R, z.n * z.C, by=1 / math.sqrt(z.n * z.C)), w=1 + normal(z.C, by=0.1),
             scale=1 + normal(3, by=0.1), base=normal(z.R), proj=normal(z.N, z.R, by=1), rinv=1 + normal(z.N, by=0.1).abs(),
             dproj=normal(z.N, z.R), drinv=normal(z.N), dpre=normal(z.N, z.n), dpost=normal(z.N, z.n), dcomb=normal(z.N, z.n, z.n))
    t["pre"], t["post"] = torch.sigmoid(normal(z.N, z.n, by=1)), 2 * torch.sigmoid(normal(z.N, z.n, by=1))
    t["comb"] = torch.softmax(normal(z.N, z.n, z.n, by=1), 2)
    return t


# ---- forms ----


def rms_norm(y, w):
    return F.rms_norm(y.float(), (y.shape[-1],), w, EPS).to(y.dtype)


def pre_bmm(x, pre):
    return torch.bmm(pre.unsqueeze(1), x.float()).squeeze(1).to(x.dtype)


def pre_sum(x, pre):
    return (x.float() * pre.unsqueeze(2)).sum(1).to(x.dtype)


def pre_norm_of(form):
    return lambda x, pre, w: rms_norm(form(x, pre), w)


def post_res_bmm(x, f, post, comb):
    fed = post.unsqueeze(2) * f.float().unsqueeze(1)
    return torch.baddbmm(fed, comb.transpose(1, 2), x.float()).to(x.dtype)


def post_res_sums(x, f, post, comb):
    """Plain sums, which a compiler makes one pass over x of."""
    n, streams, f = x.shape[1], x.float().unbind(1), f.float()
    out = [post[:, k, None] * f + sum(comb[:, m, k, None] * streams[m] for m in range(n)) for k in range(n)]
    return torch.stack(out, 1).to(x.dtype)


def project(x, fn):
    v = x.flatten(1).float()
    return v @ fn.t(), torch.rsqrt(v.square().mean(1) + EPS)


def project_norm(x, fn):
    v = x.flatten(1).float()
    return v @ fn.t(), torch.rsqrt(torch.linalg.vector_norm(v, dim=1).square() / v.shape[1] + EPS)


def logits_of(proj, rinv, scale, base, n):
    by = torch.cat([scale[0].expand(n), scale[1].expand(n), scale[2].expand(n * n)])
    return proj * rinv.unsqueeze(1) * by + base


def sinkhorn_matrix(logits):
    comb = torch.softmax(logits, 2)
    comb = comb / comb.sum(1, keepdim=True)
    for _ in range(ITERS - 1):
        comb = comb / comb.sum(2, keepdim=True)
        comb = comb / comb.sum(1, keepdim=True)
    return comb


def sinkhorn_vectors(logits):
    """diag(u) K diag(v): u and v alone are iterated, tokens innermost."""
    k = (logits - logits.amax((1, 2), keepdim=True)).permute(1, 2, 0).contiguous().exp()
    v = torch.ones_like(k[:1])
    for _ in range(ITERS):
        u = (k * v).sum(1, keepdim=True).reciprocal()
        v = (k * u).sum(0, keepdim=True).reciprocal()
    return (k * u * v).permute(2, 0, 1).contiguous()


def sinkhorn_scalars(logits):
    """The same, every entry a vector over the tokens of its own: nothing but pointwise steps, for a compiler to fuse."""
    n = logits.shape[1]
    k = (logits - logits.amax((1, 2), keepdim=True)).exp()
    k = [[k[:, m, d] for d in range(n)] for m in range(n)]
    v = [torch.ones_like(k[0][0])] * n
    for _ in range(ITERS):
        u = [1 / sum(k[m][d] * v[d] for d in range(n)) for m in range(n)]
        v = [1 / sum(k[m][d] * u[m] for m in range(n)) for d in range(n)]
    return torch.stack([torch.stack([k[m][d] * u[m] * v[d] for d in range(n)], 1) for m in range(n)], 1)


def maps_of(sinkhorn):
    def maps(proj, rinv, scale, base):
        n = math.isqrt(proj.shape[1] + 1) - 1
        logits = logits_of(proj, rinv, scale, base, n)
        return torch.sigmoid(logits[:, :n]), 2 * torch.sigmoid(logits[:, n:2 * n]), sinkhorn(logits[:, 2 * n:].unflatten(1, (n, n)))

    return maps


def coefficients_of(project_form, maps_form):
    return lambda x, fn, scale, base: maps_form(*project_form(x, fn), scale, base)


def mix_of(project_form, maps_form, pre_form):
    """All that comes before F: projection, maps, pre and norm."""

    def mix(x, fn, scale, base, w):
        pre, post, comb = maps_form(*project_form(x, fn), scale, base)
        return rms_norm(pre_form(x, pre), w), post, comb

    return mix


def cross_entropy(logits, targets):
    return F.cross_entropy(logits.float(), targets, reduction="none")


# ---- the same in double precision, word by word as op.h has it ----


def plain_pre(x, pre):
    return torch.einsum("im,imc->ic", pre, x)


def plain_pre_norm(x, pre, w):
    y = plain_pre(x, pre)
    return y * (y.square().mean(1, keepdim=True) + EPS) ** -0.5 * w


def plain_post_res(x, f, post, comb):
    return torch.einsum("ik,ic->ikc", post, f) + torch.einsum("imk,imc->ikc", comb, x)


def plain_project(x, fn):
    v = x.flatten(1)
    return torch.einsum("ik,jk->ij", v, fn), (v.square().mean(1) + EPS) ** -0.5


def plain_maps(proj, rinv, scale, base):
    """The log domain: T_r, then T_c, ITERS times; rows are sources."""
    n = math.isqrt(proj.shape[1] + 1) - 1
    logits = logits_of(proj, rinv, scale, base, n)
    log = logits[:, 2 * n:].unflatten(1, (n, n))
    for _ in range(ITERS):
        log = log - log.logsumexp(2, keepdim=True)
        log = log - log.logsumexp(1, keepdim=True)
    return 1 / (1 + (-logits[:, :n]).exp()), 2 / (1 + (-logits[:, n:2 * n]).exp()), log.exp()


def plain_coefficients(x, fn, scale, base):
    return plain_maps(*plain_project(x, fn), scale, base)


def plain_sublayer(x, fn, scale, base, w):
    pre, post, comb = plain_coefficients(x, fn, scale, base)
    return plain_post_res(x, plain_pre_norm(x, pre, w), post, comb)


# ---- the table ----


@dataclass
class Op:
    """inputs: operand names; wanted: those that get a gradient; grads: the incoming ones; plain: in double precision.
    birkhoff: the names of its forward and backward op, each a list whose times are added."""

    inputs: tuple
    wanted: tuple
    grads: tuple
    plain: Callable
    birkhoff: tuple
    eager: dict
    compiled: dict = field(default_factory=dict)  # {}: as eager


def sublayer_of(mix, merge):
    """F between them is the identity and costs nothing; what is compiled is compiled on either side of it, as in a model."""

    def sublayer(x, fn, scale, base, w):
        h, post, comb = mix(x, fn, scale, base, w)
        return merge(x, h, post, comb)

    return sublayer


def table():
    maps_eager, maps_compiled = maps_of(sinkhorn_vectors), maps_of(sinkhorn_scalars)
    return {
        "pre": Op(("x", "pre"), ("x", "pre"), ("dy",), plain_pre, (["hc_pre"], ["hc_pre_bwd"]), {"bmm": pre_bmm, "sum": pre_sum}, {"sum": pre_sum}),
        "pre_norm": Op(("x", "pre", "w"), ("x", "pre", "w"), ("dy",), plain_pre_norm, (["hc_pre_norm"], ["hc_pre_norm_bwd"]),
                       {"bmm": pre_norm_of(pre_bmm), "sum": pre_norm_of(pre_sum)}, {"sum": pre_norm_of(pre_sum)}),
        "post_res": Op(("x", "f", "post", "comb"), ("x", "f", "post", "comb"), ("dout",), plain_post_res, (["hc_post_res"], ["hc_post_res_bwd"]),
                       {"bmm": post_res_bmm, "sums": post_res_sums}),
        "project": Op(("x", "fn"), ("x", "fn"), ("dproj", "drinv"), plain_project, (["hc_project"], ["hc_project_bwd"]),
                      {"square": project, "norm": project_norm}, {"square": project}),
        "maps": Op(("proj", "rinv", "scale", "base"), ("proj", "rinv", "scale", "base"), ("dpre", "dpost", "dcomb"), plain_maps, (["hc_maps"], ["hc_maps_bwd"]),
                   {"vectors": maps_eager, "matrix": maps_of(sinkhorn_matrix)}, {"scalars": maps_compiled, "vectors": maps_eager}),
        "coefficients": Op(("x", "fn", "scale", "base"), ("x", "fn", "scale", "base"), ("dpre", "dpost", "dcomb"), plain_coefficients,
                           (["hc_project", "hc_maps"], ["hc_project_bwd", "hc_maps_bwd"]), {"norm, vectors": coefficients_of(project_norm, maps_eager)},
                           {"square, vectors": coefficients_of(project, maps_eager)}),
        "sublayer": Op(("x", "fn", "scale", "base", "w"), ("x", "fn", "scale", "base", "w"), ("dout",), plain_sublayer,
                       (["hc_merge_mix"], ["hc_merge_mix_bwd"]), {}, {}),  # the forms: of the fastest parts, sublayer_forms
    }


SUBLAYER_PARTS = ("pre", "post_res", "project", "maps")


def sublayer_forms(ops, best, compiler):
    """Of the forms that were fastest by themselves; each side of F is compiled whole."""
    kind = "compiled" if compiler else "eager"
    form = {name: (getattr(ops[name], kind) or ops[name].eager)[best[name]] for name in SUBLAYER_PARTS}
    compiler = compiler or (lambda f: f)
    name = ", ".join(f"{op} {best[op]}" for op in form)
    return {name: sublayer_of(compiler(mix_of(form["project"], form["maps"], form["pre"])), compiler(form["post_res"]))}


# ---- bytes, as core/runtime/ops.def counts them: each operand once, what is added to twice ----


def bytes_of(z):
    """Op of Birkhoff -> bytes. Where its backward adds into dx or a parameter's gradient, that counts twice."""
    s = torch.empty(0, dtype=z.st).element_size()
    N, n, C, R = z.N, z.n, z.C, z.R
    x, y, gate, comb, proj, rinv, fn, maps_in = N * n * C * s, N * C * s, N * n * 4, N * n * n * 4, N * R * 4, N * 4, R * n * C * 4, (3 + R) * 4
    b = {
        "copy": 2 * y, "hc_pre": x + gate + y, "hc_pre_bwd": 2 * x + 2 * gate + y,
        "hc_pre_norm": x + gate + 4 * C + 2 * y + rinv, "hc_pre_norm_bwd": 3 * x + 2 * gate + 3 * 4 * C + 2 * y + rinv,
        "hc_post_res": 2 * x + y + gate + comb, "hc_post_res_bwd": 3 * x + 2 * (y + gate + comb),
        "hc_project": x + fn + proj + rinv, "hc_project_bwd": 3 * x + 3 * fn + proj + 2 * rinv,
        "hc_maps": proj + rinv + maps_in + 2 * gate + comb, "hc_maps_bwd": 2 * (proj + rinv) + 3 * maps_in + 2 * gate + comb,
        "adamw": N * C * (4 + (2 + 8 if s == 2 else 8) + 16) + 128, "cross_entropy": z.rows * (z.vocabulary * (4 + s) + 8) + 128,
    }
    b["hc_merge_mix"] = b["hc_post_res"] + b["hc_project"] + b["hc_maps"] + b["hc_pre_norm"] - (2 * x + proj + rinv + gate)
    parts = b["hc_post_res_bwd"] + b["hc_project_bwd"] + b["hc_maps_bwd"] + b["hc_pre_norm_bwd"]
    b["hc_merge_mix_bwd"] = parts - (5 * x + gate + proj + rinv)
    return b


# ---- a form with its operands ----


class Call:
    """run() -> outputs; backward(outputs) -> gradients of what is wanted. Packages that have another layout convert operands
    once, outside of what is timed; outs_back and grads_back turn results back to be checked."""

    def __init__(self, op, form, t, given=None, grads=None, outs_back=None, grads_back=None, before=None):
        self.op, self.form = op, form
        self.given = [v.detach().requires_grad_(k in op.wanted) for k, v in (given or {k: t[k] for k in op.inputs}).items()]
        self.wanted = [v for v in self.given if v.requires_grad]
        self.grads = grads or [t[k] for k in op.grads]
        self.outs_back, self.grads_back, self.before = outs_back, grads_back, before

    def run(self):
        return self.form(*self.given)

    def backward(self, outs):
        if self.before:
            self.before(self)
        outs = outs if isinstance(outs, tuple) else (outs,)
        return torch.autograd.grad(outs, self.wanted, self.grads, retain_graph=True, allow_unused=True)

    def errors(self, z, t):
        outs = self.run()
        grads = self.backward(outs)
        named = dict(zip(self.op.wanted, grads))
        if self.grads_back:
            named = self.grads_back(named)
        return errors(self.op, z, t, self.outs_back(outs) if self.outs_back else outs, named)


# ---- holding a form to double precision ----


def tolerance(z):
    """Relative, root mean square: half a unit of bf16 in a handful of places, or fp32 with products in TF32 on a GPU."""
    return 5e-3 if z.st == torch.bfloat16 else 2e-3 if z.device != "cpu" else 1e-5


PER_TOKEN = ("x", "f", "pre", "post", "comb", "proj", "rinv")


def errors(op, z, t, outs, grads, piece=1024):
    """Relative errors of outputs and gradients, root of the mean square over that of what is right. The plain formulation runs
    over pieces of the tokens; what belongs to all of them, the parameters' gradients, is summed."""
    outs = outs if isinstance(outs, tuple) else (outs,)
    wrong, right, sums = {}, {}, {}

    def add(name, a, b):
        wrong[name] = wrong.get(name, 0) + (a.double() - b).square().sum().item()
        right[name] = right.get(name, 0) + b.square().sum().item()

    for at in range(0, z.N, piece):
        part = slice(at, at + piece)
        given = [(t[k][part] if k in PER_TOKEN else t[k]).double().requires_grad_(k in op.wanted) for k in op.inputs]
        plain = op.plain(*given)
        plain = plain if isinstance(plain, tuple) else (plain,)
        back = torch.autograd.grad(plain, [g for g, k in zip(given, op.inputs) if k in op.wanted], [t[k][part].double() for k in op.grads])
        for i, (a, b) in enumerate(zip(outs, plain)):
            add(f"output {i}", a[part], b.detach())
        for k, b in zip(op.wanted, back):
            if k in PER_TOKEN:
                add("d" + k, grads[k][part], b)
            else:
                sums[k] = sums[k] + b if k in sums else b
    for k, b in sums.items():
        add("d" + k, grads[k], b)
    return {k: math.sqrt(wrong[k] / right[k]) if right[k] > 0 else math.sqrt(wrong[k]) for k in wrong}
