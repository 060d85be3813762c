//! Vectors from the device: on a GPU in a stream of their own, so that those of one batch do not wait for the batches that
//! were launched after it.

use candle_core::{Device, Result, Tensor};

/// Copies matrices of single precision.
pub(super) struct Downloads {
    #[cfg(feature = "cuda")]
    streams: Option<cuda::Streams>,
}

/// A matrix that is being computed.
pub(crate) struct Download {
    matrix: Tensor,
    #[cfg(feature = "cuda")]
    computed: Option<cuda::CudaEvent>,
}

impl Downloads {
    pub fn new(device: &Device) -> Result<Self> {
        #[cfg(not(feature = "cuda"))]
        let _ = device;
        Ok(Self {
            #[cfg(feature = "cuda")]
            streams: cuda::Streams::of(device)?,
        })
    }

    /// For a matrix whose last kernel is launched already.
    #[cfg_attr(not(feature = "cuda"), allow(clippy::unused_self))]
    pub fn begin(&self, matrix: Tensor) -> Result<Download> {
        Ok(Download {
            matrix,
            #[cfg(feature = "cuda")]
            computed: self.streams.as_ref().map(cuda::Streams::mark).transpose()?,
        })
    }

    /// Its rows, when they are computed.
    #[cfg_attr(not(feature = "cuda"), allow(clippy::unused_self))]
    pub fn finish(&self, download: &Download) -> Result<Vec<Vec<f32>>> {
        #[cfg(feature = "cuda")]
        if let (Some(streams), Some(computed)) = (&self.streams, &download.computed) {
            return streams.rows(&download.matrix, computed);
        }
        download.matrix.to_vec2()
    }
}

#[cfg(feature = "cuda")]
mod cuda {
    use std::sync::Arc;

    use candle_core::cuda_backend::WrapErr as _;
    pub use candle_core::cuda_backend::cudarc::driver::CudaEvent;
    use candle_core::cuda_backend::cudarc::driver::CudaStream;
    use candle_core::{Device, Result, Storage, Tensor};

    pub struct Streams {
        kernels: Arc<CudaStream>,
        copies: Arc<CudaStream>,
    }

    impl Streams {
        pub fn of(device: &Device) -> Result<Option<Self>> {
            let Device::Cuda(device) = device else { return Ok(None) };
            let kernels = device.cuda_stream();
            let copies = kernels.context().new_stream().w()?;
            Ok(Some(Self { kernels, copies }))
        }

        /// What is reached when all kernels are done that are launched by now. The driver's own bookkeeping does not do:
        /// it takes what a kernel of candle writes for something that it reads.
        pub fn mark(&self) -> Result<CudaEvent> {
            self.kernels.record_event(None).w()
        }

        /// Rows of a matrix that is there when the mark is reached.
        pub fn rows(&self, matrix: &Tensor, computed: &CudaEvent) -> Result<Vec<Vec<f32>>> {
            let (_, width) = matrix.dims2()?;
            let (storage, layout) = matrix.storage_and_layout();
            let (Storage::Cuda(storage), Some((from, to))) = (&*storage, layout.contiguous_offsets()) else {
                candle_core::bail!("the vectors do not lie one after another on the GPU");
            };
            self.copies.wait(computed).w()?;
            // Into memory that is not pinned: has ended when the call returns.
            let numbers = self.copies.clone_dtoh(&storage.as_cuda_slice::<f32>()?.slice(from..to)).w()?;
            Ok(numbers.chunks_exact(width).map(<[f32]>::to_vec).collect())
        }
    }
}
