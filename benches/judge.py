"""The other side of benches/judge.rs: the diffusion model in PyTorch, on the weights of a safetensors file.

Reads one command a line and answers each with one line:
    load WEIGHTS HEADS INPUT TIMESTEP...   INPUT: f32 of (N, 1, 32, 32), one timestep for each -> "ready"
    threads COUNT                          -> "ready"
    write PATH                             the predicted noise (N, T, K P) as f32 -> "ready"
    eager | compiled | sampling            -> seconds that one forward pass, or randn and q_sample, took
    load_classifier WEIGHTS HEADS IMAGES   IMAGES: f32 of (N, 1, 32, 32) -> "ready"
    write_gradients PATH                   of the sum of all logits by the parameters, in the order of their names -> "ready"
    learn                                  -> seconds that the classifier's forward and backward pass took
What depends on the timestep alone is computed at `load`, as the other side does, and the sum of token and neighbours is one convolution.
"""

import sys
import time

import numpy as np
import torch
import torch._inductor.config
import torch.nn.functional as F

from transformer import SINES, read, vit

# Weights as constants, packed at compilation.
torch._inductor.config.freezing = True


class Dit(torch.nn.Module):
    def __init__(self, weights, heads, timesteps):
        super().__init__()
        self.heads, self.hidden = heads, weights["embed.bias"].numel()
        self.depth = sum(name.endswith("qkv.bias") for name in weights)
        self.inner = weights["blocks.00.expand.bias"].numel()
        self.side = int(weights["position"].shape[1] ** 0.5)
        for name, value in weights.items():
            self.register_buffer(name.replace(".", "_"), value)
        self.register_buffer("embed", weights["embed.weight"].reshape(self.hidden, 1, 8, 8))
        for block in range(self.depth):
            kernel = weights[f"blocks.{block:02}.neighbours"].T.reshape(self.inner, 1, 3, 3).clone()
            kernel[:, 0, 1, 1] += 1
            self.register_buffer(f"kernel_{block}", kernel)
        angles = timesteps.double()[:, None] * torch.exp(-np.log(10000.0) * torch.arange(SINES // 2).double() / (SINES // 2))
        sines = torch.cat([angles.cos(), angles.sin()], 1).float()
        conditioned = F.silu(self.linear(F.silu(self.linear(sines, "timestep_expand")), "timestep_contract"))
        for block in range(self.depth):
            self.register_buffer(f"modulation_{block}", self.linear(conditioned, f"blocks_{block:02}_modulation")[:, None])
        self.register_buffer("modulation_last", self.linear(conditioned, "final_modulation")[:, None])

    def linear(self, x, name):
        return F.linear(x, getattr(self, f"{name}_weight"), getattr(self, f"{name}_bias"))

    def norm(self, x, shift, scale):
        return F.layer_norm(x, (self.hidden,), eps=1e-6) * (1 + scale) + shift

    def forward(self, x_t):
        n = x_t.shape[0]
        x = F.conv2d(x_t, self.embed, self.embed_bias, stride=4, padding=2).flatten(2).transpose(1, 2) + self.position  # (N, T, D)
        for block in range(self.depth):
            shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = getattr(self, f"modulation_{block}").chunk(6, 2)
            name = f"blocks_{block:02}"
            qkv = self.linear(self.norm(x, shift, scale), f"{name}_qkv")
            query, key, value = qkv.view(n, -1, 3, self.heads, self.hidden // self.heads).permute(2, 0, 3, 1, 4)
            h = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).reshape(n, -1, self.hidden)
            x = x + gate * self.linear(h, f"{name}_projection")
            h = self.linear(self.norm(x, mlp_shift, mlp_scale), f"{name}_expand")
            h = h.view(n, self.side, self.side, self.inner).permute(0, 3, 1, 2)  # channels last: no copy
            h = F.conv2d(h, getattr(self, f"kernel_{block}"), padding=1, groups=self.inner)
            h = F.gelu(h.permute(0, 2, 3, 1).reshape(n, -1, self.inner), approximate="tanh")
            x = x + mlp_gate * self.linear(h, f"{name}_contract")
        shift, scale = self.modulation_last.chunk(2, 2)
        return self.linear(self.norm(x, shift, scale), "readout")  # (N, T, K P)


class Side:
    def load(self, weights, heads, path, *timesteps):
        timesteps = torch.tensor([int(timestep) for timestep in timesteps])
        self.x_t = torch.from_numpy(np.fromfile(path, np.float32)).reshape(len(timesteps), 1, 32, 32)
        self.model = Dit(read(weights), int(heads), timesteps).eval()
        self.compiled_model = torch.compile(self.model)
        products = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000).double(), 0)[timesteps].float()[:, None, None, None]
        self.signal, self.spread = products.sqrt(), (1 - products).sqrt()

    def threads(self, count):
        torch.set_num_threads(int(count))

    def write(self, path):
        self.model(self.x_t).numpy().tofile(path)

    def eager(self):
        self.model(self.x_t)

    def compiled(self):
        self.compiled_model(self.x_t)

    def sampling(self):
        self.signal * self.x_t + self.spread * torch.randn(self.x_t.shape)

    @torch.inference_mode(False)
    def load_classifier(self, weights, heads, path):
        self.classifier, self.classifier_heads = read(weights), int(heads)
        self.images = torch.from_numpy(np.fromfile(path, np.float32)).reshape(-1, 1, 32, 32)
        for name in sorted(self.classifier):
            self.classifier[name].requires_grad_()

    @torch.inference_mode(False)
    @torch.enable_grad()
    def learn(self):
        for parameter in self.classifier.values():
            parameter.grad = None
        vit(self.classifier, self.classifier_heads, self.images).sum().backward()

    def write_gradients(self, path):
        self.learn()
        np.concatenate([self.classifier[name].grad.numpy().ravel() for name in sorted(self.classifier)]).tofile(path)


side = Side()
with torch.inference_mode():
    for line in sys.stdin:
        command, *arguments = line.split()
        started = time.perf_counter()
        getattr(side, command)(*arguments)
        took = time.perf_counter() - started
        print("ready" if arguments else took, flush=True)
