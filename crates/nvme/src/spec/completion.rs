//! Completion queue entries (4.2) and status codes (4.2.3).

use std::fmt;
use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// One completion queue entry.
#[derive(Clone, Copy, Debug, Default, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
pub struct Completion {
    /// What the command returns.
    pub result: U32,
    pub reserved: U32,
    pub sq_head: U16,
    pub sq_id: U16,
    pub cid: U16,
    /// The phase bit, and above it the status.
    pub phase_status: U16,
}

const _: () = assert!(size_of::<Completion>() == 16);

impl Completion {
    /// The phase bit.
    pub fn phase(&self) -> bool {
        self.phase_status.get() & 1 != 0
    }

    /// The status.
    pub fn status(&self) -> Status {
        Status(self.phase_status.get() >> 1)
    }
}

/// A status: code, type, and whether the same command would fail again.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Status(pub u16);

impl Status {
    pub const SUCCESS: Status = Status(0);
    /// The command was aborted, on request (07h).
    pub const ABORT_REQUESTED: Status = Status(0x07);
    /// Invalid Field in Command (02h), not to be retried.
    pub const INVALID_FIELD: Status = Status(0x02 | DNR);

    /// SGL descriptors that no controller takes, not to be retried.
    pub const SGL_SEGMENT_INVALID: Status = Status(0x0d | DNR);
    pub const SGL_LENGTH_INVALID: Status = Status(0x0f | DNR);
    pub const SGL_TYPE_INVALID: Status = Status(0x11 | DNR);
    pub const SGL_GRANULARITY_INVALID: Status = Status(0x1e | DNR);

    /// Of a type and a code.
    pub fn of(kind: u8, code: u8) -> Status {
        Status(u16::from(kind & 7) << 8 | u16::from(code))
    }

    /// With Do Not Retry set.
    pub fn dnr(self) -> Status {
        Status(self.0 | DNR)
    }

    /// Status Code Type (SCT).
    pub fn kind(self) -> u8 {
        (self.0 >> 8 & 7) as u8
    }

    /// Status Code (SC).
    pub fn code(self) -> u8 {
        (self.0 & 0xff) as u8
    }

    /// Whether type and code are those of `other`, whatever it says of retries.
    pub fn is(self, other: Status) -> bool {
        (self.kind(), self.code()) == (other.kind(), other.code())
    }

    /// Whether the command succeeded.
    pub fn ok(self) -> bool {
        self.kind() == 0 && self.code() == 0
    }

    /// Whether the same command may succeed when it is issued again: DNR is clear, and the status tells of a moment and not
    /// of the medium or of the command.
    pub fn may_retry(self) -> bool {
        if self.0 & DNR != 0 || self.ok() {
            return false;
        }
        match self.kind() {
            GENERIC => matches!(
                self.code(),
                0x04 // Data Transfer Error
                | 0x06 // Internal Error
                | 0x0a // Command Aborted due to Missing Fused Command: never ours, a controller's slip
                | 0x21 // Command Interrupted
                | 0x22 // Transient Transport Error
                | 0x82 // Namespace Not Ready
                | 0x84 // Format In Progress
            ),
            PATH => matches!(self.code(), 0x00 | 0x60 | 0x70 | 0x71),
            _ => false,
        }
    }

    /// The code's name in the specification.
    pub fn name(self) -> &'static str {
        let table = match self.kind() {
            GENERIC => GENERIC_CODES,
            COMMAND => COMMAND_CODES,
            MEDIA => MEDIA_CODES,
            PATH => PATH_CODES,
            7 => return "vendor specific",
            _ => return "reserved status type",
        };
        let known = table.iter().find(|(code, _)| *code == self.code());
        known.map_or(if self.code() >= 0xc0 { "vendor specific" } else { "unknown status" }, |(_, name)| name)
    }
}

const DNR: u16 = 1 << 14;
const GENERIC: u8 = 0;
const COMMAND: u8 = 1;
const MEDIA: u8 = 2;
const PATH: u8 = 3;

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let again = if self.0 & DNR != 0 { ", do not retry" } else { "" };
        write!(f, "{} (type {:x}h, code {:02x}h{again})", self.name(), self.kind(), self.code())
    }
}

impl fmt::Debug for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

const GENERIC_CODES: &[(u8, &str)] = &[
    (0x00, "successful completion"),
    (0x01, "invalid command opcode"),
    (0x02, "invalid field in command"),
    (0x03, "command id conflict"),
    (0x04, "data transfer error"),
    (0x05, "commands aborted due to power loss notification"),
    (0x06, "internal error"),
    (0x07, "command abort requested"),
    (0x08, "command aborted due to submission queue deletion"),
    (0x09, "command aborted due to failed fused command"),
    (0x0a, "command aborted due to missing fused command"),
    (0x0b, "invalid namespace or format"),
    (0x0c, "command sequence error"),
    (0x0d, "invalid SGL segment descriptor"),
    (0x0e, "invalid number of SGL descriptors"),
    (0x0f, "data SGL length invalid"),
    (0x10, "metadata SGL length invalid"),
    (0x11, "SGL descriptor type invalid"),
    (0x12, "invalid use of controller memory buffer"),
    (0x13, "PRP offset invalid"),
    (0x14, "atomic write unit exceeded"),
    (0x15, "operation denied"),
    (0x16, "SGL offset invalid"),
    (0x18, "host identifier inconsistent format"),
    (0x19, "keep alive timer expired"),
    (0x1a, "keep alive timeout invalid"),
    (0x1b, "command aborted due to preempt and abort"),
    (0x1c, "sanitize failed"),
    (0x1d, "sanitize in progress"),
    (0x1e, "SGL data block granularity invalid"),
    (0x1f, "command not supported for queue in CMB"),
    (0x20, "namespace is write protected"),
    (0x21, "command interrupted"),
    (0x22, "transient transport error"),
    (0x23, "command prohibited by lockdown"),
    (0x24, "admin command media not ready"),
    (0x80, "LBA out of range"),
    (0x81, "capacity exceeded"),
    (0x82, "namespace not ready"),
    (0x83, "reservation conflict"),
    (0x84, "format in progress"),
    (0x85, "invalid value size"),
    (0x86, "invalid key size"),
    (0x87, "KV key does not exist"),
    (0x88, "unrecovered error"),
    (0x89, "key exists"),
];

