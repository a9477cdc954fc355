//! Where labelled frames come from: a folder, or a named stream. Both give the bytes that a camera would send.

use crate::frame::Image;
use crate::lab::corruptions::{Severity, Table};
use crate::lab::dataset::{self, DatasetError, Labelled, Split};
use crate::lab::folder;
use crate::lab::streams::{Calibration, Plan, Playback, Request, Stream, Walk};
use clap::Args;
use image::codecs::png::PngEncoder;
use image::{ExtendedColorType, ImageError};
use rayon::prelude::*;
use std::error::Error;
use std::io::Cursor;
use std::path::{Path, PathBuf};

/// Arguments of every command that plays labelled frames.
#[derive(Args)]
pub struct SourceArguments {
    /// Folder of labelled frames: image files, and frames.csv with the columns file,label,domain
    #[arg(long, value_name = "DIR", conflicts_with = "stream", required_unless_present = "stream")]
    frames: Option<PathBuf>,
    /// Or a stream of Fashion-MNIST test images; the name of a corruption is a stream, too
    #[arg(long, value_enum)]
    stream: Option<Stream>,
    /// Frames of a named stream
    #[arg(long, default_value_t = 3200)]
    length: usize,
    /// First frame of a named stream that is shown
    #[arg(long, default_value_t = 0)]
    from: usize,
    /// Strength of a named stream's corruptions
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u8).range(1..=5))]
    severity: u8,
    /// Constants of the corruptions
    #[arg(long, value_enum, default_value_t = Table::Tiny)]
    table: Table,
    /// Visits of each domain, for the stream recurring
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u16).range(1..))]
    visits: u16,
    /// Accuracies of the source under pairs of corruptions, as JSON, for the stream ccc; `eval` measures and writes them where the
    /// file is missing. Remove it when the bundle or the table changes
    #[arg(long, value_name = "FILE")]
    calibration: Option<PathBuf>,
    /// Accuracy at which the stream ccc keeps the source
    #[arg(long, default_value_t = 0.5)]
    source_accuracy: f64,
    /// Seed of a named stream
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Folder of the four Fashion-MNIST files, for named streams
    #[arg(long, default_value = "/usr/share/datasets/fashion-mnist")]
    data: PathBuf,
}

/// A frame to play.
pub struct LabelledPayload {
    /// Name of the file, or number in the stream.
    pub frame_id: String,
    /// A whole JPEG or PNG file.
    pub payload: Vec<u8>,
    /// Index of the class.
    pub label: u32,
    pub domain: String,
    /// Where the frames are of more than one.
    pub camera: Option<&'static str>,
    /// Whether adaptation is to start afresh with this frame.
    pub is_fresh_start: bool,
}

/// Side of a named stream's frames.
pub(super) const STREAM_SIDE: usize = 32;

/// Training images on which the source is measured for `ccc`, none of the stream's. An accuracy has a standard error of 0.05, and a path
/// has many.
const CALIBRATION_IMAGES: usize = 100;

impl SourceArguments {
    /// Frames of a named stream.
    pub fn length(&self) -> usize {
        self.length
    }

    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// Frames of a window that the stream asks for.
    pub fn window(&self) -> Option<usize> {
        self.stream.and_then(Stream::window)
    }

    /// The file that is still to be written before [`SourceArguments::load`] can give the frames of `ccc`.
    pub fn missing_calibration(&self) -> Option<&Path> {
        self.calibration.as_deref().filter(|path| self.stream == Some(Stream::Ccc) && !path.exists())
    }

    /// What the source is to be measured on for `ccc`, as large as the stream's frames.
    pub fn calibration_images(&self) -> Result<Vec<Labelled>, Box<dyn Error>> {
        let images = dataset::load(&self.data, Split::Train)?.into_iter().take(CALIBRATION_IMAGES);
        Ok(images.map(|Labelled { image, label }| Labelled { image: dataset::pad(&image, STREAM_SIDE), label }).collect())
    }

    /// What named streams show.
    pub fn test_images(&self) -> Result<Vec<Labelled>, DatasetError> {
        dataset::load(&self.data, Split::Test)
    }

    pub fn table(&self) -> Table {
        self.table
    }

    /// All frames, in order.
    pub fn load(&self) -> Result<Vec<LabelledPayload>, Box<dyn Error>> {
        match (&self.frames, self.stream) {
            (Some(dir), _) => {
                let rows = folder::list(dir)?;
                let read = |row: folder::FolderFrame| {
                    let (payload, frame_id) = (folder::read(dir, &row)?, row.file.display().to_string());
                    let (label, domain) = (row.label, row.domain);
                    Ok(LabelledPayload { frame_id, payload, label, domain, camera: None, is_fresh_start: false })
                };
                rows.into_iter().map(read).collect()
            }
            (None, Some(stream)) => self.stream(stream),
            (None, None) => Err("name a folder by --frames or a stream by --stream".into()),
        }
    }

    fn stream(&self, stream: Stream) -> Result<Vec<LabelledPayload>, Box<dyn Error>> {
        let calibration = self.calibration.as_deref().filter(|_| stream == Stream::Ccc).map(read_calibration).transpose()?;
        let source_accuracy = self.source_accuracy;
        let request = Request {
            frames: self.length,
            severity: Severity::try_from(self.severity)?,
            seed: self.seed,
            visits: usize::from(self.visits),
            walk: calibration.as_ref().map(|calibration| Walk { calibration, source_accuracy }),
        };
        let images = self.test_images()?;
        let plan = Plan::new(stream, &request, &images)?;
        if self.from >= plan.frames.len() {
            return Err(format!("--from is {}, must be below --length, {}", self.from, plan.frames.len()).into());
        }
        let playback = Playback { plan: &plan, images: &images, table: self.table, side: STREAM_SIDE };
        let payload = |index| {
            let frame = playback.frame(index);
            Ok(LabelledPayload {
                frame_id: format!("{}:{index}", stream.name()),
                payload: png(&frame.image)?,
                label: frame.label.0,
                domain: frame.domain,
                camera: frame.camera,
                is_fresh_start: frame.is_fresh_start,
            })
        };
        Ok((self.from..plan.frames.len()).into_par_iter().map(payload).collect::<Result<_, ImageError>>()?)
    }
}

fn read_calibration(path: &Path) -> Result<Calibration, Box<dyn Error>> {
    let named = |error: &dyn Error| format!("calibration {}: {error}", path.display());
    let text = std::fs::read(path).map_err(|error| named(&error))?;
    Ok(serde_json::from_slice(&text).map_err(|error| named(&error))?)
}

fn png(image: &Image) -> Result<Vec<u8>, ImageError> {
    let colour = if image.channels() == 1 { ExtendedColorType::L8 } else { ExtendedColorType::Rgb8 };
    let mut bytes = Cursor::new(Vec::new());
    let [width, height] = [image.width(), image.height()].map(|side| u32::try_from(side).expect("a stream's frames are small"));
    image::ImageEncoder::write_image(PngEncoder::new(&mut bytes), image.pixels(), width, height, colour)?;
    Ok(bytes.into_inner())
}
