r"""Writes fixtures/corruptions.json.gz: what the reference libraries make of two small images, for tests/corruptions.rs.

The equations are those of make_cifar_c.py and make_tinyimagenet_c.py (github.com/hendrycks/robustness), with the calls into
scikit-image, OpenCV, scipy and Pillow kept; for motion blur, those of github.com/bethgelab/imagecorruptions, whose package also holds
the frost pictures. Exact cases take their random input from `Shared`, which the test repeats; statistical cases take numpy's.

    python -m venv venv
    venv/bin/pip install numpy==2.4.6 scipy==1.17.1 scikit-image==0.26.0 opencv-python-headless==5.0.0.93 pillow==13.0.0 \
        imagecorruptions==1.1.2
    venv/bin/python tests/reference/corruptions.py            # the fixtures
    venv/bin/python tests/reference/corruptions.py --frost    # the textures in src/lab/corruptions/frost
"""

import gzip
import importlib.util
import io
import json
import math
import pathlib
import sys

import cv2
import numpy as np
import PIL.Image
import skimage as sk
from scipy.ndimage import map_coordinates, zoom as scizoom
from skimage.filters import gaussian

HERE = pathlib.Path(__file__).parent
TEXTURES = HERE.parents[1] / "src/lab/corruptions/frost"
SIDE = 32
STRIDE = 23  # every 23rd byte of a result is kept; coprime to 3 and 32
REPEATS = 100
FROST_FILES = ["frost1.png", "frost2.png", "frost3.png", "frost4.jpg", "frost5.jpg"]

