"""Labels that others published, as files with pinned content, read into the one labels schema.

FILES             path below a folder -> what is in the file and what its bytes must be
published_folder  where they are
fetch_published   download what is missing, verified
load_published    labels of one or more methods, units counted from 0
load_ratings      human ratings of Describe-and-Dissect's scoring functions
Published         what FILES holds

Files of CLIP-Dissect (Oikarinen & Weng 2023; with results of MILAN, Hernandez et al. 2022, and NetDissect,
Bau et al. 2017) lie in clip_dissect/, those of Describe-and-Dissect (Bai et al. 2025) in dnd/, as in their
repositories' data/. NetDissect counts units from 1, all others from 0: read as they are, a join pairs every
label with its neighbour.

What others reported or what follows from their files, beside what is recomputed here.

PUBLISHED     (quantity, whose, network, layer) -> value and digits, as printed
recomputed    the same quantities from the labels and ratings of `neuronym.published.labels`
compared      both, and their difference
pool_matches  rated labels that another system gave the same neuron

Values of the ratings, of agreement and of NetDissect's units are in the papers' tables or were counted from
the files once, independently of this code; IoU .04 is NetDissect's rule for a detector (Bau et al. 2017,
section 3.1).

Do two methods call the same neurons by the same words? With the control that shows what chance gives.

content_words   the words of a label that say something
agreement       share of neurons whose two labels share one, layer by layer
offsets         the same when one table's units are moved, which tells a table that counts from 1
"""

from __future__ import annotations

import hashlib
import os
import urllib.request
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from neuronym.common.checks import unknown
from neuronym.common.files import sha256
from neuronym.common.statistics import interval, paired
from neuronym.common.text import content_words
from neuronym.runs.run import data_dir, ROOT
from neuronym.similarity.labels import COLUMNS

SOURCES = {
    "clip_dissect": "Trustworthy-ML-Lab/CLIP-dissect",
    "dnd": "Trustworthy-ML-Lab/Describe-and-Dissect",
}
URL = "https://raw.githubusercontent.com/{repository}/HEAD/data/{path}"


@dataclass(frozen=True)
class Published:
    """One file: whose labels of which network, the layer where the file has no column for it, and its first
    unit.
    """

    method: str
    model: str
    sha256: str
    layer: str = ""
    base: int = 0


