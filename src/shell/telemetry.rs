//! What the daemon shows of itself: the only place that knows metric names.
//!
//! Every stage reports here; Prometheus reads it at `/metrics`. [`METRICS`] is the whole set, and the README's table is
//! made of it.
//! Invariants: every series that can be known beforehand exists from the start, at zero, so that `rate()` and alerts see
//! zero and not absence; a gauge of what is not known yet is NaN. What a checkpoint keeps is shown after a restart as before it.
//! A label's values come from an enum, the bundle's labels or a bounded set; never from an error text or a frame.
//! Absent on purpose: a listener (`http.rs` serves the text) and any decision that depends on a metric.

use crate::decode::Reject;
use crate::frame::ClassIndex;
use crate::observation::{DriftState, Observation, SkipReason, WindowReport};
use crate::pipeline::Status;
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use std::collections::BTreeSet;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

const LATENCY_SECONDS: &[f64] = &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0];
const AGE_SECONDS: &[f64] = &[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 3600.0];
const CONFIDENCE: &[f64] = &[0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0];
/// Up to ln 1000.
const ENTROPY_NATS: &[f64] = &[0.01, 0.03, 0.1, 0.2, 0.4, 0.7, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 7.0];

/// Above so many classes, predictions are not counted by class.
const CLASSES_COUNTED_MAX: usize = 64;
/// Counts of clock ticks in `/proc/self/stat` are in hundredths of a second on every Linux (`USER_HZ`).
const CLOCK_TICKS_PER_SECOND: f64 = 100.0;
const UPKEEP_INTERVAL: Duration = Duration::from_secs(5);

/// How a metric is read.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Counter,
    Gauge,
    /// With the upper bounds of its buckets.
    Histogram(&'static [f64]),
}

/// One metric: its name, its text, and the label that splits it.
#[derive(Clone, Copy, Debug)]
pub struct Metric {
    name: &'static str,
    kind: Kind,
    unit: &'static str,
    help: &'static str,
    label: Option<&'static str>,
    /// Values of `label` that exist from the start.
    values: &'static [&'static str],
    /// Of a gauge, before it is set.
    start: f64,
}

impl Metric {
    const fn new(name: &'static str, kind: Kind, unit: &'static str, help: &'static str) -> Self {
        Self { name, kind, unit, help, label: None, values: &[], start: 0.0 }
    }

