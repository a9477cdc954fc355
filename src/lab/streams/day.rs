//! A day of three cameras, far enough apart that each has its own hour.
//!
//! Light falls slowly from noon to night and rises again; on top of it come noise at night, fog in the morning, and a dirty lens in the
//! afternoon until somebody wipes it.

use super::scene::{Layer, Scene, Segment};
use crate::lab::corruptions::{Corruption, Severity};
use std::f64::consts::TAU;
use std::sync::Arc;

/// They send by turns.
const CAMERAS: [&str; 3] = ["door", "yard", "road"];

/// Hours between two neighbouring cameras.
const PHASE_HOURS: f64 = 8.0;

/// The first camera's hour when the stream begins.
const START_HOUR: f64 = 11.0;

/// The hour of full light, and the share of it that lamps leave twelve hours later.
const BRIGHTEST_HOUR: f64 = 13.0;
const NIGHT_LIGHT: f64 = 0.35;

/// One segment for each frame, as the light is never the same.
pub fn day(frames: u32, severity: Severity) -> Vec<Segment> {
    let segment = |(frame, (camera, phase)): (u32, (&'static str, f64))| {
        let hour = (START_HOUR + phase + 24.0 * f64::from(frame) / f64::from(frames)) % 24.0;
        Segment { scene: Arc::new(Scene { camera: Some(camera), ..at(hour, severity) }), frames: 1, is_fresh_start: false }
    };
    let cameras = CAMERAS.into_iter().zip((0u8..).map(|camera| PHASE_HOURS * f64::from(camera)));
    (0..frames).zip(cameras.cycle()).map(segment).collect()
}

/// Fog and dirt are in front of the sensor, whose noise does not care for the light.
fn at(hour: f64, severity: Severity) -> Scene {
    let light = Layer::Light(NIGHT_LIGHT + (1.0 - NIGHT_LIGHT) * (1.0 + (TAU * (hour - BRIGHTEST_HOUR) / 24.0).cos()) / 2.0);
    let layer = |corruption| Layer::Corruption(corruption, severity);
    let (domain, layers) = match hour {
        5.0..9.0 => ("morning_fog", vec![layer(Corruption::Fog), light]),
        14.0..18.0 => ("dirty_lens", vec![layer(Corruption::Spatter), light]),
        9.0..20.0 => ("daylight", vec![light]),
        _ => ("night", vec![light, layer(Corruption::GaussianNoise)]),
    };
    Scene { domain: domain.to_owned(), camera: None, layers }
}
