//! What a guest was told of its processor, and whether it can go on where that is another one.
//!
//! A guest in hardware is told what the host's KVM supports, less what the operator hides ([`HiddenFeatures`]) so that the
//! hosts of a pool have the rest in common. It is told at its boot, and never again: its state goes along with what it was told,
//! and a host that lacks some of it refuses ([`Processor::goes_on_with`]). In software every host emulates the same.
//!
//! Source of the bits: Intel SDM volume 2A, CPUID; AMD APM volume 3, appendix E. The names are QEMU's.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;
use std::sync::OnceLock;

/// A register that CPUID answers in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Register {
    Eax,
    Ebx,
    Ecx,
    Edx,
}

/// Where CPUID tells of features: leaf, subleaf, register, and the bits that do not change while a machine runs.
pub(crate) const WORDS: [(u32, u32, Register, u32); 11] = [
    // Less OSXSAVE and MONITOR, which say what a kernel does.
    (1, 0, Register::Ecx, !(1 << 27 | 1 << 3)),
    (1, 0, Register::Edx, !0),
    (7, 0, Register::Ebx, !0),
    // Less OSPKE, the same.
    (7, 0, Register::Ecx, !(1 << 4)),
    (7, 0, Register::Edx, !0),
    (7, 1, Register::Eax, !0),
    (7, 1, Register::Edx, !0),
    (0xd, 1, Register::Eax, !0),
    (0x8000_0001, 0, Register::Ecx, !0),
    (0x8000_0001, 0, Register::Edx, !0),
    (0x8000_0008, 0, Register::Ebx, !0),
];

/// Features that a program can do without, by name: what the generations of servers differ in. Index into [`WORDS`], and bit.
/// Saved states refer to their places here: there is room behind the last one.
const FEATURES: [(&str, usize, u32); 57] = [
    ("pclmulqdq", 0, 1),
    ("fma", 0, 12),
    ("movbe", 0, 22),
    ("aes", 0, 25),
    ("avx", 0, 28),
    ("f16c", 0, 29),
    ("rdrand", 0, 30),
    ("bmi1", 2, 3),
    ("hle", 2, 4),
    ("avx2", 2, 5),
    ("bmi2", 2, 8),
    ("erms", 2, 9),
    ("invpcid", 2, 10),
    ("rtm", 2, 11),
    ("avx512f", 2, 16),
    ("avx512dq", 2, 17),
    ("rdseed", 2, 18),
    ("adx", 2, 19),
    ("avx512ifma", 2, 21),
    ("clflushopt", 2, 23),
    ("clwb", 2, 24),
    ("avx512cd", 2, 28),
    ("sha-ni", 2, 29),
    ("avx512bw", 2, 30),
    ("avx512vl", 2, 31),
    ("avx512vbmi", 3, 1),
    ("umip", 3, 2),
    ("pku", 3, 3),
    ("avx512vbmi2", 3, 6),
    ("gfni", 3, 8),
    ("vaes", 3, 9),
    ("vpclmulqdq", 3, 10),
    ("avx512vnni", 3, 11),
    ("avx512bitalg", 3, 12),
    ("avx512-vpopcntdq", 3, 14),
    ("la57", 3, 16),
    ("rdpid", 3, 22),
    ("cldemote", 3, 25),
    ("movdiri", 3, 27),
    ("movdir64b", 3, 28),
    ("fsrm", 4, 4),
    ("avx512-vp2intersect", 4, 8),
    ("serialize", 4, 14),
    ("amx-bf16", 4, 22),
    ("avx512-fp16", 4, 23),
    ("amx-tile", 4, 24),
    ("amx-int8", 4, 25),
    ("avx-vnni", 5, 4),
    ("avx512-bf16", 5, 5),
    ("fzrm", 5, 10),
    ("fsrs", 5, 11),
    ("fsrc", 5, 12),
    ("abm", 8, 5),
    ("sse4a", 8, 6),
    ("xop", 8, 11),
    ("fma4", 8, 16),
    ("wbnoinvd", 10, 9),
];

