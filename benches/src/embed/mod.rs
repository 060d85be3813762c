//! Tokens a second from texts to vectors: Weir's embedder beside candle's stock BERT and, where their environment can
//! be had, sentence-transformers, OpenVINO and ONNX Runtime, on the same weights and the same texts, taking turns in one
//! run. Also: how near that is to what the processor can do, where the time goes, and how long one question takes while
//! bulk is embedded.

mod gpu;
mod peers;
mod stock;
mod texts;
mod turns;

use std::collections::HashSet;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use color_eyre::eyre::{Result, ensure, eyre};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use weir_models::{DeviceChoice, Embedder, ModelConfig, ModelError, Precision};

use crate::{at_least, at_most, median, percentile};
use gpu::Gpu;
use peers::Peers;
use stock::Stock;
use texts::{MIXED, Set};
use turns::Turns;

/// Questions asked while bulk is embedded.
const QUESTIONS: usize = 100;

/// Measures at fixed lengths and on the mixed lengths of a real corpus, with all threads and with one. Figures are
/// medians of `rounds`, in tokens a second without padding; everything counts, from the text to the normalised vector.
pub async fn run(rounds: usize, with_peers: bool) -> Result<Value> {
    let config = ModelConfig { device: DeviceChoice::Cpu, ..ModelConfig::default() };
    let files = match weir_models::prepare(&config).await {
        Ok(files) => files,
        Err(error @ (ModelError::Unobtainable { .. } | ModelError::Offline { .. })) => return Ok(skipped(&error)),
        Err(error) => return Err(error.into()),
    };
    let corpus = crate::corpora().join("scifact").join("corpus.jsonl");
    if !corpus.is_file() {
        return Ok(skipped(&format_args!(
            "no {}; set WEIR_CORPORA to the folder with scifact in it",
            corpus.display()
        )));
    }
    let dir = files.dir().ok_or_else(|| eyre!("the model has no files"))?.to_owned();
    tokio::task::spawn_blocking(move || {
        let load = |precision| -> Result<Weir, ModelError> {
            let config = ModelConfig { precision, ..config.clone() };
            let one = Embedder::load(&ModelConfig { threads: 1, ..config.clone() }, &files)?;
            Ok(Weir { all: Embedder::load(&config, &files)?, one })
        };
        let (int8, weir) = (load(Precision::Int8)?, load(Precision::Auto)?);
        let exact = (precision(&weir.all) != "f32").then(|| load(Precision::F32)).transpose()?;
        let stock = Stock::load(&dir, weir.all.tokenizer().max_tokens())?;
        let sets = texts::sets(&weir.all, &corpus)?;
        let gpu = Gpu::load(&config, &files, |embedder| texts::all(embedder, &corpus))?;
        let on_gpu = gpu.iter().map(|gpu| &gpu.set);
        let peers = with_peers.then(|| Peers::start(&dir, sets.iter().chain(on_gpu))).transpose();
        let peers = peers.unwrap_or_else(|error| {
            println!("  without peers: {error}");
            None
        });
        if !with_peers {
            println!("  without peers; `make bench-embed` measures them too");
        }
        measure(
            &config,
            Measured { weir, exact, int8, stock, gpu, peers, far_behind: HashSet::new() },
            &sets,
            &Work::read(&dir)?,
            rounds,
        )
    })
    .await?
}

fn skipped(reason: &dyn std::fmt::Display) -> Value {
    println!("embed: skipped: {reason}");
    json!({ "skipped": reason.to_string() })
}

/// All that is measured.
struct Measured {
    weir: Weir,
    /// In single precision, where that is not what it takes by itself.
    exact: Option<Weir>,
    /// In whole numbers.
    int8: Weir,
    stock: Stock,
    /// Weir on a GPU.
    gpu: Option<Gpu>,
    peers: Option<Peers>,
    /// Peers that are not worth the time.
    far_behind: HashSet<String>,
}

/// Weir in some precision.
struct Weir {
    /// With all threads.
    all: Embedder,
    /// With one.
    one: Embedder,
}

impl Weir {
    fn with(&self, threads: usize) -> &Embedder {
        if threads == 1 { &self.one } else { &self.all }
    }
}

