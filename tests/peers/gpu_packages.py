"""Kernels of packages that happen to be installed, called as their own tests call them: TileKernels (tile_kernels), Liger
(liger_kernel), TransformerEngine (transformer_engine). Whatever is missing, refuses, or computes something else than the plain
formulation in double precision is reported with the reason and not timed. None of this has run with the packages installed.

A package is a function of sizes and operands that returns {op: Call}; it raises ImportError where it is not installed.
"""

import torch

from gpu_ops import EPS, ITERS, Call, table

OPS = table()


def rms_norm(y, w):
    return torch.nn.functional.rms_norm(y.float(), (y.shape[-1],), w, EPS).to(y.dtype)


def liger(z, t):
    """x [N,n,C] as here; h_res is comb transposed, and its softmax runs over sources: rows of fn and base change places, and
    what 20 rounds converge to is the same."""
    from liger_kernel.ops.mhc import liger_mhc_coeffs, liger_mhc_post_res, liger_mhc_pre

    n = z.n
    order = torch.cat([torch.arange(2 * n), 2 * n + torch.arange(n * n).view(n, n).t().flatten()]).to(z.device)

    def flip(a):
        return a.transpose(1, 2).contiguous()

    def coefficients(x, phi, scale, b):
        return liger_mhc_coeffs(x, phi, b, scale[0], scale[1], scale[2], tmax=ITERS)

    def sublayer(x, phi, scale, b, w):
        pre, post, res = coefficients(x, phi, scale, b)
        return liger_mhc_post_res(x, rms_norm(liger_mhc_pre(x, pre), w), post, res)

    def parameters_back(g):
        g["fn"], g["base"] = g["fn"].t()[order], g["base"][order]
        return g

    own = dict(x=t["x"], fn=t["fn"][order].t().contiguous(), scale=t["scale"], base=t["base"][order].contiguous())
    return {
        "pre": Call(OPS["pre"], liger_mhc_pre, t),
        "post_res": Call(OPS["post_res"], liger_mhc_post_res, t, dict(x=t["x"], f=t["f"], post=t["post"], comb=flip(t["comb"])),
                         grads_back=lambda g: g | {"comb": flip(g["comb"])}),
        "coefficients": Call(OPS["coefficients"], coefficients, t, own, [t["dpre"], t["dpost"], flip(t["dcomb"])],
                             lambda o: (o[0], o[1], flip(o[2])), parameters_back),
        "sublayer": Call(OPS["sublayer"], sublayer, t, own | {"w": t["w"]}, grads_back=parameters_back),
    }


def tile_kernels(z, t):
    """Two leading dimensions; comb as here; eps 1e-6 in gates and Sinkhorn. The three that read the streams share one gradient,
    hung onto x's storage, which mhc_post makes: alone, the others are given one."""
    from tile_kernels.modeling.mhc.ops import mhc_post, mhc_pre_apply_mix, mhc_pre_norm_fn, mhc_pre_split_mixes, sinkhorn_normalize

    def wide(k):
        return t[k].unsqueeze(0)

    def column(k):
        return t[k].unsqueeze(0).unsqueeze(3)

    def lend(call):
        x = call.given[0]
        call.lent = x.untyped_storage().grad_from_mhc_post = torch.zeros_like(x)

    def split(mixes, scale, base):
        pre, post, comb = mhc_pre_split_mixes(mixes, scale, base, z.n, 2.0, EPS)
        return pre, post, sinkhorn_normalize(comb, repeat=ITERS, eps=EPS)

    def maps(proj, rinv, scale, base):
        return split(proj * rinv.unsqueeze(2), scale, base)

    def coefficients(x, fn, scale, base):
        return split(mhc_pre_norm_fn(x, fn, None, EPS, fuse_grad_acc=False), scale, base)

    def sublayer(x, fn, scale, base, w):
        pre, post, comb = split(mhc_pre_norm_fn(x, fn, None, EPS), scale, base)
        return mhc_post(rms_norm(mhc_pre_apply_mix(x, pre), w), x, post, comb)

    def flat(g):
        return {k: v.reshape(t[k].shape) for k, v in g.items()}

    def pre_back(g):
        return flat({"x": call["pre"].lent, "pre": g["pre"]})

    def maps_back(o):
        return o[0].reshape(t["pre"].shape), o[1].reshape(t["post"].shape), o[2].reshape(t["comb"].shape)

    parameters = dict(scale=t["scale"], base=t["base"])
    d_maps = [column("dpre"), column("dpost"), wide("dcomb")]
    call = {
        "pre": Call(OPS["pre"], mhc_pre_apply_mix, t, dict(x=wide("x"), pre=column("pre")), [wide("dy")], lambda o: o[0], pre_back, lend),
        "post_res": Call(OPS["post_res"], lambda x, f, post, comb: mhc_post(f, x, post, comb), t,
                         dict(x=wide("x"), f=wide("f"), post=column("post"), comb=wide("comb")), [wide("dout")], lambda o: o[0], flat),
        "maps": Call(OPS["maps"], maps, t, dict(proj=wide("proj"), rinv=wide("rinv")) | parameters, d_maps, maps_back, flat),
        "coefficients": Call(OPS["coefficients"], coefficients, t, dict(x=wide("x"), fn=t["fn"]) | parameters, d_maps, maps_back, flat),
        "sublayer": Call(OPS["sublayer"], sublayer, t, dict(x=wide("x"), fn=t["fn"]) | parameters | {"w": t["w"]}, [wide("dout")], lambda o: o[0], flat),
    }
    return call


