//! The benches' own arguments, beside criterion's.

use regex::Regex;
use std::path::PathBuf;

/// `--table [--json FOLDER] [FILTER]`.
#[derive(Debug, Clone, Default)]
pub struct Arguments {
    /// Each benchmark timed briefly, without criterion; a line each.
    pub table: bool,
    /// Where the JSON goes.
    pub json: Option<PathBuf>,
    /// Which benchmarks run, by `group/name`.
    pub filter: Option<Regex>,
}

impl Arguments {
    /// Reads what stands behind the program's name. Without `--table` all is left to criterion.
    pub fn parse(arguments: impl IntoIterator<Item = String>) -> Result<Self, String> {
        let mut given = arguments.into_iter().collect::<Vec<_>>().into_iter();
        let mut parsed = Self::default();
        if !given.as_slice().iter().any(|argument| argument == "--table") {
            return Ok(parsed);
        }
        while let Some(argument) = given.next() {
            match argument.as_str() {
                "--table" => parsed.table = true,
                // Cargo's.
                "--bench" => {}
                "--json" => {
                    let folder = given.next().ok_or("--json needs a folder")?;
                    parsed.json = Some(folder.into());
                }
                option if option.starts_with('-') => {
                    return Err(format!("{option}: with --table only --json FOLDER and a filter are known"));
                }
                filter => {
                    parsed.filter = Some(Regex::new(filter).map_err(|error| error.to_string())?);
                }
            }
        }
        Ok(parsed)
    }

    /// Whether the filter leaves a benchmark out.
    pub fn leave_out(&self, group: &str, name: &str) -> bool {
        self.filter.as_ref().is_some_and(|filter| !filter.is_match(&format!("{group}/{name}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Arguments, String> {
        Arguments::parse(line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn what_is_given_arrives() {
        let arguments = parse("--bench --table --json out W4A8.*16$").unwrap();
        assert!(arguments.table);
        assert_eq!(arguments.json.as_deref(), Some(std::path::Path::new("out")));
        let left_out = ["M = 16", "M = 1"].map(|name| arguments.leave_out("W4A8", name));
        assert_eq!(left_out, [false, true]);
    }

    #[test]
    fn what_is_criterions_is_left_to_it() {
        assert!(!parse("--bench --sample-size 20 filter").unwrap().table);
    }

    #[test]
    fn what_is_wrong_is_said() {
        assert_eq!(parse("--table --json").unwrap_err(), "--json needs a folder");
        assert!(parse("--table --quick").unwrap_err().starts_with("--quick: "));
        assert!(parse("--table (").is_err());
    }
}
