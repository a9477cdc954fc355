//! Fashion-MNIST, and any data set in its format: gzipped idx files of grey images and of labels.
//!
//! The format (yann.lecun.com/exdb/mnist): a big-endian magic number, one big-endian count for each dimension, then the bytes.
//! Invariant: as many labels as images, both complete, or an error.

use crate::frame::{ClassIndex, Image};
use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::path::{Path, PathBuf};

/// Magic numbers of idx files of unsigned bytes with three dimensions and with one.
const IMAGES_MAGIC: u32 = 0x0803;
const LABELS_MAGIC: u32 = 0x0801;

/// Largest side and count that are believed, so that a damaged header cannot ask for all memory.
const SIDE_MAX: usize = 4096;
const COUNT_MAX: usize = 1_000_000;

/// An image and what it shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Labelled {
    pub image: Image,
    pub label: ClassIndex,
}

/// Which part of a data set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    Train,
    Test,
}

/// Why a data set cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum DatasetError {
    #[error("open {}: install the Debian package dataset-fashion-mnist, or name the folder of its four .gz files", path.display())]
    Missing { path: PathBuf, source: io::Error },
    #[error("read {part}: damaged or cut short; install the data set again")]
    Damaged { part: &'static str, source: io::Error },
    #[error("read {part}: magic number is {got:#010x}, expected {expected:#010x}: not this part of an idx data set")]
    Magic { part: &'static str, expected: u32, got: u32 },
    #[error("read {part}: header says {value}, the limit is {limit}")]
    TooLarge { part: &'static str, value: usize, limit: usize },
    #[error("read {part}: bytes follow the last item")]
    Surplus { part: &'static str },
    #[error("pair images with labels: {images} images, {labels} labels")]
    CountMismatch { images: usize, labels: usize },
    #[error("write {part}")]
    Write { part: &'static str, source: io::Error },
    #[error("write images: image {index} is not grey and of the size of the first")]
    MixedShapes { index: usize },
    #[error("write labels: label {label} does not fit a byte")]
    LabelTooLarge { label: u32 },
}

/// Reads one split of the data set in `dir`; grey images, 28 x 28 for Fashion-MNIST.
///
/// # Errors
/// `Missing` when a file cannot be opened, else as [`read_pair`].
pub fn load(dir: &Path, split: Split) -> Result<Vec<Labelled>, DatasetError> {
    let prefix = match split {
        Split::Train => "train",
        Split::Test => "t10k",
    };
    let open = |kind: &str| {
        let path = dir.join(format!("{prefix}-{kind}-ubyte.gz"));
        File::open(&path).map(BufReader::new).map_err(|source| DatasetError::Missing { path, source })
    };
    read_pair(open("images-idx3")?, open("labels-idx1")?)
}

/// Reads a gzipped idx file of images and one of their labels.
///
/// # Errors
/// When a file is damaged, cut short, too long or of another kind, or the two do not have the same count.
pub fn read_pair(images: impl Read, labels: impl Read) -> Result<Vec<Labelled>, DatasetError> {
    let (images, labels) = (read_images(images)?, read_labels(labels)?);
    if images.len() != labels.len() {
        return Err(DatasetError::CountMismatch { images: images.len(), labels: labels.len() });
    }
    Ok(images.into_iter().zip(labels).map(|(image, label)| Labelled { image, label }).collect())
}

fn read_images(file: impl Read) -> Result<Vec<Image>, DatasetError> {
    let mut file = Idx::open(file, "images", IMAGES_MAGIC)?;
    let (count, height, width) = (file.size(COUNT_MAX)?, file.size(SIDE_MAX)?, file.size(SIDE_MAX)?);
    let images = (0..count).map(|_| Ok(Image::new(1, height, width, file.bytes(height * width)?))).collect();
    file.finish()?;
    images
}

fn read_labels(file: impl Read) -> Result<Vec<ClassIndex>, DatasetError> {
    let mut file = Idx::open(file, "labels", LABELS_MAGIC)?;
    let count = file.size(COUNT_MAX)?;
    let labels = file.bytes(count)?.into_iter().map(|label| ClassIndex(u32::from(label))).collect();
    file.finish()?;
    Ok(labels)
}

/// An idx file that is being read.
struct Idx<R> {
    part: &'static str,
    bytes: GzDecoder<R>,
}

impl<R: Read> Idx<R> {
    fn open(file: R, part: &'static str, expected: u32) -> Result<Self, DatasetError> {
        let mut idx = Self { part, bytes: GzDecoder::new(file) };
        let got = idx.word()?;
        if got == expected { Ok(idx) } else { Err(DatasetError::Magic { part, expected, got }) }
    }

    fn bytes(&mut self, count: usize) -> Result<Vec<u8>, DatasetError> {
        let mut bytes = vec![0; count];
        self.bytes.read_exact(&mut bytes).map_err(|source| DatasetError::Damaged { part: self.part, source })?;
        Ok(bytes)
    }

    fn word(&mut self) -> Result<u32, DatasetError> {
        let mut bytes = [0; 4];
        self.bytes.read_exact(&mut bytes).map_err(|source| DatasetError::Damaged { part: self.part, source })?;
        Ok(u32::from_be_bytes(bytes))
    }

    fn size(&mut self, limit: usize) -> Result<usize, DatasetError> {
        let value = usize::try_from(self.word()?).unwrap_or(usize::MAX);
        if value <= limit { Ok(value) } else { Err(DatasetError::TooLarge { part: self.part, value, limit }) }
    }

    /// Reads to the end, which also lets gzip compare its checksum.
    fn finish(mut self) -> Result<(), DatasetError> {
        match self.bytes.read(&mut [0]) {
            Ok(0) => Ok(()),
            Ok(_) => Err(DatasetError::Surplus { part: self.part }),
            Err(source) => Err(DatasetError::Damaged { part: self.part, source }),
        }
    }
}

/// Writes what [`read_pair`] reads: a small data set to ship.
///
/// # Errors
/// When a writer fails, an image is not grey or of another size than the first, or a label does not fit a byte.
pub fn write_pair(examples: &[Labelled], images: impl Write, labels: impl Write) -> Result<(), DatasetError> {
    let (height, width) = examples.first().map_or((0, 0), |example| (example.image.height(), example.image.width()));
    let mut image_bytes = header(IMAGES_MAGIC, &[examples.len(), height, width]);
    let mut label_bytes = header(LABELS_MAGIC, &[examples.len()]);
    for (index, Labelled { image, label }) in examples.iter().enumerate() {
        if (image.channels(), image.height(), image.width()) != (1, height, width) {
            return Err(DatasetError::MixedShapes { index });
        }
        image_bytes.extend(image.pixels());
        label_bytes.push(u8::try_from(label.0).map_err(|_| DatasetError::LabelTooLarge { label: label.0 })?);
    }
    compress(images, &image_bytes).map_err(|source| DatasetError::Write { part: "images", source })?;
    compress(labels, &label_bytes).map_err(|source| DatasetError::Write { part: "labels", source })
}

fn header(magic: u32, sizes: &[usize]) -> Vec<u8> {
    let size = |&size: &usize| u32::try_from(size).expect("a data set in memory has fewer than 2^32 items");
    std::iter::once(magic).chain(sizes.iter().map(size)).flat_map(u32::to_be_bytes).collect()
}

fn compress(file: impl Write, bytes: &[u8]) -> io::Result<()> {
    let mut encoder = GzEncoder::new(file, Compression::best());
    encoder.write_all(bytes)?;
    encoder.finish()?.flush()
}

/// The image in the middle of a black one of `size` x `size`.
///
/// # Panics
/// When the image is larger than `size`.
pub fn pad(image: &Image, size: usize) -> Image {
    let (channels, height, width) = (image.channels(), image.height(), image.width());
    assert!(height <= size && width <= size, "pad {height} x {width} pixels to {size}");
    let (top, left) = ((size - height) / 2, (size - width) / 2);
    let mut pixels = vec![0; channels * size * size];
    for (y, row) in image.pixels().chunks_exact(channels * width).enumerate() {
        let start = ((top + y) * size + left) * channels;
        pixels[start..start + row.len()].copy_from_slice(row);
    }
    Image::new(channels, size, size, pixels)
}
