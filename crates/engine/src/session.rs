//! This process's session in `__meta`, under which its commands are applied once.

use std::collections::BTreeSet;

use base::{ErrorCode, GroupId, Millis, Mono, SessionId};
use metadata::{Command, CommandOrigin, CommandResult};

use crate::core::NodeCore;
use crate::requests::Internal;
use crate::{Reply, Request, RequestError, Target};

/// Between two tries to open it.
const RETRY: Millis = Millis(500);

#[derive(Debug, Default, PartialEq, Eq)]
enum Open {
    #[default]
    No,
    UnderWay,
    Yes(SessionId),
}

/// The session, and which of its commands are still under way.
#[derive(Debug, Default)]
pub(crate) struct Session {
    open: Open,
    sequence: u64,
    under_way: BTreeSet<u64>,
    retry_at: Option<Mono>,
    node_told: bool,
}

impl Session {
    /// The next command's place; `None` while there is no session.
    pub fn next(&mut self) -> Option<CommandOrigin> {
        let Open::Yes(session) = self.open else { return None };
        self.sequence += 1;
        self.under_way.insert(self.sequence);
        let acknowledged = self.under_way.first().map_or(self.sequence, |first| first - 1);
        Some(CommandOrigin { session, sequence: self.sequence, acknowledged })
    }

    /// A command's outcome is known (or nobody waits for it any more).
    pub fn settled(&mut self, sequence: u64) {
        self.under_way.remove(&sequence);
    }

    pub fn is_open(&self) -> bool {
        matches!(self.open, Open::Yes(_))
    }

    /// The cluster does not know the session (any more).
    pub fn lost(&mut self) {
        self.open = Open::No;
        self.under_way.clear();
    }
}

impl NodeCore {
    pub(crate) fn session_tick(&mut self) {
        if self.session.retry_at.is_some_and(|at| at <= self.now.mono) {
            self.session.retry_at = None;
        }
    }

    /// Opens the session when there is none, then tells the cluster where this node is and what it can carry.
    pub(crate) fn drive_session(&mut self) {
        if self.session.retry_at.is_some() || !self.groups.contains_key(&GroupId::META) {
            return;
        }
        let me = &self.config.me;
        match self.session.open {
            Open::No => {
                self.session.open = Open::UnderWay;
                let open = Command::OpenSession { node: me.node, incarnation: self.config.incarnation };
                self.ask(Internal::OpenSession, Target::Leader(GroupId::META), Request::Command(open));
            }
            Open::Yes(_) if !self.session.node_told => {
                self.session.node_told = true;
                let mut member = me.clone();
                if let Some(known) = self.metadata.nodes.get(&me.node)
                    && member.name.is_empty()
                {
                    member.name.clone_from(&known.member.name);
                }
                let update = Request::Command(Command::UpdateNode { member });
                self.ask(Internal::UpdateNode, Target::Leader(GroupId::META), update);
            }
            _ => {}
        }
    }

    pub(crate) fn session_opened(&mut self, outcome: Result<Reply, RequestError>) {
        match outcome {
            Ok(Reply::Command { result: CommandResult::SessionOpened { session }, .. }) => {
                self.session.open = Open::Yes(session);
            }
            Ok(Reply::Command { result: CommandResult::Refused { code: ErrorCode::StaleEpoch, message }, .. }) => {
                self.fatal(format!("{message}: another copy of this data directory runs or ran elsewhere"));
            }
            _ => {
                self.session.open = Open::No;
                self.session.retry_at = Some(self.now.mono.plus(RETRY));
            }
        }
    }

    pub(crate) fn node_updated(&mut self, outcome: Result<Reply, RequestError>) {
        match outcome {
            Ok(Reply::Command { result: CommandResult::Done, .. }) => {}
            Ok(Reply::Command { result: CommandResult::Refused { code, message }, .. })
                if !matches!(code, ErrorCode::Busy | ErrorCode::UnknownSession) =>
            {
                self.fatal(format!("the cluster refuses this node: {message}"));
            }
            _ => {
                self.session.node_told = false;
                self.session.retry_at = Some(self.now.mono.plus(RETRY));
            }
        }
    }
}
