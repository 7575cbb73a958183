"""The microworld's captioner: BLIP of transformers' own class in a tiny size, whose tokens are the microworld's words.

new_blip      the network with random weights
take_vision   its image tower from that of a ViT CLIP
build_blip    the network from its weights alone
say           images -> captions, the likeliest word each time
decode        token ids -> captions
full_caption  what it learns to say of a scene
close_up      a box around one thing of a scene, and what it learns to say of that
crop          boxes cut out of images
"""
from __future__ import annotations

import random
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn, Tensor

from neuronym.microworld.microworld import caption, END, PLACES, Scene, SIZE, START, WORDS

if TYPE_CHECKING:
    from transformers import BlipForConditionalGeneration

PATCH, WIDTH, HEADS, BLOCKS = 8, 128, 2, 6  # of the image tower: those of the microworld's ViT CLIP
LAYERS, LONGEST = 3, 40  # of the text decoder: blocks, and positions: a start and 32 words and some to spare
SETTINGS = {"max_new_tokens": 32, "min_length": 5, "num_beams": 1, "do_sample": False}  # lengths of Bai et al. 2025


def new_blip(blocks: int = BLOCKS, layers: int = LAYERS, width: int = WIDTH) -> BlipForConditionalGeneration:
    """A captioner with random weights: `blocks` of the image tower over an 8 x 8 grid, `layers` of the text decoder."""
    from transformers import BlipConfig, BlipForConditionalGeneration, BlipTextConfig, BlipVisionConfig

    vision = BlipVisionConfig(hidden_size=width, intermediate_size=4 * width, num_hidden_layers=blocks,
                              num_attention_heads=HEADS, image_size=SIZE, patch_size=PATCH, hidden_act="quick_gelu",
                              initializer_range=.02)
    text = BlipTextConfig(vocab_size=END + 1, hidden_size=width, encoder_hidden_size=width, intermediate_size=4 * width,
                          num_hidden_layers=layers, num_attention_heads=HEADS, max_position_embeddings=LONGEST,
                          bos_token_id=START, eos_token_id=END, sep_token_id=END, pad_token_id=0)
    return BlipForConditionalGeneration(BlipConfig(text_config=text.to_dict(), vision_config=vision.to_dict()))


def take_vision(model: BlipForConditionalGeneration, visual: nn.Module, images: Tensor) -> None:
    """Give `model` the image tower of an openai-clip VisionTransformer, whose tokens BLIP's decoder then reads.

    Blocks and last norm are the same network in both. BLIP has no norm before the first block (`ln_pre`): its shift,
    gain and mean go into the embeddings exactly, its division by each token's own deviation becomes one by the mean
    deviation of the patches in `images` [n, 3, 64, 64]. The class token starts alike in every image, so it stays exact.
    """
    vision, norm = model.vision_model, visual.ln_pre
    with torch.no_grad():
        first, place = visual.class_embedding + visual.positional_embedding[0], visual.positional_embedding[1:]
        patches = visual.conv1(images).flatten(2).transpose(1, 2) + place  # [n, 64, width]
        scale = norm.weight / (patches.var(-1, unbiased=False) + norm.eps).sqrt().mean()
        kernel = visual.conv1.weight
        vision.embeddings.patch_embedding.weight.copy_((kernel - kernel.mean(0)) * scale[:, None, None, None])
        vision.embeddings.patch_embedding.bias.zero_()
        vision.embeddings.class_embedding.zero_()
        vision.embeddings.position_embedding[0, 0] = norm(first)
        vision.embeddings.position_embedding[0, 1:] = (place - place.mean(-1, keepdim=True)) * scale + norm.bias
        for mine, block in zip(vision.encoder.layers, visual.transformer.resblocks, strict=True):
            mine.self_attn.qkv.weight.copy_(block.attn.in_proj_weight)
            mine.self_attn.qkv.bias.copy_(block.attn.in_proj_bias)
            for own, given in ((mine.self_attn.projection, block.attn.out_proj), (mine.layer_norm1, block.ln_1),
                               (mine.layer_norm2, block.ln_2), (mine.mlp.fc1, block.mlp.c_fc),
                               (mine.mlp.fc2, block.mlp.c_proj)):
                own.load_state_dict(given.state_dict())
        vision.post_layernorm.load_state_dict(visual.ln_post.state_dict())


def build_blip(weights: Mapping[str, Tensor]) -> BlipForConditionalGeneration:
    """The captioner that `weights` belong to, in evaluation mode and float32; ValueError if they are of another."""
    if "vision_model.post_layernorm.weight" not in weights or "text_decoder.cls.predictions.bias" not in weights:
        raise ValueError("a captioner has a vision_model and a text_decoder, got "
                         f"{', '.join(sorted(weights)[:3])}, ...; name a folder whose captioner.safetensors is "
                         "from notebooks/microworld.ipynb")

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
        row = row[:row.index(END)] if END in row else row
        texts.append(" ".join(WORDS[i - 1] for i in row if 0 < i < START))
    return texts


def full_caption(s: Scene) -> str:
    """All that words can say of a scene, positions as well: what the captioner begins when it begins with "a"."""
    return f"{caption(s, 3)} {PLACES[s.place]} in {s.light} light"


def close_up(s: Scene) -> tuple[tuple[float, float, float, float], str]:
    """A box around one thing of a scene, about its size, and a caption of what is in it, which cannot say its size."""
    dice = random.Random(f"close-up {s.seed}")
    thing = dice.choice(s.things)
    x, y = (c + dice.uniform(-.35, .35) * thing.radius for c in (thing.x, thing.y))
    wide, high = (dice.uniform(.8, 1.9) * thing.radius for _ in "xy")
    box = (max(x - wide, 0.), max(y - high, 0.), min(x + wide, float(SIZE)), min(y + high, float(SIZE)))
    article = "an" if thing.colour[0] in "aeiou" else "a"
    return box, f"{article} {thing.colour} {thing.texture} {thing.shape} {PLACES[s.place]} in {s.light} light"


def crop(images: Tensor, boxes: Tensor) -> Tensor:
    """Cut a box (left, top, right, bottom in pixels, [n, 4]) out of each image [n, 3, H, W], enlarged to the whole."""
    size = torch.tensor([images.shape[3], images.shape[2]], device=images.device)
    low, high = boxes[:, :2] / size * 2 - 1, boxes[:, 2:] / size * 2 - 1
    theta = torch.zeros(len(images), 2, 3, device=images.device)
    theta[:, 0, 0], theta[:, 1, 1] = ((high - low) / 2).T
    theta[:, :, 2] = (high + low) / 2
    return F.grid_sample(images, F.affine_grid(theta, images.shape, align_corners=False), align_corners=False,
                         padding_mode="border")
