"""The two models in PyTorch, on the tensors of a safetensors file. No weight is asked for a gradient here: who wants one says so.

Shape letters: N images or draws, K classes, T tokens, D hidden, P values of a patch.
"""

import json

import numpy as np
import torch
import torch.nn.functional as F

SINES = 256


def read(path):
    with open(path, "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        data = file.read()
    header.pop("__metadata__", None)
    tensor = lambda item: np.frombuffer(data[slice(*item["data_offsets"])], np.float32).reshape(item["shape"]).copy()
    return {name: torch.from_numpy(tensor(item)) for name, item in header.items()}


def linear(weights, name, x):
    return F.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])


def modulated_norm(x, shift, scale):
    return F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift


def neighbour_mix(h, neighbours):
    """h (N, T, inner), neighbours (9, inner): token plus neighbours as one convolution, channels last, so that nothing is copied."""
    n, tokens, inner = h.shape
    side = int(tokens**0.5)
    own = torch.zeros(inner, 1, 3, 3)
    own[:, 0, 1, 1] = 1
    kernel = neighbours.T.reshape(inner, 1, 3, 3) + own
    h = F.conv2d(h.view(n, side, side, inner).permute(0, 3, 1, 2), kernel, padding=1, groups=inner)
    return h.permute(0, 2, 3, 1).reshape(n, tokens, inner)


def block(weights, name, heads, x, modulation):
    """x (N, T, D), modulation (N or 1, 1, 6 D)."""
    n, tokens, hidden = x.shape
    shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = modulation.chunk(6, 2)
    qkv = linear(weights, f"{name}.qkv", modulated_norm(x, shift, scale))
    query, key, value = qkv.view(n, tokens, 3, heads, hidden // heads).permute(2, 0, 3, 1, 4)
    h = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).reshape(n, tokens, hidden)
    x = x + gate * linear(weights, f"{name}.projection", h)
    h = linear(weights, f"{name}.expand", modulated_norm(x, mlp_shift, mlp_scale))
    h = F.gelu(neighbour_mix(h, weights[f"{name}.neighbours"]), approximate="tanh")
    return x + mlp_gate * linear(weights, f"{name}.contract", h)


def blocks(weights):
    return [name.removesuffix(".qkv.bias") for name in weights if name.endswith(".qkv.bias")]


def trunk(weights, heads, images, modulations):
    """Images (N, C, H, W) -> (N, T, D); a token sees a square of twice its patch."""
    channels, patch = images.shape[1], images.shape[2] // int(weights["position"].shape[1] ** 0.5)
    window = weights["embed.weight"].reshape(-1, channels, 2 * patch, 2 * patch)
    x = F.conv2d(images, window, weights["embed.bias"], stride=patch, padding=patch // 2).flatten(2).transpose(1, 2) + weights["position"]
    for name, modulation in zip(blocks(weights), modulations):
        x = block(weights, name, heads, x, modulation)
    return x


def vit(weights, heads, images):
    """Images (N, C, H, W) -> logits (N, K)."""
    modulations = [weights[f"{name}.modulation"][:, None] for name in blocks(weights)]
    shift, scale = weights["final.modulation"][:, None].chunk(2, 2)
    x = modulated_norm(trunk(weights, heads, images, modulations), shift, scale)
    return linear(weights, "head", x.mean(1))


def timestep_embedding(weights, timesteps):
    """(N) -> (N, D)"""
    angles = timesteps.double()[:, None] * torch.exp(-np.log(10000.0) * torch.arange(SINES // 2).double() / (SINES // 2))
    sines = torch.cat([angles.cos(), angles.sin()], 1).float()
    return linear(weights, "timestep.contract", F.silu(linear(weights, "timestep.expand", sines)))


def dit_tokens(weights, heads, x_t, embedding):
    """What the readout of the diffusion model sees: x_t (N, C, H, W), embedding of timestep and condition (N, D) -> (N, T, D)."""
    conditioned = F.silu(embedding)
    modulations = [linear(weights, f"{name}.modulation", conditioned)[:, None] for name in blocks(weights)]
    shift, scale = linear(weights, "final.modulation", conditioned)[:, None].chunk(2, 2)
    return modulated_norm(trunk(weights, heads, x_t, modulations), shift, scale)


def patches(images, tokens):
    """Images (N, C, H, W) in the order of a predicted noise, (N, T, P)."""
    n, channels, height, width = images.shape
    side = int(tokens**0.5)
    cut = images.view(n, channels, side, height // side, side, width // side)
    return cut.permute(0, 2, 4, 1, 3, 5).reshape(n, tokens, -1)
