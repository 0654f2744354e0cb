"""The DALL·E BART of services.generator.dalle.networks.dalle in PyTorch, for training: the same names, the same arithmetic.

Also samples, with a key-value cache, for the measures that a recipe prints; serving is the JAX network's.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from services.generator.dalle.networks.dalle import LAYER_NORM_EPS, TEXT_PAD_ID, DalleConfig

TINY = DalleConfig(
    d_model=256,
    encoder_layers=2,
    encoder_attention_heads=8,
    encoder_ffn_dim=512,
    decoder_layers=4,
    decoder_attention_heads=8,
    decoder_ffn_dim=512,
    encoder_vocab_size=1280,
    image_vocab_size=2048,
    image_length=256,
    max_text_length=32,
    decoder_start_token_id=2048,
    use_glu=True,
)
UNCONDITIONAL = (0, 2)  # <s> </s>: the empty prompt

Cache = dict[str, Tensor]


class Norm(nn.Module):
    """A layer norm; in front of a dense layer the published models give it no scale."""

    def __init__(self, size: int, *, scaled: bool = False) -> None:
        super().__init__()
        self.size = (size,)
        self.bias = nn.Parameter(torch.zeros(size))
        if scaled:
            self.scale = nn.Parameter(torch.ones(size))
        else:
            self.scale = None

    def forward(self, x: Float[Tensor, "*B D"]) -> Float[Tensor, "*B D"]:
        return F.layer_norm(x.float(), self.size, self.scale, self.bias, LAYER_NORM_EPS)


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.pre_norm = Norm(width)
        self.q, self.k, self.v, self.out = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.post_norm = Norm(width, scaled=True)

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        memory: Float[Tensor, "B S D"] | None = None,
        mask: Bool[Tensor, "B 1 1 S"] | None = None,
        *,
        causal: bool = False,
        cache: Cache | None = None,
    ) -> Float[Tensor, "B T D"]:
        normed = self.pre_norm(x)
        source = normed if memory is None else memory
        q = self._split(self.q(normed))
        if cache is not None and memory is not None and "k" in cache:
            k, v = cache["k"], cache["v"]
        else:
            k, v = self._split(self.k(source)), self._split(self.v(source))
            if cache is not None:
                if memory is None and "k" in cache:
                    k, v = torch.cat((cache["k"], k), 2), torch.cat((cache["v"], v), 2)
                cache["k"], cache["v"] = k, v
        attended = _attend_to_text(q, k, v, mask) if mask is not None else _attend(q, k, v, causal=causal)
        return x + self.post_norm(self.out(attended.transpose(1, 2).flatten(2)))

    def _split(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B N T K"]:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


def _attend(
    q: Float[Tensor, "B N T K"], k: Float[Tensor, "B N S K"], v: Float[Tensor, "B N S K"], *, causal: bool
) -> Float[Tensor, "B N T K"]:
    # On CPUs the fused kernel's backward pass is slower in bfloat16 than in float32.
    return F.scaled_dot_product_attention(q.float(), k.float(), v.float(), is_causal=causal)


def _attend_to_text(
    q: Float[Tensor, "B N T K"],
    k: Float[Tensor, "B N S K"],
    v: Float[Tensor, "B N S K"],
    mask: Bool[Tensor, "B 1 1 S"],
) -> Float[Tensor, "B N T K"]:
    """Written out: over a few dozen keys the fused kernel's backward pass takes six times as long on CPUs."""
    scores = (q / math.sqrt(q.shape[-1])) @ k.transpose(-2, -1)
    return scores.masked_fill(~mask, -math.inf).softmax(-1).to(v.dtype) @ v