FILES = {
    "clip_dissect/CLIP_Dissect_results/resnet18_places_imagenet_broden.csv": Published(
        "clip_dissect",
        "resnet18_places365",
        "9fb69f315fc98a5249ba236fc6d32f08f4950f75b9198266cd820047b26c5263",
    ),
    "clip_dissect/CLIP_Dissect_results/resnet50_imagenet_broden.csv": Published(
        "clip_dissect", "resnet50", "a0c70fd97000a8ca278a14f4adb0f5afdb6fef1b3dd19bd064cbd39699f0635f"
    ),
    "clip_dissect/MILAN_results/m_base_resnet18_places365.csv": Published(
        "milan_base", "resnet18_places365", "aba3d716e4822f8c46804caac35387b48c109bc261bfd3e56cabaa3fb8d62381"
    ),
    "clip_dissect/MILAN_results/m_base_resnet50_imagenet.csv": Published(
        "milan_base", "resnet50", "448c2f39bd4fdc1fa59eebdf3bc466ca3df3023afb00a38a5ad2dc56f3629fd6"
    ),
    "clip_dissect/MILAN_results/m_imagenet_resnet18_places365.csv": Published(
        "milan_imagenet",
        "resnet18_places365",
        "a33c7fb48c5a10638b6191e61f022235fcc80c6a99df3cab02145eb80afc40bc",
    ),
    "clip_dissect/MILAN_results/m_places365_resnet50_imagenet.csv": Published(
        "milan_places365", "resnet50", "f49b3efd8cb2bcf92157c69879ac30e695adcdab7f78c09ad268068e43f1eb11"
    ),
    "clip_dissect/NetDissect_results/resnet18_places365_fc.csv": Published(
        "netdissect",
        "resnet18_places365",
        "3e8f08587d31560fb88e143cc4084cfc36309a41f49b14e6ff593765fd59a6c2",
        "fc",
        base=1,
    ),
    "clip_dissect/NetDissect_results/resnet18_places365_layer1.csv": Published(
        "netdissect",
        "resnet18_places365",
        "2ece37b37e5ef6ea97ce343b7a3df0917bdeea16d58be0a68722c137e2d70f80",
        "layer1",
        base=1,
    ),
    "clip_dissect/NetDissect_results/resnet18_places365_layer4.csv": Published(
        "netdissect",
        "resnet18_places365",
        "db68b39765b66583042e10a1185fd9bebcdd326b89d927ef8d1af8df000035ef",
        "layer4",
        base=1,
    ),
    "clip_dissect/NetDissect_results/resnet50_imagenet_fc.csv": Published(
        "netdissect",
        "resnet50",
        "ad3dba5a57c875ab3580b7f42f3bd5f8fa53b5c205ad974d90d05242491c4a7e",
        "fc",
        base=1,
    ),
    "clip_dissect/NetDissect_results/resnet50_imagenet_layer1.csv": Published(
        "netdissect",
        "resnet50",
        "26d0157da9c92a1697c9fabf61e39dc1c079611a27c2f4bdc68a20a2d77827ba",
        "layer1",
        base=1,
    ),
    "clip_dissect/NetDissect_results/resnet50_imagenet_layer2.csv": Published(
        "netdissect",
        "resnet50",
        "232cc24902e89ee45b7abb91adc2b22995ac73c4634984f28467c59535a183b2",
        "layer2",
        base=1,
    ),
    "clip_dissect/NetDissect_results/resnet50_imagenet_layer3.csv": Published(
        "netdissect",
        "resnet50",
        "b5f49610e1e006641b363de16047927a82e4b49720e746f99fcd6e680c985d5c",
        "layer3",
        base=1,
    ),
    "clip_dissect/NetDissect_results/resnet50_imagenet_layer4.csv": Published(
        "netdissect",
        "resnet50",
        "9320af96d46f7d5b0ca68a75e69d2d992af4b3946f202ececea91f272cfa74ca",
        "layer4",
        base=1,
    ),
    "dnd/CLIP_Dissect_results/resnet152_imagenet.csv": Published(
        "clip_dissect", "resnet152", "9271e761567c5254642b0d51b2107d73246f03d50d29fa986946b952eb5beec2"
    ),
    "dnd/DnD_results/BLIP2_data/BLIP2-Layer1.csv": Published(
        "dnd_blip2", "resnet50", "11f9f533df86564a416325b8be6015d059df033222e90d795f5841d54cd6ca3b", "layer1"
    ),
    "dnd/DnD_results/BLIP2_data/BLIP2-Layer2.csv": Published(
        "dnd_blip2", "resnet50", "65203977515f6c93461d80369a20d2e0a6c01cc969d552d2aa8993a206422620", "layer2"
    ),
    "dnd/DnD_results/BLIP2_data/BLIP2-Layer3.csv": Published(
        "dnd_blip2", "resnet50", "01a3a4866e31add14491eeab78aa6852d9c56f43942a167f880315519c2cf7cf", "layer3"
    ),
    "dnd/DnD_results/BLIP2_data/BLIP2-Layer4.csv": Published(
        "dnd_blip2", "resnet50", "190045db4fd88cb0fe8e17fd60377d462c70054f15b6f2c31c82d08bc847b98f", "layer4"
    ),
    "dnd/DnD_results/eurosat_results/layer4.csv": Published(
        "dnd",
        "resnet50_eurosat",
        "b4067bce23c7d3e080fe496a07cf7dfade768c763a415023411f165533e07089",
        "layer4",
    ),
    "dnd/DnD_results/human_evals/RN50_table_4_scoring_function.csv": Published(
        "ratings", "resnet50", "babd453e031dc1c9ce34b7fbbc85cf53b955f10417fe1167246481de3bb02f84"
    ),
    "dnd/DnD_results/rn152_results/resnet152_imagenet_layer1.csv": Published(
        "dnd", "resnet152", "ee64fccfbfd777a6ee60ca4dfdabc7640d17100a69d6e2a6e75d98079b1affff", "layer1"
    ),
    "dnd/DnD_results/rn152_results/resnet152_imagenet_layer2.csv": Published(
        "dnd", "resnet152", "3fcf19e1ee43537c7fb45801d50ef9f8cef9654de94ddabc5dfbc8090b95d4b2", "layer2"
    ),
    "dnd/DnD_results/rn152_results/resnet152_imagenet_layer3.csv": Published(
        "dnd", "resnet152", "63ea762ac67f66ed588bf341f4b088d4969e82089bb44030cfef433f11e8037d", "layer3"
    ),
    "dnd/DnD_results/rn152_results/resnet152_imagenet_layer4.csv": Published(
        "dnd", "resnet152", "c19ad515408c254911ffd0cd7993227cccf0159528f964779d2e87f709c4cd03", "layer4"
    ),
    "dnd/DnD_results/rn50_results/resnet50_imagenet_broden_fc.csv": Published(
        "dnd", "resnet50", "ea468d821699dd1e39843af0a8a25775399a0cc9f0f55a54924bdab51ded025b", "fc"
    ),
    "dnd/DnD_results/rn50_results/resnet50_imagenet_broden_layer1.csv": Published(
        "dnd", "resnet50", "15749d25d76d068406d682c8e00d7092d4361d53ad9f317f86be9d8fe391f90b", "layer1"
    ),
    "dnd/DnD_results/rn50_results/resnet50_imagenet_broden_layer2.csv": Published(
        "dnd", "resnet50", "f1e9a3b7503dc2c258c0c762c39a065327e77075902f3f0edd31c1927a1cff9b", "layer2"
    ),
    "dnd/DnD_results/rn50_results/resnet50_imagenet_broden_layer3.csv": Published(
        "dnd", "resnet50", "db729954f90884ebb2cc6dd6829b237708fd611f77d1584102fc5e520226037b", "layer3"
    ),
    "dnd/DnD_results/rn50_results/resnet50_imagenet_broden_layer4.csv": Published(
        "dnd", "resnet50", "bb633efebdcf54544c7e71bbc95aec372e0cba8a0711c1569c66cecdc310ec82", "layer4"
    ),
    "dnd/MILANNOTATIONS_resnet152_imagenet.csv": Published(
        "milannotations", "resnet152", "165e9ad908273e9062c69b8f8de04e0688b91c063876c9263e222d36a11775bf"
    ),
    "dnd/MILAN_results/m_places365_resnet152_imagenet.csv": Published(
        "milan_places365", "resnet152", "d68ff0f23685ae6c31afc8070149fc595e6254890e547ee18e28629baea631ec"
    ),
}


