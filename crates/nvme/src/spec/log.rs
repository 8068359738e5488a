//! Log pages (5.16.1).

use zerocopy::little_endian::{U16, U32, U64, U128};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Log page identifiers.
pub const ERRORS: u8 = 0x01;
pub const SMART: u8 = 0x02;
pub const FIRMWARE: u8 = 0x03;

/// No disk is hotter: what says so says nothing.
const KELVIN_MAX: u16 = 1000;

/// A log page of a known layout.
pub trait LogPage: FromBytes + KnownLayout + Immutable {
    const ID: u8;
    const NAME: &'static str;

    /// Whether it can be what a controller means to say.
    ///
    /// # Errors
    /// The first field that cannot.
    fn check(&self) -> Result<(), String>;
}

impl LogPage for ErrorEntry {
    const ID: u8 = ERRORS;
    const NAME: &'static str = "error information";

    /// Every value of it is one: fields that do not apply are all ones.
    fn check(&self) -> Result<(), String> {
        Ok(())
    }
}

impl LogPage for Smart {
    const ID: u8 = SMART;
    const NAME: &'static str = "health information";

    fn check(&self) -> Result<(), String> {
        let kelvin = u16::from_le_bytes(self.temperature);
        match () {
            () if self.as_bytes().iter().all(|byte| *byte == 0) => Err("it is empty".to_owned()),
            () if self.spare > 100 => Err(format!("{} % of spare blocks are left", self.spare)),
            () if self.spare_threshold > 100 => {
                Err(format!("{} % of spare blocks are the least", self.spare_threshold))
            }
            () if kelvin > KELVIN_MAX => Err(format!("its temperature is {kelvin} K")),
            () => Ok(()),
        }
    }
}

impl LogPage for Firmware {
    const ID: u8 = FIRMWARE;
    const NAME: &'static str = "firmware slots";

    fn check(&self) -> Result<(), String> {
        match self.active & 7 {
            0 => Err("no slot runs".to_owned()),
            _ => Ok(()),
        }
    }
}

/// Error Information: the newest entry (5.16.1.2).
#[derive(Clone, Debug, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct ErrorEntry {
    /// Number of this error; zero is none.
    pub count: U64,
    pub sqid: U16,
    pub cid: U16,
    pub status: U16,
    pub location: U16,
    pub lba: U64,
    pub nsid: U32,
    pub reserved_28: [u8; 36],
}

const _: () = assert!(size_of::<ErrorEntry>() == 64);

/// SMART / Health Information (5.16.1.3).
#[derive(Clone, Debug, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct Smart {
    /// Bit 0 spare, 1 temperature, 2 reliability, 3 read only, 4 the cache's backup has failed.
    pub critical_warning: u8,
    /// Kelvin.
    pub temperature: [u8; 2],
    /// Per cent.
    pub spare: u8,
    pub spare_threshold: u8,
    /// Per cent of the endurance; may go beyond 100.
    pub used: u8,
    pub reserved_6: [u8; 26],
    /// Thousands of 512 bytes.
    pub data_read: U128,
    pub data_written: U128,
    pub reads: U128,
    pub writes: U128,
    pub busy_minutes: U128,
    pub power_cycles: U128,
    pub power_on_hours: U128,
    pub unsafe_shutdowns: U128,
    pub media_errors: U128,
    pub error_entries: U128,
    pub reserved_192: [u8; 320],
}

const _: () = assert!(size_of::<Smart>() == 512);

/// Critical warnings, by bit.
const WARNINGS: [&str; 6] = [
    "spare blocks run out",
    "temperature beyond a threshold",
    "reliability degraded by media errors",
    "media is read-only",
    "backup of the volatile memory has failed",
    "persistent memory region is unreliable",
];

impl Smart {
    /// Degrees Celsius; zero Kelvin is a controller that does not measure.
    pub fn celsius(&self) -> Option<i32> {
        let kelvin = u16::from_le_bytes(self.temperature);
        (kelvin > 0).then(|| i32::from(kelvin) - 273)
    }

    /// Critical warnings in words; bits that are not known by their number.
    pub fn warnings(&self) -> Vec<String> {
        let set = (0..8).filter(|bit| self.critical_warning >> bit & 1 == 1);
        set.map(|bit| {
            WARNINGS.get(bit).map_or_else(|| format!("critical warning {bit}"), |w| (*w).to_owned())
        })
        .collect()
    }
}

/// Firmware Slot Information (5.16.1.4).
#[derive(Clone, Debug, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct Firmware {
    /// Bits 2:0: the slot that runs.
    pub active: u8,
    pub reserved_1: [u8; 7],
    /// Revision of each slot.
    pub slots: [[u8; 8]; 7],
    pub reserved_64: [u8; 448],
}

const _: () = assert!(size_of::<Firmware>() == 512);

#[cfg(test)]
mod tests {
    use super::{Firmware, LogPage, Smart};
    use zerocopy::{FromBytes, FromZeros};

    /// A page as a healthy disk fills it.
    fn healthy() -> Smart {
        let mut page = Smart::new_zeroed();
        page.temperature = 313u16.to_le_bytes();
        (page.spare, page.spare_threshold, page.used) = (100, 10, 130);
        page
    }

    #[test]
    fn a_page_that_no_disk_can_mean_is_malformed() {
        assert_eq!(healthy().check(), Ok(()), "wear may go beyond 100 %");
        assert_eq!((healthy().celsius(), healthy().warnings().len()), (Some(40), 0));
        assert!(Smart::new_zeroed().check().unwrap_err().contains("empty"));
        assert!(Smart::read_from_bytes(&[0xff; 512]).unwrap().check().is_err());
        let spare = Smart { spare: 101, ..healthy() };
        assert!(spare.check().unwrap_err().contains("101 %"));
        let threshold = Smart { spare_threshold: 255, ..healthy() };
        assert!(threshold.check().unwrap_err().contains("least"));
        let hot = Smart { temperature: 1001u16.to_le_bytes(), ..healthy() };
        assert!(hot.check().unwrap_err().contains("1001 K"));
        assert_eq!(Smart { temperature: [0, 0], ..healthy() }.celsius(), None);
        assert!(Firmware::new_zeroed().check().is_err(), "slots count from one");
    }

    #[test]
    fn warnings_have_words_and_unknown_ones_their_number() {
        let told = Smart { critical_warning: 0b1000_1001, ..healthy() }.warnings();
        assert_eq!(told, ["spare blocks run out", "media is read-only", "critical warning 7"]);
    }
}