class Glu(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.pre_norm = Norm(width)
        self.gate = nn.Linear(width, hidden, bias=False)
        self.up = nn.Linear(width, hidden, bias=False)
        self.mid_norm = Norm(hidden)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        normed = self.pre_norm(x)
        return x + self.down(self.mid_norm(F.gelu(self.gate(normed)) * self.up(normed)))


class EncoderLayer(nn.Module):
    def __init__(self, config: DalleConfig) -> None:
        super().__init__()
        self.self_attention = Attention(config.d_model, config.encoder_attention_heads)
        self.ffn = Glu(config.d_model, config.encoder_ffn_dim)


class DecoderLayer(nn.Module):
    def __init__(self, config: DalleConfig) -> None:
        super().__init__()
        self.self_attention = Attention(config.d_model, config.decoder_attention_heads)
        self.cross_attention = Attention(config.d_model, config.decoder_attention_heads)
        self.ffn = Glu(config.d_model, config.decoder_ffn_dim)


class Stack(nn.Module):
    """Embeddings, layers, final norm: what encoder and decoder share."""

    def __init__(self, config: DalleConfig, vocab: int, length: int, layers: list[nn.Module]) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(vocab, config.d_model)
        self.embed_positions = nn.Embedding(length, config.d_model)
        self.embed_norm = Norm(config.d_model, scaled=True)
        self.layers = nn.ModuleList(layers)
        self.final_norm = Norm(config.d_model)

    def embed(self, tokens: Int[Tensor, "B T"], first: int = 0) -> Float[Tensor, "B T D"]:
        positions = self.embed_positions.weight[first : first + tokens.shape[1]]
        return self.embed_norm(self.embed_tokens(tokens) + positions)


class Dalle(nn.Module):
    def __init__(self, config: DalleConfig = TINY) -> None:
        super().__init__()
        if config.use_bias or config.force_ln_scale or config.scale_embedding or not config.use_glu:
            raise ValueError("expected the published variant: GLU, no biases, no scale before dense layers")
        self.config = config
        self.encoder = Stack(
            config,
            config.encoder_vocab_size,
            config.max_text_length,
            [EncoderLayer(config) for _ in range(config.encoder_layers)],
        )
        self.decoder = Stack(
            config,
            config.image_vocab_size + 1,
            config.image_length,
            [DecoderLayer(config) for _ in range(config.decoder_layers)],
        )
        self.lm_head = nn.Linear(config.d_model, config.image_vocab_size + 1, bias=False)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
        for layer in (*self.encoder.layers, *self.decoder.layers):
            nn.init.normal_(layer.ffn.down.weight, std=0.02 / math.sqrt(2 * config.decoder_layers))

    def encode(self, text_tokens: Int[Tensor, "B T"]) -> Float[Tensor, "B T D"]:
        x, mask = self.encoder.embed(text_tokens), text_mask(text_tokens)
        for layer in self.encoder.layers:
            x = layer.ffn(layer.self_attention(x, mask=mask))
        return self.encoder.final_norm(x)

    def forward(
        self, text_tokens: Int[Tensor, "B T"], image_tokens: Int[Tensor, "B S"]
    ) -> Float[Tensor, "B S V"]:
        """Logits of each image token from those before it."""
        return self.logits(self.hidden_states(text_tokens, image_tokens)[-1])

    def hidden_states(
        self, text_tokens: Int[Tensor, "B T"], image_tokens: Int[Tensor, "B S"]
    ) -> list[Float[Tensor, "B S D"]]:
        """What each decoder layer gives to the next, and the last one to `logits`."""
        memory, mask = self.encode(text_tokens), text_mask(text_tokens)
        x = self.decoder.embed(F.pad(image_tokens[:, :-1], (1, 0), value=self.config.decoder_start_token_id))
        states = []
        for layer in self.decoder.layers:
            x = layer.self_attention(x, causal=True)
            x = layer.ffn(layer.cross_attention(x, memory, mask))
            states.append(x)
        return states

    def logits(self, hidden: Float[Tensor, "B S D"]) -> Float[Tensor, "B S V"]:
        return self.lm_head(self.decoder.final_norm(hidden))

    @torch.no_grad()
    def sample(
        self,
        text_tokens: Int[Tensor, "B T"],
        rng: torch.Generator,
        *,
        guidance_scale: float = 2.0,
        temperature: float = 0.5,
    ) -> Int[Tensor, "B S"]:
        """Image tokens for each prompt; the start token is never drawn."""
        count, length = text_tokens.shape
        device = text_tokens.device
        says_nothing = torch.full((count, length), TEXT_PAD_ID, device=device)
        says_nothing[:, :2] = torch.tensor(UNCONDITIONAL, device=device)
        both = torch.cat((text_tokens, says_nothing))
        memory, mask = self.encode(both), text_mask(both)
        caches: list[tuple[Cache, Cache]] = [({}, {}) for _ in self.decoder.layers]
        current = torch.full((2 * count, 1), self.config.decoder_start_token_id, device=device)
        drawn = []
        for position in range(self.config.image_length):
            x = self.decoder.embed(current, position)
            for layer, (own, crossed) in zip(self.decoder.layers, caches, strict=True):
                x = layer.self_attention(x, cache=own)
                x = layer.ffn(layer.cross_attention(x, memory, mask, cache=crossed))
            logits, uncond_logits = self.lm_head(self.decoder.final_norm(x))[:, 0].float().chunk(2)
            guided = uncond_logits + guidance_scale * (logits - uncond_logits)
            guided = guided[:, : self.config.image_vocab_size] / temperature
            # Drawn on the CPU: a seed is the same picture on every device.
            drawn.append(torch.multinomial(guided.softmax(-1).cpu(), 1, generator=rng).to(device))
            current = drawn[-1].repeat(2, 1)
        return torch.cat(drawn, 1)


def text_mask(text_tokens: Int[Tensor, "B T"]) -> Bool[Tensor, "B 1 1 T"]:
    return (text_tokens != TEXT_PAD_ID)[:, None, None, :]
