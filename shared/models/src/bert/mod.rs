//! BERT without padding: the tokens of all sequences are the rows of one matrix, and only attention knows where one
//! sequence ends. On the processor by kernels of our own ([`Encoder`]), elsewhere by what candle offers ([`Bert`]).

mod aligned;
mod approximate;
mod attention;
mod bf16;
mod device;
mod download;
mod encoder;
mod int8;
mod kernels;
mod layer;
mod layout;
mod lines;
mod ops;
mod product;
mod simd;
mod single;
mod steps;
mod tile;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod tiles;
mod together;
mod unrounded;
mod weights;

use std::path::Path;

use candle_core::Device;

use crate::manifest::WEIGHTS;
use crate::{DeviceChoice, ModelError, Precision};
pub(crate) use device::Bert;
pub(crate) use encoder::{Encoder, Kernel, Team, Workspace};
pub(crate) use steps::{Step, Steps};
use weights::{Shape, Weights};

/// A model, where it is computed.
pub(crate) enum Loaded {
    Processor(Encoder),
    Gpu(Bert),
}

/// Loads a model from its folder, and says in which precision it computes.
pub(crate) fn load(
    dir: &Path,
    device: DeviceChoice,
    precision: Precision,
    max_tokens: usize,
) -> Result<(Loaded, Precision), ModelError> {
    let shape = Shape::read(dir, max_tokens)?;
    let path = dir.join(WEIGHTS);
    let weights = Weights::read(&path, &open(device)?).map_err(|error| ModelError::invalid(&path, error))?;
    if !weights.device.is_cpu() {
        return Bert::load(shape, &weights, &path, precision).map(|(bert, precision)| (Loaded::Gpu(bert), precision));
    }
    let reason = "processors do not compute in it";
    let kernel = Kernel::of(precision).ok_or(ModelError::Precision { precision: precision.name(), reason })?;
    let encoder = Encoder::assemble(kernel, shape, &weights).map_err(|error| ModelError::invalid(&path, error))?;
    Ok((Loaded::Processor(encoder), kernel.precision()))
}

/// The model as a GPU computes it, on the processor.
#[cfg(test)]
pub(crate) fn load_by_candle(
    dir: &Path,
    precision: Precision,
    max_tokens: usize,
) -> Result<(Bert, Precision), ModelError> {
    let path = dir.join(WEIGHTS);
    let weights = Weights::read(&path, &Device::Cpu).map_err(|error| ModelError::invalid(&path, error))?;
    Bert::load(Shape::read(dir, max_tokens)?, &weights, &path, precision)
}

/// The device that was asked for.
fn open(choice: DeviceChoice) -> Result<Device, ModelError> {
    match choice {
        DeviceChoice::Cpu => Ok(Device::Cpu),
        DeviceChoice::Auto => Ok(first_gpu().unwrap_or(Device::Cpu)),
        DeviceChoice::Cuda => first_gpu().map_err(|reason| ModelError::Device { device: "cuda", reason }),
    }
}

#[cfg(feature = "cuda")]
fn first_gpu() -> Result<Device, String> {
    // One stream for all threads: each of a thread's own would have its own order, and the weights are of another thread.
    // Behind its first line there may be a backtrace.
    let reason = |error: candle_core::Error| error.to_string().lines().next().unwrap_or_default().to_owned();
    Device::new_cuda_with_stream(0).map_err(reason)
}

