//! `undrift train`: makes a bundle. Classifier, diffusion model, then the rest of the folder.

use crate::bundle::{Bundle, Statistics};
use crate::config::Config;
use crate::diffusion::Timestep;
use crate::guard::canary::Canary;
use crate::lab::augmentation::Augmentation;
use crate::lab::contact_sheet::contact_sheet;
use crate::lab::corruptions::{Severity, Table};
use crate::lab::dataset::{self, Labelled, Split};
use crate::lab::statistics;
use crate::lab::streams::{Plan, Playback, Request, Stream};
use crate::lab::train::{self, DiffusionTraining, TrainingRun};
use crate::learner::Judge;
use crate::model::{ClassConditioning, ClassifierConfig, DitConfig, ImageShape, ResNetConfig, Tensors, TrunkConfig, VitConfig, parameters};
use candle_core::{Device, Tensor};
use clap::{Args, Subcommand};
use std::collections::HashMap;
use std::error::Error;
use std::fs::File;
use std::path::{Path, PathBuf};

#[derive(Args)]
#[command(args_conflicts_with_subcommands = true, arg_required_else_help = true)]
pub struct Train {
    /// Draw every corruption at every severity into this PNG, and do nothing else
    #[arg(long, value_name = "PNG")]
    contact_sheet: Option<PathBuf>,
    /// Folder of the four Fashion-MNIST files (Debian package dataset-fashion-mnist)
    #[arg(long, default_value = FASHION_MNIST)]
    data: PathBuf,
    #[command(subcommand)]
    what: Option<What>,
}

#[derive(Subcommand)]
enum What {
    /// Train the classifier by cross entropy
    Classifier {
        #[command(flatten)]
        run: Run,
        #[arg(long, value_enum, default_value_t = Architecture::Vit)]
        architecture: Architecture,
    },
    /// Train the diffusion model (DiT) by denoising, and as a classifier
    Diffusion {
        #[command(flatten)]
        run: Run,
        /// Weight of the cross entropy against the denoising loss
        #[arg(long, default_value_t = 0.2)]
        discrimination_weight: f64,
        /// Safetensors file of weights to begin with, in place of random ones; the state beside --out goes before it
        #[arg(long)]
        start: Option<PathBuf>,
        /// Change images before they are learned from
        #[arg(long, value_enum)]
        augmented: Option<Augmentation>,
        /// How the class enters
        #[arg(long, value_enum, default_value_t = Conditioning::Readout)]
        conditioning: Conditioning,
    },
    /// Write what else a bundle holds: statistics.json, a sample of test images, BLAKE3SUMS
    Bundle(Finish),
}

