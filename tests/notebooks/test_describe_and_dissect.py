"""The notebook of Describe-and-Dissect: what a run leaves, replays, tiny models from disk, servers that fail.

Most runs execute the notebook's own cells in this process, where stand-ins reach them and imports are paid
for once.
"""

from __future__ import annotations

import json
import threading
from collections import Counter
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from neuronym.figures import style
from neuronym.models import captioners
from neuronym.models import server as chat_server
from neuronym.models.transcripts import BudgetReached, DryRun
from neuronym.runs.folders import notebook_path, results_dir
from neuronym.similarity.labels import read_labels
from tests.helpers.blip import save_blip
from tests.helpers.command import run
from tests.helpers.llama import save_llama
from tests.helpers.servers import read, send, serving

KEY = "sk-test-0123/456789+secret"
WHOLE = {
    "probe": "microworld:150",
    "units": "layer4=4;fc=6",
    "images": 4,
    "crops": 2,
    "pictures": 3,
    "tries": 3,
    "prune": "diamond|ni?ht; gr*",
    "prune_images": 20,
    "draws": 2,
    "device": "cpu",
}
SMALL = {
    "smoke": True,
    "probe": "microworld:90",
    "images": 4,
    "pictures": 3,
    "tries": 2,
    "ablation": False,
    "device": "cpu",
}


def execute(figures=False, **given):
    """Run the notebook's cells with some parameters set, and return what they leave; figures are made, and
    saved where that is asked.
    """
    cells = json.loads(notebook_path("describe_and_dissect").read_text(encoding="utf-8"))["cells"]
    left = {"__name__": "__main__"}
    with pytest.MonkeyPatch.context() as patch:
        if not figures:
            patch.setattr(style, "present", lambda *figures, **how: None)
        for cell in cells:
            if cell["cell_type"] == "code":
                exec("".join(cell["source"]), left)
                left |= given if "parameters" in cell["metadata"].get("tags", ()) else {}
    plt.close("all")
    return SimpleNamespace(**left)


