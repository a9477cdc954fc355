//! What is compared with what: the suites as data.

use super::cell::{Cell, Scenario};
use crate::lab::corruptions::Table;
use crate::lab::methods::Method;
use crate::lab::streams::Stream;
use clap::ValueEnum;
use serde::Serialize;

/// A comparison of named size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Suite {
    /// Everything, of the length that figures are published of: hours
    Full,
    /// The same streams and the quick methods on 300 frames of each: minutes
    Quick,
}

/// What a block is there for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Section {
    /// The main table.
    Streams,
    /// The main table under the other constants.
    OtherConstants,
    /// Corruptions outside the nineteen.
    HeldOut,
    /// Slow methods, and what is compared with them on the same frames.
    Slow,
    /// Streams that go on for long.
    Long,
}

/// How much of what the command line names a block takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    All,
    First,
}

/// Cells of one table: each method on each stream.
#[derive(Clone, Debug, PartialEq)]
pub struct Block {
    pub section: Section,
    pub table: Table,
    pub streams: Vec<Stream>,
    pub frames: usize,
    /// Of each domain, in `recurring`.
    pub visits: usize,
    pub methods: Vec<Method>,
    pub seeds: Extent,
    pub models: Extent,
}

/// The streams of the mean; clean frames stand beside it.
const TEN: [Stream; 10] = [
    Stream::Separate,
    Stream::Continual,
    Stream::Gradual,
    Stream::Mixed,
    Stream::Correlated,
    Stream::Single,
    Stream::Recurring,
    Stream::Ccc,
    Stream::LabelShift,
    Stream::Day,
];

/// Methods that take longer for a stream than all others together, and the frames that they get.
const SLOW: [(Method, usize); 3] = [(Method::Cotta, 1500), (Method::Memo, 450), (Method::DiffusionTta, 120)];

/// Methods of the long streams. LAME is left out: it does not learn.
const LONG: [Method; 6] = [Method::Source, Method::Undrift, Method::Tent, Method::Eata, Method::Rdumb, Method::Roid];

/// What needs batch norm: method and the one architecture that has it.
const BATCH_NORM: (&str, &str) = ("norm", "resnet");

const FRAMES: usize = 3750;
const FRAMES_QUICK: usize = 300;
const FRAMES_LONG: usize = 75_000;

impl Suite {
    pub fn name(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Quick => "quick",
        }
    }

    pub fn blocks(self) -> Vec<Block> {
        match self {
            Self::Quick => vec![main(Section::Streams, Table::Tiny, FRAMES_QUICK)],
            Self::Full => full(),
        }
    }
}

fn full() -> Vec<Block> {
    let streams = main(Section::Streams, Table::Tiny, FRAMES);
    let constants = Block { seeds: Extent::First, ..main(Section::OtherConstants, Table::Cifar, FRAMES) };
    let held_out = Block {
        section: Section::HeldOut,
        streams: vec![
            Stream::HeldOut,
            Stream::HeldOutAgain,
            Stream::HeldOutThird,
            Stream::HeldOutFourth,
            Stream::HeldOutFifth,
            Stream::HeldOutSixth,
            Stream::HeldOutSeventh,
        ],
        ..streams.clone()
    };
    let slow = SLOW.map(|(method, frames)| Block {
        section: Section::Slow,
        streams: vec![Stream::Continual],
        frames,
        methods: vec![Method::Source, Method::Undrift, method],
        ..streams.clone()
    });
    let long = Block {
        section: Section::Long,
        streams: vec![Stream::Recurring, Stream::Ccc],
        frames: FRAMES_LONG,
        visits: 20,
        methods: LONG.to_vec(),
        models: Extent::First,
        ..streams.clone()
    };
    [streams, constants, held_out].into_iter().chain(slow).chain([long]).collect()
}

/// Quick methods on the ten streams and on clean frames.
fn main(section: Section, table: Table, frames: usize) -> Block {
    let is_slow = |method: &Method| SLOW.iter().any(|(slow, _)| slow == method);
    Block {
        section,
        table,
        streams: TEN.into_iter().chain([Stream::Clean]).collect(),
        frames,
        visits: 2,
        methods: Method::value_variants().iter().copied().filter(|method| !is_slow(method)).collect(),
        seeds: Extent::All,
        models: Extent::All,
    }
}

impl Extent {
    fn of<T>(self, items: &[T]) -> &[T] {
        match self {
            Self::All => items,
            Self::First => &items[..items.len().min(1)],
        }
    }
}

impl Block {
    /// The models that it compares methods on.
    pub fn models<'a>(&self, models: &'a [String]) -> &'a [String] {
        self.models.of(models)
    }

    pub fn seeds<'a>(&self, seeds: &'a [u64]) -> &'a [u64] {
        self.seeds.of(seeds)
    }

    /// The methods that can be run on `model`.
    pub fn methods(&self, model: &str) -> impl Iterator<Item = Method> {
        let (needing, having) = BATCH_NORM;
        self.methods.iter().copied().filter(move |method| method.name() != needing || model == having)
    }

    /// All of its cells.
    pub fn cells(&self, models: &[String], seeds: &[u64]) -> Vec<Cell> {
        let Self { table, frames, visits, .. } = *self;
        let mut cells = Vec::new();
        for model in self.models(models) {
            for &stream in &self.streams {
                for &seed in self.seeds(seeds) {
                    let scenario = Scenario { table, stream, frames, visits, seed };
                    cells.extend(self.methods(model).map(|method| Cell { model: model.clone(), scenario, method }));
                }
            }
        }
        cells
    }
}

impl Cell {
    /// About how long it takes, in milliseconds of one core: for the order of work and for the time that is left.
    pub fn weight(&self) -> u64 {
        self.frame_weight() * self.frames()
    }

    fn frames(&self) -> u64 {
        u64::try_from(self.scenario.frames).expect("a usize has at most 64 bits")
    }

    fn starts(&self) -> u64 {
        if self.scenario.stream == Stream::Separate { 20 } else { 1 }
    }

    /// The same for one frame.
    pub fn frame_weight(&self) -> u64 {
        match self.method {
            Method::Source | Method::Stretched | Method::Lame => 2,
            Method::Tent | Method::Rdumb => 6,
            // It looks at 2000 source images first, in `separate` at each of 20 starts.
            Method::Eata => 6 + 12_000 * self.starts() / self.frames(),
            Method::Undrift | Method::Rotta => 14,
            Method::Cotta => 60,
            Method::Memo => 130,
            Method::DiffusionTta => 1500,
            _ => 10,
        }
    }
}
