//! Payloads.

use std::collections::HashMap;

use qdrant_client::qdrant::value::Kind;
use qdrant_client::qdrant::{Value, WithPayloadSelector, with_payload_selector};
use qdrant_edge::external::serde_json::{self, Map, Number};
use qdrant_edge::{Payload, PayloadSelector, PayloadSelectorExclude, PayloadSelectorInclude, WithPayloadInterface};
use tonic::Status;

use crate::convert::path;
use crate::refusal::invalid;

/// A payload as JSON.
pub fn payload(fields: HashMap<String, Value>) -> Result<Payload, Status> {
    Ok(Payload(object(fields)?))
}

fn object(fields: HashMap<String, Value>) -> Result<Map<String, serde_json::Value>, Status> {
    fields.into_iter().map(|(key, value)| Ok((key, json(value)?))).collect()
}

fn json(value: Value) -> Result<serde_json::Value, Status> {
    Ok(match value.kind {
        None | Some(Kind::NullValue(_)) => serde_json::Value::Null,
        Some(Kind::BoolValue(value)) => value.into(),
        Some(Kind::IntegerValue(value)) => value.into(),
        Some(Kind::StringValue(value)) => value.into(),
        Some(Kind::DoubleValue(value)) => {
            Number::from_f64(value).ok_or_else(|| invalid("a payload holds a number that is not finite"))?.into()
        }
        Some(Kind::ListValue(list)) => list.values.into_iter().map(json).collect::<Result<Vec<_>, _>>()?.into(),
        Some(Kind::StructValue(value)) => object(value.fields)?.into(),
    })
}

/// A payload, to be sent.
pub fn payload_out(payload: Option<Payload>) -> HashMap<String, Value> {
    payload
        .map(|payload| payload.0.into_iter().map(|(key, value)| (key, Value::from(value))).collect())
        .unwrap_or_default()
}

/// Which fields are wanted; none when nothing is said, as in Qdrant's gRPC.
pub fn with_payload(selector: Option<WithPayloadSelector>) -> Result<WithPayloadInterface, Status> {
    use with_payload_selector::SelectorOptions;
    Ok(match selector.and_then(|selector| selector.selector_options) {
        None => WithPayloadInterface::Bool(false),
        Some(SelectorOptions::Enable(all)) => WithPayloadInterface::Bool(all),
        Some(SelectorOptions::Include(fields)) => {
            let include = fields.fields.iter().map(|field| path(field)).collect::<Result<_, _>>()?;
            WithPayloadInterface::Selector(PayloadSelector::Include(PayloadSelectorInclude { include }))
        }
        Some(SelectorOptions::Exclude(fields)) => {
            let exclude = fields.fields.iter().map(|field| path(field)).collect::<Result<_, _>>()?;
            WithPayloadInterface::Selector(PayloadSelector::Exclude(PayloadSelectorExclude { exclude }))
        }
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_payload_comes_back_as_it_went_in() {
        let json = serde_json::json!({"a": 1, "b": 2.5, "c": ["x", null, true], "d": {"e": "f"}});
        let fields: HashMap<String, Value> =
            json.as_object().unwrap().clone().into_iter().map(|(key, value)| (key, value.into())).collect();
        assert_eq!(payload_out(Some(payload(fields.clone()).unwrap())), fields);
    }

    #[test]
    fn a_number_json_can_not_hold_is_refused() {
        let nan = Value { kind: Some(Kind::DoubleValue(f64::NAN)) };
        assert!(payload(HashMap::from([("a".to_owned(), nan)])).is_err());
    }
}