/// A feature that can be hidden from guests: `avx512f`, as QEMU calls it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct CpuFeature(usize);

/// No feature of that name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no processor feature that can be hidden; there are: {known}", known = FEATURES.map(|it| it.0).join(", "))]
pub struct UnknownFeature(String);

impl FromStr for CpuFeature {
    type Err = UnknownFeature;

    fn from_str(name: &str) -> Result<Self, UnknownFeature> {
        let found = FEATURES.iter().position(|(known, _, _)| *known == name);
        found.map(Self).ok_or_else(|| UnknownFeature(name.to_owned()))
    }
}

impl TryFrom<String> for CpuFeature {
    type Error = UnknownFeature;

    fn try_from(name: String) -> Result<Self, UnknownFeature> {
        name.parse()
    }
}

impl fmt::Display for CpuFeature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(FEATURES[self.0].0)
    }
}

/// What guests are not told of: a set of [`CpuFeature`], a bit for each of [`FEATURES`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HiddenFeatures(u64);

impl FromIterator<CpuFeature> for HiddenFeatures {
    fn from_iter<I: IntoIterator<Item = CpuFeature>>(features: I) -> Self {
        Self(features.into_iter().fold(0, |all, CpuFeature(index)| all | 1 << index))
    }
}

impl HiddenFeatures {
    /// Whether it is none at all.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    fn all(self) -> impl Iterator<Item = (&'static str, usize, u32)> {
        FEATURES.into_iter().enumerate().filter(move |(index, _)| self.0 & 1 << index != 0).map(|(_, feature)| feature)
    }

    /// Their names.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        self.all().map(|(name, _, _)| name)
    }

    /// The same as bits of [`WORDS`].
    fn words(self) -> Words {
        let mut words = Words::default();
        self.all().for_each(|(_, word, bit)| words[word] |= 1 << bit);
        words
    }

    /// The bits of each of [`WORDS`] that a guest on this host would be told of otherwise; those without any are left out.
    pub(crate) fn of_host(self) -> impl Iterator<Item = (u32, u32, Register, u32)> {
        let host = Processor::of_host().copied().unwrap_or_default();
        let words = WORDS.into_iter().zip(self.words()).zip(host.features);
        words
            .map(|(((leaf, subleaf, register, _), bits), has)| (leaf, subleaf, register, bits & has))
            .filter(|it| it.3 != 0)
    }
}

/// What each of [`WORDS`] answers.
type Words = [u32; WORDS.len()];

/// Digits of the vendor's and of all of these numbers.
const DIGITS: usize = 8 * (3 + WORDS.len());

/// What a guest was told. In notes of saved states: hexadecimal, 8 digits for each number and 16 for what was hidden.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct Processor {
    /// Who made it: CPUID's leaf 0, in the order of its letters. Zeroes are anyone.
    vendor: [u32; 3],
    /// Less what was hidden.
    features: Words,
    pub hidden: HiddenFeatures,
}

impl From<Processor> for String {
    fn from(processor: Processor) -> Self {
        let numbers = processor.vendor.into_iter().chain(processor.features);
        let numbers: String = numbers.map(|number| format!("{number:08x}")).collect();
        format!("{numbers}{:016x}", processor.hidden.0)
    }
}

impl TryFrom<String> for Processor {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let read = || {
            // A number may have a sign, and would be read all the same.
            let is_whole = text.len() == DIGITS + 16 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
            let (numbers, hidden) = text.split_at_checked(DIGITS).filter(|_| is_whole)?;
            let mut processor =
                Self { hidden: HiddenFeatures(u64::from_str_radix(hidden, 16).ok()?), ..Self::default() };
            for (index, word) in processor.vendor.iter_mut().chain(&mut processor.features).enumerate() {
                *word = u32::from_str_radix(&numbers[8 * index..][..8], 16).ok()?;
            }
            Some(processor)
        };
        read().ok_or_else(|| format!("`{text}` describes no processor"))
    }
}

