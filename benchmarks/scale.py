"""How do time and memory of scoring grow with images, concepts and units, and do a million images fit?

    python benchmarks/scale.py [--N 8000] [--M 4000] [--K 256] [--d 512] [--memory-mib 512] [--device cpu]
    [--figure figures/scale] [--csv FILE]
    python benchmarks/scale.py --full [--methods soft_wpmi ...]     # N 1,000,000, M 20,000, K 2,048: 12 GB of
                                                                    made-up inputs

First: seconds of `score_embeddings` where one of N, M and K is halved or doubled, as a table, the exponent of
the cost in each (1 is linear), and a plot. With --full: all images and units against some of the concepts, by
which time grows linearly, the peak of memory beside inputs, and the time for all of them, extrapolated from
two numbers where not all were timed.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import matplotlib
from similarity import inputs, peak, seconds, write_table

from neuronym.figures import style
from neuronym.similarity.scores import score_embeddings, SIMILARITIES

FACTORS = (0.25, 0.5, 1, 2)
FULL = {"N": 1_000_000, "M": 20_000, "K": 2_048}
SOME = {
    "cos_similarity": 512,
    "cos_similarity_cubed": 512,
    "correlation": 512,
    "rank_reorder": 32,
}  # concepts that are timed, else all


def grow(args):
    """Seconds by function, axis and factor: {(method, axis, factor): seconds}."""
    base, found, table = {"N": args.N, "M": args.M, "K": args.K}, {}, []
    print(
        f"seconds of score_embeddings, d {args.d}, float32, {args.device}, memory {args.memory_mib} MiB; "
        "shortest of "
        f"{args.repeats}\n{'':21}{'':4}"
        + "".join(f"{f'x {factor:g}':>10}" for factor in FACTORS)
        + f"{'exponent':>10}"
    )
    for method in args.methods:
        for axis in base:
            for factor in FACTORS:
                sizes = base | {axis: int(base[axis] * factor)}
                I, T, Q = inputs(sizes["N"], sizes["M"], sizes["K"], args.d, args.device)
                found[method, axis, factor], _ = seconds(
                    lambda: score_embeddings(I, T, Q, method, memory=args.memory_mib * 2**20),
                    I,
                    args.repeats + (factor == 0.25),
                )
            times = [found[method, axis, factor] for factor in FACTORS]
            exponent = math.log(times[-1] / times[0]) / math.log(FACTORS[-1] / FACTORS[0])
            print(
                f"{method:21}{axis:4}" + "".join(f"{time:10.3f}" for time in times) + f"{exponent:10.2f}",
                flush=True,
            )
            row = {"similarity": method, "axis": axis, "exponent": f"{exponent:.2f}"}
            table.append(row | {f"x {factor:g}": f"{time:.3f}" for factor, time in zip(FACTORS, times)})
    write_table(table, args.csv)
    return found


def plot(found, args):
    """One panel an axis, one line a function, on logarithmic scales; the dotted line is linear growth."""
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    style.style()
    figure, panels = plt.subplots(1, 3, figsize=(10, 3.4), sharey=True, layout="constrained")
    for panel, (axis, name) in zip(panels, {"N": "images N", "M": "concepts M", "K": "units K"}.items()):
        sizes = [getattr(args, axis) * factor for factor in FACTORS]
        for method in args.methods:
            panel.plot(sizes, [found[method, axis, factor] for factor in FACTORS], marker="o", label=method)
        middle = min(found[method, axis, 1] for method in args.methods)
        panel.plot(sizes, [0.5 * middle * factor for factor in FACTORS], ":", color="grey", label="linear")
        panel.set(
            xscale="log",
            yscale="log",
            xlabel=name,
            xticks=sizes,
            xticklabels=[f"{size:,.0f}" for size in sizes],
        )
        panel.minorticks_off()
    panels[0].set_ylabel("seconds")
    panels[0].yaxis.set_major_formatter("{x:g}")
    panels[-1].legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    figure.draw_without_rendering()  # lays the panels out
    figure.set_layout_engine("none")
    print(style.save_figure(figure, args.figure.parent, args.figure.name))


def full(args):
    """Memory at the full size and time of some concepts, for each function."""
    N, M, K = FULL.values()
    memory = args.memory_mib * 2**20
    I, T, Q = inputs(N, M, K, args.d, args.device)
    print(
        f"N {N:,}, M {M:,}, K {K:,}, d {args.d}: inputs {(I.nbytes + T.nbytes + Q.nbytes) / 2**30:.1f} GiB, "
        "P would be "
        f"{4 * N * M / 2**30:.0f} GiB; memory {args.memory_mib} MiB\n"
        f"{'':21}{'concepts':>9}{'seconds':>9}{'concepts':>9}{'seconds':>9}{'peak MiB':>10}{f'all {M:,}':>12}"
    )
    table = []
    for method in args.methods:
        more = SOME.get(method, M)
        few = more // 4
        score_embeddings(I[:2000], T[:50], Q[:2000], method)  # the first call compiles
        short, _ = seconds(lambda: score_embeddings(I, T[:few], Q, method, memory=memory), I, 1)
        mib, (long, _) = peak(
            lambda: seconds(lambda: score_embeddings(I, T[:more], Q, method, memory=memory), I, 1), I
        )
        each = (long - short) / (more - few)  # beside what is done once
        print(
            f"{method:21}{few:9}{short:9.1f}{more:9}{long:9.1f}{mib:10.0f}{short + each * (M - few):10.0f} s",
            flush=True,
        )
        row = {"similarity": method, "some concepts": few, "some s": f"{short:.0f}", "concepts": more}
        row |= {"s": f"{long:.0f}", "GiB": f"{mib / 2**10:.1f}", "all s": f"{short + each * (M - few):.0f}"}
        table.append(row)
    write_table(table, args.csv)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in {"N": 8000, "M": 4000, "K": 256, "d": 512, "repeats": 2, "memory-mib": None}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--methods", nargs="+", choices=list(SIMILARITIES), default=list(SIMILARITIES))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--figure", type=Path, help="where to save the plot, without its ending")
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--csv", type=Path, help="file for the table")
    args = parser.parse_args()
    args.memory_mib = args.memory_mib or (6144 if args.full else 512)
    if args.full:
        return full(args)
    found = grow(args)
    if args.figure:
        plot(found, args)


if __name__ == "__main__":
    main()