    const fn by(self, label: &'static str, values: &'static [&'static str]) -> Self {
        Self { label: Some(label), values, ..self }
    }

    /// A gauge of what the start does not know.
    const fn unknown_at_first(self) -> Self {
        Self { start: f64::NAN, ..self }
    }

    pub fn count(&self, amount: u64) {
        metrics::counter!(self.name).increment(amount);
    }

    /// One more with this value of the metric's label.
    pub fn count_by(&self, value: impl Into<metrics::SharedString>) {
        metrics::counter!(self.name, self.label.unwrap_or_default() => value.into()).increment(1);
    }

    pub fn add_by(&self, value: &'static str, amount: u32) {
        metrics::counter!(self.name, self.label.unwrap_or_default() => value).increment(u64::from(amount));
    }

    pub fn set(&self, value: f64) {
        metrics::gauge!(self.name).set(value);
    }

    pub fn set_by(&self, label: &'static str, value: f64) {
        metrics::gauge!(self.name, self.label.unwrap_or_default() => label).set(value);
    }

    pub fn record(&self, value: f64) {
        metrics::histogram!(self.name).record(value);
    }

    pub fn record_by(&self, label: &'static str, value: f64) {
        metrics::histogram!(self.name, self.label.unwrap_or_default() => label).record(value);
    }

    fn describe(&self) {
        match self.kind {
            Kind::Counter => metrics::describe_counter!(self.name, self.help),
            Kind::Gauge => metrics::describe_gauge!(self.name, self.help),
            Kind::Histogram(_) => metrics::describe_histogram!(self.name, self.help),
        }
    }

    /// Makes the series that are known beforehand exist; a histogram exists once it is registered.
    fn start(&self) {
        let labels = match self.label {
            None => vec![vec![]],
            Some(label) => self.values.iter().map(|&value| vec![metrics::Label::new(label, value)]).collect(),
        };
        for labels in labels {
            match self.kind {
                Kind::Counter => metrics::counter!(self.name, labels).increment(0),
                Kind::Gauge => metrics::gauge!(self.name, labels).set(self.start),
                Kind::Histogram(_) => drop(metrics::histogram!(self.name, labels)),
            }
        }
    }
}

/// Declares the metrics, and with them the table.
macro_rules! metrics_table {
    ($($constant:ident = $metric:expr;)*) => {
        $(pub const $constant: Metric = $metric;)*
        /// All metrics, in the order of the README's table.
        pub const METRICS: &[Metric] = &[$($constant),*];
    };
}

use Kind::{Counter, Gauge, Histogram};

metrics_table! {
    // Frames
    FRAMES_RECEIVED = Metric::new("undrift_frames_received_total", Counter, "", "Frames that arrived.").by("camera", &[]);
    FRAMES_ANSWERED = Metric::new("undrift_frames_answered_total", Counter, "", "Frames that were answered with a prediction.").by("camera", &[]);
    FRAMES_REJECTED = Metric::new("undrift_frames_rejected_total", Counter, "", "Frames that could not be used.").by("reason", &Reject::ALL_REASONS);
    FRAMES_SHED = Metric::new("undrift_frames_shed_total", Counter, "", "Frames dropped unanswered.").by("reason", &["queue_frames", "queue_bytes", "shutdown"]);
    FRAMES_STALE = Metric::new("undrift_frames_stale_total", Counter, "", "Frames delivered again after they were applied, and dropped.");
    STREAM_BREAKS = Metric::new("undrift_stream_breaks_total", Counter, "", "Times that the stream turned out to hold other frames than those that were applied.")
        .by("kind", &["new_stream", "stream_truncated", "stream_rewritten"]);
    FRAMES_MISSED = Metric::new("undrift_frames_missed_total", Counter, "", "Sequence numbers that the stream did not deliver.");
    FRAME_AGE = Metric::new("undrift_frame_age_seconds", Histogram(AGE_SECONDS), "seconds", "Age of a frame at its answer, by the clock of its camera, else of the broker.");
    STAGE_DURATION = Metric::new("undrift_stage_duration_seconds", Histogram(LATENCY_SECONDS), "seconds", "Time that a stage took: a frame's for queue, decode, predict and publish, a window's for adapt.")
        .by("stage", &["queue", "decode", "predict", "adapt", "publish"]);
    QUEUE_FRAMES = Metric::new("undrift_queue_frames", Gauge, "", "Frames that wait.");
    QUEUE_BYTES = Metric::new("undrift_queue_bytes", Gauge, "bytes", "Bytes of the frames that wait.");
    // Predictions
    PREDICTIONS = Metric::new("undrift_predictions_total", Counter, "", "Predictions by class.").by("class", &[]);
    PREDICTION_CONFIDENCE = Metric::new("undrift_prediction_confidence_ratio", Histogram(CONFIDENCE), "ratio", "Probability of the predicted class.");
    PREDICTION_ENTROPY = Metric::new("undrift_prediction_entropy_nats", Histogram(ENTROPY_NATS), "nats", "Entropy of the class probabilities.");
    PREDICTIONS_DROPPED = Metric::new("undrift_predictions_dropped_total", Counter, "", "Predictions and notices dropped, oldest first, because NATS did not take them.");
    REPLAYED_PREDICTIONS = Metric::new("undrift_replayed_predictions_total", Counter, "", "Predictions made again after a restart that the stream holds already: equal, not to be compared, or different.")
        .by("outcome", &["proven", "unknown", "mismatch"]);
    REPLAY_MISMATCHES = Metric::new("undrift_replay_mismatches_total", Counter, "", "Predictions made again after a restart that are not the stored ones: 0 while a restart changes no bit.");
    PUBLISH_RETRIES = Metric::new("undrift_publish_retries_total", Counter, "", "Predictions published again because no acknowledgement came.");
    // Adaptation
    ADAPT_ENABLED = Metric::new("undrift_adapt_enabled", Gauge, "", "1 while adaptation is switched on.");
    ADAPT_STEPS = Metric::new("undrift_adapt_steps_total", Counter, "", "Windows by what came of them: applied, or the reason why not.")
        .by("outcome", &["applied"]);
    FRAMES_WITHHELD = Metric::new("undrift_frames_withheld_total", Counter, "", "Frames that were answered and not learned from: their like was often enough, or their camera has taught more than its share.")
        .by("reason", &["repeated", "over_share"]);
    FROZEN = Metric::new("undrift_frozen", Gauge, "", "1 from when what was learned turned out to do harm until an operator switches adaptation on.");
    CANARY_HARM = Metric::new("undrift_canary_harm_ratio", Gauge, "ratio", "Share of the canary's images that the source gets right and the weights do not, less the reverse; below 0 is a gain.");
    CANARY_EVIDENCE = Metric::new("undrift_canary_evidence", Gauge, "", "Evidence that the weights do harm: about 1 without, canary_evidence_max when they are taken back.");
    ADAPT_LOSS = Metric::new("undrift_adapt_loss", Gauge, "", "Objective on the last window, before the adaptation step.").unknown_at_first();
    DENOISING_LOSS = Metric::new("undrift_denoising_loss", Gauge, "", "Denoising loss of the diffusion model on the last window, under the best class.").unknown_at_first();
    GRADIENT_NORM = Metric::new("undrift_gradient_norm", Gauge, "", "Euclidean norm of the last gradient, before clipping.").unknown_at_first();
    DRAW_DISAGREEMENT = Metric::new("undrift_draw_disagreement_ratio", Gauge, "ratio", "Share of the last window's frames whose draws name different classes.").unknown_at_first();
    RELIABILITY = Metric::new("undrift_reliability_ratio", Gauge, "ratio", "How far the diffusion model is believed.").unknown_at_first();
    WEIGHTS_DISTANCE = Metric::new("undrift_weights_distance_ratio", Gauge, "ratio", "Distance of the weights from the source weights, over the norm of the source weights.").unknown_at_first();
    WEIGHTS_VERSION = Metric::new("undrift_weights_version", Gauge, "", "Version of the weights that answer.");
    CONTROL_MESSAGES = Metric::new("undrift_control_messages_total", Counter, "", "Messages on the control subjects by what came of them: done, or why not.")
        .by("outcome", &["done", "failed", "flood", "verb", "size", "payload", "header", "stale", "expired"]);
    RESETS = Metric::new("undrift_resets_total", Counter, "", "Times that weights were taken back: by an operator, or by the guard.").by("reason", &["reset", "rollback", "freeze"]);
    // Accuracy and drift
    ACCURACY = Metric::new("undrift_accuracy_ratio", Gauge, "ratio", "Prequential accuracy over the last labelled frames.").by("model", &["adapted", "source"]).unknown_at_first();
    ESTIMATED_ACCURACY = Metric::new("undrift_estimated_accuracy_ratio", Gauge, "ratio", "Accuracy of the answers as estimated without labels.").unknown_at_first();
    LABELS_RECEIVED = Metric::new("undrift_labels_received_total", Counter, "", "Labels that came after their frames by what came of them: matched, unmatched, or why not.")
        .by("outcome", &["matched", "unmatched", "shed", "size", "format", "frame_id", "label"]);
    DRIFT_SCORE = Metric::new("undrift_drift_score", Gauge, "", "Standard deviations between the recent frames and the reference statistics.");
    DRIFT_STATE = Metric::new("undrift_drift_state", Gauge, "", "0 no drift, 1 warning, 2 drift.");
    COLLAPSE = Metric::new("undrift_collapse", Gauge, "", "1 while predictions are concentrated on few classes.");
    PREDICTION_DIVERSITY = Metric::new("undrift_prediction_diversity_ratio", Gauge, "ratio", "Entropy of the mean prediction over its maximum.");
    // Checkpoints
    CHECKPOINT_WRITES = Metric::new("undrift_checkpoint_writes_total", Counter, "", "Checkpoints by outcome; superseded ones were overtaken before they were written.")
        .by("outcome", &["written", "failed", "superseded"]);
    CHECKPOINT_BYTES = Metric::new("undrift_checkpoint_bytes", Gauge, "bytes", "Size of the last checkpoint.");
    CHECKPOINT_TIMESTAMP = Metric::new("undrift_checkpoint_last_success_timestamp_seconds", Gauge, "seconds", "When the last checkpoint was written, seconds since 1970.");
    CHECKPOINT_DURATION = Metric::new("undrift_checkpoint_duration_seconds", Histogram(LATENCY_SECONDS), "seconds", "Time that writing a checkpoint took.");
    // NATS
    NATS_CONNECTED = Metric::new("undrift_nats_connected", Gauge, "", "1 while connected to NATS.");
    NATS_EVENTS = Metric::new("undrift_nats_events_total", Counter, "", "Events of the NATS connection.")
        .by("event", &["connected", "disconnected", "lame_duck", "draining", "closed", "server_error", "client_error"]);
    SLOW_CONSUMER_EVENTS = Metric::new("undrift_slow_consumer_events_total", Counter, "", "Times that the NATS client dropped messages because a subscription's buffer was full.");
    NATS_CONSUMER_PENDING = Metric::new("undrift_nats_consumer_pending", Gauge, "", "Frames that the stream holds and has not delivered.");
    NATS_CONSUMER_RESTARTS = Metric::new("undrift_nats_consumer_restarts_total", Counter, "", "Times that the consumer was made again after an error.");
    // Process
    STALLS = Metric::new("undrift_stalls_total", Counter, "", "Times that frames waited in a lane and none was finished for limits.stall_patience_ms.")
        .by("lane", &["stream", "device", "adapter", "publisher"]);
    READY = Metric::new("undrift_ready", Gauge, "", "1 while frames can be answered.");
    BUILD_INFO = Metric::new("undrift_build_info", Gauge, "", "1; the version is in the label.").by("version", &[env!("CARGO_PKG_VERSION")]);
    PROCESS_MEMORY = Metric::new("process_resident_memory_bytes", Gauge, "bytes", "Resident memory.");
    PROCESS_CPU = Metric::new("process_cpu_seconds_total", Counter, "seconds", "User and system time.");
    PROCESS_THREADS = Metric::new("process_threads", Gauge, "", "Threads.");
    PROCESS_OPEN_FDS = Metric::new("process_open_fds", Gauge, "", "Open file descriptors.");
    PROCESS_START = Metric::new("process_start_time_seconds", Gauge, "seconds", "When the process started, seconds since 1970.");
}

/// The table: name, kind, unit and help of every metric.
pub fn names() -> Vec<(&'static str, &'static str, &'static str, &'static str)> {
    let kind = |kind| match kind {
        Counter => "counter",
        Gauge => "gauge",
        Histogram(_) => "histogram",
    };
    METRICS.iter().map(|metric| (metric.name, kind(metric.kind), metric.unit, metric.help)).collect()
}

/// Metrics that cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    #[error("buckets of a histogram: {0}")]
    Buckets(#[from] metrics_exporter_prometheus::BuildError),
    #[error("metrics were set up before in this process")]
    Twice,
}

/// Installs the recorder of this process and starts every series.
///
/// # Errors
/// `Twice` where the process has a recorder already.
pub fn install() -> Result<PrometheusHandle, TelemetryError> {
    let mut builder = PrometheusBuilder::new();
    for metric in METRICS {
        if let Histogram(buckets) = metric.kind {
            builder = builder.set_buckets_for_metric(Matcher::Full(metric.name.to_owned()), buckets)?;
        }
    }
    let recorder = builder.build_recorder();
    let handle = recorder.handle();
    metrics::set_global_recorder(recorder).map_err(|_| TelemetryError::Twice)?;
    for metric in METRICS {
        metric.describe();
        metric.start();
    }
    BUILD_INFO.set_by(env!("CARGO_PKG_VERSION"), 1.0);
    PROCESS_START.set(seconds_since_1970());
    Ok(handle)
}

/// Keeps histograms from growing: the exporter collects their values only when asked.
pub async fn upkeep(handle: PrometheusHandle) {
    let mut ticks = tokio::time::interval(UPKEEP_INTERVAL);
    loop {
        ticks.tick().await;
        handle.run_upkeep();
    }
}

/// The text of `/metrics`.
pub fn render(handle: &PrometheusHandle) -> String {
    read_process();
    handle.render()
}

pub fn seconds_since_1970() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

/// Process metrics from `/proc`; where there is none they stay at zero.
fn read_process() {
    let Ok(status) = std::fs::read_to_string("/proc/self/status") else { return };
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_whitespace().next()?.parse::<f64>().ok()
    };
    PROCESS_MEMORY.set(field("VmRSS:").unwrap_or_default() * 1024.0);
    PROCESS_THREADS.set(field("Threads:").unwrap_or_default());
    PROCESS_OPEN_FDS.set(std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count) as f64);
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The second field is the command in brackets, and may hold spaces; utime and stime are fields 14 and 15.
    let ticks = stat.rsplit(')').next().into_iter().flat_map(str::split_whitespace).skip(11).take(2);
    let ticks: f64 = ticks.filter_map(|field| field.parse::<f64>().ok()).sum();
    metrics::counter!(PROCESS_CPU.name).absolute((ticks / CLOCK_TICKS_PER_SECOND) as u64);
}

