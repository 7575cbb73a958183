"""Slow, literal second-order lens in float64, written from the formulas with loops; nothing here imports from
the package.

forward               one image through openai-clip's VisionTransformer, everything kept
effects               phi [K, d] of the units of one MLP layer, by layer, head and token
everything_else       what remains of 100 rep / ||rep||, by source, layer, head and token
norms                 length of each vector [N, K]
mean_and_deviations   mean over images, and what differs from it
principal_direction   r, theta, explained variance, images of largest norm
ablate                representation with effects replaced by their mean, wholly or in part

Shares. A mean or a bias that belongs to no part alone is divided equally over the parts it serves. The stream
before block j (from 0) has 1 + 2j sources: the embedding after ln_pre, then each earlier attention and MLP.
The stream that ln_post reads has 1 + 2L, L the number of blocks. An MLP source is divided further over its N
units, an attention layer over its H heads and over the sources that it reads. The c_proj bias is divided over
the N units and written at every token; the output bias enters once in a layer, not at every token. Any
division would sum to the same total, but the single effects are those of the release by this one only.
"""

from __future__ import annotations

import math

import torch

COEFFICIENT = 100


def forward(visual, image) -> dict:
    """One image [3, H, W] through the network, with all that the effects are made of (t tokens, the class
    token first).

    sources     1 + 2L outputs [t, D] whose running sum is the stream: embedding, attention 0, MLP 0,
                attention 1, ..
    streams     1 + 2L running sums of them [t, D]
    attention   per block, H lists of t: weights of the class token
    post        per block [t, N]: MLP activations after QuickGELU
    mean, sd    per block [t]: statistics of ln_1
    post_mean, post_sd, representation [d]   at the class token
    """
    image, size = image.double(), visual.conv1.stride[0]
    kernels, tokens = double(visual.conv1.weight), [double(visual.class_embedding)]
    for y in range(0, image.shape[1] - size + 1, size):
        for x in range(0, image.shape[2] - size + 1, size):
            patch = image[:, y : y + size, x : x + size]
            tokens.append(torch.stack([(kernel * patch).sum() for kernel in kernels]))
    stream = normalise(torch.stack(tokens) + double(visual.positional_embedding), visual.ln_pre)[0]
    kept = {"sources": [stream], "streams": [stream], "attention": [], "post": [], "mean": [], "sd": []}

    for block in visual.transformer.resblocks:
        y, mean, sd = normalise(stream, block.ln_1)
        written, of_class = attend(y, block.attn)
        stream = stream + written
        kept["sources"].append(written)
        kept["streams"].append(stream)

        hidden = normalise(stream, block.ln_2)[0] @ double(block.mlp.c_fc.weight).T + double(
            block.mlp.c_fc.bias
        )
        post = hidden / (1 + torch.exp(-1.702 * hidden))
        written = post @ double(block.mlp.c_proj.weight).T + double(block.mlp.c_proj.bias)
        stream = stream + written
        kept["sources"].append(written)
        kept["streams"].append(stream)
        for name, value in (("attention", of_class), ("post", post), ("mean", mean), ("sd", sd)):
            kept[name].append(value)

    y, mean, sd = normalise(stream[:1], visual.ln_post)
    return {**kept, "post_mean": mean[0], "post_sd": sd[0], "representation": y[0] @ double(visual.proj)}


def effects(visual, image, layer, units=None) -> torch.Tensor:
    """phi_n = C sum_{j > layer} sum_h P ln_post(sum_i a_{0i} O_h (V_h ln_1(p_i^n w_n + c / N) + b_V) + b_O)
    [K, d].

    C = 100 / ||rep||; both layer norms with the network's own statistics; means and biases by their shares.
    """
    kept, blocks = forward(visual, image), visual.transformer.resblocks
    W, c = double(blocks[layer].mlp.c_proj.weight), double(blocks[layer].mlp.c_proj.bias)  # [D, N], [D]
    N, phi = W.shape[1], []
    for n in range(N) if units is None else units:
        written = [p * W[:, n] + c / N for p in kept["post"][layer][:, n]]  # by token
        total = torch.zeros(visual.proj.shape[1], dtype=torch.float64)
        for j in range(layer + 1, len(blocks)):
            total += through_attention(visual, kept, j, written, N)
        phi.append(total)
    return torch.stack(phi)


def everything_else(visual, image, layer) -> torch.Tensor:
    """All of 100 rep / ||rep|| [d] that is no second-order effect of MLP `layer`: effects.sum(0) + this is
    the whole.

    First the embedding, every MLP (this one's direct part too) and the attention up to `layer`, through
    ln_post; then each later attention layer, source by source of the stream that it reads, without the source
    MLP `layer`.
    """
    kept, blocks = forward(visual, image), visual.transformer.resblocks
    total = torch.zeros(visual.proj.shape[1], dtype=torch.float64)
    for s, written in enumerate(kept["sources"]):
        later_attention = s % 2 == 1 and s // 2 > layer
        if not later_attention:
            total += to_representation(visual, kept, written[0], len(kept["sources"]))
    for j in range(layer + 1, len(blocks)):
        for s in range(1 + 2 * j):
            if s != 2 + 2 * layer:  # MLP `layer`
                total += through_attention(visual, kept, j, list(kept["sources"][s]), 1)
    return total


def norms(vectors) -> list[list[float]]:
    """||x|| of vectors [N, K, d], as lists [N, K]."""
    return [
        [math.sqrt(math.fsum(x * x for x in unit)) for unit in image] for image in vectors.double().tolist()
    ]