def published_folder(named: str = "") -> Path:
    """The folder named, else NEURONYM_PUBLISHED, else data/downloads/published; relative paths start at the
    root.
    """
    return (
        ROOT
        / Path(
            named or os.environ.get("NEURONYM_PUBLISHED") or data_dir() / "downloads" / "published"
        ).expanduser()
    )


def fetch_published(
    folder: Path, progress: Callable[[Iterable, int, str], Iterable] | None = None, url: str = URL
) -> int:
    """Download what the folder lacks of FILES, each refused unless it has the pinned bytes; returns how many
    came.

    Errors: ConnectionError, ValueError for other bytes. What came before stays.
    """
    absent = [path for path in FILES if not (folder / path).is_file()]
    for path in absent if progress is None else progress(absent, len(absent), "published results"):
        source, _, rest = path.partition("/")
        address = url.format(repository=SOURCES[source], path=rest)
        try:
            with urllib.request.urlopen(address, timeout=60) as answer:
                content = answer.read()
        except OSError as error:
            raise ConnectionError(
                f"{path} could not be downloaded ({error}); get {address} where there is network, put "
                f"it at {folder / path}, or set NEURONYM_PUBLISHED to a folder that has all"
            ) from error
        if hashlib.sha256(content).hexdigest() != FILES[path].sha256:
            raise ValueError(
                f"{path} must have SHA-256 {FILES[path].sha256[:16]}..., what {SOURCES[source]} gives now "
                "differs; take the file from an earlier commit of that repository"
            )
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        partial = folder / f"{path}.partial"
        partial.write_bytes(content)
        partial.replace(folder / path)
    return len(absent)


