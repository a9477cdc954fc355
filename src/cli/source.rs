//! Where labelled frames come from: a folder, or a named stream. Both give the bytes that a camera would send.

use crate::frame::Image;
use crate::lab::corruptions::{Corruption, Severity, Table};
use crate::lab::dataset::{self, Split};
use crate::lab::folder;
use crate::lab::streams::{self, Segment};
use clap::Args;
use image::ExtendedColorType;
use image::codecs::png::PngEncoder;
use std::error::Error;
use std::io::Cursor;
use std::path::PathBuf;

/// Arguments of every command that plays labelled frames.
#[derive(Args)]
pub struct SourceArguments {
    /// Folder of labelled frames: image files, and frames.csv with the columns file,label,domain
    #[arg(long, value_name = "DIR", conflicts_with = "stream", required_unless_present = "stream")]
    frames: Option<PathBuf>,
    /// Or a stream of Fashion-MNIST test images: continual, clean, or the name of a corruption
    #[arg(long)]
    stream: Option<String>,
    /// Frames of a named stream
    #[arg(long, default_value_t = 3200)]
    length: usize,
    /// Strength of a named stream's corruptions
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u8).range(1..=5))]
    severity: u8,
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
}

/// Side of a named stream's frames.
const STREAM_SIDE: usize = 32;

impl SourceArguments {
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// All frames, in order.
    pub fn load(&self) -> Result<Vec<LabelledPayload>, Box<dyn Error>> {
        match (&self.frames, &self.stream) {
            (Some(dir), _) => {
                let rows = folder::list(dir)?;
                let read = |row: folder::FolderFrame| {
                    let (payload, frame_id) = (folder::read(dir, &row)?, row.file.display().to_string());
                    Ok(LabelledPayload { frame_id, payload, label: row.label, domain: row.domain })
                };
                rows.into_iter().map(read).collect()
            }
            (None, Some(name)) => self.stream(name),
            (None, None) => Err("name a folder by --frames or a stream by --stream".into()),
        }
    }

    fn stream(&self, name: &str) -> Result<Vec<LabelledPayload>, Box<dyn Error>> {
        let severity = Severity::try_from(self.severity)?;
        let segments = match name {
            "continual" => streams::continual(self.length, severity),
            "clean" => vec![Segment { corruption: None, frames: self.length }],
            corruption => vec![Segment { corruption: Some((corruption.parse::<Corruption>()?, severity)), frames: self.length }],
        };
        let images = dataset::load(&self.data, Split::Test)?;
        let frames = streams::frames(&images, &segments, Table::Tiny, STREAM_SIDE, self.seed);
        let payload = |(index, frame): (usize, streams::StreamFrame)| {
            Ok(LabelledPayload {
                frame_id: format!("{name}:{index}"),
                payload: png(&frame.image)?,
                label: frame.label.0,
                domain: frame.domain,
            })
        };
        frames.enumerate().map(payload).collect()
    }
}

fn png(image: &Image) -> Result<Vec<u8>, Box<dyn Error>> {
    let colour = if image.channels() == 1 { ExtendedColorType::L8 } else { ExtendedColorType::Rgb8 };
    let mut bytes = Cursor::new(Vec::new());
    let (width, height) = (u32::try_from(image.width())?, u32::try_from(image.height())?);
    image::ImageEncoder::write_image(PngEncoder::new(&mut bytes), image.pixels(), width, height, colour)?;
    Ok(bytes.into_inner())
}
