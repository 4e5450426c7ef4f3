//! The one way in which a call is carried out, whatever door it came through.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use base::{ErrorCode, Millis, Mono, limits};
use futures::future::{Either, FutureExt, select};
use futures::stream::{Stream, StreamExt};
use serde_json::Value;

use crate::idempotency::{Claim, Results, Turn};
use crate::limit::{Limiter, Permit};
use crate::operation::{Call, ItemStream, Operation, Output};
use crate::{
    Authenticator, Clock, Credentials, Ended, Idempotency, Limits, Observer, Once, OpError, Permission, Principal,
    Record, Registry, Stage,
};

/// What any operation may fail with, because of the stages around its handler.
pub(crate) const PIPELINE_ERRORS: [ErrorCode; 6] = [
    ErrorCode::Internal,
    ErrorCode::InvalidArgument,
    ErrorCode::Unauthenticated,
    ErrorCode::PermissionDenied,
    ErrorCode::Busy,
    ErrorCode::DeadlineExceeded,
];

/// One call, as a door hands it in.
#[derive(Clone, Debug, Default)]
pub struct Invocation {
    /// Which door, for the audit trail.
    pub door: &'static str,
    /// The operation's name; need not exist.
    pub operation: String,
    pub credentials: Credentials,
    /// Unchecked.
    pub input: Value,
    /// How long the caller will wait; cut at the operation's longest deadline.
    pub deadline: Option<Millis>,
    /// Unchecked; ignored by operations that are idempotent anyway.
    pub idempotency_key: Option<String>,
}

/// Carries out calls. One per process, shared by its doors.
pub struct Pipeline<C> {
    registry: Arc<Registry<C>>,
    context: Arc<C>,
    clock: Arc<dyn Clock>,
    authenticator: Arc<dyn Authenticator>,
    observer: Arc<dyn Observer>,
    limiter: Limiter,
    results: Results,
    calls: AtomicU64,
}

