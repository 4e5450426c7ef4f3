//! Sessions: a command is applied once, however often it is sent.

use base::limits::{SESSION_RESULTS_MAX, SESSIONS_MAX};
use base::simulation::{Mark, Plant, mark, planted};
use base::{ErrorCode, Incarnation, NodeId, SessionId};

use crate::apply::refuse;
use crate::{CommandOrigin, CommandResult, Metadata, SessionRecord};

impl Metadata {
    /// One session per process of a node: the sessions of its earlier processes end here, so that their commands that
    /// are still under way are refused, never applied late.
    pub(crate) fn open_session(&mut self, node: NodeId, incarnation: Incarnation) -> CommandResult {
        let of_node: Vec<_> =
            self.sessions.iter().filter(|(_, s)| s.node == node).map(|(id, s)| (*id, s.incarnation)).collect();
        for (id, known) in &of_node {
            if *known == incarnation {
                mark(Mark::SessionOpenedTwice);
                return CommandResult::SessionOpened { session: *id };
            }
            if *known > incarnation {
                mark(Mark::SessionOfOlderProcess);
                let message = format!("node {node} has a newer process ({known}) than {incarnation}");
                return refuse(ErrorCode::StaleEpoch, message);
            }
        }
        if self.sessions.len() - of_node.len() >= SESSIONS_MAX {
            return refuse(ErrorCode::Busy, format!("{SESSIONS_MAX} sessions are open"));
        }
        for (id, _) in of_node {
            self.sessions.remove(&id);
        }
        self.next.session += 1;
        let session = SessionId(self.next.session);
        let record = SessionRecord { node, incarnation, results: Default::default(), acknowledged: 0 };
        self.sessions.insert(session, record);
        CommandResult::SessionOpened { session }
    }

    /// `Err` with the answer if the command must not be applied (again).
    pub(crate) fn begin_in_session(&mut self, origin: CommandOrigin) -> Result<(), CommandResult> {
        let Some(session) = self.sessions.get_mut(&origin.session) else {
            mark(Mark::SessionUnknown);
            return Err(refuse(ErrorCode::UnknownSession, format!("session {} is unknown or ended", origin.session)));
        };
        if let Some(known) = session.results.get(&origin.sequence).filter(|_| !planted(Plant::CommandsRepeated)) {
            mark(Mark::CommandRepeated);
            return Err(known.clone());
        }
        if origin.sequence <= session.acknowledged {
            mark(Mark::CommandRepeatedTooLate);
            let message = format!("command {} of session {} was acknowledged", origin.sequence, origin.session);
            return Err(refuse(ErrorCode::UnknownSession, message));
        }
        if origin.acknowledged > session.acknowledged {
            session.acknowledged = origin.acknowledged;
            while let Some((sequence, _)) = session.results.get_min().filter(|(it, _)| *it <= origin.acknowledged) {
                let sequence = *sequence;
                session.results.remove(&sequence);
            }
        }
        if session.results.len() >= SESSION_RESULTS_MAX {
            return Err(refuse(ErrorCode::Busy, format!("session {} holds too many results", origin.session)));
        }
        Ok(())
    }

    pub(crate) fn end_in_session(&mut self, origin: CommandOrigin, result: CommandResult) {
        if let Some(session) = self.sessions.get_mut(&origin.session) {
            session.results.insert(origin.sequence, result);
        }
    }
}

/// `#[cbor(with = "crate::sessions::results")]`: results by sequence, as a map.
pub(crate) mod results {
    use std::collections::BTreeMap;

    use imbl::OrdMap;
    use minicbor::decode::{Decoder, Error as DecodeError};
    use minicbor::encode::{Encoder, Error as EncodeError, Write};
    use minicbor::{Decode, Encode};

    use crate::CommandResult;

    pub fn encode<C, W: Write>(
        results: &OrdMap<u64, CommandResult>,
        e: &mut Encoder<W>,
        context: &mut C,
    ) -> Result<(), EncodeError<W::Error>> {
        e.map(results.len() as u64)?;
        for (sequence, result) in results {
            sequence.encode(e, context)?;
            result.encode(e, context)?;
        }
        Ok(())
    }

    pub fn decode<C>(d: &mut Decoder<'_>, context: &mut C) -> Result<OrdMap<u64, CommandResult>, DecodeError> {
        Ok(BTreeMap::<u64, CommandResult>::decode(d, context)?.into_iter().collect())
    }
}