#[derive(Args)]
struct Run {
    /// Folder of the four Fashion-MNIST files
    #[arg(long, default_value = FASHION_MNIST)]
    data: PathBuf,
    /// Safetensors file to write; a run that finds its state beside it goes on from there
    #[arg(long)]
    out: PathBuf,
    /// Optimizer steps in all; 12000 unless given
    #[arg(long, default_value_t = 12_000)]
    steps: u64,
    /// Images of one step
    #[arg(long, default_value_t = 64)]
    batch: usize,
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Peak of the learning rate, after the warm-up
    #[arg(long, default_value_t = 1.5e-3)]
    learning_rate: f32,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Architecture {
    /// Vision transformer
    Vit,
    /// Residual network with batch norm, for comparison
    Resnet,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Conditioning {
    Readout,
    AdaLn,
}

#[derive(Args)]
struct Finish {
    /// Folder of undrift.toml and the weights
    #[arg(long, default_value = "configs/fashion-mnist")]
    dir: PathBuf,
    /// Folder of the four Fashion-MNIST files
    #[arg(long, default_value = FASHION_MNIST)]
    data: PathBuf,
    /// Test images that ship with the bundle: the first of the test set; the statistics come from the others
    #[arg(long, default_value_t = 3000)]
    sample: usize,
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

const FASHION_MNIST: &str = "/usr/share/datasets/fashion-mnist";
const FASHION_IMAGE: ImageShape = ImageShape { channels: 1, height: 32, width: 32 };

/// Sizes of the shipped classifier.
const FASHION_CLASSIFIER: ClassifierConfig = ClassifierConfig::Vit(VitConfig {
    trunk: TrunkConfig { image: FASHION_IMAGE, patch: 4, patch_window: 8, hidden: 96, depth: 4, heads: 3, mlp_ratio: 2 },
    classes: 10,
});

/// Sizes of the classifier of the other kind.
const FASHION_RESNET: ClassifierConfig = ClassifierConfig::ResNet(ResNetConfig { image: FASHION_IMAGE, width: 32, blocks: 1, classes: 10 });

/// Sizes of the shipped diffusion model.
const FASHION_DIFFUSION: DitConfig = DitConfig {
    trunk: TrunkConfig { image: FASHION_IMAGE, patch: 4, patch_window: 8, hidden: 96, depth: 6, heads: 3, mlp_ratio: 3 },
    classes: 10,
    conditioning: ClassConditioning::Readout,
    num_timesteps: 1000,
};

pub fn run(command: &Train) -> Result<(), Box<dyn Error>> {
    match (&command.contact_sheet, &command.what) {
        (Some(path), _) => {
            let data = dataset::load(&command.data, Split::Test)?;
            let images: Vec<_> = data.iter().take(2).map(|labelled| dataset::pad(&labelled.image, FASHION_IMAGE.height)).collect();
            std::fs::write(path, contact_sheet(&images, Table::Tiny, 1))?;
        }
        (None, Some(What::Classifier { run, architecture })) => {
            let config = match architecture {
                Architecture::Vit => FASHION_CLASSIFIER,
                Architecture::Resnet => FASHION_RESNET,
            };
            train::classifier(&config, &dataset::load(&run.data, Split::Train)?, &training(run, 0.05))?;
        }
        (None, Some(What::Diffusion { run, discrimination_weight, start, augmented, conditioning })) => {
            let conditioning = match conditioning {
                Conditioning::Readout => ClassConditioning::Readout,
                Conditioning::AdaLn => ClassConditioning::AdaLn,
            };
            let config = DitConfig { conditioning, ..FASHION_DIFFUSION };
            let start = start.as_ref().map(|path| read_weights(path)).transpose()?;
            let objective = DiffusionTraining { discrimination_weight: *discrimination_weight, start, augmentation: *augmented };
            train::diffusion(&config, &dataset::load(&run.data, Split::Train)?, &training(run, 0.0), &objective)?;
        }
        (None, Some(What::Bundle(finish))) => bundle(finish)?,
        (None, None) => return Err("name what to train: classifier, diffusion or bundle".into()),
    }
    Ok(())
}

fn read_weights(path: &Path) -> Result<Tensors, Box<dyn Error>> {
    let bytes = std::fs::read(path).map_err(|error| format!("file {}: {error}", path.display()))?;
    Ok(parameters::read(&bytes).map_err(|error| format!("file {}: {error}", path.display()))?)
}

fn training(run: &Run, weight_decay: f32) -> TrainingRun {
    TrainingRun { seed: run.seed, steps: run.steps, batch: run.batch, learning_rate: run.learning_rate, weight_decay, out: run.out.clone() }
}

/// Timesteps at which the diffusion model's accuracy is printed.
const CURVE: [u32; 8] = [20, 60, 100, 200, 300, 400, 500, 600];

/// Frames of the validation corruptions, in all sets of them, that the calibration is fitted on.
const VALIDATION_FRAMES: usize = 6400;

fn bundle(finish: &Finish) -> Result<(), Box<dyn Error>> {
    // They are written below; the configuration wants them to be there.
    let text: toml::Table = std::fs::read_to_string(finish.dir.join("undrift.toml"))?.parse()?;
    for key in ["statistics", "canary", "hashes"] {
        if let Some(name) = text.get("bundle").and_then(|files| files.get(key)?.as_str()) {
            File::options().create(true).append(true).open(finish.dir.join(name))?;
        }
    }
    let config = Config::load(&finish.dir.join("undrift.toml"), &[], std::iter::empty())?;
    let labels: Vec<String> = std::fs::read_to_string(&config.bundle.files.labels)?.lines().map(str::to_owned).collect();
    let classifier_config = config.bundle.classifier_config(labels.len());
    let bundle = Bundle {
        classifier: classifier_config.with_room(read_weights(&config.bundle.files.classifier)?)?,
        classifier_config,
        diffusion_config: config.bundle.diffusion_config(labels.len()),
        diffusion: read_weights(&config.bundle.files.diffusion)?,
        labels,
        statistics: Statistics::default(),
        canary: Canary::default(),
    };
    let judge = Judge::new(&bundle.diffusion_config, bundle.diffusion.clone())?;
    let mut test = dataset::load(&finish.data, Split::Test)?;
    let rest = test.split_off(finish.sample.min(test.len()));
    if rest.is_empty() {
        return Err("--sample leaves no images for the statistics".into());
    }
    // Of the data set, and not of one model: it lies with the labels, which bundles may share.
    write_sample(config.bundle.files.labels.parent().unwrap_or(&finish.dir), &test)?;
    // So does the canary; of images that no stream of test images shows.
    let canary = canary(&dataset::load(&finish.data, Split::Train)?, finish.seed, config.bundle.diffusion.trunk.image.height)?;
    candle_core::safetensors::save(&canary, &config.bundle.files.canary)?;
    let request = Request { frames: VALIDATION_FRAMES, severity: Severity::ALL[4], seed: finish.seed, visits: 1, walk: None };
    let plan = Plan::new(Stream::ExtraSets, &request, &rest)?;
    let validation = Playback { plan: &plan, images: &rest, table: Table::Tiny, side: judge.model().config().trunk.image.height };
    let measured = statistics::measure(&bundle, &config.adapt, &rest, validation.frames(), finish.seed)?;
    std::fs::write(&config.bundle.files.statistics, serde_json::to_string_pretty(&measured)? + "\n")?;
    println!("{}", serde_json::to_string_pretty(&measured)?);
    let curve = statistics::judge_accuracy(&judge, &CURVE.map(Timestep), &rest[..2000.min(rest.len())], finish.seed)?;
    println!("{}", serde_json::to_string(&curve)?);
    write_hashes(&config)
}

/// Frames of the canary, in equal parts clean and of each validation corruption.
const CANARY_FRAMES: usize = 500;

/// What a bundle looks at to see harm: bytes (N, C, H, W), and labels.
fn canary(images: &[Labelled], seed: u64, side: usize) -> Result<HashMap<&'static str, Tensor>, Box<dyn Error>> {
    let request = Request { frames: CANARY_FRAMES, severity: Severity::ALL[2], seed, visits: 1, walk: None };
    let plan = Plan::new(Stream::Extra, &request, images)?;
    let (mut bytes, mut labels) = (Vec::new(), Vec::new());
    for frame in (Playback { plan: &plan, images, table: Table::Tiny, side }).frames() {
        bytes.extend_from_slice(frame.image.pixels());
        labels.push(frame.label.0);
    }
    let shape = (CANARY_FRAMES, bytes.len() / CANARY_FRAMES / side / side, side, side);
    let images = Tensor::from_vec(bytes, shape, &Device::Cpu)?;
    Ok(HashMap::from([("images", images), ("labels", Tensor::new(labels, &Device::Cpu)?)]))
}

fn write_sample(dir: &Path, images: &[Labelled]) -> Result<(), Box<dyn Error>> {
    let create = |name: &str| File::create(dir.join(name));
    Ok(dataset::write_pair(images, create("sample-images-idx3-ubyte.gz")?, create("sample-labels-idx1-ubyte.gz")?)?)
}

/// BLAKE3 of each file, in the format of `b3sum`.
fn write_hashes(config: &Config) -> Result<(), Box<dyn Error>> {
    let files = &config.bundle.files;
    let mut text = String::new();
    for path in [&files.classifier, &files.diffusion, &files.labels, &files.statistics, &files.canary] {
        let name = path.file_name().ok_or("a bundle's files have names")?.to_string_lossy();
        text += &format!("{}  {name}\n", blake3::hash(&std::fs::read(path)?).to_hex());
    }
    Ok(std::fs::write(&files.hashes, text)?)
}