def load_published(folder: Path, methods: Iterable[str] = (), models: Iterable[str] = ()) -> pd.DataFrame:
    """Labels in the columns of `labels.COLUMNS`, units from 0, of the methods and models named (all by
    default).

    rank counts the labels of a unit in the file's order (three people, three candidates); what is empty is
    left out; score is the file's, NaN where it has none. `category` is NetDissect's, else "". Errors:
    KeyError for an unknown method or model, FileNotFoundError, ValueError for a file whose bytes are not the
    published ones.
    """
    known = {f.method for f in FILES.values()} - {"ratings"}, {f.model for f in FILES.values()}
    for what, given, names in zip(("published method", "published model"), (methods, models), known):
        for name in given:
            if name not in names:
                raise unknown(what, name, sorted(names))
    wanted = {
        path: f
        for path, f in FILES.items()
        if f.method != "ratings"
        and (not methods or f.method in methods)
        and (not models or f.model in models)
    }
    return pd.concat([_read(folder, path, f) for path, f in wanted.items()], ignore_index=True)


def load_ratings(folder: Path) -> pd.DataFrame:
    """Tidy ratings of 200 units by two raters: layer, unit, scoring, rater, rating (1 to 5), label, and the
    rater's flags `uninterpretable` and `none` (no label fits).
    """
    (path,) = (path for path, f in FILES.items() if f.method == "ratings")
    table = pd.read_csv(_checked(folder, path))
    parts = []
    for scoring in ("Mean Caption", "Topk-Sq Caption", "Image-Products", "Topk-Compare"):
        rated = scoring if scoring != "Topk-Sq Caption" else "Topk-Sq"
        for rater in ("E1", "E2"):
            column = next(c for c in table if c.endswith(f"{rater} Rating") and c.startswith(rated))
            parts.append(
                pd.DataFrame(
                    {
                        "layer": "layer" + table["Layer"].astype(str),
                        "unit": table["Unit"],
                        "scoring": scoring.removesuffix(" Caption"),
                        "rater": rater,
                        "rating": table[column],
                        "label": table[f"{scoring} Label"].str.strip(),
                        "uninterpretable": table[f"Uninterpretable {rater}"],
                        "none": table[f"None {rater}"],
                    }
                )
            )
    return pd.concat(parts, ignore_index=True)


def _read(folder: Path, path: str, f: Published) -> pd.DataFrame:
    table = pd.read_csv(_checked(folder, path))
    names = {"description": "label", "summary": "label", "similarity": "score", "Neuron ID": "unit"}
    table = table.rename(columns=names)
    several = [c for c in table if c.startswith("Label ")]
    if several:
        table = table.melt(id_vars="unit", value_vars=several, value_name="label").sort_values(
            "unit", kind="stable"
        )
    table = table.assign(label=table["label"].astype("string").str.strip())
    table = table[table["label"].fillna("") != ""]
    table = table.assign(
        layer=f.layer or table.get("layer"),
        unit=table["unit"].astype(int) - f.base,
        model=f.model,
        method=f.method,
        score=table.get("score", float("nan")),
        category=table.get("category", ""),
    )
    return table.assign(rank=table.groupby(["layer", "unit"], sort=False).cumcount() + 1)[
        [*COLUMNS, "category"]
    ]


def _checked(folder: Path, path: str) -> Path:
    file = folder / path
    if not file.is_file():
        source = SOURCES[path.partition("/")[0]]
        raise FileNotFoundError(
            f"published labels not found at {file}; fetch_published({str(folder)!r}) downloads them "
            f"from github.com/{source}, or set NEURONYM_PUBLISHED to the folder that holds "
            f"{', '.join(SOURCES)}"
        )
    if sha256(file) != FILES[path].sha256:
        raise ValueError(
            f"{file} must have SHA-256 {FILES[path].sha256[:16]}..., got {sha256(file)[:16]}...; "
            "delete it and fetch it again"
        )
    return file


DETECTOR = 0.04
LAYERS = ("conv1", "layer1", "layer2", "layer3", "layer4", "fc")
RN50, RN18, RN152, EUROSAT = "resnet50", "resnet18_places365", "resnet152", "resnet50_eurosat"
RANDOM = {"rating, low": 0.01, "rating, high": 0.01}  # how far draws of a bootstrap may be apart
POOL = ("milan_base", "milan_places365", "clip_dissect", "netdissect")


def _by_layer(
    quantity: str, whose: str, network: str, layers: str, values: list[float], digits: int = 0
) -> dict:
    return {
        (quantity, whose, network, layer): (value, digits) for layer, value in zip(layers.split(), values)
    }


