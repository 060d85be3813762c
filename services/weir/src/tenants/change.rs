//! `weir tenants set`: what an operator asks for, and the record it makes.

use std::collections::BTreeMap;

use clap::{ArgAction, ValueEnum};
use color_eyre::eyre::bail;
use weir_contracts::{Limits, OverLimit, Tenant, TenantId, Tier};

use super::value::{ModelPrice, Setting, amount, cosine, count, price};

/// Arguments of `weir tenants set`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  weir tenants set acme --requests-per-minute 600 --tokens-per-minute 200000 --concurrency 32
  weir tenants set acme --usd-per-hour none                    takes that limit away, leaves the others
  weir tenants set acme --feature chat --usd-per-hour 1.5      of questions whose feature is chat, beside the tenant's
  weir tenants set acme --remove-feature chat
  weir tenants set acme --over-limit queue --weight 2
  weir tenants set acme --price gpt-4o-mini=0.15/0.60/0.075 --price gpt-4o=none
  weir tenants set acme --semantic-cache 0.95                  an equivalent question gets the same answer again")]
pub struct Set {
    /// Name of the tenant.
    pub name: TenantId,
    #[command(flatten)]
    limits: LimitArgs,
    /// The limits named are those of questions of this feature, beside the limits of the tenant.
    #[arg(long, value_name = "FEATURE")]
    feature: Option<String>,
    /// Take away all limits of a feature; may be repeated.
    #[arg(long, value_name = "FEATURE", action = ArgAction::Append)]
    remove_feature: Vec<String>,
    /// What becomes of a question over a limit.
    #[arg(long, value_name = "POLICY")]
    over_limit: Option<Policy>,
    /// Price of a model in US dollars a million tokens, INPUT/OUTPUT[/CACHED], or `none` for the configured one; may be
    /// repeated.
    #[arg(long = "price", value_name = "MODEL=PRICE", value_parser = price, action = ArgAction::Append)]
    prices: Vec<ModelPrice>,
    /// Give an equivalent question the same answer again, from this cosine on, 0 to 1 (0.95 is a good start).
    #[arg(long, value_name = "COSINE|none", value_parser = cosine, allow_negative_numbers = true)]
    semantic_cache: Option<Setting<f64>>,
    /// Answer its questions again.
    #[arg(long)]
    enable: bool,
    /// Turn its questions away.
    #[arg(long, conflicts_with = "enable")]
    disable: bool,
    /// Share of batched work relative to other tenants, at least 1.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i32).range(1..), allow_negative_numbers = true)]
    weight: Option<i32>,
}

/// Limits as flags; what is not named stays as it is.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "Limits")]
struct LimitArgs {
    /// Questions in any 60 seconds.
    #[arg(long, value_name = "N|none", value_parser = count, allow_negative_numbers = true)]
    requests_per_minute: Option<Setting<i64>>,
    /// Tokens sent to and received from models in any 60 seconds.
    #[arg(long, value_name = "N|none", value_parser = count, allow_negative_numbers = true)]
    tokens_per_minute: Option<Setting<i64>>,
    /// Questions that are worked on at once.
    #[arg(long, value_name = "N|none", value_parser = count, allow_negative_numbers = true)]
    concurrency: Option<Setting<i64>>,
    /// US dollars that calls of models cost in any 60 minutes.
    #[arg(long, value_name = "X|none", value_parser = amount, allow_negative_numbers = true)]
    usd_per_hour: Option<Setting<f64>>,
}

/// What becomes of a question over a limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Policy {
    /// It is answered at once, as rejected, with the time to come again.
    Reject,
    /// It waits, until its deadline at most.
    Queue,
}

impl LimitArgs {
    fn is_empty(&self) -> bool {
        self.requests_per_minute.is_none()
            && self.tokens_per_minute.is_none()
            && self.concurrency.is_none()
            && self.usd_per_hour.is_none()
    }

    fn apply(&self, to: &mut Limits) {
        let Self { requests_per_minute, tokens_per_minute, concurrency, usd_per_hour } = self;
        change(&mut to.requests_per_minute, *requests_per_minute);
        change(&mut to.tokens_per_minute, *tokens_per_minute);
        change(&mut to.concurrency, *concurrency);
        change(&mut to.usd_per_hour, *usd_per_hour);
    }
}

