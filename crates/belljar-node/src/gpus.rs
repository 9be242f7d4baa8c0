//! The node's GPUs: which there are, and which sandbox has which.
//!
//! It is told of them ([`GpuSetting`]) and checks that each can be given away; it does not take devices from their drivers. A
//! sandbox's record says what it has, so that a new node process knows; here is only what is free. The server counts, too, and
//! sends no more sandboxes than fit; here is what holds when it is wrong.

use std::{
    collections::HashMap,
    fmt,
    str::FromStr,
    sync::{Mutex, PoisonError},
};

use belljar_api::sandbox::{Gpus as Wanted, check_gpu_model};
use belljar_vmm::{
    DriverKind, PciAddress, PciDevice,
    pci::{self, PciError},
};
use serde::Deserialize;

/// A GPU for sandboxes, as text `MODEL@ADDRESS`: `H100@0000:01:00.0`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct GpuSetting {
    /// What sandboxes ask for it by.
    pub model: String,
    /// Where it is.
    pub address: PciAddress,
}

impl FromStr for GpuSetting {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (model, address) = text
            .split_once('@')
            .ok_or_else(|| format!("{text:?} is no GPU; write MODEL@ADDRESS, such as H100@0000:01:00.0"))?;
        check_gpu_model(model)?;
        Ok(Self {
            model: model.to_owned(),
            address: address.parse().map_err(|error: pci::BadPciAddress| error.to_string())?,
        })
    }
}

impl TryFrom<String> for GpuSetting {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl fmt::Display for GpuSetting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.model, self.address)
    }
}

/// GPUs that the node cannot have.
#[derive(Debug, thiserror::Error)]
pub enum GpuError {
    /// The driver gives no devices to guests.
    #[error(
        "the node is to give GPUs to sandboxes, and {0} cannot; set the driver cloud-hypervisor, or leave the GPUs out"
    )]
    Driver(DriverKind),
    /// One of them cannot be given away.
    #[error("the GPU {setting} cannot be given to sandboxes")]
    Device {
        /// Which.
        setting: GpuSetting,
        /// Why not.
        source: PciError,
    },
    /// Two that only go together.
    #[error("{0} is named twice, or is in one IOMMU group with another GPU, which can only go to one sandbox together")]
    Together(PciAddress),
}

/// Whether all of them can be given to sandboxes.
pub fn check(settings: &[GpuSetting]) -> Result<(), GpuError> {
    Gpus::open(settings).map(drop)
}

#[derive(Debug)]
struct Gpu {
    model: String,
    /// It, and what goes with it.
    devices: Vec<PciDevice>,
}

/// All of them.
#[derive(Debug, Default)]
pub(crate) struct Gpus {
    all: Vec<Gpu>,
    /// Who has which, by place in `all`.
    taken: Mutex<HashMap<usize, String>>,
}

impl Gpus {
    /// Looks at each of them.
    pub(crate) fn open(settings: &[GpuSetting]) -> Result<Self, GpuError> {
        let find = |setting: &GpuSetting| {
            let devices = pci::group_of(&setting.address);
            let devices = devices.map_err(|source| GpuError::Device { setting: setting.clone(), source })?;
            Ok(Gpu { model: setting.model.clone(), devices })
        };
        Self::of(settings.iter().map(find).collect::<Result<_, GpuError>>()?)
    }

    fn of(all: Vec<Gpu>) -> Result<Self, GpuError> {
        for (at, gpu) in all.iter().enumerate() {
            let is_there = |device: &PciDevice| all[..at].iter().any(|before| before.devices.contains(device));
            if let Some(device) = gpu.devices.iter().find(|device| is_there(device)) {
                return Err(GpuError::Together(device.address.clone()));
            }
        }
        Ok(Self { all, taken: Mutex::default() })
    }

    /// How many there are in all, by model.
    pub(crate) fn capacity(&self) -> Vec<Wanted> {
        let mut models: Vec<Wanted> = Vec::new();
        for gpu in &self.all {
            match models.iter_mut().find(|it| it.model == gpu.model) {
                Some(it) => it.count += 1,
                None => models.push(Wanted { model: gpu.model.clone(), count: 1 }),
            }
        }
        models
    }