impl Processor {
    /// What KVM supports here; `None` where it cannot be asked. Asked once.
    pub(crate) fn of_host() -> Option<&'static Self> {
        static HOST: OnceLock<Option<Processor>> = OnceLock::new();
        HOST.get_or_init(ask).as_ref()
    }

    /// Of a guest that boots in software: whatever is emulated, less what is hidden.
    pub(crate) fn emulated(hidden: HiddenFeatures) -> Self {
        Self { hidden, ..Self::default() }
    }

    /// Of a guest that boots in hardware here.
    pub(crate) fn here(hidden: HiddenFeatures) -> Self {
        let mut told = Self { hidden, ..Self::of_host().copied().unwrap_or_default() };
        told.features.iter_mut().zip(hidden.words()).for_each(|(word, hidden)| *word &= !hidden);
        told
    }

    /// Refuses a guest that was told of more than this processor has.
    pub(crate) fn goes_on_with(self, told: Self) -> Result<(), OtherProcessor> {
        let missing: Vec<_> = told.features.iter().zip(self.features).map(|(told, has)| told & !has).collect();
        let other_vendor = told.vendor != self.vendor && told.vendor != [0; 3];
        if !other_vendor && missing.iter().all(|word| *word == 0) {
            return Ok(());
        }
        let names = WORDS.iter().enumerate().flat_map(|(word, _)| {
            let bits = missing[word];
            (0..32).filter(move |bit| bits & 1 << bit != 0).map(move |bit| name(word, bit))
        });
        let vendors = other_vendor.then(|| (letters(told.vendor), letters(self.vendor)));
        Err(OtherProcessor { missing: names.collect(), vendors })
    }
}

/// A feature in words.
fn name(word: usize, bit: u32) -> String {
    match FEATURES.iter().find(|it| (it.1, it.2) == (word, bit)) {
        Some((name, _, _)) => (*name).to_owned(),
        None => {
            let (leaf, subleaf, register, _) = WORDS[word];
            format!("bit {bit} of {register:?} in leaf {leaf:#x}.{subleaf}").to_lowercase()
        }
    }
}

fn letters(vendor: [u32; 3]) -> String {
    String::from_utf8_lossy(&vendor.map(u32::to_le_bytes).concat()).into_owned()
}

fn ask() -> Option<Processor> {
    let kvm = kvm_ioctls::Kvm::new().ok()?;
    let cpuid = kvm.get_supported_cpuid(kvm_bindings::KVM_MAX_CPUID_ENTRIES).ok()?;
    let find = |leaf, subleaf| cpuid.as_slice().iter().find(|it| (it.function, it.index) == (leaf, subleaf));
    let first = find(0, 0)?;
    let features = WORDS.map(|(leaf, subleaf, register, mask)| {
        let entry = find(leaf, subleaf);
        mask & entry.map_or(0, |entry| match register {
            Register::Eax => entry.eax,
            Register::Ebx => entry.ebx,
            Register::Ecx => entry.ecx,
            Register::Edx => entry.edx,
        })
    });
    Some(Processor { vendor: [first.ebx, first.edx, first.ecx], features, hidden: HiddenFeatures::default() })
}

/// Names of this many missing features are told.
const TOLD: usize = 6;

/// A guest that was told of more than there is.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct OtherProcessor {
    missing: Vec<String>,
    /// Of the guest's and of the host's, where they differ.
    vendors: Option<(String, String)>,
}

impl std::error::Error for OtherProcessor {}

