//! `weir erase`: deletes documents, and says by when the last copy of them is gone.

mod documents;
mod fate;
mod places;

use std::collections::BTreeMap;
use std::io::{BufRead, IsTerminal, Write};
use std::process::ExitCode;
use std::time::Duration;

use color_eyre::eyre::bail;
use serde_json::json;
use weir_contracts::DocumentId;

use self::documents::Documents;
use self::fate::Fate;
use self::places::{Place, Scope};
use crate::collect::{Found, Source};
use crate::context::Context;
use crate::exit::FOUND;
use crate::progress::{Ink, human, now_millis, table};
use crate::send::{self, LargeFiles};
use crate::tail::registry;

/// Documents that are named one by one where not all of them are deleted.
const NAMED: usize = 10;

/// Arguments of `weir erase`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  weir erase --tenant acme --document reports/q1.pdf --wait   delete one, and say where copies remain
  weir erase --tenant acme --document reports/q1.pdf          the same again: what is left by now
  weir erase --tenant acme --dry-run                          what would be deleted, and how long copies would stay
  weir erase --tenant acme --yes --wait                       every document of the tenant

The report names every place where a copy may lie, and the setting of the live cluster by which it goes. The exit code
is 0 when nothing is left to do but to wait, and 1 when something has no bound or waits for somebody.")]
pub struct Args {
    /// The document; without it, every document of the tenant.
    #[arg(long, value_name = "ID")]
    document: Option<DocumentId>,
    /// Don't ask, however many documents the tenant has.
    #[arg(short, long)]
    yes: bool,
    /// Wait until none of them can be found any more.
    #[arg(long)]
    wait: bool,
    /// Only report: delete nothing.
    #[arg(long, conflicts_with = "wait")]
    dry_run: bool,
    /// Give up waiting when nothing has moved for this many seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 120)]
    patience: u64,
}

/// Runs the subcommand.
///
/// # Errors
/// When Kafka can't be read or does not take the deletions, or nobody can be asked.
pub async fn run(args: Args, context: &Context) -> color_eyre::Result<ExitCode> {
    let registry = registry(context)?;
    let scope = Scope { tenant: &context.tenant, document: args.document.as_ref() };
    let mut documents = Documents::find(context, &registry, scope.tenant, scope.document).await?;
    // With --wait also those whose deletion is on its way: a second one is a duplicate and changes nothing.
    let asked: Vec<DocumentId> =
        if args.wait { documents.pending().cloned().collect() } else { documents.stored().cloned().collect() };
    let mut sent = 0;
    if !args.dry_run && !asked.is_empty() {
        if args.document.is_none() && !args.yes && !confirmed(asked.len(), context)? {
            println!("Nothing was deleted.");
            return Ok(ExitCode::from(FOUND));
        }
        sent = delete(asked, &args, context).await?;
        documents = Documents::find(context, &registry, scope.tenant, scope.document).await?;
    }
    let places = places::look(scope, &documents, context).await?;
    if context.json {
        println!("{}", serde_json::to_string_pretty(&as_json(&args, sent, &documents, &places, context))?);
    } else {
        print(&args, sent, &documents, &places, context);
    }
    Ok(if settled(&places) { ExitCode::SUCCESS } else { ExitCode::from(FOUND) })
}

