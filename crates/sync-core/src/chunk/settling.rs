//! A stream in slices of any size, looked at chunk by chunk.

/// The end of the chunk that begins some bytes, which what comes after them cannot change; else how many bytes there
/// must be before another look can tell, more than there are.
pub(super) type Settled = Result<usize, usize>;

/// Holds what has come of a stream and is no whole chunk yet. What lies within one slice is looked at in place; only
/// its end is copied.
#[derive(Default)]
pub(super) struct Settling {
    /// The beginning of a chunk whose end is not known yet.
    tail: Vec<u8>,
    /// How long it must be for another look.
    wanted: usize,
}

impl Settling {
    /// Takes the next bytes. `settle` is shown the stream from where the last chunk ended.
    pub fn push(&mut self, bytes: &[u8], settle: &mut impl FnMut(&[u8]) -> Settled) {
        let mut rest = bytes;
        while !rest.is_empty() {
            if self.tail.is_empty() {
                match settle(rest) {
                    Ok(end) => rest = &rest[end..],
                    Err(wanted) => return self.hold(rest, wanted),
                }
                continue;
            }
            let missing = self.wanted.saturating_sub(self.tail.len());
            let Some((more, after)) = rest.split_at_checked(missing) else {
                self.tail.extend_from_slice(rest);
                return;
            };
            self.tail.extend_from_slice(more);
            let end = match settle(&self.tail) {
                Ok(end) => end,
                Err(wanted) => {
                    self.wanted = wanted;
                    rest = after;
                    continue;
                }
            };
            let beyond = self.tail.len() - end;
            if beyond <= more.len() {
                // What lies beyond is still there in the slice, and need not be copied.
                rest = &rest[missing - beyond..];
                self.tail.clear();
            } else {
                rest = after;
                self.tail.drain(..end);
                self.wanted = 0;
            }
        }
    }

    fn hold(&mut self, bytes: &[u8], wanted: usize) {
        self.tail.extend_from_slice(bytes);
        self.wanted = wanted;
    }

    /// What is left when the stream ends.
    pub fn take(&mut self) -> Vec<u8> {
        self.wanted = 0;
        std::mem::take(&mut self.tail)
    }

    /// Bytes that it holds.
    #[cfg(test)]
    pub fn held(&self) -> usize {
        self.tail.len()
    }
}
