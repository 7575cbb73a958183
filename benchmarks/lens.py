"""How much faster, and in how much memory, are factored second-order effects than the literal ones, head by
head?

    python benchmarks/lens.py [--images 512] [--repeats 2] [--threads 2] [--memory-mib 256] [--device cpu]
    [--quick] [--csv FILE]

Image towers are openai-clip's with random weights, images are noise. Four tables, all of one run:

1. Milliseconds an image for the effects of a layer. "released": for every later head all neurons' writes at
all tokens,
   layer norm, values, attention to all tokens, the output matrix at all of them, of which the class token is
   kept; last layer norm, projection. "lean": the same numbers with no more than is needed of that, writes and
   norms once a layer, attention and output of the class token only. "ours": `coefficients`, its forward
   passes included, and "bare" these passes alone; `form`, which makes the effects themselves from the
   coefficients, is a row of its own and no part of ours. Then the largest difference of the effects, which
   must be that of float32.
2. Bytes an image of coefficients and of the effects [K, d], by layer, and of what belongs to no image.
3. Seconds for what follows, for --images images (made up: each a random mixture of those of table 1), and the
same with
   effects [N, k, d] formed for some neurons at a time, "literal", timed on some neurons and scaled to all.
   Forming is a row of its own, which the literal sum includes. Differences are relative to the largest value.
4. Milliseconds an image of the bare and of our pass against layers taken together, towers and images.

Times are the shortest of some repeats (one for what takes long), MiB is the peak beside inputs. Compare
ratios, not seconds. --csv writes table 4 to FILE, and tables 1 to 3 beside it, for
`make docs`.
"""

from __future__ import annotations

import argparse
import math
import time
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from similarity import peak, seconds, write_table

from neuronym.common.checks import openai_package
from neuronym.passes import inference, VIT_PIECE
from neuronym.second_order import effects
from neuronym.second_order.tower import _openai

BATCH = 32
TOP = 100
B32 = (224, 32, 768, 12, 12, 512)  # resolution, patch, width D, blocks L, heads H, d
SMALL = (64, 16, 128, 4, 4, 64)
TOWERS = {
    "B/32": (B32, 9),
    "B/32, 6 heads": ((224, 32, 768, 12, 6, 512), 9),
    "B/32, 24 heads": ((224, 32, 768, 12, 24, 512), 9),
    "B/16": ((224, 16, 768, 12, 12, 512), 9),
    "L/14, 6 blocks": ((224, 14, 1024, 6, 16, 768), 3),
}


def random_tower(sizes, device):
    """An image tower whose biases and norms are random too, so that no term vanishes."""
    openai_package()
    from clip.model import VisionTransformer

    torch.manual_seed(0)
    visual = VisionTransformer(*sizes).eval().requires_grad_(False)
    for parameter in visual.parameters():
        parameter.add_(
            torch.randn(parameter.shape), alpha=0.1 if parameter.ndim == 1 else 0.5 * parameter.std().item()
        )
    return visual.to(device)


def noise(count, sizes, device):
    return torch.randn(count, 3, sizes[0], sizes[0], generator=torch.Generator().manual_seed(1)).to(device)


# The literal form, in plain torch.


def recorded_forward(visual, image):
    """Attention [H, T, T] and ln_1's mean and sd [T, 1] by block, MLP activations [T, K], ln_post's, the
    embedding [d].
    """
    x = visual.conv1(image[None]).flatten(2)[0].T
    x = visual.ln_pre(torch.cat([visual.class_embedding[None], x]) + visual.positional_embedding)
    blocks, post = [], []
    for block in visual.transformer.resblocks:
        mean, sd = statistics(x, block.ln_1)
        H = block.attn.num_heads
        q, k, v = F.linear(block.ln_1(x), block.attn.in_proj_weight, block.attn.in_proj_bias).chunk(3, dim=1)
        q, k, v = (part.unflatten(1, (H, -1)).transpose(0, 1) for part in (q, k, v))  # [H, T, D/H]
        a = (q @ k.transpose(1, 2) / q.shape[2] ** 0.5).softmax(2)
        x = x + block.attn.out_proj((a @ v).transpose(0, 1).flatten(1))
        neurons = block.mlp.gelu(block.mlp.c_fc(block.ln_2(x)))
        x = x + block.mlp.c_proj(neurons)
        blocks.append((a, mean, sd))
        post.append(neurons)
    return blocks, post, statistics(x[0], visual.ln_post), visual.ln_post(x[0]) @ visual.proj