    /// Gives a sandbox what it wants, all or nothing; whatever it had is free again. An error says what is missing.
    pub(crate) fn claim(&self, id: &str, wanted: &[Wanted]) -> Result<Vec<PciDevice>, String> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        taken.retain(|_, owner| owner != id);
        let mut chosen = Vec::new();
        for Wanted { count, model } in wanted {
            let count = usize::try_from(*count).unwrap_or(usize::MAX);
            let free = self.all.iter().enumerate().filter(|(at, gpu)| gpu.model == *model && !taken.contains_key(at));
            let free: Vec<_> = free.map(|(at, _)| at).take(count).collect();
            if free.len() < count {
                return Err(format!("{} of {count} {model} are free on its node", free.len()));
            }
            chosen.extend(free);
        }
        taken.extend(chosen.iter().map(|at| (*at, id.to_owned())));
        Ok(chosen.iter().flat_map(|at| self.all[*at].devices.clone()).collect())
    }

    /// Notes what a sandbox has that an earlier node process gave it.
    pub(crate) fn note(&self, id: &str, devices: &[PciDevice]) {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let has = |gpu: &Gpu| gpu.devices.iter().any(|device| devices.contains(device));
        taken.extend(self.all.iter().enumerate().filter(|(_, gpu)| has(gpu)).map(|(at, _)| (at, id.to_owned())));
    }

    /// Takes back what a sandbox has, whose VM is gone.
    pub(crate) fn release(&self, id: &str) {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner).retain(|_, owner| owner != id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(address: &str, group: u32) -> PciDevice {
        PciDevice { address: address.parse().expect(address), group }
    }

    fn gpu(model: &str, number: u32) -> Gpu {
        let device = |function: u32| device(&format!("0000:0{number}:00.{function}"), number);
        Gpu { model: model.into(), devices: vec![device(0), device(1)] }
    }

    fn wanted(model: &str, count: u32) -> Wanted {
        Wanted { model: model.into(), count }
    }

    #[test]
    fn a_gpu_is_one_sandboxs_at_a_time_and_free_again_when_that_has_ended() {
        let gpus = Gpus::of(vec![gpu("H100", 1), gpu("A10", 2), gpu("H100", 3)]).expect("gpus");
        assert_eq!(gpus.capacity(), [wanted("H100", 2), wanted("A10", 1)]);
        let first = gpus.claim("one", &[wanted("H100", 1), wanted("A10", 1)]).expect("free");
        assert_eq!(first, [gpu("", 1).devices, gpu("", 2).devices].concat());
        assert_eq!(
            gpus.claim("two", &[wanted("H100", 1), wanted("A10", 1)]),
            Err("0 of 1 A10 are free on its node".into())
        );
        assert_eq!(gpus.claim("two", &[wanted("H100", 1)]), Ok(gpu("", 3).devices), "nothing was kept of what failed");
        assert_eq!(gpus.claim("one", &[wanted("H100", 1)]), Ok(gpu("", 1).devices), "again");
        gpus.release("one");
        assert!(gpus.claim("two", &[wanted("H100", 2), wanted("A10", 1)]).is_ok());
    }

    #[test]
    fn a_new_node_process_knows_who_has_what() {
        let gpus = Gpus::of(vec![gpu("H100", 1), gpu("H100", 2)]).expect("gpus");
        gpus.note("old", &[device("0000:01:00.0", 1), device("0000:01:00.1", 1), device("0000:09:00.0", 9)]);
        assert_eq!(gpus.claim("new", &[wanted("H100", 1)]), Ok(gpu("", 2).devices));
        assert!(gpus.claim("third", &[wanted("H100", 1)]).is_err());
    }

    #[test]
    fn what_only_goes_together_is_no_two_gpus() {
        let error = Gpus::of(vec![gpu("H100", 1), gpu("H100", 2), gpu("A10", 1)]).expect_err("together");
        assert!(error.to_string().starts_with("0000:01:00.0 is named twice"), "{error}");
    }

    #[test]
    fn settings_are_model_and_address() {
        assert_eq!(
            "A100-40GB@0000:AF:00.0".parse::<GpuSetting>().expect("a GPU").to_string(),
            "A100-40GB@0000:af:00.0"
        );
        let check = |text: &str, words: &str| {
            let error = text.parse::<GpuSetting>().expect_err(text);
            assert!(error.contains(words), "{error}");
        };
        check("H100", "write MODEL@ADDRESS");
        check("@0000:01:00.0", "is no model");
        check("H100@01:00.0", "\"01:00.0\" is no PCI address");
    }
}
