//! What the targets share: the bound on memory.

use peak_alloc::PeakAlloc;

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

/// Runs `work`, which may have at most `bound` more bytes allocated at a time than there were before.
/// The targets' bounds follow from how a vector grows (at worst it takes three bytes for each of its
/// own while it is copied), and were measured with the inputs that should need most.
///
/// # Panics
/// When it has more.
pub fn within<T>(bound: usize, work: impl FnOnce() -> T) -> T {
    MEMORY.reset_peak_usage();
    let before = MEMORY.current_usage();
    let result = work();
    let peak = MEMORY.peak_usage() - before;
    assert!(peak <= bound, "{peak} bytes were allocated at a time; the bound is {bound}");
    result
}

/// The input as text, if it is UTF-8.
#[must_use]
pub fn text(input: &[u8]) -> Option<&str> {
    str::from_utf8(input).ok()
}
