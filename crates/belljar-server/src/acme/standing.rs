//! How the server's own certificates stand, read from the disk by whoever is curious: `belljar doctor`.

use super::{
    AcmeConfig, AcmeError,
    kept::{Kept, Shelf},
    subject::Names,
};
use crate::clock::now_ms;

const DAY_MS: i64 = 24 * 3600 * 1000;

/// How a certificate stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// There is none, or it is over.
    Absent,
    /// It holds for so many days.
    Fresh {
        /// Whole days.
        days: i64,
    },
    /// It holds for so many days and should have been renewed.
    Overdue {
        /// Whole days.
        days: i64,
    },
}

/// The server's own certificates by their names; `base` is the URL that clients are told.
pub fn standings(
    config: &AcmeConfig,
    domain: Option<&str>,
    base: Option<&str>,
) -> Result<Vec<(String, Standing)>, AcmeError> {
    config.check()?;
    let shelf = Shelf::new(config.certificates());
    let own = Names::of_urls(domain, base, config)?.own();
    Ok(own
        .into_iter()
        .map(|subject| (subject.names.join(", "), of(shelf.read(&subject.key).as_ref(), now_ms())))
        .collect())
}

fn of(kept: Option<&Kept>, now: i64) -> Standing {
    match kept.filter(|kept| kept.holds(now)) {
        None => Standing::Absent,
        Some(kept) if kept.due() <= now => Standing::Overdue { days: (kept.end() - now) / DAY_MS },
        Some(kept) => Standing::Fresh { days: (kept.end() - now) / DAY_MS },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_fresh_then_overdue_then_gone() {
        let issued = rcgen::generate_simple_self_signed(["sb.test".to_owned()]).expect("certificate");
        let kept = Kept::parse((issued.signing_key.serialize_pem() + &issued.cert.pem()).as_bytes()).expect("parsed");
        let days = |at: i64| (kept.end() - at) / DAY_MS;
        assert_eq!(of(None, 0), Standing::Absent);
        assert_eq!(of(Some(&kept), kept.due() - 1), Standing::Fresh { days: days(kept.due() - 1) });
        assert_eq!(of(Some(&kept), kept.due()), Standing::Overdue { days: days(kept.due()) });
        assert_eq!(of(Some(&kept), kept.end()), Standing::Absent);
    }
}