def statistics(x, norm):
    return x.mean(-1, keepdim=True), (x.var(-1, keepdim=True, correction=0) + norm.eps).sqrt()


def normalised(x, norm, mean, sd, share):
    """Layer norm of one of `share` equal contributors, with the model's statistics."""
    return norm.weight * (x - mean / share) / sd + norm.bias / share


def written(visual, layer, p):
    """What every neuron writes at every token, [T, K, D]."""
    out = visual.transformer.resblocks[layer].mlp.c_proj
    return p[:, :, None] * out.weight.T + out.bias / p.shape[1]


def parts(visual, layer):
    """The later blocks, as (number, heads H, contributors by neurons, value and output weights by head and
    biases).
    """
    K = visual.transformer.resblocks[layer].mlp.c_proj.in_features
    for m in range(layer + 1, len(visual.transformer.resblocks)):
        attn = visual.transformer.resblocks[m].attn
        H = attn.num_heads
        value, bias = attn.in_proj_weight.chunk(3)[2], attn.in_proj_bias.chunk(3)[2]
        yield (
            m,
            H,
            (1 + 2 * m) * K,
            value.unflatten(0, (H, -1)),
            bias.unflatten(0, (H, -1)),
            attn.out_proj.weight.unflatten(1, (H, -1)),
            attn.out_proj.bias,
        )


def released(visual, layer, image):
    """Effects [K, d] of an image, everything anew for each head and at all tokens."""
    blocks, post, last, embedding = recorded_forward(visual, image)
    L, phi = len(blocks), 0.0
    for m, H, share, V, bias, O, out_bias in parts(visual, layer):
        a, mean, sd = blocks[m]
        for h in range(H):
            x = written(visual, layer, post[layer])
            x = normalised(x, visual.transformer.resblocks[m].ln_1, mean[:, None], sd[:, None], share)
            x = x @ V[h].T + bias[h] / share  # [T, K, D/H]
            x = torch.einsum("nm,mkc->nkc", a[h], x)
            x = x @ O[:, h].T + out_bias / (share * H)  # [T, K, D]
            x = normalised(x[0], visual.ln_post, *last, share * H * (1 + 2 * L))
            phi = phi + effects.SCALE / embedding.norm() * (x @ visual.proj)
    return phi


def lean(visual, layer, image):
    """Effects [K, d] of an image by the same steps, but only those that the class token needs, and once a
    layer.
    """
    blocks, post, last, embedding = recorded_forward(visual, image)
    L, phi, x = len(blocks), 0.0, written(visual, layer, post[layer])
    for m, H, share, V, bias, O, out_bias in parts(visual, layer):
        a, mean, sd = blocks[m]
        y = normalised(x, visual.transformer.resblocks[m].ln_1, mean[:, None], sd[:, None], share)
        for h in range(H):
            z = torch.einsum("m,mkc->kc", a[h, 0], y @ V[h].T + bias[h] / share)  # [K, D/H]
            z = z @ O[:, h].T + out_bias / (share * H)
            z = normalised(z, visual.ln_post, *last, share * H * (1 + 2 * L))
            phi = phi + effects.SCALE / embedding.norm() * (z @ visual.proj)
    return phi


def literal(form, visual, layer, image):
    with inference(visual, piece=VIT_PIECE):
        return form(visual, layer, image)


# Passes.


def our_pass(tower, images, factors):
    """Effects of all images, in factors, by layer; some images at a time."""
    found = []
    with inference(tower.module, piece=VIT_PIECE) as place:
        for batch in images.split(BATCH):
            found += [effects.coefficients(tower, piece, factors) for piece in place(batch)]
    rep = torch.cat([rep for _, rep in found])
    return {
        f.layer: effects.Effects(
            *(torch.cat([part[f.layer][i] for part, _ in found]) for i in (0, 1)), f, rep
        )
        for f in factors
    }


def bare_pass(tower, images):
    with inference(tower.module, piece=VIT_PIECE) as place:
        for batch in images.split(BATCH):
            for piece in place(batch):
                tower.module(piece)


def milliseconds(calls, images, repeats):
    """Of each call's shortest repeat, an image: of interleaved ones, in turn for a second or `repeats`
    times.
    """
    best, start = [math.inf] * len(calls), time.perf_counter()
    while repeats > 0 or time.perf_counter() - start < 1:
        best = [min(before, seconds(call, images, 1)[0]) for before, call in zip(best, calls)]
        repeats -= 1
    return [1000 * taken / len(images) for taken in best]