PUBLISHED: dict[tuple[str, str, str, str], tuple[float, int]] = {
    **_by_layer(
        "distinct labels", "clip_dissect", RN50, "conv1 layer1 layer2 layer3 layer4", [22, 90, 176, 430, 811]
    ),
    **_by_layer(
        "distinct labels", "clip_dissect", RN18, "conv1 layer1 layer2 layer3 layer4", [17, 37, 67, 148, 317]
    ),
    **_by_layer("distinct labels", "milan_base", RN50, "layer4 fc", [351, 251]),
    **_by_layer("distinct labels", "dnd", RN50, "fc", [869]),
    **_by_layer("distinct labels", "dnd", EUROSAT, "layer4", [690]),
    **_by_layer("labels with fishing", "dnd", EUROSAT, "layer4", [853]),
    **_by_layer("times fishing", "dnd", EUROSAT, "layer4", [883]),
    **_by_layer("labels with purple or pink", "dnd", EUROSAT, "layer4", [609]),
    **_by_layer("commonest label", "milan_base", RN50, "layer4", [278]),
    **_by_layer("words of a label", "dnd", RN50, "fc", [3.31], 2),
    **_by_layer(
        "neurons",
        "clip_dissect",
        RN50,
        "conv1 layer1 layer2 layer3 layer4 all",
        [64, 256, 512, 1024, 2048, 3904],
    ),
    **_by_layer(
        "neurons",
        "clip_dissect",
        RN18,
        "conv1 layer1 layer2 layer3 layer4 all",
        [64, 64, 128, 256, 512, 1024],
    ),
    **_by_layer("neurons", "clip_dissect", RN152, "all", [200]),
    **_by_layer("neurons", "milan_base", RN50, "fc all", [1000, 4904]),
    **_by_layer("neurons", "milan_base", RN18, "all", [1024]),
    **_by_layer("neurons", "milan_imagenet", RN18, "all", [1024]),
    **_by_layer("neurons", "milan_places365", RN50, "all", [3904]),
    **_by_layer("neurons", "milan_places365", RN152, "all", [3904]),
    **_by_layer(
        "neurons", "netdissect", RN50, "layer1 layer2 layer3 layer4 fc", [256, 512, 1024, 2048, 1000]
    ),
    **_by_layer("neurons", "netdissect", RN18, "layer1 layer4 fc", [64, 512, 365]),
    **_by_layer("neurons", "dnd", RN50, "layer1 layer2 layer3 layer4 fc", [50, 50, 50, 50, 1000]),
    **_by_layer("neurons", "dnd", RN152, "layer1 layer2 layer3 layer4", [50] * 4),
    **_by_layer("neurons", "dnd_blip2", RN50, "layer1 layer2 layer3 layer4", [50] * 4),
    **_by_layer("neurons", "dnd", EUROSAT, "layer4", [2048]),
    **_by_layer("neurons", "milannotations", RN152, "all", [3904]),
    **_by_layer("texts", "milannotations", RN152, "all", [11712]),
    **_by_layer(
        "mean score",
        "clip_dissect",
        RN50,
        "conv1 layer1 layer2 layer3 layer4",
        [0.2079, 0.1787, 0.1747, 0.2116, 0.3181],
        4,
    ),
    **_by_layer(
        "mean score",
        "clip_dissect",
        RN18,
        "conv1 layer1 layer2 layer3 layer4",
        [0.1776, 0.1679, 0.1665, 0.1893, 0.3196],
        4,
    ),
    **_by_layer(
        "mean score",
        "netdissect",
        RN50,
        "layer1 layer2 layer3 layer4 fc",
        [0.0301, 0.0202, 0.0352, 0.0606, 0.1287],
        4,
    ),
    **_by_layer("mean score", "netdissect", RN18, "layer1 layer4 fc", [0.0231, 0.0742, 0.1895], 4),
    **_by_layer("detectors", "netdissect", RN50, "layer1 layer2 layer3 layer4 fc", [61, 62, 276, 1355, 983]),
    **_by_layer("detectors", "netdissect", RN18, "layer1 layer4 fc", [6, 434, 364]),
    **_by_layer(
        "detector labels", "netdissect", RN50, "layer1 layer2 layer3 layer4 fc", [20, 19, 76, 186, 222]
    ),
    **_by_layer("detector labels", "netdissect", RN18, "layer1 layer4 fc", [4, 187, 195]),
    **_by_layer(
        "agreement",
        "clip_dissect ~ netdissect",
        RN50,
        "layer1 layer2 layer3 layer4",
        [0.094, 0.084, 0.043, 0.043],
        3,
    ),
    **_by_layer(
        "agreement",
        "clip_dissect ~ milan_base",
        RN50,
        "layer1 layer2 layer3 layer4",
        [0.086, 0.064, 0.040, 0.031],
        3,
    ),
    **_by_layer(
        "agreement",
        "milan_base ~ netdissect",
        RN50,
        "layer1 layer2 layer3 layer4",
        [0.086, 0.096, 0.079, 0.043],
        3,
    ),
    **_by_layer(
        "agreement",
        "milan_base ~ milan_places365",
        RN50,
        "layer1 layer2 layer3 layer4",
        [0.570, 0.473, 0.358, 0.434],
        3,
    ),
    **_by_layer(
        "agreement",
        "clip_dissect ~ dnd",
        RN50,
        "layer1 layer2 layer3 layer4",
        [0.120, 0.160, 0.140, 0.100],
        3,
    ),
    **_by_layer("mean rating", "Mean", RN50, "layer1 layer2 layer3 layer4", [2.99, 2.79, 2.40, 2.24], 2),
    **_by_layer("mean rating", "Topk-Sq", RN50, "layer1 layer2 layer3 layer4", [3.07, 2.77, 2.36, 2.29], 2),
    **_by_layer(
        "mean rating", "Image-Products", RN50, "layer1 layer2 layer3 layer4", [3.29, 3.12, 3.02, 2.68], 2
    ),
    **_by_layer(
        "mean rating", "Topk-Compare", RN50, "layer1 layer2 layer3 layer4", [3.33, 2.99, 2.67, 2.42], 2
    ),
    **{
        (f"rating, {what}", whose, RN50, "all"): (value, 3)
        for whose, values in {
            "Mean": (2.605, 2.428, 2.780),
            "Topk-Sq": (2.623, 2.445, 2.809),
            "Image-Products": (3.027, 2.867, 3.192),
            "Topk-Compare": (2.853, 2.660, 3.035),
        }.items()
        for what, value in zip(("mean", "low", "high"), values)
    },
    **{
        ("rating, difference", whose, RN50, "all"): (value, 3)
        for whose, value in {
            "Image-Products ~ Topk-Compare": 0.175,
            "Image-Products ~ Mean": 0.422,
            "Mean ~ Topk-Compare": -0.247,
        }.items()
    },
    **{
        ("rating, Wilcoxon p", whose, RN50, "all"): value
        for whose, value in {
            "Image-Products ~ Topk-Compare": (0.091, 3),
            "Image-Products ~ Mean": (1.6e-4, 5),
            "Mean ~ Topk-Compare": (0.0017, 4),
        }.items()
    },
    **{
        ("Spearman of raters", whose, RN50, "all"): (value, 2)
        for whose, value in {"lowest": 0.51, "highest": 0.66}.items()
    },
    **{("uninterpretable", whose, RN50, "all"): (value, 0) for whose, value in {"E1": 20, "E2": 17}.items()},
    **{("none fits", whose, RN50, "all"): (value, 0) for whose, value in {"E1": 57, "E2": 36}.items()},
    **{
        (f"rated labels in the pool, {what}", whose, RN50, "all"): (value, 0)
        for whose, values in zip(POOL, ((26, 38), (17, 36), (40, 49), (22, 27)))
        for what, value in zip(("fewest", "most"), values)
    },
}


