//! What each camera has moved the weights, and whether it may go on.
//!
//! A step is put down to the cameras by their shares of the frames that it was taken on, and forgotten as the anchor takes it back. A
//! camera that accounts for more than a few times the mean of all teaches nothing until the others have caught up. So one camera
//! among ten moves the weights a fifth of the way at most, whatever it sends and however fast; a camera that is alone is free.

use crate::by_camera::ByCamera;
use serde::{Deserialize, Serialize};

/// How far each camera has moved the weights, over the norm of the source's.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CameraShares {
    changes: ByCamera<f64>,
}

impl CameraShares {
    /// The cameras of a window's frames.
    pub fn see<'a>(&mut self, cameras: impl Iterator<Item = &'a str>) {
        self.changes.see(cameras);
    }

    /// Whether the camera has moved the weights no more than `share_max` times the mean of all cameras.
    pub fn admits(&self, camera: &str, share_max: f64) -> bool {
        let total: f64 = self.changes.values().sum();
        self.changes.get(camera).is_none_or(|change| change * self.changes.len() as f64 <= share_max * total)
    }

    /// Puts a change down to the cameras of the frames that it was learned from, and forgets the share `forgotten` of those before.
    pub fn charge<'a>(&mut self, cameras: impl ExactSizeIterator<Item = &'a str>, change: f64, forgotten: f64) {
        self.changes.values_mut().for_each(|change| *change *= 1.0 - forgotten);
        let of_frame = change / cameras.len() as f64;
        for camera in cameras {
            *self.changes.get_mut(camera).expect("the camera of a window was seen") += of_frame;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    /// Shares of the change after 4000 windows of 8 frames, each frame of the camera that `camera` names for it.
    fn shares(camera: impl Fn(usize) -> String, share_max: f64) -> BTreeMap<String, f64> {
        let (mut shares, mut changes) = (CameraShares::default(), BTreeMap::<String, f64>::new());
        for window in 0..4000 {
            let cameras: Vec<String> = (0..8).map(|frame| camera(8 * window + frame)).collect();
            shares.see(cameras.iter().map(String::as_str));
            let taught: Vec<&str> = cameras.iter().map(String::as_str).filter(|camera| shares.admits(camera, share_max)).collect();
            if !taught.is_empty() {
                taught.iter().for_each(|camera| *changes.entry((*camera).to_owned()).or_default() += 1.0 / taught.len() as f64);
                shares.charge(taught.into_iter(), 1.0, 0.005);
            }
        }
        let total: f64 = changes.values().sum();
        changes.into_iter().map(|(camera, change)| (camera, change / total)).collect()
    }

    #[test]
    fn a_camera_that_is_alone_and_cameras_that_send_alike_teach_freely() {
        assert_eq!(shares(|_| "door".to_owned(), 2.0)["door"], 1.0);
        for (camera, share) in shares(|frame| (frame % 3).to_string(), 2.0) {
            assert!((share - 1.0 / 3.0).abs() < 0.01, "{camera}: {share}");
        }
    }

    #[test]
    fn a_camera_that_floods_moves_the_weights_twice_its_equal_share_and_no_more() {
        let camera = |frame: usize| if frame % 10 == 9 { format!("camera{}", frame / 10 % 9) } else { "flood".to_owned() };
        let share = shares(camera, 2.0)["flood"];
        assert!((0.15..0.21).contains(&share), "{share} of ten cameras, 90 % of the frames");
        assert!(shares(camera, 1000.0)["flood"] > 0.85, "without a limit it teaches most");
    }

    #[test]
    fn cameras_that_fell_silent_are_forgotten() {
        let camera = |frame: usize| if frame < 3000 { (frame % 3).to_string() } else { "0".to_owned() };
        assert!(shares(camera, 2.0)["0"] > 0.8);
    }
}
