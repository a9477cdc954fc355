#!/usr/bin/env python3
"""The competitors' public code on this project's models and frames: what `undrift eval` is compared with.

The models are rebuilt in PyTorch from a bundle's weights, and must give the logits that the bundle gives (1e-4 of them) before
anything is compared. The methods are imported from checkouts of their public repositories, with their own constants; nothing of
them is copied here. Learning rate and optimizer can be given, so that both sides run the same.

    cargo run --release --example competitor_frames -- configs/fashion-mnist/undrift.toml continual 1600 201 FRAMES
    python tests/reference/competitors.py --public CHECKOUTS --bundle configs/fashion-mnist --frames FRAMES --method tent

CHECKOUTS holds test-time-adaptation, memo and DUSA. Needs torch, torchvision, numpy, pillow, yacs, iopath, einops. Results:
COMPETITORS.md.
"""

import argparse
import csv
import gzip
import importlib.util
import json
import math
import sys
import tomllib
import types
from pathlib import Path

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from PIL import Image

WINDOW = 16
CLASSES = 10


# The models.


def weights(path):
    """Tensors of a safetensors file, by name."""
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    tensors = {}
    for name, entry in json.loads(data[8:start]).items():
        if name != "__metadata__":
            first, last = entry["data_offsets"]
            values = np.frombuffer(data[start + first : start + last], np.float32)
            tensors[name] = torch.from_numpy(values.reshape(entry["shape"]).copy())
    return tensors


def linear(tensors, name):
    layer = nn.Linear(*reversed(tensors[f"{name}.weight"].shape))
    layer.load_state_dict({part: tensors[f"{name}.{part}"] for part in ("weight", "bias")})
    return layer


class Weight(nn.Module):
    """A parameter that is no layer, under a name that public code looks for."""

    def __init__(self, values):
        super().__init__()
        self.weight = nn.Parameter(values.clone())


class Norm(nn.LayerNorm):
    """Layer norm as public code knows it: `bias` is the shift; `weight` is the scale less one, and the gate of the branch."""

    def __init__(self, shift, scale, gate=None):
        super().__init__(len(shift), eps=1e-6)
        self.bias = nn.Parameter(shift.clone())
        self.weight = nn.Parameter(scale.clone() if gate is None else torch.cat([scale, gate]))

    def forward(self, x):
        (d,) = self.normalized_shape
        return F.layer_norm(x, (d,), None, None, self.eps) * (1 + self.weight[:d]) + self.bias

    def gate(self):
        return self.weight[self.normalized_shape[0] :]


def constant_norms(modulation):
    """The two norms of a block, from its row (6 D)."""
    shift, scale, gate, shift2, scale2, gate2 = modulation.reshape(6, -1)
    return Norm(shift, scale, gate), Norm(shift2, scale2, gate2)


class Block(nn.Module):
    def __init__(self, tensors, name, heads, grid):
        super().__init__()
        self.heads, self.grid = heads, grid
        self.qkv, self.projection, self.expand, self.contract = (
            linear(tensors, f"{name}.{part}") for part in ("qkv", "projection", "expand", "contract")
        )
        self.neighbours = Weight(tensors[f"{name}.neighbours"])

    def attention(self, x):
        n, t, d = x.shape
        q, k, v = self.qkv(x).reshape(n, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        return self.projection(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, t, d))

    def mlp(self, x):
        x = self.expand(x)
        n, t, c = x.shape
        plane = x.transpose(1, 2).reshape(n, c, *self.grid)
        mixed = F.conv2d(plane, self.neighbours.weight.T.reshape(c, 1, 3, 3), padding=1, groups=c)
        return self.contract(F.gelu(x + mixed.reshape(n, c, t).transpose(1, 2), approximate="tanh"))


