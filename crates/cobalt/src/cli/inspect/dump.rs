//! `cobalt dump`: the structures of one target, as far as they can be read.

use super::show::{self, Shown};
use super::{Unreadable, chosen, names, regions_of, unreadable};
use crate::cli::args::{DumpArgs, DumpWhat, Output};
use crate::cli::failure::{Code, Failure};
use crate::cli::output;
use crate::process::format::on_reactor;
use cobalt_base::Fid;
use cobalt_cas::show as cas;
use cobalt_dma::Arena;
use cobalt_reactor::Ctx;
use cobalt_store::superblock::{self, Verdict};
use cobalt_store::tree::TreeId;
use cobalt_store::{Inspection, Item, Limits, Regions, Rows, dump_journal};
use serde_json::{Value, json};
use std::cell::RefCell;
use std::rc::Rc;

/// What is asked for, in typed values.
#[derive(Clone)]
struct Request {
    what: DumpWhat,
    node: Option<u64>,
    fid: Option<Fid>,
    ctg: Option<u32>,
    prefix: Vec<u8>,
    limit: u64,
}

/// Where it goes: a line at a time, or one JSON document whose rows are written as they come.
struct Out {
    json: bool,
    rows: u64,
    limit: u64,
    skipped: Vec<Value>,
    failure: Option<Failure>,
}

/// `cobalt dump`.
pub fn dump(args: &DumpArgs) -> Result<(), Failure> {
    let request = request(args)?;
    let target = match &chosen(&args.place, std::slice::from_ref(&args.target))?[..] {
        [target] => target.clone(),
        _ => return Err(Failure::new("one target is dumped at a time").code(Code::Usage)),
    };
    let json = args.json || args.output == Output::Json;
    let out = Rc::new(RefCell::new(Out {
        json,
        rows: 0,
        limit: request.limit,
        skipped: Vec::new(),
        failure: None,
    }));
    let (device, name) = (target.device.clone(), target.name.clone());
    let to = out.clone();
    let done = on_reactor(move |ctx, arena| async move {
        let regions = regions_of(&ctx, &arena, &device).await?;
        to.borrow_mut().begin(&name, request.what);
        run(&ctx, &regions, &arena, &request, &to).await
    })?;
    let mut out = out.borrow_mut();
    if let Some(failure) = out.failure.take() {
        return Err(failure);
    }
    match done {
        Ok(()) => out.end(),
        Err(Unreadable { why, .. }) => {
            if out.rows > 0 || out.json {
                let _ = out.end();
            }
            Err(Failure::new(format!("{} cannot be read", args.target))
                .cause(why)
                .hint("name it as the configuration does, by its device or its path; `cobalt fsck` says what is hurt"))
        }
    }
}

fn request(args: &DumpArgs) -> Result<Request, Failure> {
    let usage = |what: String, hint: &str| Failure::new(what).hint(hint).code(Code::Usage);
    let fid = match &args.fid {
        Some(text) => Some(names::parse_fid(text).ok_or_else(|| {
            usage(format!("`{text}` is no number of a cob"), "write it as fsck prints it, as in 1f:a0")
        })?),
        None => None,
    };
    let ctg = match &args.ctg {
        Some(text) => Some(text.parse().ok().or_else(|| cas::catalogue_number(text)).ok_or_else(|| {
            usage(
                format!("there is no catalogue `{text}`"),
                "give its number, or its name, as in objects or buckets",
            )
        })?),
        None => None,
    };
    let prefix = match args.prefix.as_deref() {
        Some(text) => match text.strip_prefix("0x") {
            Some(digits) => hex::decode(digits).map_err(|e| {
                usage(format!("`{text}` is not hexadecimal: {e}"), "as in 0x00ff, or plain text")
            })?,
            None => text.as_bytes().to_vec(),
        },
        None => Vec::new(),
    };
    if !prefix.is_empty() && ctg.is_none() {
        return Err(usage("a prefix needs a catalogue".into(), "add --ctg NUMBER or --ctg NAME"));
    }
    Ok(Request { what: args.what, node: args.node, fid, ctg, prefix, limit: args.limit })
}