def recomputed(labels: pd.DataFrame, ratings: pd.DataFrame) -> pd.DataFrame:
    """Columns quantity, whose, network, layer, recomputed: every quantity of PUBLISHED, for all that the
    tables hold.
    """
    best = labels[labels["rank"] == 1]
    by = ["method", "model", "layer"]
    groups, everywhere = best.groupby(by), best.assign(layer="all").groupby(by)
    parts = [
        _long("distinct labels", groups["label"].nunique()),
        _long("mean score", groups["score"].mean().dropna()),
        _long("neurons", groups.size()),
        _long("neurons", everywhere.size()),
        _long("texts", labels.assign(layer="all").groupby(by).size()),
        _long("commonest label", groups["label"].agg(lambda some: some.value_counts().iloc[0])),
        _long("words of a label", groups["label"].agg(lambda some: some.str.split().str.len().mean())),
    ]
    found = best[(best["method"] == "netdissect") & (best["score"] >= DETECTOR)].groupby(by)["label"]
    parts += [_long("detectors", found.size()), _long("detector labels", found.nunique())]
    satellite = (
        best[best["model"] == EUROSAT].assign(label=lambda t: t["label"].str.lower()).groupby(by)["label"]
    )
    parts += [
        _long("labels with fishing", satellite.agg(lambda some: some.str.contains("fishing").sum())),
        _long("times fishing", satellite.agg(lambda some: some.str.count("fishing").sum())),
        _long(
            "labels with purple or pink", satellite.agg(lambda some: some.str.contains("purple|pink").sum())
        ),
    ]
    for _, pair, network, _ in dict.fromkeys(key[:3] + ("",) for key in PUBLISHED if key[0] == "agreement"):
        first, second = (
            best[(best["method"] == name) & (best["model"] == network)] for name in pair.split(" ~ ")
        )
        found = agreement(first, second, shifts=()).assign(whose=pair, network=network, quantity="agreement")
        parts.append(found.rename(columns={"agreement": "recomputed"})[parts[0].columns])
    return pd.concat(
        [*parts, _of_ratings(ratings), _of_pool(pool_matches(ratings, labels))], ignore_index=True
    )


