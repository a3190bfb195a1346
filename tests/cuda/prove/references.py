"""What kernels compute, in PyTorch's words: prove.py proves them equal, in real arithmetic, where a row of verdicts.txt says equal=NAME.

A function's parameters are operands of the op, by their names; what it returns is the op's output."""


def hc_pre(x, pre):
    return (pre.unsqueeze(-1) * x).sum(1).to(x.dtype)


def hc_post_res(x, f, post, comb):
    mixed = (comb.transpose(1, 2).unsqueeze(-1) * x.unsqueeze(1)).sum(2)
    return (mixed + post.unsqueeze(-1) * f.unsqueeze(1)).to(x.dtype)


def hc_post(x, f, post):
    return (x + post.unsqueeze(-1) * f.unsqueeze(1)).to(x.dtype)


def hc_pre_of_three(x, pre):
    """Wrong: one stream of four is left out."""
    return (pre[:, :3].unsqueeze(-1) * x[:, :3]).sum(1).to(x.dtype)
