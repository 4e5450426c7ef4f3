//! Reading a partition that has a replica here: from its tail in memory, or from the journal below it.

use base::limits::{LOG_READ_BYTES_MAX, REQUEST_DEADLINE_DEFAULT};
use base::{ErrorCode, Millis};
use engine::{PartitionBatches, ReadLog, ReadPartition, Reply, Request, RequestError, Target};
use stream::FetchPlan;

use crate::handle::NodeHandle;

/// Committed batches from an offset on, as the leader has them.
pub(crate) async fn read(handle: &NodeHandle, read: ReadPartition) -> Result<PartitionBatches, RequestError> {
    let failed = |code, message: String| RequestError { code, message, leader: None };
    let Some(reader) = handle.reader(read.group) else {
        return Err(failed(ErrorCode::NotLeader, format!("group {} has no replica on this node", read.group)));
    };
    let bytes_max = (read.bytes_max as usize).min(LOG_READ_BYTES_MAX);
    let (plan, mut out) = {
        let reader = reader.read();
        let out = PartitionBatches {
            batches: Vec::new(),
            high_watermark: reader.high_watermark(),
            log_start_offset: reader.log_start_offset(),
        };
        let offset = read.offset.max(out.log_start_offset);
        (reader.plan_fetch(offset, bytes_max, None, true), out)
    };
    match plan {
        FetchPlan::Tail(batches) => out.batches = batches,
        FetchPlan::Wait | FetchPlan::OutOfRange => {}
        FetchPlan::ReadLog { low, high, bytes_max, .. } => {
            let request = Request::ReadLog(ReadLog { group: read.group, low, high, bytes_max });
            let within: Millis = REQUEST_DEADLINE_DEFAULT;
            match handle.request_within(within, Target::Here, request).await? {
                Reply::Batches { batches, .. } => out.batches = batches,
                other => return Err(failed(ErrorCode::Internal, format!("unexpected answer {other:?}"))),
            }
        }
        _ => {
            let message = format!("this node does not lead group {} any more", read.group);
            return Err(failed(ErrorCode::NotLeader, message));
        }
    }
    Ok(out)
}
