"""Bad parameters: one sentence, before the work, and no run folder.

What the command itself finds is asked in this process; what only networks and files tell is asked in a
process that runs the notebook's cells up to the first that works; some go through the real command.
"""

from __future__ import annotations

import os
import shlex

import pytest
from PIL import Image

from neuronym.runs.checks import WRONG
from neuronym.runs.command import main, resolve
from neuronym.runs.execute import BEFORE, SENTENCES
from tests.helpers.notebooks import command

LABEL, TRUST, EVAL, DESCRIBE, SECOND, WORLD, DATA = (
    "labelling",
    "trust",
    "evaluation",
    "describe_and_dissect",
    "second_order",
    "microworld",
    "data_analysis",
)
KINDLESS = "a name begins with its kind"
SEED = "must be a seed from 0 to 4294967295"
AT_ONCE = f"""
{LABEL}     | nothing 1                              | no parameter of labelling 'nothing'
{LABEL}     | topk 5                                 | nearest: top_k
{LABEL}     | target openai:ViT-B/32                 | no kind 'openai'
{LABEL}     | target hf:org/x                        | no kind 'hf'
{LABEL}     | target resnet18                        | {KINDLESS}, got 'resnet18'; write torchvision:resnet18
{LABEL}     | target torchvision:resnet999           | no torchvision network 'resnet999'; nearest: resnet50
{LABEL}     | target microworld:vit@/nowhere         | no file of weights at /nowhere
{LABEL}     | target microworld                      | no microworld target ''
{LABEL}     | target ''                              | 'target' must not be empty
{LABEL}     | layers ''                              | 'layers' must not be empty
{LABEL}     | probe ''                               | 'probe' must not be empty
{LABEL}     | probe folder:/nowhere                  | no folder at /nowhere
{LABEL}     | probe folder:TMP/none                  | no images in TMP/none or below
{LABEL}     | probe folder:TMP/texts                 | no images in TMP/texts or below
{LABEL}     | probe folder:                          | folder: takes a path
{LABEL}     | probe folder:~nobody_of_that_name/a    | no folder at
{LABEL}     | probe microworld:0                     | takes a number of images from 1 to 10000000, got '0'
{LABEL}     | probe microworld:-5                    | got '-5'
{LABEL}     | probe microworld:1e9                   | got '1e9'
{LABEL}     | probe microworld:9999999999999         | got '9999999999999'
{LABEL}     | probe microworld:5+                    | got '5+'
{LABEL}     | concepts ''                            | 'concepts' must not be empty
{LABEL}     | concepts file:/nowhere                 | no file at /nowhere
{LABEL}     | concepts file:TMP/empty.txt            | concept set 'file:TMP/empty.txt' is empty
{LABEL}     | concepts file:TMP/blank.txt            | is empty
{LABEL}     | concepts file:TMP/binary.txt           | TMP/binary.txt is not UTF-8 text
{LABEL}     | concepts file:TMP/none                 | no file at TMP/none
{LABEL}     | concepts english:x                     | english:<n> takes a number of words
{LABEL}     | concepts english:0                     | english:<n> takes a number of words
{LABEL}     | clip ''                                | 'clip' must not be empty
{LABEL}     | clip torchvision:resnet50              | no kind 'torchvision'
{LABEL}     | clip openai:ViT-Z                      | no openai-clip model 'ViT-Z'; nearest: ViT-L/14
{LABEL}     | clip hf:/nowhere                       | no folder at /nowhere
{LABEL}     | clip open_clip:nope                    | open_clip
{LABEL}     | clip microworld:x                      | no microworld clip 'x'
{LABEL}     | similarity cosine                      | must be one of cos_similarity
{LABEL}     | units label:                           | label: needs a word
{LABEL}     | pooling median                         | 'pooling' must be one of auto, avg, max, share, cls
{LABEL}     | template 'a photo'                     | a template holds {{}} once
{LABEL}     | template ''                            | 'template' must not be empty
{LABEL}     | template '{{}} {{}}'                   | a template holds {{}} once
{LABEL}     | template '{{x}}'                       | a template holds {{}} once
{LABEL}     | top_k 0                                | 'top_k' must be at least 1, got 0
{LABEL}     | top_k nan                              | 'top_k' must be int, got 'nan'
{LABEL}     | top_k 2.5                              | 'top_k' must be int, got '2.5'
{LABEL}     | top_k 99999999999999999999             | at most 18 digits
{LABEL}     | limit -1                               | 'limit' must be at least 0
{LABEL}     | limit inf                              | 'limit' must be int, got 'inf'
{LABEL}     | on_error ignore                        | 'on_error' must be one of raise, skip
{LABEL}     | sentences bert                         | no kind 'bert'
{LABEL}     | sentences st:/nowhere                  | no folder at /nowhere
{LABEL}     | cards_per_layer -1                     | must be at least 0
{LABEL}     | precision int8                         | must be one of float32
{LABEL}     | batch_size 0                           | must be at least 1
{LABEL}     | memory lots                            | 'memory' must be int
{LABEL}     | smoke maybe                            | 'smoke' must be bool, got 'maybe'
{LABEL}     | device ''                              | 'device' must not be empty
{LABEL}     | seed 99999999999999999999              | {SEED}, got 99999999999999999999
{LABEL}     | seed -1                                | {SEED}, got -1
{LABEL}     | seed 1.5                               | 'seed' must be int
{WORLD}     | seed 99999999999999999999              | {SEED}
{WORLD}     | train_scenes -1                        | must be at least 0
{WORLD}     | retrain x                              | must be bool
{DATA}      | seed -1                                | {SEED}
{DATA}      | sentences bogus                        | no kind 'bogus'
{DATA}      | shifts 0                               | must be at least 1
{TRUST}     | seed 99999999999999999999              | {SEED}
{TRUST}     | probe microworld:5                     | names take at least 4 images, and 4 held out, got 3
{TRUST}     | probe microworld:1                     | leaves images to name from and to test with
{TRUST}     | held_out 0                             | share above 0 and below 1
{TRUST}     | held_out nan                           | 'held_out' must be float, got 'nan'
{TRUST}     | held_out inf                           | 'held_out' must be float, got 'inf'
{TRUST}     | level 0                                | share above 0 and below 1, such as 0.05, got 0.0
{TRUST}     | level 2                                | share above 0 and below 1
{TRUST}     | correction bonferroni                  | must be one of bh, holm, none
{TRUST}     | draws 5                                | must be at least 20
{TRUST}     | noise -1                               | a share of full scale from 0 to 1, got -1.0
{TRUST}     | noise 1e300                            | a share of full scale
{TRUST}     | templates 'no braces'                  | a template holds {{}} once
{TRUST}     | templates 'a {{}},b'                   | got 'b' for 'templates'
{TRUST}     | good 5                                 | 'good' must be a share from 0 to 1
{TRUST}     | sizes a,b                              | numbers of images from 1
{TRUST}     | sizes 3.5                              | got '3.5'
{TRUST}     | clips microworld:vit,timm:resnet18     | no kind 'timm'
{EVAL}      | clips x:y                              | no kind 'x'
{TRUST}     | clusters 0                             | must be at least 1
{EVAL}      | probe microworld:1                     | leaves images to name from and to test with
{EVAL}      | probe folder:TMP/photos                | without a judge; name another
{EVAL}      | held_out 1                             | share above 0 and below 1
{EVAL}      | sizes 10,-1                            | got '-1'
{EVAL}      | generator bogus                        | no kind 'bogus'
{EVAL}      | judge torchvision:resnet18             | no kind 'torchvision'
{EVAL}      | sentences word2vec                     | no kind 'word2vec'
{EVAL}      | terms 0                                | must be at least 1
{DESCRIBE}  | prices a,b                             | prices are two numbers
{DESCRIBE}  | prices 1                               | prices are two numbers
{DESCRIBE}  | prices -1,2                            | prices are two numbers
{DESCRIBE}  | prices nan,1                           | prices are two numbers
{DESCRIBE}  | most_cost -1                           | of at least 0
{DESCRIBE}  | most_cost nan                          | 'most_cost' must be float
{DESCRIBE}  | most_cost 1                            | most_cost needs prices
{DESCRIBE}  | transcript /nowhere/answers.jsonl      | a transcript stands in a folder that is there
{DESCRIBE}  | transcript TMP/none                    | a transcript is a file, TMP/none is a folder
{DESCRIBE}  | captioner bogus                        | no kind 'bogus'
{DESCRIBE}  | captioner blip:/nowhere                | no folder at /nowhere
{DESCRIBE}  | captioner ''                           | 'captioner' must not be empty
{DESCRIBE}  | llm gpt-4                              | {KINDLESS}, got 'gpt-4'; write openai:gpt-4
{DESCRIBE}  | llm hf:/nowhere                        | no folder at /nowhere
{DESCRIBE}  | llm gguf:/nowhere.gguf                 | no file of weights at /nowhere.gguf
{DESCRIBE}  | llms bogus                             | no kind 'bogus'
{DESCRIBE}  | answers again                          | must be one of record, replay, live
{DESCRIBE}  | budget -1                              | must be at least 0
{DESCRIBE}  | pruned_to x                            | must be one of zero, mean
{DESCRIBE}  | selection best                         | must be one of
{DESCRIBE}  | together true                          | captioner=vlm:MODEL, got 'microworld'
{DESCRIBE}  | units layer4=label:                    | label: needs a word
{SECOND}    | clip conse:microworld:resnet           | no kind 'conse'
{SECOND}    | layer -1                               | must be at least 0
{SECOND}    | readout_layers a                       | numbers of layers counted from 0
{SECOND}    | readout_layers 1,,2                    | numbers of layers counted from 0
{SECOND}    | prompts file:/nowhere                  | no file of prompts at /nowhere
{SECOND}    | prompts 'no braces'                    | a template holds {{}} once
{SECOND}    | prompts ''                             | must not be empty
{SECOND}    | task bogus                             | no kind 'bogus'
{SECOND}    | writer bogus                           | no kind 'bogus'
{SECOND}    | pools bogus                            | no kind 'bogus'
{SECOND}    | masks photos                           | no kind 'photos'
{SECOND}    | mask_classes bogus                     | no kind 'bogus'
{SECOND}    | generator retrieval                    | no kind 'retrieval'
{DATA}      | clip torchvision:resnet18              | no kind 'torchvision'
{DATA}      | class_names bogus                      | no kind 'bogus'
{SECOND}    | text_norm l2                           | must be one of unit
{SECOND}    | top 1                                  | must be at least 2
{SECOND}    | memory -1                              | must be at least 0
{LABEL}     | units -1                               | units are all, a count, ids:3,17,42
{LABEL}     | units bogus smoke true                 | got 'bogus'
{TRUST}     | units -1 smoke true                    | got '-1'
{EVAL}      | units bogus smoke true                 | got 'bogus'
{DESCRIBE}  | units bogus smoke true                 | got 'bogus'
{SECOND}    | units -1 smoke true                    | got '-1'
"""
LOADED = f"""
{LABEL}     | target os:system                       | got 'os:system' of Python's own library
{LABEL}     | target json:loads                      | got 'json:loads' of Python's own library
{TRUST}     | target os:system                       | Python's own library
{EVAL}      | target json:loads                      | Python's own library
{DESCRIBE}  | target os:system                       | Python's own library
{LABEL}     | target torch.nn:Linear                 | takes no arguments, 'torch.nn:Linear' needs in_features
{LABEL}     | target no_such_module:f                | no target 'no_such_module:f'
{LABEL}     | target torchvision:resnet18@TMP/w.pt   | TMP/w.pt is not a file of weights
{LABEL}     | target torchvision:resnet18@NOPE       | no weights of torchvision:resnet18 'NOPE'
{LABEL}     | target torchvision:resnet18@random:x   | random weights take a whole number as seed
{LABEL}     | target microworld:vit@TMP/none         | microworld weights not found at TMP/none
{LABEL}     | target places365:resnet50              | no places365 target 'resnet50'
{LABEL}     | layers layer5                          | no layer 'layer5'; nearest: layer4
{LABEL}     | layers x*                              | no layer 'x*'
{LABEL}     | layers ,                               | no layers named in ','
{LABEL}     | clip openai:ViT-B/32@/etc/passwd       | /etc/passwd is not a file of weights
{SECOND}    | clip openai:ViT-B/32@/etc/passwd       | /etc/passwd is not a file of weights
{LABEL}     | clip conse:openai:RN50                 | no target 'openai:RN50'
{LABEL}     | units ids:9999                         | has units 0 to 23, got 9999
{LABEL}     | units layer9=3                         | no layer 'layer9'
{LABEL}     | device cpu:7                           | device is auto, cpu, cuda or cuda:N, got 'cpu:7'
{LABEL}     | device tpu                             | device is auto, cpu, cuda or cuda:N, got 'tpu'
{LABEL}     | device cuda:77                         | device 'cuda:77' cannot be used here
{EVAL}      | units label:dog                        | label:dog needs labels to look in
{DESCRIBE}  | captioner vlm:                         | no captioner 'vlm:'
{DESCRIBE}  | prune ;*                               | has no word in it
{SECOND}    | clip microworld:rn layer 3             | a ResNet reads its last layer
{SECOND}    | layer 99 smoke true                    | there is no layer 99
{SECOND}    | layers 99 smoke true                   | there is no layer 99
{SECOND}    | readout_layers 99                      | there is no layer 99
{SECOND}    | prompts file:TMP/binary.txt            | is not UTF-8 text
{SECOND}    | task folder:TMP/photos smoke true      | has none; put images into a folder for each class
{SECOND}    | pairs frog                             | wrong<drawn
"""
THROUGH_THE_COMMAND = f"""
{LABEL}     | target os:system                       | Python's own library
{SECOND}    | layer 99 smoke true                    | there is no layer 99
"""


