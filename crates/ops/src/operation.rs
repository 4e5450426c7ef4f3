//! An operation: its spec and its handler.

use std::future::Future;
use std::sync::Arc;

use base::{ErrorCode, Mono};
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt};
use schemars::JsonSchema;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::spec::{Example, FollowUp, Human, Idempotency, Limits, Method, Permission, Route, Scope, Spec};
use crate::{Clock, Once, OpError, Principal, schema_of, validate};

/// Items of a streaming output, as JSON.
pub type ItemStream = BoxStream<'static, Result<Value, OpError>>;
/// Items of a streaming output, as the handler makes them.
pub type Typed<T> = BoxStream<'static, Result<T, OpError>>;

/// What a call gave.
pub enum Output {
    Value(Value),
    Stream(ItemStream),
}

/// What a handler knows of the call that it carries out.
pub struct Call<C> {
    /// What the operations of this process work with.
    pub context: Arc<C>,
    pub clock: Arc<dyn Clock>,
    pub principal: Principal,
    /// After it nobody waits for the result any more (of a stream: for its first item to be under way).
    pub deadline: Mono,
    /// As given by the caller, checked for length.
    pub idempotency_key: Option<String>,
    /// With such a key: what makes its commands be carried out once in the cluster.
    pub once: Option<Once>,
    /// Of the call in this process, as in the audit trail.
    pub id: u64,
}

pub(crate) type Prepared<C> = Box<dyn FnOnce(Call<C>) -> BoxFuture<'static, Result<Output, OpError>> + Send>;
type Prepare<C> = Box<dyn Fn(Value) -> Result<Prepared<C>, OpError> + Send + Sync>;

/// One operation over a context `C`.
pub struct Operation<C> {
    pub(crate) spec: Spec,
    pub(crate) prepare: Prepare<C>,
}

impl<C: Send + Sync + 'static> Operation<C> {
    /// An operation with one output. What is not set afterwards is: `Read`, `Local`, default limits, no errors.
    pub fn new<I, O, F, Fut>(name: &'static str, summary: &'static str, route: (Method, &'static str), run: F) -> Self
    where
        I: DeserializeOwned + JsonSchema + Send + 'static,
        O: Serialize + JsonSchema + Send + 'static,
        F: Fn(Call<C>, I) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<O, OpError>> + Send + 'static,
    {
        let spec = spec::<I, O>(name, summary, route, false);
        let (schema, run) = (spec.input.clone(), Arc::new(run));
        let prepare: Prepare<C> = Box::new(move |value| {
            let input: I = parse(&schema, value)?;
            let run = Arc::clone(&run);
            let prepared: Prepared<C> = Box::new(move |call| {
                async move {
                    let output = run(call, input).await?;
                    encode(&output).map(Output::Value)
                }
                .boxed()
            });
            Ok(prepared)
        });
        Operation { spec, prepare }
    }

    /// An operation whose output is a stream of items.
    pub fn streaming<I, T, F, Fut>(
        name: &'static str,
        summary: &'static str,
        route: (Method, &'static str),
        run: F,
    ) -> Self
    where
        I: DeserializeOwned + JsonSchema + Send + 'static,
        T: Serialize + JsonSchema + Send + 'static,
        F: Fn(Call<C>, I) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Typed<T>, OpError>> + Send + 'static,
    {
        let spec = spec::<I, T>(name, summary, route, true);
        let (schema, run) = (spec.input.clone(), Arc::new(run));
        let prepare: Prepare<C> = Box::new(move |value| {
            let input: I = parse(&schema, value)?;
            let run = Arc::clone(&run);
            let prepared: Prepared<C> = Box::new(move |call| {
                async move {
                    let items = run(call, input).await?;
                    Ok(Output::Stream(items.map(|item| encode(&item?)).boxed()))
                }
                .boxed()
            });
            Ok(prepared)
        });
        Operation { spec, prepare }
    }

    /// What it says of itself.
    #[must_use]
    pub fn spec(&self) -> &Spec {
        &self.spec
    }

    #[must_use]
    pub fn docs(mut self, docs: &'static str) -> Self {
        self.spec.docs = docs;
        self
    }

    #[must_use]
    pub fn examples(mut self, examples: &'static [Example]) -> Self {
        self.spec.examples = examples;
        self
    }

    #[must_use]
    pub fn permission(mut self, permission: Permission) -> Self {
        self.spec.permission = permission;
        self
    }

    #[must_use]
    pub fn scope(mut self, scope: Scope) -> Self {
        self.spec.scope = scope;
        self
    }

    #[must_use]
    pub fn idempotency(mut self, idempotency: Idempotency) -> Self {
        self.spec.idempotency = idempotency;
        self
    }

    #[must_use]
    pub fn errors(mut self, errors: &'static [ErrorCode]) -> Self {
        self.spec.errors = errors;
        self
    }

    #[must_use]
    pub fn limits(mut self, limits: Limits) -> Self {
        self.spec.limits = limits;
        self
    }

    #[must_use]
    pub fn single(mut self, field: &'static str) -> Self {
        self.spec.single = Some(field);
        self
    }

    #[must_use]
    pub fn resumes(mut self) -> Self {
        self.spec.resumes = true;
        self
    }

    #[must_use]
    pub fn words(mut self, words: &'static [&'static str]) -> Self {
        self.spec.words = words;
        self
    }

    #[must_use]
    pub fn aliases(mut self, aliases: &'static [&'static str]) -> Self {
        self.spec.aliases = aliases;
        self
    }

    #[must_use]
    pub fn positional(mut self, fields: &'static [&'static str]) -> Self {
        self.spec.positional = fields;
        self
    }

    #[must_use]
    pub fn short(mut self, letters: &'static [(&'static str, char)]) -> Self {
        self.spec.short = letters;
        self
    }

    #[must_use]
    pub fn follow_up(mut self, follow_up: FollowUp) -> Self {
        self.spec.follow_up = Some(follow_up);
        self
    }

    #[must_use]
    pub fn stdin(mut self, field: &'static str) -> Self {
        self.spec.stdin = Some(field);
        self
    }

    #[must_use]
    pub fn human(mut self, human: Human) -> Self {
        self.spec.human = human;
        self
    }
}

fn spec<I: JsonSchema, O: JsonSchema>(
    name: &'static str,
    summary: &'static str,
    (method, path): (Method, &'static str),
    streams: bool,
) -> Spec {
    Spec {
        name,
        summary,
        docs: "",
        examples: &[],
        route: Route { method, path },
        permission: Permission::Read,
        scope: Scope::Local,
        idempotency: Idempotency::Read,
        errors: &[],
        limits: Limits::default(),
        input: schema_of::<I>(),
        output: schema_of::<O>(),
        streams,
        single: None,
        resumes: false,
        words: &[],
        aliases: &[],
        positional: &[],
        short: &[],
        follow_up: None,
        stdin: None,
        human: Human::Fields,
    }
}

fn parse<I: DeserializeOwned>(schema: &Value, mut value: Value) -> Result<I, OpError> {
    validate(schema, &mut value)?;
    serde_json::from_value(value)
        .map_err(|error| OpError::new(ErrorCode::InvalidArgument, format!("the input is not valid: {error}")))
}

fn encode<T: Serialize>(value: &T) -> Result<Value, OpError> {
    serde_json::to_value(value)
        .map_err(|error| OpError::new(ErrorCode::Internal, format!("the output cannot be encoded: {error}")))
}