fn measure(config: &ModelConfig, mut measured: Measured, sets: &[Set], work: &Work, rounds: usize) -> Result<Value> {
    let threads = config.threads();
    let mut figures = Map::new();
    let mixed = sets.iter().find(|set| set.name == MIXED).ok_or_else(|| eyre!("no mixed lengths"))?;
    agree(&measured, mixed)?;
    let mut counts = vec![("all_threads", threads)];
    if threads > 1 {
        counts.push(("one_thread", 1));
    }
    for (name, threads) in counts {
        println!("  {name} ({threads}), tokens/s");
        let mut of_count = Map::new();
        for set in sets {
            let turns = Turns::take(&mut measured, set, threads, rounds)?;
            // Taken beside each set: a machine that others use is not always as fast.
            let peak = measured.weir.all.peak_flops(threads).unwrap_or_default();
            let mut of_set = turns.figures();
            of_set.insert("texts".into(), json!(set.texts.len()));
            of_set.insert("mean_tokens".into(), json!(count(set.tokens()) / count(set.texts.len())));
            of_set.insert("peak_gflops".into(), json!(peak / 1e9));
            of_set.insert("share_of_peak".into(), json!(turns.weir() * work.of(set) / count(set.tokens()) / peak));
            if set.name == MIXED && name == "all_threads" {
                figures.extend(turns.ratios());
            }
            of_count.insert(set.name.clone(), Value::Object(of_set));
        }
        figures.insert(name.into(), Value::Object(of_count));
    }
    if let Some(gpu) = &measured.gpu {
        figures.insert("gpu".into(), gpu.measure(measured.peers.as_mut(), mixed, rounds, threads)?);
    }
    if let Some(peers) = &mut measured.peers {
        figures.insert("accuracy".into(), accuracy(&measured.weir.all, &measured.int8.all, peers, mixed)?);
        figures.insert("versions".into(), peers.versions.clone());
    }
    // The peers go: their threads and their memory are not in the way of what follows.
    let with_peers = measured.peers.take().is_some();
    figures.insert("profile_percent".into(), profile(&measured.weir.one, mixed, rounds)?);
    let [p50, p95] = interactive(&measured.weir.all, mixed)?;
    figures.insert("question_beside_bulk_ms".into(), json!({ "p50": p50, "p95": p95 }));
    figures.insert("threads".into(), json!(threads));
    figures.insert("kernel".into(), json!(measured.weir.all.kernel()));
    let ratio = |name: &str| figures.get(name).and_then(Value::as_f64).unwrap_or_default();
    let mut targets = Map::new();
    targets.insert("ratio_to_candle_on_mixed_lengths".into(), at_least(ratio("ratio_to_candle"), 2.0));
    if with_peers {
        targets.insert("ratio_to_best_f32_peer".into(), at_least(ratio("ratio_to_best_f32_peer"), 1.0));
        let wanted = match measured.weir.all.kernel() {
            "amx-bf16" => Some(1.5),
            "avx512-bf16" | "avx512f" => Some(1.3),
            _ => None,
        };
        if let Some(wanted) = wanted {
            targets.insert("ratio_to_best_peer".into(), at_least(ratio("ratio_to_best_peer"), wanted));
        }
    }
    targets.insert("question_beside_bulk_p50_ms".into(), at_most(p50, 10.0));
    figures.insert("targets".into(), Value::Object(targets));
    Ok(Value::Object(figures))
}

/// The precision in which an embedder computes: the end of its model's id.
fn precision(embedder: &Embedder) -> &str {
    embedder.model_id().rsplit('/').next().unwrap_or_default()
}

/// Weir's vectors are the stock model's, as far as their precision goes.
fn agree(measured: &Measured, set: &Set) -> Result<()> {
    let few: Vec<&str> = set.texts.iter().step_by(7).take(16).map(String::as_str).collect();
    let stock = measured.stock.embed(&few)?.concat();
    for Weir { all: ours, .. } in [&measured.weir, &measured.int8].into_iter().chain(&measured.exact) {
        let pairs = ours.embed(&few)?.concat().into_iter().zip(&stock);
        let apart = pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        let allowed = match precision(ours) {
            "f32" => 1e-5,
            "int8" => 3e-2,
            _ => 1e-2,
        };
        ensure!(apart < allowed, "{} and the stock model differ by {apart}", ours.model_id());
    }
    Ok(())
}