fn change<T: Copy>(limit: &mut Option<T>, setting: Option<Setting<T>>) {
    if let Some(setting) = setting {
        *limit = setting.value();
    }
}

impl Set {
    /// The record that there is to be, made of the one there is.
    ///
    /// # Errors
    /// When nothing is asked for, it contradicts itself, or what is to be removed is not there.
    pub fn apply(&self, known: Option<&Tenant>) -> color_eyre::Result<Tenant> {
        if self.is_empty() {
            bail!("nothing to set was named; see weir tenants set --help");
        }
        let mut tenant = known.cloned().unwrap_or_else(|| without_limits(&self.name));
        self.change_limits(&mut tenant)?;
        self.change_prices(&mut tenant)?;
        match self.over_limit {
            Some(Policy::Reject) => tenant.over_limit = OverLimit::Reject,
            Some(Policy::Queue) => tenant.over_limit = OverLimit::Queue,
            None => {}
        }
        change(&mut tenant.semantic_cache, self.semantic_cache);
        tenant.enabled = (tenant.enabled || self.enable) && !self.disable;
        tenant.weight = self.weight.unwrap_or(tenant.weight);
        Ok(tenant)
    }

    fn is_empty(&self) -> bool {
        self.limits.is_empty()
            && self.feature.is_none()
            && self.remove_feature.is_empty()
            && self.over_limit.is_none()
            && self.prices.is_empty()
            && self.semantic_cache.is_none()
            && !self.enable
            && !self.disable
            && self.weight.is_none()
    }

    fn change_limits(&self, tenant: &mut Tenant) -> color_eyre::Result<()> {
        for feature in &self.remove_feature {
            if self.feature.as_ref() == Some(feature) {
                bail!("--feature and --remove-feature both name {feature:?}");
            }
            if tenant.features.remove(feature).is_none() {
                bail!("{} has no limits of a feature {feature:?} ({})", self.name, named(tenant.features.keys()));
            }
        }
        let Some(feature) = &self.feature else {
            self.limits.apply(&mut tenant.limits);
            return Ok(());
        };
        if feature.trim().is_empty() {
            bail!("--feature needs the name of a feature");
        }
        if self.limits.is_empty() {
            bail!("--feature {feature} says whose limits are set, but none is named, for example --concurrency 8");
        }
        let limits = tenant.features.entry(feature.clone()).or_default();
        self.limits.apply(limits);
        if *limits == Limits::default() {
            tenant.features.remove(feature);
        }
        Ok(())
    }

    fn change_prices(&self, tenant: &mut Tenant) -> color_eyre::Result<()> {
        for ModelPrice { model, price } in &self.prices {
            match price {
                Some(price) => _ = tenant.prices.insert(model.clone(), price.clone()),
                None if tenant.prices.remove(model).is_some() => {}
                None => bail!("{} has no price of its own for {model:?} ({})", self.name, named(tenant.prices.keys())),
            }
        }
        Ok(())
    }
}

/// What there is instead of what was named.
fn named<'a>(names: impl Iterator<Item = &'a String>) -> String {
    let names: Vec<&str> = names.map(String::as_str).collect();
    if names.is_empty() { "it has none at all".into() } else { format!("it has: {}", names.join(", ")) }
}