SNOW = [
    (0.1, 0.2, 1, 0.6, 8, 3),
    (0.1, 0.2, 1, 0.5, 10, 4),
    (0.15, 0.3, 1.75, 0.55, 10, 4),
    (0.25, 0.3, 2.25, 0.6, 12, 6),
    (0.3, 0.3, 1.25, 0.65, 14, 12),
]
ELASTIC_CIFAR = [(0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03)]
ELASTIC_TINY = [(0, 0, 0.08), (0.05, 0.3, 0.06), (0.1, 0.08, 0.06), (0.1, 0.03, 0.03), (0.16, 0.03, 0.02)]
ZOOM = [np.arange(1, stop, 0.01) for stop in (1.06, 1.11, 1.16, 1.21, 1.26)]
TABLES = {
    "cifar": dict(
        gaussian_noise=[0.04, 0.06, 0.08, 0.09, 0.10],
        shot_noise=[500, 250, 100, 75, 50],
        impulse_noise=[0.01, 0.02, 0.03, 0.05, 0.07],
        speckle_noise=[0.06, 0.1, 0.12, 0.16, 0.2],
        gaussian_blur=[0.4, 0.6, 0.7, 0.8, 1],
        glass_blur=[(0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)],
        defocus_blur=[(0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)],
        motion_blur=[(6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)],
        zoom_blur=ZOOM,
        fog=[(0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)],
        frost=[(1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)],
        snow=[c + (blend,) for c, blend in zip(SNOW, [0.95, 0.9, 0.9, 0.85, 0.8])],
        spatter=[
            (0.62, 0.1, 0.7, 0.7, 0.5, 0),
            (0.65, 0.1, 0.8, 0.7, 0.5, 0),
            (0.65, 0.3, 1, 0.69, 0.5, 0),
            (0.65, 0.1, 0.7, 0.69, 0.6, 1),
            (0.65, 0.1, 0.5, 0.68, 0.6, 1),
        ],
        contrast=[0.75, 0.5, 0.4, 0.3, 0.15],
        brightness=[0.05, 0.1, 0.15, 0.2, 0.3],
        saturate=[(0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2)],
        jpeg_compression=[80, 65, 58, 50, 40],
        pixelate=[0.95, 0.9, 0.85, 0.75, 0.65],
        elastic_transform=[(32 * a, 32 * s, 32 * f) for a, s, f in ELASTIC_CIFAR],
    ),
    "tiny": dict(
        gaussian_noise=[0.04, 0.08, 0.12, 0.15, 0.18],
        shot_noise=[250, 100, 50, 30, 15],
        impulse_noise=[0.01, 0.02, 0.05, 0.08, 0.14],
        speckle_noise=[0.15, 0.2, 0.25, 0.3, 0.35],
        gaussian_blur=[0.5, 0.75, 1, 1.25, 1.5],
        glass_blur=[(0.1, 1, 1), (0.5, 1, 1), (0.6, 1, 2), (0.7, 2, 1), (0.9, 2, 2)],
        defocus_blur=[(0.5, 0.6), (1, 0.1), (1.5, 0.1), (2.5, 0.01), (3, 0.1)],
        motion_blur=[(10, 1), (10, 1.5), (10, 2), (10, 2.5), (12, 3)],
        zoom_blur=ZOOM,
        fog=[(0.4, 3), (0.7, 3), (1, 2.5), (1.5, 2), (2, 1.75)],
        frost=[(1, 0.3), (0.9, 0.4), (0.8, 0.45), (0.75, 0.5), (0.7, 0.55)],
        snow=[c + (blend,) for c, blend in zip(SNOW, [0.8, 0.8, 0.7, 0.65, 0.6])],
        spatter=[
            (0.62, 0.1, 0.7, 0.7, 0.6, 0),
            (0.65, 0.1, 0.8, 0.7, 0.6, 0),
            (0.65, 0.3, 1, 0.69, 0.6, 0),
            (0.65, 0.1, 0.7, 0.68, 0.6, 1),
            (0.65, 0.1, 0.5, 0.67, 0.6, 1),
        ],
        contrast=[0.4, 0.3, 0.2, 0.1, 0.05],
        brightness=[0.1, 0.2, 0.3, 0.4, 0.5],
        saturate=[(0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (30, 0.2)],
        jpeg_compression=[65, 58, 50, 40, 25],
        pixelate=[0.9, 0.8, 0.7, 0.6, 0.5],
        elastic_transform=[(64 * a, 64 * s, 64 * f) for a, s, f in ELASTIC_TINY],
    ),
}


class Shared:
    """Pseudo-random input that the Rust test makes too: a linear congruential generator (Numerical Recipes)."""

    def __init__(self, seed):
        self.state = seed

    def one(self):
        self.state = (self.state * 1664525 + 1013904223) % 2**32
        return (self.state >> 8) / 2**24

    def uniform(self, low, high, shape=()):
        return np.array([low + (high - low) * self.one() for _ in range(math.prod(shape))]).reshape(shape)

    def normal(self, mean, deviation, shape):
        # Sum of twelve uniform numbers: nearly normal, and exact in both languages.
        return np.array([mean + deviation * (sum(self.one() for _ in range(12)) - 6) for _ in range(math.prod(shape))]).reshape(shape)

    def below(self, bound):
        return int(self.one() * bound)


class Numpy:
    """The random input of the reference."""

    def __init__(self, seed):
        self.generator = np.random.default_rng(seed)

    def uniform(self, low, high, shape=()):
        return self.generator.uniform(low, high, shape)

    def normal(self, mean, deviation, shape):
        return self.generator.normal(mean, deviation, shape)

    def below(self, bound):
        return int(self.generator.integers(bound))


def disk(radius, alias_blur):
    L = np.arange(-8, 8 + 1)
    X, Y = np.meshgrid(L, L)
    aliased_disk = np.array((X**2 + Y**2) <= radius**2, dtype=np.float32)
    aliased_disk /= np.sum(aliased_disk)
    return cv2.GaussianBlur(aliased_disk, ksize=(3, 3), sigmaX=alias_blur)


def clipped_zoom(img, factor):
    h = img.shape[0]
    ch = int(np.ceil(h / factor))
    top = (h - ch) // 2
    img = scizoom(img[top : top + ch, top : top + ch], (factor, factor, 1), order=1)
    trim_top = (img.shape[0] - h) // 2
    return img[trim_top : trim_top + h, trim_top : trim_top + h]


def plasma_fractal(draws, mapsize, wibbledecay):
    maparray = np.empty((mapsize, mapsize))
    maparray[0, 0] = 0
    stepsize, wibble = mapsize, 100

    def wibbledmean(array):
        return array / 4 + wibble * (wibble * draws.uniform(-1, 1, array.shape))

    while stepsize >= 2:
        half = stepsize // 2
        corner = maparray[0::stepsize, 0::stepsize]
        square = corner + np.roll(corner, shift=-1, axis=0)
        square += np.roll(square, shift=-1, axis=1)
        maparray[half::stepsize, half::stepsize] = wibbledmean(square)
        dr, ul = maparray[half::stepsize, half::stepsize], maparray[0::stepsize, 0::stepsize]
        maparray[0::stepsize, half::stepsize] = wibbledmean(dr + np.roll(dr, 1, axis=0) + ul + np.roll(ul, -1, axis=1))
        maparray[half::stepsize, 0::stepsize] = wibbledmean(dr + np.roll(dr, 1, axis=1) + ul + np.roll(ul, -1, axis=0))
        stepsize //= 2
        wibble /= wibbledecay
    maparray -= maparray.min()
    return maparray / maparray.max()


def shift(image, dx, dy):
    if dx < 0:
        shifted = np.roll(image, shift=image.shape[1] + dx, axis=1)
        shifted[:, dx:] = shifted[:, dx - 1 : dx]
    elif dx > 0:
        shifted = np.roll(image, shift=dx, axis=1)
        shifted[:, :dx] = shifted[:, dx : dx + 1]
    else:
        shifted = image
    if dy < 0:
        shifted = np.roll(shifted, shift=image.shape[0] + dy, axis=0)
        shifted[dy:, :] = shifted[dy - 1 : dy, :]
    elif dy > 0:
        shifted = np.roll(shifted, shift=dy, axis=0)
        shifted[:dy, :] = shifted[dy : dy + 1, :]
    return shifted


def line_blur(x, radius, sigma, angle):
    width = radius * 2 + 1
    kernel = np.exp(-np.arange(width) ** 2 / (2 * sigma**2))
    kernel /= kernel.sum()
    point = (width * np.sin(np.deg2rad(angle)), width * np.cos(np.deg2rad(angle)))
    hypot = math.hypot(*point)
    blurred = np.zeros_like(x, dtype=np.float64)
    for i in range(width):
        dy = -math.ceil(((i * point[0]) / hypot) - 0.5)
        dx = -math.ceil(((i * point[1]) / hypot) - 0.5)
        if abs(dy) >= x.shape[0] or abs(dx) >= x.shape[1]:
            break
        blurred = blurred + kernel[i] * shift(x, dx, dy)
    return blurred


def levels(x):
    """Truncation as in the reference; the slack spares flat areas, which rounding in float32 leaves a hair below a whole level."""
    return np.uint8(x + 1e-4)


# Each takes an image (H, W, C) of uint8 and gives what the reference hands to numpy.uint8.


def gaussian_noise(x, c, draws):
    x = x / 255.0
    return np.clip(x + draws.normal(0, c, x.shape), 0, 1) * 255


def shot_noise(x, c, draws):
    return np.clip(draws.generator.poisson(x / 255.0 * c) / c, 0, 1) * 255


def impulse_noise(x, c, draws):
    return np.clip(sk.util.random_noise(x / 255.0, mode="s&p", amount=c, rng=draws.generator), 0, 1) * 255


def speckle_noise(x, c, draws):
    x = x / 255.0
    return np.clip(x + x * draws.normal(0, c, x.shape), 0, 1) * 255


def gaussian_blur(x, c, draws):
    return np.clip(gaussian(x / 255.0, sigma=c, channel_axis=-1), 0, 1) * 255


def glass_blur(x, c, draws):
    x = levels(gaussian(x / 255.0, sigma=c[0], channel_axis=-1) * 255)
    for _ in range(c[2]):
        for h in range(SIDE - c[1], c[1], -1):
            for w in range(SIDE - c[1], c[1], -1):
                dx, dy = draws.below(2 * c[1]) - c[1], draws.below(2 * c[1]) - c[1]
                h_prime, w_prime = h + dy, w + dx
                x[h, w], x[h_prime, w_prime] = x[h_prime, w_prime], x[h, w]
    return np.clip(gaussian(x / 255.0, sigma=c[0], channel_axis=-1), 0, 1) * 255


def defocus_blur(x, c, draws):
    kernel = disk(*c)
    return np.clip(np.stack([cv2.filter2D(x[:, :, d] / 255.0, -1, kernel) for d in range(x.shape[2])], axis=2), 0, 1) * 255


def motion_blur(x, c, draws):
    return np.clip(line_blur(x, *c, angle=draws.uniform(-45, 45)), 0, 255)


def zoom_blur(x, c, draws):
    x = (x / 255.0).astype(np.float32)
    out = np.zeros_like(x)
    for factor in c:
        out += clipped_zoom(x, factor)
    return np.clip((x + out) / (len(c) + 1), 0, 1) * 255


def fog(x, c, draws):
    x = x / 255.0
    max_val = x.max()
    x = x + c[0] * plasma_fractal(draws, SIDE, c[1])[..., np.newaxis]
    return np.clip(x * max_val / (max_val + c[0]), 0, 1) * 255


def frost_pictures(table):
    folder = pathlib.Path(importlib.util.find_spec("imagecorruptions").submodule_search_locations[0]) / "frost"
    scale = {"cifar": 0.2, "tiny": 0.3}[table]
    return [cv2.resize(cv2.imread(str(folder / name)), (0, 0), fx=scale, fy=scale)[..., ::-1] for name in FROST_FILES]


def frost(x, c, draws, pictures):
    picture = pictures[draws.below(5)]
    top, left = draws.below(picture.shape[0] - SIDE), draws.below(picture.shape[1] - SIDE)
    return np.clip(c[0] * x + c[1] * picture[top : top + SIDE, left : left + SIDE], 0, 255)


def snow(x, c, draws):
    x = np.array(x, dtype=np.float32) / 255.0
    layer = clipped_zoom(draws.normal(c[0], c[1], x.shape[:2])[..., np.newaxis], c[2])
    layer[layer < c[3]] = 0
    layer = (np.clip(layer.squeeze(), 0, 1) * 255).astype(np.uint8)
    layer = np.round(line_blur(layer, c[4], c[5], draws.uniform(-135, -45)))[..., np.newaxis] / 255.0
    gray = x if x.shape[2] == 1 else cv2.cvtColor(x, cv2.COLOR_RGB2GRAY).reshape(SIDE, SIDE, 1)
    x = c[6] * x + (1 - c[6]) * np.maximum(x, gray * 1.5 + 0.5)
    return np.clip(x + layer + np.rot90(layer, k=2), 0, 1) * 255


def spatter(x, c, draws):
    x = np.array(x, dtype=np.float32) / 255.0
    layer = gaussian(draws.normal(c[0], c[1], x.shape[:2]), sigma=c[2])
    layer[layer < c[3]] = 0
    if c[5] == 0:
        layer = (layer * 255).astype(np.uint8)
        dist = 255 - cv2.Canny(layer, 50, 150)
        dist = cv2.distanceTransform(dist, cv2.DIST_L2, 5)
        _, dist = cv2.threshold(dist, 20, 20, cv2.THRESH_TRUNC)
        dist = cv2.equalizeHist(cv2.blur(dist, (3, 3)).astype(np.uint8))
        dist = cv2.filter2D(dist, cv2.CV_8U, np.array([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]]))
        dist = cv2.blur(dist, (3, 3)).astype(np.float32)
        m = (layer * dist)[..., np.newaxis]
        m = m / np.max(m) * c[4]
        return np.clip(x + m * np.array([175, 238, 238]) / 255.0, 0, 1) * 255
    m = gaussian(np.where(layer > c[3], 1, 0).astype(np.float32), sigma=c[4])
    m[m < 0.8] = 0
    m = m[..., np.newaxis]
    return np.clip(x * (1 - m) + np.array([63, 42, 20]) / 255.0 * m, 0, 1) * 255


