//! What is done to the pipeline: drawn from the seed, one after another, so that every kind has its turn.

use std::fmt;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};

use crate::fleet::SERVICES;

/// What is hurt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// A service.
    Service(&'static str),
    /// A broker, from 0.
    Broker(u16),
    /// Qdrant.
    Qdrant,
    /// The schema registry.
    Registry,
}

/// How it is hurt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blow {
    /// SIGKILL.
    Kill,
    /// SIGTERM.
    Terminate,
    /// SIGSTOP, and SIGCONT later. With an heir, another instance takes over meanwhile, and the frozen one wakes up as
    /// a zombie.
    Freeze {
        /// Whether another instance is there.
        heir: bool,
    },
    /// It is started with a failpoint in one of its stages, at which it dies.
    Die {
        /// Stage.
        stage: &'static str,
        /// Name of the failpoint.
        at: &'static str,
        /// Which time it is reached.
        nth: u32,
    },
    /// It is started with a failpoint at which the answer to a commit gets lost.
    Lose {
        /// Stage.
        stage: &'static str,
        /// Name of the failpoint.
        at: &'static str,
        /// Which time it is reached.
        nth: u32,
    },
}

/// One fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault {
    /// What is hurt.
    pub target: Target,
    /// How.
    pub blow: Blow,
    /// How long it stays down or frozen.
    pub down: Duration,
    /// How long everything is left alone before.
    pub pause: Duration,
    /// Whether the next fault comes without waiting until everything goes on.
    pub overlaps: bool,
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Service(name) => f.write_str(name),
            Self::Broker(number) => write!(f, "kafka-{}", number + 1),
            Self::Qdrant => f.write_str("qdrant"),
            Self::Registry => f.write_str("registry"),
        }
    }
}

impl fmt::Display for Blow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kill => f.write_str("SIGKILL"),
            Self::Terminate => f.write_str("SIGTERM"),
            Self::Freeze { heir: false } => f.write_str("SIGSTOP"),
            Self::Freeze { heir: true } => f.write_str("SIGSTOP with an heir"),
            Self::Die { stage, at, nth } => write!(f, "dies at {stage}/{at}:{nth}"),
            Self::Lose { stage, at, nth } => write!(f, "{stage}/{at}:{nth}"),
        }
    }
}

impl Blow {
    /// For counting: without what is drawn within it.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Kill => "SIGKILL",
            Self::Terminate => "SIGTERM",
            Self::Freeze { .. } => "SIGSTOP",
            Self::Die { at, .. } | Self::Lose { at, .. } => at,
        }
    }

    /// The failpoint, as services take it.
    #[must_use]
    pub fn failpoint(&self) -> Option<String> {
        match self {
            Self::Die { stage, at, nth } | Self::Lose { stage, at, nth } => Some(format!("{stage}/{at}:{nth}")),
            Self::Kill | Self::Terminate | Self::Freeze { .. } => None,
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.target, self.blow)?;
        let down = self.down.as_secs_f64();
        if self.blow.failpoint().is_none() { write!(f, " for {down:.1} s") } else { Ok(()) }
    }
}

/// Bounds of what is drawn.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Seconds that something stays down or frozen.
    pub down: (f64, f64),
    /// Seconds between faults.
    pub pause: (f64, f64),
}

/// Stages with enough to do to reach a failpoint.
const BUSY: [(&str, &str); 5] =
    [("ingest", "route-documents"), ("ingest", "extract"), ("chunk", "chunk"), ("embed", "embed"), ("index", "index")];
const DEATHS: [&str; 6] =
    ["after-process", "after-produce", "before-commit", "after-send-offsets", "after-commit", "before-store-write"];
const LOSSES: [&str; 2] = ["lost-commit-request", "lost-commit-answer"];

/// What is hurt, and how.
type Hurt = (Target, Blow);
/// Every kind of a class once.
type Draw = fn(&mut StdRng) -> Vec<Hurt>;

#[derive(Clone, Copy)]
enum Class {
    Service,
    Failpoint,
    Broker,
    Qdrant,
    Registry,
}

/// In this order classes have their turns; within a class every kind has its turn before one comes again.
const TURNS: [Class; 12] = [
    Class::Service,
    Class::Failpoint,
    Class::Broker,
    Class::Service,
    Class::Failpoint,
    Class::Qdrant,
    Class::Service,
    Class::Failpoint,
    Class::Service,
    Class::Registry,
    Class::Failpoint,
    Class::Service,
];

/// The faults of a seed, without end.
pub struct Faults {
    random: StdRng,
    bounds: Bounds,
    turn: usize,
    services: Vec<Hurt>,
    failpoints: Vec<Hurt>,
    brokers: Vec<Hurt>,
    qdrant: Vec<Hurt>,
    registry: Vec<Hurt>,
}

