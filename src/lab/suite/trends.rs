//! Figures that need more of a record than its accuracy: by corruption, over time, and of the estimate.

use super::figures::{Mean, OfModel, paired};
use super::record::Record;
use crate::lab::evaluate::accuracy;
use crate::lab::methods::Method;
use crate::lab::streams::Stream;
use crate::lab::summary::{Tally, WINDOW_FRAMES};
use serde::Serialize;

/// Frames of a window on a long stream.
const LONG_WINDOW_FRAMES: usize = 5000;

/// Accuracies under each corruption of a stream, over all seeds.
#[derive(Clone, Debug, Serialize)]
pub struct Corruptions {
    pub model: String,
    pub stream: String,
    pub methods: Vec<String>,
    /// In the order of the stream.
    pub rows: Vec<CorruptionRow>,
}

#[derive(Clone, Debug, Serialize)]
pub struct CorruptionRow {
    pub corruption: String,
    /// By method.
    pub accuracies: Vec<f64>,
}

/// A method against the source over a long stream.
#[derive(Clone, Debug, Serialize)]
pub struct Difference {
    pub model: String,
    pub stream: String,
    pub method: String,
    pub frames: usize,
    pub window_frames: usize,
    /// Accuracy minus that of the source, window by window: means over the seeds.
    pub windows: Vec<f64>,
    /// The least of any seed's.
    pub worst: f64,
    pub first_tenth: Mean,
    pub last_tenth: Mean,
    /// The last tenth minus the first, seed by seed.
    pub change: Mean,
}

/// How far the daemon's estimate of its own accuracy is from the truth on one stream.
#[derive(Clone, Debug, Serialize)]
pub struct Estimate {
    pub model: String,
    pub stream: String,
    pub frames: usize,
    pub window_frames: usize,
    /// |mean estimate - accuracy| of a window, mean over the windows.
    pub absolute_error: Mean,
    /// Mean estimate - accuracy: above zero, the estimate is too high.
    pub bias: Mean,
}

impl OfModel<'_> {
    /// None where no method has a record of `stream`.
    pub fn corruptions(&self, stream: Stream) -> Option<Corruptions> {
        let tallies = |method| {
            let mut tallies = Vec::new();
            self.of_seeds(method, stream).for_each(|(_, record)| count_domains(record, &mut tallies));
            (!tallies.is_empty()).then_some((method, tallies))
        };
        let by_method: Vec<(Method, Vec<(String, Hits)>)> = self.methods().filter_map(tallies).collect();
        // All methods saw the same frames, so that they have the same corruptions.
        let row = |(corruption, _): &(String, Hits)| {
            let of =
                |(_, tallies): &(Method, Vec<(String, Hits)>)| tallies.iter().find(|(name, _)| name == corruption).map(|at| at.1.share());
            Some(CorruptionRow { corruption: corruption.clone(), accuracies: by_method.iter().map(of).collect::<Option<_>>()? })
        };
        Some(Corruptions {
            model: self.model.to_owned(),
            stream: stream.name().to_owned(),
            methods: by_method.iter().map(|(method, _)| method.name().to_owned()).collect(),
            rows: by_method.first()?.1.iter().filter_map(row).collect(),
        })
    }

    /// Of each stream and each method but the source, over the seeds of which the source was run too.
    pub fn differences(&self) -> Vec<Difference> {
        let of = |stream, method| {
            let of_seed = |(seed, record)| Some(paired(self.record(Method::Source, stream, seed)?, record));
            let runs: Vec<_> = self.of_seeds(method, stream).filter_map(of_seed).collect();
            let tenth = |hits: &[_]| hits.len().div_ceil(10);
            let firsts: Vec<f64> = runs.iter().map(|hits| gain(&hits[..tenth(hits)])).collect();
            let lasts: Vec<f64> = runs.iter().map(|hits| gain(&hits[hits.len() - tenth(hits)..])).collect();
            let changes: Vec<f64> = lasts.iter().zip(&firsts).map(|(last, first)| last - first).collect();
            let windows: Vec<Vec<f64>> = runs.iter().map(|hits| hits.chunks(LONG_WINDOW_FRAMES).map(gain).collect()).collect();
            let of_window =
                |index: usize| Some(Mean::of(&windows.iter().filter_map(|run| run.get(index).copied()).collect::<Vec<_>>())?.mean);
            Some(Difference {
                model: self.model.to_owned(),
                stream: stream.name().to_owned(),
                method: method.name().to_owned(),
                frames: runs.first()?.len(),
                window_frames: LONG_WINDOW_FRAMES,
                worst: windows.iter().flatten().copied().min_by(f64::total_cmp)?,
                windows: (0..windows.first()?.len()).filter_map(of_window).collect(),
                first_tenth: Mean::of(&firsts)?,
                last_tenth: Mean::of(&lasts)?,
                change: Mean::of(&changes)?,
            })
        };
        let methods: Vec<Method> = self.methods().filter(|&method| method != Method::Source).collect();
        self.block.streams.iter().flat_map(|&stream| methods.iter().filter_map(move |&method| of(stream, method))).collect()
    }

    /// Of the streams that have records of the daemon.
    pub fn estimates(&self) -> Vec<Estimate> {
        let of = |&stream: &Stream| {
            let errors: Vec<(f64, f64)> =
                self.of_seeds(Method::Undrift, stream).filter_map(|(_, record)| errors(record, WINDOW_FRAMES)).collect();
            let (absolute, bias): (Vec<f64>, Vec<f64>) = errors.into_iter().unzip();
            Some(Estimate {
                model: self.model.to_owned(),
                stream: stream.name().to_owned(),
                frames: self.block.frames,
                window_frames: WINDOW_FRAMES,
                absolute_error: Mean::of(&absolute)?,
                bias: Mean::of(&bias)?,
            })
        };
        self.block.streams.iter().filter_map(of).collect()
    }
}

