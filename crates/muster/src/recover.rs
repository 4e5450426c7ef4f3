//! `muster recover`: what a survivor of a lost majority holds, and, if it is said so, that it is the cluster from now on.

use std::path::PathBuf;

use anyhow::{Context, bail};
use clap::ArgMatches;
use doors::render::Format;
use node::recover::{PartitionReport, Report, compare, inspect};
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
            Format::Human => terminal::print(describe(&report, &compared.refusals, &compared.warnings)),
        };
    }
    if !compared.refusals.is_empty() {
        bail!("nothing was changed: {}", compared.refusals.join("; "));
    }
    for warning in &compared.warnings {
        terminal::complain(&format!("warning: {warning}"));
    }
    let done = found.recover()?;
    let lost: Vec<String> = report.lost().map(name).collect();
    let fields = json!({
        "incarnation": done.incarnation, "old_journal": done.old_journal, "nodes_removed": report.others().count(),
        "partitions_lost": lost, "vms_stopped": report.vms_elsewhere, "tokens_revoked": report.tokens,
    });
    let text = format!(
        "node {} ({}) is the whole cluster now, as its incarnation {}.\n\nNext:\n  start it as before: {} up --data-dir {} ...\n  \
         wipe the data directories of all other nodes, and let them join with new tokens\n  \
         start the VMs that ran elsewhere, once it is sure that they do no more: muster vm start NAME\n  \
         remove the old journal, {}, once nobody will ask for it",
        report.node,
        report.name,
        done.incarnation,
        terminal::program(),
        data_dir.display(),
        done.old_journal.display()
    );
    terminal::tell(format, "recovered", fields, text)
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

/// The report for people: what is here, then what is lost.
fn describe(report: &Report, refusals: &[String], warnings: &[String]) -> String {
    let members: Vec<String> = report
        .members
        .iter()
        .map(|member| {
            let role = if member.voter { "votes" } else { "learns" };
            let here = if member.node == report.node { ", this one" } else { "" };
            format!("  node {} ({}): {role}{here}", member.node, member.name)
        })
        .collect();
    let meta = &report.meta;
    let mut text = format!(
        "cluster {}, incarnation {}\nnode {} ({}) in {}\n\n__meta here ends at term {}, index {}; committed, as far as it \
         knows: {}\nmembers, as far as it knows:\n{}\n\npartitions here:\n",
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
    text.push_str("\nA recovery here loses for good:\n");
    text.push_str("  whatever was acknowledged after this node heard of it last\n");
    for other in report.others() {
        text.push_str(&format!(
            "  node {} ({}): it is no member any more; what only it has is gone\n",
            other.node, other.name
        ));
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
    for warning in warnings {
        text.push_str(&format!("\nANOTHER SURVIVOR HAS MORE: {warning}\n"));
    }
    for refusal in refusals {
        text.push_str(&format!("\nNOT HERE: {refusal}\n"));
    }
    text.push_str(
        "\nNothing was changed. Only if a majority of the voters is gone for good, and this survivor knows most (compare with\n\
         --others), make it the whole cluster: the same command with --yes",
    );
    text
}
