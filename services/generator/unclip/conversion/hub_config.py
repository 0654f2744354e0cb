"""Reads configurations as the hub's folders have them, and those of Karlo's files off the tensors' shapes.

What Karlo's networks do not have is refused by name, for a network would be built without it and draw something else.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from services.errors import ModelError
from services.generator.unclip.model import (
    DECODER_DIFFUSION,
    SUPER_RES,
    SUPER_RES_DIFFUSION,
    Config,
    DecoderPart,
    PriorPart,
    SuperResPart,
)
from services.generator.unclip.networks.prior import NUM_EXTRA_TOKENS, PriorConfig
from services.generator.unclip.networks.text_projection import TextProjectionConfig
from services.generator.unclip.networks.unet import UNetConfig
from services.generator.unclip.schedule import DiffusionConfig
from services.pytorch.clip import ClipConfig
from services.pytorch.clip_conversion import clip_config, hub_settings, num_indexes, vision_config
from services.weights.formats.safetensors_file import LazyTensor

Tensors = Mapping[str, LazyTensor]
Json = Mapping[str, Any]

PRIOR_MUST = {
    "added_emb_type": "prd", "additional_embeddings": NUM_EXTRA_TOKENS, "clip_embed_dim": None, "embedding_proj_dim": None,
    "embedding_proj_norm_type": None, "encoder_hid_proj_type": "linear", "norm_in_type": None, "time_embed_act_fn": "silu",
    "time_embed_dim": None,
}  # fmt: skip
UNET_MUST = {
    "act_fn": "silu", "addition_embed_type": None, "attention_type": "default", "center_input_sample": False,
    "class_embeddings_concat": False, "conv_in_kernel": 3, "conv_out_kernel": 3, "cross_attention_norm": None,
    "downsample_padding": 1, "dual_cross_attention": False, "encoder_hid_dim": None, "encoder_hid_dim_type": None,
    "flip_sin_to_cos": True, "freq_shift": 0, "mid_block_only_cross_attention": None, "mid_block_scale_factor": 1,
    "norm_eps": 1e-5, "num_attention_heads": None, "num_class_embeds": None, "only_cross_attention": False,
    "resnet_out_scale_factor": 1.0, "resnet_skip_time_act": False, "time_cond_proj_dim": None,
    "time_embedding_act_fn": None, "time_embedding_type": "positional", "timestep_post_act": None,
}  # fmt: skip
SCHEDULER_MUST = {"beta_schedule": "squaredcos_cap_v2"}
DECODER_BLOCKS = {"ResnetDownsampleBlock2D": False, "SimpleCrossAttnDownBlock2D": True}
UP_BLOCKS = {"ResnetUpsampleBlock2D": False, "SimpleCrossAttnUpBlock2D": True}


def part_config(part: str, tensors: Tensors, raw: Json, scheduler: Json, where: Path) -> Config:
    """The configuration of a part; `raw` and `scheduler` are the hub's JSON, empty where there is none.

    `tensors` have the hub's names, or Karlo's. Raises ModelError.
    """
    try:
        return _READERS[part](part, tensors, raw, scheduler, where)
    except (KeyError, IndexError, ValueError, TypeError, ZeroDivisionError, StopIteration) as error:
        wanted = error.args[0] if isinstance(error, KeyError) else error
        raise ModelError(
            f"{where} does not look like a {part}: {wanted} is missing or of another shape (it holds {len(tensors)} "
            f"tensors, first: {', '.join(sorted(tensors)[:5])}); is it another part's file?"
        ) from None


def _text_encoder(_part: str, tensors: Tensors, raw: Json, _scheduler: Json, where: Path) -> Config:
    settings = _clip_settings(raw, where)
    return ClipConfig(
        **{**clip_config(tensors, settings), "vision_layers": 0}, activation=settings["activation"]
    )


def _image_encoder(_part: str, tensors: Tensors, raw: Json, _scheduler: Json, where: Path) -> Config:
    settings = _clip_settings(raw, where)
    return ClipConfig(**vision_config(tensors, settings), activation=settings["activation"])


def _clip_settings(raw: Json, where: Path) -> dict[str, Any]:
    settings = {"activation": "quick_gelu", **hub_settings(raw)}
    if settings["activation"] not in ("quick_gelu", "gelu"):
        raise ModelError(f"{where}: hidden_act: expected quick_gelu or gelu, got {settings['activation']!r}")
    return settings


def _prior(_part: str, tensors: Tensors, raw: Json, scheduler: Json, where: Path) -> Config:
    _refuse(raw, PRIOR_MUST, where)
    width, embed_dim = (tensors.get("proj_in.weight") or tensors["clip_img_proj.weight"]).shape
    positions = tensors["positional_embedding"].shape[-2]
    head_dim = int(raw.get("attention_head_dim", min(64, width)))
    layers = max(num_indexes(tensors, "transformer_blocks"), num_indexes(tensors, "transformer.resblocks"))
    network = PriorConfig(
        embed_dim=embed_dim,
        context_length=positions - NUM_EXTRA_TOKENS,
        num_layers=layers,
        num_heads=width // head_dim,
        head_dim=head_dim,
    )
    return PriorPart(network, _diffusion(scheduler, DiffusionConfig(), where))


def _text_proj(_part: str, tensors: Tensors, raw: Json, _scheduler: Json, _where: Path) -> Config:
    karlo = "text_seq_proj.0.weight" in tensors
    text = tensors["text_seq_proj.0.weight" if karlo else "encoder_hidden_states_proj.weight"].shape
    emb = tensors["text_feat_proj.weight" if karlo else "embedding_proj.weight"].shape
    extra = tensors["clip_tok_proj.weight" if karlo else "clip_extra_context_tokens_proj.weight"].shape
    return TextProjectionConfig(
        embed_dim=emb[1],
        text_width=text[1],
        context_dim=text[0],
        time_embed_dim=emb[0],
        num_extra_tokens=int(raw.get("clip_extra_context_tokens", extra[0] // text[0])),
    )


def _decoder(_part: str, tensors: Tensors, raw: Json, scheduler: Json, where: Path) -> Config:
    network = _unet(tensors, raw, UNetConfig(), where)
    return DecoderPart(network, _diffusion(scheduler, DECODER_DIFFUSION, where))


def _super_res(_part: str, tensors: Tensors, raw: Json, scheduler: Json, where: Path) -> Config:
    network = _unet(tensors, raw, SUPER_RES, where)
    return SuperResPart(network, _diffusion(scheduler, SUPER_RES_DIFFUSION, where))


_READERS: dict[str, Callable[[str, Tensors, Json, Json, Path], Config]] = {
    "text_encoder": _text_encoder,
    "image_encoder": _image_encoder,
    "prior": _prior,
    "text_proj": _text_proj,
    "decoder": _decoder,
    "super_res_first": _super_res,
    "super_res_last": _super_res,
}


def _unet(tensors: Tensors, raw: Json, published: UNetConfig, where: Path) -> UNetConfig:
    network = _karlo_unet(tensors, published) if "time_embed.0.weight" in tensors else None
    if not raw:
        if network is None:
            raise ModelError(f"{where}: expected the config.json of the hub's folder beside it")
        return network
    _refuse(raw, UNET_MUST, where)
    down = [_named(DECODER_BLOCKS, kind, "down_block_types", where) for kind in raw["down_block_types"]]
    up = [_named(UP_BLOCKS, kind, "up_block_types", where) for kind in raw["up_block_types"]]
    if up != down[::-1]:
        raise ModelError(f"{where}: up_block_types: expected those of down_block_types, backwards")
    shift = raw.get("resnet_time_scale_shift", "default")
    _named({"default": False, "scale_shift": True}, shift, "resnet_time_scale_shift", where)
    channels = tuple(_whole(raw, "block_out_channels", each=True))
    levels = tuple(level for level, attends in enumerate(down) if attends)
    attends = bool(levels) or bool(_middle_attention(tensors, levels))
    return UNetConfig(
        image_size=int(raw["sample_size"]),
        in_channels=int(raw["in_channels"]),
        out_channels=int(raw["out_channels"]),
        channels=channels,
        num_res_blocks=_uniform(raw["layers_per_block"], "layers_per_block", where),
        attention_levels=levels,
        has_middle_attention=_middle_attention(tensors, levels),
        head_dim=_uniform(raw.get("attention_head_dim") or 64, "attention_head_dim", where)
        if attends
        else published.head_dim,
        context_dim=_uniform(raw.get("cross_attention_dim") or 0, "cross_attention_dim", where)
        if attends
        else published.context_dim,
        has_scale=shift == "scale_shift",
        emb_dim=int(raw.get("time_embedding_dim") or 0),
        norm_groups=int(raw.get("norm_num_groups", 32)),
    )


def _karlo_unet(tensors: Tensors, published: UNetConfig) -> UNetConfig:
    """Off names and shapes; what they do not say is as published."""
    emb_dim, width = tensors["time_embed.0.weight"].shape
    levels: list[list[int]] = [[]]
    attention_levels: list[int] = []
    context_dim = published.context_dim
    middle = tensors.get("middle_block.1.encoder_kv.weight")
    if middle is not None:
        context_dim = middle.shape[1]
    num_blocks = num_indexes(tensors, "input_blocks")
    for i in range(1, num_blocks):
        levels[-1].append(tensors[f"input_blocks.{i}.0.in_layers.2.weight"].shape[0])
        attention = tensors.get(f"input_blocks.{i}.1.encoder_kv.weight")
        if attention is not None:
            context_dim = attention.shape[1]
            if len(levels) - 1 not in attention_levels:
                attention_levels.append(len(levels) - 1)
        # A block that makes the picture smaller stands at the end of each level but the last.
        if len(levels[-1]) == _blocks_per_level(tensors, num_blocks) and i < num_blocks - 1:
            levels.append([])
    num_res_blocks = len(levels[-1])
    scaled = tensors["input_blocks.1.0.emb_layers.1.weight"].shape[0]
    return UNetConfig(
        image_size=published.image_size,
        in_channels=tensors["input_blocks.0.0.weight"].shape[1],
        out_channels=tensors["out.2.weight"].shape[0],
        channels=tuple(channels[0] for channels in levels),
        num_res_blocks=num_res_blocks,
        attention_levels=tuple(attention_levels),
        has_middle_attention=_middle_attention(tensors, attention_levels),
        head_dim=published.head_dim,
        context_dim=context_dim,
        has_scale=scaled == 2 * levels[0][0],
        emb_dim=0 if emb_dim == 4 * width else emb_dim,
    )


def _middle_attention(tensors: Tensors, attention_levels: Sequence[int]) -> bool | None:
    """None where it follows from the levels, as it does in Karlo."""
    has_attention = any(
        name in tensors
        for name in ("mid_block.attentions.0.group_norm.weight", "middle_block.1.encoder_kv.weight")
    )
    return None if has_attention == bool(attention_levels) else has_attention


def _blocks_per_level(tensors: Tensors, num_blocks: int) -> int:
    """Residual blocks going down, with the one that makes the picture smaller.

    There are L levels of n + 1 blocks but for the last, which has n, and L (n + 1) blocks going up.
    """
    ups = num_indexes(tensors, "output_blocks")
    # Down: 1 + L n + (L - 1); up: L n + L: the same number, so the levels are counted where a level ends going up.
    ends = [
        i
        for i in range(ups)
        if any(f"output_blocks.{i}.{layer}.in_layers.2.weight" in tensors for layer in (1, 2))
    ]
    return (ends[0] + 1) if ends else num_blocks


def _diffusion(scheduler: Json, published: DiffusionConfig, where: Path) -> DiffusionConfig:
    if not scheduler:
        return published
    _refuse(scheduler, SCHEDULER_MUST, where)
    predicts: dict[str, Literal["sample", "epsilon"]] = {"sample": "sample", "epsilon": "epsilon"}
    variances: dict[str, Literal["fixed_small", "learned_range"]] = {
        "fixed_small_log": "fixed_small",
        "learned_range": "learned_range",
    }
    return DiffusionConfig(
        num_steps=published.num_steps,
        guidance_scale=published.guidance_scale,
        num_train_timesteps=int(scheduler.get("num_train_timesteps", published.num_train_timesteps)),
        predicts=_named(predicts, scheduler.get("prediction_type", "epsilon"), "prediction_type", where),
        variance=_named(variances, scheduler.get("variance_type", "fixed_small_log"), "variance_type", where),
        clip_range=float(scheduler.get("clip_sample_range", 1.0))
        if scheduler.get("clip_sample", True)
        else None,
    )


def _refuse(raw: Json, must: Json, where: Path) -> None:
    for name, value in must.items():
        if raw.get(name, value) != value:
            raise ModelError(
                f"{where}: {name}: expected {value!r}, as Karlo has it, got {raw[name]!r}: this network is another one"
            )


def _named(choices: Mapping[str, Any], name: str, setting: str, where: Path) -> Any:
    if name not in choices:
        raise ModelError(f"{where}: {setting}: expected one of {', '.join(choices)}, got {name!r}")
    return choices[name]


def _whole(raw: Json, name: str, *, each: bool) -> list[int]:
    values = raw[name] if each else [raw[name]]
    return [int(value) for value in values]


def _uniform(value: Any, name: str, where: Path) -> int:
    values = set(value) if isinstance(value, list) else {value}
    if len(values) != 1:
        raise ModelError(f"{where}: {name}: expected the same for every level, got {value!r}")
    return int(values.pop())