async fn run(
    ctx: &Ctx,
    regions: &Regions,
    arena: &Arena,
    request: &Request,
    out: &RefCell<Out>,
) -> Result<(), Unreadable> {
    if request.what == DumpWhat::Superblock {
        superblocks(regions, arena, out).await;
        return Ok(());
    }
    if request.what == DumpWhat::Journal {
        let records = dump_journal(regions, arena).await.map_err(|e| unreadable(&e))?;
        let from = records.len().saturating_sub(usize::try_from(request.limit).unwrap_or(usize::MAX));
        for record in records.iter().skip(from) {
            out.borrow_mut().show(show::record(record));
        }
        return Ok(());
    }
    let limits = Limits::default();
    let inspection = Inspection::open(ctx, regions, arena, &limits).await.map_err(|e| unreadable(&e))?;
    for finding in inspection.trouble().iter().filter(|f| f.is_fatal()) {
        eprintln!(
            "{}: expected {}, found {}: what follows is the last checkpoint",
            finding.kind, finding.expected, finding.found
        );
    }
    if let Some(block) = request.node {
        let view = inspection.node(block).await.map_err(|why| Unreadable { kind: "node", why })?;
        show::node(&view).into_iter().all(|shown| out.borrow_mut().show(shown));
        return Ok(());
    }
    match (request.what, request.fid) {
        (DumpWhat::Bitmap, _) => {
            let size = inspection.superblock().geometry.node_blocks;
            let runs = inspection.node_runs(|from, until| {
                out.borrow_mut().show(Shown {
                    line: format!("node blocks {from} to {} used", until - 1),
                    json: json!({ "first": from, "blocks": until - from }),
                });
            });
            runs.await
                .map_err(|e| Unreadable { kind: "node-bitmap", why: format!("{e} ({size} node blocks)") })?;
        }
        (DumpWhat::Space, _) => {
            let skipped = inspection.groups(|row| out.borrow_mut().show(show::group(&row))).await;
            skipped.iter().for_each(|lost| out.borrow_mut().skip(show::skipped(lost)));
        }
        (DumpWhat::Cob, Some(fid)) => {
            for item in inspection.cob(fid).await {
                out.borrow_mut().item(&item);
            }
            rows(inspection.extents(fid), out).await;
        }
        (DumpWhat::Extmap, Some(fid)) => rows(inspection.extents(fid), out).await,
        (DumpWhat::Cob, None) => rows(inspection.rows(TreeId::Cob, &[], None), out).await,
        (DumpWhat::Extmap, None) => rows(inspection.rows(TreeId::Extmap, &[], None), out).await,
        (DumpWhat::Balloc, _) => rows(inspection.rows(TreeId::Balloc, &[], None), out).await,
        (DumpWhat::Ctg, _) => rows(inspection.catalogue(request.ctg, &request.prefix), out).await,
        (DumpWhat::Superblock | DumpWhat::Journal, _) => {}
    }
    Ok(())
}

async fn rows(mut rows: Rows<'_>, out: &RefCell<Out>) {
    while let Some(item) = rows.next().await {
        if !out.borrow_mut().item(&item) {
            break;
        }
    }
}

async fn superblocks(regions: &Regions, arena: &Arena, out: &RefCell<Out>) {
    let copies = superblock::read_all(&regions.meta, arena).await;
    let mut out = out.borrow_mut();
    for copy in &copies {
        out.show(show::copy(copy));
    }
    let newest = copies.iter().filter_map(|copy| match &copy.verdict {
        Verdict::Valid(sb) => Some(sb),
        _ => None,
    });
    if let Some(sb) = newest.max_by_key(|sb| sb.generation)
        && !out.json
    {
        let printed = output::line("").and_then(|()| output::table(&["newest", ""], show::superblock(sb)));
        out.keep(printed);
    }
}

impl Out {
    fn keep(&mut self, printed: Result<(), Failure>) {
        if let Err(failure) = printed {
            self.failure.get_or_insert(failure);
        }
    }

    fn begin(&mut self, target: &str, what: DumpWhat) {
        if self.json {
            let what = format!("{what:?}").to_lowercase();
            let printed = output::line(&format!(
                "{{\n\"schema_version\": {},\n\"target\": {},\n\"dump\": {},\n\"rows\": [",
                output::SCHEMA_VERSION,
                json!(target),
                json!(what)
            ));
            self.keep(printed);
        }
    }

    /// Prints one thing; false when that was enough.
    fn show(&mut self, shown: Shown) -> bool {
        if self.rows >= self.limit {
            return false;
        }
        let printed = match self.json {
            true => {
                let comma = if self.rows > 0 { "," } else { "" };
                output::line(&format!("{comma}{}", shown.json))
            }
            false => output::line(&shown.line),
        };
        self.keep(printed);
        self.rows += 1;
        self.rows < self.limit && self.failure.is_none()
    }

    /// What could not be read is told, and does not count.
    fn skip(&mut self, shown: Shown) {
        if self.json {
            self.skipped.push(shown.json);
        } else {
            let printed = output::line(&shown.line);
            self.keep(printed);
        }
    }

    fn item(&mut self, item: &Item) -> bool {
        match item {
            Item::Row(row) => self.show(show::row(row)),
            Item::Skipped(lost) => {
                self.skip(show::skipped(lost));
                true
            }
        }
    }

    fn end(&mut self) -> Result<(), Failure> {
        if self.json {
            let whole = self.rows < self.limit;
            return output::line(&format!(
                "],\n\"skipped\": {},\n\"complete\": {whole}\n}}",
                json!(self.skipped)
            ));
        }
        if self.rows >= self.limit && self.limit > 0 {
            eprintln!("stopped after {} rows; --limit shows more", self.rows);
        }
        Ok(())
    }
}
