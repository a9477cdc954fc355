//! How well the source classifier does under each pair of standard corruptions: the table that `ccc` walks on.

use super::scene::{Layer, Scene};
use crate::lab::corruptions::{Corruption, Severity};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A corruption and its severity, 0 (not there) to 5.
pub(super) type Part = (Corruption, u8);

/// Accuracy of the source, 0..=1, clean, under each of the 15 corruptions, and under each two of them, at all severities.
///
/// It belongs to one classifier, one table of constants and one image size.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "BTreeMap<String, f64>")]
pub struct Calibration(BTreeMap<String, f64>);

/// A table that is not one.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum CalibrationError {
    #[error("read calibration: accuracy of {scene} is missing")]
    Missing { scene: String },
    #[error("read calibration: accuracy of {scene} is {value}, expected 0 to 1")]
    Range { scene: String, value: f64 },
}

impl Calibration {
    /// Entries of the table: what [`Calibration::measure`] measures.
    pub fn scenes() -> Vec<Scene> {
        let levels = || 1..=5;
        let single = Corruption::STANDARD.iter().flat_map(|&one| levels().map(move |of_one| mix([(one, of_one)])));
        let pairs = Corruption::STANDARD.iter().flat_map(|&one| Corruption::STANDARD.iter().map(move |&two| (one, two)));
        let double = pairs
            .filter(|(one, two)| one < two)
            .flat_map(|(one, two)| levels().flat_map(move |of_one| levels().map(move |of_two| mix([(one, of_one), (two, of_two)]))));
        std::iter::once(mix([])).chain(single).chain(double).collect()
    }

    /// Asks `accuracy` for the source's accuracy in each scene, on images that the streams do not show.
    ///
    /// # Errors
    /// The first of `accuracy`.
    pub fn measure<E>(mut accuracy: impl FnMut(&Scene) -> Result<f64, E>) -> Result<Self, E> {
        let entry = |scene: Scene| Ok((key(&scene), accuracy(&scene)?));
        Ok(Self(Self::scenes().into_iter().map(entry).collect::<Result<_, E>>()?))
    }

    pub(super) fn accuracy(&self, parts: [Part; 2]) -> f64 {
        self.0[&key(&mix(parts))]
    }
}

impl TryFrom<BTreeMap<String, f64>> for Calibration {
    type Error = CalibrationError;

    fn try_from(accuracies: BTreeMap<String, f64>) -> Result<Self, Self::Error> {
        for scene in Self::scenes().iter().map(key) {
            match accuracies.get(&scene) {
                Some(value) if (0.0..=1.0).contains(value) => {}
                Some(&value) => return Err(CalibrationError::Range { scene, value }),
                None => return Err(CalibrationError::Missing { scene }),
            }
        }
        Ok(Self(accuracies))
    }
}

/// The scene of some corruptions. They are applied in the order of [`Corruption::ALL`], whichever comes and whichever goes.
pub(super) fn mix<const N: usize>(mut parts: [Part; N]) -> Scene {
    parts.sort_unstable();
    let layer = |(corruption, severity)| Some(Layer::Corruption(corruption, Severity::try_from(severity).ok()?));
    Scene::of(parts.into_iter().filter_map(layer).collect())
}

/// `clean`, `fog:3` or `snow:1+fog:3`.
fn key(scene: &Scene) -> String {
    let layers: Vec<_> = scene.layers.iter().map(Layer::to_string).collect();
    if layers.is_empty() { "clean".to_owned() } else { layers.join("+") }
}
