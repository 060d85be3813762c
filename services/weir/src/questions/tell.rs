//! Says where a question is, in lines for a person. Times are ages.

use std::time::Duration;

use weir_contracts::{AnswerStatus, RequestId};

use super::memory::{Call, Shared, Standing, Step, Waiting};
use super::outcome::{Answered, Dead};
use crate::progress::human;

/// How long ago something was at `now`; both are milliseconds since the Unix epoch.
#[must_use]
pub fn age(now: i64, at: i64) -> String {
    human(Duration::from_millis(u64::try_from(now.saturating_sub(at)).unwrap_or(0)))
}

/// A step in a word or two.
#[must_use]
pub fn step_name(step: Step) -> &'static str {
    match step {
        Step::Retrieve => "retrieve",
        Step::Model => "model",
        Step::Finish => "finish",
        Step::Queued => "queued",
        Step::Failed => "failed",
        Step::Unknown => "?",
    }
}

/// A question that has a journal.
#[must_use]
pub fn standing(of: &Standing, now: i64) -> Vec<String> {
    let since = age(now, of.step_since);
    let mut lines = vec![match of.step {
        Step::Retrieve => format!("passages are looked for, since {since}"),
        Step::Model => format!("a model is asked, since {since}"),
        Step::Finish => format!("the answer is made of what the model said, since {since}"),
        Step::Queued => format!("it waits until a limit of the tenant allows it, since {since}"),
        Step::Failed => {
            let why = of.failed.as_deref().map(|why| format!(": {why}")).unwrap_or_default();
            format!("it failed for good {since} ago{why}")
        }
        Step::Unknown => {
            format!("it is at a step this program does not know, since {since}: is it older than generate?")
        }
    }];
    if let Some(began) = of.began_at {
        let owners = match of.owners {
            0 | 1 => String::new(),
            many => format!("; {many} owners took it up, one after another was lost"),
        };
        lines.push(format!("work on it began {} ago{owners}", age(now, began)));
    }
    lines.push(match of.passages {
        None => "what was found is not written down yet".into(),
        Some(1) => "1 passage was found".into(),
        Some(count) => format!("{count} passages were found"),
    });
    lines.extend(of.calls.iter().map(call));
    for open in &of.open_calls {
        let to = model(&open.model, &open.provider);
        lines.push(format!("call {} to {to} is under way, since {}", open.attempt, age(now, open.since)));
    }
    if !of.open_calls.is_empty() {
        lines.push(match of.alive_at {
            Some(at) => format!("its owner gave a sign of life {} ago", age(now, at)),
            None => "its owner has given no sign of life yet".into(),
        });
    }
    lines.extend(of.leads.iter().filter(|led| led.waiters > 0).map(|led| match led.waiters {
        1 => format!("1 other request waits for its answer: {}", alike(led.by)),
        count => format!("{count} other requests wait for its answer: {}", alike(led.by)),
    }));
    lines
}

/// A question that waits for another one.
#[must_use]
pub fn waiting(of: &Waiting, now: i64) -> Vec<String> {
    let mut lines = vec![format!(
        "it waits for the answer of request {}, one of {} that do: {}",
        of.leader,
        of.waiters,
        alike(of.by)
    )];
    lines.push(format!("asked {} ago", age(now, of.asked_at)));
    if let Some(deadline) = of.deadline {
        lines.push(match deadline > now {
            true => format!("its deadline is in {}", age(deadline, now)),
            false => format!("its deadline passed {} ago", age(now, deadline)),
        });
    }
    lines
}

