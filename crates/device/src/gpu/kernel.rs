//! Kernels that are embedded in the binary: loaded at their first launch, once a context.

use super::{Args, DriverResult, Launch};
use crate::{Error, Result};
use cudarc::driver::{CudaContext, CudaFunction, CudaModule, CudaStream, sys};
use cudarc::nvrtc::Ptx;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// What was loaded into each context, by the context's address. An entry keeps its context alive, so the address is
/// never another context's; entries stay until the process ends.
type PerContext<T> = Mutex<Vec<(usize, T)>>;

fn get_or_load<T: Clone>(
    cache: &PerContext<T>,
    context: &CudaContext,
    load: impl FnOnce() -> Result<T>,
) -> Result<T> {
    let key = context.cu_ctx() as usize;
    // The list is only ever pushed to: it is whole even where another thread died holding the lock.
    let mut loaded = cache.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((_, entry)) = loaded.iter().find(|(of, _)| *of == key) {
        return Ok(entry.clone());
    }
    let entry = load()?;
    loaded.push((key, entry.clone()));
    Ok(entry)
}

/// One compiled file of kernels.
///
/// ```ignore
/// static CUBIN: Cubin = Cubin::new("norm_sm90", include_bytes!(concat!(env!("OUT_DIR"), "/norm_sm90.cubin")));
/// static RMS_NORM: Kernel = Kernel::new(&CUBIN, "rms_norm");
/// ```
#[derive(Debug)]
pub struct Cubin {
    name: &'static str,
    image: &'static [u8],
    loaded: PerContext<Arc<CudaModule>>,
}

impl Cubin {
    /// `name` is for error messages: the file's name without its ending.
    pub const fn new(name: &'static str, image: &'static [u8]) -> Self {
        Self { name, image, loaded: Mutex::new(Vec::new()) }
    }

    fn module(&self, context: &Arc<CudaContext>) -> Result<Arc<CudaModule>> {
        let load = || {
            let image = Ptx::from_binary(self.image.to_vec());
            context.load_module(image).named(&format!("cuModuleLoadData of {}", self.name))
        };
        get_or_load(&self.loaded, context, load)
    }
}

/// One entry point of a [`Cubin`].
#[derive(Debug)]
pub struct Kernel {
    cubin: &'static Cubin,
    name: &'static str,
    loaded: PerContext<Arc<Loaded>>,
}

/// An entry point in one context.
#[derive(Debug)]
struct Loaded {
    function: CudaFunction,
    /// The size of each parameter in bytes, as compiled.
    parameters: Vec<usize>,
    /// Dynamic shared memory that launches may ask for, in bytes.
    shared_limit: AtomicU32,
    prefers_shared: AtomicBool,
}

impl Kernel {
    /// `name` is that of the `extern "C" __global__` function.
    pub const fn new(cubin: &'static Cubin, name: &'static str) -> Self {
        Self { cubin, name, loaded: Mutex::new(Vec::new()) }
    }

    /// The entry point's name.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Gives the kernel to `stream`; an empty grid is nothing to do. The kernel is loaded at its first launch in a
    /// context, which cannot be captured into a graph: launch it once before.
    ///
    /// # Errors
    /// A shape the card cannot run, a number or a size of arguments that is not the kernel's, or a driver error.
    /// A fault while the kernel runs shows at the next wait for the stream.
    ///
    /// # Safety
    /// - `args` are the kernel's parameters in order, of their types (number and sizes are checked here).
    /// - All that the kernel reads or writes with them lies inside the slices they came from, and the slices of
    ///   `input` are not written.
    /// - Slices and tensor maps belong to `stream`'s context, and their memory stays allocated until the kernel is done.
    ///   A slice dropped meanwhile is freed in its own stream's order: with one stream that is late enough.
    pub unsafe fn launch(&self, stream: &CudaStream, launch: Launch, args: Args<'_>) -> Result<()> {
        if launch.is_empty() {
            return Ok(());
        }
        launch.check(self.name)?;
        let context = stream.context();
        context.bind_to_thread().named("cuCtxSetCurrent")?;
        let loaded = get_or_load(&self.loaded, context, || self.load(context))?;
        args.check(self.name, &loaded.parameters)?;
        loaded.allow_shared(launch.shared_bytes, self.name)?;
        if launch.shared_beside {
            loaded.prefer_shared(self.name)?;
        }

        let mut attributes = launch.attributes();
        let config = launch.config(stream, &mut attributes);
        let mut addresses = args.addresses();
        // SAFETY: the configuration and the attributes live until the call returns, and the driver copies each
        // parameter from its address within it; their number and sizes are those of the kernel. The rest is the
        // caller's contract.
        let status = unsafe {
            let function = loaded.function.cu_function();
            sys::cuLaunchKernelEx(&config, function, addresses.as_mut_ptr(), std::ptr::null_mut())
        };
        status.result().named(self.name)
    }

