//! What the loop says of its work.

use metrics::{counter, gauge, histogram};
use rdkafka::consumer::Consumer;
use weir_contracts::{Lane, header};

use super::{Engine, runs};
use crate::clock::{now_millis, seconds_between};
use crate::commit::Positions;
use crate::metric;
use crate::process::{Prepared, Verdict, count};

/// Tenants with a label of their own.
const MAX_TENANT_LABELS: usize = 50;

impl Engine {
    pub(super) fn committed(&mut self, ready: &[Prepared], next: &Positions) {
        for ((topic, lane), position) in next {
            if let Some(intake) = self.lanes.get_mut(lane).and_then(|owned| owned.intake(topic)) {
                intake.committed = position.offset;
                intake.oldest_in_flight = None;
            }
        }
        let now = now_millis();
        let (mut emitted, mut skipped, mut rejected, mut retried, mut outputs) = (0u64, 0u64, 0u64, 0u64, 0u64);
        for run in runs(ready) {
            let Some(at) = run.first().map(|prepared| &prepared.raw.at) else { continue };
            if let Some(intake) = self.lanes.get_mut(&at.lane).and_then(|owned| owned.intake(&at.topic)) {
                intake.in_flight = intake.in_flight.saturating_sub(run.len());
            }
        }
        for prepared in ready {
            outputs += prepared.outputs.len() as u64;
            match &prepared.verdict {
                Verdict::Emitted => emitted += 1,
                Verdict::Skipped(reason) => {
                    skipped += 1;
                    counter!(metric::SKIPPED, "stage" => self.stage, "reason" => *reason).increment(1);
                }
                Verdict::Retried(failure) => {
                    retried += 1;
                    counter!(metric::RETRIES, "stage" => self.stage, "class" => failure.class).increment(1);
                }
                Verdict::Rejected(failure) => {
                    rejected += 1;
                    outputs += 1;
                    counter!(metric::REJECTED, "stage" => self.stage, "class" => failure.class).increment(1);
                }
            }
            if prepared.raw.at.topic != self.input {
                counter!(metric::RETURNED, "stage" => self.stage).increment(1);
            }
            if let Some(tenant) = prepared.raw.headers.text(header::TENANT) {
                let tenant = self.tenant_label(tenant);
                histogram!(metric::LATENCY_SECONDS, "stage" => self.stage, "tenant" => tenant)
                    .record(seconds_between(prepared.raw.timestamp, now));
            }
        }
        for (outcome, n) in [("emitted", emitted), ("skipped", skipped), ("rejected", rejected), ("retried", retried)] {
            if n > 0 {
                counter!(metric::RECORDS, "stage" => self.stage, "outcome" => outcome).increment(n);
            }
        }
        counter!(metric::OUTPUTS, "stage" => self.stage).increment(outputs);
    }

    /// A label for a tenant; a bounded number of them, so that a flood of tenants can't flood the metrics.
    pub(super) fn tenant_label(&mut self, tenant: &str) -> &'static str {
        if let Some(label) = self.tenants.get(tenant) {
            return label;
        }
        if self.tenants.len() >= MAX_TENANT_LABELS {
            return "other";
        }
        // At most MAX_TENANT_LABELS short strings live as long as the process.
        let label: &'static str = Box::leak(tenant.to_owned().into_boxed_str());
        self.tenants.insert(tenant.to_owned(), label);
        label
    }

    pub(super) fn report(&mut self) {
        let Some(statistics) = self.consumer.context().take_statistics() else { return };
        let now = now_millis();
        let partitions = statistics.topics.get(&*self.input).map(|topic| &topic.partitions);
        for (lane, owned) in &self.lanes {
            let label = lane.to_string();
            if let Some(partition) = partitions.and_then(|partitions| partitions.get(&lane.0)) {
                let lag = (partition.hi_offset - owned.fresh.committed).max(0);
                let unstable = (partition.hi_offset - partition.ls_offset).max(0);
                gauge!(metric::LAG_RECORDS, "stage" => self.stage, "lane" => label.clone()).set(signed(lag));
                gauge!(metric::UNSTABLE_RECORDS, "stage" => self.stage, "lane" => label.clone()).set(signed(unstable));
            }
            let age = owned.fresh.oldest_uncommitted().map_or(0.0, |written| seconds_between(written, now));
            gauge!(metric::OLDEST_UNREAD_SECONDS, "stage" => self.stage, "lane" => label).set(age);
        }
        let in_flight = self.lanes.values().map(|lane| lane.in_flight() + lane.waiting()).sum();
        gauge!(metric::IN_FLIGHT, "stage" => self.stage).set(count(in_flight));
        gauge!(metric::LANES, "stage" => self.stage).set(count(self.lanes.len()));
        if let Some((stores, _)) = &self.state {
            gauge!(metric::STATE_WAITING, "stage" => self.stage).set(count(stores.waiting()));
            let bytes = i64::try_from(stores.disk_bytes()).unwrap_or(i64::MAX);
            gauge!(metric::STATE_DISK_BYTES, "stage" => self.stage).set(signed(bytes));
        }
        let reasons = self.status.lanes();
        for label in ["unavailable", "gap", "flood"] {
            let paused = reasons.values().flatten().filter(|reason| reason.label() == label).count();
            gauge!(metric::PAUSED_LANES, "stage" => self.stage, "reason" => label).set(count(paused));
        }
    }

    pub(super) fn clear_gauges(&self, lane: Lane) {
        for name in [metric::LAG_RECORDS, metric::UNSTABLE_RECORDS, metric::OLDEST_UNREAD_SECONDS] {
            gauge!(name, "stage" => self.stage, "lane" => lane.to_string()).set(0.0);
        }
    }
}

fn signed(n: i64) -> f64 {
    u32::try_from(n).map_or(f64::from(u32::MAX), f64::from)
}