def compared(found: pd.DataFrame) -> pd.DataFrame:
    """PUBLISHED beside `recomputed`: columns quantity, whose, network, layer, published, recomputed,
    difference, same.

    `same` is whether both agree to the printed digits, or within RANDOM where draws are involved. What is not
    found is NaN and not the same.
    """
    keys = ["quantity", "whose", "network", "layer"]
    table = pd.DataFrame(
        [(*key, value, digits) for key, (value, digits) in PUBLISHED.items()],
        columns=[*keys, "published", "digits"],
    ).merge(found, on=keys, how="left")
    table["difference"] = table["recomputed"].astype("float64") - table["published"]
    within = (0.5 * 10.0 ** -table["digits"]).clip(lower=table["quantity"].map(RANDOM).fillna(0))
    return table.assign(same=table["difference"].abs() <= within * (1 + 1e-9)).drop(columns="digits")


def pool_matches(ratings: pd.DataFrame, labels: pd.DataFrame, moved: int = 0) -> pd.DataFrame:
    """Rated labels, by scoring function, that each system of POOL gave the same neuron of ResNet-50 word for
    word, upper and lower case alike; `moved` moves the systems' units, which shows what a wrong count costs.
    """
    rated = ratings[ratings["rater"] == ratings["rater"].iloc[0]].assign(
        label=lambda t: t["label"].str.lower()
    )
    theirs = labels[(labels["model"] == RN50) & (labels["rank"] == 1) & labels["method"].isin(POOL)]
    theirs = theirs.assign(label=theirs["label"].str.lower(), unit=theirs["unit"] + moved)
    met = rated[["layer", "unit", "scoring", "label"]].merge(theirs[["method", "layer", "unit", "label"]])
    return (
        met.groupby(["method", "scoring"])
        .size()
        .unstack(fill_value=0)
        .reindex(index=POOL, columns=list(dict.fromkeys(ratings["scoring"])), fill_value=0)
    )


