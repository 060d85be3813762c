//! Which of several behaviours a request gets, and how long it waits for it.

use std::time::Duration;

use super::behaviour::Behaviour;

/// What a request gets.
pub(super) struct Turn {
    /// How long it waits first.
    pub(super) wait: Duration,
    /// How many percent of the input's tokens are counted.
    pub(super) input_percent: u64,
    /// What is done then: none of the behaviours that lead to another one.
    pub(super) act: Behaviour,
}

impl Turn {
    /// What this behaviour means for the request of this number.
    pub(super) fn of(mut behaviour: Behaviour, number: u64) -> Self {
        let (mut wait, mut input_percent) = (Duration::ZERO, 100_u64);
        for depth in 0_u64.. {
            behaviour = match behaviour {
                Behaviour::Late { latency, then } => {
                    wait = wait.saturating_add(latency);
                    *then
                }
                Behaviour::Slow { from, to, then, seed } => {
                    wait = wait.saturating_add(between(from, to, roll(seed, number, depth)));
                    *then
                }
                Behaviour::Mix { seed, of } => choose(of, roll(seed, number, depth)),
                Behaviour::WrongInputUsage { percent, then } => {
                    input_percent = input_percent.saturating_mul(percent) / 100;
                    *then
                }
                act => {
                    behaviour = act;
                    break;
                }
            };
        }
        Self { wait, input_percent, act: behaviour }
    }
}

fn between(from: Duration, to: Duration, roll: u64) -> Duration {
    let span = u64::try_from(to.saturating_sub(from).as_micros()).unwrap_or(u64::MAX);
    from.saturating_add(Duration::from_micros(roll.checked_rem(span.saturating_add(1)).unwrap_or(0)))
}

/// A mix of nothing is a server error: only code can make one, JSON is refused.
fn choose(of: Vec<(u32, Behaviour)>, roll: u64) -> Behaviour {
    let total: u64 = of.iter().map(|(weight, _)| u64::from(*weight)).sum();
    let mut left = roll.checked_rem(total).unwrap_or(0);
    for (weight, behaviour) in of {
        match left.checked_sub(u64::from(weight)) {
            Some(rest) => left = rest,
            None => return behaviour,
        }
    }
    Behaviour::status(500)
}

/// The same for ever and everywhere. The depth tells apart what decides twice about one request.
fn roll(seed: u64, number: u64, depth: u64) -> u64 {
    [number, depth].into_iter().fold(scramble(seed), |state, part| scramble(state ^ part))
}

/// A step of SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014).
fn scramble(state: u64) -> u64 {
    let z = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn acts(behaviour: &Behaviour) -> Vec<Behaviour> {
        (0..1_000).map(|number| Turn::of(behaviour.clone(), number).act).collect()
    }

    #[test]
    fn a_mix_keeps_to_its_weights_and_is_the_same_each_time() {
        let mix = |seed| Behaviour::Mix {
            seed,
            of: vec![(90, Behaviour::Quote), (0, Behaviour::Reset), (10, Behaviour::status(503))],
        };
        let acts_of_one = acts(&mix(1));
        let failed = acts_of_one.iter().filter(|act| **act == Behaviour::status(503)).count();
        assert!((70..130).contains(&failed), "{failed}");
        assert!(!acts_of_one.contains(&Behaviour::Reset));
        assert_eq!(acts_of_one, acts(&mix(1)));
        assert_ne!(acts_of_one, acts(&mix(2)));
    }

    #[test]
    fn a_mix_within_a_mix_is_decided_anew() {
        let inner = Behaviour::Mix { seed: 1, of: vec![(1, Behaviour::Quote), (1, Behaviour::Hang)] };
        let outer = Behaviour::Mix { seed: 1, of: vec![(1, inner), (1, Behaviour::Reset)] };
        let acts = acts(&outer);
        for (act, about) in [(Behaviour::Quote, 250), (Behaviour::Hang, 250), (Behaviour::Reset, 500)] {
            let count = acts.iter().filter(|found| **found == act).count();
            assert!((about - 60..about + 60).contains(&count), "{act:?}: {count}");
        }
    }

    #[test]
    fn a_mix_of_nothing_is_a_server_error() {
        for of in [vec![], vec![(0, Behaviour::Quote)]] {
            assert_eq!(Turn::of(Behaviour::Mix { seed: 1, of }, 0).act, Behaviour::status(500));
        }
    }

    #[test]
    fn slow_takes_every_time_of_its_range_alike() {
        let (from, to) = (Duration::from_millis(100), Duration::from_millis(300));
        let slow = Behaviour::Slow { from, to, then: Box::new(Behaviour::Quote), seed: 3 };
        let waits: Vec<_> = (0..1_000).map(|number| Turn::of(slow.clone(), number).wait).collect();
        assert!(waits.iter().all(|wait| (from..=to).contains(wait)));
        let below = waits.iter().filter(|wait| **wait < Duration::from_millis(200)).count();
        assert!((440..560).contains(&below), "{below}");
    }

    #[test]
    fn waits_add_up_and_tokenizers_multiply() {
        let counted = |percent, then| Behaviour::WrongInputUsage { percent, then: Box::new(then) };
        let ms = Duration::from_millis;
        let turn = Turn::of(counted(200, counted(120, Behaviour::Hang.after(ms(20))).after(ms(30))), 0);
        assert_eq!((turn.wait, turn.input_percent, turn.act), (ms(50), 240, Behaviour::Hang));
    }
}