class Trunk(nn.Module):
    def __init__(self, tensors, config, image):
        super().__init__()
        self.patch, self.window = config["patch"], config["patch_window"]
        self.grid = (image["height"] // self.patch, image["width"] // self.patch)
        self.embed = linear(tensors, "embed")
        self.position = Weight(tensors["position"])
        # Public code knows the last quarter of a transformer's blocks by the numbers 9 to 11 of twelve.
        depth = config["depth"]
        late = {block: str(9 + block - (depth - depth // 4)) for block in range(depth - depth // 4, depth)}
        blocks = {late.get(block, str(block)): Block(tensors, f"blocks.{block:02}", config["heads"], self.grid) for block in range(depth)}
        self.blocks = nn.ModuleDict(blocks)

    def tokens(self, x):
        windows = F.unfold(x, self.window, padding=(self.window - self.patch) // 2, stride=self.patch).transpose(1, 2)
        return self.embed(windows) + self.position.weight


class Vit(nn.Module):
    """Images (N, C, H, W) in 0..1 -> logits."""

    def __init__(self, tensors, config, image):
        super().__init__()
        self.trunk = Trunk(tensors, config, image)
        for index, block in enumerate(self.trunk.blocks.values()):
            block.norm1, block.norm2 = constant_norms(tensors[f"blocks.{index:02}.modulation"][0])
        self.norm = Norm(*tensors["final.modulation"][0].reshape(2, -1))
        self.head = linear(tensors, "head")

    def features(self, x):
        x = self.trunk.tokens(2 * x - 1)
        for block in self.trunk.blocks.values():
            x = x + block.norm1.gate() * block.attention(block.norm1(x))
            x = x + block.norm2.gate() * block.mlp(block.norm2(x))
        return self.norm(x).mean(1)

    def forward(self, x):
        return self.head(self.features(x))


class Convolution(nn.Module):
    def __init__(self, tensors, name, stride):
        super().__init__()
        weight, bias = (tensors[f"{name}.convolution.{part}"] for part in ("weight", "bias"))
        outputs, inputs = weight.shape[0], weight.shape[1] // 9
        self.conv = nn.Conv2d(inputs, outputs, 3, stride, 1)
        self.conv.weight.data = weight.reshape(outputs, 3, 3, inputs).permute(0, 3, 1, 2).contiguous()
        self.conv.bias.data = bias
        self.bn = nn.BatchNorm2d(outputs)
        names = {"weight": "scale", "bias": "shift", "running_mean": "running_mean", "running_var": "running_variance"}
        state = {theirs: tensors[f"{name}.norm.{ours}"] for theirs, ours in names.items()}
        self.bn.load_state_dict({**state, "num_batches_tracked": torch.tensor(0)})

    def forward(self, x):
        return self.bn(self.conv(x))


class ResidualBlock(nn.Module):
    def __init__(self, tensors, name, stride):
        super().__init__()
        self.first = Convolution(tensors, f"{name}.first", stride)
        self.second = Convolution(tensors, f"{name}.second", 1)
        self.shortcut = Convolution(tensors, f"{name}.shortcut", stride) if stride > 1 else nn.Identity()

    def forward(self, x):
        return (self.shortcut(x) + self.second(self.first(x).relu())).relu()


class ResNet(nn.Module):
    """Images (N, C, H, W) in 0..1 -> logits."""

    def __init__(self, tensors, config, _image):
        super().__init__()
        self.stem = Convolution(tensors, "stem", 2)
        # Public code knows the last stage by the name layer4.
        for stage, name in enumerate(("layer2", "layer3", "layer4")):
            strides = [2 if stage > 0 and block == 0 else 1 for block in range(config["blocks"])]
            blocks = [ResidualBlock(tensors, f"blocks.{stage}{block}", stride) for block, stride in enumerate(strides)]
            setattr(self, name, nn.Sequential(*blocks))
        self.head = linear(tensors, "head")

    def features(self, x):
        x = self.stem(2 * x - 1).relu()
        return self.layer4(self.layer3(self.layer2(x))).mean((2, 3))

    def forward(self, x):
        return self.head(self.features(x))


class Dit(nn.Module):
    """The diffusion model: x_t (N, C, H, W), timesteps (N) -> noise predicted under each class, (N, K, C, H, W)."""

    def __init__(self, tensors, config, image):
        super().__init__()
        self.trunk, self.image = Trunk(tensors, config, image), image
        self.expand, self.contract = (linear(tensors, f"timestep.{part}") for part in ("expand", "contract"))
        self.modulations = nn.ModuleList(linear(tensors, f"blocks.{block:02}.modulation") for block in range(config["depth"]))
        self.final, self.readout = linear(tensors, "final.modulation"), linear(tensors, "readout")

    def forward(self, x, timesteps):
        frequencies = torch.exp(-math.log(10_000) * torch.arange(128) / 128)
        angles = timesteps[:, None].float() * frequencies
        condition = self.contract(F.silu(self.expand(torch.cat([angles.cos(), angles.sin()], 1))))
        condition = F.silu(condition)
        x = self.trunk.tokens(x)
        norm = lambda x, shift, scale: F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale[:, None]) + shift[:, None]
        for block, modulation in zip(self.trunk.blocks.values(), self.modulations):
            shift, scale, gate, shift2, scale2, gate2 = modulation(condition).chunk(6, 1)
            x = x + gate[:, None] * block.attention(norm(x, shift, scale))
            x = x + gate2[:, None] * block.mlp(norm(x, shift2, scale2))
        x = self.readout(norm(x, *self.final(condition).chunk(2, 1)))  # (N, T, K P)
        (rows, columns), patch, channels = self.trunk.grid, self.trunk.patch, self.image["channels"]
        x = x.reshape(len(x), rows, columns, CLASSES, channels, patch, patch).permute(0, 3, 4, 1, 5, 2, 6)
        return x.reshape(len(x), CLASSES, channels, rows * patch, columns * patch)


def load(bundle):
    """Classifier and diffusion model of a bundle's folder."""
    config = tomllib.loads((bundle / "undrift.toml").read_text())
    files = {name: weights(bundle / config["bundle"][name]) for name in ("classifier", "diffusion")}
    architecture = {"vit": Vit, "resnet": ResNet}[config["classifier"]["architecture"]]
    classifier = architecture(files["classifier"], config["classifier"], config["image"])
    return classifier.eval(), Dit(files["diffusion"], config["diffusion"], config["image"]).eval().requires_grad_(False)


# The frames.


def frames(folder, limit):
    """Images (N, 1, H, W) in 0..1 and labels, in order."""
    rows = list(csv.DictReader((folder / "frames.csv").open()))[:limit]
    images = [torch.from_numpy(np.asarray(Image.open(folder / row["file"]).convert("L")).copy()) for row in rows]
    return torch.stack(images)[:, None].float() / 255, torch.tensor([int(row["label"]) for row in rows])


def source_images(folder, count=2000):
    """The first training images, in the middle of a black frame: what EATA measures importance on."""
    with gzip.open(folder / "train-images-idx3-ubyte.gz") as file:
        pixels = np.frombuffer(file.read()[16 : 16 + count * 784], np.uint8).reshape(count, 1, 28, 28)
    return F.pad(torch.from_numpy(pixels.copy()).float() / 255, (2, 2, 2, 2))


# The methods.


def stub(name, path=None, **members):
    """Puts a module of these members in the place of an imported one; with a path, its submodules are the real ones."""
    module = types.ModuleType(name)
    module.__dict__.update(members)
    if path:
        module.__path__ = [str(path)]
    sys.modules[name] = module


def public_methods(checkout, images):
    """Imports test-time-adaptation without the model zoos that it does not need here."""
    sys.path.insert(0, str(checkout / "classification"))

    features = lambda model, *_: (model.features, model.head)
    batches = [(batch,) for batch in images.split(64)]
    stub("models")
    stub("models.model", ResNetDomainNet126=type("ResNetDomainNet126", (), {}), split_up_model=features)
    stub("datasets")
    stub("datasets.data_loading", get_source_loader=lambda **_: (None, batches))
    stub("methods", path=checkout / "classification" / "methods")


def configuration(checkout, name, options):
    """The public constants for CIFAR-10-C, with the window and the given options."""
    conf = importlib.import_module("conf")
    conf.cfg.merge_from_file(str(checkout / "classification" / "cfgs" / "cifar10_c" / f"{name}.yaml"))
    conf.cfg.OPTIM.NESTEROV = False
    conf.cfg.TEST.BATCH_SIZE = WINDOW
    if options.optimizer:
        conf.cfg.OPTIM.METHOD = options.optimizer
    if options.learning_rate:
        conf.cfg.OPTIM.LR = options.learning_rate
    if options.entropy_margin:
        conf.cfg.EATA.MARGIN_E0 = options.entropy_margin
    return conf.cfg


# Name of the method: module, class and constants of the public code.
METHODS = {
    "source": ("source", "Source", "source"),
    "norm": ("norm", "BNTest", "norm_test"),
    "tent": ("tent", "Tent", "tent"),
    "eata": ("eata", "EATA", "eata"),
    "rdumb": ("eata", "EATA", "rdumb"),
    "sar": ("sar", "SAR", "sar"),
    "cotta": ("cotta", "CoTTA", "cotta"),
    "rotta": ("rotta", "RoTTA", "rotta"),
    "roid": ("roid", "ROID", "roid"),
    "lame": ("lame", "LAME", "lame"),
}


def by_windows(model, images, options):
    checkout = options.public / "test-time-adaptation"
    public_methods(checkout, source_images(options.data))
    module, name, constants = METHODS[options.method]
    method = getattr(importlib.import_module(f"methods.{module}"), name)
    cfg = configuration(checkout, constants, options)
    if options.method == "lame":
        cfg.LAME.AFFINITY = "kNN"
    model.model_preprocess = None
    if options.method == "rotta":
        # Off CUDA the public code hands its loss an argument that it does not take.
        loss = method.loss_calculation
        method.loss_calculation = lambda self, *_: loss(self)
    method = method(cfg, model, CLASSES)
    return torch.cat([method([window]).detach().argmax(1) for window in images.split(WINDOW)])


def memo(model, images, options):
    """MEMO of test-time-adaptation with the augmentations of the paper's code for CIFAR-10, one frame at a time."""
    checkout = options.public / "test-time-adaptation"
    public_methods(checkout, images[:1])
    cfg = configuration(checkout, "memo", options)
    cfg.BN.ALPHA = 1 / 17
    path = options.public / "memo" / "cifar-10-exps" / "utils" / "third_party.py"
    spec = importlib.util.spec_from_file_location("third_party", path)
    augmix = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(augmix)
    augmix.preprocess = augmix.transforms.ToTensor()
    model.model_preprocess = None
    method = importlib.import_module("methods.memo").MEMO(cfg, model, CLASSES)
    answers = []
    for image in images:
        picture = Image.fromarray((image[0] * 255).round().to(torch.uint8).numpy())
        views = [augmix.aug(picture)[None] for _ in range(cfg.TEST.N_AUGMENTATIONS)]
        with torch.enable_grad():
            answers.append(method([image[None], *views]).detach().argmax(1))
    return torch.cat(answers)


def stretched(images):
    """Images in -1..1 between their quantiles, as the diffusion model is to see them."""
    x = 2 * images - 1
    ordered = x.flatten(1).sort(1).values
    low, high = (ordered[:, int((ordered.shape[1] - 1) * share)][:, None, None, None] for share in (0.05, 0.99))
    return ((x - low) * (2 / (high - low).clamp_min(4 / 255)) - 1).clamp(-1, 1)


def dusa(model, diffusion, images, options):
    """DUSA's loss by its public code, on a frozen diffusion model; one step for each window."""
    checkout = options.public / "DUSA" / "classification"
    sys.path.insert(0, str(checkout))
    torch.Tensor.cuda = lambda tensor, *_: tensor
    registry = types.SimpleNamespace(register_module=lambda *_, **__: lambda of: of)
    stub("diffusers")
    stub("diffusers.models", AutoencoderKL=object)
    stub("mmengine")
    stub("mmengine.registry", MODELS=registry)
    for name, path in (("core", checkout / "core"), ("core.model", checkout / "core" / "model"), ("core.utils", checkout / "core" / "utils")):
        stub(name, path)
    stub("core.model.auxiliary", BaseAuxiliary=nn.Module, Preprocessor=object)
    stub("core.model.device_model", WrappedDeviceModel=object)
    stub("core.model.DiT", checkout / "core" / "model" / "DiT")
    stub("core.model.DiT.models", DiT=object)
    stub("core.model.DiT.download", find_model=None)
    sys.modules["core.model.DiT"].models = sys.modules["core.model.DiT.models"]
    public = importlib.import_module("core.model.dit_topk_multinomial_replace_ori_fp16").DiTTopKMultinomialReplaceOriFP16
    schedule = importlib.import_module("core.model.DiT.diffusion").create_diffusion(timestep_respacing="")

    def pred_noise(x, timesteps, _, condition):
        of_class = diffusion(x, timesteps)[torch.arange(len(x)), condition.argmax(1)]
        return torch.cat([of_class, of_class], 1)

    auxiliary = types.SimpleNamespace(
        cast_data=lambda data: data,
        preprocessor=stretched,
        topk=4,
        rand_budget=2,
        temperature=1.0,
        vae_model=types.SimpleNamespace(encode=lambda x: types.SimpleNamespace(latent_dist=types.SimpleNamespace(mean=x))),
        vae_scalar=1.0,
        timestep_range=(100, 101),
        scheduler=schedule,
        class_embeddings=torch.eye(CLASSES),
        diffusion_model=pred_noise,
        get_prob_score=public.get_prob_score,
    )
    auxiliary.sample_time_step = lambda size: public.sample_time_step(auxiliary, size)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.track_running_stats, module.running_mean, module.running_var = False, None, None
    optimizer = torch.optim.Adam(model.parameters(), lr=options.learning_rate or 1e-5)
    answers = []
    for window in images.split(WINDOW):
        logits = model(window)
        loss = public.forward(auxiliary, window, logits=F.normalize(logits, p=2, dim=-1), ori_logits=logits)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        answers.append(logits.argmax(1))
    return torch.cat(answers)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--public", type=Path, required=True, help="folder of the checkouts")
    parser.add_argument("--bundle", type=Path, default=Path("configs/fashion-mnist"))
    parser.add_argument("--frames", type=Path, required=True, help="folder that the example competitor_frames wrote")
    parser.add_argument("--limit", type=int, help="first frames only")
    parser.add_argument("--method", choices=[*METHODS, "memo", "dusa"], required=True)
    parser.add_argument("--learning-rate", type=float)
    parser.add_argument("--optimizer", choices=["Adam", "SGD"])
    parser.add_argument("--entropy-margin", type=float)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--data", type=Path, default=Path("/usr/share/datasets/fashion-mnist"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(options.seed)
    np.random.seed(options.seed)
    model, diffusion = load(options.bundle)
    images, labels = frames(options.frames, options.limit)
    with torch.no_grad():
        logits = torch.cat([model(window) for window in images.split(64)])
    ours = torch.from_numpy(np.fromfile(options.frames / "logits.f32", np.float32).reshape(-1, CLASSES))[: len(logits)]
    difference = (logits - ours).abs().max().item()
    assert difference < 1e-4 * ours.abs().max().item(), f"the model is not the bundle's: logits differ by {difference}"
    if options.method == "memo":
        answers = memo(model, images, options)
    elif options.method == "dusa":
        answers = dusa(model, diffusion, images, options)
    else:
        answers = by_windows(model, images, options)
    accuracy = (answers == labels).float().mean().item()
    print(json.dumps({"method": options.method, "frames": len(labels), "logit_difference": difference, "accuracy": round(accuracy, 4)}))


if __name__ == "__main__":
    main()