def transformer_engine(z, t):
    """Streams innermost: x [N,1,C,n]; H_res is comb; the projection is 32 wide, 24 of it meant, and gives the mean square."""
    from transformer_engine.pytorch.triton.mhc import (mhc_fused_aggregate, mhc_fused_expand_combine, mhc_fused_projection, mhc_fused_scale,
                                                       mhc_fused_sinkhorn)

    n, N, C = z.n, z.N, z.C

    def inside(a):
        return a.transpose(1, 2).contiguous().unsqueeze(1)

    def outside(a):
        return a.reshape(N, C, n).transpose(1, 2)

    def line(a):
        return a.unsqueeze(1)

    # The flattened streams are [C,n] here: fn's columns follow.
    fn = t["fn"].view(z.R, n, C).transpose(1, 2).reshape(z.R, C * n).contiguous()

    def fn_back(g):
        return g.view(z.R, C, n).transpose(1, 2).reshape(z.R, n * C)

    def coefficients(x, fn, scale, base):
        h, ms = mhc_fused_projection(x.view(N, n * C), fn)
        pre, post, res = mhc_fused_scale(h, scale, base.unsqueeze(0), ms, n)
        return pre.reshape(N, 1, n), post.reshape(N, 1, n), mhc_fused_sinkhorn(res.reshape(N, 1, n, n), n, True, ITERS)

    def sublayer(x, fn, scale, base, w):
        pre, post, comb = coefficients(x, fn, scale, base)
        return mhc_fused_expand_combine(rms_norm(mhc_fused_aggregate(x, pre, n), w), None, post, x, comb)

    def back(g):
        shaped = {"x": outside, "fn": fn_back}
        return {k: shaped[k](v) if k in shaped else v.reshape(t[k].shape) for k, v in g.items()}

    x, own = inside(t["x"]), dict(fn=fn, scale=t["scale"], base=t["base"])
    d_maps = [line(t["dpre"]), line(t["dpost"]), line(t["dcomb"])]
    return {
        "pre": Call(OPS["pre"], lambda x, pre: mhc_fused_aggregate(x, pre, n), t, dict(x=x, pre=line(t["pre"])), [line(t["dy"])], lambda o: o[:, 0], back),
        "post_res": Call(OPS["post_res"], lambda x, f, post, comb: mhc_fused_expand_combine(f, None, post, x, comb), t,
                         dict(x=x, f=line(t["f"]), post=line(t["post"]), comb=line(t["comb"])), [inside(t["dout"])], outside, back),
        "coefficients": Call(OPS["coefficients"], coefficients, t, dict(x=x) | own, d_maps, lambda o: tuple(a[:, 0] for a in o), back),
        "sublayer": Call(OPS["sublayer"], sublayer, t, dict(x=x) | own | {"w": t["w"]}, [inside(t["dout"])], outside, back),
    }


PACKAGES = {"TileKernels": tile_kernels, "Liger": liger, "TransformerEngine": transformer_engine}


def load(z, t):
    """Calls by package, and for each that has none the reason."""
    calls, why = {}, {}
    for name, make in PACKAGES.items():
        if z.device == "cpu":
            why[name] = "needs a GPU"
            continue
        try:
            calls[name] = make(z, t)
        except ImportError as error:
            why[name] = f"not installed ({error})"
        except Exception as error:  # a package's own, of any kind: said, not hidden
            why[name] = f"not callable here ({type(error).__name__}: {error})"
    return calls, why