def contrast(x, c, draws):
    x = x / 255.0
    means = np.mean(x, axis=(0, 1), keepdims=True)
    return np.clip((x - means) * c + means, 0, 1) * 255


def brightness(x, c, draws):
    hsv = sk.color.rgb2hsv(np.repeat(x, 3 // x.shape[2], axis=2) / 255.0)
    hsv[:, :, 2] = np.clip(hsv[:, :, 2] + c, 0, 1)
    return np.clip(sk.color.hsv2rgb(hsv), 0, 1)[..., : x.shape[2]] * 255


def saturate(x, c, draws):
    hsv = sk.color.rgb2hsv(x / 255.0)
    hsv[:, :, 1] = np.clip(hsv[:, :, 1] * c[0] + c[1], 0, 1)
    return np.clip(sk.color.hsv2rgb(hsv), 0, 1) * 255


def through_pillow(change):
    def corrupt(x, c, draws):
        return np.asarray(change(PIL.Image.fromarray(x.squeeze()), c)).reshape(x.shape)

    return corrupt


def jpeg_file(x, quality):
    output = io.BytesIO()
    x.save(output, "JPEG", quality=quality)
    return PIL.Image.open(output)


def pixelated(x, share):
    small = x.resize((int(SIDE * share), int(SIDE * share)), PIL.Image.BOX)
    return small.resize((SIDE, SIDE), PIL.Image.BOX)


def elastic_transform(image, c, draws):
    image = np.array(image, dtype=np.float32) / 255.0
    shape = image.shape
    center_square, square_size = np.float32(shape[:2]) // 2, min(shape[:2]) // 3
    corner = [center_square[0] + square_size, center_square[1] - square_size]
    pts1 = np.float32([center_square + square_size, corner, center_square - square_size])
    pts2 = pts1 + (c[2] * draws.uniform(-1, 1, pts1.shape)).astype(np.float32)
    image = cv2.warpAffine(image, cv2.getAffineTransform(pts1, pts2), shape[1::-1], borderMode=cv2.BORDER_REFLECT_101).reshape(shape)
    dx = gaussian(draws.uniform(-1, 1, shape[:2]), c[1], mode="reflect", truncate=3) * c[0]
    dy = gaussian(draws.uniform(-1, 1, shape[:2]), c[1], mode="reflect", truncate=3) * c[0]
    x, y, z = np.meshgrid(np.arange(shape[1]), np.arange(shape[0]), np.arange(shape[2]))
    indices = np.reshape(y + dy[..., np.newaxis], (-1, 1)), np.reshape(x + dx[..., np.newaxis], (-1, 1)), np.reshape(z, (-1, 1))
    return np.clip(map_coordinates(image, indices, order=1, mode="reflect").reshape(shape), 0, 1) * 255


EXACT = dict(
    gaussian_noise=gaussian_noise,
    speckle_noise=speckle_noise,
    gaussian_blur=gaussian_blur,
    glass_blur=glass_blur,
    defocus_blur=defocus_blur,
    motion_blur=motion_blur,
    zoom_blur=zoom_blur,
    fog=fog,
    frost=frost,
    snow=snow,
    spatter=spatter,
    contrast=contrast,
    brightness=brightness,
    saturate=saturate,
    jpeg_compression=through_pillow(jpeg_file),
    pixelate=through_pillow(pixelated),
    elastic_transform=elastic_transform,
)
RANDOM = dict(
    gaussian_noise=gaussian_noise,
    shot_noise=shot_noise,
    impulse_noise=impulse_noise,
    speckle_noise=speckle_noise,
    glass_blur=glass_blur,
    motion_blur=motion_blur,
    snow=snow,
    frost=frost,
    fog=fog,
    spatter=spatter,
    elastic_transform=elastic_transform,
)
OF_COLOUR = {"frost", "spatter", "saturate"}


def colour_image():
    """Flat areas, ramps, fine stripes and a disk, so that filters, borders and hues all matter."""
    y, x = np.mgrid[0:SIDE, 0:SIDE]
    red = np.where((x - 20) ** 2 + (y - 10) ** 2 < 50, 230, 20 + 3 * x)
    green = np.where(y > 22, 40 + 170 * (x // 2 % 2), 5 * y + 10)
    blue = np.where((x < 6) & (y < 9), 0, 128 + 4 * (y - x))
    image = np.clip(np.stack([red, green, blue], axis=2), 0, 255).astype(np.uint8)
    image[12:15, 4:8] = 0
    image[18:21, 10:13] = 255
    return image


def grey_image():
    return np.clip(colour_image().astype(float) @ [0.2, 0.6, 0.2], 0, 255).astype(np.uint8)[..., np.newaxis]


def exact(name, image, constants, draws, pictures):
    extra = (pictures,) if name == "frost" else ()
    if name in OF_COLOUR and image.shape[2] == 1:
        coloured = EXACT[name](np.repeat(image, 3, axis=2), constants, draws, *extra)
        return levels((coloured @ [0.299, 0.587, 0.114])[..., np.newaxis])
    return levels(EXACT[name](image, constants, draws, *extra))


def statistics(name, image, constants, pictures):
    """Mean and deviation over the repeats of: the mean difference, the root mean square difference, the share of bytes changed."""
    draws, rows = Numpy(0), []
    extra = (pictures,) if name == "frost" else ()
    for _ in range(REPEATS):
        difference = levels(RANDOM[name](image, constants, draws, *extra)).astype(float) - image
        rows.append([difference.mean(), np.sqrt((difference**2).mean()), (difference != 0).mean()])
    return dict(means=np.mean(rows, axis=0).tolist(), deviations=np.std(rows, axis=0, ddof=1).tolist())


def main():
    images = dict(grey=grey_image(), rgb=colour_image())
    pixels = {name: image.ravel().tolist() for name, image in images.items()}
    fixture = dict(side=SIDE, stride=STRIDE, repeats=REPEATS, images=pixels, exact=[], statistics=[])
    for table, constants in TABLES.items():
        pictures = frost_pictures(table)
        for severity in range(1, 6):
            for name in EXACT:
                for kind, image in images.items():
                    result = exact(name, image, constants[name][severity - 1], Shared(severity), pictures)
                    case = dict(corruption=name, table=table, severity=severity, image=kind)
                    fixture["exact"].append(case | dict(bytes=result.ravel()[::STRIDE].tolist()))
            for name in RANDOM:
                moments = statistics(name, images["rgb"], constants[name][severity - 1], pictures)
                fixture["statistics"].append(dict(corruption=name, table=table, severity=severity, **moments))
    path = HERE / "fixtures/corruptions.json.gz"
    path.write_bytes(gzip.compress(json.dumps(fixture).encode(), mtime=0))
    print(f"{path}: {len(fixture['exact'])} exact and {len(fixture['statistics'])} statistical cases, {path.stat().st_size} bytes")


def write_textures():
    """The third picture has the pixels of the second, and is left out. The larger set is JPEG to keep the sources small."""
    options = dict(cifar=("png", dict(optimize=True)), tiny=("jpg", dict(quality=95, subsampling=0, optimize=True)))
    for table, (suffix, settings) in options.items():
        for index, picture in enumerate(frost_pictures(table), start=1):
            if index != 3:
                PIL.Image.fromarray(picture).save(TEXTURES / f"{table}-{index}.{suffix}", **settings)


if __name__ == "__main__":
    write_textures() if "--frost" in sys.argv else main()
