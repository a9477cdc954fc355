//! The names of the streams.

use crate::lab::corruptions::{Corruption, HeldOut};
use clap::ValueEnum;
use clap::builder::PossibleValue;
use std::sync::LazyLock;

/// A kind of stream. Every one but those of a single scene, `ccc` and `day` begins with clean frames, and gives each of its domains
/// the same number of frames, but for one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    Clean,
    Continual,
    Separate,
    Gradual,
    Mixed,
    Correlated,
    Single,
    Recurring,
    Ccc,
    LabelShift,
    Day,
    Extra,
    ExtraSets,
    HeldOut,
    HeldOutAgain,
    HeldOutThird,
    HeldOutFourth,
    HeldOutFifth,
    HeldOutSixth,
    HeldOutSeventh,
    /// One of the 19 from the first frame to the last.
    OfCorruption(Corruption),
    /// One of the held-out corruptions from the first frame to the last.
    OfHeldOut(HeldOut),
}

static ALL: LazyLock<Vec<Stream>> = LazyLock::new(|| {
    let of_one = Corruption::ALL.map(Stream::OfCorruption).into_iter().chain(HeldOut::ALL.map(Stream::OfHeldOut));
    Stream::NAMED.into_iter().chain(of_one).collect()
});

impl Stream {
    /// All but the streams of one corruption.
    pub const NAMED: [Self; 20] = [
        Self::Clean,
        Self::Continual,
        Self::Separate,
        Self::Gradual,
        Self::Mixed,
        Self::Correlated,
        Self::Single,
        Self::Recurring,
        Self::Ccc,
        Self::LabelShift,
        Self::Day,
        Self::Extra,
        Self::ExtraSets,
        Self::HeldOut,
        Self::HeldOutAgain,
        Self::HeldOutThird,
        Self::HeldOutFourth,
        Self::HeldOutFifth,
        Self::HeldOutSixth,
        Self::HeldOutSeventh,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Clean => "clean",
            Self::Continual => "continual",
            Self::Separate => "separate",
            Self::Gradual => "gradual",
            Self::Mixed => "mixed",
            Self::Correlated => "correlated",
            Self::Single => "single",
            Self::Recurring => "recurring",
            Self::Ccc => "ccc",
            Self::LabelShift => "label-shift",
            Self::Day => "day",
            Self::Extra => "extra",
            Self::ExtraSets => "extra-sets",
            Self::HeldOut => "held-out",
            Self::HeldOutAgain => "held-out-again",
            Self::HeldOutThird => "held-out-third",
            Self::HeldOutFourth => "held-out-fourth",
            Self::HeldOutFifth => "held-out-fifth",
            Self::HeldOutSixth => "held-out-sixth",
            Self::HeldOutSeventh => "held-out-seventh",
            Self::OfCorruption(corruption) => corruption.name(),
            Self::OfHeldOut(held_out) => held_out.name(),
        }
    }

    /// What it plays, in one line.
    pub fn about(self) -> &'static str {
        match self {
            Self::Clean => "Clean frames only",
            Self::Continual => "The 15 standard corruptions one after the other, in the field's order; no reset",
            Self::Separate => "Each of the 19 corruptions by itself: adaptation starts afresh with each",
            Self::Gradual => "The 15 one after the other, each rising from severity 1 to --severity and falling again",
            Self::Mixed => "The 15 shuffled, frame by frame",
            Self::Correlated => "The 15 one after the other, in runs of one class (Dirichlet 0.1, as RoTTA and NOTE)",
            Self::Single => "The frames of continual, for a consumer that adapts on each frame by itself",
            Self::Recurring => "The continual stream --visits times",
            Self::Ccc => "Pairs of corruptions that change continuously at one source accuracy; needs --calibration",
            Self::LabelShift => "The frames' classes grow frequent and rare by turns while the 15 corruptions change",
            Self::Day => "A day of three cameras: changing light, noise at night, fog in the morning, a dirty lens",
            Self::Extra => "The 4 extra corruptions one after the other: for choosing settings",
            Self::ExtraSets => "The 4 extra corruptions, each set of them at once: for calibrating",
            Self::HeldOut => "Six corruptions outside the 19, one after the other: settings have been chosen on them since",
            Self::HeldOutAgain => {
                "Six others, invented when the first had been used, as hard for the source as the 19; settings have been chosen on them since"
            }
            Self::HeldOutThird => "Six others, invented when the second had been looked at, as hard as those",
            Self::HeldOutFourth => "Six others, invented when the third had been looked at, as hard as those; never for choosing settings",
            Self::HeldOutFifth => "Six others, invented when the fourth had been looked at, as hard as those; never for choosing settings",
            Self::HeldOutSixth => "Six others, invented when the fifth had been looked at, as hard as those; never for choosing settings",
            Self::HeldOutSeventh => "Six others, invented when the sixth had been looked at, as hard as those; never for choosing settings",
            Self::OfCorruption(_) | Self::OfHeldOut(_) => "This corruption only",
        }
    }

    /// Frames that come at a time, where that is for the stream to say: a method that answers a window at once has no larger one. This
    /// daemon answers frame by frame in any case.
    pub fn window(self) -> Option<usize> {
        (self == Self::Single).then_some(1)
    }
}

impl ValueEnum for Stream {
    fn value_variants<'a>() -> &'a [Self] {
        &ALL
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        let is_of_one = matches!(self, Self::OfCorruption(_) | Self::OfHeldOut(_));
        Some(PossibleValue::new(self.name()).help(self.about()).hide(is_of_one))
    }
}