def one_image(visual, tower, layer, images, args):
    """The first table; gives the effects of the images."""
    making, factors = seconds(lambda: effects.layer_factors(tower, layer), images, args.repeats)
    found = our_pass(tower, images, [factors])[layer]
    ours = effects.materialize(found, slice(1))
    calls = {
        "released": partial(literal, released, visual, layer, images[0]),
        "lean": partial(literal, lean, visual, layer, images[0]),
        "ours": partial(our_pass, tower, images[:BATCH], [factors]),
        "bare": partial(bare_pass, tower, images[:BATCH]),
        "form": partial(effects.materialize, found, slice(1)),
    }
    rows, mib, phi = dict.fromkeys(calls, math.inf), {}, {}
    for i in range(args.repeats):  # in turn, as the machine may be busier at one time than at another
        for name, call in calls.items():
            if i == 0:
                mib[name], (taken, phi[name]) = peak(lambda: seconds(call, images, 1), images)
            else:
                taken = seconds(call, images, 1 if name in ("released", "lean") else 3)[0]
            rows[name] = min(rows[name], 1000 * taken / (BATCH if name in ("ours", "bare") else 1))
    phi = {name: phi[name] for name in ("released", "lean")}
    N, K, J, d = found.shape
    print(
        f"\n1. Layer {layer}, K {K}, J {J} later heads, d {d}; literal forms on 1 image, ours on {BATCH}\n\n"
        f"| {'form':10} | {'ms an image':>11} | {'x ours':>8} | {'x bare':>8} | {'MiB':>6} | "
        f"{'difference':>10} |\n"
        "|------------|------------:|---------:|---------:|-------:|-----------:|"
    )
    for name in rows:
        difference = f"{relative(ours[0], phi[name]):10.1e}" if name in phi else " " * 10
        print(
            f"| {name:10} | {rows[name]:11.2f} | {rows[name] / rows['ours']:8.2f} | "
            f"{rows[name] / rows['bare']:8.2f} | "
            f"{mib[name]:6.0f} | {difference} |"
        )
    print(
        f"\nasked of B/32: released / ours at least 500, is {rows['released'] / rows['ours']:.0f}; "
        "differences are relative to the "
        f"largest value, {float(ours.abs().max()):.3g}; the factors, once a layer, took {1000 * making:.0f} "
        "ms",
        flush=True,
    )
    table = []
    for name, taken in rows.items():
        row = {"form": name, "ms an image": f"{taken:.3g}", "x ours": f"{taken / rows['ours']:.0f}"}
        table.append(row | {"x bare": f"{taken / rows['bare']:.2f}"})
    write_table(table, beside(args, "forms"))
    for name in phi:
        assert relative(ours[0], phi[name]) < 1e-4, (
            f"effects differ from the {name} form by {relative(ours[0], phi[name])}"
        )
    return found


def beside(args, name):
    """The file of another table than the fourth; None where no file is asked for."""
    return args.csv and args.csv.with_stem(f"{args.csv.stem}_{name}")


def relative(ours, theirs):
    return float((ours - theirs).abs().max() / theirs.abs().max())


def storage(tower, layers, args):
    """The second table."""
    table = []
    print(
        f"\n2. Bytes an image, float32\n\n| {'layer':>5} | {'heads J':>7} | {'s and B':>9} | {'effects':>9} "
        f"| {'ratio':>7} | "
        f"{'factors, once, MiB':>18} "
        "|\n|------:|--------:|----------:|----------:|--------:|-------------------:|"
    )
    for layer in layers:
        f = effects.layer_factors(tower, layer)
        J, d, K = len(f.heads), len(f.post_constant), f.write.shape[1]
        once = sum(x.nbytes for x in vars(f).values() if isinstance(x, torch.Tensor))
        print(
            f"| {layer:5} | {J:7} | {4 * (J * K + d):9} | {4 * K * d:9} | 1/{K * d / (J * K + d):5.1f} | "
            f"{once / 2**20:18.1f} |"
        )
        table.append({"layer": layer, "times less": f"{K * d / (J * K + d):.1f}"})
    write_table(table, beside(args, "bytes"))


# What follows from coefficients.


