r"""Writes fixtures/diffusion_tta.safetensors: what the reference makes of two tiny models and two images, for tests/parity.rs.

Schedule, noising and diffusion transformer are those of diffusers; the steps are those of torch. The loop between them is written after
the paper (Diffusion-TTA, arXiv 2311.16102, algorithm 1): p = softmax(f(x)); c = sum_k p_k l_k over the class embeddings; the loss is the
mean of (pred_noise(x_t, c, t) - noise)^2 over fresh timesteps and noises; its gradient goes through p into the classifier. The classifier
is that of src/model/vit.rs, of plain torch operations. All is computed in f64 from weights that f32 holds exactly, so that what is
compared with it is the error of the other side alone (but for the schedule, which diffusers has in f32).

Timesteps and noise come from `Key`, which repeats src/noise.rs. Images fill the range -1..=1, so that the intensity stretch of the judge
leaves them as they are.

    python3 -m venv venv
    venv/bin/pip install torch==2.15.0 diffusers==0.42.1 safetensors==0.8.0 numpy==2.4.6 blake3==1.0.11
    venv/bin/python tests/reference/diffusion_tta.py
"""

import math
import pathlib

import blake3
import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, DiTTransformer2DModel
from safetensors.torch import save_file

torch.set_num_threads(1)

PATH = pathlib.Path(__file__).parent / "fixtures/diffusion_tta.safetensors"
SEED = 7
CLASSES, CHANNELS, SIDE, PATCH, HIDDEN, DEPTH, HEADS = 4, 3, 8, 2, 16, 2, 2
WINDOW, MLP_RATIO = 4, 2  # of the classifier
IMAGES = 2
DRAWS, STEPS = 6, 5  # draws of one step for one image; steps
NUM_TIMESTEPS = 1000
NOISED_AT = [0, 20, 250, 600, 999]
JUDGED_AT = [100, 400]
SCORE_SCALE, PRIOR_WEIGHT, LIKELIHOOD_SCALE = 3.0, 0.7, 2.0
SGD = dict(lr=0.3, momentum=0.9)
ADAM_W = dict(lr=0.01, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.1)


