//! The table of tenants: what each may use.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use weir_contracts::{OverLimit, Question, Tenant, TenantId, Topic};
use weir_llm::{Limits, PriceConfig};
use weir_runner::{Entry, KafkaConfig, ReadError, Registry, TopicReader};
use weir_stage::StageError;

const WAIT: Duration = Duration::from_secs(5);
const AGAIN: Duration = Duration::from_secs(1);

/// Tenants by name.
type Table = HashMap<String, Arc<Tenant>>;

/// What tenants may use, as the table says by now. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Tenants(Arc<RwLock<Option<Table>>>);

/// What the questions of a tenant may use.
#[derive(Debug, Clone, Default)]
pub(crate) struct Policy(Option<Arc<Tenant>>);

impl Tenants {
    /// These tenants, for ever.
    #[must_use]
    pub fn fixed(tenants: impl IntoIterator<Item = Tenant>) -> Self {
        let table = tenants.into_iter().map(|tenant| (tenant.name.clone(), Arc::new(tenant))).collect();
        Self(Arc::new(RwLock::new(Some(table))))
    }

    /// Follows the topic `tenants` as long as a clone of this is there.
    #[must_use]
    pub fn follow(kafka: &KafkaConfig, registry: Registry) -> Self {
        let tenants = Self::default();
        let (kafka, weak) = (kafka.clone(), Arc::downgrade(&tenants.0));
        tokio::spawn(async move {
            while let Some(table) = weak.upgrade().map(Self) {
                if let Err(error) = table.read(&kafka, registry.clone()).await {
                    tracing::warn!(%error, "reading the table of tenants: trying again");
                }
                drop(table);
                tokio::time::sleep(AGAIN).await;
            }
        });
        tenants
    }

    async fn read(&self, kafka: &KafkaConfig, registry: Registry) -> Result<(), ReadError> {
        let mut reader: TopicReader<Tenant> = TopicReader::follow(kafka, registry, Topic::TENANTS).await?;
        let table = reader.read_table().await?;
        let table = table.into_values().map(|tenant| (tenant.name.clone(), Arc::new(tenant))).collect();
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Some(table);
        // The last one who holds the table is this task: nobody asks it any more.
        while Arc::strong_count(&self.0) > 1 {
            let Some(Entry { key, record }) = reader.next_entry(WAIT).await? else { continue };
            let mut table = self.0.write().unwrap_or_else(PoisonError::into_inner);
            let table = table.get_or_insert_default();
            match record {
                Some(tenant) => _ = table.insert(tenant.name.clone(), Arc::new(tenant)),
                None => _ = table.remove(&*String::from_utf8_lossy(&key)),
            }
        }
        Ok(())
    }

    /// What a tenant may use; one that is not in the table has no limits.
    ///
    /// # Errors
    /// When the table was not read yet: a limit that is not known must not be broken.
    pub(crate) fn of(&self, tenant: &TenantId) -> Result<Policy, StageError> {
        let table = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let table = table.as_ref().ok_or_else(|| StageError::unavailable("tenants", "the table was not read yet"))?;
        Ok(Policy(table.get(tenant.as_str()).cloned()))
    }
}

impl Policy {
    /// Whether questions of the tenant are answered at all.
    pub(crate) fn is_enabled(&self) -> bool {
        self.0.as_ref().is_none_or(|tenant| tenant.enabled)
    }

    /// Whether a question over a limit waits.
    pub(crate) fn queues(&self) -> bool {
        self.0.as_ref().is_some_and(|tenant| tenant.over_limit == OverLimit::Queue)
    }

    /// How near an equivalent question must be, as cosine, for its answer to be given again; none: no answer is.
    pub(crate) fn semantic_cache(&self) -> Option<f64> {
        self.0.as_ref().and_then(|tenant| tenant.semantic_cache)
    }

    /// The accounts that count a question, where there are limits, and whose they are in words.
    pub(crate) fn accounts(&self, question: &Question) -> Vec<Charged> {
        let Some(tenant) = &self.0 else { return Vec::new() };
        let of_tenant = Charged {
            key: format!("account/{}", question.tenant),
            limits: limits(&tenant.limits),
            whose: "the tenant".into(),
        };
        let of_feature = question.feature.as_ref().and_then(|feature| {
            let limits = limits(tenant.features.get(feature)?);
            let key = format!("account/{}/{feature}", question.tenant);
            Some(Charged { key, limits, whose: format!("the feature {feature:?}") })
        });
        let all = std::iter::once(of_tenant).chain(of_feature);
        all.filter(|account| account.limits != Limits::default()).collect()
    }

    /// What a model costs this tenant.
    pub(crate) fn price(&self, model: &str, configured: PriceConfig) -> PriceConfig {
        let own = self.0.as_ref().and_then(|tenant| tenant.prices.get(model));
        own.map_or(configured, |price| PriceConfig {
            input_per_million: price.input_per_million,
            cached_input_per_million: price.cached_input_per_million,
            output_per_million: price.output_per_million,
        })
    }
}

/// An account with limits.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Charged {
    /// Where it is kept.
    pub(crate) key: String,
    /// What it allows.
    pub(crate) limits: Limits,
    /// Whose it is, in words.
    pub(crate) whose: String,
}

fn limits(limits: &weir_contracts::Limits) -> Limits {
    // Less than nothing is nothing.
    let whole = |limit: Option<i64>| limit.map(|limit| u64::try_from(limit).unwrap_or(0));
    Limits {
        requests_per_minute: whole(limits.requests_per_minute),
        tokens_per_minute: whole(limits.tokens_per_minute),
        concurrency: whole(limits.concurrency),
        usd_per_hour: limits.usd_per_hour,
    }
}
