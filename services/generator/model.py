"""A generator's model folder, loaded: both networks' parameters, the tokenizer, the settings it likes best."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from services.generator import dalle, vqgan
from services.generator.weights import load_parameters
from services.model_folder import read_config


def load_dalle(part_folder: Path) -> tuple[dict[str, Any], dalle.DalleConfig]:
    """Raises ModelError when the part's files are missing, damaged or do not fit each other."""
    config = dalle.DalleConfig.from_json(read_config(part_folder))
    params = dalle.fuse(load_parameters(part_folder, dalle.parameter_shapes(config)))
    return jax.tree.map(jnp.asarray, params), config


def load_vqgan(part_folder: Path) -> tuple[dict[str, Any], vqgan.VqganConfig]:
    """Raises ModelError when the part's files are missing, damaged or do not fit each other."""
    config = vqgan.VqganConfig.from_json(read_config(part_folder))
    params = vqgan.group_norms(load_parameters(part_folder, vqgan.parameter_shapes(config)), config)
    return jax.tree.map(jnp.asarray, params), config