    /// Blocks of `threads` threads and `shared_bytes` of dynamic shared memory that one multiprocessor holds at a time.
    pub fn blocks_per_multiprocessor(
        &self,
        stream: &CudaStream,
        threads: u32,
        shared_bytes: u32,
    ) -> Result<u32> {
        let context = stream.context();
        context.bind_to_thread().named("cuCtxSetCurrent")?;
        let loaded = get_or_load(&self.loaded, context, || self.load(context))?;
        loaded.allow_shared(shared_bytes, self.name)?;
        loaded
            .function
            .occupancy_max_active_blocks_per_multiprocessor(threads, shared_bytes as usize, None)
            .named("cuOccupancyMaxActiveBlocksPerMultiprocessor")
    }

    fn load(&self, context: &Arc<CudaContext>) -> Result<Arc<Loaded>> {
        let module = self.cubin.module(context)?;
        let function = module
            .load_function(self.name)
            .named(&format!("cuModuleGetFunction of {} in {}", self.name, self.cubin.name))?;
        let parameters = parameter_sizes(&function)?;
        Ok(Arc::new(Loaded {
            function,
            parameters,
            shared_limit: AtomicU32::new(0),
            prefers_shared: AtomicBool::new(false),
        }))
    }
}

impl Loaded {
    /// Beyond 48 KB (static shared memory included) a kernel must be told first how much it may be given.
    fn allow_shared(&self, bytes: u32, name: &str) -> Result<()> {
        if bytes <= self.shared_limit.load(Ordering::Relaxed) {
            return Ok(());
        }
        let attribute = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        let too_much = |_| Error::Driver {
            call: name.to_owned(),
            message: format!("{bytes} bytes of dynamic shared memory are more than this GPU gives a block"),
        };
        let value = i32::try_from(bytes).map_err(|_| too_much(()))?;
        self.function.set_attribute(attribute, value).map_err(|_| too_much(()))?;
        self.shared_limit.fetch_max(bytes, Ordering::Relaxed);
        Ok(())
    }

    /// As [`Launch::shared_beside`] says.
    fn prefer_shared(&self, name: &str) -> Result<()> {
        if self.prefers_shared.load(Ordering::Relaxed) {
            return Ok(());
        }
        let attribute = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT;
        self.function.set_attribute(attribute, 100).named(name)?; // percent
        self.prefers_shared.store(true, Ordering::Relaxed);
        Ok(())
    }
}

fn parameter_sizes(function: &CudaFunction) -> Result<Vec<usize>> {
    let mut sizes = Vec::new();
    loop {
        let (mut offset, mut size) = (0, 0);
        // SAFETY: the function is loaded, and the driver writes two counts.
        let status =
            unsafe { sys::cuFuncGetParamInfo(function.cu_function(), sizes.len(), &mut offset, &mut size) };
        match status {
            // One past the last parameter.
            sys::CUresult::CUDA_ERROR_INVALID_VALUE => return Ok(sizes),
            status => status.result().named("cuFuncGetParamInfo")?,
        }
        sizes.push(size);
    }
}
