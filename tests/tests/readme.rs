//! The complete service of the runner's README, on a real broker.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::time::Duration;

use tokio_util::sync::CancellationToken;
use weir_testing::{Broker, Isolation, eventually};

#[path = "../../shared/runner/examples/shout.rs"]
#[allow(dead_code)]
mod shout;

#[test]
fn the_readme_shows_the_example_as_it_is() {
    let readme = include_str!("../../shared/runner/README.md");
    assert!(readme.contains(include_str!("../../shared/runner/examples/shout.rs")));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_service_of_the_readme_runs() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let topics = Broker::shared().topics("readme", &[("texts", 2), ("shouts", 2), ("dlq.shout", 2)]);
    topics.produce("texts", 2, ["hush".to_owned(), "psst".to_owned()]);
    let stop = CancellationToken::new();
    let kafka = topics.kafka(2);
    let token = stop.clone();
    let running = tokio::spawn(async move { shout::run(kafka, token).await.map_err(|error| error.to_string()) });
    eventually("both are shouted", Duration::from_secs(60), || topics.lag("shout", "texts") == 0);
    stop.cancel();
    running.await.unwrap().unwrap();
    let mut shouts: Vec<_> = topics.read("shouts", Isolation::Committed).into_iter().map(|r| r.value).collect();
    shouts.sort();
    assert_eq!(shouts, [b"HUSH", b"PSST"]);
}
