//! All operations of a process.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::{Operation, Spec, nearest};

/// The operations, by name.
pub struct Registry<C> {
    operations: BTreeMap<&'static str, Operation<C>>,
}

/// Operations that cannot stand together, or one that contradicts itself. A mistake in the program, found at start.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("operation {operation}: {problem}")]
pub struct RegistryError {
    pub operation: &'static str,
    pub problem: String,
}

impl<C: Send + Sync + 'static> Registry<C> {
    /// A registry of these operations.
    ///
    /// # Errors
    /// If two share a name, a route or a command; if a schema is not a plain object; if a path, a positional argument
    /// or a follow-up names what is not there, or a flag that stands for an operation has no command to stand at.
    pub fn new(list: Vec<Operation<C>>) -> Result<Self, RegistryError> {
        let mut operations = BTreeMap::new();
        let mut taken = BTreeSet::new();
        for mut operation in list {
            let spec = &mut operation.spec;
            if let Some(object) = spec.input.as_object_mut() {
                object.insert("additionalProperties".into(), Value::Bool(false));
            }
            check(spec)?;
            let name = spec.name;
            let route = format!("{} {}", spec.route.method.as_str(), shape(spec.route.path));
            for claim in [spec.name.to_owned(), route, format!("command {}", spec.command_words().join(" "))] {
                if taken.contains(&claim) {
                    return Err(RegistryError { operation: name, problem: format!("`{claim}` is taken") });
                }
                taken.insert(claim);
            }
            operations.insert(name, operation);
        }
        let registry = Registry { operations };
        for spec in registry.specs() {
            if let Some((words, flag)) = spec.flag_of() {
                let base = registry.specs().find(|base| base.command_words() == words);
                let has = |base: &Spec, name: &str| base.fields().any(|(field, _)| field == name);
                let fits = base.is_some_and(|base| !has(base, flag) && spec.fields().all(|(name, _)| has(base, name)));
                if !fits {
                    let problem = format!("no command takes its flag `--{flag}` and its input");
                    return Err(RegistryError { operation: spec.name, problem });
                }
            }
            if let Some(then) = spec.follow_up
                && registry.get(then.operation).is_none()
            {
                let problem = format!("its follow-up `{}` does not exist", then.operation);
                return Err(RegistryError { operation: spec.name, problem });
            }
        }
        Ok(registry)
    }

    /// The operation of that name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Operation<C>> {
        self.operations.get(name)
    }

    /// The nearest name to a mistyped one.
    #[must_use]
    pub fn nearest(&self, name: &str) -> Option<&'static str> {
        nearest(name, self.operations.keys().copied())
    }

    /// What each operation says of itself, in the order of their names.
    pub fn specs(&self) -> impl Iterator<Item = &Spec> {
        self.operations.values().map(|operation| &operation.spec)
    }
}

/// A path with its parameters' names taken out: two routes that differ only there cannot stand together.
fn shape(path: &str) -> String {
    path.split('/').map(|part| if part.starts_with('{') { "{}" } else { part }).collect::<Vec<_>>().join("/")
}

fn check(spec: &Spec) -> Result<(), RegistryError> {
    let error = |problem: String| Err(RegistryError { operation: spec.name, problem });
    if spec.input.get("type").and_then(Value::as_str) != Some("object") {
        return error("its input is not a struct".into());
    }
    for schema in [&spec.input, &spec.output] {
        if schema.get("$defs").is_some() {
            return error("a schema refers to itself".into());
        }
    }
    if spec.streams && spec.output.pointer("/properties/error").is_some() {
        return error("its items have a field `error`, which marks the failure of a stream".into());
    }
    let fields: BTreeSet<&str> = spec.fields().map(|(name, _)| name).collect();
    let named = spec.route.parameters().chain(spec.positional.iter().copied());
    for name in named.chain(spec.short.iter().map(|(name, _)| *name)).chain(spec.single) {
        if !fields.contains(name) {
            return error(format!("`{name}` is not a field of its input"));
        }
    }
    if let Some(name) = spec.route.parameters().find(|name| !spec.requires(name)) {
        return error(format!("`{name}` is part of its path but not required"));
    }
    if !spec.route.path.starts_with('/') || spec.command_words().is_empty() {
        return error("its path or command is empty".into());
    }
    if spec.limits.burst == 0 || spec.limits.concurrent == 0 || spec.limits.deadline > spec.limits.deadline_max {
        return error("its limits allow nothing".into());
    }
    Ok(())
}
