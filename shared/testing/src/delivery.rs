//! Deliveries without Kafka.

use weir_contracts::Lane;
use weir_stage::{Coordinates, Delivery, Headers};

/// A delivery of `record`, first in lane 0 of topic `test`.
pub fn delivery<R>(record: R) -> Delivery<R> {
    delivery_at(record, 0, 0)
}

/// A delivery of `record` from this lane and offset of topic `test`.
pub fn delivery_at<R>(record: R, lane: i32, offset: i64) -> Delivery<R> {
    Delivery {
        record,
        at: Coordinates { topic: "test".into(), lane: Lane(lane), offset },
        key: None,
        headers: Headers::default(),
        timestamp: 1_700_000_000_000,
    }
}
