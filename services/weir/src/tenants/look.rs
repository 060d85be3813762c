//! `weir tenants list` and `show`: what there is.

use std::collections::BTreeMap;
use std::process::ExitCode;

use color_eyre::eyre::eyre;
use weir_contracts::{Limits, OverLimit, Price, Tenant, TenantId};

use crate::context::Context;
use crate::progress::{Ink, table};

/// Lists.
///
/// # Errors
/// When it can't be written as JSON.
pub fn list(tenants: &BTreeMap<String, Tenant>, context: &Context) -> color_eyre::Result<ExitCode> {
    if context.json {
        println!("{}", serde_json::to_string_pretty(&tenants.values().collect::<Vec<_>>())?);
        return Ok(ExitCode::SUCCESS);
    }
    if tenants.is_empty() {
        println!("No tenant has a record: none has limits. `weir tenants set NAME` makes one.");
        return Ok(ExitCode::SUCCESS);
    }
    let mut rows = table(&["tenant", "enabled", "limits", "over a limit"]);
    for tenant in tenants.values() {
        rows.add_row([
            tenant.name.clone(),
            if tenant.enabled { "yes" } else { "no" }.to_owned(),
            all_limits(tenant),
            policy(tenant.over_limit).to_owned(),
        ]);
    }
    println!("{rows}");
    Ok(ExitCode::SUCCESS)
}

/// Shows one.
///
/// # Errors
/// When there is none.
pub fn show(name: &TenantId, tenants: &BTreeMap<String, Tenant>, context: &Context) -> color_eyre::Result<ExitCode> {
    let tenant = tenants.get(name.as_str());
    let tenant = tenant.ok_or_else(|| eyre!("tenant {name} has no record, and so no limits; see weir tenants list"))?;
    if context.json {
        println!("{}", serde_json::to_string_pretty(tenant)?);
    } else {
        print(tenant);
    }
    Ok(ExitCode::SUCCESS)
}

/// Prints a record, a line for each thing.
pub fn print(tenant: &Tenant) {
    let ink = Ink::for_stdout();
    println!("{} {}", ink.bold("tenant"), tenant.name);
    for (name, text) in lines(tenant) {
        println!("  {} {text}", ink.dim(format!("{name}:")));
    }
}

fn lines(tenant: &Tenant) -> Vec<(String, String)> {
    let mut lines = vec![
        ("questions".to_owned(), if tenant.enabled { "answered" } else { "turned away (disabled)" }.to_owned()),
        ("limits".to_owned(), limits(&tenant.limits)),
    ];
    let of_features = tenant.features.iter();
    lines.extend(of_features.map(|(feature, of)| (format!("limits of feature {feature}"), limits(of))));
    let over = match tenant.over_limit {
        OverLimit::Reject => "reject: it is answered at once, as rejected, with the time to come again",
        OverLimit::Queue => "queue: it waits, until its deadline at most",
    };
    lines.push(("a question over a limit".to_owned(), over.to_owned()));
    lines.extend(tenant.prices.iter().map(|(model, of)| (format!("price of {model}"), price(of))));
    let semantic =
        tenant.semantic_cache.map(|cosine| format!("answers of equivalent questions, from a cosine of {cosine}"));
    lines.extend(semantic.map(|text| ("semantic cache".to_owned(), text)));
    lines.push(("weight".to_owned(), tenant.weight.to_string()));
    lines
}

/// Those of the tenant and of its features on one line.
fn all_limits(tenant: &Tenant) -> String {
    let own = (tenant.limits != Limits::default() || tenant.features.is_empty()).then(|| limits(&tenant.limits));
    let of_features = tenant.features.iter().map(|(feature, of)| format!("{feature}: {}", limits(of)));
    own.into_iter().chain(of_features).collect::<Vec<_>>().join("; ")
}

/// Limits in short.
fn limits(limits: &Limits) -> String {
    let Limits { requests_per_minute, tokens_per_minute, concurrency, usd_per_hour } = limits;
    let parts: Vec<String> = [
        requests_per_minute.map(|most| format!("{most} requests/min")),
        tokens_per_minute.map(|most| format!("{most} tokens/min")),
        concurrency.map(|most| format!("{most} at once")),
        usd_per_hour.map(|most| format!("${most}/h")),
    ]
    .into_iter()
    .flatten()
    .collect();
    if parts.is_empty() { "none".into() } else { parts.join(", ") }
}

fn price(price: &Price) -> String {
    let Price { input_per_million, cached_input_per_million, output_per_million } = price;
    let cached = cached_input_per_million.map(|cached| format!(", ${cached} cached in")).unwrap_or_default();
    format!("${input_per_million} in, ${output_per_million} out{cached}, a million tokens")
}

fn policy(over: OverLimit) -> &'static str {
    match over {
        OverLimit::Reject => "reject",
        OverLimit::Queue => "queue",
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn acme() -> Tenant {
        serde_json::from_str(include_str!("../../../../schemas/examples/tenant.json")).unwrap()
    }

    #[test]
    fn limits_are_short_in_the_list() {
        let expected = "600 requests/min, 200000 tokens/min, 32 at once, $5/h; chat: 8 at once, $1.5/h";
        assert_eq!(all_limits(&acme()), expected);
        assert_eq!(all_limits(&Tenant { limits: Limits::default(), ..acme() }), "chat: 8 at once, $1.5/h");
        assert_eq!(all_limits(&Tenant { limits: Limits::default(), features: BTreeMap::new(), ..acme() }), "none");
    }

    #[test]
    fn a_record_is_shown_whole() {
        let shown: Vec<String> = lines(&acme()).into_iter().map(|(name, text)| format!("{name}: {text}")).collect();
        let shown = shown.join("\n");
        for part in [
            "questions: answered",
            "limits: 600 requests/min",
            "limits of feature chat: 8 at once, $1.5/h",
            "queue: it waits",
            "price of gpt-4o-mini: $0.15 in, $0.6 out, $0.075 cached in",
            "semantic cache: answers of equivalent questions, from a cosine of 0.95",
            "weight: 1",
        ] {
            assert!(shown.contains(part), "{part}: {shown}");
        }
    }
}
