//! Conditions on reads, in RFC 9110's order, and on writes, as S3 takes them.

use crate::refusal::Refusal;
use cobalt_rpc::proto::cas::Condition;
use cobalt_rpc::proto::record::ObjectRecord;
use http::StatusCode;
use s3s::S3Error;
use s3s::dto::{ETag, ETagCondition, Timestamp};

/// What a GET or HEAD asks of the object.
#[derive(Default)]
pub struct Read<'a> {
    pub if_match: Option<&'a ETagCondition>,
    pub if_none_match: Option<&'a ETagCondition>,
    pub if_modified_since: Option<&'a Timestamp>,
    pub if_unmodified_since: Option<&'a Timestamp>,
}

/// Whether the object is to be sent, or why not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Send,
    NotModified,
    Failed,
}

fn names(condition: &ETagCondition, etag: &str) -> bool {
    match condition {
        ETagCondition::Any => true,
        // s3s takes a list for one tag; ours are digits and dashes, so what lies between the quotes tells them apart.
        ETagCondition::ETag(tag) => tag.value().split(',').any(|one| {
            let one = one.trim();
            one.strip_prefix("W/").unwrap_or(one).trim_matches('"') == etag
        }),
    }
}

/// HTTP dates have whole seconds.
fn seconds(time: &Timestamp) -> u64 {
    let time: time::OffsetDateTime = time.clone().into();
    u64::try_from(time.unix_timestamp()).unwrap_or(0)
}

impl Read<'_> {
    /// Judges an object.
    pub fn judge(&self, record: &ObjectRecord) -> Verdict {
        let modified = record.modified.0 / 1000;
        let holds = match (self.if_match, self.if_unmodified_since) {
            (Some(condition), _) => names(condition, &record.etag),
            (None, Some(time)) => modified <= seconds(time),
            (None, None) => true,
        };
        if !holds {
            return Verdict::Failed;
        }
        let fresh = match (self.if_none_match, self.if_modified_since) {
            (Some(condition), _) => !names(condition, &record.etag),
            (None, Some(time)) => modified > seconds(time),
            (None, None) => true,
        };
        if fresh { Verdict::Send } else { Verdict::NotModified }
    }
}

/// The condition of a write.
///
/// # Errors
/// 501 for what S3 does not have: If-None-Match with anything but `*`.
pub fn write(
    if_match: Option<&ETagCondition>,
    if_none_match: Option<&ETagCondition>,
) -> Result<Condition, S3Error> {
    let absent = match if_none_match {
        None => false,
        Some(ETagCondition::Any) => true,
        Some(ETagCondition::ETag(_)) => {
            return Err(Refusal::lacking("If-None-Match of a write with anything but *").into());
        }
    };
    let if_match = match if_match {
        None => None,
        Some(ETagCondition::ETag(ETag::Strong(tag) | ETag::Weak(tag))) => Some(tag.clone()),
        Some(ETagCondition::Any) => return Err(Refusal::lacking("If-Match of a write with *").into()),
    };
    if absent && if_match.is_some() {
        return Err(Refusal::bad("InvalidRequest", "If-Match and If-None-Match exclude each other.").into());
    }
    Ok(Condition { absent, if_match })
}

/// Whether anything is asked.
pub fn is_any(condition: &Condition) -> bool {
    condition.absent || condition.if_match.is_some()
}

/// Holds a write's condition against what is there now, before the body.
///
/// # Errors
/// 412, or 404 for If-Match on nothing.
pub fn precheck(condition: &Condition, found: Option<&ObjectRecord>) -> Result<(), Refusal> {
    let failed = || {
        Refusal::new(
            StatusCode::PRECONDITION_FAILED,
            "PreconditionFailed",
            "At least one of the pre-conditions you specified did not hold.",
        )
    };
    match (found, &condition.if_match) {
        (None, Some(_)) => Err(Refusal::new(StatusCode::NOT_FOUND, "NoSuchKey", "The key does not exist.")),
        (Some(record), Some(etag)) if record.etag != *etag => Err(failed()),
        (Some(_), None) if condition.absent => Err(failed()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::{Read, Verdict, precheck};
    use cobalt_base::UnixMillis;
    use cobalt_rpc::proto::cas::Condition;
    use cobalt_rpc::proto::record::{Body, ObjectMeta, ObjectRecord};
    use s3s::dto::ETagCondition;

    fn record() -> ObjectRecord {
        ObjectRecord {
            size: 0,
            modified: UnixMillis(1_000_500),
            etag: "abc".to_owned(),
            body: Body::Empty,
            meta: ObjectMeta::default(),
            checksums: Vec::new(),
        }
    }

    #[test]
    fn reads_are_judged_in_the_order_of_the_rfc() {
        let tag = |text: &str| text.parse::<ETagCondition>().unwrap();
        let (same, other) = (tag("\"abc\""), tag("\"x\""));
        let at = |seconds: i64| time::OffsetDateTime::from_unix_timestamp(seconds).unwrap().into();
        let (before, same_second) = (at(999), at(1000));
        let judge = |read: Read<'_>| read.judge(&record());
        assert_eq!(judge(Read::default()), Verdict::Send);
        assert_eq!(judge(Read { if_match: Some(&other), ..Read::default() }), Verdict::Failed);
        assert_eq!(judge(Read { if_none_match: Some(&same), ..Read::default() }), Verdict::NotModified);
        assert_eq!(
            judge(Read { if_modified_since: Some(&same_second), ..Read::default() }),
            Verdict::NotModified
        );
        assert_eq!(judge(Read { if_modified_since: Some(&before), ..Read::default() }), Verdict::Send);
        assert_eq!(judge(Read { if_unmodified_since: Some(&before), ..Read::default() }), Verdict::Failed);
        for list in ["\"x\", \"abc\"", "\"abc\",\"x\"", "\"x\", W/\"abc\"", "\"x\",\"abc\", \"y\""] {
            let list = tag(list);
            assert_eq!(judge(Read { if_none_match: Some(&list), ..Read::default() }), Verdict::NotModified);
            assert_eq!(judge(Read { if_match: Some(&list), ..Read::default() }), Verdict::Send);
        }
        let list = tag("\"x\", \"ab\"");
        assert_eq!(judge(Read { if_none_match: Some(&list), ..Read::default() }), Verdict::Send);
        // An ETag that holds makes the date irrelevant.
        let both = Read { if_match: Some(&same), if_unmodified_since: Some(&before), ..Read::default() };
        assert_eq!(judge(both), Verdict::Send);
        let both =
            Read { if_none_match: Some(&other), if_modified_since: Some(&same_second), ..Read::default() };
        assert_eq!(judge(both), Verdict::Send);
    }

    #[test]
    fn writes_are_judged_before_their_body() {
        let absent = Condition { absent: true, if_match: None };
        let matches = Condition { absent: false, if_match: Some("abc".to_owned()) };
        let status = |condition: &Condition, found: Option<&ObjectRecord>| {
            precheck(condition, found).map_err(|r| r.status.as_u16())
        };
        assert_eq!(status(&absent, None), Ok(()));
        assert_eq!(status(&absent, Some(&record())), Err(412));
        assert_eq!(status(&matches, None), Err(404));
        assert_eq!(status(&matches, Some(&record())), Ok(()));
        let other = ObjectRecord { etag: "x".to_owned(), ..record() };
        assert_eq!(status(&matches, Some(&other)), Err(412));
    }
}
