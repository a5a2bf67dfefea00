"""Networks at the scale of the papers on merging, by `transformers`: build them on the meta device to count them."""

from __future__ import annotations

from typing import Any

from polytask.errors import optional

VISION: dict[str, dict[str, int]] = {
    "ViT-B/32": {"hidden_size": 768, "num_hidden_layers": 12, "patch_size": 32, "projection_dim": 512},
    "ViT-B/16": {"hidden_size": 768, "num_hidden_layers": 12, "patch_size": 16, "projection_dim": 512},
    "ViT-L/14": {"hidden_size": 1024, "num_hidden_layers": 24, "patch_size": 14, "projection_dim": 768},
}
"""CLIP's vision transformers on images of 224 x 224, a head for each 64 of their width. Radford et al., *Learning
transferable visual models from natural language supervision*, ICML 2021."""

T5: dict[str, dict[str, int]] = {
    "base": {"d_model": 768, "d_ff": 3072, "num_layers": 12, "num_heads": 12},
    "large": {"d_model": 1024, "d_ff": 4096, "num_layers": 24, "num_heads": 16},
}


def clip_vision(size: str, projected: bool = False) -> Any:
    """CLIP's vision transformer, all of which is merged, with or without the projection to the space of images and texts."""
    transformers = optional("transformers", "text")
    config = transformers.CLIPVisionConfig(**_vision(size))
    return (transformers.CLIPVisionModelWithProjection if projected else transformers.CLIPVisionModel)(config)


def clip_image_encoder(size: str) -> Any:
    """CLIP without the layers of its text encoder, which is what the experiments' checkpoints of image encoders hold.

    Besides the vision transformer and its projection there are the text encoder's embeddings, last normalisation and
    projection, and the logits' scale. In the form of `transformers`, which has as many parameters as the authors' own.
    """
    transformers = optional("transformers", "text")
    vision = _vision(size)
    shared = vision["projection_dim"]
    text = {"hidden_size": shared, "num_hidden_layers": 0, "num_attention_heads": shared // 64}
    return transformers.CLIPModel(transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=shared))


def t5(size: str) -> Any:
    """T5, ``"base"`` or ``"large"``. Raffel et al., *Exploring the limits of transfer learning*, JMLR 2020."""
    transformers = optional("transformers", "text")
    return transformers.T5ForConditionalGeneration(transformers.T5Config(**T5[size]))


def _vision(size: str) -> dict[str, int]:
    config = VISION[size]
    width = config["hidden_size"]
    return {**config, "intermediate_size": 4 * width, "num_attention_heads": width // 64, "image_size": 224}
