"""The other side of benches/published.rs: Diffusion-TTA (arXiv 2311.16102, algorithm 1) in PyTorch eager, on the shipped weights.

Reads one command a line and answers each with one line:
    threads COUNT                                               -> "ready"
    load CLASSIFIER HEADS DIFFUSION HEADS EMBEDDINGS FRAMES     -> "ready"
        EMBEDDINGS: f32 of (K, D); FRAMES: f32 of (F, 2, 1, 32, 32), each frame as the classifier and as the diffusion model sees it
    check DRAWS OUTPUT TIMESTEP...                              -> "ready"
        DRAWS: f32 of (2, N, 1, 32, 32), x_t and noise; OUTPUT: f32, see `check`
    readout FRAME | blocks FRAME                                -> seconds for the frame, and its label
The condition enters at the readout, as in the shipped model, or at the blocks, as in the published one; each way has a classifier of
its own, which goes on from frame to frame. Where it enters at the readout, only that has to be gone back through: mixing the readout's
weights by the probabilities once is mixing predictions, for a tenth of the products, and the blocks run without a graph. At the blocks,
the gradient goes through all of them, with a readout for one class. No weight of the diffusion model is asked for a gradient.
"""

import sys
import time

import numpy as np
import torch
import torch.nn.functional as F

from transformer import dit_tokens, linear, patches, read, timestep_embedding, vit

STEPS = 5
# `batch_size` and `accum_iter` of the released code; in passes of 60 or 180 draws PyTorch is slower here.
DRAWS = 20
PASSES = 9
LEARNING_RATE = 5e-3
MOMENTUM = 0.9
# DiT's schedule.
PRODUCTS = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000).double(), 0).float()[:, None, None, None]


def floats(path):
    return torch.from_numpy(np.fromfile(path, np.float32))


class Diffusion:
    """Frozen. Predicted noise (N, T, P) under the condition that probabilities (1, K) make."""

    def __init__(self, weights, heads, embeddings):
        self.weights, self.heads, self.embeddings = weights, heads, embeddings
        self.classes = len(embeddings)
        self.patch = len(weights["readout.bias"]) // self.classes
        self.tokens = weights["position"].shape[1]
        self.one_class = {f"readout.{name}": weights[f"readout.{name}"][: self.patch].clone() for name in ("weight", "bias")}

    def readout(self, x_t, timesteps, probabilities):
        with torch.no_grad():
            tokens = dit_tokens(self.weights, self.heads, x_t, timestep_embedding(self.weights, timesteps))
        weight = (probabilities @ self.weights["readout.weight"].view(self.classes, -1)).view(self.patch, -1)
        bias = (probabilities @ self.weights["readout.bias"].view(self.classes, -1)).flatten()
        return F.linear(tokens, weight, bias)

    def blocks(self, x_t, timesteps, probabilities):
        embedding = timestep_embedding(self.weights, timesteps) + probabilities @ self.embeddings
        return linear(self.one_class, "readout", dit_tokens(self.weights, self.heads, x_t, embedding))


class Adaptation:
    """A classifier on its way, and the diffusion model that it learns from."""

    def __init__(self, weights, heads, pred_noise, tokens):
        self.weights = {name: torch.nn.Parameter(value.clone()) for name, value in weights.items()}
        self.heads, self.pred_noise, self.tokens = heads, pred_noise, tokens
        self.optimizer = torch.optim.SGD(self.weights.values(), lr=LEARNING_RATE, momentum=MOMENTUM)

    def probabilities(self, planes):
        return F.softmax(vit(self.weights, self.heads, planes), 1)

    def loss(self, x_t, timesteps, noise, condition):
        return F.mse_loss(self.pred_noise(x_t, timesteps, condition), patches(noise, self.tokens))

    def frame(self, planes, x_start):
        for _ in range(STEPS):
            self.step(planes, x_start)
        with torch.no_grad():
            return self.probabilities(planes).argmax().item()

    def step(self, planes, x_start):
        """The classifier is asked once a step, and not once a pass as in the released code: the gradient is the same."""
        probabilities = self.probabilities(planes)
        condition = probabilities.detach().requires_grad_()
        for _ in range(PASSES):
            timesteps = torch.randint(len(PRODUCTS), (DRAWS,))
            noise = torch.randn(DRAWS, *x_start.shape[1:])
            x_t = PRODUCTS[timesteps].sqrt() * x_start + (1 - PRODUCTS[timesteps]).sqrt() * noise
            (self.loss(x_t, timesteps, noise, condition) / PASSES).backward()
        self.optimizer.zero_grad()
        probabilities.backward(condition.grad)
        self.optimizer.step()


class Side:
    def threads(self, count):
        torch.set_num_threads(int(count))

    def load(self, classifier, classifier_heads, diffusion, heads, embeddings, frames):
        classifier, diffusion = read(classifier), read(diffusion)
        hidden = len(diffusion["embed.bias"])
        self.model = Diffusion(diffusion, int(heads), floats(embeddings).view(-1, hidden))
        self.frames = floats(frames).view(-1, 2, 1, 1, 32, 32)
        of = lambda pred_noise: Adaptation(classifier, int(classifier_heads), pred_noise, self.model.tokens)
        self.by_readout, self.by_blocks = of(self.model.readout), of(self.model.blocks)

    def check(self, draws, output, *timesteps):
        """Writes the probabilities of the first frame, and for each way predicted noise and the gradient of the loss by probabilities."""
        x_t, noise = floats(draws).view(2, -1, 1, 32, 32)
        timesteps = torch.tensor([int(timestep) for timestep in timesteps])
        written = [self.by_readout.probabilities(self.frames[0, 0]).detach()]
        for side in (self.by_readout, self.by_blocks):
            condition = written[0].clone().requires_grad_()
            side.loss(x_t, timesteps, noise, condition).backward()
            written += [side.pred_noise(x_t, timesteps, condition).detach(), condition.grad]
        torch.cat([values.flatten() for values in written]).numpy().tofile(output)

    def readout(self, frame):
        return self.by_readout.frame(*self.frames[int(frame)])

    def blocks(self, frame):
        return self.by_blocks.frame(*self.frames[int(frame)])


side = Side()
for line in sys.stdin:
    command, *arguments = line.split()
    started = time.perf_counter()
    label = getattr(side, command)(*arguments)
    took = time.perf_counter() - started
    print("ready" if label is None else f"{took} {label}", flush=True)