/// Turns observations into metrics; owned by the engine.
pub struct Telemetry {
    class_names: Vec<String>,
    cameras: BTreeSet<String>,
    cameras_max: usize,
}

impl Telemetry {
    /// Starts the series of the bundle's classes and of the skip reasons.
    pub fn new(class_names: &[String], cameras_max: usize) -> Self {
        let class_names = if class_names.len() <= CLASSES_COUNTED_MAX { class_names.to_vec() } else { Vec::new() };
        for name in &class_names {
            metrics::counter!(PREDICTIONS.name, "class" => name.clone()).increment(0);
        }
        for reason in SkipReason::ALL {
            metrics::counter!(ADAPT_STEPS.name, "outcome" => reason.name()).increment(0);
        }
        Self { class_names, cameras: BTreeSet::new(), cameras_max }
    }

    pub fn received(&mut self, camera: &str) {
        FRAMES_RECEIVED.count_by(self.camera(camera));
    }

    pub fn observe(&mut self, observation: &Observation) {
        match observation {
            Observation::Answered { camera, label, confidence, entropy } => {
                FRAMES_ANSWERED.count_by(self.camera(camera));
                PREDICTION_CONFIDENCE.record(f64::from(*confidence));
                PREDICTION_ENTROPY.record(f64::from(*entropy));
                PREDICTIONS.count_by(self.class(*label));
            }
            Observation::Labelled => LABELS_RECEIVED.count_by("matched"),
            Observation::LabelUnmatched => LABELS_RECEIVED.count_by("unmatched"),
            Observation::WindowAdapted { report, .. } => {
                ADAPT_STEPS.count_by("applied");
                show(report);
            }
            Observation::WindowSkipped { reason, report } => {
                ADAPT_STEPS.count_by(reason.name());
                report.iter().for_each(show);
            }
            Observation::Withheld(withheld) => {
                FRAMES_WITHHELD.add_by("repeated", withheld.repeated);
                FRAMES_WITHHELD.add_by("over_share", withheld.over_share);
            }
            Observation::Frozen { .. } => RESETS.count_by("freeze"),
            Observation::WeightsReset => RESETS.count_by("reset"),
            Observation::RolledBack { .. } => RESETS.count_by("rollback"),
            Observation::Drift { .. } | Observation::Collapse { .. } => {}
            Observation::AdaptationSwitched { .. } => {}
        }
    }