/// How near the vectors of each are to torch's in f32.
fn accuracy(ours: &Embedder, in_int8: &Embedder, peers: &mut Peers, set: &Set) -> Result<Value> {
    let texts: Vec<&str> = set.texts.iter().map(String::as_str).collect();
    let mut accuracy = Map::new();
    for (name, ours) in [("weir", ours), ("weir int8", in_int8)] {
        accuracy.insert(name.into(), peers.accuracy_of(&ours.embed(&texts)?, set)?);
    }
    for peer in peers.peers.clone() {
        // Those that were not measured have no vectors.
        if let Ok(figures) = peers.accuracy(&peer, set) {
            accuracy.insert(peer.name, figures);
        }
    }
    Ok(Value::Object(accuracy))
}

/// Per cent of the time of each part, on one thread.
fn profile(ours: &Embedder, set: &Set, rounds: usize) -> Result<Value> {
    // Every fourth: as mixed as all of them.
    let texts: Vec<&str> = set.texts.iter().step_by(4).map(String::as_str).collect();
    let mut parts: Vec<(&str, Vec<f64>)> = Vec::new();
    for _ in 0..rounds {
        let profile = ours.profile(&texts)?;
        let all: f64 = profile.iter().map(|(_, seconds)| seconds).sum();
        parts.resize_with(profile.len(), Default::default);
        for ((name, shares), (part, seconds)) in parts.iter_mut().zip(profile) {
            *name = part;
            shares.push(100.0 * seconds / all);
        }
    }
    Ok(parts.into_iter().map(|(name, mut shares)| (name.to_owned(), json!(median(&mut shares)))).collect())
}

/// Milliseconds that a question takes while bulk is embedded: the median and the 95th percentile.
fn interactive(ours: &Embedder, bulk: &Set) -> Result<[f64; 2]> {
    let texts: Vec<&str> = bulk.texts.iter().map(String::as_str).collect();
    let done = AtomicBool::new(false);
    let mut milliseconds = Vec::new();
    std::thread::scope(|scope| -> Result<()> {
        let embedding = scope.spawn(|| -> Result<(), ModelError> {
            while !done.load(Ordering::Relaxed) {
                ours.embed(&texts)?;
            }
            Ok(())
        });
        let mut ask = || -> Result<(), ModelError> {
            for _ in 0..QUESTIONS {
                // A person does not ask at once again.
                std::thread::sleep(std::time::Duration::from_millis(17));
                let started = Instant::now();
                ours.embed(&["Who keeps the level of the river?"])?;
                milliseconds.push(started.elapsed().as_secs_f64() * 1e3);
            }
            Ok(())
        };
        let asked = ask();
        done.store(true, Ordering::Relaxed);
        embedding.join().map_err(|_| eyre!("bulk panicked"))??;
        Ok(asked?)
    })?;
    Ok([percentile(&mut milliseconds, 50), percentile(&mut milliseconds, 95)])
}

/// Shape of the model.
#[derive(Deserialize)]
struct Work {
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
}

impl Work {
    fn read(dir: &Path) -> Result<Self> {
        Ok(serde_json::from_str(&std::fs::read_to_string(dir.join("config.json"))?)?)
    }

    /// Floating-point operations of a set's products: with weights, and of attention.
    fn of(&self, set: &Set) -> f64 {
        let (width, inner) = (count(self.hidden_size), count(self.intermediate_size));
        let weights = 4.0 * width * width + 2.0 * width * inner;
        let of_text = |length: &usize| count(*length) * (2.0 * weights + 4.0 * width * count(*length));
        count(self.num_hidden_layers) * set.lengths.iter().map(of_text).sum::<f64>()
    }
}

#[allow(clippy::cast_precision_loss)]
fn count(n: usize) -> f64 {
    n as f64
}