def rows(table: str) -> list[tuple[str, str, str]]:
    return [tuple(part.strip() for part in line.split("|", 2)) for line in table.strip().splitlines()]


def given(words: str, folder) -> list[tuple[str, str]]:
    parts = shlex.split(words.replace("TMP", str(folder)))
    return list(zip(parts[::2], parts[1::2]))


@pytest.fixture
def files(tmp_path):
    """A folder of files that nobody wants."""
    folder = tmp_path / "files"
    for name in ("none", "texts", "photos"):
        (folder / name).mkdir(parents=True)
    (folder / "empty.txt").write_text("")
    (folder / "blank.txt").write_text("\n \n")
    (folder / "binary.txt").write_bytes(bytes(range(128, 256)))
    (folder / "w.pt").write_bytes(b"no weights")
    (folder / "texts" / "a.txt").write_text("cat")
    for i in range(4):
        Image.new("RGB", (64, 64), (40 * i, 90, 200)).save(folder / "photos" / f"{i}.png")
    return folder


def checked(said: str, words: str, folder) -> None:
    """One sentence, with the words that it must have."""
    assert words.replace("TMP", str(folder)) in said, said
    assert len(said.splitlines()) == 1 and "Traceback" not in said and len(said) < 1000, said


def test_what_the_command_refuses_at_once(files, tmp_path, trial):
    for notebook, values, words in rows(AT_ONCE):
        with trial("bad parameters"):
            said = f"{notebook} took {values}"
            try:
                resolve(notebook, given(values, files))
            except WRONG as error:
                said = str(error)
            checked(said, words, files)
            assert not (tmp_path / "results").exists() and not (tmp_path / "cache").exists()


