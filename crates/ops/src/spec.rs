//! What an operation says of itself. Doors and docs are drawn from this; the pipeline enforces it.

use base::{ErrorCode, Millis};
use serde_json::Value;

/// What a caller must be allowed. Each includes those before it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Permission {
    /// See.
    Read,
    /// Create, change and delete workloads and data.
    Operate,
    /// Change the cluster itself: its members, its users.
    Admin,
}

impl Permission {
    /// As in the OpenAPI document.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Permission::Read => "read",
            Permission::Operate => "operate",
            Permission::Admin => "admin",
        }
    }
}

/// Where an operation is carried out. Any node takes the call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Scope {
    /// On the node that took the call, from what it knows.
    Local,
    /// On the leader of `__meta`.
    Leader,
    /// On the node that owns the thing named.
    Owner,
    /// On every node, under one deadline; a node that does not answer is listed with the reason.
    EveryNode,
}

impl Scope {
    /// As in the OpenAPI document.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Scope::Local => "local",
            Scope::Leader => "leader",
            Scope::Owner => "owner",
            Scope::EveryNode => "every-node",
        }
    }
}

/// What sending a call twice does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Idempotency {
    /// Changes nothing.
    Read,
    /// The second changes nothing more.
    Idempotent,
    /// The second does it again or fails, unless both carry the same Idempotency-Key: then it gets the first's result.
    Keyed,
}

impl Idempotency {
    /// As in the OpenAPI document.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Idempotency::Read => "read",
            Idempotency::Idempotent => "idempotent",
            Idempotency::Keyed => "keyed",
        }
    }
}

/// HTTP method of an operation's route.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Method {
    Get,
    Post,
    Put,
    Delete,
}

impl Method {
    /// As in a request line.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Method::Get => "GET",
            Method::Post => "POST",
            Method::Put => "PUT",
            Method::Delete => "DELETE",
        }
    }

    /// Whether inputs that are not in the path travel in a body (otherwise in the query).
    #[must_use]
    pub fn has_body(self) -> bool {
        matches!(self, Method::Post | Method::Put)
    }
}

/// An operation's place in the REST API.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Route {
    pub method: Method,
    /// Such as `/v1/vms/{name}`; what stands in braces are input fields.
    pub path: &'static str,
}

impl Route {
    /// The input fields in the path, in order.
    pub fn parameters(&self) -> impl Iterator<Item = &'static str> + '_ {
        self.path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'))
    }
}

/// What one principal may ask of one operation. Beyond it calls are answered `busy`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Calls under way at once (streams count until they end).
    pub concurrent: u32,
    /// Calls per second, in the long run.
    pub per_second: u32,
    /// Calls at once after a pause.
    pub burst: u32,
    /// Deadline of a call that names none.
    pub deadline: Millis,
    /// Longest deadline that a call may name.
    pub deadline_max: Millis,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            concurrent: 64,
            per_second: 500,
            burst: 1_000,
            deadline: base::limits::REQUEST_DEADLINE_DEFAULT,
            deadline_max: base::limits::REQUEST_DEADLINE_MAX,
        }
    }
}

/// A command line and what it does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Example {
    /// The whole line, beginning with `muster`. A test parses every one.
    pub command: &'static str,
    pub says: &'static str,
}

/// A command-line flag that carries out a second operation after this one, with the same positional arguments.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FollowUp {
    /// Such as `wait`.
    pub flag: &'static str,
    /// Such as `vm.wait`.
    pub operation: &'static str,
    pub help: &'static str,
}

/// How a value is shown in a table's cell.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cell {
    /// As it is; nothing for null.
    Plain,
    /// Milliseconds, as `5m12s`.
    Duration,
    /// Mebibytes, as `1.5 GiB`.
    Mebibytes,
    /// Items joined by commas.
    List,
}

/// One column of a table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Column {
    pub title: &'static str,
    /// JSON pointer inside the row, such as `/name`.
    pub pointer: &'static str,
    pub cell: Cell,
}

impl Column {
    /// A column that shows its values as they are.
    #[must_use]
    pub const fn plain(title: &'static str, pointer: &'static str) -> Column {
        Column { title, pointer, cell: Cell::Plain }
    }