impl fmt::Display for OtherProcessor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some((told, has)) = &self.vendors {
            return write!(f, "its guest began on a processor of {told}, and this one is of {has}");
        }
        let more = self.missing.len().saturating_sub(TOLD);
        let names = self.missing[..self.missing.len() - more].join(", ");
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        write!(f, "its guest was told of processor features that this host lacks: {names}{more}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(names: &str) -> HiddenFeatures {
        names.split_whitespace().map(|name| name.parse::<CpuFeature>().unwrap()).collect()
    }

    fn processor(vendor: &str, features: &str) -> Processor {
        let vendor: Vec<u32> =
            vendor.as_bytes().chunks(4).map(|four| u32::from_le_bytes(four.try_into().unwrap())).collect();
        Processor {
            vendor: vendor.try_into().unwrap(),
            features: set(features).words(),
            hidden: HiddenFeatures::default(),
        }
    }

    #[test]
    fn a_guest_goes_on_where_everything_is_that_it_was_told_of() {
        let check = |told: Processor, host: Processor, expected: Option<&str>| {
            let refused = host.goes_on_with(told).err().map(|error| error.to_string());
            assert_eq!(refused.as_deref(), expected);
        };
        let intel = |features: &str| processor("GenuineIntel", features);
        check(intel("avx avx2"), intel("avx avx2"), None);
        check(intel("avx avx2"), intel("avx avx2 avx512f wbnoinvd"), None);
        let lacks = "its guest was told of processor features that this host lacks: ";
        check(intel("avx avx2 amx-tile"), intel("avx"), Some(&format!("{lacks}avx2, amx-tile")));
        let many = "avx avx2 avx512f avx512dq avx512cd avx512bw avx512vl";
        check(
            intel(many),
            intel(""),
            Some(&format!("{lacks}avx, avx2, avx512f, avx512dq, avx512cd, avx512bw and 1 more")),
        );
        let mut unnamed = intel("avx");
        unnamed.features[6] |= 1 << 20;
        check(unnamed, intel("avx"), Some(&format!("{lacks}bit 20 of edx in leaf 0x7.1")));
        let amd = "its guest began on a processor of GenuineIntel, and this one is of AuthenticAMD";
        check(intel("avx"), processor("AuthenticAMD", "avx"), Some(amd));
        // In software, and what earlier releases wrote.
        check(Processor::emulated(set("avx")), Processor::default(), None);
        check(Processor::default(), intel("avx"), None);
    }

    #[test]
    fn what_is_hidden_is_not_told_and_has_a_name() {
        let hidden = set("avx512f sha-ni wbnoinvd");
        assert_eq!(hidden.names().collect::<Vec<_>>(), ["avx512f", "sha-ni", "wbnoinvd"]);
        let here = Processor::here(hidden);
        assert!(here.features.iter().zip(hidden.words()).all(|(told, hidden)| told & hidden == 0));
        let written = String::from(here);
        assert_eq!(Processor::try_from(written.clone()), Ok(here));
        for bad in [&written[1..], "", "xy", &written.replace('0', "g"), &format!("{written}0"), &"ü".repeat(64)] {
            assert!(Processor::try_from(bad.to_owned()).is_err(), "{bad}");
        }
        assert!(hidden.of_host().all(|(_, _, _, bits)| bits != 0));
        assert!(HiddenFeatures::default().is_empty() && HiddenFeatures::default().of_host().next().is_none());
        let error = "avx1024".parse::<CpuFeature>().unwrap_err().to_string();
        assert!(
            error.starts_with("`avx1024` is no processor feature") && error.contains("avx512f, avx512dq"),
            "{error}"
        );
    }

    #[test]
    fn no_two_names_are_one_feature() {
        for (at, (name, word, bit)) in FEATURES.iter().enumerate() {
            assert!(*word < WORDS.len() && *bit < 32, "{name}");
            assert!(WORDS[*word].3 & 1 << bit != 0, "{name} is left out of its word");
            assert!(FEATURES[..at].iter().all(|it| it.0 != *name && (it.1, it.2) != (*word, *bit)), "{name}");
        }
    }
}
