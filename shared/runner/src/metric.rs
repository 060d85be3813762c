//! The runner's metrics.

use weir_contracts::{MetricDef, MetricKind};

macro_rules! metrics {
    ($($(#[$doc:meta])* $name:ident = $kind:ident $text:literal [$($label:literal),*] $help:literal;)*) => {
        $(#[doc = $help] pub const $name: &str = $text;)*

        /// Every metric of this crate.
        pub const METRICS: &[MetricDef] = &[
            $(MetricDef { name: $text, kind: MetricKind::$kind, labels: &[$($label),*], help: $help },)*
        ];
    };
}

metrics! {
    RECORDS = Counter "weir_records_total" ["stage", "outcome"] "Records whose outcome was committed: emitted, skipped, rejected or retried.";
    RETRIES = Counter "weir_retried_records_total" ["stage", "class"] "Records that wait in a delay tier to be tried again, by class of failure.";
    RETURNED = Counter "weir_returned_records_total" ["stage"] "Records processed that came back from retry or replay; against weir_records_total, their share of the work.";
    SKIPPED = Counter "weir_skipped_records_total" ["stage", "reason"] "Records that needed no work, by reason.";
    REJECTED = Counter "weir_rejected_records_total" ["stage", "class"] "Records that became dead letters, by class of failure.";
    OUTPUTS = Counter "weir_output_records_total" ["stage"] "Records written, dead letters included.";
    BATCH_RECORDS = Histogram "weir_batch_records" ["stage"] "Records processed together.";
    PROCESS_SECONDS = Histogram "weir_process_seconds" ["stage"] "Seconds a stage took for a batch.";
    COMMIT_SECONDS = Histogram "weir_commit_seconds" ["stage"] "Seconds from the beginning of a transaction to its commit.";
    TRANSACTIONS = Counter "weir_transactions_total" ["stage", "result"] "Transactions by result: committed, aborted, ambiguous-applied or ambiguous-not-applied.";
    IN_FLIGHT = Gauge "weir_in_flight_records" ["stage"] "Records delivered and not committed yet, those waiting in memory included.";
    LATENCY_SECONDS = Histogram "weir_latency_seconds" ["stage", "tenant"] "Seconds from the writing of a record to the commit of its outcome; tenants beyond the first 50 count as other.";
    LAG_RECORDS = Gauge "weir_lag_records" ["stage", "lane"] "High watermark minus committed position.";
    OLDEST_UNREAD_SECONDS = Gauge "weir_oldest_unread_seconds" ["stage", "lane"] "Age in seconds of the oldest record delivered and not committed; compare with the topic's retention.";
    UNSTABLE_RECORDS = Gauge "weir_unstable_records" ["stage", "lane"] "High watermark minus last stable offset; stays above zero when a transaction hangs.";
    LANES = Gauge "weir_lanes" ["stage"] "Lanes this instance owns.";
    PAUSED_LANES = Gauge "weir_paused_lanes" ["stage", "reason"] "Lanes that do not flow: unavailable (heals by itself), gap or flood (a person must look).";
    REBALANCES = Counter "weir_rebalances_total" ["stage", "kind"] "Changes of the lanes this instance owns: assigned, revoked or lost.";
    STATE_WRITES = Counter "weir_state_writes_total" ["stage"] "Keys set or removed in the state of lanes, committed.";
    STATE_WAITING = Gauge "weir_state_waiting_writes" ["stage"] "Writes to the state of lanes that wait for their transaction, in memory.";
    STATE_DISK_BYTES = Gauge "weir_state_disk_bytes" ["stage"] "Bytes the state of lanes takes on this disk.";
    STATE_RESTORED = Counter "weir_state_restored_records_total" ["stage"] "Changelog records read to bring the state of lanes up to date.";
    STATE_RESTORE_SECONDS = Histogram "weir_state_restore_seconds" ["stage"] "Seconds to bring the state of newly assigned lanes up to date.";
    UNAVAILABLE = Counter "weir_unavailable_total" ["stage", "dependency"] "Times a batch had to wait for a dependency.";
}