def drawn(folder):
    """Pictures of a run on which something is drawn."""
    files = sorted((folder / "figures").glob("*.png"))
    assert all(np.asarray(Image.open(file).convert("L")).std() > 5 for file in files)
    return {file.stem for file in files}


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def holds_key(*folders):
    """Files that hold the key, as it is or as JSON may write it."""
    spellings = [KEY.encode(), KEY.replace("/", "\\/").encode()]
    return [
        file
        for folder in folders
        for file in folder.rglob("*")
        if file.is_file() and any(key in file.read_bytes() for key in spellings)
    ]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of both layers with all variants; then the same again."""
    base = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NEURONYM_CACHE", str(base / "cache"))
        patch.setenv("NEURONYM_RESULTS", str(base / "results"))
        first = execute(figures=True, **WHOLE)
        table = read_labels(first.folder / "labels.parquet")
        again = execute(**WHOLE, ablation=False)
    return SimpleNamespace(base=base, first=first, table=table, again=again)


def test_what_a_run_leaves(whole):
    table, folder = whole.table, whole.first.folder
    assert set(table["method"]) == {"dnd", "soft_wpmi"} and set(table["rank"]) == {1, 2, 3}
    units = {"layer4": [0, 48, 96, 144], "fc": whole.first.chosen["fc"]}
    for method in ("dnd", "soft_wpmi"):
        best = table[(table["method"] == method) & (table["rank"] == 1)]
        assert {name: best[best["layer"] == name]["unit"].tolist() for name in units} == units
        assert best["label"].str.len().min() > 0
    candidates = pd.read_csv(folder / "candidates.csv")
    for (layer, unit), some in table[table["method"] == "dnd"].groupby(["layer", "unit"]):
        own = candidates[(candidates["layer"] == layer) & (candidates["unit"] == unit)]
        own = own.sort_values("score", ascending=False, kind="stable")
        assert some.sort_values("rank")["label"].tolist() == own["candidate"].head(3).tolist()
    assert drawn(folder) >= {
        "strips_layer4",
        "strips_fc",
        "methods",
        "ablation_correlation",
        "ablation_named",
    }
    assert {"methods_by_unit.csv", "methods_by_metric.csv", "groups.csv", "done"} <= {
        p.name for p in folder.iterdir()
    }
    recalled = pd.read_csv(folder / "candidate_recall.csv").set_index(["layer", "unit"])
    scored = pd.read_csv(folder / "methods_by_unit.csv").set_index(["layer", "unit"])
    for method, column in (("dnd", "correlation"), ("oracle", "word_correlation")):
        own = scored[scored["method"] == method]["correlation"]
        np.testing.assert_allclose(recalled[column], own.loc[recalled.index], atol=1e-4)
    shares = pd.read_csv(folder / "recall.csv").set_index("group")
    measured = json.loads((folder / "metrics.json").read_text())
    assert measured["final_as_good"] == pytest.approx(shares.loc["fc", "as_good"])
    diverse = pd.read_csv(folder / "diversity.csv").set_index(["layer", "method"])
    assert diverse.loc[("fc", "dnd"), "distinct_labels"] <= 6 and "oracle_distinct" in diverse
    assert 0 < whole.first.shares["layer4"] < 1


def test_the_ablation_has_every_part(whole):
    table = pd.read_csv(whole.first.folder / "ablation.csv")
    parts = {
        "all steps": 1,
        "crops": 2,
        "captions": 1,
        "candidates": 2,
        "summary": 1,
        "selection": 10,
        "pictures": 1,
        "as shipped": 2,
    }
    assert table.groupby(["metric", "group"]).size().to_dict() == {
        ("correlation", "inner layers"): 20,
        ("correlation", "fc"): 20,
        ("named", "fc"): 20,
    }
    one = table[(table["metric"] == "named")]
    assert one["part"].value_counts().to_dict() == parts and one["shuffled"].notna().all()
    units = pd.read_csv(whole.first.folder / "methods_by_unit.csv")
    own = units[(units["method"] == "dnd") & (units["layer"] == "fc")]["correlation"].mean()
    base = table[
        (table["metric"] == "correlation") & (table["group"] == "fc") & (table["part"] == "all steps")
    ]
    assert base["mean"].item() == pytest.approx(own)


def test_names_prune_units(whole):
    mine = whole.table[(whole.table["method"] == "dnd") & (whole.table["layer"] == "layer4")]
    table = pd.read_csv(whole.first.folder / "pruning.csv")
    assert set(table["word"]) == {"diamond|ni?ht", "gr*"} and "pruning" in drawn(whole.first.folder)
    for word, form in (("diamond|ni?ht", r"\b(?:diamonds?|night)\b"), ("gr*", r"\bgr")):
        named = mine[mine["label"].str.contains(form)]["unit"].nunique()
        some = table[(table["word"] == word) & (table["condition"] != "none")]
        assert (
            0 < named < 4 and set(some["condition"]) == {"named", "random"} and some["units"].eq(named).all()
        )


def test_the_same_again_asks_nothing(whole):
    again = whole.again
    assert again.folder != whole.first.folder and again.spent["asked"] == 0 < again.spent["replayed"]
    pd.testing.assert_frame_equal(read_labels(again.folder / "labels.parquet"), whole.table)


def test_a_run_is_replayed_from_its_own_transcript(whole, monkeypatch):
    def silent(name, *given, **more):
        loaded = captioners_load(name, *given, **more)
        loaded.caption = lambda pictures: pytest.fail("a replay asks nothing")
        return loaded

    captioners_load = captioners.load_captioner
    monkeypatch.setattr(captioners, "load_captioner", silent)
    own = whole.first.folder / "transcript.jsonl"
    keys = [line["key"] for line in lines(own)]
    assert len(keys) == len(set(keys)) == whole.first.spent["asked"]
    replayed = execute(**WHOLE, answers="replay", transcript=str(own))
    assert replayed.spent["asked"] == 0 and replayed.folder != whole.first.folder
    pd.testing.assert_frame_equal(read_labels(replayed.folder / "labels.parquet"), whole.table)
    pd.testing.assert_frame_equal(
        pd.read_csv(replayed.folder / "ablation.csv"), pd.read_csv(whole.first.folder / "ablation.csv")
    )
    assert (
        lines(replayed.folder / "transcript.jsonl") == lines(own)
        and not (results_dir() / "answers.jsonl").exists()
    )


def test_a_replay_that_lacks_answers_says_so(tmp_path):
    with pytest.raises(
        FileNotFoundError, match="a replay needs the answers of a run, and there is no .*none"
    ):
        execute(**SMALL, answers="replay", transcript=str(tmp_path / "none.jsonl"))
    (tmp_path / "none.jsonl").touch()
    with pytest.raises(
        LookupError, match="a replay asks nothing, and .* of kind 'caption' are not in .*none.jsonl"
    ):
        execute(**SMALL, answers="replay", transcript=str(tmp_path / "none.jsonl"))


@pytest.mark.parametrize(
    "given, error, message",
    [
        ({"selection": "cosine"}, ValueError, "'selection' must be one of balanced, agreed, simulate"),
        ({"captioner": "blimp:x"}, ValueError, "no kind 'blimp'; nearest: blip"),
        ({"captioner": "blip:/nowhere"}, FileNotFoundError, "no folder at /nowhere"),
        ({"llm": "hf"}, KeyError, "no llm 'hf'"),
        ({"llms": "hf:/nowhere"}, FileNotFoundError, "no folder at /nowhere"),
        ({"layers": "layer5", "smoke": False}, KeyError, "no layer 'layer5'"),
        ({"units": "4,x", "smoke": False}, ValueError, "units are all, a count, ids:"),
        ({"most_cost": 1.0}, ValueError, "most_cost needs prices"),
        ({"prices": "2"}, ValueError, "prices are two numbers"),
        ({"prices": "a,b"}, ValueError, "prices are two numbers, .* got a,b"),
        ({"transcript": "/no/answers.jsonl"}, FileNotFoundError, "stands in a folder that is there, /no is"),
        ({"max_tokens": 0}, ValueError, "'max_tokens' must be at least 1"),
        ({"budget": -1}, ValueError, "'budget' must be at least 0"),
        ({"answers": "again"}, ValueError, "'answers' must be one of record"),
        ({"prune": "sea; *"}, ValueError, "a part has no word in it"),
        ({"images": 0}, ValueError, "'images' must be at least 1"),
        (
            {"together": True},
            ValueError,
            "captioner=vlm:MODEL, got 'microworld'; name one, or together=False",
        ),
    ],
)
def test_bad_parameters_are_errors_before_work(given, error, message, monkeypatch):
    monkeypatch.setattr("neuronym.datasets.probe.load_probe", lambda *a, **k: pytest.fail("work began"))
    with pytest.raises(error, match=message):
        execute(**SMALL | given)
    assert not list(results_dir().rglob("labels.parquet")) and not (results_dir() / "answers.jsonl").exists()


def test_photos_need_a_judge(tmp_path):
    (tmp_path / "photos").mkdir()
    for i in range(4):
        Image.new("RGB", (64, 64), (40 * i, 90, 200)).save(tmp_path / "photos" / f"{i}.png")
    with pytest.raises(ValueError, match="without a judge; name another"):
        execute(**SMALL | {"probe": f"folder:{tmp_path / 'photos'}"})
    assert not (results_dir() / "answers.jsonl").exists()


def test_tiny_models_from_disk(tmp_path, diffusers, monkeypatch):
    """BLIP and Llama as save_pretrained leaves them, and a diffusers pipeline: only the weights differ for
    users.
    """
    given = {
        "captioner": f"blip:{save_blip(tmp_path / 'blip')}",
        "llm": save_llama(tmp_path / "llama", longest=1200),
        "generator": "diffusers:org/model@steps=2",
        "selection": "topk_compare",
        "captions_of": "examples",
    }
    made = execute(**SMALL | given | {"images": 2})
    table = read_labels(made.folder / "labels.parquet")
    best = table[(table["method"] == "dnd") & (table["rank"] == 1)]
    assert len(best) == 4 and best["label"].str.contains("word").all() and best["score"].notna().all()
    kinds = Counter((line["kind"], line["model"]) for line in lines(made.folder / "transcript.jsonl"))
    assert (
        set(kinds) == {("caption", given["captioner"]), ("llm", given["llm"])}
        and made.spent["prompt_tokens"] > 0
    )
    prompts = [prompt for call in diffusers.calls for prompt in call["prompt"]]
    assert {p.removeprefix("One realistic image of ") for p in prompts} == {
        text for layer in made.described.values() for some in layer.candidates.values() for text in some
    }


# servers

LABELS = [
    "<b>circle</b><script>alert(1)</script>",
    "a $x$ star, for $5_0",
    "red\nring",
    "night & <i>sea</i>",
    KEY,
    "plain moon",
]


@pytest.fixture
def server(monkeypatch):
    """A server that answers with one of LABELS, by what it is asked; `fails` may say which request fails."""
    log = SimpleNamespace(asked=[], fails=lambda n: None, refuses=lambda text: False, keys=set())
    lock = threading.Lock()

    def handle(request):
        text = read(request).decode()
        with lock:
            log.asked.append(text)
            log.keys.add(request.headers["Authorization"])
            status = log.fails(len(log.asked)) or (451 if log.refuses(text) else 200)
        said = LABELS[sum(map(ord, text)) % len(LABELS)]
        reply = {
            "choices": [{"message": {"content": said}}],
            "usage": {"prompt_tokens": 10, "completion_tokens": 3},
        }
        send(request, status, json.dumps(reply if status == 200 else {"error": {"message": f"broken {KEY}"}}))

    with serving(handle) as address:
        monkeypatch.setenv("OPENAI_BASE_URL", f"{address}/v1")
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        monkeypatch.setattr(chat_server, "FIRST_WAIT", 0.0)
        yield log


ASKING = SMALL | {"llm": "openai:some/model", "generator": "retrieval"}


def answered():
    """Answers of the language model that are kept."""
    return [line for line in lines(results_dir() / "answers.jsonl") if line["kind"] == "llm"]


def test_a_server_that_fails_and_heals(server, tmp_path):
    server.fails = lambda n: 500 if n > 5 else None
    with pytest.raises(
        ConnectionError, match=r"openai:some/model at .* in 5 tries: HTTP 500 \(broken \*\*\*\)"
    ):
        execute(**ASKING)
    kept = len(answered())
    assert kept == 5 and not list(results_dir().rglob("done"))
    first = len(server.asked)
    server.fails = lambda n: None
    made = execute(**ASKING)
    assert made.spent["asked"] == len(server.asked) - first == len(answered()) - kept > 0
    assert max(Counter(line["key"] for line in answered()).values()) == 1
    assert (made.folder / "done").exists() and server.keys == {f"Bearer {KEY}"}
    assert not holds_key(tmp_path)


def test_a_dry_run_asks_nothing(server, capsys):
    given = ASKING | {"captioner": "vlm:eyes", "prices": "2.5,10", "ablation": True, "dry_run": True}
    with pytest.raises(DryRun):
        execute(**given)
    told = capsys.readouterr().out
    assert (
        "vlm:eyes: " in told and "openai:some/model: " in told and "in all: " in told and "at most $" in told
    )
    (folder,) = (p.parent for p in results_dir().glob("describe_and_dissect/*/done"))
    measured = json.loads((folder / "metrics.json").read_text())
    assert measured["requests"] > 40 and not server.asked and not list(results_dir().rglob("labels.*"))
    assert {line["model"] for line in lines(results_dir() / "answers.jsonl")} == {"clip_words"}, (
        "costs nothing"
    )


def test_units_of_which_a_server_says_nothing_are_left_out(server, capsys):
    """A vision model that refuses all pictures of some units: the run goes on with the others."""
    server.refuses = lambda text: "image_url" in text and sum(map(ord, text.split("base64,")[1][:9999])) % 2
    made = execute(**ASKING | {"captioner": "vlm:eyes", "images": 1, "crops": 0})
    printed = capsys.readouterr().err
    assert (
        "filtered" in printed
        and "are left out, since no caption of theirs came" in printed
        and (made.folder / "done").exists()
    )
    assert made.spent["left_out"] > 0
    table = read_labels(made.folder / "labels.parquet")
    for layer, units in made.chosen.items():
        mine = table[(table["layer"] == layer) & (table["method"] == "dnd")]
        assert sorted(set(mine["unit"])) == sorted(units)


def test_all_examples_of_a_unit_in_one_request(server, capsys):
    """As many requests as units, none for ordinary images, and the dry run says so beforehand."""
    alone = {"captioner": "vlm:eyes", "together": True, "llm": "extractive", "generator": "retrieval"}
    alone = SMALL | alone | {"captions_of": "examples", "selection": "simulate", "crops": 0}
    with pytest.raises(DryRun):
        execute(**alone, dry_run=True)
    assert "vlm:eyes: 4 requests, about " in capsys.readouterr().out and not server.asked
    made = execute(**alone)
    assert len(server.asked) == made.spent["asked"] == 4
    assert all(text.count("image_url") == 2 * 4 for text in server.asked), "a type and a place a picture"
    found = {text for layer in made.described.values() for some in layer.candidates.values() for text in some}
    assert found <= {
        "plain moon",
        "red",
        "ring",
        "for $5_0",
        "a $x$ star",
        "night & <i>sea</i>",
        KEY.lower(),
    } | {label for label in found if "circle" in label or label == "***"}
    table = pd.read_csv(made.folder / "recall.csv")
    assert table["group"].tolist() == ["inner layers", "fc"] and table["units"].tolist() == [2, 2]


def test_a_budget_that_is_reached_and_raised(server, tmp_path):
    with pytest.raises(
        BudgetReached, match="budget=4 is reached by 4 answers of 40 .* which cost .*raise budget"
    ):
        execute(**ASKING, budget=4, prices="2.5,10")
    assert len(server.asked) == len(answered()) == 4
    made = execute(**ASKING, budget=500, prices="2.5,10")
    assert made.spent["asked"] == len(server.asked) - 4 == len(answered()) - 4
    assert made.spent["cost"] == pytest.approx(made.spent["asked"] * (10 * 2.5 + 3 * 10) / 1e6)
    assert not holds_key(tmp_path)


def test_labels_are_shown_as_text(server, tmp_path):
    """In a kernel, as users run it: what a model says is nowhere markup, and the key that it repeats is
    gone.
    """
    done = run("describe_and_dissect", *(str(word) for k, v in ASKING.items() for word in ("-p", k, v)))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (folder,) = (p.parent for p in results_dir().glob("describe_and_dissect/*/done"))
    table = read_labels(folder / "labels.parquet")
    mine = " ".join(table[table["method"] == "dnd"]["label"])
    assert "<script>" in mine and "<i>sea</i>" in mine and "\n" not in mine, "labels are what the model said"
    outputs = [
        out
        for cell in json.loads((folder / "notebook.ipynb").read_text())["cells"]
        for out in cell.get("outputs", ())
    ]
    html = [
        "".join(out["data"][kind])
        for out in outputs
        for kind in ("text/html", "text/markdown", "text/latex", "image/svg+xml")
        if kind in out.get("data", {})
    ]
    assert html and not any(part in text for text in html for part in ("<script", "<b>circle", "<i>sea"))
    assert drawn(folder) >= {"strips_fc", "methods"}
    assert not holds_key(tmp_path) and KEY not in done.stdout + done.stderr
    assert "***" in {line["answer"] for line in answered()}
