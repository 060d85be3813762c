//! Watches what tenants spend and what prompts send, and raises an alarm when it jumps.

use std::sync::{Mutex, PoisonError};

use metrics::{counter, histogram};
use weir_contracts::TenantId;
use weir_llm::{Call, NanoUsd, PromptWatch, SpendWatch, Verdict};
use weir_stage::{Change, StageError};

use crate::journal::{Spent, load, stored};
use crate::metric;

/// Takes these calls of a tenant into its baseline, which is kept in the state of its home lane.
///
/// # Errors
/// When the state can't be read.
pub(crate) fn spend(change: &mut Change<'_>, tenant: &TenantId, calls: &[Spent], now: i64) -> Result<(), StageError> {
    let costs: Vec<NanoUsd> =
        calls.iter().map(|call| NanoUsd::from(call.cost())).filter(|cost| *cost > NanoUsd::ZERO).collect();
    if costs.is_empty() {
        return Ok(());
    }
    let key = format!("spend/{tenant}");
    let mut watch: SpendWatch = load(change, &key)?.unwrap_or_default();
    for cost in costs {
        if let Verdict::Raised(alarm) = watch.observe(now, cost) {
            tracing::warn!(%tenant, spent = %alarm.spent, expected = %alarm.expected, "spend far above its baseline");
            counter!(metric::SPEND_ANOMALIES, "tenant" => tenant.to_string()).increment(1);
        }
    }
    change.put(&key, stored(&watch)?);
    Ok(())
}

/// Baselines of prompt versions, relearned within some dozens of calls after a start.
#[derive(Debug, Default)]
pub(crate) struct PromptBaselines(Mutex<PromptWatch>);

impl PromptBaselines {
    /// Takes a call of a prompt version into its baseline.
    pub(crate) fn observe(&self, version: &str, input_tokens: u64) {
        let verdict = self.0.lock().unwrap_or_else(PoisonError::into_inner).observe(version, input_tokens);
        if let Verdict::Raised(alarm) = verdict {
            let (template, short) = crate::prompt::parts(version);
            tracing::warn!(
                prompt_template = template,
                prompt_version = short,
                tokens = alarm.tokens,
                usual = alarm.usual,
                "prompts became longer at a jump"
            );
            counter!(metric::PROMPT_ANOMALIES, "version" => version.to_owned()).increment(1);
        }
    }
}

/// Notes how far the bound of a call was from what the provider counted.
#[allow(clippy::cast_precision_loss)]
pub(crate) fn estimate(call: &Call, reserved: u64) {
    if !call.usage.estimated && call.usage.input > 0 && reserved > 0 {
        let provider = call.provider.clone();
        histogram!(metric::ESTIMATE_RATIO, "provider" => provider).record(call.usage.input as f64 / reserved as f64);
    }
}
