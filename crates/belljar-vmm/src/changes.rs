//! Puts what a guest wrote in an earlier life into its memory, from outside of a VM process that stands still.
//!
//! The other way round than [`crate::dirty`], with which it shares where guest memory is. A guest whose memory began as a file goes
//! on with that same file and its changes, so that what many guests have in common stays one copy in the host's memory. Called by
//! the drivers, before the guest goes on.

use crate::VmmError;
use crate::dirty::{self, Mapping, Origin, Runs};
use crate::driver::{MemoryChanges, VmSpec};
use crate::limits::{PIECE_BYTES, RESTORE_WRITES_PAGES, RESTORE_WRITES_UNIT};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// What has become of the VM process when changes are put there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum When {
    /// It has its memory, and has not loaded the guest's devices.
    BeforeDevices,
    /// It has loaded the devices, and has written to memory for that, or the kernel has: the wall clock, the number of another
    /// generation. That is newer, and stays where the guest has changed nothing else in the page. Otherwise nobody can tell what
    /// would be there if it had been written onto the changes.
    AfterDevices,
}

/// Contents of one page.
type Page = [u8; 4096];

/// Puts the changes that a VM's specification has, if any, into the memory of process `pid`'s guest.
pub(crate) async fn put(pid: u32, origin: Origin, spec: &VmSpec, when: When) -> Result<(), VmmError> {
    let (Some(changes), Some(base)) = (spec.changes.clone(), spec.memory.clone()) else { return Ok(()) };
    let bytes = spec.memory_mib << 20;
    let put = move || put_now(pid, origin, bytes, &base, &changes, when);
    let done = tokio::task::spawn_blocking(put).await.map_err(io::Error::other).and_then(|done| done);
    done.map_err(|source| VmmError::Changes { pid, source })
}

fn put_now(pid: u32, origin: Origin, bytes: u64, base: &Path, changes: &MemoryChanges, when: When) -> io::Result<()> {
    check(&changes.runs, bytes)?;
    let from = File::open(&changes.from)?;
    let places = dirty::places(pid, origin, bytes)?;
    let newer = match when {
        When::BeforeDevices => Runs::new(),
        When::AfterDevices => dirty::written_in(pid, places.clone())?.0,
    };
    let apart = without(&changes.runs, &newer);
    let memory = OpenOptions::new().read(true).write(true).open(format!("/proc/{pid}/mem"))?;
    let base = File::open(base)?;
    let both = untouched(&without(&changes.runs, &apart), |offset| {
        let place = pieces(&places, offset, 1).first().map_or(0, |piece| piece.0);
        let page = |file: &File, at| {
            let mut page = [0; size_of::<Page>()];
            file.read_exact_at(&mut page, at).map(|()| page)
        };
        Ok([page(&base, offset)?, page(&from, offset)?, page(&memory, place)?])
    })?;
    let mut room = Vec::new();
    for (offset, length) in apart.into_iter().chain(both) {
        for (address, offset, length) in pieces(&places, offset, length) {
            room.resize(usize::try_from(length).map_err(io::Error::other)?, 0);
            from.read_exact_at(&mut room, offset)?;
            memory.write_all_at(&room, address)?;
        }
    }
    Ok(())
}

/// Of pages that the guest has changed and the restore has made its own: those whose content is as it was. The others may stay as they
/// are now, or it is an error. `read` gives what is at an offset in the file that memory began as, with the guest's changes, and now.
fn untouched(both: &[(u64, u64)], read: impl Fn(u64) -> io::Result<[Page; 3]>) -> io::Result<Runs> {
    let pages = || both.iter().flat_map(|(start, length)| (*start..start + length).step_by(size_of::<Page>()));
    if pages().count() > RESTORE_WRITES_PAGES {
        return Err(io::Error::other("the restore has written to a lot of what the guest had changed"));
    }
    let mut untouched = Runs::new();
    for offset in pages() {
        let [base, changed, now] = read(offset)?;
        if now == base {
            untouched.push((offset, size_of::<Page>() as u64));
        } else if !is_only_restores(&base, &changed, &now) {
            let text = format!("the restore has written to what the guest had changed, at {offset:#x}");
            return Err(io::Error::other(text));
        }
    }
    Ok(untouched)
}

/// Whether the guest has changed nothing in a page but what the restore writes.
fn is_only_restores(base: &Page, changed: &Page, now: &Page) -> bool {
    let units = |page: &Page| page.as_chunks::<RESTORE_WRITES_UNIT>().0.to_vec();
    let (base, changed, now) = (units(base), units(changed), units(now));
    base.iter().zip(changed).zip(now).all(|((base, changed), now)| *base == changed || *base != now)
}

/// Runs that are not ascending, or lie outside, were not written by us.
fn check(runs: &[(u64, u64)], bytes: u64) -> io::Result<()> {
    let mut end = 0;
    for &(offset, length) in runs {
        let next = offset.checked_add(length).filter(|next| offset >= end && length > 0 && *next <= bytes);
        end = next.ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidInput, format!("changes at {offset:#x} do not fit into {bytes} bytes"))
        })?;
    }
    Ok(())
}

