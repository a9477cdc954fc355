//! Reads a bundle's files: each is checked against its hash before a byte of it is believed.

use crate::bundle::{Bundle, Statistics};
use crate::config::{BundleConfig, Config};
use crate::frame::Image;
use crate::guard::canary::Canary;
use crate::model::{Dit, ImageShape, ParameterError, Tensors, parameters, published};
use candle_core::{DType, Device, Tensor, safetensors};
use std::path::{Path, PathBuf};

/// Seed of the parameters that shapes are compared with; their values are not used.
const SHAPE_SEED: u64 = 0;

/// A bundle that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum BundleReadError {
    #[error("failed to read {path}: {source}")]
    Io { path: PathBuf, source: std::io::Error },
    #[error("BLAKE3 of {path} is {got}, {hashes} says {expected:?}: the file is damaged or of another bundle")]
    Hash { path: PathBuf, hashes: PathBuf, expected: Option<String>, got: String },
    #[error("weights in {path}: {source}")]
    Weights { path: PathBuf, source: ParameterError },
    #[error("{path}: {source}")]
    Statistics { path: PathBuf, source: serde_json::Error },
    #[error("{path} is not text, or names no class")]
    Labels { path: PathBuf },
    #[error("canary {path}: {source}")]
    Canary { path: PathBuf, source: candle_core::Error },
}

/// Reads and checks all files of a bundle; warns of statistics that were measured with other draws than `config` asks for.
///
/// # Errors
/// The first file that is missing, damaged or does not fit the configured models.
pub fn read_bundle(config: &Config) -> Result<Bundle, BundleReadError> {
    let bundle = read(&config.bundle)?;
    let (measured, configured) = (&bundle.statistics.timesteps, &config.adapt.timesteps);
    if measured != configured {
        tracing::warn!(
            ?measured,
            ?configured,
            "the gate compares with statistics of other timesteps: `undrift train bundle` measures them anew"
        );
    }
    Ok(bundle)
}

fn read(config: &BundleConfig) -> Result<Bundle, BundleReadError> {
    let files = &config.files;
    let hashes = read_file(&files.hashes)?;
    let hashes = String::from_utf8_lossy(&hashes);
    let read = |path: &Path| read_checked(path, &files.hashes, &hashes);
    let labels = labels(&files.labels, read(&files.labels)?)?;
    let (classifier_config, diffusion_config) = (config.classifier_config(labels.len()), config.diffusion_config(labels.len()));
    let tensors = |path: &Path, fit: &dyn Fn(Tensors) -> Result<Tensors, ParameterError>| {
        let tensors = parameters::read(&read(path)?);
        tensors.and_then(fit).map_err(|source| BundleReadError::Weights { path: path.to_owned(), source })
    };
    let classifier = |tensors| checked(classifier_config.with_room(tensors)?, &classifier_config.initialize(SHAPE_SEED)?);
    let diffusion =
        |tensors| checked(published::to_own_layout(tensors, &diffusion_config)?, &Dit::initialize(&diffusion_config, SHAPE_SEED)?);
    let canary = canary(&read(&files.canary)?, classifier_config.image(), labels.len());
    let statistics = serde_json::from_slice::<Statistics>(&read(&files.statistics)?);
    Ok(Bundle {
        classifier: tensors(&files.classifier, &classifier)?,
        diffusion: tensors(&files.diffusion, &diffusion)?,
        classifier_config,
        diffusion_config,
        labels,
        canary: canary.map_err(|source| BundleReadError::Canary { path: files.canary.clone(), source })?,
        statistics: statistics.map_err(|source| BundleReadError::Statistics { path: files.statistics.clone(), source })?,
    })
}

fn checked(tensors: Tensors, expected: &Tensors) -> Result<Tensors, ParameterError> {
    parameters::check(&tensors, expected)?;
    Ok(tensors)
}

fn read_file(path: &Path) -> Result<Vec<u8>, BundleReadError> {
    std::fs::read(path).map_err(|source| BundleReadError::Io { path: path.to_owned(), source })
}

/// `hashes` has lines as `b3sum` writes them: hash, white space, name.
fn read_checked(path: &Path, hashes_path: &Path, hashes: &str) -> Result<Vec<u8>, BundleReadError> {
    let bytes = read_file(path)?;
    let got = blake3::hash(&bytes).to_hex().to_string();
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let line = hashes.lines().filter_map(|line| line.split_once(char::is_whitespace)).find(|(_, of)| of.trim() == name);
    let expected = line.map(|(hash, _)| hash.to_owned());
    if expected.as_deref() != Some(got.as_str()) {
        return Err(BundleReadError::Hash { path: path.to_owned(), hashes: hashes_path.to_owned(), expected, got });
    }
    Ok(bytes)
}

/// `images` (N, C, H, W) of bytes and `labels` (N) of u32, in a safetensors file.
fn canary(bytes: &[u8], shape: ImageShape, classes: usize) -> candle_core::Result<Canary> {
    let tensors = safetensors::load_buffer(bytes, &Device::Cpu)?;
    let named = |name: &str| tensors.get(name).ok_or_else(|| candle_core::Error::msg(format!("there is no tensor {name:?}")));
    let (images, labels) = (named("images")?, named("labels")?.to_vec1::<u32>()?);
    let ImageShape { channels, height, width } = shape;
    let expected = [labels.len(), channels, height, width];
    if labels.is_empty() || images.dims() != expected || images.dtype() != DType::U8 {
        candle_core::bail!("images are {:?} of {:?}, must be {expected:?} of U8, and at least one", images.dims(), images.dtype());
    }
    if let Some(label) = labels.iter().find(|&&label| label as usize >= classes) {
        candle_core::bail!("label {label} of {classes} classes");
    }
    let planes = |image: Tensor| {
        let interleaved = image.permute((1, 2, 0))?.flatten_all()?.to_vec1::<u8>()?;
        Ok::<_, candle_core::Error>(Image::new(channels, height, width, interleaved).planes())
    };
    let images = (0..labels.len()).map(|n| planes(images.get(n)?)).collect::<Result<Vec<_>, _>>()?.concat();
    Ok(Canary { images, labels: labels.iter().map(|&label| label as usize).collect() })
}

fn labels(path: &Path, bytes: Vec<u8>) -> Result<Vec<String>, BundleReadError> {
    let text = String::from_utf8(bytes).unwrap_or_default();
    let labels: Vec<String> = text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect();
    if labels.is_empty() { Err(BundleReadError::Labels { path: path.to_owned() }) } else { Ok(labels) }
}