def mean_and_deviations(phi):
    """m_n, the mean over images, and d = phi - m.  phi [N, K, d] -> [K, d], [N, K, d]."""
    mean = torch.zeros(phi.shape[1:], dtype=torch.float64)
    for image in phi:
        mean += image.double() / len(phi)
    return mean, torch.stack([image.double() - mean for image in phi])


def principal_direction(deviations, top):
    """First right singular vector of the `top` longest of one unit's deviations [N, d], not centred again.

    -> r [d]; theta, the shortest of these lengths; explained, the part of their sum of squares along r; their
    images, by ascending length, the lower index taken of equal ones. More than half of them project
    positively on r, else r is negated. An exact half says nothing of the sign: r is then the negative of what
    the decomposition happened to return, and only r r' can be compared.
    """
    lengths = [row[0] for row in norms(deviations[:, None])]
    images = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))[:top][::-1]
    values, rows = torch.linalg.svd(deviations.double()[images], full_matrices=False)[1:]
    r = rows[0]
    positive = sum(float(deviations[i].double() @ r) > 0 for i in images)
    if not positive > top / 2:
        r = -r
    squares = [float(value) ** 2 for value in values]
    return r, lengths[images[0]], squares[0] / math.fsum(squares), images


def ablate(rep, phi, mean, how, theta=None, r=None) -> torch.Tensor:
    """rep - sum_n phi_n + sum_n m_n, and added back what `how` keeps.  rep [d]; phi, mean, r [K, d]; theta
    [K].

    all                     nothing
    without_significant     d_n of the units with ||d_n|| <= theta_n
    without_insignificant   d_n of the units with ||d_n|| > theta_n
    rank_1                  <d_n, r_n> r_n of every unit
    """
    out = rep.double().clone()
    for n in range(len(phi)):
        d = phi[n].double() - mean[n].double()
        out -= d
        if how == "rank_1":
            out += (d @ r[n].double()) * r[n].double()
        elif how in ("without_significant", "without_insignificant"):
            significant = norms(d[None, None])[0][0] > float(theta[n])
            if significant == (how == "without_insignificant"):
                out += d
        elif how != "all":
            raise KeyError(how)
    return out


def double(parameter) -> torch.Tensor:
    return parameter.detach().double()


def normalise(x, module):
    """Layer norm of rows x [t, D] -> y [t, D], mean [t], sd [t]."""
    mean = torch.stack([row.sum() / len(row) for row in x])
    sd = torch.stack([torch.sqrt(((row - m) ** 2).sum() / len(row) + module.eps) for row, m in zip(x, mean)])
    rows = [double(module.weight) * (row - m) / s + double(module.bias) for row, m, s in zip(x, mean, sd)]
    return torch.stack(rows), mean, sd


def share_of_norm(x, module, mean, sd, share) -> torch.Tensor:
    """What one of `share` equal contributors x [D] gives to the layer norm of their sum."""
    return double(module.weight) * (x - mean / share) / sd + double(module.bias) / share


def head(attn, h):
    """Query, key, value (weights [D / H, D], biases [D / H]) and output matrix [D, D / H] of one head."""
    D, size = attn.embed_dim, attn.embed_dim // attn.num_heads
    W, b = double(attn.in_proj_weight), double(attn.in_proj_bias)
    rows = [slice(part * D + h * size, part * D + (h + 1) * size) for part in range(3)]
    return [(W[part], b[part]) for part in rows], double(attn.out_proj.weight)[:, h * size : (h + 1) * size]


def attend(y, attn):
    """Self-attention of y [t, D] -> output [t, D], and the class token's weights, H lists of t."""
    out, of_class = torch.zeros_like(y) + double(attn.out_proj.bias), []
    for h in range(attn.num_heads):
        ((Wq, bq), (Wk, bk), (Wv, bv)), O = head(attn, h)
        q, k, v = y @ Wq.T + bq, y @ Wk.T + bk, y @ Wv.T + bv
        for i in range(len(y)):
            logits = [float(q[i] @ k[j]) / math.sqrt(len(bq)) for j in range(len(y))]
            powers = [math.exp(x - max(logits)) for x in logits]
            weights = [x / math.fsum(powers) for x in powers]
            if i == 0:
                of_class.append(weights)
            for j, weight in enumerate(weights):
                out[i] += weight * (O @ v[j])
    return out, of_class


def through_attention(visual, kept, j, written, units) -> torch.Tensor:
    """What vectors written at each token (t of [D], by one of `units` parts of one source) give by way of
    block j.
    """
    block, total = visual.transformer.resblocks[j], torch.zeros(visual.proj.shape[1], dtype=torch.float64)
    H, share = block.attn.num_heads, (1 + 2 * j) * units
    for h in range(H):
        (_, _, (V, b)), O = head(block.attn, h)
        out = double(block.attn.out_proj.bias) / (share * H)
        for i, x in enumerate(written):
            y = share_of_norm(x, block.ln_1, kept["mean"][j][i], kept["sd"][j][i], share)
            out = out + kept["attention"][j][h][i] * (O @ (V @ y + b / share))
        total += to_representation(visual, kept, out, share * H * len(kept["sources"]))
    return total


def to_representation(visual, kept, x, share) -> torch.Tensor:
    y = share_of_norm(x, visual.ln_post, kept["post_mean"], kept["post_sd"], share)
    return COEFFICIENT / kept["representation"].norm() * (y @ double(visual.proj))