/// A tenant as one without a record is treated.
fn without_limits(name: &TenantId) -> Tenant {
    Tenant {
        name: name.to_string(),
        tier: Tier::Standard,
        weight: 1,
        lanes: Vec::new(),
        enabled: true,
        limits: Limits::default(),
        features: BTreeMap::new(),
        over_limit: OverLimit::Reject,
        prices: BTreeMap::new(),
        semantic_cache: None,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Program {
        #[command(flatten)]
        set: Set,
    }

    fn parsed(options: &[&str]) -> Result<Set, String> {
        let all = ["set"].iter().chain(options);
        Program::try_parse_from(all).map(|program| program.set).map_err(|error| error.to_string())
    }

    fn set(known: Option<&Tenant>, options: &[&str]) -> color_eyre::Result<Tenant> {
        parsed(&[&["acme"], options].concat()).unwrap().apply(known)
    }

    #[test]
    fn what_is_not_named_stays() {
        let first =
            set(None, &["--requests-per-minute", "600", "--usd-per-hour", "5", "--over-limit", "queue"]).unwrap();
        assert_eq!((first.name.as_str(), first.enabled, first.weight), ("acme", true, 1));
        assert_eq!((first.limits.requests_per_minute, first.limits.usd_per_hour), (Some(600), Some(5.0)));
        let then = set(Some(&first), &["--usd-per-hour", "none", "--disable", "--weight", "3"]).unwrap();
        assert_eq!((then.limits.requests_per_minute, then.limits.usd_per_hour), (Some(600), None));
        assert_eq!((then.over_limit, then.enabled, then.weight), (OverLimit::Queue, false, 3));
        assert!(!set(Some(&then), &["--weight", "1"]).unwrap().enabled);
        assert!(set(Some(&then), &["--enable"]).unwrap().enabled);
        let cached = set(Some(&then), &["--semantic-cache", "0.95"]).unwrap();
        assert_eq!(cached.semantic_cache, Some(0.95));
        assert_eq!(set(Some(&cached), &["--enable"]).unwrap().semantic_cache, Some(0.95));
        assert_eq!(set(Some(&cached), &["--semantic-cache", "none"]).unwrap().semantic_cache, None);
        assert!(parsed(&["acme", "--semantic-cache", "1.5"]).is_err());
        let placed = Tenant { tier: Tier::Dedicated, lanes: vec![3], ..then };
        let again = set(Some(&placed), &["--over-limit", "reject"]).unwrap();
        assert_eq!((again.tier, again.lanes, again.over_limit), (Tier::Dedicated, vec![3], OverLimit::Reject));
    }

    #[test]
    fn limits_of_a_feature_are_beside_those_of_the_tenant() {
        let tenant = set(None, &["--concurrency", "32"]).unwrap();
        let tenant = set(Some(&tenant), &["--feature", "chat", "--concurrency", "8"]).unwrap();
        assert_eq!(tenant.limits.concurrency, Some(32));
        assert_eq!(tenant.features.get("chat").unwrap().concurrency, Some(8));
        let error = set(Some(&tenant), &["--remove-feature", "search"]).unwrap_err().to_string();
        assert!(error.contains("it has: chat"), "{error}");
        assert!(set(Some(&tenant), &["--remove-feature", "chat"]).unwrap().features.is_empty());
        let unlimited = set(Some(&tenant), &["--feature", "chat", "--concurrency", "none"]).unwrap();
        assert!(unlimited.features.is_empty(), "a feature without limits needs no entry");
    }

    #[test]
    fn prices_are_set_and_removed_by_model() {
        let tenant = set(None, &["--price", "a/b=1/2", "--price", "c=3/4/1"]).unwrap();
        assert_eq!(tenant.prices.keys().collect::<Vec<_>>(), ["a/b", "c"]);
        let tenant = set(Some(&tenant), &["--price", "a/b=none"]).unwrap();
        assert_eq!(tenant.prices.keys().collect::<Vec<_>>(), ["c"]);
        let error = set(Some(&tenant), &["--price", "a/b=none"]).unwrap_err().to_string();
        assert!(error.contains("it has: c"), "{error}");
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_the_reason() {
        for (options, why) in [
            (&["Acme", "--enable"][..], "a-z, 0-9 and -"),
            (&["acme", "--requests-per-minute", "-1"], "can't be negative"),
            (&["acme", "--usd-per-hour", "-0.5"], "is negative"),
            (&["acme", "--usd-per-hour", "NaN"], "not finite"),
            (&["acme", "--weight", "0"], "0 is not in"),
            (&["acme", "--over-limit", "drop"], "reject, queue"),
            (&["acme", "--price", "m=1"], "MODEL=INPUT/OUTPUT"),
            (&["acme", "--enable", "--disable"], "cannot be used with"),
        ] {
            let error = parsed(options).unwrap_err();
            assert!(error.contains(why), "{options:?}: {error}");
        }
        for (options, why) in [
            (&[][..], "nothing to set"),
            (&["--feature", "chat"], "none is named"),
            (&["--feature", " ", "--concurrency", "1"], "name of a feature"),
            (&["--feature", "chat", "--concurrency", "1", "--remove-feature", "chat"], "both name"),
            (&["--remove-feature", "chat"], "none at all"),
        ] {
            let error = set(None, options).unwrap_err().to_string();
            assert!(error.contains(why), "{options:?}: {error}");
        }
    }
}
