"""The peer: the model of a config.json as one would write it in PyTorch for speed on CPU cores.

The same mathematics as Birkhoff's, residual plain or mhc; peer.py --check holds it to tests/fixtures/reference_model.py.
Each piece is the fastest of the forms that were tried (README.md): scaled_dot_product_attention, rms_norm, one matrix for
gate and up, tokens gathered by expert with index_select and one product per expert into its rows, bmm for the connection,
Sinkhorn's iteration on its two scaling vectors with the tokens innermost.

Shapes: B sequences, T positions, N = B T tokens, C width, n streams, E experts, k chosen per token.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

LATENT_NORM_EPS = 1e-6
IGNORED = -100


def check_supported(cfg):
    """The peer covers what the benchmark needs; anything else is refused, so that no figure is of another model."""
    wanted = {"q_lora_rank": None, "n_group": 1, "scoring_func": "sigmoid", "topk_method": "noaux_tc", "hc_head": "sum",
              "tie_word_embeddings": False, "num_nextn_predict_layers": 0, "rope_interleave": True, "moe_layer_freq": 1}
    for key, value in wanted.items():
        if cfg.get(key, value) != value:
            raise SystemExit(f"the peer does not know {key} = {cfg[key]}, only {value}")
    if cfg["residual"] not in ("plain", "mhc") or (cfg["residual"] == "mhc" and cfg["hc_eps"] != 0):
        raise SystemExit(f"the peer knows residual plain, and mhc with hc_eps 0, not {cfg['residual']}")


# --------------------------------------------------------------------------------------------- experts


def blocks(count):
    """(expert, first row, end) of the experts that have rows; count [E] on the CPU."""
    begin = 0
    for expert, rows in enumerate(count.tolist()):
        if rows:
            yield expert, begin, begin + rows
        begin += rows


@torch.library.custom_op("birkhoff_peer::grouped_linear", mutates_args=())
def grouped_linear(x: torch.Tensor, weight: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
    """x [M,in] sorted by expert, weight [E,out,in], count [E] -> [M,out]: each product goes straight to its rows."""
    out = x.new_empty(x.shape[0], weight.shape[1])
    for e, i, j in blocks(count):
        torch.mm(x[i:j], weight[e].t(), out=out[i:j])
    return out


@grouped_linear.register_fake
def _(x, weight, count):
    return x.new_empty(x.shape[0], weight.shape[1])


@torch.library.custom_op("birkhoff_peer::grouped_linear_backward", mutates_args=())
def grouped_linear_backward(
    grad: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, count: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    grad = grad.contiguous()
    dx, dweight = torch.empty_like(x), torch.zeros_like(weight) if 0 in count else torch.empty_like(weight)
    for e, i, j in blocks(count):
        torch.mm(grad[i:j], weight[e], out=dx[i:j])
        torch.mm(grad[i:j].t(), x[i:j], out=dweight[e])
    return dx, dweight


@grouped_linear_backward.register_fake
def _(grad, x, weight, count):
    return torch.empty_like(x), torch.empty_like(weight)


def _save(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _backward(ctx, grad):
    return *grouped_linear_backward(grad, *ctx.saved_tensors), None


grouped_linear.register_autograd(_backward, setup_context=_save)


def swiglu(gate_up):
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


class Mlp(nn.Module):
    def __init__(self, c, width):
        super().__init__()
        self.gate_up = nn.Parameter(torch.empty(2 * width, c))
        self.down = nn.Parameter(torch.empty(c, width))

    def forward(self, x):
        return F.linear(swiglu(F.linear(x, self.gate_up)), self.down)


class Moe(nn.Module):
    """Sigmoid router with a correction bias (no gradient), top k, normalised weights; routed and shared experts."""

    def __init__(self, cfg):
        super().__init__()
        self.k, self.e = cfg["num_experts_per_tok"], cfg["n_routed_experts"]
        self.norm, self.factor = cfg["norm_topk_prob"], cfg["routed_scaling_factor"]
        c, width = cfg["hidden_size"], cfg["moe_intermediate_size"]
        self.gate = nn.Parameter(torch.empty(self.e, c))
        self.register_buffer("bias", torch.zeros(self.e))
        self.register_buffer("load", torch.zeros(self.e), persistent=False)
        self.gate_up = nn.Parameter(torch.empty(self.e, 2 * width, c))
        self.down = nn.Parameter(torch.empty(self.e, c, width))
        self.shared = Mlp(c, width * cfg["n_shared_experts"]) if cfg["n_shared_experts"] else None

    def forward(self, x):
        score = torch.sigmoid(F.linear(x, self.gate))
        with torch.no_grad():
            index = (score + self.bias).topk(self.k, dim=-1, sorted=False).indices
            order = index.flatten().argsort(stable=True)
            count = (index.flatten()[:, None] == torch.arange(self.e, device=x.device)).sum(0)
            self.load.copy_(count)
        weight = score.gather(-1, index)
        if self.norm:
            weight = weight / (weight.sum(-1, keepdim=True) + 1e-20)
        weight = (weight * self.factor).flatten().index_select(0, order)
        token = order // self.k
        hidden = swiglu(grouped_linear(x.index_select(0, token), self.gate_up, count)) * weight[:, None]
        y = self.shared(x) if self.shared else torch.zeros_like(x)
        return y.index_add(0, token, grouped_linear(hidden, self.down, count))

    @torch.no_grad()
    def balance(self, rate):
        self.bias += rate * torch.sign(self.load.mean() - self.load)


# ------------------------------------------------------------------------------------------- attention


def rope_table(cfg, dtype):
    """Cosine and sine [T,1,d/2] of every position's angles."""
    d, t = cfg["qk_rope_head_dim"], cfg["max_position_embeddings"]
    freq = cfg["rope_theta"] ** (-torch.arange(0, d, 2, dtype=torch.float64) / d)
    angle = torch.arange(t, dtype=torch.float64)[:, None] * freq
    return angle.cos()[:, None].to(dtype), angle.sin()[:, None].to(dtype)