#[cfg(not(feature = "cuda"))]
fn first_gpu() -> Result<Device, String> {
    Err("this build does not support it; build with --features cuda".into())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use std::collections::HashMap;

    use candle_core::{DType, Tensor};

    use super::*;

    const WIDTH: usize = 64;
    const WORDS: usize = 50;

    fn small() -> Shape {
        Shape {
            hidden_size: WIDTH,
            intermediate_size: 4 * WIDTH,
            num_hidden_layers: 2,
            num_attention_heads: 2,
            max_position_embeddings: 40,
            layer_norm_eps: 1e-12,
            hidden_act: "gelu".into(),
            model_type: "bert".into(),
            position_embedding_type: "absolute".into(),
        }
    }

    fn random_weights() -> Weights {
        let mut tensors = HashMap::new();
        let mut add = |name: String, shape: &[usize]| {
            tensors.insert(name, Tensor::randn(0f32, 0.3, shape, &Device::Cpu).unwrap());
        };
        for (name, rows) in [("word", WORDS), ("position", 40), ("token_type", 2)] {
            add(format!("bert.embeddings.{name}_embeddings.weight"), &[rows, WIDTH]);
        }
        let mut norms = vec!["embeddings.LayerNorm".to_owned()];
        for layer in 0..2 {
            let at = format!("encoder.layer.{layer}");
            let linear = [
                ("attention.self.query", WIDTH, WIDTH),
                ("attention.self.key", WIDTH, WIDTH),
                ("attention.self.value", WIDTH, WIDTH),
                ("attention.output.dense", WIDTH, WIDTH),
                ("intermediate.dense", 4 * WIDTH, WIDTH),
                ("output.dense", WIDTH, 4 * WIDTH),
            ];
            for (name, to, from) in linear {
                add(format!("bert.{at}.{name}.weight"), &[to, from]);
                add(format!("bert.{at}.{name}.bias"), &[to]);
            }
            norms.extend(["attention.output", "output"].map(|part| format!("{at}.{part}.LayerNorm")));
        }
        for norm in norms {
            add(format!("bert.{norm}.weight"), &[WIDTH]);
            add(format!("bert.{norm}.bias"), &[WIDTH]);
        }
        Weights { tensors, device: Device::Cpu }
    }

    fn sequences(lengths: &[usize]) -> Vec<Vec<u32>> {
        lengths.iter().map(|length| (0..50).cycle().skip(*length).step_by(7).take(*length).collect()).collect()
    }

    /// What runs on a GPU is what candle offers there; here it runs on the processor.
    #[test]
    fn our_kernels_give_what_candle_gives_on_other_devices() {
        let weights = random_weights();
        let sequences = sequences(&[40, 17, 17, 17, 3, 1]);
        let theirs = Bert::assemble(small(), &weights, DType::F32).unwrap().vectors(&sequences);
        for arch in simd::tests::arches() {
            let ours = Encoder::assemble(Kernel::F32(arch), small(), &weights).unwrap();
            let (mut at, mut pauses) = (Workspace::default(), 0);
            // The second time in memory that holds the results of the first.
            for _ in 0..2 {
                let ours = ours.embed(&sequences, &mut at, &mut || pauses += 1).unwrap();
                assert_eq!(ours.len(), sequences.len());
                for (a, b) in ours.concat().iter().zip(theirs.concat()) {
                    assert!((a - b).abs() < 1e-5, "{a} is not {b}");
                }
            }
            // Twice two layers of one group, before its attention and after, and of one block: after its only part and after all.
            assert_eq!(pauses, 16);
        }
    }

    #[test]
    fn vectors_in_half_precision_are_nearly_those_in_single_precision_alone_or_not() {
        let weights = random_weights();
        let sequences = sequences(&[40, 38, 33, 33, 20, 17, 3, 1]);
        let model = |precision| Bert::assemble(small(), &weights, precision).unwrap();
        let single = model(DType::F32).vectors(&sequences);
        for (precision, least) in [(DType::F32, 0.999_999), (DType::F16, 0.9998)] {
            let model = model(precision);
            let together = model.vectors(&sequences);
            for ((sequence, single), together) in sequences.iter().zip(&single).zip(together) {
                let alone = model.vectors(std::slice::from_ref(sequence)).concat();
                for vector in [together, alone] {
                    // Of unit length, both.
                    let cosine: f32 = vector.iter().zip(single).map(|(a, b)| a * b).sum();
                    assert!((least..1.000_001).contains(&cosine), "{precision:?}: {cosine}");
                }
            }
        }
    }

    #[test]
    fn in_bf16_vectors_point_where_those_in_single_precision_do_whatever_is_beside_them() {
        let weights = random_weights();
        let sequences = sequences(&[40, 17, 17, 17, 3, 1, 33, 40, 40]);
        let exact = Encoder::assemble(Kernel::of(Precision::F32).unwrap(), small(), &weights).unwrap();
        let exact = exact.embed(&sequences, &mut Workspace::default(), &mut || ()).unwrap();
        for kernel in bf16::Kernel::of_this_processor() {
            let ours = Encoder::assemble(Kernel::Bf16(kernel), small(), &weights).unwrap();
            let (mut at, mut pauses) = (Workspace::default(), 0);
            // The second time in memory that holds the results of the first.
            for _ in 0..2 {
                let together = ours.embed(&sequences, &mut at, &mut || pauses += 1).unwrap();
                for ((sequence, exact), ours_together) in sequences.iter().zip(&exact).zip(&together) {
                    let cosine: f32 = ours_together.iter().zip(exact).map(|(a, b)| a * b).sum();
                    assert!(cosine > 0.9998, "{kernel:?}: the cosine is {cosine}");
                    let alone = ours.embed(std::slice::from_ref(sequence), &mut at, &mut || ()).unwrap();
                    assert_eq!(&alone[0], ours_together, "{kernel:?}: a vector depends on what is embedded with it");
                }
            }
            assert!(pauses >= 8, "twice two layers of at least one group and one block");
            let gelu = ours.gelu_seconds(100);
            assert!(gelu.is_finite() && gelu >= 0.0);
        }
    }

    #[test]
    fn in_int8_vectors_point_where_those_in_single_precision_do_whatever_is_beside_them_and_with_every_kernel() {
        let weights = random_weights();
        let sequences = sequences(&[40, 17, 17, 17, 3, 1, 33, 40, 40]);
        let exact = Encoder::assemble(Kernel::of(Precision::F32).unwrap(), small(), &weights).unwrap();
        let exact = exact.embed(&sequences, &mut Workspace::default(), &mut || ()).unwrap();
        let mut first: Option<Vec<Vec<f32>>> = None;
        for kernel in int8::Kernel::of_this_processor() {
            let ours = Encoder::assemble(Kernel::Int8(kernel), small(), &weights).unwrap();
            let (mut at, mut pauses) = (Workspace::default(), 0);
            // The second time in memory that holds the results of the first.
            for _ in 0..2 {
                let together = ours.embed(&sequences, &mut at, &mut || pauses += 1).unwrap();
                for ((sequence, exact), ours_together) in sequences.iter().zip(&exact).zip(&together) {
                    let cosine: f32 = ours_together.iter().zip(exact).map(|(a, b)| a * b).sum();
                    assert!(cosine > 0.997, "{kernel:?}: the cosine is {cosine}");
                    let alone = ours.embed(std::slice::from_ref(sequence), &mut at, &mut || ()).unwrap();
                    assert_eq!(&alone[0], ours_together, "{kernel:?}: a vector depends on what is embedded with it");
                }
                match &first {
                    Some(first) if !matches!(kernel, int8::Kernel::Plain(_)) => {
                        assert_eq!(&together, first, "{kernel:?}")
                    }
                    _ => first = Some(together),
                }
            }
            assert!(pauses >= 12, "twice two layers of at least one group and one block");
            let gelu = ours.gelu_seconds(100);
            assert!(gelu.is_finite() && gelu >= 0.0);
        }
    }

    #[test]
    fn threads_together_give_what_one_gives_alone_however_many_come() {
        let weights = random_weights();
        let kernels = bf16::Kernel::of_this_processor().into_iter().map(Kernel::Bf16);
        let kernels = kernels.chain(int8::Kernel::of_this_processor().into_iter().map(Kernel::Int8));
        for kernel in kernels.chain(simd::tests::arches().map(Kernel::F32)) {
            let encoder = Encoder::assemble(kernel, small(), &weights).unwrap();
            for (lengths, threads) in [(&[40, 17, 1, 17, 40, 3][..], 3), (&[40], 2), (&[1, 30, 30, 30], 2)] {
                let sequences = sequences(lengths);
                let alone = encoder.embed(&sequences, &mut Workspace::default(), &mut || ()).unwrap();
                for come in [1, threads, threads + 2] {
                    let team = encoder.team(&sequences, threads).unwrap().unwrap();
                    let join = || encoder.join(&team, &mut Workspace::default());
                    let found: Vec<_> = std::thread::scope(|scope| {
                        let joining: Vec<_> = (0..come).map(|_| scope.spawn(join)).collect();
                        joining.into_iter().filter_map(|thread| thread.join().unwrap()).collect()
                    });
                    assert_eq!(found.len(), 1, "one thread has the vectors");
                    for (ours, alone) in found[0].concat().iter().zip(alone.concat()) {
                        assert!((ours - alone).abs() < 1e-5, "{kernel:?}: {ours} is not {alone}");
                    }
                }
            }
            assert!(encoder.team(&sequences(&[16]), 2).unwrap().is_none(), "too little for two");
        }
    }

    #[test]
    fn the_kernel_is_that_of_the_precision_and_of_this_processor() {
        let of = |precision| Kernel::of(precision).map(Kernel::precision);
        let native = bf16::Kernel::fastest().is_native();
        assert_eq!(of(Precision::Auto), Some(if native { Precision::Bf16 } else { Precision::F32 }));
        for precision in [Precision::F32, Precision::Bf16, Precision::Int8] {
            assert_eq!(of(precision), Some(precision));
        }
        assert_eq!(of(Precision::F16), None);
        for kernel in bf16::Kernel::of_this_processor() {
            println!("{}: {:.1} GFLOP/s in registers", kernel.name(), kernel.peak_flops() / 1e9);
        }
        for kernel in int8::Kernel::of_this_processor() {
            println!("{}: {:.1} GOP/s in registers", kernel.name(), kernel.peak_operations() / 1e9);
        }
    }

    #[test]
    fn a_token_or_a_place_that_the_model_does_not_have_is_an_error() {
        let encoder = Encoder::assemble(Kernel::of(Precision::F32).unwrap(), small(), &random_weights()).unwrap();
        let embed = |ids: Vec<u32>| encoder.embed(&[ids], &mut Workspace::default(), &mut || ()).map(|_| ());
        assert!(embed(vec![49; 40]).is_ok());
        assert!(embed(vec![1, 50]).unwrap_err().to_string().contains("token 50 at place 1"));
        assert!(embed(vec![1; 41]).unwrap_err().to_string().contains("at place 40"));
        assert!(embed(vec![u32::MAX]).is_err());
    }
}