/// Right answers among some.
#[derive(Clone, Copy, Default)]
struct Hits {
    hits: f64,
    frames: f64,
}

impl Hits {
    fn share(self) -> f64 {
        self.hits / self.frames
    }
}

fn count_domains(record: &Record, tallies: &mut Vec<(String, Hits)>) {
    let hits: Vec<bool> = record.hits().collect();
    for (domain, first, end) in record.stretches() {
        let known = tallies.iter().position(|(name, _)| name == domain);
        let at = known.unwrap_or_else(|| {
            tallies.push((domain.to_owned(), Hits::default()));
            tallies.len() - 1
        });
        tallies[at].1.frames += (end - first) as f64;
        tallies[at].1.hits += hits[first..end].iter().filter(|&&is_hit| is_hit).count() as f64;
    }
}

/// Accuracy of the second of each pair minus that of the first.
fn gain(hits: &[(bool, bool)]) -> f64 {
    let mut tally = Tally::default();
    hits.iter().for_each(|&(source, adapted)| tally.add(source, adapted));
    tally.gain()
}

/// Mean absolute and mean error of the estimate over windows, of which the last may be longer than `window`; none without an estimate.
fn errors(record: &Record, window: usize) -> Option<(f64, f64)> {
    let frames: Vec<(bool, f64)> = record.hits().zip(record.estimates()).filter_map(|(hit, estimate)| Some((hit, estimate?))).collect();
    let whole = (frames.len() / window).max(1);
    let end = |index: usize| if index + 1 == whole { frames.len() } else { (index + 1) * window };
    let error = |window: &[(bool, f64)]| {
        let mean = window.iter().map(|&(_, estimate)| estimate).sum::<f64>() / window.len() as f64;
        mean - accuracy(window.iter().map(|&(hit, _)| hit))
    };
    let errors: Vec<f64> = (0..whole).map(|index| error(&frames[index * window..end(index)])).collect();
    let absolute: Vec<f64> = errors.iter().map(|error| error.abs()).collect();
    (!frames.is_empty()).then(|| Some((Mean::of(&absolute)?.mean, Mean::of(&errors)?.mean))).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::baselines::Passes;

    fn record(hits: &str, estimates: &[(usize, f64)]) -> Record {
        Record {
            fingerprint: String::new(),
            model: "vit".to_owned(),
            table: "tiny".to_owned(),
            stream: "continual".to_owned(),
            seed: 1,
            method: "undrift".to_owned(),
            frames: hits.len(),
            seconds: 1.0,
            passes: Passes::default(),
            hits: hits.to_owned(),
            domains: vec![(0, "clean".to_owned()), (2, "fog".to_owned()), (3, "clean".to_owned())],
            estimates: estimates.to_vec(),
        }
    }

    #[test]
    fn errors_of_the_estimate_are_those_by_hand() {
        // Known from frame 2 on. Windows of two: estimates 0.5 and 0.75 (mean 0.625) against 1 of 2; then 0.75 against 0 of 3.
        let record = record("1110000", &[(2, 0.5), (3, 0.75)]);
        assert_eq!(errors(&record, 2), Some(((0.125 + 0.75) / 2.0, (0.125 + 0.75) / 2.0)));
        assert_eq!(errors(&self::record("1110000", &[]), 2), None);
    }

    #[test]
    fn visits_of_a_domain_are_joined() {
        let mut tallies = Vec::new();
        count_domains(&record("1101", &[]), &mut tallies);
        let shares: Vec<_> = tallies.iter().map(|(name, hits)| (name.as_str(), hits.hits, hits.frames)).collect();
        assert_eq!(shares, [("clean", 3.0, 3.0), ("fog", 0.0, 1.0)]);
    }
}