    /// The camera's name, or "other" beyond the limit: names come from outside.
    fn camera(&mut self, name: &str) -> String {
        if !self.cameras.contains(name) {
            if self.cameras.len() >= self.cameras_max {
                return "other".to_owned();
            }
            self.cameras.insert(name.to_owned());
        }
        name.to_owned()
    }

    fn class(&self, label: ClassIndex) -> String {
        self.class_names.get(label.index()).cloned().unwrap_or_else(|| "other".to_owned())
    }
}

/// Sets the gauges of what a checkpoint keeps.
pub fn show_status(status: &Status) {
    let flag = |is_so: bool| f64::from(u8::from(is_so));
    ADAPT_ENABLED.set(flag(status.adapt == "on"));
    FROZEN.set(flag(status.frozen));
    CANARY_HARM.set(status.canary_harm);
    CANARY_EVIDENCE.set(status.canary_evidence);
    WEIGHTS_VERSION.set(status.weights_version as f64);
    ACCURACY.set_by("adapted", status.adapted_accuracy.unwrap_or(f64::NAN));
    ACCURACY.set_by("source", status.source_accuracy.unwrap_or(f64::NAN));
    DRIFT_SCORE.set(status.drift_score);
    DRIFT_STATE.set(match status.drift {
        DriftState::None => 0.0,
        DriftState::Warning => 1.0,
        DriftState::Drift => 2.0,
    });
    COLLAPSE.set(flag(status.collapsed));
    PREDICTION_DIVERSITY.set(status.diversity);
}

fn show(report: &WindowReport) {
    ADAPT_LOSS.set(report.loss);
    DENOISING_LOSS.set(report.denoising_loss);
    GRADIENT_NORM.set(report.gradient_norm);
    DRAW_DISAGREEMENT.set(report.draw_disagreement);
    RELIABILITY.set(report.reliability);
    WEIGHTS_DISTANCE.set(report.weights_distance);
    ESTIMATED_ACCURACY.set(report.estimated_accuracy);
}