/// What of the runs does not lie in others; both ascending.
fn without(runs: &[(u64, u64)], others: &[(u64, u64)]) -> Runs {
    let mut left = Runs::new();
    let mut others = others.iter().peekable();
    for &(mut start, length) in runs {
        let end = start + length;
        while start < end {
            match others.peek() {
                Some((other, length)) if other + length <= start => drop(others.next()),
                Some((other, length)) if *other < end => {
                    if start < *other {
                        left.push((start, other - start));
                    }
                    start = (other + length).min(end);
                }
                _ => {
                    left.push((start, end - start));
                    start = end;
                }
            }
        }
    }
    left
}

/// A run, cut where it leaves a mapping, and into what is moved at once: address, offset, length.
fn pieces(places: &[Mapping], offset: u64, length: u64) -> Vec<(u64, u64, u64)> {
    let mut pieces = Vec::new();
    for place in places {
        let (mut from, to) =
            (offset.max(place.offset), (offset + length).min(place.offset + (place.end - place.start)));
        while from < to {
            let part = (to - from).min(PIECE_BYTES as u64);
            pieces.push((place.start + (from - place.offset), from, part));
            from += part;
        }
    }
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn runs() -> impl Strategy<Value = Runs> {
        let gaps = proptest::collection::vec((0_u64..5, 1_u64..5), 0..8);
        gaps.prop_map(|gaps| {
            let mut at = 0;
            let run = |(gap, length)| {
                let start = at + gap;
                at = start + length;
                (start, length)
            };
            gaps.into_iter().map(run).collect()
        })
    }

    fn all(runs: &[(u64, u64)]) -> BTreeSet<u64> {
        runs.iter().flat_map(|(start, length)| *start..start + length).collect()
    }

    proptest! {
        #[test]
        fn what_is_newer_is_left_alone(runs in runs(), others in runs()) {
            let left = without(&runs, &others);
            prop_assert_eq!(all(&left), &all(&runs) - &all(&others));
            prop_assert!(check(&left, 1000).is_ok());
        }

        #[test]
        fn pieces_are_the_run(offset in 0_u64..300, length in 1_u64..300, cut in 1_u64..599) {
            let places = [
                Mapping { start: 5000, end: 5000 + cut, offset: 0 },
                Mapping { start: 9000, end: 9000 + 600 - cut, offset: cut },
            ];
            let pieces = pieces(&places, offset, length);
            let offsets: Vec<u64> = pieces.iter().flat_map(|(_, offset, length)| *offset..offset + length).collect();
            prop_assert_eq!(offsets, (offset..offset + length).collect::<Vec<_>>());
            for (address, offset, length) in pieces {
                let (expected, end) = if offset < cut { (5000 + offset, cut) } else { (9000 + offset - cut, 600) };
                prop_assert!(address == expected && offset + length <= end);
            }
        }
    }

    #[test]
    fn what_only_the_restore_writes_stays_and_anything_else_is_an_error() {
        let page = |bytes: &[(usize, u8)]| {
            let mut page: Page = [7; size_of::<Page>()];
            bytes.iter().for_each(|(at, byte)| page[*at] = *byte);
            page
        };
        let base = page(&[]);
        let check = |changed: &[(usize, u8)], now: &[(usize, u8)], expected: bool| {
            assert_eq!(is_only_restores(&base, &page(changed), &page(now)), expected, "{changed:?} {now:?}");
        };
        check(&[], &[(32, 1)], true);
        // A time, or a number, that was another one before.
        check(&[(32, 1), (33, 2)], &[(34, 3), (35, 4)], true);
        check(&[(47, 1)], &[(48, 1)], false);
        check(&[(32, 1), (4095, 1)], &[(32, 2)], false);
        // A page that was only mapped for writing.
        let mapped = |_| Ok([base, page(&[(0, 1)]), base]);
        assert_eq!(untouched(&[(0x5000, 0x1000)], mapped).expect("it is put there"), [(0x5000, 0x1000)]);
        let all = |count: u64| untouched(&[(0, count * 4096)], |_| Ok([base; 3]));
        assert!(all(RESTORE_WRITES_PAGES as u64).is_ok() && all(RESTORE_WRITES_PAGES as u64 + 1).is_err());
        let read = |offset| Ok([base, page(&[(9, 1)]), page(&[(if offset == 0x3000 { 99 } else { 8 }, 2)])]);
        assert_eq!(untouched(&[(0, 0x3000)], read).expect("they stay"), []);
        let error = untouched(&[(0, 0x4000)], read).expect_err("refused").to_string();
        assert!(error.contains("0x3000"), "{error}");
    }

    #[test]
    fn runs_that_are_nobodys_are_refused() {
        assert!(check(&[(0, 4), (4, 4)], 8).is_ok());
        for wrong in [&[(4, 4), (0, 4)][..], &[(0, 5), (4, 4)], &[(4, 5)], &[(0, 0)], &[(u64::MAX, 2)]] {
            assert_eq!(check(wrong, 8).expect_err("refused").kind(), io::ErrorKind::InvalidInput, "{wrong:?}");
        }
    }
}
