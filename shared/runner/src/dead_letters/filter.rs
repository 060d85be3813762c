//! Which dead letters are meant.

use weir_contracts::TenantId;

use super::letter::DeadLetter;

/// Everything that is said must hold; what is not said does not matter.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Filter {
    /// The id begins with one of these.
    pub ids: Vec<String>,
    /// Of this tenant.
    pub tenant: Option<TenantId>,
    /// Failed with this class of error.
    pub class: Option<String>,
    /// About this document, where its key says so (behind the routers it does).
    pub document: Option<String>,
    /// Rejected before this, milliseconds since the Unix epoch.
    pub before: Option<i64>,
    /// Rejected at this or later, milliseconds since the Unix epoch.
    pub since: Option<i64>,
    /// The error says this; case does not matter.
    pub text: Option<String>,
    /// Parked, or not parked.
    pub parked: Option<bool>,
}

impl Filter {
    /// Whether it says nothing, and so means every dead letter.
    #[must_use]
    pub fn is_everything(&self) -> bool {
        *self == Self::default()
    }

    /// Whether it means this one.
    #[must_use]
    pub fn matches(&self, letter: &DeadLetter) -> bool {
        let said = |wanted: &Option<String>, is: Option<&str>| wanted.as_deref().is_none_or(|text| is == Some(text));
        let id = letter.id();
        (self.ids.is_empty() || self.ids.iter().any(|prefix| id.starts_with(prefix.as_str())))
            && self.tenant.as_ref().is_none_or(|tenant| letter.tenant() == Some(tenant.as_str()))
            && said(&self.class, letter.class())
            && said(&self.document, letter.document())
            && self.before.is_none_or(|before| letter.rejected_at() < before)
            && self.since.is_none_or(|since| letter.rejected_at() >= since)
            && self.text.as_ref().is_none_or(|text| letter.message().to_lowercase().contains(&text.to_lowercase()))
            && self.parked.is_none_or(|parked| letter.parked().is_some() == parked)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use weir_contracts::header;

    use super::super::letter::letter;
    use super::*;

    #[test]
    fn each_part_of_a_filter_can_exclude() {
        let letter = letter(&[
            (header::TENANT, "acme"),
            (header::DEAD_LETTER_KEY, "acme/reports/q1.pdf"),
            (header::ERROR_CLASS, "too-large"),
            (header::DLQ_MESSAGE, "The file has 900 Pages"),
            (header::DEAD_LETTER_AT, "500"),
        ]);
        let yes: [fn(&mut Filter); 9] = [
            |_| (),
            |filter| filter.ids = vec!["zz".into(), "4a".into()],
            |filter| filter.tenant = Some(TenantId::parse("acme").unwrap()),
            |filter| filter.class = Some("too-large".into()),
            |filter| filter.document = Some("reports/q1.pdf".into()),
            |filter| filter.before = Some(501),
            |filter| filter.since = Some(500),
            |filter| filter.text = Some("900 pages".into()),
            |filter| filter.parked = Some(false),
        ];
        let no: [fn(&mut Filter); 8] = [
            |filter| filter.ids = vec!["a6".into()],
            |filter| filter.tenant = Some(TenantId::parse("other").unwrap()),
            |filter| filter.class = Some("too".into()),
            |filter| filter.document = Some("q1.pdf".into()),
            |filter| filter.before = Some(500),
            |filter| filter.since = Some(501),
            |filter| filter.text = Some("901".into()),
            |filter| filter.parked = Some(true),
        ];
        for (n, change) in yes.iter().enumerate() {
            let mut filter = Filter::default();
            change(&mut filter);
            assert!(filter.matches(&letter), "{n}: {filter:?}");
            assert_eq!(filter.is_everything(), n == 0);
        }
        for (n, change) in no.iter().enumerate() {
            let mut filter = Filter::default();
            change(&mut filter);
            assert!(!filter.matches(&letter), "{n}: {filter:?}");
        }
    }
}
