//! How far a check is: a bar on a terminal, lines elsewhere if they are asked for.

use crate::cli::args::ProgressWhen;
use crate::cli::output;
use cobalt_store::{Progress, ProgressFn};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::cell::Cell;
use std::io::IsTerminal;
use std::rc::Rc;

/// Part of the whole between two lines, in percent.
const LINE_PERCENT: u64 = 10;

/// What a person sees of one check.
pub(super) struct Bar(Option<ProgressBar>);

/// A bar, lines, or nothing; and what the check tells it by.
pub(super) fn of(name: &str, when: ProgressWhen) -> (Bar, Option<ProgressFn>) {
    let terminal = std::io::stderr().is_terminal();
    match when {
        ProgressWhen::Never => (Bar(None), None),
        ProgressWhen::Auto if !terminal => (Bar(None), None),
        _ if terminal => {
            let style =
                "{prefix} {bar:32} {percent:>3} %  {binary_bytes} of {binary_total_bytes}, {msg}, {eta} left";
            let style = ProgressStyle::with_template(style)
                .expect("the template is fixed and parses: a test draws it");
            let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr()).with_style(style);
            bar.set_prefix(name.to_owned());
            let tell = bar.clone();
            let told = ProgressFn(Rc::new(move |now: Progress| {
                if tell.length() != Some(now.total) {
                    tell.set_length(now.total);
                }
                if tell.message() != now.what {
                    tell.set_message(now.what);
                }
                tell.set_position(now.done);
            }));
            (Bar(Some(bar)), Some(told))
        }
        _ => {
            let (name, last) = (name.to_owned(), Cell::new(None));
            let told = ProgressFn(Rc::new(move |now: Progress| {
                let step = now.done * 100 / now.total.max(1) / LINE_PERCENT;
                if last.get() != Some((now.what, step)) {
                    last.set(Some((now.what, step)));
                    eprintln!(
                        "{name}: {}: {} of {}",
                        now.what,
                        output::size(now.done),
                        output::size(now.total)
                    );
                }
            }));
            (Bar(None), Some(told))
        }
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_template_parses() {
        let style =
            "{prefix} {bar:32} {percent:>3} %  {binary_bytes} of {binary_total_bytes}, {msg}, {eta} left";
        assert!(indicatif::ProgressStyle::with_template(style).is_ok());
    }
}