def rope(x, cos, sin):
    """Rotates the pairs (x0, x1), (x2, x3), ... of x [B,T,heads,d]."""
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2)


class Attention(nn.Module):
    """Multi-head latent attention without query compression."""

    def __init__(self, cfg):
        super().__init__()
        self.heads, self.nope, self.rot = cfg["num_attention_heads"], cfg["qk_nope_head_dim"], cfg["qk_rope_head_dim"]
        self.v, self.rank, c = cfg["v_head_dim"], cfg["kv_lora_rank"], cfg["hidden_size"]
        self.q = nn.Parameter(torch.empty(self.heads * (self.nope + self.rot), c))
        self.kv_down = nn.Parameter(torch.empty(self.rank + self.rot, c))
        self.kv_norm = nn.Parameter(torch.ones(self.rank))
        self.kv_up = nn.Parameter(torch.empty(self.heads * (self.nope + self.v), self.rank))
        self.o = nn.Parameter(torch.empty(c, self.heads * self.v))

    def forward(self, x, cos, sin, b):
        t = x.shape[0] // b
        q_nope, q_rot = F.linear(x, self.q).view(b, t, self.heads, -1).split((self.nope, self.rot), dim=-1)
        latent, k_rot = F.linear(x, self.kv_down).split((self.rank, self.rot), dim=-1)
        up = F.linear(F.rms_norm(latent, (self.rank,), self.kv_norm, LATENT_NORM_EPS), self.kv_up)
        k_nope, v = up.view(b, t, self.heads, -1).split((self.nope, self.v), dim=-1)
        k_rot = rope(k_rot.view(b, t, 1, -1), cos, sin).expand(-1, -1, self.heads, -1)
        q = torch.cat((q_nope, rope(q_rot, cos, sin)), dim=-1).transpose(1, 2)
        k = torch.cat((k_nope, k_rot), dim=-1).transpose(1, 2)
        v = v.transpose(1, 2)
        # The flash kernel for CPUs wants values as wide as keys: zeros beside them cost less than the unfused form.
        y = F.scaled_dot_product_attention(q, k, F.pad(v, (0, q.shape[-1] - self.v)), is_causal=True)[..., : self.v]
        return F.linear(y.transpose(1, 2).reshape(b * t, -1), self.o)


# ------------------------------------------------------------------------------------------ connection


