"""The microworld's networks: two targets, and a captioner of transformers' BLIP whose tokens are its words.

MicroResNet   conv1, layer1..layer4, fc; written here because torchvision's ResNet stem is made for 224 pixels
micro_vit     torchvision's VisionTransformer with a convolutional stem
build_target  either of them from its weights alone
new_blip      the captioner in a tiny size with random weights
take_vision   its image tower from that of a ViT CLIP
build_blip    the captioner from its weights alone
say           images -> captions, the likeliest word each time
decode        token ids -> captions
full_caption  what it learns to say of a scene
close_up      a box around one thing of a scene, and what it learns to say of that
crop          boxes cut out of images
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn, Tensor

from neuronym.microworld.world import caption, END, PLACES, Scene, SIZE, START, WORDS

if TYPE_CHECKING:
    from torchvision.models import VisionTransformer
    from transformers import BlipForConditionalGeneration


class Block(nn.Module):
    """Two 3 x 3 convolutions beside a shortcut (He et al. 2016, basic block)."""

    def __init__(self, c_in: int, c_out: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(c_out)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(c_out)
        self.relu2 = nn.ReLU()
        self.down = (
            nn.Sequential(nn.Conv2d(c_in, c_out, 1, stride, bias=False), nn.BatchNorm2d(c_out))
            if stride > 1
            else None
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        return self.relu2(y + (x if self.down is None else self.down(x)))


class MicroResNet(nn.Module):
    """Images [B, 3, 64, 64] -> logits [B, classes]; every ReLU runs once, so every module can be recorded."""

    def __init__(self, classes: int, width: int = 24):
        super().__init__()
        self.conv1 = nn.Sequential(nn.Conv2d(3, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.layer1 = Block(width, width, 1)  # [B, w, 32, 32]
        self.layer2 = Block(width, 2 * width, 2)  # [B, 2w, 16, 16]
        self.layer3 = Block(2 * width, 4 * width, 2)  # [B, 4w, 8, 8]
        self.layer4 = Block(4 * width, 8 * width, 2)  # [B, 8w, 4, 4]
        self.pool = nn.AdaptiveAvgPool2d(2)  # four quarters, so that "left" and "top" can be told
        self.fc = nn.Linear(8 * width * 4, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.layer4(self.layer3(self.layer2(self.layer1(self.conv1(x)))))
        return self.fc(self.pool(x).flatten(1))


def micro_vit(classes: int, width: int = 96, depth: int = 6) -> VisionTransformer:
    """A vision transformer over an 8 x 8 grid; a convolutional stem (Xiao et al. 2021) lets a small one learn
    shapes soon.
    """
    from torchvision.models.vision_transformer import ConvStemConfig, VisionTransformer  # takes two seconds

    stem = [ConvStemConfig(c, 3, 2, norm_layer=nn.BatchNorm2d) for c in (width // 4, width // 2, width)]
    return VisionTransformer(
        image_size=64,
        patch_size=8,
        num_layers=depth,
        num_heads=4,
        hidden_dim=width,
        mlp_dim=2 * width,
        num_classes=classes,
        conv_stem_configs=stem,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
    )


def build_target(weights: dict[str, torch.Tensor]) -> nn.Module:
    """The microworld target that `weights` belong to, in evaluation mode and float32."""
    if "class_token" in weights:
        depth = sum(name.endswith("ln_1.weight") for name in weights)
        model = micro_vit(weights["heads.head.weight"].shape[0], weights["class_token"].shape[-1], depth)
    else:
        model = MicroResNet(weights["fc.weight"].shape[0], weights["conv1.0.weight"].shape[0])
    model.load_state_dict(
        {name: value.float() if value.is_floating_point() else value for name, value in weights.items()}
    )
    return model.eval()


PATCH, WIDTH, HEADS, BLOCKS = 8, 128, 2, 6  # of the image tower: those of the microworld's ViT CLIP
LAYERS, LONGEST = 3, 40  # of the text decoder: blocks, and positions: a start and 32 words and some to spare
SETTINGS = {
    "max_new_tokens": 32,
    "min_length": 5,
    "num_beams": 1,
    "do_sample": False,
}  # lengths of Bai et al. 2025


def new_blip(blocks: int = BLOCKS, layers: int = LAYERS, width: int = WIDTH) -> BlipForConditionalGeneration:
    """A captioner with random weights: `blocks` of the image tower over an 8 x 8 grid, `layers` of the text
    decoder.
    """
    from transformers import BlipConfig, BlipForConditionalGeneration, BlipTextConfig, BlipVisionConfig

    vision = BlipVisionConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=blocks,
        num_attention_heads=HEADS,
        image_size=SIZE,
        patch_size=PATCH,
        hidden_act="quick_gelu",
        initializer_range=0.02,
    )
    text = BlipTextConfig(
        vocab_size=END + 1,
        hidden_size=width,
        encoder_hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=HEADS,
        max_position_embeddings=LONGEST,
        bos_token_id=START,
        eos_token_id=END,
        sep_token_id=END,
        pad_token_id=0,
    )
    return BlipForConditionalGeneration(
        BlipConfig(text_config=text.to_dict(), vision_config=vision.to_dict())
    )


def take_vision(model: BlipForConditionalGeneration, visual: nn.Module, images: Tensor) -> None:
    """Give `model` the image tower of an openai-clip VisionTransformer, whose tokens BLIP's decoder then
    reads.

    Blocks and last norm are the same network in both. BLIP has no norm before the first block (`ln_pre`): its
    shift, gain and mean go into the embeddings exactly, its division by each token's own deviation becomes
    one by the mean deviation of the patches in `images` [n, 3, 64, 64]. The class token starts alike in every
    image, so it stays exact.
    """
    vision, norm = model.vision_model, visual.ln_pre
    with torch.no_grad():
        first, place = (
            visual.class_embedding + visual.positional_embedding[0],
            visual.positional_embedding[1:],
        )
        patches = visual.conv1(images).flatten(2).transpose(1, 2) + place  # [n, 64, width]
        scale = norm.weight / (patches.var(-1, unbiased=False) + norm.eps).sqrt().mean()
        kernel = visual.conv1.weight
        vision.embeddings.patch_embedding.weight.copy_((kernel - kernel.mean(0)) * scale[:, None, None, None])
        vision.embeddings.patch_embedding.bias.zero_()
        vision.embeddings.class_embedding.zero_()
        vision.embeddings.position_embedding[0, 0] = norm(first)
        vision.embeddings.position_embedding[0, 1:] = (
            place - place.mean(-1, keepdim=True)
        ) * scale + norm.bias
        for mine, block in zip(vision.encoder.layers, visual.transformer.resblocks, strict=True):
            mine.self_attn.qkv.weight.copy_(block.attn.in_proj_weight)
            mine.self_attn.qkv.bias.copy_(block.attn.in_proj_bias)
            for own, given in (
                (mine.self_attn.projection, block.attn.out_proj),
                (mine.layer_norm1, block.ln_1),
                (mine.layer_norm2, block.ln_2),
                (mine.mlp.fc1, block.mlp.c_fc),
                (mine.mlp.fc2, block.mlp.c_proj),
            ):
                own.load_state_dict(given.state_dict())
        vision.post_layernorm.load_state_dict(visual.ln_post.state_dict())


def build_blip(weights: Mapping[str, Tensor]) -> BlipForConditionalGeneration:
    """The captioner that `weights` belong to, in evaluation mode and float32; ValueError if they are of
    another.
    """
    if (
        "vision_model.post_layernorm.weight" not in weights
        or "text_decoder.cls.predictions.bias" not in weights
    ):
        raise ValueError(
            "a captioner has a vision_model and a text_decoder, got "
            f"{', '.join(sorted(weights)[:3])}, ...; name a folder whose captioner.safetensors is "
            "from notebooks/microworld.ipynb"
        )

    def count(kind: str) -> int:
        return len({name.split(kind)[1].partition(".")[0] for name in weights if kind in name})

    width = weights["vision_model.post_layernorm.weight"].shape[0]
    model = new_blip(count("vision_model.encoder.layers."), count("text_decoder.bert.encoder.layer."), width)
    model.load_state_dict({name: value.float() for name, value in weights.items()})
    return model.eval()


def say(model: BlipForConditionalGeneration, images: Tensor) -> list[str]:
    """Images [n, 3, 64, 64] -> n captions by greedy decoding: four to 32 words."""
    return decode(model.generate(pixel_values=images, **SETTINGS))


def decode(ids: Tensor) -> list[str]:
    """Token ids [n, T] -> n captions: the words up to the first end; starts and padding are passed over."""
    texts = []
    for row in ids.tolist():
        row = row[: row.index(END)] if END in row else row
        texts.append(" ".join(WORDS[i - 1] for i in row if 0 < i < START))
    return texts


def full_caption(s: Scene) -> str:
    """All that words can say of a scene, positions as well: what the captioner begins when it begins with
    "a".
    """
    return f"{caption(s, 3)} {PLACES[s.place]} in {s.light} light"


def close_up(s: Scene) -> tuple[tuple[float, float, float, float], str]:
    """A box around one thing of a scene, about its size, and a caption of what is in it, which cannot say its
    size.
    """
    dice = random.Random(f"close-up {s.seed}")
    thing = dice.choice(s.things)
    x, y = (c + dice.uniform(-0.35, 0.35) * thing.radius for c in (thing.x, thing.y))
    wide, high = (dice.uniform(0.8, 1.9) * thing.radius for _ in "xy")
    box = (max(x - wide, 0.0), max(y - high, 0.0), min(x + wide, float(SIZE)), min(y + high, float(SIZE)))
    article = "an" if thing.colour[0] in "aeiou" else "a"
    return box, f"{article} {thing.colour} {thing.texture} {thing.shape} {PLACES[s.place]} in {s.light} light"


def crop(images: Tensor, boxes: Tensor) -> Tensor:
    """Cut a box (left, top, right, bottom in pixels, [n, 4]) out of each image [n, 3, H, W], enlarged to the
    whole.
    """
    size = torch.tensor([images.shape[3], images.shape[2]], device=images.device)
    low, high = boxes[:, :2] / size * 2 - 1, boxes[:, 2:] / size * 2 - 1
    theta = torch.zeros(len(images), 2, 3, device=images.device)
    theta[:, 0, 0], theta[:, 1, 1] = ((high - low) / 2).T
    theta[:, :, 2] = (high + low) / 2
    return F.grid_sample(
        images,
        F.affine_grid(theta, images.shape, align_corners=False),
        align_corners=False,
        padding_mode="border",
    )