impl<C: Send + Sync + 'static> Pipeline<C> {
    /// A pipeline that hands `context` to the handlers.
    pub fn new(
        registry: Arc<Registry<C>>,
        context: Arc<C>,
        clock: Arc<dyn Clock>,
        authenticator: Arc<dyn Authenticator>,
        observer: Arc<dyn Observer>,
    ) -> Self {
        Pipeline {
            registry,
            context,
            clock,
            authenticator,
            observer,
            limiter: Limiter::default(),
            results: Results::default(),
            calls: AtomicU64::new(0),
        }
    }

    /// The operations that it carries out.
    #[must_use]
    pub fn registry(&self) -> &Arc<Registry<C>> {
        &self.registry
    }

    /// Carries out one call. Dropping the future (or the stream that it gave) abandons the call; the observer is told
    /// in any case.
    ///
    /// # Errors
    /// Whatever stage refuses it, or what the handler failed with.
    pub async fn invoke(&self, invocation: Invocation) -> Result<Output, OpError> {
        let mut account = self.open_account(&invocation);
        let (principal, operation) = match self.admit(&invocation, &mut account) {
            Ok(admitted) => admitted,
            Err(error) => return Err(account.fail(error)),
        };
        let spec = operation.spec();
        account.record.stage = Stage::Validate;
        let once = match once_of(operation, &principal, &invocation) {
            Ok(once) => once,
            Err(error) => return Err(account.fail(error)),
        };
        let prepared = match (operation.prepare)(invocation.input) {
            Ok(prepared) => prepared,
            Err(error) => return Err(account.fail(error)),
        };
        account.record.stage = Stage::RateLimit;
        let permit = match self.limiter.admit(&principal.name, spec.name, &spec.limits, account.started) {
            Ok(permit) => permit,
            Err(error) => return Err(account.fail(error)),
        };
        let turn = match (&once, &invocation.idempotency_key) {
            (Some(once), Some(key)) => {
                match self.results.claim(&principal.name, spec.name, key, once.digest(), account.started) {
                    Ok(Claim::First(turn)) => Some(turn),
                    Ok(Claim::Again(value)) => {
                        account.end(Ended::Replayed);
                        return Ok(Output::Value(value));
                    }
                    Err(error) => return Err(account.fail(error)),
                }
            }
            _ => None,
        };
        account.record.stage = Stage::Run;
        let allowed = allowed_time(&spec.limits, invocation.deadline);
        let call = Call {
            context: Arc::clone(&self.context),
            clock: Arc::clone(&self.clock),
            principal,
            deadline: account.started.plus(allowed),
            idempotency_key: invocation.idempotency_key,
            once,
            id: account.record.id,
        };
        match self.run(prepared, call, allowed, &mut account).await {
            Ok(output) => Ok(self.deliver(output, permit, turn.filter(|_| !spec.resumes), account)),
            Err(error) => {
                account.record.undeclared =
                    !spec.errors.contains(&error.code) && !PIPELINE_ERRORS.contains(&error.code);
                Err(account.fail(error))
            }
        }
    }

    /// Whether somebody may have `what`, which is no operation, and who it is.
    ///
    /// # Errors
    /// As of an operation that needs this permission.
    pub fn authorize(&self, credentials: &Credentials, what: &str, needed: Permission) -> Result<Principal, OpError> {
        let principal = self.authenticator.authenticate(credentials)?;
        permitted(&principal, what, needed)?;
        Ok(principal)
    }

    /// The stages that need no input: who asks, and may they.
    fn admit(&self, invocation: &Invocation, account: &mut Account) -> Result<(Principal, &Operation<C>), OpError> {
        let principal = self.authenticator.authenticate(&invocation.credentials)?;
        account.record.principal = Some(principal.name.clone());
        account.record.stage = Stage::Authorize;
        let Some(operation) = self.registry.get(&invocation.operation) else {
            let error =
                OpError::new(ErrorCode::NotFound, format!("there is no operation `{}`", account.record.operation));
            return Err(match self.registry.nearest(&invocation.operation) {
                Some(near) => error.hint(format!("did you mean `{near}`?")),
                None => error,
            });
        };
        account.record.known = true;
        permitted(&principal, operation.spec().name, operation.spec().permission)?;
        Ok((principal, operation))
    }

    /// Runs the handler, isolated, until its deadline.
    async fn run(
        &self,
        prepared: crate::operation::Prepared<C>,
        call: Call<C>,
        allowed: Millis,
        account: &mut Account,
    ) -> Result<Output, OpError> {
        // Whoever is asked inside gives up at the deadline, and says what it waited for: that is worth a moment.
        let until = self.clock.sleep_until(call.deadline.plus(limits::OPERATION_LAST_WORD));
        // The handler's first lines run inside the future too, so that their panics are caught as well.
        let handler = AssertUnwindSafe(async move { prepared(call).await }).catch_unwind();
        match select(Box::pin(handler), until).await {
            Either::Left((Ok(result), _)) => result,
            Either::Left((Err(panic), _)) => {
                account.record.panicked = true;
                Err(panicked(&account.record.operation, panic.as_ref()))
            }
            Either::Right(_) => Err(OpError::new(
                ErrorCode::DeadlineExceeded,
                format!("{} did not end within {allowed}", account.record.operation),
            )
            .hint("what was asked for may still have been done: look before you ask again")),
        }
    }

    fn deliver(&self, output: Output, permit: Permit, turn: Option<Turn>, account: Account) -> Output {
        match output {
            Output::Value(value) => {
                if let Some(turn) = turn {
                    turn.keep(&value, self.clock.now().mono);
                }
                drop(permit);
                account.end(Ended::Ok);
                Output::Value(value)
            }
            Output::Stream(items) => Output::Stream(guarded(items, permit, account).boxed()),
        }
    }

    fn open_account(&self, invocation: &Invocation) -> Account {
        Account {
            started: self.clock.now().mono,
            clock: Arc::clone(&self.clock),
            observer: Arc::clone(&self.observer),
            closed: false,
            record: Record {
                id: self.calls.fetch_add(1, Ordering::Relaxed) + 1,
                door: invocation.door,
                operation: invocation.operation.chars().take(64).collect(),
                known: false,
                principal: None,
                stage: Stage::Authenticate,
                ended: Ended::Abandoned,
                message: None,
                undeclared: false,
                panicked: false,
                items: 0,
                took: Millis(0),
                took_ns: 0,
            },
        }
    }
}