class Key:
    """The noise of src/noise.rs: BLAKE3 to a key, Philox4x32-10 to words, Box-Muller to normals (here in f64)."""

    def __init__(self, index):
        hashed = SEED.to_bytes(8, "little") + index.to_bytes(8, "little") + b"parity"
        digest = blake3.blake3(hashed, derive_key_context="undrift lab key 1").digest()
        self.key, self.counter = np.split(np.frombuffer(digest[:16], "<u4").astype(np.uint64), 2)

    def words(self, draw, quads):
        mask, (k0, k1) = np.uint64(0xFFFFFFFF), self.key
        zeros = np.zeros_like(quads)
        c = [quads, zeros + np.uint64(draw), zeros + self.counter[0], zeros + self.counter[1]]
        for _ in range(10):
            first, second = c[0] * np.uint64(0xD2511F53), c[2] * np.uint64(0xCD9E8D57)
            c = [(second >> np.uint64(32)) ^ c[1] ^ k0, second & mask, (first >> np.uint64(32)) ^ c[3] ^ k1, first & mask]
            k0, k1 = (k0 + np.uint64(0x9E3779B9)) & mask, (k1 + np.uint64(0xBB67AE85)) & mask
        return c

    def timestep(self, draw):
        return int(self.words(draw, np.array([1 << 31], np.uint64))[0][0]) * NUM_TIMESTEPS >> 32

    def normal(self, draw):
        a, b, c, d = self.words(draw, np.arange(CHANNELS * SIDE * SIDE // 4, dtype=np.uint64))
        values = []
        for radius, angle in [(a, b), (c, d)]:
            radius = np.sqrt(-2 * np.log(((radius >> np.uint64(9)) + 0.5) / 2**23))
            angle = angle * (2 * math.pi / 2**32)
            values += [radius * np.cos(angle), radius * np.sin(angle)]
        return torch.from_numpy(np.stack(values, axis=1).reshape(CHANNELS, SIDE, SIDE))


def diffusion_model(generator):
    """Random weights everywhere, as the zero modulations of a new model would hide most of it.

    In two constants diffusers differs from the published model (facebookresearch/DiT, `models.py`), whose values are set: the
    frequencies of the timestep are 10000^(-i / 128), not ^(-i / 127), and 1e-6 is added to the variance in every norm.
    """
    model = DiTTransformer2DModel(
        num_attention_heads=HEADS, attention_head_dim=HIDDEN // HEADS, in_channels=CHANNELS, out_channels=2 * CHANNELS,
        num_layers=DEPTH, sample_size=SIDE, patch_size=PATCH, num_embeds_ada_norm=CLASSES, norm_eps=1e-6,
    )  # fmt: skip
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            deviation = 1.0 if "embedding_table" in name else 0.2 if parameter.ndim == 1 else 1 / math.sqrt(parameter[0].numel())
            parameter.normal_(0, deviation, generator=generator)
        for block in model.transformer_blocks:
            # Each block has a copy of the one embedding of the published model.
            block.norm1.emb.load_state_dict(model.transformer_blocks[0].norm1.emb.state_dict())
    weights = {f"diffusion.{name}": tensor.clone() for name, tensor in model.state_dict().items()}
    for block in model.transformer_blocks:
        block.norm1.emb.time_proj.downscale_freq_shift = 0
        take_sines_in_f64(block.norm1.emb.time_proj)
        take_mixtures(block.norm1.emb.class_embedder)
    return model.double().eval().requires_grad_(False), weights


def take_sines_in_f64(time_proj):
    """In f32, as the library has them, sines of large angles are off by up to 6e-5, more than all other errors together."""
    of_library = time_proj.forward

    def forward(timesteps):
        frequencies = 10_000 ** (-torch.arange(128).double() / 128)
        angles = timesteps[:, None] * frequencies
        sines = torch.cat([angles.cos(), angles.sin()], dim=1)
        assert torch.allclose(sines, of_library(timesteps).double(), rtol=0, atol=1e-4), "they are the library's sines"
        return sines

    time_proj.forward = forward


def take_mixtures(embedder):
    """Lets probabilities (N, K) stand for labels (N), as in the DiT of the released code, which takes the condition itself."""
    of_labels = embedder.forward

    def forward(classes):
        return classes @ embedder.embedding_table.weight[:CLASSES] if classes.is_floating_point() else of_labels(classes)

    embedder.forward = forward


def pred_noise(model, x_t, timesteps, classes):
    """The first half of the channels; the other half is the learned variance."""
    return model(x_t, timestep=torch.tensor(timesteps), class_labels=classes).sample[:, :CHANNELS]


def classifier_weights(generator):
    inner, tokens = HIDDEN * MLP_RATIO, (SIDE // PATCH) ** 2
    shapes = {
        "embed.weight": (0.15, HIDDEN, CHANNELS * WINDOW * WINDOW), "embed.bias": (0.2, HIDDEN),
        "position": (0.4, 1, tokens, HIDDEN), "final.modulation": (0.3, 1, 2 * HIDDEN),
        "head.weight": (0.5, CLASSES, HIDDEN), "head.bias": (0.2, CLASSES),
    }  # fmt: skip
    for block in range(DEPTH):
        layers = dict(qkv=(3 * HIDDEN, HIDDEN), projection=(HIDDEN, HIDDEN), expand=(inner, HIDDEN), contract=(HIDDEN, inner))
        for name, (outputs, inputs) in layers.items():
            shapes[f"blocks.{block:02}.{name}.weight"] = (1 / math.sqrt(inputs), outputs, inputs)
            shapes[f"blocks.{block:02}.{name}.bias"] = (0.2, outputs)
        shapes[f"blocks.{block:02}.neighbours"] = (0.2, 9, inner)
        shapes[f"blocks.{block:02}.modulation"] = (0.3, 1, 6 * HIDDEN)
    weights = {name: deviation * torch.randn(shape, generator=generator) for name, (deviation, *shape) in shapes.items()}
    for block in range(DEPTH):
        for gate in (2, 5):
            weights[f"blocks.{block:02}.modulation"][:, gate * HIDDEN : (gate + 1) * HIDDEN] += 1
    return weights


def with_small_tokens(weights):
    """Tokens so small that what the norms add to their variance shows."""
    return {name: tensor / 64 if name in ("embed.weight", "embed.bias", "position") else tensor for name, tensor in weights.items()}


def modulated_norm(x, shift, scale):
    return F.layer_norm(x, (HIDDEN,), eps=1e-6) * (1 + scale) + shift


def attention(weights, block, x):
    n, tokens, _ = x.shape
    q, k, v = linear(weights, f"{block}.qkv", x).reshape(n, tokens, 3, HEADS, HIDDEN // HEADS).permute(2, 0, 3, 1, 4)
    probabilities = torch.softmax(q @ k.transpose(2, 3) / math.sqrt(HIDDEN // HEADS), dim=3)
    return linear(weights, f"{block}.projection", (probabilities @ v).transpose(1, 2).reshape(n, tokens, HIDDEN))


def mlp(weights, block, x):
    h = linear(weights, f"{block}.expand", x).transpose(1, 2)
    n, inner, _ = h.shape
    grid = h.reshape(n, inner, SIDE // PATCH, SIDE // PATCH)
    kernel = weights[f"{block}.neighbours"].T.reshape(inner, 1, 3, 3)
    grid = grid + F.conv2d(grid, kernel, padding=1, groups=inner)
    return linear(weights, f"{block}.contract", F.gelu(grid.flatten(2).transpose(1, 2), approximate="tanh"))


def linear(weights, name, x):
    return F.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])


def classify(weights, images):
    x = F.unfold(images, WINDOW, padding=(WINDOW - PATCH) // 2, stride=PATCH).transpose(1, 2)
    x = linear(weights, "embed", x) + weights["position"]
    for block in (f"blocks.{block:02}" for block in range(DEPTH)):
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = weights[f"{block}.modulation"].chunk(6, dim=1)
        x = x + gate * attention(weights, block, modulated_norm(x, shift, scale))
        x = x + mlp_gate * mlp(weights, block, modulated_norm(x, mlp_shift, mlp_scale))
    shift, scale = weights["final.modulation"].chunk(2, dim=1)
    return linear(weights, "head", modulated_norm(x, shift, scale).mean(dim=1))


def noised(scheduler, image, timesteps, noise):
    return scheduler.add_noise(image.expand_as(noise), noise, torch.tensor(timesteps))


def denoising_loss(model, scheduler, image, logits, key, draws):
    """Algorithm 1, lines 3 to 7, for one image."""
    timesteps, noise = [key.timestep(draw) for draw in draws], torch.stack([key.normal(draw) for draw in draws])
    probabilities = torch.softmax(logits, dim=0).expand(len(draws), CLASSES)
    prediction = pred_noise(model, noised(scheduler, image, timesteps, noise), timesteps, probabilities)
    return ((prediction - noise) ** 2).mean()


def adapt(model, scheduler, images, source, make_optimizer):
    """STEPS steps on the same images; gives losses, the first gradient by the logits, and what has changed after each step."""
    weights = {name: tensor.double().requires_grad_() for name, tensor in source.items()}
    optimizer = make_optimizer(weights.values())
    losses, logit_gradients, updates = [], [], []
    for step in range(STEPS):
        logits = classify(weights, images)
        logits.retain_grad()
        draws = range(step * DRAWS, (step + 1) * DRAWS)
        of_images = [denoising_loss(model, scheduler, images[n], logits[n], Key(n), draws) for n in range(IMAGES)]
        loss = torch.stack(of_images).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        logit_gradients.append(logits.grad.clone())
        updates.append({name: (tensor - source[name]).detach() for name, tensor in weights.items()})
    return losses, logit_gradients[0], updates


def judged(model, scheduler, image, key, logits):
    """By one image: the error of each class, the `score` objective (arXiv 2501.00873, eq. 8) with its gradient, the posterior.

    As in src/learner, errors and score are without the mean square of the noise, which all classes share.
    """
    noise = torch.stack([key.normal(draw) for draw in range(len(JUDGED_AT))])
    x_t = noised(scheduler, image, JUDGED_AT, noise)
    labels = [torch.full((len(JUDGED_AT),), label) for label in range(CLASSES)]
    of_classes = torch.stack([pred_noise(model, x_t, JUDGED_AT, label) for label in labels])  # (K, N, C, H, W)
    energy = (noise**2).mean()
    errors = ((of_classes - noise) ** 2).flatten(1).mean(dim=1) - energy
    logits = logits.clone().requires_grad_()
    mixed = torch.einsum("k,knchw->nchw", torch.softmax(logits, dim=0), of_classes)
    score = SCORE_SCALE * (((mixed - noise) ** 2).mean() - energy)
    score.backward()
    posterior = torch.softmax(PRIOR_WEIGHT * logits.detach() - LIKELIHOOD_SCALE * errors, dim=0)
    return dict(errors=errors, score=score.detach().reshape(1), score_gradient=logits.grad, posterior=posterior)


def diffusion_tensors(model, scheduler, image, key):
    """Schedule, noised images, and the model's predictions of their noise."""
    all_timesteps = torch.arange(NUM_TIMESTEPS)
    ones, zeros = torch.ones(NUM_TIMESTEPS).double(), torch.zeros(NUM_TIMESTEPS).double()
    noise = torch.stack([key.normal(draw) for draw in range(len(NOISED_AT))])
    x_t = noised(scheduler, image, NOISED_AT, noise)
    mixture = torch.tensor([0.1, 0.4, 0.3, 0.2]).double().expand(len(NOISED_AT), CLASSES)
    labels = [torch.full((len(NOISED_AT),), label) for label in range(CLASSES)]
    of_classes = torch.stack([pred_noise(model, x_t, NOISED_AT, label) for label in labels])
    certain = torch.eye(CLASSES).double()[2].expand(len(NOISED_AT), CLASSES)
    assert torch.allclose(pred_noise(model, x_t, NOISED_AT, certain), of_classes[2]), "a certain mixture is its class"
    return {
        "sqrt_alphas_cumprod": scheduler.add_noise(ones, zeros, all_timesteps),
        "sqrt_one_minus_alphas_cumprod": scheduler.add_noise(zeros, ones, all_timesteps),
        "noise": noise,
        "x_t": x_t,
        "pred_noise_of_classes": of_classes,  # (K, N, C, H, W)
        "pred_noise_of_mixture": pred_noise(model, x_t, NOISED_AT, mixture),
    }


def main():
    generator = torch.Generator().manual_seed(SEED)
    images = (1.2 * torch.randn((IMAGES, CHANNELS, SIDE, SIDE), generator=generator)).clamp(-1, 1)
    model, fixture = diffusion_model(generator)
    source = classifier_weights(generator)
    fixture |= {"images": images} | {f"classifier.{name}": tensor for name, tensor in source.items()}
    images = images.double()
    scheduler = DDPMScheduler(num_train_timesteps=NUM_TIMESTEPS, beta_start=1e-4, beta_end=0.02, beta_schedule="linear")
    fixture |= diffusion_tensors(model, scheduler, images[0], Key(0))
    fixture["timesteps"] = torch.tensor([[Key(n).timestep(draw) for draw in range(DRAWS * STEPS)] for n in range(IMAGES)])
    weights = {name: tensor.double() for name, tensor in source.items()}
    logits = classify(weights, images)
    fixture |= {"logits": logits, "logits_of_small_tokens": classify(with_small_tokens(weights), images)}
    of_images = [judged(model, scheduler, images[n], Key(n), logits[n]) for n in range(IMAGES)]
    fixture |= {name: torch.stack([of_image[name] for of_image in of_images]) for name in of_images[0]}
    optimizers = dict(sgd=(torch.optim.SGD, SGD), adam_w=(torch.optim.AdamW, ADAM_W))
    for name, (optimizer, options) in optimizers.items():
        losses, logit_gradient, updates = adapt(model, scheduler, images, source, lambda weights: optimizer(weights, **options))
        fixture |= {f"{name}.losses": torch.tensor(losses), "logit_gradient": logit_gradient}
        for steps in (1, STEPS):
            fixture |= {f"{name}.{steps}.{parameter}": update for parameter, update in updates[steps - 1].items()}
    save_file({name: tensor.float().contiguous() for name, tensor in sorted(fixture.items())}, PATH)
    print(f"{PATH}: {len(fixture)} tensors, {PATH.stat().st_size} bytes; torch {torch.__version__}")


if __name__ == "__main__":
    main()
