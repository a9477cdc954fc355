//! A picture of all corruptions, for eyes: rows are the clean image and the corruptions, columns the severities 1 to 5 of each image.
//!
//! Numbers do not show a corruption that is mirrored, shifted or of the wrong colour; a look does.

use crate::frame::Image;
use crate::lab::corruptions::{Corruption, Draws, Severity, Table, corrupt};
use image::{ImageFormat, Rgb, RgbImage};
use std::io::Cursor;

/// Each pixel of an image and of the letters is drawn as a square of this side.
const SCALE: usize = 2;

/// Space around images, and the columns for the longest name, in unscaled pixels.
const GAP: usize = 2;
const NAMES_WIDTH: usize = 6 * 17 + GAP;

const PAPER: Rgb<u8> = Rgb([255; 3]);
const INK: Rgb<u8> = Rgb([0; 3]);

/// Letters a to z in 5 x 7 dots, by columns from the left; the lowest bit is the top dot.
const LETTERS: [[u8; 5]; 26] = [
    [0x20, 0x54, 0x54, 0x54, 0x78],
    [0x7f, 0x48, 0x44, 0x44, 0x38],
    [0x38, 0x44, 0x44, 0x44, 0x20],
    [0x38, 0x44, 0x44, 0x48, 0x7f],
    [0x38, 0x54, 0x54, 0x54, 0x18],
    [0x08, 0x7e, 0x09, 0x01, 0x02],
    [0x0c, 0x52, 0x52, 0x52, 0x3e],
    [0x7f, 0x08, 0x04, 0x04, 0x78],
    [0x00, 0x44, 0x7d, 0x40, 0x00],
    [0x20, 0x40, 0x44, 0x3d, 0x00],
    [0x7f, 0x10, 0x28, 0x44, 0x00],
    [0x00, 0x41, 0x7f, 0x40, 0x00],
    [0x7c, 0x04, 0x18, 0x04, 0x78],
    [0x7c, 0x08, 0x04, 0x04, 0x78],
    [0x38, 0x44, 0x44, 0x44, 0x38],
    [0x7c, 0x14, 0x14, 0x14, 0x08],
    [0x08, 0x14, 0x14, 0x18, 0x7c],
    [0x7c, 0x08, 0x04, 0x04, 0x08],
    [0x48, 0x54, 0x54, 0x54, 0x20],
    [0x04, 0x3f, 0x44, 0x40, 0x20],
    [0x3c, 0x40, 0x40, 0x20, 0x7c],
    [0x1c, 0x20, 0x40, 0x20, 0x1c],
    [0x3c, 0x40, 0x30, 0x40, 0x3c],
    [0x44, 0x28, 0x10, 0x28, 0x44],
    [0x0c, 0x50, 0x50, 0x50, 0x3c],
    [0x44, 0x64, 0x54, 0x4c, 0x44],
];

/// A PNG file with every corruption of `images`, all of one size, drawn under `seed`.
///
/// # Panics
/// As [`corrupt`], and when `images` is empty.
pub fn contact_sheet(images: &[Image], table: Table, seed: u64) -> Vec<u8> {
    let (cell_height, cell_width) = (images[0].height() + GAP, images[0].width() + GAP);
    let columns = images.len() * Severity::ALL.len();
    let mut sheet = Sheet::new((Corruption::ALL.len() + 1) * cell_height + GAP, NAMES_WIDTH + columns * cell_width + GAP);
    let rows = std::iter::once(None).chain(Corruption::ALL.map(Some));
    for (row, corruption) in rows.enumerate() {
        let top = GAP + row * cell_height;
        sheet.write(corruption.map_or("clean", Corruption::name), top + cell_height / 2 - 4, GAP);
        let cells = images.iter().flat_map(|image| Severity::ALL.map(|severity| (image, severity)));
        for ((image, severity), column) in cells.zip(0..) {
            let draw = |corruption| corrupt(image, corruption, severity, table, &mut Draws::new(seed, column));
            let left = NAMES_WIDTH + usize::try_from(column).expect("few columns") * cell_width;
            sheet.paste(&corruption.map_or_else(|| image.clone(), draw), top, left);
        }
    }
    sheet.into_png()
}

/// White paper, measured in unscaled pixels.
struct Sheet(RgbImage);

impl Sheet {
    fn new(height: usize, width: usize) -> Self {
        Self(RgbImage::from_pixel(pixels(width * SCALE), pixels(height * SCALE), PAPER))
    }

    fn dot(&mut self, y: usize, x: usize, color: Rgb<u8>) {
        for down in 0..SCALE {
            (0..SCALE).for_each(|right| self.0.put_pixel(pixels(x * SCALE + right), pixels(y * SCALE + down), color));
        }
    }

    fn paste(&mut self, image: &Image, top: usize, left: usize) {
        for (index, pixel) in image.pixels().chunks_exact(image.channels()).enumerate() {
            let color = Rgb([0, 1, 2].map(|channel| pixel[channel % pixel.len()]));
            self.dot(top + index / image.width(), left + index % image.width(), color);
        }
    }

    /// Writes a name; what is not a letter is a space.
    fn write(&mut self, name: &str, top: usize, left: usize) {
        for (place, letter) in name.bytes().enumerate() {
            let columns = letter.checked_sub(b'a').and_then(|index| LETTERS.get(usize::from(index))).copied().unwrap_or_default();
            for (x, column) in columns.into_iter().enumerate() {
                let dots = (0..7).filter(|y| column >> y & 1 == 1);
                dots.for_each(|y| self.dot(top + y, left + 6 * place + x, INK));
            }
        }
    }

    fn into_png(self) -> Vec<u8> {
        let mut file = Cursor::new(Vec::new());
        self.0.write_to(&mut file, ImageFormat::Png).expect("memory takes any image");
        file.into_inner()
    }
}

fn pixels(length: usize) -> u32 {
    u32::try_from(length).expect("a sheet is far below 2^32 pixels wide")
}
