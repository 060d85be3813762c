//! In which order the requests of a batch are decided.

use std::collections::HashMap;

use weir_contracts::{DocumentRequest, Lane};
use weir_stage::Delivery;

use crate::idempotency::key_of;

/// A delivery and its place in the batch.
pub(crate) type Placed<'a> = (usize, &'a Delivery<DocumentRequest>);

/// What a decision reads and writes.
#[derive(Debug, PartialEq, Eq, Hash)]
enum Subject<'a> {
    Document(&'a str),
    Key(&'a str),
}

/// Waves to be decided one after another; the requests of one wave have nothing to do with each other, so they may be
/// decided at the same time. Requests for one document, or with one idempotency key, keep their order.
pub(crate) fn waves<'a>(batch: impl Iterator<Item = &'a Delivery<DocumentRequest>>) -> Vec<Vec<Placed<'a>>> {
    let mut waves: Vec<Vec<Placed<'a>>> = Vec::new();
    // The first wave that is free for a subject of a tenant in a lane.
    let mut free: HashMap<(Lane, &str, Subject<'_>), usize> = HashMap::new();
    for (place, delivery) in batch.enumerate() {
        let request = delivery.record();
        let (lane, tenant) = (delivery.at.lane, request.tenant.as_str());
        let document = (lane, tenant, Subject::Document(request.document.as_str()));
        let key = key_of(request).map(|key| (lane, tenant, Subject::Key(key)));
        let subjects = [Some(&document), key.as_ref()].into_iter().flatten();
        let wave = subjects.filter_map(|subject| free.get(subject)).max().copied().unwrap_or(0);
        free.insert(document, wave + 1);
        free.extend(key.map(|key| (key, wave + 1)));
        // A wave is at most one behind the last.
        match waves.get_mut(wave) {
            Some(others) => others.push((place, delivery)),
            None => waves.push(vec![(place, delivery)]),
        }
    }
    waves
}
