//! Versions of prompts whose calls have known lengths.
#![allow(clippy::unwrap_used, clippy::panic)]
#![allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::*;

/// Calls of a prompt: log-normal lengths.
struct Prompt {
    random: StdRng,
    tokens: f64,
    spread: f64,
}

impl Prompt {
    fn new(seed: u64, spread: f64) -> Self {
        Self { random: StdRng::seed_from_u64(seed), tokens: 1_500.0, spread }
    }

    fn next(&mut self, factor: f64) -> u64 {
        // Twelve even ones are about normal.
        let normal: f64 = (0..12).map(|_| self.random.random::<f64>()).sum::<f64>() - 6.0;
        (self.tokens * factor * (self.spread * normal).exp()) as u64
    }

    /// What each of so many calls tells.
    fn calls(&mut self, watch: &mut PromptWatch, count: usize, factor: f64) -> Vec<Verdict<PromptAlarm>> {
        (0..count).map(|_| watch.observe("v1", self.next(factor))).collect()
    }
}

fn alarms(verdicts: &[Verdict<PromptAlarm>]) -> usize {
    verdicts.iter().filter(|verdict| matches!(verdict, Verdict::Raised(_))).count()
}

#[test]
fn twice_the_tokens_are_found_within_a_short_run_of_calls() {
    for (spread, most) in [(0.0, 4), (0.15, 6), (0.3, 15), (0.5, 40)] {
        let mut delays: Vec<usize> = (0..200)
            .map(|seed| {
                let (mut prompt, mut watch) = (Prompt::new(seed, spread), PromptWatch::default());
                assert_eq!(alarms(&prompt.calls(&mut watch, 500, 1.0)), 0);
                let jump = prompt.calls(&mut watch, 200, 2.0);
                assert_eq!(alarms(&jump), 1, "spread {spread}, seed {seed}");
                1 + jump.iter().position(|verdict| matches!(verdict, Verdict::Raised(_))).unwrap()
            })
            .collect();
        delays.sort_unstable();
        println!("spread {spread}: found after {} calls, {} of 95 %", delays[100], delays[190]);
        assert!(delays[190] <= most, "spread {spread}: {}", delays[190]);
    }
}

#[test]
fn calls_as_they_always_were_raise_nothing() {
    for (seed, spread) in [(1, 0.0), (2, 0.15), (3, 0.3), (4, 0.5), (5, 0.7)] {
        let (mut prompt, mut watch) = (Prompt::new(seed, spread), PromptWatch::default());
        assert_eq!(alarms(&prompt.calls(&mut watch, 200_000, 1.0)), 0, "spread {spread}");
    }
}

#[test]
fn an_alarm_says_how_long_prompts_are_and_were() {
    let mut watch = PromptWatch::default();
    for _ in 0..100 {
        watch.observe("v1", 1_000);
    }
    let verdicts: Vec<_> = (0..4).map(|_| watch.observe("v1", 2_000)).collect();
    let Verdict::Raised(alarm) = verdicts[3] else { panic!("{verdicts:?}") };
    assert_eq!((alarm.calls, alarm.tokens), (4, 2_000));
    assert!((1_000..1_020).contains(&alarm.usual), "{alarm:?}");
    assert_eq!(verdicts[..3], [Verdict::Ordinary; 3]);
}

#[test]
fn a_jump_that_ends_ends_its_alarm_and_the_next_one_is_another() {
    let (mut prompt, mut watch) = (Prompt::new(1, 0.2), PromptWatch::default());
    prompt.calls(&mut watch, 500, 1.0);
    for _ in 0..3 {
        let jump = prompt.calls(&mut watch, 100, 2.5);
        assert_eq!(alarms(&jump), 1);
        let usual = jump.iter().find_map(|verdict| match verdict {
            Verdict::Raised(alarm) => Some(alarm.usual),
            _ => None,
        });
        assert!(usual.is_some_and(|usual| (1_400..1_650).contains(&usual)), "{usual:?}: learned from an alarm");
        let after = prompt.calls(&mut watch, 100, 1.0);
        assert_eq!((alarms(&after), after.last()), (0, Some(&Verdict::Ordinary)));
    }
}

#[test]
fn a_jump_that_stays_is_the_new_baseline() {
    let (mut prompt, mut watch) = (Prompt::new(1, 0.2), PromptWatch::default());
    prompt.calls(&mut watch, 500, 1.0);
    let stays = prompt.calls(&mut watch, 2_000, 2.0);
    assert_eq!((alarms(&stays), stays.last()), (1, Some(&Verdict::Ordinary)));
    assert_eq!(alarms(&prompt.calls(&mut watch, 50, 4.0)), 1);
}

#[test]
fn a_single_long_prompt_is_no_jump() {
    let (mut prompt, mut watch) = (Prompt::new(1, 0.2), PromptWatch::default());
    prompt.calls(&mut watch, 500, 1.0);
    assert_eq!(watch.observe("v1", u64::MAX), Verdict::Ordinary);
    assert_eq!(watch.observe("v1", 0), Verdict::Ordinary);
    assert_eq!(alarms(&prompt.calls(&mut watch, 500, 1.0)), 0);
}

#[test]
fn each_version_has_its_own_baseline() {
    let mut watch = PromptWatch::default();
    for call in 0..200 {
        let known = if call < 30 { Verdict::NoBaseline } else { Verdict::Ordinary };
        assert_eq!(watch.observe("v1", 1_000), known);
        assert_eq!(watch.observe("v2", 4_000), known, "longer from the first call on");
    }
    assert_eq!(watch.observe("v3", 9_000), Verdict::NoBaseline);
    let verdicts: Vec<_> = (0..4).map(|_| watch.observe("v1", 4_000)).collect();
    assert_eq!(alarms(&verdicts), 1, "usual for another version only");
}

#[test]
fn the_versions_used_last_are_remembered_and_no_more() {
    let mut watch = PromptWatch::default();
    for version in 0..1_000 {
        for call in 0..300 {
            watch.observe("always", 1_000);
            watch.observe(&format!("version-{version}"), 1_000 + call);
        }
    }
    assert_eq!(watch.versions.len(), MOST_VERSIONS);
    assert_eq!(watch.observe("always", 1_000), Verdict::Ordinary);
    assert_eq!(watch.observe("version-999", 1_000), Verdict::Ordinary);
    assert_eq!(watch.observe("version-1", 1_000), Verdict::NoBaseline);
    let json = serde_json::to_string(&watch).unwrap();
    println!("{} bytes", json.len());
    assert!(json.len() < 64 * 256, "{} bytes", json.len());
}

#[test]
fn a_record_goes_on_where_it_was() {
    let (mut prompt, mut watch) = (Prompt::new(1, 0.3), PromptWatch::default());
    prompt.calls(&mut watch, 500, 1.0);
    let mut kept: PromptWatch = serde_json::from_str(&serde_json::to_string(&watch).unwrap()).unwrap();
    for call in 0..500 {
        let tokens = prompt.next(if call < 100 { 1.0 } else { 2.0 });
        assert_eq!(watch.observe("v1", tokens), kept.observe("v1", tokens));
    }
    assert_eq!(serde_json::from_str::<PromptWatch>("{}").unwrap(), PromptWatch::default());
}