/// An answer.
#[must_use]
pub fn answered(of: &Answered, now: i64) -> Vec<String> {
    let mut parts = vec![format!("{}, {}", of.status.name(), of.provenance.name())];
    if !of.model.is_empty() {
        parts.push(model(&of.model, &of.provider));
    }
    parts.push(match of.attempts {
        1 => "1 call".into(),
        count => format!("{count} calls"),
    });
    let about = if of.usage_estimated { "about " } else { "" };
    parts.push(format!("{about}{} + {} tokens", of.input_tokens, of.output_tokens));
    parts.push(format!("${:.4}", of.cost_usd));
    parts.push(match of.citations {
        1 => "1 citation".into(),
        count => format!("{count} citations"),
    });
    let mut lines = vec![format!("answered {} ago: {}", age(now, of.at), parts.join(", "))];
    if of.asked_at > 0 {
        lines.push(format!("asked {} before that", age(of.at, of.asked_at)));
    }
    lines.extend(of.reason.as_ref().map(|reason| format!("because: {reason}")));
    lines.extend(of.answered_with.as_ref().map(|other| format!("it is the answer of request {other}")));
    lines.extend(of.age_ms.map(|millis| format!("it was {} old by then", age(millis, 0))));
    if of.status == AnswerStatus::Rejected {
        lines.push(match of.retry_after_ms {
            Some(wait) => format!("it might have been asked again {} later", age(wait, 0)),
            None => "time alone would not have helped".into(),
        });
    }
    lines
}

/// A dead letter.
#[must_use]
pub fn dead(of: &Dead, now: i64) -> Vec<String> {
    let letter = of.letter();
    let parked = if letter.parked { ", parked" } else { "" };
    let replays = match letter.replays {
        0 => String::new(),
        1 => ", replayed once".into(),
        count => format!(", replayed {count} times"),
    };
    vec![
        format!(
            "it lies among the dead letters of {} since {}{replays}{parked}: {}: {}",
            letter.stage,
            age(now, letter.at),
            letter.class,
            letter.message
        ),
        format!("after the cause is repaired: {}", of.replay),
    ]
}

/// A question that nothing is known of.
#[must_use]
pub fn unknown(request: &RequestId) -> String {
    format!(
        "Nothing is known of a question {request}. It may not have been taken up yet (`weir lag --lanes`), wait in a delay \
         tier, belong to another tenant, or be older than the retention of `answers`."
    )
}

fn call(of: &Call) -> String {
    let about = if of.estimated { "about " } else { "" };
    let took = human(Duration::from_millis(of.latency_ms));
    let to = model(&of.model, &of.provider);
    let status = match of.status.as_str() {
        "unknown" => "its owner was lost before it heard the answer,",
        status => status,
    };
    format!(
        "call {} to {to}: {status} after {took}, {about}{} + {} tokens, ${:.4}",
        of.attempt, of.input, of.output, of.cost_usd
    )
}

fn model(model: &str, provider: &str) -> String {
    format!("{model} by {provider}")
}

