"""The published dalle-mini package: writes random checkpoints as it publishes them, and what it computes from them.

Runs in its own environment: `python dalle_mini_oracle.py FOLDER`. FOLDER/cases.json: {name: the model's settings}; for
each case NAME/config.json, NAME/flax_model.msgpack and NAME/vectors.npz. The case "text" holds a word list and
prompts, and becomes text/normalized.json.
"""

import json
import sys
import types
from pathlib import Path

import jax
import jax.experimental
import jax.numpy as jnp
import numpy as np

# Names that its dependencies have dropped since, and an account that nobody needs for a folder on disk.
jnp.DeviceArray = jax.Array
jax.experimental.PartitionSpec = jax.sharding.PartitionSpec
sys.modules["wandb"] = types.ModuleType("wandb")

from dalle_mini.model import DalleBart, DalleBartConfig, text  # noqa: E402
from flax.serialization import to_bytes  # noqa: E402
from flax.traverse_util import flatten_dict, unflatten_dict  # noqa: E402

IMAGE_LENGTH, TEXT_LENGTH, NUM_CODES, ROWS = 16, 8, 64, 3
SHAPES = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 44,
    "decoder_ffn_dim": 44,
    "encoder_vocab_size": 100,
    "image_length": IMAGE_LENGTH,
    "max_text_length": TEXT_LENGTH,
    "decoder_start_token_id": NUM_CODES,
    "activation_function": "gelu",
    "ln_type": "layernorm",
    "ln_positions": "normformer",
    "dropout": 0.0,
    "activation_dropout": 0.0,
    "attention_dropout": 0.0,
    "use_final_ln_encoder": True,
    "use_final_ln_decoder": True,
    "tie_word_embeddings": False,
    "min_length": IMAGE_LENGTH + 1,
    "max_length": IMAGE_LENGTH + 1,
}


def main() -> None:
    folder = Path(sys.argv[1])
    cases = json.loads((folder / "cases.json").read_text("utf-8"))
    for seed, (name, settings) in enumerate(cases.items()):
        (folder / name).mkdir()
        if name == "text":
            normalized = normalize(settings["prompts"], settings["word_list"])
            (folder / name / "normalized.json").write_text(json.dumps(normalized), "utf-8")
        else:
            write_model(folder / name, settings, seed)


def write_model(folder: Path, settings: dict, seed: int) -> None:
    config = DalleBartConfig(**SHAPES, **settings)
    model = DalleBart(config, seed=0)
    # A likeliest code that leads by next to nothing would be a matter of rounding.
    while True:
        rng = np.random.default_rng(seed)
        model.params = randomize(model.params, rng)
        vectors, margin = compute(model, rng)
        if margin > 1e-3:
            break
        seed += 1_000_000
    (folder / "flax_model.msgpack").write_bytes(to_bytes(model.params))
    config.to_json_file(folder / "config.json", use_diff=False)
    np.savez(folder / "vectors.npz", **vectors)


def randomize(params, rng):
    """Every parameter of a size that matters, so that one forgotten shows."""
    filled = {}
    for path, value in sorted(flatten_dict(params).items()):
        noise = rng.standard_normal(value.shape, dtype=np.float32)
        if path[-1] == "scale":
            noise = 1 + 0.2 * noise
        elif path[-1] == "bias":
            noise = 0.2 * noise
        elif path[-1] == "kernel":
            noise = noise * value.shape[-2] ** -0.5
        filled[path] = jnp.asarray(noise)
    return unflatten_dict(filled)


def compute(model, rng):
    lengths = rng.integers(2, TEXT_LENGTH + 1, ROWS)
    mask = (np.arange(TEXT_LENGTH) < lengths[:, None]).astype(np.int32)
    input_ids = np.where(mask, rng.integers(3, 100, (ROWS, TEXT_LENGTH)), 1).astype(np.int32)
    mask_uncond = np.tile(np.arange(TEXT_LENGTH) < 2, (ROWS, 1)).astype(np.int32)
    input_ids_uncond = np.where(mask_uncond, [0, 2] + [1] * (TEXT_LENGTH - 2), 1).astype(np.int32)
    start = np.full((ROWS, 1), NUM_CODES)
    decoder_input_ids = np.concatenate([start, rng.integers(0, NUM_CODES, (ROWS, IMAGE_LENGTH - 1))], 1)
    encoded = model.encode(input_ids, mask)
    encoded_uncond = model.encode(input_ids_uncond, mask_uncond)

    decode = jax.jit(lambda tokens, *encoded: model.decode(tokens, encoded[:1], encoded[1]).logits)

    def logits_of(tokens):
        cond = decode(tokens, encoded.last_hidden_state, mask)
        return np.asarray(cond), np.asarray(decode(tokens, encoded_uncond.last_hidden_state, mask_uncond))

    cond, uncond = logits_of(decoder_input_ids)
    vectors = {
        "input_ids": input_ids,
        "attention_mask": mask,
        "input_ids_uncond": input_ids_uncond,
        "attention_mask_uncond": mask_uncond,
        "encoder_hidden": np.asarray(encoded.last_hidden_state),
        "encoder_hidden_uncond": np.asarray(encoded_uncond.last_hidden_state),
        "decoder_input_ids": decoder_input_ids.astype(np.int32),
        "logits_cond": cond,
        "logits_uncond": uncond,
        "logits_guided_10": uncond + 10 * (cond - uncond),
    }
    margins = []
    for scale in (1, 10):
        # Nothing sees what comes after it, so all lengths are one shape.
        tokens = np.concatenate([start, np.zeros((ROWS, IMAGE_LENGTH), int)], axis=1)
        for position in range(IMAGE_LENGTH):
            cond, uncond = logits_of(tokens[:, :IMAGE_LENGTH])
            guided = (uncond + scale * (cond - uncond))[:, position, :NUM_CODES]
            second, first = np.sort(guided, axis=-1)[:, -2:].T
            margins.append((first - second).min())
            tokens[:, position + 1] = guided.argmax(-1)
        vectors[f"greedy_codes_only_cs{scale}"] = tokens.astype(np.int32)
    return vectors, min(margins)


def normalize(prompts: list[str], word_list: str) -> list[str]:
    # It would fetch its word list from a hub.
    text.hf_hub_download = lambda *args, **kwargs: word_list
    normalizer = text.TextNormalizer()
    return [normalizer(prompt) for prompt in prompts]


if __name__ == "__main__":
    main()
