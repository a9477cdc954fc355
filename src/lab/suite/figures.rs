//! Figures of a comparison, from its records alone. Accuracies and their differences are from 0 to 1.

use super::plan::{Block, Section, Suite};
use super::record::Record;
use super::trends::{Corruptions, Difference, Estimate};
use super::{Cell, Scenario};
use crate::lab::baselines::Passes;
use crate::lab::methods::Method;
use crate::lab::streams::Stream;
use crate::lab::summary::{WINDOW_FRAMES, worst_window_delta};
use serde::Serialize;
use std::collections::BTreeMap;

/// The records that there are, by the names of their cells.
pub type Records = BTreeMap<String, Record>;

/// All that is said of a comparison.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Figures {
    pub setups: Vec<Setup>,
    pub corruptions: Vec<Corruptions>,
    pub estimates: Vec<Estimate>,
    pub long: Vec<Difference>,
}

/// A mean over seeds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Mean {
    pub mean: f64,
    /// Standard deviation over the square root of the number of seeds; none with one seed.
    pub standard_error: Option<f64>,
    pub seeds: usize,
}

/// One table: the methods of a block on one model.
#[derive(Clone, Debug, Serialize)]
pub struct Setup {
    pub section: Section,
    pub model: String,
    /// Constants of the corruptions.
    pub table: String,
    /// Of each stream.
    pub frames: usize,
    /// Those that have records, in the block's order.
    pub streams: Vec<String>,
    /// Those of the mean: all but clean frames.
    pub mean_streams: usize,
    /// Methods that have records.
    pub rows: Vec<Row>,
}

/// One method.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    pub method: String,
    /// Accuracy by stream.
    pub streams: BTreeMap<String, Mean>,
    /// Accuracy over all streams but clean frames; none while one of them is missing.
    pub mean: Option<Mean>,
    /// The same minus that of the source, seed by seed.
    pub gain: Option<Mean>,
    /// The least accuracy against the source over any 500 frames in a row, of all streams and seeds.
    pub worst_window_delta: Option<f64>,
    /// Of one core, without the making of the frames.
    pub milliseconds_per_frame: f64,
    pub frames_per_second: f64,
    pub passes_per_frame: Passes,
}

impl Figures {
    /// Figures of all that `records` has of a suite on `models`, with `seeds`.
    pub fn new(suite: Suite, models: &[String], seeds: &[u64], records: &Records) -> Self {
        let mut figures = Self::default();
        for block in suite.blocks() {
            for model in block.models(models) {
                let of_model = OfModel { block: &block, model, seeds: block.seeds(seeds), records };
                figures.setups.extend(of_model.setup());
                match block.section {
                    Section::Streams => {
                        figures.corruptions.extend(of_model.corruptions(Stream::Separate));
                        figures.corruptions.extend(of_model.corruptions(Stream::Continual));
                        figures.estimates.extend(of_model.estimates());
                    }
                    Section::HeldOut => {
                        figures.corruptions.extend(block.streams.iter().filter_map(|&stream| of_model.corruptions(stream)));
                    }
                    Section::Long => {
                        figures.estimates.extend(of_model.estimates());
                        figures.long.extend(of_model.differences());
                    }
                    Section::OtherConstants | Section::Slow => {}
                }
            }
        }
        figures
    }
}

impl Mean {
    /// None of nothing.
    pub fn of(values: &[f64]) -> Option<Self> {
        if values.is_empty() {
            return None;
        }
        let count = values.len() as f64;
        let mean = values.iter().sum::<f64>() / count;
        let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / (count - 1.0);
        let standard_error = (values.len() > 1).then(|| (variance / count).sqrt());
        Some(Self { mean, standard_error, seeds: values.len() })
    }
}

impl Setup {
    pub fn row(&self, method: Method) -> Option<&Row> {
        self.rows.iter().find(|row| row.method == method.name())
    }

    /// The `count` methods with the best means that are neither the source nor this daemon, best first.
    pub fn best_competitors(&self, count: usize) -> Vec<&str> {
        let is_ours = |row: &Row| [Method::Source.name(), Method::Undrift.name()].contains(&row.method.as_str());
        let mut rivals: Vec<_> = self.rows.iter().filter(|row| !is_ours(row)).filter_map(|row| Some((row, row.mean?.mean))).collect();
        rivals.sort_by(|one, other| other.1.total_cmp(&one.1));
        rivals.into_iter().take(count).map(|(row, _)| row.method.as_str()).collect()
    }
}

/// The cells of a block on one model, as far as there are records of them.
#[derive(Clone, Copy)]
pub struct OfModel<'a> {
    pub block: &'a Block,
    pub model: &'a str,
    pub seeds: &'a [u64],
    pub records: &'a Records,
}

