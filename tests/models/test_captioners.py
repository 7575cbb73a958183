"""neuronym.models.captioners: tiny random BLIPs saved to disk, CLIP words by loops, a server on loopback
(test_blip: our own).
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import shutil
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from neuronym.common.checks import UnknownName
from neuronym.models import captioners
from neuronym.models.captioners import load_captioner, MOST_TOKENS, nearest, picture_key, PROMPT
from neuronym.models.weights import random_start
from tests.helpers.blip import image_processor, save_blip, tokenizer, VISION, WORDS
from tests.helpers.servers import read, send, serving

KEY = "sk-test-0123/456789+secret"


def picture(seed, size=(23, 17)):
    noise = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(noise)


PICTURES = [picture(seed, (20 + seed, 17)) for seed in range(5)]


def save_blip2(folder, seed=0):
    """A random BLIP-2 over OPT with a processor."""
    from transformers import Blip2Config, Blip2ForConditionalGeneration, Blip2Processor, OPTConfig

    processor = Blip2Processor(image_processor(), tokenizer(), num_query_tokens=3)
    image = processor.tokenizer.convert_tokens_to_ids("<image>")
    text = OPTConfig(
        vocab_size=len(processor.tokenizer),
        hidden_size=12,
        ffn_dim=20,
        num_hidden_layers=2,
        num_attention_heads=2,
        word_embed_proj_dim=12,
        max_position_embeddings=64,
        bos_token_id=2,
        eos_token_id=3,
        pad_token_id=0,
        init_std=0.5,
    )
    former = {
        "hidden_size": 12,
        "intermediate_size": 20,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "encoder_hidden_size": 12,
        "initializer_range": 0.5,
    }
    with random_start(seed):
        model = Blip2ForConditionalGeneration(
            Blip2Config(
                vision_config=VISION,
                qformer_config=former,
                text_config=text.to_dict(),
                num_query_tokens=3,
                image_token_index=image,
                initializer_range=0.5,
            )
        )
        torch.nn.init.normal_(model.query_tokens)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def blip(tmp_path_factory):
    return save_blip(tmp_path_factory.mktemp("blip"))


@pytest.fixture(scope="module")
def blip2(tmp_path_factory):
    return save_blip2(tmp_path_factory.mktemp("blip2"))


@pytest.mark.parametrize("kind", ["blip", "blip2"])
def test_blips_from_disk_caption_pictures_in_batches_or_alone(kind, request, monkeypatch):
    captioner = load_captioner(f"{kind}:{request.getfixturevalue(kind)}")
    alone = [captioner.caption([p])[0] for p in PICTURES]
    assert captioner.name.startswith(f"{kind}:/") and len(captioner.key) == 16
    assert all(
        4 <= len(text.split()) <= 32 and set(text.split()) <= set(WORDS) | {"<image>"} for text in alone
    )
    assert len(set(alone)) > 1, "a captioner looks at the picture"
    assert not any("<" in text or "[" in text for text in alone), "no special token"
    passes = []
    monkeypatch.setattr(captioners, "BATCH", 2)
    monkeypatch.setattr(
        captioners,
        "_batches",
        lambda p, real=captioners._batches: (passes.append(len(some)) or some for some in real(p)),
    )
    assert captioner.caption(PICTURES) == alone and passes == [2, 2, 1], "each picture once, field.md 3.3 #18"
    assert captioner.caption(PICTURES[::-1]) == alone[::-1] and captioner.caption([]) == []


def test_blip_says_what_its_network_says_word_by_word(blip):
    """Greedy decoding by loops: the likeliest word each time, no end before four words, at most 32."""
    from transformers import AutoProcessor, BlipForConditionalGeneration

    model = BlipForConditionalGeneration.from_pretrained(blip).eval()
    processor = AutoProcessor.from_pretrained(blip, backend="pil")
    said = load_captioner(f"blip:{blip}").caption(PICTURES)
    for one, text in zip(PICTURES, said):
        pixels = processor(images=one, return_tensors="pt")["pixel_values"]
        ids = [5]
        for i in range(32):
            with torch.no_grad():
                logits = model(pixel_values=pixels, input_ids=torch.tensor([ids])).logits[0, -1]
            if i < 4:
                logits[3] = -torch.inf
            ids.append(int(logits.argmax()))
            if ids[-1] == 3:
                break
        assert text == " ".join(processor.tokenizer.decode(ids, skip_special_tokens=True).split())


def test_the_shortest_caption_has_four_words(tmp_path):
    """A network that ends at once must go on to the minimum length; one that never ends stops at 32."""
    for end, words in ((1e4, 4), (-1e4, 32)):
        captioner = load_captioner(f"blip:{save_blip(tmp_path / str(words), end=end)}")
        assert [len(text.split()) for text in captioner.caption(PICTURES)] == [words] * 5


def test_key_changes_with_weights_pictures_size_and_beams(blip, tmp_path):
    options = [{}, {"seed": 1}, {"size": 24}, {"num_beams": 3}]
    folders = [save_blip(tmp_path / str(i), **option) for i, option in enumerate(options)]
    loaded = [load_captioner(f"blip:{folder}") for folder in folders]
    assert len({c.key for c in loaded}) == 4 and load_captioner(f"blip:{blip}").key == loaded[0].key
    assert loaded[0].caption(PICTURES) != loaded[1].caption(PICTURES)


def test_absent_weights(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for kind in ("blip", "blip2"):
        said = rf"{kind}:/.*/nowhere could not be loaded \(.*folder as {kind}:PATH"
        with pytest.raises(FileNotFoundError, match=said):
            load_captioner(f"{kind}:~/nowhere")
    with pytest.raises(FileNotFoundError, match="microworld weights not found at .*captioner.safetensors"):
        load_captioner(f"microworld@{tmp_path}")


def test_another_kind_of_checkpoint_is_refused(blip, blip2):
    with pytest.raises(ValueError, match="blip:ID takes a checkpoint of type blip, got blip-2 from"):
        load_captioner(f"blip:{blip2}")
    with pytest.raises(ValueError, match="blip2:ID takes a checkpoint of type blip-2, got blip from"):
        load_captioner(f"blip2:{blip}")


def test_a_checkpoint_without_its_decoder_is_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    folder = save_blip(tmp_path / "a")
    weights = load_file(folder / "model.safetensors")
    save_file(
        {k: v for k, v in weights.items() if ".layer.1." not in k},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    with pytest.raises(
        ValueError, match=r"must hold all weights of a captioner, and lacks \d+ \(text_decoder"
    ):
        load_captioner(f"blip:{folder}")


def toy_clip(d=3, key="k"):
    """Pictures are embedded by their mean colour, words by numbers in their names."""

    def unit(rows):
        return torch.nn.functional.normalize(torch.tensor(rows, dtype=torch.float32), dim=1)

    def encode_text(texts):
        return unit([[float(x) for x in text.split()[1:]] for text in texts])

    return SimpleNamespace(
        name="toy",
        weights_key=key,
        text_key=key,
        preprocess_spec="mean",
        encode_text=encode_text,
        encode_image=lambda batch: torch.nn.functional.normalize(batch, dim=1),
        preprocess=lambda p: torch.from_numpy(np.asarray(p).astype(np.float32)).mean((0, 1)),
    )


def test_clip_words_literally():
    dice = np.random.default_rng(3)
    words = [f"w{i} " + " ".join(f"{v:.3f}" for v in dice.random(3)) for i in range(11)]
    colours = [Image.new("RGB", (5, 4), tuple(int(v) for v in dice.integers(1, 255, 3))) for _ in range(23)]
    expected = []
    for colour in colours:
        x = np.asarray(colour, dtype=np.float64).mean((0, 1))
        cosines = []
        for word in words:
            t = [float(v) for v in word.split()[1:]]
            cosines.append(
                sum(a * b for a, b in zip(x, t)) / (sum(a * a for a in x) * sum(b * b for b in t)) ** 0.5
            )
        expected.append(words[cosines.index(max(cosines))])
    captioner = load_captioner("clip_words", clip=toy_clip(), words=words)
    assert captioner.caption(colours) == expected and len(set(expected)) > 3
    assert [captioner.caption([c])[0] for c in colours] == expected


def test_clip_words_of_equal_products_take_the_first():
    words = ["a 1 0 0", "b 0 1 0", "c 0 2 0", "d 0 1 0"]
    green = Image.new("RGB", (3, 3), (0, 200, 0))
    assert load_captioner("clip_words", clip=toy_clip(), words=words).caption([green]) == ["b 0 1 0"]
    I, T = (
        torch.tensor([[0.0, 1.0], [1.0, 0.0]]),
        torch.tensor([[0.0, 1.0], [0.0, 1.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]),
    )
    assert all(nearest(I, T, block).tolist() == [0, 2] for block in (1, 2, 3, 5, 9))


def test_key_of_clip_words_changes_with_words_and_clip():
    words = ["a 1 0 0", "b 0 1 0"]
    keys = [
        load_captioner("clip_words", clip=clip, words=some).key
        for clip, some in (
            (toy_clip(), words),
            (toy_clip(key="other"), words),
            (toy_clip(), words[::-1]),
            (toy_clip(), words[:1]),
        )
    ]
    assert len(set(keys)) == 4


@pytest.mark.parametrize(
    "given, said",
    [
        ({}, "got none and 0 words"),
        ({"words": ["a 1 0 0"]}, "got none and 1 words"),
        ({"clip": toy_clip()}, "got a CLIP and 0 words"),
    ],
)
def test_clip_words_need_a_clip_and_words(given, said):
    with pytest.raises(ValueError, match=f"clip_words takes a CLIP and words, {said}"):
        load_captioner("clip_words", **given)


@pytest.fixture
def server(monkeypatch):
    """Says the size of the picture it was sent; `script` comes first, one entry a request; no wait takes
    time.
    """
    log = SimpleNamespace(script=[], bodies=[], lock=threading.Lock())

    def handle(request):
        body = json.loads(read(request))
        with log.lock:
            log.bodies.append(body)
            status, reply = log.script.pop(0) if log.script else (200, None)
        if reply is None:
            url = body["messages"][0]["content"][1]["image_url"]["url"]
            sent = Image.open(io.BytesIO(base64.b64decode(url.removeprefix("data:image/png;base64,"))))
            text = f" a picture\nof {sent.size} {picture_key(sent)}"
            reply = json.dumps({"choices": [{"message": {"content": text}}]})
        send(request, status, reply)

    with serving(handle) as address:
        monkeypatch.setenv("OPENAI_BASE_URL", f"{address}/v1")
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        monkeypatch.setattr("time.sleep", lambda seconds: None)
        yield log


def test_a_server_is_sent_the_picture_itself(server):
    captioner = load_captioner("vlm:some/model")
    expected = [f"a picture of {p.size} {picture_key(p)}" for p in PICTURES]
    assert captioner.caption(PICTURES) == expected and captioner.caption(PICTURES[:1]) == expected[:1]
    (body,) = server.bodies[5:]
    assert (
        body["model"] == "some/model"
        and body["max_tokens"] == MOST_TOKENS == 300
        and body["temperature"] == 0
    )
    (message,) = body["messages"]
    assert message["role"] == "user" and message["content"][0] == {"type": "text", "text": PROMPT}
    assert KEY not in captioner.key + repr(captioner)


def test_a_busy_server_is_asked_again(server):
    server.script = [(429, "slow down"), (503, "")]
    expected = f"a picture of {PICTURES[0].size} {picture_key(PICTURES[0])}"
    assert load_captioner("vlm:m").caption(PICTURES[:1]) == [expected]
    assert len(server.bodies) == 3


def test_a_server_that_fails(server):
    server.script = [(401, json.dumps({"error": {"message": f"wrong key {KEY}"}}))]
    with pytest.raises(PermissionError) as caught:
        load_captioner("vlm:m").caption(PICTURES[:1])
    assert KEY not in str(caught.value) and "***" in str(caught.value)
    server.script = [(500, "broken")] * 400
    asked = len(server.bodies)
    with pytest.raises(ConnectionError, match="gave no answer in 2 tries: HTTP 500"):
        load_captioner("vlm:m", tries=2).caption([picture(i) for i in range(200)])
    assert len(server.bodies) - asked < 400, "what was not yet asked is not asked any more"
    server.script = [(200, "<html>")] * 2
    with pytest.raises(ConnectionError, match="HTTP 200 without a chat completion"):
        load_captioner("vlm:m", tries=2).caption(PICTURES[:1])


def test_key_of_a_server(server, monkeypatch):
    keys = [load_captioner("vlm:m").key, load_captioner("vlm:n").key]
    monkeypatch.setattr(captioners, "PROMPT", "what is this?")
    keys.append(load_captioner("vlm:m").key)
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:1/v1")
    keys.append(load_captioner("vlm:m").key)
    assert len(set(keys)) == 4


def test_picture_key_is_of_size_and_pixels():
    one = picture(0, (6, 4))
    by_hand = hashlib.sha256(b"6 x 4 " + np.asarray(one).tobytes()).hexdigest()[:16]
    assert picture_key(one) == picture_key(one.copy()) == by_hand == picture_key(one.convert("RGBA"))
    turned = Image.fromarray(np.asarray(one).reshape(6, 4, 3))  # the same bytes
    changed = one.copy()
    changed.putpixel((5, 3), (1, 2, 3))
    assert len({picture_key(p) for p in (one, turned, changed)}) == 3


@pytest.mark.parametrize(
    "name", ["blipp:x", "blip:", "blip", "blip2:", "vlm:", "clip_words:x", "microworld:x", "microworlds", ""]
)
def test_names_that_are_none(name):
    with pytest.raises(
        UnknownName, match=f"no captioner '{name}'.*microworld, microworld@FOLDER, blip:ID, blip2:ID"
    ):
        load_captioner(name)


@pytest.mark.parametrize("given", [PICTURES[0], "picture.png", ["picture.png"], np.zeros((2, 3, 4))])
def test_what_is_no_list_of_pictures(given):
    with pytest.raises(
        ValueError, match="a captioner takes a list of PIL pictures, got .*; wrap one picture"
    ):
        load_captioner("clip_words", clip=toy_clip(), words=["a 1 0 0"]).caption(given)


def test_blip2_of_before_image_tokens_captions_alike(blip2, tmp_path):
    shutil.copytree(blip2, tmp_path, dirs_exist_ok=True)
    for name in [tmp_path / "config.json", *tmp_path.glob("*processor*config*.json")]:
        settings = json.loads(name.read_text())
        for key in ("image_token_index", "image_token_id"):
            settings.pop(key, None)
        if name.name != "config.json":
            settings.pop("num_query_tokens", None)
        name.write_text(json.dumps(settings))
    now, before = (load_captioner(f"blip2:{folder}").caption(PICTURES) for folder in (blip2, tmp_path))
    assert before == now
    settings = json.loads((tmp_path / "config.json").read_text())
    settings["text_config"] |= {"pad_token_id": None, "eos_token_id": 2}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match="blip2:.*saved before image tokens .*set image_token_index"):
        load_captioner(f"blip2:{tmp_path}")
