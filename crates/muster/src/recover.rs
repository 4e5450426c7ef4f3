//! `muster recover`: what a survivor of a lost majority holds, and, if it is said so, that it is the cluster from now on.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::ArgMatches;
use doors::render::Format;
use node::recover::{Comparison, MemberReport, PartitionReport, Recovered, Report, compare, inspect};
use serde_json::json;

use crate::{remote, terminal};

/// `muster recover --data-dir DIR [--yes]`.
pub(crate) fn run(args: &ArgMatches) -> anyhow::Result<()> {
    let Some(data_dir) = args.get_one::<PathBuf>("data-dir") else { bail!("--data-dir DIR is needed") };
    let others: Vec<Report> =
        args.get_many::<PathBuf>("others").into_iter().flatten().map(read).collect::<Result<_, _>>()?;
    let format = remote::format(args);
    let found = inspect(data_dir)?;
    let report = found.report();
    let compared = compare(&report, &others);
    if !args.get_flag("yes") {
        let objections = json!({ "refused_because": compared.refusals, "others_have_more": compared.warnings });
        return match format {
            Format::Json => {
                let mut told = serde_json::to_value(&report)?;
                if let (Some(told), serde_json::Value::Object(more)) = (told.as_object_mut(), objections) {
                    told.extend(more.into_iter().filter(|_| !others.is_empty()));
                }
                terminal::print(serde_json::to_string_pretty(&told)?)
            }
            Format::Human => terminal::print(describe(&report, &compared)),
        };
    }
    if !compared.refusals.is_empty() {
        bail!("nothing was changed: {}", compared.refusals.join("; "));
    }
    if report.recovered {
        return tell_of_earlier(&report, data_dir, format);
    }
    for warning in &compared.warnings {
        terminal::complain(&format!("warning: {warning}"));
    }
    let done = found.recover()?;
    tell_of(&done, &report, data_dir, format)
}

/// What was done, who is given up, and what is next.
fn tell_of(done: &Recovered, report: &Report, data_dir: &Path, format: Format) -> anyhow::Result<()> {
    let lost: Vec<String> = report.lost().map(name).collect();
    let gone: Vec<&MemberReport> = report.others().collect();
    let fields = json!({
        "incarnation": done.incarnation, "recovery": done.recovery, "old_journal": done.old_journal,
        "nodes_removed": gone.len(), "nodes_lost": gone, "partitions_lost": lost,
        "vms_stopped": report.vms_elsewhere, "tokens_revoked": report.tokens,
    });
    let mut text = format!(
        "node {} ({}) is the whole cluster now, as its incarnation {} (recovery {}).\n",
        report.node, report.name, done.incarnation, done.recovery
    );
    if !gone.is_empty() {
        text.push_str("\nGiven up for good, and never to come back with the data that they have:\n");
        gone.iter().for_each(|member| text.push_str(&format!("  {}\n", called(member))));
    }
    text.push_str(&format!(
        "\nNext:\n  start it as before: {} up --data-dir {} ...\n  \
         recover no other survivor: it would become a second cluster of the same name\n  \
         wipe the data directories of all other nodes, and let them join with new tokens\n  \
         start the VMs that ran elsewhere, once it is sure that they do no more: muster vm start NAME\n  \
         remove the old journal, {}, once nobody will ask for it",
        terminal::program(),
        data_dir.display(),
        done.old_journal.display()
    ));
    terminal::tell(format, "recovered", fields, text)
}

/// Nothing is to be done: it was done before.
fn tell_of_earlier(report: &Report, data_dir: &Path, format: Format) -> anyhow::Result<()> {
    let fields = json!({ "incarnation": report.incarnation, "recovery": report.recovery });
    let text = format!(
        "{}: nothing was changed.\n\nNext:\n  start it, unless that was done: {} up --data-dir {} ...\n  \
         wipe the data directories of all other nodes, and let them join with new tokens",
        earlier(report),
        terminal::program(),
        data_dir.display()
    );
    terminal::tell(format, "recovered_already", fields, text)
}