const COMMAND_CODES: &[(u8, &str)] = &[
    (0x00, "completion queue invalid"),
    (0x01, "invalid queue identifier"),
    (0x02, "invalid queue size"),
    (0x03, "abort command limit exceeded"),
    (0x05, "asynchronous event request limit exceeded"),
    (0x06, "invalid firmware slot"),
    (0x07, "invalid firmware image"),
    (0x08, "invalid interrupt vector"),
    (0x09, "invalid log page"),
    (0x0a, "invalid format"),
    (0x0b, "firmware activation requires conventional reset"),
    (0x0c, "invalid queue deletion"),
    (0x0d, "feature identifier not saveable"),
    (0x0e, "feature not changeable"),
    (0x0f, "feature not namespace specific"),
    (0x10, "firmware activation requires NVM subsystem reset"),
    (0x11, "firmware activation requires controller level reset"),
    (0x12, "firmware activation requires maximum time violation"),
    (0x13, "firmware activation prohibited"),
    (0x14, "overlapping range"),
    (0x15, "namespace insufficient capacity"),
    (0x16, "namespace identifier unavailable"),
    (0x18, "namespace already attached"),
    (0x19, "namespace is private"),
    (0x1a, "namespace not attached"),
    (0x1b, "thin provisioning not supported"),
    (0x1c, "controller list invalid"),
    (0x1d, "device self-test in progress"),
    (0x1e, "boot partition write prohibited"),
    (0x1f, "invalid controller identifier"),
    (0x20, "invalid secondary controller state"),
    (0x21, "invalid number of controller resources"),
    (0x22, "invalid resource identifier"),
    (0x23, "sanitize prohibited while persistent memory region is enabled"),
    (0x24, "ANA group identifier invalid"),
    (0x25, "ANA attach failed"),
    (0x26, "insufficient capacity"),
    (0x27, "namespace attachment limit exceeded"),
    (0x28, "prohibition of command execution not supported"),
    (0x29, "I/O command set not supported"),
    (0x2a, "I/O command set not enabled"),
    (0x2b, "I/O command set combination rejected"),
    (0x2c, "invalid I/O command set"),
    (0x2d, "identifier unavailable"),
    (0x80, "conflicting attributes"),
    (0x81, "invalid protection information"),
    (0x82, "attempted write to read only range"),
    (0x83, "command size limit exceeded"),
    (0xb8, "zoned boundary error"),
    (0xb9, "zone is full"),
    (0xba, "zone is read only"),
    (0xbb, "zone is offline"),
    (0xbc, "zone invalid write"),
    (0xbd, "too many active zones"),
    (0xbe, "too many open zones"),
    (0xbf, "invalid zone state transition"),
];

const MEDIA_CODES: &[(u8, &str)] = &[
    (0x80, "write fault"),
    (0x81, "unrecovered read error"),
    (0x82, "end-to-end guard check error"),
    (0x83, "end-to-end application tag check error"),
    (0x84, "end-to-end reference tag check error"),
    (0x85, "compare failure"),
    (0x86, "access denied"),
    (0x87, "deallocated or unwritten logical block"),
    (0x88, "end-to-end storage tag check error"),
];

const PATH_CODES: &[(u8, &str)] = &[
    (0x00, "internal path error"),
    (0x01, "asymmetric access persistent loss"),
    (0x02, "asymmetric access inaccessible"),
    (0x03, "asymmetric access transition"),
    (0x60, "controller pathing error"),
    (0x70, "host pathing error"),
    (0x71, "command aborted by host"),
];

#[cfg(test)]
mod tests {
    use super::{GENERIC, MEDIA, PATH, Status};

    #[test]
    fn what_the_medium_says_is_final_and_what_a_moment_says_is_not() {
        assert!(!Status::of(MEDIA, 0x81).may_retry(), "an unrecovered read error");
        assert!(!Status::of(MEDIA, 0x80).may_retry(), "a write fault");
        assert!(Status::of(GENERIC, 0x06).may_retry(), "an internal error");
        assert!(!Status::of(GENERIC, 0x06).dnr().may_retry(), "the controller says that it stays so");
        assert!(Status::of(PATH, 0x70).may_retry());
        assert!(!Status::SUCCESS.may_retry());
    }

    #[test]
    fn every_status_has_a_text() {
        for bits in 0..=u16::MAX >> 1 {
            let status = Status(bits);
            assert!(!status.to_string().is_empty());
            assert_eq!(status.ok(), status.kind() == 0 && status.code() == 0);
            assert!(!(status.ok() && status.may_retry()));
        }
        assert_eq!(
            Status::of(MEDIA, 0x81).dnr().to_string(),
            "unrecovered read error (type 2h, code 81h, do not retry)"
        );
    }
}