impl Faults {
    /// The faults of a seed on a stack of three brokers.
    #[must_use]
    pub fn new(seed: u64, bounds: Bounds) -> Self {
        Self {
            // Not the numbers that the workload is drawn from.
            random: StdRng::seed_from_u64(seed ^ 0x00c0_ffee),
            bounds,
            turn: 0,
            services: Vec::new(),
            failpoints: Vec::new(),
            brokers: Vec::new(),
            qdrant: Vec::new(),
            registry: Vec::new(),
        }
    }

    fn between(&mut self, (from, to): (f64, f64)) -> Duration {
        Duration::from_secs_f64(self.random.random_range(from..=to))
    }

    fn deal(&mut self, class: Class) -> Hurt {
        let Self { random, services, failpoints, brokers, qdrant, registry, .. } = self;
        let (hand, fresh): (&mut Vec<Hurt>, Draw) = match class {
            Class::Service => (services, every_service),
            Class::Failpoint => (failpoints, every_failpoint),
            Class::Broker => (brokers, every_broker),
            Class::Qdrant => (qdrant, |random| signals(Target::Qdrant, random)),
            Class::Registry => (registry, |random| signals(Target::Registry, random)),
        };
        if hand.is_empty() {
            *hand = fresh(random);
            hand.shuffle(random);
        }
        hand.pop().unwrap_or((Target::Service("chunk"), Blow::Kill))
    }
}

fn every_service(random: &mut StdRng) -> Vec<Hurt> {
    SERVICES.iter().flat_map(|service| signals(Target::Service(service), random)).collect()
}

fn every_broker(random: &mut StdRng) -> Vec<Hurt> {
    let blows = [Blow::Kill, Blow::Terminate, Blow::Freeze { heir: false }];
    blows.map(|blow| (Target::Broker(random.random_range(0..3)), blow)).into()
}

fn every_failpoint(random: &mut StdRng) -> Vec<Hurt> {
    let mut place = || {
        let (service, stage) = BUSY.get(random.random_range(0..BUSY.len())).copied().unwrap_or(("chunk", "chunk"));
        (Target::Service(service), stage, random.random_range(1..=4))
    };
    let deaths = DEATHS.map(|at| {
        // Only one stage keeps state.
        let (target, stage, nth) =
            if at == "before-store-write" { (Target::Service("ingest"), "extract", 2) } else { place() };
        (target, Blow::Die { stage, at, nth })
    });
    let losses = LOSSES.map(|at| {
        let (target, stage, nth) = place();
        (target, Blow::Lose { stage, at, nth })
    });
    deaths.into_iter().chain(losses).collect()
}

fn signals(target: Target, random: &mut StdRng) -> Vec<Hurt> {
    let heir = matches!(target, Target::Service(_)) && random.random_bool(0.5);
    [Blow::Kill, Blow::Terminate, Blow::Freeze { heir }].map(|blow| (target, blow)).into()
}

impl Iterator for Faults {
    type Item = Fault;

    fn next(&mut self) -> Option<Fault> {
        let class = TURNS.get(self.turn % TURNS.len()).copied().unwrap_or(Class::Service);
        self.turn += 1;
        let (target, blow) = self.deal(class);
        let (down, pause) = (self.between(self.bounds.down), self.between(self.bounds.pause));
        Some(Fault { target, blow, down, pause, overlaps: self.random.random_bool(0.12) })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    const BOUNDS: Bounds = Bounds { down: (1.0, 30.0), pause: (1.0, 3.0) };

    #[test]
    fn the_same_seed_hurts_in_the_same_way() {
        let faults = |seed| Faults::new(seed, BOUNDS).take(100).collect::<Vec<_>>();
        assert_eq!(faults(1), faults(1));
        assert_ne!(faults(1), faults(2));
    }

    #[test]
    fn every_kind_has_its_turn() {
        let kinds: HashSet<String> = Faults::new(5, BOUNDS)
            .take(60)
            .map(|fault| {
                format!(
                    "{} {}",
                    if fault.blow.failpoint().is_some() { "-".into() } else { target(&fault) },
                    fault.blow.kind()
                )
            })
            .collect();
        // Three signals for each of five services, brokers, Qdrant and registry; eight failpoints.
        assert_eq!(kinds.len(), 3 * (5 + 3) + 8, "{kinds:?}");
        let first: HashSet<String> = Faults::new(5, BOUNDS).take(10).map(|fault| target(&fault)).collect();
        assert!(first.contains("broker") && first.contains("qdrant") && first.contains("registry"), "{first:?}");
    }

    fn target(fault: &Fault) -> String {
        match fault.target {
            Target::Broker(_) => "broker".into(),
            other => other.to_string(),
        }
    }
}
