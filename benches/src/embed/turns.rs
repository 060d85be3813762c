//! All on the same texts, taking turns.

use std::time::Instant;

use color_eyre::eyre::Result;
use serde_json::{Map, Value, json};

use super::peers::Peer;
use super::texts::{MIXED, Set};
use super::{Measured, count};
use crate::median;

/// A peer that is so many times slower than Weir is measured once more, on mixed lengths with all threads.
const FAR_BEHIND: f64 = 4.0;

/// Who takes turns.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Who {
    Weir,
    /// Weir in single precision, where that is not what it takes by itself.
    WeirF32,
    /// Weir in whole numbers.
    WeirInt8,
    /// candle's stock BERT on texts sorted by length.
    Candle,
    /// The same on texts in no order.
    CandleUnsorted,
    Peer(Peer),
}

impl Who {
    fn name(&self) -> &str {
        match self {
            Self::Weir => "weir",
            Self::WeirF32 => "weir f32",
            Self::WeirInt8 => "weir int8",
            Self::Candle => "candle sorted",
            Self::CandleUnsorted => "candle",
            Self::Peer(peer) => &peer.name,
        }
    }

    /// Whether it is a peer that computes in whole numbers.
    fn is_peer_in_int8(&self) -> bool {
        matches!(self, Self::Peer(peer) if peer.precision == "int8")
    }

    /// Whether it computes in single precision.
    fn in_f32(&self) -> bool {
        !matches!(self, Self::Peer(peer) if peer.precision != "f32")
    }
}

/// Tokens a second of each.
pub struct Turns {
    rates: Vec<(Who, f64)>,
    /// The batch size that was best for a peer, or why it was not measured.
    notes: Map<String, Value>,
}

impl Turns {
    /// Measures with so many threads.
    pub fn take(measured: &mut Measured, set: &Set, threads: usize, rounds: usize) -> Result<Self> {
        let mut all: Vec<(Who, Vec<f64>)> = vec![(Who::Weir, Vec::new())];
        if measured.exact.is_some() {
            all.push((Who::WeirF32, Vec::new()));
        }
        all.push((Who::WeirInt8, Vec::new()));
        // The threads of candle can't be counted out.
        if threads > 1 || measured.all_threads() == 1 {
            all.push((Who::Candle, Vec::new()));
            if set.name == MIXED {
                all.push((Who::CandleUnsorted, Vec::new()));
            }
        }
        let mut notes = Map::new();
        if let Some(peers) = &mut measured.peers {
            for peer in peers.peers.clone() {
                if measured.far_behind.contains(&peer.name) && (set.name != MIXED || threads == 1) {
                    notes.insert(peer.name, json!("far behind, see the other sets"));
                    continue;
                }
                match peers.tune(&peer, set, threads) {
                    Ok((_, computed_in)) if computed_in != peer.precision => {
                        notes.insert(peer.name, json!(format!("computes in {computed_in} here")));
                    }
                    Ok((batch, _)) => {
                        notes.insert(peer.name.clone(), json!(format!("batches of {batch}")));
                        all.push((Who::Peer(peer), Vec::new()));
                    }
                    Err(error) => {
                        notes.insert(peer.name, json!(format!("failed: {error}")));
                    }
                }
            }
        }
        measured.seconds(&Who::Weir, set, threads)?;
        for _ in 0..rounds {
            let mut weir = f64::MAX;
            for (who, seconds) in &mut all {
                if seconds.last().is_some_and(|last| *last > FAR_BEHIND * weir) {
                    continue;
                }
                let taken = measured.seconds(who, set, threads)?;
                if *who == Who::Weir {
                    weir = taken;
                } else if taken > FAR_BEHIND * weir && matches!(who, Who::Peer(_)) {
                    measured.far_behind.insert(who.name().to_owned());
                }
                seconds.push(taken);
            }
        }
        let tokens = count(set.tokens());
        let rates: Vec<(Who, f64)> =
            all.into_iter().map(|(who, mut seconds)| (who, tokens / median(&mut seconds))).collect();
        let line: Vec<String> = rates.iter().map(|(who, rate)| format!("{} {rate:.0}", who.name())).collect();
        println!("    {:>5}: {}", set.name, line.join(", "));
        Ok(Self { rates, notes })
    }

    /// Tokens a second of Weir.
    pub fn weir(&self) -> f64 {
        self.rate(&Who::Weir).unwrap_or_default()
    }

    fn rate(&self, of: &Who) -> Option<f64> {
        self.rates.iter().find(|(who, _)| who == of).map(|(_, rate)| *rate)
    }

    fn best(&self, counts: impl Fn(&Who) -> bool) -> Option<(&Who, f64)> {
        let peers = self.rates.iter().filter(|(who, _)| counts(who));
        peers.map(|(who, rate)| (who, *rate)).max_by(|a, b| a.1.total_cmp(&b.1))
    }

    /// What one set gave.
    pub fn figures(&self) -> Map<String, Value> {
        let rates: Map<String, Value> =
            self.rates.iter().map(|(who, rate)| (who.name().to_owned(), json!(rate))).collect();
        let mut figures = self.ratios();
        figures.insert("tokens_per_second".into(), Value::Object(rates));
        figures.insert("peers".into(), Value::Object(self.notes.clone()));
        figures
    }

    /// Weir's rate to that of others; to those in single precision that of Weir in the same.
    pub fn ratios(&self) -> Map<String, Value> {
        let mut ratios = Map::new();
        let peer = |who: &Who| matches!(who, Who::Peer(_));
        let (weir, in_f32) = (self.weir(), self.rate(&Who::WeirF32).unwrap_or_else(|| self.weir()));
        let found = [
            ("peer", weir, self.best(peer)),
            ("int8_peer", self.rate(&Who::WeirInt8).unwrap_or_default(), self.best(Who::is_peer_in_int8)),
            ("f32_peer", in_f32, self.best(|who| peer(who) && who.in_f32())),
            ("candle", in_f32, self.best(|who| *who == Who::CandleUnsorted)),
        ];
        for (name, weir, best) in found {
            let Some((who, rate)) = best else { continue };
            let name = if name == "candle" { name.to_owned() } else { format!("best_{name}") };
            ratios.insert(format!("ratio_to_{name}"), json!(weir / rate));
            if peer(who) {
                ratios.insert(name, json!(who.name()));
            }
        }
        ratios
    }
}

impl Measured {
    fn all_threads(&self) -> usize {
        std::thread::available_parallelism().map_or(1, usize::from)
    }

    /// Seconds someone takes for a set.
    fn seconds(&mut self, who: &Who, set: &Set, threads: usize) -> Result<f64> {
        let mut texts: Vec<&str> = set.texts.iter().map(String::as_str).collect();
        if *who == Who::CandleUnsorted {
            // In no order of length, always the same one.
            texts.sort_by_key(|text| text.bytes().rev().take(8).map(u64::from).fold(0, |hash, x| hash * 31 + x));
        }
        let started = Instant::now();
        match who {
            Who::Weir => drop(self.weir.with(threads).embed(&texts)?),
            Who::WeirF32 => match &self.exact {
                Some(exact) => drop(exact.with(threads).embed(&texts)?),
                None => return Ok(f64::MAX),
            },
            Who::WeirInt8 => drop(self.int8.with(threads).embed(&texts)?),
            Who::Candle | Who::CandleUnsorted => drop(self.stock.embed(&texts)?),
            Who::Peer(peer) => match &mut self.peers {
                Some(peers) => return peers.seconds(peer, set, threads),
                None => return Ok(f64::MAX),
            },
        }
        Ok(started.elapsed().as_secs_f64())
    }
}
