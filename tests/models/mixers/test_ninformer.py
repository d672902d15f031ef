"""NiNformer: the gated equation, what its gate sees, and upstream's one norm."""

import torch
from torch.nn import functional as F

from models.layered import num_parameters
from models.mixers.mlp_mixer import MixerBlock
from models.mixers.ninformer import NiNBlock, NiNformer, NiNformerConfig

CONFIG = NiNformerConfig(hidden_size=8, inner_size=12, num_layers=2)


def block() -> NiNBlock:
    torch.manual_seed(0)
    made = NiNBlock(CONFIG)
    for norm in made.norms:  # else both norms would be the same, and a mistake between them unseen
        torch.nn.init.uniform_(norm.weight, 0.5, 1.5)
    return made


def test_a_block_is_the_gated_equation() -> None:
    made, hidden = block(), torch.randn(2, 4, 4, 8)
    x = hidden.flatten(1, 2)  # [B, 16, 8]
    y = F.layer_norm(x, (8,), made.norms[0].weight, made.norms[0].bias)
    mixer = made.gate.mixer
    t = F.layer_norm(y, (8,), mixer.token_norm.weight, mixer.token_norm.bias)
    v = y + (F.gelu(t.mT @ mixer.tokens.up.weight.T + mixer.tokens.up.bias) @ mixer.tokens.down.weight.T).mT
    v = v + mixer.tokens.down.bias[:, None]
    v = v + mixer.channels(F.layer_norm(v, (8,), mixer.channel_norm.weight, mixer.channel_norm.bias))
    x = x + (y @ made.gate.linear.weight.T + made.gate.linear.bias) * v
    x = x + made.channels(F.layer_norm(x, (8,), made.norms[1].weight, made.norms[1].bias))
    torch.testing.assert_close(made(hidden).flatten(1, 2), x, atol=1e-5, rtol=0)


def test_the_gate_sees_every_token() -> None:
    gate, hidden = block().gate, torch.randn(1, 4, 4, 8)
    moved = hidden.clone()
    moved[0, 2, 1, 0] += 1
    gates = (gate.mixer(moved) != gate.mixer(hidden))[0].any(-1)
    gated = (gate.linear(moved) != gate.linear(hidden))[0].any(-1)
    assert gates.all()
    assert gated.nonzero().tolist() == [[2, 1]]


def test_a_mixer_without_token_weights_mixes_no_tokens() -> None:
    torch.manual_seed(0)
    mixer, hidden = MixerBlock(16, 8, 12, 12), torch.randn(1, 4, 4, 8)
    torch.nn.init.zeros_(mixer.tokens.down.weight)
    before = mixer(hidden)
    hidden[0, 2, 1, 0] += 1  # a norm would not notice a shift of all channels
    assert (mixer(hidden) != before)[0].any(-1).nonzero().tolist() == [[2, 1]]


def test_two_norms_by_default_and_upstreams_one_when_asked() -> None:
    torch.manual_seed(0)
    two, one = (
        NiNformer(CONFIG),
        NiNformer(NiNformerConfig(hidden_size=8, inner_size=12, num_layers=2, shared_norm=True)),
    )
    assert num_parameters(two) - num_parameters(one) == 2 * 2 * 8  # gain and bias of 8 channels, in two blocks
    shared = {name: value for name, value in two.state_dict().items() if ".norms.1." not in name}
    for i in range(2):
        two.layers[i].norms[1].load_state_dict(two.layers[i].norms[0].state_dict())
    one.load_state_dict(shared)
    images = torch.rand(3, 1, 8, 8) * 16
    assert torch.equal(one(images), two(images))