def _of_ratings(ratings: pd.DataFrame) -> pd.DataFrame:
    """What PUBLISHED has of the ratings; resampled and paired are neurons, with both raters' mean each."""
    rows = [
        ("mean rating", scoring, layer, value)
        for (scoring, layer), value in ratings.groupby(["scoring", "layer"])["rating"].mean().items()
    ]
    wide = ratings.pivot_table(index=["layer", "unit"], columns="scoring", values="rating")
    for scoring in wide:
        values = wide[scoring].mean(), *interval(wide[scoring])
        rows += [
            (f"rating, {what}", scoring, "all", value) for what, value in zip(("mean", "low", "high"), values)
        ]
    for test in paired(wide).itertuples():
        pair = f"{test.first} ~ {test.second}"
        rows += [
            ("rating, difference", pair, "all", test.difference),
            ("rating, Wilcoxon p", pair, "all", test.p),
        ]
    raters = ratings.pivot_table(
        index=["scoring", "layer", "unit"], columns="rater", values="rating"
    ).groupby("scoring")
    alike = [some.corr("spearman").iloc[0, 1] for _, some in raters]
    rows += [
        ("Spearman of raters", "lowest", "all", min(alike)),
        ("Spearman of raters", "highest", "all", max(alike)),
    ]
    once = (
        ratings[ratings["scoring"] == ratings["scoring"].iloc[0]]
        .groupby("rater")[["uninterpretable", "none"]]
        .sum()
    )
    rows += [
        (name, rater, "all", once.loc[rater, column])
        for rater in once.index
        for name, column in (("uninterpretable", "uninterpretable"), ("none fits", "none"))
    ]
    table = pd.DataFrame(rows, columns=["quantity", "whose", "layer", "recomputed"])
    return table.assign(network=RN50)


def _of_pool(matches: pd.DataFrame) -> pd.DataFrame:
    ends = pd.DataFrame({"fewest": matches.min(axis=1), "most": matches.max(axis=1)}).stack()
    return pd.DataFrame(
        [(f"rated labels in the pool, {what}", system, RN50, "all", n) for (system, what), n in ends.items()],
        columns=["quantity", "whose", "network", "layer", "recomputed"],
    )


def _long(quantity: str, values: pd.Series) -> pd.DataFrame:
    table = (
        values.rename("recomputed")
        .reset_index()
        .set_axis(["whose", "network", "layer", "recomputed"], axis=1)
    )
    return table.assign(quantity=quantity)[["quantity", "whose", "network", "layer", "recomputed"]]


SHIFTS = range(1, 21)


def agreement(first: pd.DataFrame, second: pd.DataFrame, shifts: Iterable[int] = SHIFTS) -> pd.DataFrame:
    """By layer: units that both tables have, share whose labels of rank 1 have a content word in common, and
    `chance`, the mean share when the units of the second are moved by each of `shifts` places, around the
    end.

    Both are labels tables of one method and one model. Errors: ValueError for several labels of rank 1 of a
    unit, and for tables that have no unit in common.
    """
    a, b = _words(first), _words(second)
    shared = [key for key in a if key in b]
    if not shared:
        raise ValueError(
            f"agreement needs units that both tables have, got layers {sorted({k[0] for k in a})} and "
            f"{sorted({k[0] for k in b})}; choose tables of one model"
        )
    rows = []
    for layer in dict.fromkeys(layer for layer, _ in shared):
        ours, theirs = zip(*((a[key], b[key]) for key in shared if key[0] == layer))
        n, moved = (
            len(ours),
            [_share(ours, theirs[s % len(ours) :] + theirs[: s % len(ours)]) for s in shifts],
        )
        rows.append((layer, n, _share(ours, theirs), sum(moved) / max(len(moved), 1)))
    return pd.DataFrame(rows, columns=["layer", "units", "agreement", "chance"])


def offsets(first: pd.DataFrame, second: pd.DataFrame, most: int = 2) -> pd.Series:
    """Share of all common units that agree when the second's units are moved by -most .. most; the index is
    the move.

    If the second counts from 1 and was read as if from 0, the largest share is at -1.
    """
    moves = range(-most, most + 1)
    found = {}
    for move in moves:
        table = agreement(first, second.assign(unit=second["unit"] + move), shifts=())
        found[move] = float((table["agreement"] * table["units"]).sum() / table["units"].sum())
    return pd.Series(found, name="agreement")


def _words(table: pd.DataFrame) -> dict[tuple[str, int], frozenset[str]]:
    best = table[table["rank"] == 1]
    twice = best.duplicated(["layer", "unit"])
    if twice.any():
        row = best[twice].iloc[0]
        raise ValueError(
            f"each unit has one label of rank 1, got several for unit {row['unit']} of {row['layer']}; "
            "choose one method and one model"
        )
    return {
        (layer, unit): content_words(label)
        for layer, unit, label in zip(best["layer"], best["unit"], best["label"])
    }


def _share(ours: tuple[frozenset[str], ...], theirs: tuple[frozenset[str], ...]) -> float:
    return sum(bool(a & b) for a, b in zip(ours, theirs)) / len(ours)
