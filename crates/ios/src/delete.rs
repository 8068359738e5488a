//! Deletes: durable, and final. A late write of a deleted cob is refused.

use crate::Ios;
use cobalt_rpc::proto::ios::{COBS_MAX, Delete, IosError};
use futures::future::try_join_all;

/// Serves a [`Delete`]. The deletes run together, so that they share group commits; all of them may be repeated.
pub(crate) async fn delete(ios: &Ios, request: Delete) -> Result<(), IosError> {
    if request.fids.len() > COBS_MAX {
        return Err(IosError::Malformed(format!("{} cobs are more than {COBS_MAX}", request.fids.len())));
    }
    let target = ios.target(request.target)?;
    let store = target.store()?;
    let each = request.fids.iter().map(async |fid| {
        let refused = |error| target.refusal(error, 0);
        if let Some(info) = store.cob_stat(*fid).await.map_err(refused)?
            && info.incarnation != request.incarnation
        {
            // A catalogue that was made anew knows nothing of this cob: that is no reason to delete it (I9a).
            return Err(IosError::Incarnation { have: info.incarnation, want: request.incarnation });
        }
        store.cob_delete(*fid).await.map_err(refused)
    });
    try_join_all(each).await.map(drop)
}
