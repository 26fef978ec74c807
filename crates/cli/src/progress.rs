//! Progress, for people who watch.

use indicatif::{ProgressBar, ProgressStyle};

/// A bar on standard error; hidden where that is no terminal.
pub fn progress_bar(len: u64, what: &'static str, figures: &str) -> ProgressBar {
    let template = format!("{{prefix}} {{wide_bar}} {figures} {{eta}}");
    let style = ProgressStyle::with_template(&template).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(len).with_style(style).with_prefix(what)
}
