//! Filters.

use qdrant_client::qdrant::condition::ConditionOneOf;
use qdrant_client::qdrant::r#match::MatchValue as Wanted;
use qdrant_client::qdrant::{
    Condition as Message, FieldCondition as FieldMessage, Filter as FilterMessage, Match as MatchMessage,
    Range as RangeMessage,
};
use qdrant_edge::external::ordered_float::OrderedFloat;
use qdrant_edge::{
    AnyVariants, Condition, FieldCondition, Filter, HasIdCondition, HasVectorCondition, IsEmptyCondition,
    IsNullCondition, Match, MatchExcept, MinShould, Range, ValueVariants,
};
use tonic::Status;

use crate::convert::{path, point_ids};
use crate::refusal::{invalid, only_if, unsupported};

/// Filters within filters, at most.
const DEEPEST: usize = 16;

/// A filter, if there is one.
pub fn optional(filter: Option<FilterMessage>) -> Result<Option<Filter>, Status> {
    filter.map(self::filter).transpose()
}

/// A filter.
pub fn filter(filter: FilterMessage) -> Result<Filter, Status> {
    within(filter, 0)
}

fn within(filter: FilterMessage, depth: usize) -> Result<Filter, Status> {
    if depth > DEEPEST {
        return Err(invalid(format!("filters may lie in each other {DEEPEST} deep")));
    }
    let list = |conditions: Vec<Message>| -> Result<Option<Vec<Condition>>, Status> {
        if conditions.is_empty() {
            return Ok(None);
        }
        conditions.into_iter().map(|message| condition(message, depth)).collect::<Result<_, _>>().map(Some)
    };
    let min_should = match filter.min_should {
        None => None,
        Some(message) => Some(MinShould {
            conditions: list(message.conditions)?.unwrap_or_default(),
            min_count: usize::try_from(message.min_count).map_err(invalid)?,
        }),
    };
    Ok(Filter { should: list(filter.should)?, must: list(filter.must)?, must_not: list(filter.must_not)?, min_should })
}

fn condition(message: Message, depth: usize) -> Result<Condition, Status> {
    Ok(match message.condition_one_of.ok_or_else(|| invalid("a condition is empty"))? {
        ConditionOneOf::Field(field) => Condition::Field(field_condition(field)?),
        ConditionOneOf::IsEmpty(message) => Condition::IsEmpty(IsEmptyCondition::from(path(&message.key)?)),
        ConditionOneOf::IsNull(message) => Condition::IsNull(IsNullCondition::from(path(&message.key)?)),
        ConditionOneOf::HasId(message) => {
            Condition::HasId(point_ids(message.has_id)?.into_iter().collect::<HasIdCondition>())
        }
        ConditionOneOf::HasVector(message) => {
            Condition::HasVector(HasVectorCondition { has_vector: message.has_vector })
        }
        ConditionOneOf::Filter(filter) => Condition::Filter(within(filter, depth.saturating_add(1))?),
        ConditionOneOf::Nested(_) => return Err(unsupported("conditions on nested objects")),
        ConditionOneOf::Slice(_) => return Err(unsupported("slices of the id space")),
    })
}

fn field_condition(message: FieldMessage) -> Result<FieldCondition, Status> {
    let FieldMessage {
        key,
        r#match,
        range,
        geo_bounding_box,
        geo_radius,
        values_count,
        geo_polygon,
        datetime_range,
        is_empty,
        is_null,
    } = message;
    only_if(geo_bounding_box.is_none() && geo_radius.is_none() && geo_polygon.is_none(), "conditions on places")?;
    only_if(datetime_range.is_none(), "conditions on times")?;
    only_if(values_count.is_none(), "conditions on the number of values")?;
    only_if(is_empty.is_none() && is_null.is_none(), "is_empty and is_null within a field condition")?;
    let key = path(&key)?;
    match (r#match, range) {
        (Some(message), None) => Ok(FieldCondition::new_match(key, matching(message)?)),
        (None, Some(message)) => Ok(FieldCondition::new_range(key, self::range(message)?)),
        (None, None) => Err(invalid("a field condition says nothing")),
        (Some(_), Some(_)) => Err(unsupported("match and range in one condition")),
    }
}

fn matching(message: MatchMessage) -> Result<Match, Status> {
    Ok(match message.match_value.ok_or_else(|| invalid("a match is empty"))? {
        Wanted::Keyword(text) => Match::new_value(ValueVariants::String(text)),
        Wanted::Integer(number) => Match::new_value(ValueVariants::Integer(number)),
        Wanted::Boolean(flag) => Match::new_value(ValueVariants::Bool(flag)),
        Wanted::Keywords(texts) => Match::new_any(AnyVariants::Strings(texts.strings.into_iter().collect())),
        Wanted::Integers(numbers) => Match::new_any(AnyVariants::Integers(numbers.integers.into_iter().collect())),
        Wanted::ExceptKeywords(texts) => {
            Match::Except(MatchExcept { except: AnyVariants::Strings(texts.strings.into_iter().collect()) })
        }
        Wanted::ExceptIntegers(numbers) => {
            Match::Except(MatchExcept { except: AnyVariants::Integers(numbers.integers.into_iter().collect()) })
        }
        Wanted::Text(_) | Wanted::TextAny(_) | Wanted::Phrase(_) | Wanted::Prefix(_) | Wanted::Substring(_) => {
            return Err(unsupported("matches of parts of texts"));
        }
    })
}

fn range(message: RangeMessage) -> Result<Range<OrderedFloat<f64>>, Status> {
    let RangeMessage { lt, gt, gte, lte } = message;
    let bounds = [lt, gt, gte, lte];
    if bounds.iter().all(Option::is_none) {
        return Err(invalid("a range has no bounds"));
    }
    if bounds.iter().flatten().any(|bound| bound.is_nan()) {
        return Err(invalid("a bound of a range is not a number"));
    }
    Ok(Range {
        lt: lt.map(OrderedFloat),
        gt: gt.map(OrderedFloat),
        gte: gte.map(OrderedFloat),
        lte: lte.map(OrderedFloat),
    })
}