/// That it was recovered before, in a sentence without its end.
fn earlier(report: &Report) -> String {
    let Report { node, name, incarnation, .. } = report;
    let recovery = report.recovery.as_ref().map(|recovery| format!(" (recovery {recovery})")).unwrap_or_default();
    format!(
        "node {node} ({name}) was recovered already: it is the whole cluster, as its incarnation {incarnation}{recovery}, and no \
         other node has joined it since"
    )
}

/// Another survivor's report, as `--output json` prints it.
fn read(path: &PathBuf) -> anyhow::Result<Report> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let what = "is no report of a survivor; make one there with `muster recover --data-dir DIR --output json`";
    serde_json::from_str(&text).with_context(|| format!("{} {what}", path.display()))
}

fn name(partition: &PartitionReport) -> String {
    format!("{}/{}", partition.topic, partition.partition)
}

/// A node by all that it is known by.
fn called(member: &MemberReport) -> String {
    let at = if member.addresses.is_empty() { String::new() } else { format!(" at {}", member.addresses.join(", ")) };
    format!("node {} ({}){at}", member.node, member.name)
}

/// The report for people: what is here, what is lost, and what speaks against it.
fn describe(report: &Report, compared: &Comparison) -> String {
    let mut text = here(report);
    if report.recovered {
        text.push_str(&format!("\n{}.\n", earlier(report)));
    } else {
        text.push_str(&losses(report));
    }
    for warning in &compared.warnings {
        text.push_str(&format!("\nANOTHER SURVIVOR HAS MORE: {warning}\n"));
    }
    for refusal in &compared.refusals {
        text.push_str(&format!("\nNOT HERE: {refusal}\n"));
    }
    text.push_str("\nNothing was changed. ");
    text.push_str(if report.recovered {
        "There is nothing to recover from: start it"
    } else {
        "Only if a majority of the voters is gone for good, and this survivor knows most (compare with\n--others), make it \
         the whole cluster, and no other survivor: the same command with --yes"
    });
    text
}

/// What is on this node.
fn here(report: &Report) -> String {
    let members: Vec<String> = report
        .members
        .iter()
        .map(|member| {
            let role = if member.voter { "votes" } else { "learns" };
            let here = if member.node == report.node { ", this one" } else { "" };
            format!("  {}: {role}{here}", called(member))
        })
        .collect();
    let meta = &report.meta;
    let recovery = report.recovery.as_ref().map(|recovery| format!(" of recovery {recovery}")).unwrap_or_default();
    let mut text = format!(
        "cluster {}, incarnation {}{recovery}\nnode {} ({}) in {}\n\n__meta here ends at term {}, index {}; committed, as far \
         as it knows: {}\nmembers, as far as it knows:\n{}\n\npartitions here:\n",
        report.cluster,
        report.incarnation,
        report.node,
        report.name,
        report.data_dir,
        meta.last_term,
        meta.last_index,
        meta.commit,
        members.join("\n")
    );
    for partition in &report.partitions {
        if let Some(here) = &partition.here {
            let behind = if here.voter { "" } else { ", a learner: it may lack much" };
            let (term, index) = (here.log.last_term, here.log.last_index);
            let line =
                format!("  {}: {} records, to term {term}, index {index}{behind}\n", name(partition), here.records);
            text.push_str(&line);
        }
    }
    text
}

/// What a recovery would take away.
fn losses(report: &Report) -> String {
    let mut text = "\nA recovery here loses for good:\n".to_owned();
    text.push_str("  whatever was acknowledged after this node heard of it last\n");
    for other in report.others() {
        text.push_str(&format!("  {}: it is no member any more; what only it has is gone\n", called(other)));
    }
    for lost in report.lost() {
        text.push_str(&format!("  partition {}: no replica here; it begins again, empty\n", name(lost)));
    }
    for vm in &report.vms_elsewhere {
        text.push_str(&format!("  VM {vm}: it ran elsewhere, and stays stopped until `muster vm start {vm}`\n"));
    }
    if report.tokens > 0 {
        text.push_str(&format!("  {} join tokens\n", report.tokens));
    }
    text
}
