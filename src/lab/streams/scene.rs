//! What stands between the world and a frame.

use crate::frame::Image;
use crate::lab::corruptions::raster::Raster;
use crate::lab::corruptions::{Corruption, Draws, HeldOut, Severity, Table, corrupt};
use std::fmt;
use std::sync::Arc;

/// One thing that is done to a frame.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Layer {
    Corruption(Corruption, Severity),
    HeldOut(HeldOut),
    /// Share of the light that is left, 0..=1.
    Light(f64),
}

/// What a camera looks through for a while.
#[derive(Clone, Debug, PartialEq)]
pub struct Scene {
    /// Name for evaluation: 1 to 64 printable characters.
    pub domain: String,
    /// Where the stream has more than one.
    pub camera: Option<&'static str>,
    /// In the order in which they are applied; none is clean.
    pub layers: Vec<Layer>,
}

/// A stretch of a stream in one scene.
#[derive(Clone, Debug)]
pub(super) struct Segment {
    pub scene: Arc<Scene>,
    pub frames: usize,
    /// Whether the consumer goes back to its source weights before the first frame.
    pub is_fresh_start: bool,
}

impl Layer {
    pub fn name(self) -> &'static str {
        match self {
            Self::Corruption(corruption, _) => corruption.name(),
            Self::HeldOut(held_out) => held_out.name(),
            Self::Light(_) => "light",
        }
    }

    fn apply(self, image: &Image, table: Table, draws: &mut Draws) -> Image {
        match self {
            Self::Corruption(corruption, severity) => corrupt(image, corruption, severity, table, draws),
            Self::HeldOut(held_out) => held_out.apply(image, draws),
            Self::Light(share) => Raster::from(image).map(|value| share * value).to_image(),
        }
    }
}

/// Name and strength: `fog:3`, `light:0.5`.
impl fmt::Display for Layer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Corruption(corruption, severity) => write!(formatter, "{corruption}:{}", severity.get()),
            Self::HeldOut(held_out) => formatter.write_str(held_out.name()),
            Self::Light(share) => write!(formatter, "light:{share}"),
        }
    }
}

impl Scene {
    /// A scene whose domain is made of the names of its layers.
    pub fn of(layers: Vec<Layer>) -> Self {
        let names: Vec<_> = layers.iter().map(|layer| layer.name()).collect();
        let domain = if names.is_empty() { "clean".to_owned() } else { names.join("+") };
        Self { domain, camera: None, layers }
    }

    /// The clean image, grey or RGB from 16 x 16, as the camera sees it; layer after layer takes its draws.
    pub fn render(&self, clean: &Image, table: Table, draws: &mut Draws) -> Image {
        self.layers.iter().fold(clean.clone(), |image, layer| layer.apply(&image, table, draws))
    }
}

impl Segment {
    pub fn of(layers: impl IntoIterator<Item = Layer>, frames: usize) -> Self {
        Self { scene: Arc::new(Scene::of(layers.into_iter().collect())), frames, is_fresh_start: false }
    }
}
