//! Brings a decoded image to the bundle's shape, by the same rules in training, evaluation and the daemon.

use crate::frame::Image;
use crate::model::ImageShape;
use image::imageops::{FilterType, resize};
use image::{ImageBuffer, Luma, Pixel, Rgb};

/// Up to this many missing pixels a dimension is filled with zeros; more, and the image is resized.
const PAD_MAX: usize = 8;

pub(super) fn fit(image: Image, shape: ImageShape) -> Image {
    let image = match (image.channels(), shape.channels) {
        (from, to) if from == to => image,
        (1, 3) => with_pixels(&image, 3, image.pixels().iter().flat_map(|&grey| [grey; 3]).collect()),
        (3, 1) => with_pixels(&image, 1, image.pixels().as_chunks().0.iter().map(luma).collect()),
        (from, to) => panic!("an image of {from} channels for a bundle of {to}: the configuration allows 1 and 3"),
    };
    let is_near = |side: usize, target: usize| side <= target && target - side <= PAD_MAX;
    if (image.height(), image.width()) == (shape.height, shape.width) {
        image
    } else if is_near(image.height(), shape.height) && is_near(image.width(), shape.width) {
        centred_in_zeros(&image, shape)
    } else if shape.channels == 1 {
        resized::<Luma<u8>>(&image, shape)
    } else {
        resized::<Rgb<u8>>(&image, shape)
    }
}

fn with_pixels(image: &Image, channels: usize, pixels: Vec<u8>) -> Image {
    Image::new(channels, image.height(), image.width(), pixels)
}

/// Rec. 601, to the nearest; at most (1000 x 255 + 500) / 1000 = 255.
fn luma(&[red, green, blue]: &[u8; 3]) -> u8 {
    ((299 * u32::from(red) + 587 * u32::from(green) + 114 * u32::from(blue) + 500) / 1000) as u8
}

/// Where the number of missing pixels is odd, the lower and right edge get one more.
fn centred_in_zeros(image: &Image, shape: ImageShape) -> Image {
    let mut pixels = vec![0; shape.elements()];
    let (top, left) = ((shape.height - image.height()) / 2, (shape.width - image.width()) / 2);
    let row_bytes = image.width() * shape.channels;
    for (i, row) in image.pixels().chunks_exact(row_bytes).enumerate() {
        let start = ((top + i) * shape.width + left) * shape.channels;
        pixels[start..start + row_bytes].copy_from_slice(row);
    }
    Image::new(shape.channels, shape.height, shape.width, pixels)
}

fn resized<P: Pixel<Subpixel = u8> + 'static>(image: &Image, shape: ImageShape) -> Image {
    let side = |side: usize| u32::try_from(side).expect("sides are limited by the configuration");
    let source = ImageBuffer::<P, &[u8]>::from_raw(side(image.width()), side(image.height()), image.pixels());
    let source = source.expect("an image has as many pixels as its shape says");
    let pixels = resize(&source, side(shape.width), side(shape.height), FilterType::Triangle).into_raw();
    Image::new(shape.channels, shape.height, shape.width, pixels)
}
