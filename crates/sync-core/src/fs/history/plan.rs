//! Which packs make room: decided in one pass over the packs and one over the contents, whatever their number.

use foldhash::HashMap;

use super::pack::TRAILER;

/// A pack as it counts here.
#[derive(Clone, Copy)]
pub(super) struct Weight {
    pub number: u64,
    /// Bytes of the file.
    pub bytes: u64,
    /// Whether its contents are known. If not, nothing tells whether they are needed.
    pub is_known: bool,
}

/// The packs, the oldest first, whose needed contents are to be carried over into new ones, so that the rest of them
/// makes room until there are at most `most` bytes. `packs` are all, the oldest first; `needed` are the contents that
/// files have now: their packs, and what they take in one.
///
/// Empty where more than three quarters of the store are needed: then less than four bytes are written for each that is
/// freed only if whole packs go instead. Packs of which less than a quarter is idle stay for the same reason.
pub(super) fn to_carry(packs: &[Weight], needed: impl IntoIterator<Item = (u64, u64)>, most: u64) -> Vec<u64> {
    let mut needed_of: HashMap<u64, u64> = HashMap::default();
    let mut all_needed: u64 = 0;
    for (pack, bytes) in needed {
        *needed_of.entry(pack).or_default() += bytes;
        all_needed = all_needed.saturating_add(bytes);
    }
    if all_needed > most / 4 * 3 {
        return Vec::new();
    }
    // The new packs end in trailers, too: no more than one for each that goes, and one.
    let mut total = packs.iter().fold(TRAILER, |sum, pack| sum.saturating_add(pack.bytes));
    let mut carried = Vec::new();
    for pack in packs.iter().filter(|pack| pack.is_known) {
        if total <= most {
            break;
        }
        let needed = needed_of.get(&pack.number).copied().unwrap_or(0).saturating_add(TRAILER).min(pack.bytes);
        let idle = pack.bytes - needed;
        if idle.saturating_mul(4) >= pack.bytes {
            total = total.saturating_sub(idle);
            carried.push(pack.number);
        }
    }
    carried
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pack(number: u64, bytes: u64) -> Weight {
        Weight { number, bytes, is_known: true }
    }

    #[test]
    fn the_oldest_with_something_idle_go_until_the_rest_fits() {
        let packs = [pack(1, 1000), pack(2, 1000), pack(3, 1000), pack(4, 1000)];
        // Nothing of the first is idle; the second loses half, the third all.
        let needed = [(1, 940), (2, 500), (4, 100)];
        assert_eq!(to_carry(&packs, needed, 4100), [0; 0]);
        assert_eq!(to_carry(&packs, needed, 3700), [2]);
        assert_eq!(to_carry(&packs, needed, 2700), [2, 3]);
        assert_eq!(to_carry(&packs, needed, 2060), [2, 3, 4]);
        // Too much is needed.
        assert_eq!(to_carry(&packs, needed, 2000), [0; 0]);
        let packs = packs.map(|pack| Weight { is_known: pack.number != 2, ..pack });
        assert_eq!(to_carry(&packs, needed, 2700), [3, 4]);
    }

    #[test]
    fn each_content_is_looked_at_once() {
        let packs: Vec<Weight> = (1..=5000).map(|number| pack(number, 10_000)).collect();
        let mut looks = 0;
        let needed = (1..=5000).flat_map(|number| [(number, 1000), (number, 2000)]).inspect(|_| looks += 1);
        let carried = to_carry(&packs, needed, 25_000_000);
        assert_eq!(looks, 10_000);
        // Each that goes frees 6952 of the 25 million that must go.
        assert_eq!(carried, (1..=3597).collect::<Vec<u64>>());
    }
}