fn permitted(principal: &Principal, what: &str, needed: Permission) -> Result<(), OpError> {
    if principal.permission >= needed {
        return Ok(());
    }
    let (name, needed, has) = (&principal.name, needed.as_str(), principal.permission.as_str());
    let message = format!("{what} needs the permission `{needed}`, and {name} has `{has}`");
    Err(OpError::new(ErrorCode::PermissionDenied, message).hint("ask somebody who has it"))
}

/// What makes the call known again, if it has a key and the operation heeds that. Without a key it costs nothing.
fn once_of<C: Send + Sync + 'static>(
    operation: &Operation<C>,
    principal: &Principal,
    invocation: &Invocation,
) -> Result<Option<Once>, OpError> {
    let Some(key) = &invocation.idempotency_key else { return Ok(None) };
    if key.is_empty() || key.len() > limits::IDEMPOTENCY_KEY_BYTES_MAX {
        return Err(OpError::new(
            ErrorCode::InvalidArgument,
            format!("an Idempotency-Key has 1 to {} bytes, this one {}", limits::IDEMPOTENCY_KEY_BYTES_MAX, key.len()),
        ));
    }
    let spec = operation.spec();
    let heeds = spec.idempotency == Idempotency::Keyed && !spec.streams;
    Ok(heeds.then(|| Once::of(&principal.name, spec.name, key, &invocation.input)))
}

fn allowed_time(limits: &Limits, asked: Option<Millis>) -> Millis {
    asked.unwrap_or(limits.deadline).min(limits.deadline_max)
}

fn panicked(operation: &str, panic: &(dyn std::any::Any + Send)) -> OpError {
    let text = panic
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "no message".into());
    OpError::new(ErrorCode::Internal, format!("{operation} panicked: {text}"))
        .hint("this is a bug in muster: please report it with the node's log")
}

/// The items of a stream, counted, with panics caught; holds the call's permit and closes its account at the end.
fn guarded(items: ItemStream, permit: Permit, account: Account) -> impl Stream<Item = Result<Value, OpError>> + Send {
    let items = AssertUnwindSafe(items).catch_unwind();
    futures::stream::unfold(Some((items, permit, account)), |state| async move {
        let (mut items, permit, mut account) = state?;
        match items.next().await {
            None => {
                account.end(Ended::Ok);
                None
            }
            Some(Ok(Ok(value))) => {
                account.record.items += 1;
                Some((Ok(value), Some((items, permit, account))))
            }
            Some(Ok(Err(error))) => Some((Err(account.fail(error)), None)),
            Some(Err(panic)) => {
                account.record.panicked = true;
                let error = panicked(&account.record.operation, panic.as_ref());
                Some((Err(account.fail(error)), None))
            }
        }
    })
}

/// A call's record while it is under way. Whatever way the call ends, the observer is told once.
struct Account {
    record: Record,
    started: Mono,
    clock: Arc<dyn Clock>,
    observer: Arc<dyn Observer>,
    closed: bool,
}

impl Account {
    fn fail(mut self, error: OpError) -> OpError {
        self.record.message = Some(error.message.clone());
        self.end(Ended::Failed(error.code));
        error
    }

    fn end(mut self, ended: Ended) {
        self.close(ended);
    }

    fn close(&mut self, ended: Ended) {
        if std::mem::replace(&mut self.closed, true) {
            return;
        }
        self.record.ended = ended;
        let now = self.clock.now().mono;
        self.record.took = now.since(self.started);
        self.record.took_ns = now.0.saturating_sub(self.started.0);
        self.observer.audit(&self.record);
        self.observer.metrics(&self.record);
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        self.close(Ended::Abandoned);
    }
}