def mixtures(found, count):
    """Effects of made-up images, each a random mixture of the given ones: B lies in as few dimensions as
    theirs.
    """
    g = torch.Generator().manual_seed(2)
    weights = torch.randn(count, len(found.s), generator=g).to(found.s.device)
    weights = (weights + 1) / len(found.s) ** 0.5
    s, B, rep = ((weights @ x.flatten(1)).unflatten(1, x.shape[1:]) for x in (found.s, found.B, found.rep))
    return effects.Effects(s, B, found.factors, rep)


STEPS = {
    "mean": lambda x: effects.mean(x["found"]),
    "norms": lambda x: effects.norms(x["found"], x["mean"], x["memory"]),
    "principal_directions": lambda x: effects.principal_directions(
        x["found"], x["mean"], x["norms"], TOP, x["memory"]
    ),
    "projections": lambda x: effects.projections(
        x["found"], x["mean"], x["principal_directions"].r, x["memory"]
    ),
    "total": lambda x: effects.total(x["found"], x["mean"], None, x["memory"]),
}
LITERAL = {  # of effects phi [N, k, d]
    "mean": lambda x: x["phi"].mean(0),
    "norms": lambda x: (x["phi"] - x["mean"]).norm(dim=2),
    "principal_directions": lambda x: torch.stack(
        [first_direction(x["phi"][:, k] - x["mean"][k], x["norms"][:, k]) for k in range(x["phi"].shape[1])]
    ),
    "projections": lambda x: ((x["phi"] - x["mean"]) * x["principal_directions"]).sum(2),
    "total": lambda x: (x["phi"] - x["mean"]).sum(1),
}


def first_direction(deviations, lengths):
    rows = deviations[lengths.topk(TOP).indices]
    r = torch.linalg.svd(rows, full_matrices=False)[2][0]
    return r if (rows @ r > 0).sum() * 2 > TOP else -r


def measured(call, X, args):
    """Peak MiB, shortest seconds of repeats (of one call, if it takes long) and result."""
    mib, (taken, result) = peak(lambda: seconds(call, X, 1), X)
    if taken < 4:
        taken = min(taken, milliseconds([call], X[:1], args.repeats)[0] / 1000)
    return mib, taken, result


def compared(name, ours, x):
    """Largest difference for the neurons of the literal form, but for the sign of directions, which equal
    votes leave open.
    """
    if name == "total":
        marked = torch.zeros_like(x["norms"][:, :1], dtype=torch.bool).repeat(1, x["found"].shape[1])
        marked[:, x["units"]] = True
        return relative(effects.total(x["found"], effects.mean(x["found"]), marked), x[name])
    if name == "mean":
        V = x["found"].factors.V(x["units"])
        return relative(torch.einsum("jk,kjd->kd", ours.s[:, x["units"]], V) + ours.B, x["mean"])
    if name == "principal_directions":
        return float((1 - (ours.r[x["units"]] * x[name]).sum(1).abs()).max())
    if name == "projections":
        return relative(ours[:, x["units"]].abs(), x[name].abs())
    return relative(ours[:, x["units"]], x[name])


def follow(found, args):
    """The third table."""
    N, K, J, d = found.shape
    once = {"found": found, "memory": args.memory_mib * 2**20}
    units = torch.arange(args.units, device=found.s.device) * K // args.units
    some = {"found": found, "units": units}
    form_mib, form, some["phi"] = measured(lambda: effects.materialize(found, units=units), found.s, args)
    sums, most = {"ours": 0.0, "literal": form}, {"ours": 0.0, "literal": form_mib}
    print(
        f"\n3. N {N}, K {K}, J {J}, d {d}; s is {found.s.nbytes / 2**20:.0f} MiB, the effects would be "
        f"{4 * N * K * d / 2**20:.0f}; literal timed on {args.units} of {K} neurons and scaled, its MiB are "
        "for these\n\n"
        f"| {'':20} | {'seconds':>8} | {'literal':>8} | {'ratio':>7} | {'MiB':>6} | {'literal':>8} | "
        f"{'difference':>10} |\n"
        f"|{'-' * 22}|---------:|---------:|--------:|-------:|---------:|-----------:|\n"
        f"| {'form':20} | {'':8} | {form * K / args.units:8.2f} | {'':7} | {'':6} | {form_mib:8.0f} | "
        f"{'':10} |",
        flush=True,
    )
    for name, step in STEPS.items():
        mib, taken, once[name] = measured(lambda: step(once), found.s, args)
        theirs, slow, some[name] = measured(lambda: LITERAL[name](some), found.s, args)
        difference = compared(name, once[name], some)
        for how, second, size in (("ours", taken, mib), ("literal", slow, theirs + form_mib)):
            sums[how], most[how] = sums[how] + second, max(most[how], size)
        print(
            f"| {name:20} | {taken:8.2f} | {slow * K / args.units:8.2f} | "
            f"{slow * K / args.units / taken:6.1f}x | {mib:6.0f} | "
            f"{theirs:8.0f} | {difference:10.1e} |",
            flush=True,
        )
        assert difference < 1e-3, f"{name} differs from the literal one by {difference}"
    literal = sums["literal"] * K / args.units
    print(
        f"| {'all':20} | {sums['ours']:8.2f} | {literal:8.2f} | {literal / sums['ours']:6.1f}x | "
        f"{most['ours']:6.0f} | "
        f"{most['literal']:8.0f} | {'':10} |",
        flush=True,
    )
    table = [{"step": "all", "s": f"{sums['ours']:.1f}", "literal s": f"{literal:.1f}"}]
    write_table(table, beside(args, "after"))