def test_what_is_refused_when_it_is_loaded(files, tmp_path, trial, trials, nursery):
    """Errors of the cells that come before all work, of the kinds that the command prints as one sentence."""
    for i, (notebook, values, words) in enumerate(trials(rows(LOADED)[::2], rows(LOADED))):
        with trial("bad parameters"):
            log = tmp_path / f"log {i}"
            _, params = resolve(notebook, given(values, files))
            ended = nursery.run(notebook, params, log, load_only=True, HF_HUB_OFFLINE="1")
            assert ended == 1, f"{notebook} took {values}"
            lines = log.read_text().splitlines()
            kind, _, said = lines[-1].partition(": ")
            checked(said, words, files)
            assert kind.rpartition(".")[2] in SENTENCES, kind
            frames = [line for line in lines if line.startswith('  File "')]
            assert "utils/neuronym/" in frames[-1], frames[-1]
    assert BEFORE == ("Setup", "Load")


def test_through_the_command(files, tmp_path, trial, trials):
    for notebook, values, words in trials(rows(THROUGH_THE_COMMAND)[:2], rows(THROUGH_THE_COMMAND)):
        with trial("bad parameters"):
            call = [word for pair in given(values, files) for word in ("-p", *pair)]
            done = command(notebook, *call)
            assert done.returncode == 2 and "Traceback" not in done.stdout + done.stderr
            last = done.stderr.splitlines()[-1]
            assert last.startswith("error: ")
            checked(last, words, files)
            assert not list((tmp_path / "results").glob("*/*"))


def test_results_that_cannot_be_written(files, tmp_path, trial, monkeypatch, capsys):
    """Tests may run as root, who may write anywhere: a file stands in for the folder, or for one above."""
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", tmp_path / "file" / "results"):
        with trial("bad parameters"):
            monkeypatch.setenv("NEURONYM_RESULTS", str(place))
            assert main(["labelling", "-p", "smoke", "true"]) == 2
            said = capsys.readouterr().err
            checked(said, "results must be writable", files)
    with trial("bad parameters"):
        monkeypatch.setenv("NEURONYM_RESULTS", str(tmp_path / "results"))
        monkeypatch.setattr(os, "access", lambda path, mode: False)
        assert main(["labelling", "-p", "smoke", "true"]) == 2
        checked(capsys.readouterr().err, "results must be writable", files)
