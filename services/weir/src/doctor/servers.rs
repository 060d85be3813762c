//! Registry, Qdrant and model.

use std::time::Duration;

use qdrant_client::Qdrant;
use secrecy::ExposeSecret;
use weir_models::{Embedder, ModelConfig};
use weir_stack::schemas::Verdict;
use weir_vectors::QdrantConfig;

use super::finding::{Finding, Findings};
use crate::context::Context;
use crate::schemas;

const TIMEOUT: Duration = Duration::from_secs(5);

/// The schema registry: reachable, and has the schemas.
pub async fn registry(context: &Context) -> Vec<Finding> {
    let mut found = Findings::of("registry");
    let verdicts = match schemas::verdicts(context).await {
        Ok(verdicts) => verdicts,
        Err(error) => {
            let fix = "start the local stack (weir stack up), or name a registry with --registry";
            found.fail("reachable", error.to_string(), fix);
            return found.done();
        }
    };
    found.ok("reachable", context.registry.url.clone());
    let count = |wanted: fn(&Verdict) -> bool| verdicts.iter().filter(|one| wanted(&one.verdict)).count();
    let missing = count(|verdict| matches!(verdict, Verdict::New));
    let older = count(|verdict| matches!(verdict, Verdict::Compatible));
    if missing > 0 {
        found.fail("schemas", format!("{missing} of {} are not registered", verdicts.len()), "weir schemas push");
    }
    if older > 0 {
        found.fail("schemas", format!("{older} are registered in an older version"), "weir schemas push");
    }
    for one in &verdicts {
        if let Verdict::Incompatible { reason } = &one.verdict {
            let fix = "the registered version is newer, or from another program: use a matching version of Weir";
            found.fail("schemas", format!("{} does not fit: {reason}", one.subject), fix);
        }
    }
    if verdicts.iter().all(|one| matches!(one.verdict, Verdict::Registered { .. })) {
        found.ok("schemas", format!("all {} are registered", verdicts.len()));
    }
    found.done()
}

/// Qdrant: reachable, and lets this user look.
pub async fn qdrant(context: &Context) -> Vec<Finding> {
    let mut found = Findings::of("qdrant");
    let config: QdrantConfig = match context.section("qdrant") {
        Ok(config) => config,
        Err(error) => {
            found.fail("configuration", format!("{error:#}"), "correct the section [qdrant]");
            return found.done();
        }
    };
    let mut builder =
        Qdrant::from_url(&config.url).timeout(TIMEOUT).connect_timeout(TIMEOUT).skip_compatibility_check();
    if let Some(key) = &config.api_key {
        builder = builder.api_key(key.expose_secret().to_owned());
    }
    let client = match builder.build() {
        Ok(client) => client,
        Err(error) => {
            found.fail("configuration", error.to_string(), "qdrant.url is the gRPC address, http://host:6334");
            return found.done();
        }
    };
    match client.health_check().await {
        Ok(health) => found.ok("reachable", format!("{} {} at {}", health.title, health.version, config.url)),
        Err(error) => {
            let fix = "start the local stack (weir stack up), or name a Qdrant with --qdrant (the gRPC port, 6334)";
            found.fail("reachable", format!("{} does not answer: {}", config.url, short(&error)), fix);
            return found.done();
        }
    }
    match client.list_collections().await {
        Ok(list) => {
            let there = list.collections.iter().any(|collection| collection.name == config.collection);
            let says = if there { "is there" } else { "is not there yet; the first document makes it" };
            found.ok("collection", format!("{} {says}", config.collection));
        }
        Err(error) => found.fail("rights", short(&error), "give an API key: --qdrant-api-key, WEIR_QDRANT__API_KEY"),
    }
    found.done()
}

/// What matters of an error of Qdrant's client: not its type names and headers.
fn short(error: &qdrant_client::QdrantError) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    let text = cause.to_string();
    match text.split_once("message: \"") {
        Some((_, rest)) => rest.split('"').next().unwrap_or_default().to_owned(),
        None => text.split(" MetadataMap").next().unwrap_or_default().to_owned(),
    }
}

/// The embedding model: there, and computes.
pub async fn model(context: &Context) -> Vec<Finding> {
    let mut found = Findings::of("model");
    let config: ModelConfig = match context.section("model") {
        Ok(config) => config,
        Err(error) => {
            found.fail("configuration", format!("{error:#}"), "correct the section [model]");
            return found.done();
        }
    };
    // A doctor looks; it does not download.
    let looking = ModelConfig { offline: true, ..config.clone() };
    let files = match weir_models::prepare(&looking).await {
        Ok(files) => files,
        Err(error) if config.offline || config.dir.is_some() => {
            found.fail("files", error.to_string(), "put the model's files there, or set model.offline = false");
            return found.done();
        }
        Err(_) => {
            let says = format!("{} is not in {} yet", config.name, config.cache.display());
            found.warn("files", says, "the first service that needs it downloads it (91 MB); so does weir up");
            return found.done();
        }
    };
    let computed = tokio::task::spawn_blocking(move || {
        let embedder = Embedder::load(&config, &files)?;
        let vectors = embedder.embed(&["Does it compute?"])?;
        Ok::<_, weir_models::ModelError>((embedder.model_id().to_owned(), vectors))
    });
    match computed.await {
        Ok(Ok((id, vectors))) => {
            let dimension = vectors.first().map_or(0, Vec::len);
            if vectors.iter().flatten().all(|component| component.is_finite()) && dimension > 0 {
                found.ok("computes", format!("{id}, {dimension} dimensions"));
            } else {
                found.fail(
                    "computes",
                    format!("{id} yields no usable vector"),
                    "remove the model's files and fetch them again",
                );
            }
        }
        Ok(Err(error)) => found.fail("computes", error.to_string(), "remove the model's files and fetch them again"),
        Err(error) => found.fail("computes", format!("it broke off: {error}"), "see the message above"),
    }
    found.done()
}
