"""Language model: the module of a configuration, and the arguments that it takes from a batch."""

from collections.abc import Mapping
from typing import Any

from moe_jax.models.config import ModelConfig
from moe_jax.models.decoder import Decoder
from moe_jax.models.encoder_decoder import EncoderDecoder

TEXT = ("tokens", "positions", "segment_ids")


def make_model(config: ModelConfig, training: bool = False) -> Decoder | EncoderDecoder:
    """Makes the Linen module of `config.architecture`."""
    model = Decoder if config.architecture == "decoder" else EncoderDecoder
    return model(config, training)


def model_inputs(config: ModelConfig, batch: Mapping[str, Any]) -> tuple[Any, ...]:
    """Returns a model's arguments from a batch, in their order."""
    encoder = () if config.architecture == "decoder" else tuple(f"encoder_{name}" for name in TEXT)
    return tuple(batch[name] for name in (*TEXT, *encoder))
