//! Topics and schemas on a real broker and a real registry.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::collections::BTreeMap;
use std::time::Duration;

use weir_contracts::{SchemaDef, TopicNames};
use weir_stack::schemas::{RegistryAccess, SchemaError, SchemaRegistry, Subject, Verdict, subjects};
use weir_stack::topics::{ApplyError, Change, Shape, apply, declared, diff};
use weir_stack::{Cluster, Stack, StackConfig};

#[tokio::test]
async fn the_cluster_is_made_to_match_and_nothing_that_loses_data_is_done() {
    let data = tempfile::tempdir().unwrap();
    let stack = Stack::start(StackConfig { registry: true, ..StackConfig::for_test(data.path()) }).await.unwrap();
    topics(&stack).await;
    schemas(&stack).await;
    stack.stop().await;
}

async fn topics(stack: &Stack) {
    let cluster = Cluster::connect(&stack.kafka_brokers(), &BTreeMap::new()).unwrap();
    let shape = Shape { names: TopicNames::new("weir."), lanes: 4, replication: None, allow_loss: false };
    let specs = declared().unwrap();
    let steps = apply(&cluster, &specs, &shape).await.unwrap();
    assert!(steps.iter().all(|step| matches!(step.change, Change::Create { .. })), "{steps:?}");
    let state = cluster.state("weir.").await.unwrap();
    assert_eq!(diff(&specs, &shape, &state), [], "what was applied matches");
    assert_eq!(state.topics["weir.documents"].partitions, 4);
    assert_eq!(state.topics["weir.tenants"].partitions, 1);
    assert_eq!(state.topics["weir.documents"].settings["cleanup.policy"].value, "compact");

    // A setting of somebody's own, and one that differs.
    let own = [("retention.ms", "3600000"), ("segment.ms", "7200000")].map(|(k, v)| (k.to_owned(), v.to_owned()));
    cluster.alter("weir.chunks", &state.topics["weir.chunks"], &own.into()).await.unwrap();
    let steps = apply(&cluster, &specs, &shape).await.unwrap();
    assert!(matches!(&steps.first().unwrap().change, Change::Set { key, .. } if key == "retention.ms"), "{steps:?}");
    let state = cluster.state("weir.").await.unwrap();
    assert_eq!(diff(&specs, &shape, &state), []);
    let settings = &state.topics["weir.chunks"].settings;
    assert_eq!(settings["segment.ms"].value, "7200000", "what is not declared stays");
    assert_eq!(settings["cleanup.policy"].value, "delete");

    // Fewer lanes, and a longer retention that would have been harmless: neither happens.
    let fewer = Shape { lanes: 2, ..shape.clone() };
    let mut longer = specs.clone();
    longer.iter_mut().find(|spec| spec.name == "chunks").unwrap().retention_days = Some(30);
    let refused = apply(&cluster, &longer, &fewer).await.unwrap_err();
    assert!(matches!(refused, ApplyError::Refused(_)), "{refused}");
    assert_eq!(diff(&specs, &shape, &cluster.state("weir.").await.unwrap()), [], "all or nothing");

    let mut shorter = specs.clone();
    shorter.iter_mut().find(|spec| spec.name == "chunks").unwrap().retention_days = Some(1);
    assert!(apply(&cluster, &shorter, &shape).await.is_err());
    apply(&cluster, &shorter, &Shape { allow_loss: true, ..shape }).await.unwrap();
    assert_eq!(cluster.state("weir.").await.unwrap().topics["weir.chunks"].settings["retention.ms"].value, "86400000");
}

static OTHER: SchemaDef = SchemaDef::new(
    "tenant",
    r#"{"type":"record","name":"Tenant","namespace":"io.weir","fields":[{"name":"region","type":"string"}]}"#,
);

const TENANT: &str =
    r#"{"type":"record","name":"Tenant","namespace":"io.weir","fields":[{"name":"name","type":"string"}]}"#;

async fn schemas(stack: &Stack) {
    let access = RegistryAccess { url: stack.registry_url(), ..RegistryAccess::default() };
    let registry = SchemaRegistry::new(access).unwrap();
    let wanted = subjects(&declared().unwrap(), &TopicNames::new("weir.")).unwrap();
    let all = |checked: &[weir_stack::schemas::Checked], expected: fn(&Verdict) -> bool| {
        assert!(checked.iter().all(|one| expected(&one.verdict)), "{checked:?}");
    };
    all(&registry.check(&wanted).await.unwrap(), |verdict| *verdict == Verdict::New);
    all(&registry.push(&wanted).await.unwrap(), |verdict| *verdict == Verdict::New);
    all(&registry.push(&wanted).await.unwrap(), |verdict| matches!(verdict, Verdict::Registered { .. }));
    assert_eq!(registry.list().await.unwrap().len(), wanted.len());

    let subject = Subject { name: "weir.tenants-value".into(), schema: &OTHER };
    all(&registry.check(std::slice::from_ref(&subject)).await.unwrap(), |verdict| {
        matches!(verdict, Verdict::Incompatible { .. })
    });
    let refused = registry.push(&[subject]).await.unwrap_err();
    assert!(matches!(refused, SchemaError::Incompatible { .. }), "{refused}");

    // Somebody's client registered a schema by itself, and nobody has said by which rule others may follow it.
    let subject = Subject { name: "weir.unruled-value".into(), schema: &OTHER };
    let client = reqwest::Client::builder().timeout(Duration::from_secs(20)).build().unwrap();
    let body = serde_json::json!({ "schema": TENANT, "schemaType": "AVRO" });
    let url = format!("{}/subjects/{}/versions", stack.registry_url(), subject.name);
    assert!(client.post(url).json(&body).send().await.unwrap().status().is_success());
    all(&registry.check(&[subject]).await.unwrap(), |verdict| matches!(verdict, Verdict::Incompatible { .. }));
}
