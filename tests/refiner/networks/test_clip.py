import pytest
import torch

from services.pytorch.clip import Clip, ClipConfig, normalize_image

TINY = ClipConfig(
    embed_dim=24, vocab_size=50, context_length=9, transformer_width=32, transformer_layers=1,
    transformer_heads=2, image_size=16, vision_patch_size=8, vision_width=32, vision_layers=1, vision_heads=2,
)  # fmt: skip


def test_the_text_embedding_agrees_with_the_reference(golden):
    arrays = golden.arrays("clip_text_tiny")
    network = Clip(
        ClipConfig(
            embed_dim=48, vocab_size=300, transformer_width=64, transformer_layers=2,
            transformer_heads=int(arrays["heads"]), vision_layers=0,
        )
    )  # fmt: skip
    network.load_state_dict(golden.weights("clip_text_tiny"))
    with torch.no_grad():
        embedding = network.encode_text(arrays["tokens"])
    torch.testing.assert_close(embedding, arrays["out"], rtol=0, atol=1e-5 * float(arrays["out"].abs().max()))


def test_what_follows_the_end_of_text_changes_nothing():
    network = Clip(TINY)
    tokens = torch.tensor([[48, 5, 49, 0, 0, 0, 0, 0, 0], [48, 5, 49, 7, 8, 9, 1, 2, 3]])
    first, second = network.encode_text(tokens)
    torch.testing.assert_close(first, second)


def test_the_image_tower_sees_where_a_patch_is():
    network, image = Clip(TINY), torch.rand(1, 3, 16, 16)
    embeddings = network.encode_image(torch.cat([image, image.roll(8, dims=3)]))
    assert not torch.allclose(embeddings[0], embeddings[1])


def test_a_grey_picture_of_the_training_mean_is_normalised_to_zero():
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).reshape(1, 3, 1, 1)
    torch.testing.assert_close(normalize_image(mean), torch.zeros_like(mean))


def test_every_parameter_but_the_temperature_gets_a_gradient():
    network = Clip(TINY)
    images, texts = network(torch.rand(2, 3, 16, 16), torch.tensor([[48, 5, 49, 0, 0, 0, 0, 0, 0]] * 2))
    (images * texts).sum().backward()
    assert {name for name, parameter in network.named_parameters() if parameter.grad is None} == {
        "logit_scale"
    }


def test_a_text_only_clip_refuses_pictures():
    network = Clip(ClipConfig(**{**vars(TINY), "vision_layers": 0}))
    with pytest.raises(ValueError, match="no image tower"):
        network.encode_image(torch.rand(1, 3, 16, 16))
