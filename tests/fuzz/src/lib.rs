//! What the targets share: the bound on memory.

use peak_alloc::PeakAlloc;

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

/// Does something that may have at most so many bytes allocated at a time, besides those before it.
/// The targets' bounds follow from how a vector grows (at the worst, three bytes for each in it while
/// it is copied), and were measured at the inputs that should need most.
///
/// # Panics
/// When it has more.
pub fn within<T>(bound: usize, something: impl FnOnce() -> T) -> T {
    MEMORY.reset_peak_usage();
    let before = MEMORY.current_usage();
    let done = something();
    let peak = MEMORY.peak_usage() - before;
    assert!(peak <= bound, "{peak} bytes were allocated at a time, more than {bound}");
    done
}

/// The input as text, if it is UTF-8.
#[must_use]
pub fn text(input: &[u8]) -> Option<&str> {
    str::from_utf8(input).ok()
}