def sinkhorn(logits, iters):
    """exp, then iters times rows, columns. logits [N,m,k], result [N,k,m]: diag(u) K diag(v), u and v alone iterated."""
    k = (logits - logits.amax((1, 2), keepdim=True)).permute(1, 2, 0).contiguous().exp()
    v = torch.ones_like(k[:1])
    for _ in range(iters):
        u = (k * v).sum(1, keepdim=True).reciprocal()
        v = (k * u).sum(0, keepdim=True).reciprocal()
    return (k * u * v).permute(2, 1, 0).contiguous()


class Connection(nn.Module):
    """The maps of one sublayer from the streams [N,n,C]: pre [N,n], post [N,n], res [N,k (destination),m (source)]."""

    def __init__(self, cfg):
        super().__init__()
        self.n, self.iters, self.eps = cfg["hc_mult"], cfg["hc_sinkhorn_iters"], cfg["rms_norm_eps"]
        rows = self.n * (self.n + 2)
        self.fn = nn.Parameter(torch.empty(rows, self.n * cfg["hidden_size"]))
        self.base = nn.Parameter(torch.zeros(rows))
        self.scale = nn.Parameter(torch.full((3,), 0.01))

    def forward(self, x):
        n, flat = self.n, x.flatten(1)
        mean = torch.linalg.vector_norm(flat, dim=-1, keepdim=True).square() / flat.shape[1]
        h = F.linear(flat, self.fn) * torch.rsqrt(mean + self.eps)
        pre, post, comb = h.split((n, n, n * n), dim=-1)
        base = self.base.split((n, n, n * n))
        pre = torch.sigmoid(self.scale[0] * pre + base[0])
        post = 2.0 * torch.sigmoid(self.scale[1] * post + base[1])
        res = sinkhorn((self.scale[2] * comb + base[2]).view(-1, n, n), self.iters)
        return pre, post, res


def read_streams(pre, x):
    """[N,C]: the streams x [N,n,C] weighted by pre. The compiler fuses plain arithmetic, eager mode wants one product."""
    if torch.compiler.is_compiling():
        return (pre[..., None] * x).sum(1)
    return torch.bmm(pre[:, None], x)[:, 0]


def write_streams(post, res, x, y):
    """[N,n,C]: post outer y + res x."""
    if torch.compiler.is_compiling():
        return post[..., None] * y[:, None] + (res[..., None] * x[:, None]).sum(2)
    return torch.baddbmm(torch.bmm(post[..., None], y[:, None]), res, x)


# ----------------------------------------------------------------------------------------------- model


class Sublayer(nn.Module):
    """A norm, a function and, with mhc, the connection around them."""

    def __init__(self, cfg, inner):
        super().__init__()
        self.inner, self.eps = inner, cfg["rms_norm_eps"]
        self.norm = nn.Parameter(torch.ones(cfg["hidden_size"]))
        self.hc = Connection(cfg) if cfg["residual"] == "mhc" else None

    def apply_inner(self, x, *rest):
        return self.inner(F.rms_norm(x, self.norm.shape, self.norm, self.eps), *rest)

    def forward(self, x, *rest):
        if self.hc is None:
            return x + self.apply_inner(x, *rest)
        pre, post, res = self.hc(x)
        return write_streams(post, res, x, self.apply_inner(read_streams(pre, x), *rest))


