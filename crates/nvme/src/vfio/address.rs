//! The address of a PCI function, as the kernel writes it: `0000:03:00.0`.

use std::fmt;
use std::str::FromStr;

/// Domain, bus, device and function.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PciAddress {
    domain: u16,
    bus: u8,
    device: u8,
    function: u8,
}

/// Text that is no address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not the address of a PCI function: write it like 0000:03:00.0")]
pub struct AddressError(pub String);

impl FromStr for PciAddress {
    type Err = AddressError;

    /// The domain may be left out: `03:00.0`.
    fn from_str(text: &str) -> Result<PciAddress, AddressError> {
        let parsed = || {
            let (rest, function) = text.split_once('.')?;
            let mut parts: Vec<&str> = rest.split(':').collect();
            if parts.len() == 2 {
                parts.insert(0, "0000");
            }
            let [domain, bus, device] = parts.as_slice() else { return None };
            let hex = |part: &str, digits: usize| {
                let fits = part.len() == digits && part.bytes().all(|b| b.is_ascii_hexdigit());
                fits.then(|| u16::from_str_radix(part, 16).ok()).flatten()
            };
            Some(PciAddress {
                domain: hex(domain, 4)?,
                bus: u8::try_from(hex(bus, 2)?).ok()?,
                device: u8::try_from(hex(device, 2)?).ok().filter(|d| *d < 32)?,
                function: u8::try_from(hex(function, 1)?).ok().filter(|f| *f < 8)?,
            })
        };
        parsed().ok_or_else(|| AddressError(text.to_owned()))
    }
}

impl fmt::Display for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}:{:02x}:{:02x}.{:x}", self.domain, self.bus, self.device, self.function)
    }
}

impl fmt::Debug for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::PciAddress;

    #[test]
    fn addresses_are_read_and_written_as_the_kernel_does() {
        for text in ["0000:03:00.0", "10ab:ff:1f.7"] {
            assert_eq!(text.parse::<PciAddress>().unwrap().to_string(), text);
        }
        assert_eq!("03:00.0".parse::<PciAddress>().unwrap().to_string(), "0000:03:00.0");
        for bad in [
            "",
            "3:0.0",
            "0000:03:00",
            "0000:03:20.0",
            "0000:03:00.8",
            "0000:03:00.+",
            "x:03:00.0",
            "0:0:0:0.0",
            "../03:00.0",
        ] {
            assert!(bad.parse::<PciAddress>().is_err(), "{bad}");
        }
    }
}