    /// A column of durations in milliseconds.
    #[must_use]
    pub const fn duration(title: &'static str, pointer: &'static str) -> Column {
        Column { title, pointer, cell: Cell::Duration }
    }
}

/// How people see the output.
#[derive(Clone, Copy, Debug)]
pub enum Human {
    /// One line per field, as it is.
    Fields,
    /// One line per column that says anything, its title first.
    Record(&'static [Column]),
    /// One line per element of the array at `rows` (a JSON pointer).
    Table { rows: &'static str, columns: &'static [Column], empty: &'static str },
    /// Bytes that the output stands for: exactly these where standard output is a file or a pipe, `text` on a terminal.
    Bytes { text: fn(&Value) -> String, bytes: fn(&Value) -> Vec<u8> },
    /// The operation's own text; of a stream, per item. Ends without a newline; an empty text is not printed.
    Text(fn(&Value) -> String),
}

/// All that an operation says of itself.
#[derive(Clone, Debug)]
pub struct Spec {
    /// Such as `vm.create`: a noun and a verb.
    pub name: &'static str,
    /// One line, without a full stop.
    pub summary: &'static str,
    /// Whole sentences.
    pub docs: &'static str,
    pub examples: &'static [Example],
    pub route: Route,
    pub permission: Permission,
    pub scope: Scope,
    pub idempotency: Idempotency,
    /// The codes that the handler may fail with (those of the pipeline's stages come on top).
    pub errors: &'static [ErrorCode],
    pub limits: Limits,
    /// JSON Schema of the input: an object, without references.
    pub input: Value,
    /// JSON Schema of the output, or of one item of it.
    pub output: Value,
    /// The output is a stream of items (NDJSON over HTTP).
    pub streams: bool,
    /// The input field that, if true, has the stream end at its first item: the call waits no longer than any other.
    pub single: Option<&'static str>,
    /// A call that is repeated under its Idempotency-Key is carried out again, and goes on from what the first one left: its
    /// answer says what is so now, and that may end by itself.
    pub resumes: bool,
    /// The words after `muster`; by default those of the name. A last word that begins with `--` is a flag of the
    /// operation whose words stand before it, which is carried out in place of that one.
    pub words: &'static [&'static str],
    /// Other names of the last word.
    pub aliases: &'static [&'static str],
    /// Input fields that are positional arguments, in order; the others are flags.
    pub positional: &'static [&'static str],
    /// One-letter forms of flags: (input field, letter).
    pub short: &'static [(&'static str, char)],
    pub follow_up: Option<FollowUp>,
    /// The input field that the command line reads from standard input if it is `-`.
    pub stdin: Option<&'static str>,
    pub human: Human,
}

impl Spec {
    /// The words after `muster` on the command line.
    #[must_use]
    pub fn command_words(&self) -> Vec<&'static str> {
        if self.words.is_empty() { self.name.split('.').collect() } else { self.words.to_vec() }
    }

    /// If it is called by a flag of another operation: that one's words, and the flag without its dashes.
    #[must_use]
    pub fn flag_of(&self) -> Option<(Vec<&'static str>, &'static str)> {
        let mut words = self.command_words();
        let flag = words.pop()?.strip_prefix("--")?;
        Some((words, flag))
    }

    /// Every code that a call can end with: the declared ones and those of the pipeline.
    #[must_use]
    pub fn all_errors(&self) -> Vec<ErrorCode> {
        let mut all = self.errors.to_vec();
        all.extend(crate::pipeline::PIPELINE_ERRORS);
        all.sort();
        all.dedup();
        all
    }

    /// The input's fields: name and schema.
    pub fn fields(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.input.get("properties").and_then(Value::as_object).into_iter().flatten().map(|(k, v)| (k.as_str(), v))
    }

    /// Whether the input must have this field.
    #[must_use]
    pub fn requires(&self, field: &str) -> bool {
        let required = self.input.get("required").and_then(Value::as_array);
        required.is_some_and(|list| list.iter().any(|name| name == field))
    }
}