# What the pass costs.


def cost(args):
    """The fourth table."""
    print(
        f"\n4. What the pass costs, in batches of {BATCH}\n\n| {'tower':15} | {'tokens':>6} | {'layers':>7} "
        f"| {'heads J':>7} | "
        f"{'images':>6} | {'bare ms':>8} | {'ours ms':>8} | {'x bare':>6} | {'MiB':>6} |\n"
        "|-----------------|-------:|--------:|--------:|-------:|---------:|---------:|-------:|-------:|"
    )
    if args.quick:
        towers, plan = (
            {"small": (SMALL, 1)},
            [("small", range(3), 16), ("small", [1], 16), ("small", [1], 64)],
        )
    else:
        towers = TOWERS
        plan = (
            [("B/32", layers, 32) for layers in ([9], [8, 9, 10], range(11))]
            + [("B/32", [9], count) for count in (16, 64, 256)]
            + [(name, [layer], 8) for name, (_, layer) in towers.items()]
        )
    made, table = {}, []
    for name, layers, count in plan:
        sizes = towers[name][0]
        if name not in made:
            made = {name: _openai(random_tower(sizes, args.device))}  # one at a time in memory
        tower, images = made[name], noise(count, sizes, args.device)
        factors = [effects.layer_factors(tower, layer) for layer in layers]
        calls = [partial(bare_pass, tower, images), partial(our_pass, tower, images, factors)]
        mib, (ours, _) = peak(lambda: seconds(calls[1], images, 1), images)
        bare, *others = milliseconds(
            calls[:1] if count > 100 else calls, images, 1 if count > 100 else args.repeats
        )
        ours = min([1000 * ours / count, *others])
        label = f"{layers[0]}" if len(layers) == 1 else f"{layers[0]}-{layers[-1]}"
        print(
            f"| {name:15} | {(sizes[0] // sizes[1]) ** 2 + 1:6} | {label:>7} | "
            f"{sum(len(f.heads) for f in factors):7} | {count:6} | "
            f"{bare:8.2f} | {ours:8.2f} | {ours / bare:6.2f} | {mib:6.0f} |",
            flush=True,
        )
        row = {"tower": name, "layers": label, "later heads": sum(len(f.heads) for f in factors)}
        row |= {"images": count, "ms bare": f"{bare:.3g}", "ms with effects": f"{ours:.3g}"}
        table.append(row)
    write_table(table, args.csv)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    sizes = {"images": 512, "units": 48, "repeats": 2, "threads": torch.get_num_threads(), "memory-mib": 256}
    for name, default in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--quick", action="store_true", help="a smaller tower and fewer images, to see that it runs"
    )
    parser.add_argument("--csv", type=Path, help="file for table 4")
    args = parser.parse_args()
    if args.quick:
        args.images, args.units = 128, 16
    torch.set_num_threads(args.threads)
    sizes, layer, layers = (SMALL, 1, range(3)) if args.quick else (B32, 9, range(6, 11))
    print(
        f"{'a small tower' if args.quick else 'ViT-B/32'} with random weights, float32, {args.device}, "
        f"{args.threads} threads, "
        f"memory {args.memory_mib} MiB; shortest of {args.repeats} or more"
    )
    visual = random_tower(sizes, args.device)
    tower = _openai(visual)
    found = one_image(visual, tower, layer, noise(64, sizes, args.device), args)
    storage(tower, layers, args)
    with torch.inference_mode():
        follow(mixtures(found, args.images), args)
    cost(args)


if __name__ == "__main__":
    main()
