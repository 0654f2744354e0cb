import torch

from services.refiner.networks.text_encoder import TextEncoder, TextEncoderConfig


def test_the_context_agrees_with_the_reference(golden):
    weights, arrays = golden.weights("bert_tiny"), golden.arrays("bert_tiny")
    network = TextEncoder(TextEncoderConfig(n_embed=64, n_layer=2, vocab_size=1000))
    network.load_state_dict({name: w for name, w in weights.items() if "to_logits" not in name})
    with torch.no_grad():
        context = network(arrays["tokens"])
    torch.testing.assert_close(context, arrays["out"], rtol=0, atol=1e-5 * float(arrays["out"].abs().max()))


def test_every_parameter_gets_a_gradient():
    network = TextEncoder(TextEncoderConfig(n_embed=32, n_layer=1, vocab_size=20, max_seq_len=6, heads=2))
    network(torch.tensor([[1, 2, 3, 0, 0, 0]])).square().mean().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