impl<'a> OfModel<'a> {
    pub fn record(&self, method: Method, stream: Stream, seed: u64) -> Option<&'a Record> {
        let Block { table, frames, visits, .. } = *self.block;
        let scenario = Scenario { table, stream, frames, visits, seed };
        self.records.get(&Cell { model: self.model.to_owned(), scenario, method }.name())
    }

    /// Records of one method on one stream, by seed.
    pub fn of_seeds(&self, method: Method, stream: Stream) -> impl Iterator<Item = (u64, &'a Record)> {
        self.seeds.iter().filter_map(move |&seed| Some((seed, self.record(method, stream, seed)?)))
    }

    pub fn methods(&self) -> impl Iterator<Item = Method> {
        self.block.methods(self.model)
    }

    fn setup(&self) -> Option<Setup> {
        let is_there = |&stream: &Stream| self.methods().any(|method| self.of_seeds(method, stream).next().is_some());
        let streams: Vec<Stream> = self.block.streams.iter().copied().filter(is_there).collect();
        let of_mean: Vec<Stream> = match streams.as_slice() {
            [Stream::Clean] => streams.clone(),
            _ => streams.iter().copied().filter(|&stream| stream != Stream::Clean).collect(),
        };
        let rows: Vec<Row> = self.methods().filter_map(|method| self.row(method, &streams, &of_mean)).collect();
        (!rows.is_empty()).then(|| Setup {
            section: self.block.section,
            model: self.model.to_owned(),
            table: super::cell::table_name(self.block.table).to_owned(),
            frames: self.block.frames,
            streams: streams.iter().map(|stream| stream.name().to_owned()).collect(),
            mean_streams: of_mean.len(),
            rows,
        })
    }

    fn row(&self, method: Method, streams: &[Stream], of_mean: &[Stream]) -> Option<Row> {
        let records: Vec<&Record> = streams.iter().flat_map(|&stream| self.of_seeds(method, stream)).map(|(_, record)| record).collect();
        let frames = records.iter().map(|record| record.frames).sum::<usize>() as f64;
        let seconds: f64 = records.iter().map(|record| record.seconds).sum();
        let mut passes = Passes::default();
        records.iter().for_each(|record| passes += record.passes);
        let by_stream = |&stream: &Stream| {
            let accuracies: Vec<f64> = self.of_seeds(method, stream).map(|(_, record)| accuracy(record)).collect();
            Some((stream.name().to_owned(), Mean::of(&accuracies)?))
        };
        let means: Vec<(f64, Option<f64>)> = self.seeds.iter().filter_map(|&seed| self.means(method, of_mean, seed)).collect();
        let gains: Option<Vec<f64>> = means.iter().map(|&(mean, source)| Some(mean - source?)).collect();
        (frames > 0.0).then(|| Row {
            method: method.name().to_owned(),
            streams: streams.iter().filter_map(by_stream).collect(),
            mean: Mean::of(&means.iter().map(|&(mean, _)| mean).collect::<Vec<_>>()),
            gain: gains.and_then(|gains| Mean::of(&gains)),
            worst_window_delta: self.worst_window_delta(method, streams),
            milliseconds_per_frame: 1e3 * seconds / frames,
            frames_per_second: frames / seconds,
            passes_per_frame: passes.per_frame(frames),
        })
    }

    /// Mean accuracies over `streams` with one seed, of a method and, where it is there, of the source.
    fn means(&self, method: Method, streams: &[Stream], seed: u64) -> Option<(f64, Option<f64>)> {
        let mean = |method| {
            let accuracies: Option<Vec<f64>> = streams.iter().map(|&stream| self.record(method, stream, seed).map(accuracy)).collect();
            Some(Mean::of(&accuracies?)?.mean)
        };
        Some((mean(method)?, mean(Method::Source)))
    }

    fn worst_window_delta(&self, method: Method, streams: &[Stream]) -> Option<f64> {
        let pairs = streams.iter().flat_map(|&stream| {
            self.of_seeds(method, stream).filter_map(move |(seed, record)| Some((self.record(Method::Source, stream, seed)?, record)))
        });
        pairs.map(|(source, record)| worst_window_delta(&paired(source, record), WINDOW_FRAMES)).min_by(f64::total_cmp)
    }
}

/// Hits of the source and of another method on the same frames.
pub fn paired(source: &Record, other: &Record) -> Vec<(bool, bool)> {
    source.hits().zip(other.hits()).collect()
}

/// Share of hits.
pub fn accuracy(record: &Record) -> f64 {
    crate::lab::evaluate::accuracy(record.hits())
}
