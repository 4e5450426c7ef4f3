//! The command line of a registry: `muster NOUN VERB POSITIONAL --flags`, one command per operation.

use std::collections::BTreeMap;

use clap::builder::PossibleValuesParser;
use clap::{Arg, ArgAction, ArgMatches, Command};
use ops::{OpError, Registry, Spec};
use serde_json::{Map, Value};

use crate::http::{coerce, kind};

/// What a command line asks for.
#[derive(Clone, Debug)]
pub struct Wanted<'r> {
    pub spec: &'r Spec,
    /// Checked against the operation's schema.
    pub input: Value,
    /// The operation to carry out afterwards, with its input.
    pub then: Option<(&'r Spec, Value)>,
}

/// The commands of all operations, grouped by their first word, in order.
pub fn commands<C: Send + Sync + 'static>(registry: &Registry<C>) -> Vec<Command> {
    let mut groups: BTreeMap<&str, Vec<Command>> = BTreeMap::new();
    let mut alone = Vec::new();
    for spec in registry.specs().filter(|spec| spec.flag_of().is_none()) {
        let command = |word| flags(registry, spec).fold(leaf(spec, word), Command::arg);
        match spec.command_words().as_slice() {
            [word] => alone.push(command(word)),
            [group, verb, ..] => groups.entry(group).or_default().push(command(verb)),
            [] => {}
        }
    }
    alone.extend(groups.into_iter().map(|(group, verbs)| {
        let names: Vec<&str> = verbs.iter().map(Command::get_name).collect();
        Command::new(group.to_owned())
            .about(format!("{group}: {}", names.join(", ")))
            .subcommands(verbs)
            .subcommand_required(true)
            .arg_required_else_help(true)
    }));
    alone.sort_by(|a, b| a.get_name().cmp(b.get_name()));
    alone
}

/// The flags of an operation's command that stand for other operations.
fn flags<C: Send + Sync + 'static>(registry: &Registry<C>, base: &Spec) -> impl Iterator<Item = Arg> {
    let words = base.command_words();
    let flag = move |spec: &Spec| {
        let (_, flag) = spec.flag_of().filter(|(of, _)| *of == words)?;
        Some(Arg::new(flag).long(flag).action(ArgAction::SetTrue).help(spec.summary))
    };
    registry.specs().filter_map(flag)
}

fn leaf(spec: &Spec, word: &'static str) -> Command {
    let mut command = Command::new(word).about(spec.summary).long_about(format!("{}.\n\n{}", spec.summary, spec.docs));
    for alias in spec.aliases {
        command = command.visible_alias(*alias);
    }
    for (index, field) in spec.positional.iter().enumerate() {
        if let Some((name, schema)) = spec.fields().find(|(name, _)| name == field) {
            let arg = argument(name, schema).index(index + 1).value_name(name.to_uppercase().replace('_', "-"));
            command = command.arg(arg.required(spec.requires(name)));
        }
    }
    for (name, schema) in spec.fields().filter(|(name, _)| !spec.positional.contains(name)) {
        let mut arg = argument(name, schema).long(name.replace('_', "-")).required(spec.requires(name));
        if let Some((_, letter)) = spec.short.iter().find(|(field, _)| *field == name) {
            arg = arg.short(*letter);
        }
        command = command.arg(arg);
    }
    if let Some(then) = spec.follow_up {
        command = command.arg(Arg::new(then.flag).long(then.flag).action(ArgAction::SetTrue).help(then.help));
    }
    if !spec.examples.is_empty() {
        let width = spec.examples.iter().map(|example| example.command.len()).max().unwrap_or(0);
        let lines = spec.examples.iter().map(|e| format!("\n  {:<width$}  {}", e.command, e.says));
        command = command.after_help(format!("Examples:{}", lines.collect::<String>()));
    }
    command
}

fn argument(name: &str, schema: &Value) -> Arg {
    let mut help =
        schema.get("description").and_then(Value::as_str).unwrap_or_default().trim_end_matches('.').to_owned();
    match schema.get("default") {
        None | Some(Value::Null | Value::Bool(_) | Value::Object(_) | Value::Array(_)) => {}
        Some(default) => help.push_str(&format!(" [default: {}]", ops::human::text(default))),
    }
    let arg = Arg::new(name.to_owned()).help(help);
    let arg = match kind(schema) {
        "boolean" => return arg.action(ArgAction::SetTrue),
        "array" => arg.action(ArgAction::Append),
        "object" => arg.action(ArgAction::Append).value_name("KEY=VALUE"),
        "integer" | "number" => arg.value_name("N").allow_negative_numbers(true),
        _ => arg,
    };
    match choices(schema) {
        choices if choices.is_empty() => arg,
        choices => arg.value_parser(PossibleValuesParser::new(choices)),
    }
}

/// The texts that an enumeration allows.
fn choices(schema: &Value) -> Vec<String> {
    let listed = schema.get("enum").and_then(Value::as_array).into_iter().flatten();
    let options = ["oneOf", "anyOf"].iter().filter_map(|key| schema.get(key)?.as_array()).flatten();
    let nested = options.flat_map(|option| {
        option.get("const").into_iter().chain(option.get("enum").and_then(Value::as_array).into_iter().flatten())
    });
    listed.chain(nested).filter_map(Value::as_str).map(str::to_owned).collect()
}

/// What the matched words ask for; `None` if they are no operation's.
///
/// # Errors
/// An input that the operation's schema refuses, naming the field.
pub fn wanted<'r, C: Send + Sync + 'static>(
    registry: &'r Registry<C>,
    matches: &ArgMatches,
) -> Result<Option<Wanted<'r>>, OpError> {
    let mut words = Vec::new();
    let mut at = matches;
    while let Some((word, inner)) = at.subcommand() {
        words.push(word);
        at = inner;
    }
    let Some(base) = registry.specs().find(|spec| spec.command_words() == words) else { return Ok(None) };
    let flagged = |spec: &&Spec| spec.flag_of().is_some_and(|(of, flag)| of == words && at.get_flag(flag));
    let spec = registry.specs().find(flagged).unwrap_or(base);
    let input = input(spec, at)?;
    let then = match spec.follow_up.filter(|then| at.get_flag(then.flag)) {
        None => None,
        Some(then) => registry.get(then.operation).map(|next| {
            let shared =
                spec.positional.iter().filter_map(|name| Some(((*name).to_owned(), input.get(*name)?.clone())));
            (next.spec(), Value::Object(shared.collect::<Map<_, _>>()))
        }),
    };
    Ok(Some(Wanted { spec, input, then }))
}

fn input(spec: &Spec, matches: &ArgMatches) -> Result<Value, OpError> {
    let mut input = Map::new();
    for (name, schema) in spec.fields() {
        if kind(schema) == "boolean" {
            if matches.get_flag(name) {
                input.insert(name.to_owned(), Value::Bool(true));
            }
            continue;
        }
        let texts: Vec<String> = matches.get_many::<String>(name).into_iter().flatten().cloned().collect();
        if !texts.is_empty() {
            input.insert(name.to_owned(), coerce(name, schema, &texts)?);
        }
    }
    let mut input = Value::Object(input);
    ops::validate(&spec.input, &mut input)?;
    Ok(input)
}