fn confirmed(count: usize, context: &Context) -> color_eyre::Result<bool> {
    let tenant = &context.tenant;
    if !std::io::stdin().is_terminal() {
        bail!(
            "{count} documents of tenant {tenant} would be deleted, and there is nobody to ask: look with --dry-run, \
             then add --yes"
        );
    }
    eprint!("Delete all {count} documents of tenant {tenant}? [y/N] ");
    std::io::stderr().flush()?;
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

/// Asks for the deletions; says how many were sent.
async fn delete(documents: Vec<DocumentId>, args: &Args, context: &Context) -> color_eyre::Result<usize> {
    let options = send::Options {
        tenant: context.tenant.clone(),
        delete: true,
        large_files: LargeFiles::Refuse,
        content_type: None,
        title: None,
        metadata: BTreeMap::new(),
        wait: args.wait,
        patience: Duration::from_secs(args.patience),
    };
    let found = |id| Found { id, source: Source::Bytes(Vec::new()), title: None, metadata: BTreeMap::new() };
    let report = send::send(context, documents.into_iter().map(found).collect(), &options).await?;
    Ok(report.ledger.counts().sent)
}

fn settled(places: &[Place]) -> bool {
    places.iter().all(|place| place.fate.is_settled())
}

/// When the last copy is gone that goes by itself, milliseconds since the Unix epoch.
fn last(places: &[Place]) -> Option<i64> {
    let at = |place: &Place| match place.fate {
        Fate::By { at, .. } => Some(at),
        _ => None,
    };
    places.iter().filter_map(at).max()
}

fn as_json(args: &Args, sent: usize, documents: &Documents, places: &[Place], context: &Context) -> serde_json::Value {
    let pending: Vec<_> = documents.pending().collect();
    json!({
        "tenant": context.tenant,
        "document": args.document,
        "dry_run": args.dry_run,
        "sent": sent,
        "documents": documents.standings.len(),
        "deleted": documents.standings.len() - pending.len(),
        "pending": pending,
        "places": places,
        "settled": settled(places),
        "gone_by": settled(places).then(|| last(places)).flatten(),
    })
}

fn print(args: &Args, sent: usize, documents: &Documents, places: &[Place], context: &Context) {
    let ink = Ink::for_stdout();
    let pending: Vec<_> = documents.pending().collect();
    let all = documents.standings.len();
    let asked = match args.dry_run {
        true => "nothing was asked for: a dry run".to_owned(),
        false => format!("{sent} deletions asked for now"),
    };
    println!("Tenant {}: {} of {all} documents are deleted; {asked}.", context.tenant, all - pending.len());
    for document in pending.iter().take(NAMED) {
        println!("  not deleted: {document}");
    }
    if pending.len() > NAMED {
        println!("  and {} more", pending.len() - NAMED);
    }
    let now = now_millis();
    let mut rows = table(&["where", "holds", "gone", "by"]);
    for place in places {
        let (gone, by) = tell(&place.fate, now, ink);
        rows.add_row([place.place.clone(), place.holds.to_owned(), gone, by]);
    }
    println!("\n{rows}\n");
    let text = match (settled(places), last(places)) {
        (false, _) => ink.red("Something has no bound or waits for somebody: see above."),
        (true, Some(at)) => ink.bold(format!("The last copy is gone {}.", within(at, now))),
        (true, None) => ink.green("No copy is left."),
    };
    println!("{text}");
}

fn tell(fate: &Fate, now: i64, ink: Ink) -> (String, String) {
    match fate {
        Fate::Gone => (ink.green("yes"), String::new()),
        Fate::By { at, why } => (within(*at, now), why.clone()),
        Fate::Remains { why } => ("stays".into(), why.clone()),
        Fate::Elsewhere { why } => ("not Weir's".into(), why.clone()),
        Fate::Unbounded { why, cure } => (ink.red("no bound"), format!("{why}. Do: {cure}")),
        Fate::Outstanding { why, cure } => (ink.red("no"), format!("{why}. Do: {cure}")),
    }
}

fn within(at: i64, now: i64) -> String {
    match u64::try_from(at.saturating_sub(now)) {
        Ok(left) if left > 0 => format!("within {}", human(Duration::from_millis(left))),
        _ => "about now".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(fate: Fate) -> Place {
        Place { place: "somewhere".into(), holds: "text", fate }
    }

    #[test]
    fn the_last_copy_counts_and_only_what_nobody_waits_for_is_settled() {
        let by = |at| place(Fate::By { at, why: String::new() });
        let mut places = vec![by(5), place(Fate::Gone), by(9), place(Fate::Remains { why: String::new() })];
        assert_eq!((settled(&places), last(&places)), (true, Some(9)));
        places.push(place(Fate::Unbounded { why: String::new(), cure: String::new() }));
        assert!(!settled(&places));
    }

    #[test]
    fn times_are_told_from_now() {
        assert_eq!(within(86_400_000 + 500, 500), "within 1 d 0 h");
        assert_eq!(within(5, 6), "about now");
    }
}