fn alike(by: Shared) -> &'static str {
    match by {
        Shared::IdempotencyKey => "the same idempotency key",
        Shared::Question => "the same question at the same time",
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use weir_contracts::{Lane, Provenance, TenantId};

    use super::super::memory::{Led, OpenCall};
    use super::*;

    const NOW: i64 = 1_000_000;

    fn acme() -> TenantId {
        TenantId::parse("acme").unwrap()
    }

    fn request(id: &str) -> RequestId {
        RequestId::parse(id).unwrap()
    }

    fn asking_a_model() -> Standing {
        Standing {
            request_id: request("one"),
            tenant: acme(),
            lane: Lane(3),
            step: Step::Model,
            step_since: NOW - 12_400,
            began_at: Some(NOW - 200_000),
            owners: 2,
            passages: Some(8),
            calls: vec![Call {
                provider: "openai".into(),
                model: "mini".into(),
                attempt: 1,
                status: "unknown".into(),
                input: 812,
                estimated: true,
                cost_usd: 0.00012,
                latency_ms: 1_200,
                ..Call::default()
            }],
            open_calls: vec![OpenCall {
                provider: "openai".into(),
                model: "mini".into(),
                attempt: 2,
                since: NOW - 9_800,
            }],
            alive_at: Some(NOW - 600),
            leads: vec![Led { by: Shared::IdempotencyKey, waiters: 3 }, Led { by: Shared::Question, waiters: 0 }],
            failed: None,
        }
    }

    #[test]
    fn a_question_under_way_is_told_with_its_calls() {
        let expected = [
            "a model is asked, since 12.4 s",
            "work on it began 3 min 20 s ago; 2 owners took it up, one after another was lost",
            "8 passages were found",
            "call 1 to mini by openai: its owner was lost before it heard the answer, after 1.2 s, about 812 + 0 tokens, \
             $0.0001",
            "call 2 to mini by openai is under way, since 9.8 s",
            "its owner gave a sign of life 600 ms ago",
            "3 other requests wait for its answer: the same idempotency key",
        ];
        assert_eq!(standing(&asking_a_model(), NOW), expected);
        let silent = Standing { alive_at: None, ..asking_a_model() };
        assert!(standing(&silent, NOW).contains(&"its owner has given no sign of life yet".to_owned()));
    }

    #[test]
    fn every_step_is_told_in_words() {
        let begin = |step| {
            let of = Standing { step, failed: Some("no prompt".into()), ..asking_a_model() };
            standing(&of, NOW).into_iter().next().unwrap()
        };
        assert_eq!(begin(Step::Retrieve), "passages are looked for, since 12.4 s");
        assert_eq!(begin(Step::Finish), "the answer is made of what the model said, since 12.4 s");
        assert_eq!(begin(Step::Queued), "it waits until a limit of the tenant allows it, since 12.4 s");
        assert_eq!(begin(Step::Failed), "it failed for good 12.4 s ago: no prompt");
        assert!(begin(Step::Unknown).contains("older than generate"));
    }

    #[test]
    fn who_waits_is_told_for_whom_and_until_when() {
        let of = Waiting {
            request_id: request("two"),
            tenant: acme(),
            lane: Lane(3),
            by: Shared::Question,
            leader: request("one"),
            waiters: 4,
            asked_at: NOW - 3_000,
            deadline: Some(NOW + 57_000),
        };
        let expected = [
            "it waits for the answer of request one, one of 4 that do: the same question at the same time",
            "asked 3.0 s ago",
            "its deadline is in 57.0 s",
        ];
        assert_eq!(waiting(&of, NOW), expected);
        let late = Waiting { deadline: Some(NOW - 1_000), ..of };
        assert_eq!(waiting(&late, NOW).last().unwrap(), "its deadline passed 1.0 s ago");
    }

    #[test]
    fn an_answer_is_told_with_where_it_comes_from_and_what_it_cost() {
        let of = Answered {
            tenant: acme(),
            status: AnswerStatus::Complete,
            provenance: Provenance::Fresh,
            reason: None,
            provider: "openai".into(),
            model: "mini".into(),
            attempts: 2,
            input_tokens: 812,
            output_tokens: 120,
            usage_estimated: false,
            cost_usd: 0.0003,
            citations: 3,
            age_ms: None,
            answered_with: None,
            retry_after_ms: None,
            asked_at: NOW - 64_000,
            at: NOW - 60_000,
        };
        let expected = [
            "answered 1 min 0 s ago: complete, fresh, mini by openai, 2 calls, 812 + 120 tokens, $0.0003, 3 citations",
            "asked 4.0 s before that",
        ];
        assert_eq!(answered(&of, NOW), expected);
        let rejected = Answered {
            status: AnswerStatus::Rejected,
            reason: Some("the limit of 2 requests a minute".into()),
            retry_after_ms: Some(30_000),
            ..of
        };
        let told = answered(&rejected, NOW).join("\n");
        assert!(told.contains("because: the limit of 2 requests a minute"), "{told}");
        assert!(told.contains("asked again 30.0 s later"), "{told}");
    }
}
