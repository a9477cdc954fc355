//! A value for each camera, for as long as it sends.
//!
//! Whoever can publish can call a camera anything: so names are limited, and those beyond the limit share one value.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Cameras that have a value of their own; all others share one.
const CAMERAS_MAX: usize = 256;
/// Name of all others: no camera has it.
const OTHERS: &str = "";
/// Windows after which a camera that was not seen is forgotten.
const WINDOWS_UNSEEN_MAX: u32 = 256;

/// Values by camera.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ByCamera<T> {
    entries: BTreeMap<String, Entry<T>>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry<T> {
    value: T,
    windows_unseen: u32,
}

impl<T: Default> ByCamera<T> {
    /// The cameras of a window's frames: they have a value from here on.
    pub fn see<'a>(&mut self, cameras: impl Iterator<Item = &'a str>) {
        self.entries.values_mut().for_each(|entry| entry.windows_unseen += 1);
        for camera in cameras {
            let has_room = self.entries.len() < CAMERAS_MAX || self.entries.contains_key(camera);
            let name = if has_room { camera } else { OTHERS };
            if !self.entries.contains_key(name) {
                self.entries.insert(name.to_owned(), Entry::default());
            }
            self.entries.get_mut(name).expect("it was put there, if it was not").windows_unseen = 0;
        }
        self.entries.retain(|_, entry| entry.windows_unseen <= WINDOWS_UNSEEN_MAX);
    }
}

impl<T> ByCamera<T> {
    /// None where neither the camera nor one beyond the limit was seen.
    pub fn get(&self, camera: &str) -> Option<&T> {
        self.entries.get(camera).or_else(|| self.entries.get(OTHERS)).map(|entry| &entry.value)
    }

    pub fn get_mut(&mut self, camera: &str) -> Option<&mut T> {
        let name = if self.entries.contains_key(camera) { camera } else { OTHERS };
        self.entries.get_mut(name).map(|entry| &mut entry.value)
    }

    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub fn values(&self) -> impl Iterator<Item = &T> {
        self.entries.values().map(|entry| &entry.value)
    }

    pub fn values_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.entries.values_mut().map(|entry| &mut entry.value)
    }

    /// The same cameras, as if all were seen now, with what `value` makes of theirs.
    pub fn map<U>(&self, value: impl Fn(&T) -> U) -> ByCamera<U> {
        let entry = |entry: &Entry<T>| Entry { value: value(&entry.value), windows_unseen: 0 };
        ByCamera { entries: self.entries.iter().map(|(camera, of_camera)| (camera.clone(), entry(of_camera))).collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_without_end_share_one_value() {
        let mut counts = ByCamera::<u32>::default();
        for frame in 0..10_000 {
            let camera = format!("camera{frame}");
            counts.see(std::iter::once(camera.as_str()));
            *counts.get_mut(&camera).expect("it was seen") += 1;
            assert!(counts.len() <= CAMERAS_MAX + 1);
        }
    }

    #[test]
    fn a_camera_that_fell_silent_is_forgotten_and_one_that_was_never_seen_has_nothing() {
        let mut counts = ByCamera::<u32>::default();
        counts.see(["door", "yard"].into_iter());
        *counts.get_mut("door").expect("it was seen") = 7;
        for _ in 0..WINDOWS_UNSEEN_MAX {
            counts.see(std::iter::once("yard"));
        }
        assert_eq!((counts.get("door"), counts.get("road")), (Some(&7), None));
        counts.see(std::iter::once("yard"));
        assert_eq!((counts.get("door"), counts.get("yard")), (None, Some(&0)));
    }
}