class Model(nn.Module):
    """ids and targets [B,T] -> mean loss over the targets that are not ignored."""

    def __init__(self, cfg):
        super().__init__()
        check_supported(cfg)
        self.eps, self.n = cfg["rms_norm_eps"], cfg["hc_mult"] if cfg["residual"] == "mhc" else 0
        c, v = cfg["hidden_size"], cfg["vocab_size"]
        self.embed = nn.Parameter(torch.empty(v, c))
        self.layers = nn.ModuleList()
        for layer in range(cfg["num_hidden_layers"]):
            dense = layer < cfg["first_k_dense_replace"]
            ffn = Mlp(c, cfg["intermediate_size"]) if dense else Moe(cfg)
            self.layers.append(nn.ModuleList((Sublayer(cfg, Attention(cfg)), Sublayer(cfg, ffn))))
        self.norm = nn.Parameter(torch.ones(c))
        self.head = nn.Parameter(torch.empty(v, c))
        cos, sin = rope_table(cfg, self.embed.dtype)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def logits(self, ids):
        b, t = ids.shape
        x = F.embedding(ids.flatten(), self.embed)
        if self.n:
            x = x[:, None].expand(-1, self.n, -1).contiguous()
        for attention, ffn in self.layers:
            x = ffn(attention(x, self.cos[:t], self.sin[:t], b))
        if self.n:
            x = x.sum(1)
        return F.linear(F.rms_norm(x, self.norm.shape, self.norm, self.eps), self.head)

    def forward(self, ids, targets):
        return F.cross_entropy(self.logits(ids), targets.flatten(), ignore_index=IGNORED)

    def balance(self, rate):
        for module in self.modules():
            if isinstance(module, Moe):
                module.balance(rate)

    @torch.no_grad()
    def draw(self, cfg, seed=1):
        """Initial values: normal matrices; norms 1 and scales 0.01 as they are; bases as an mHC model starts."""
        torch.manual_seed(seed)
        for name, p in self.named_parameters():
            if p.dim() > 1:
                p.normal_(0.0, cfg["initializer_range"])
            elif name.endswith("hc.base"):
                n = self.n
                p[:n] = math.log(1 / (n - 1))  # sigmoid = 1/n
                p[n : 2 * n] = 0.0
                p[2 * n :] = torch.eye(n).flatten() * 8.0 - 8.0
        return self


# ---------------------------------------------------------------------------------- names of a checkpoint


def _experts(w, at, leaf):
    """[E, ...] of one leaf of all routed experts."""
    count = 0
    while f"{at}experts.{count}.{leaf}.weight" in w:
        count += 1
    return torch.stack([w[f"{at}experts.{e}.{leaf}.weight"] for e in range(count)])


def _sublayer(w, model_name, at, site, norm):
    out = {model_name + "norm": w[at + norm + ".weight"]}
    if f"{at}hc_{site}_fn" in w:
        out |= {f"{model_name}hc.{leaf}": w[f"{at}hc_{site}_{leaf}"] for leaf in ("fn", "base", "scale")}
    return out


def _mlp(w, model_name, at):
    gate_up = torch.cat((w[at + "gate_proj.weight"], w[at + "up_proj.weight"]))
    return {model_name + "gate_up": gate_up, model_name + "down": w[at + "down_proj.weight"]}


def _ffn(w, model_name, at):
    if at + "gate.weight" not in w:
        return _mlp(w, model_name, at)
    out = {model_name + "gate": w[at + "gate.weight"], model_name + "down": _experts(w, at, "down_proj")}
    out[model_name + "gate_up"] = torch.cat((_experts(w, at, "gate_proj"), _experts(w, at, "up_proj")), dim=1)
    if at + "gate.e_score_correction_bias" in w:
        out[model_name + "bias"] = w[at + "gate.e_score_correction_bias"]
    if at + "shared_experts.down_proj.weight" in w:
        out |= _mlp(w, model_name + "shared.", at + "shared_experts.")
    return out


def from_checkpoint(w):
    """Tensors under Hugging Face's names (a dict; weights or gradients) to those of Model."""
    out = {"embed": w["model.embed_tokens.weight"], "norm": w["model.norm.weight"], "head": w["lm_head.weight"]}
    attention = {"q": "q_proj", "kv_down": "kv_a_proj_with_mqa", "kv_norm": "kv_a_layernorm", "kv_up": "kv_b_proj", "o": "o_proj"}
    layer = 0
    while f"model.layers.{layer}.input_layernorm.weight" in w:
        at = f"model.layers.{layer}."
        out |= _sublayer(w, f"layers.{layer}.0.", at, "attn", "input_layernorm")
        out |= {f"layers.{layer}.0.inner.{k}": w[f"{at}self_attn.{leaf}.weight"] for k, leaf in attention.items()}
        out |= _sublayer(w, f"layers.{layer}.1.", at, "ffn", "post_attention_layernorm")
        out |= _ffn(w, f"layers.{layer}.1.inner.", at + "mlp.")
        layer += 1
    return out
