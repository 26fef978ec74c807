//! What a run found: a table for people, JSON for programs.

use crate::Work;
use device::Card;
use serde_json::{Value, json};
use std::io;
use std::path::Path;

/// One benchmark's outcome.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// What was run.
    pub group: String,
    /// On what.
    pub name: String,
    /// The same for programs: an object of sizes.
    pub shape: Value,
    /// Of one launch.
    pub work: Work,
    /// Of one launch: the median.
    pub seconds: f64,
    /// MHz of the multiprocessors and watts of the card, of long runs where NVML tells them.
    pub clock_and_power: Option<(f64, f64)>,
}

/// The rows of one bench binary, with what the card did at best in the same run.
#[derive(Debug, Clone, PartialEq)]
pub struct Report {
    /// The bench's name.
    pub bench: &'static str,
    /// What floors are computed from.
    pub card: Card,
    /// What was measured in this run.
    pub ceilings: Card,
    /// The driver's version, where NVML tells it.
    pub driver: Option<String>,
    /// In the order of the run.
    pub rows: Vec<Row>,
}

impl Report {
    /// One line on the card and what it does in this run.
    pub fn card_line(&self) -> String {
        let Card { name, read, copy, fp8, bf16, .. } = self.ceilings;
        format!(
            "{name}, driver {}: reads {:.0} GB/s, copies {:.0} GB/s, cuBLASLt FP8 {:.0} and bf16 {:.0} TFLOP/s \
             (bursts at 8192 tokens)",
            self.driver.as_deref().unwrap_or("unknown"),
            read * 1e-9,
            copy * 1e-9,
            fp8 * 1e-12,
            bf16 * 1e-12
        )
    }

    /// The table's head; `long` where rows have a clock and a power.
    pub fn table_head(long: bool) -> &'static str {
        match long {
            false => {
                "| | shape | us | rate | x floor | x ceiling of this run |\n|---|---|---:|---:|---:|---:|"
            }
            true => {
                "| | shape | us | rate | x floor | x ceiling of this run | SM MHz | W |\n\
                 |---|---|---:|---:|---:|---:|---:|---:|"
            }
        }
    }

    /// A row of the table.
    pub fn table_row(&self, row: &Row) -> String {
        let rate = match row.work.is_bound_by_memory(&self.card) {
            true => format!("{:.0} GB/s", row.work.bytes / row.seconds * 1e-9),
            false => format!("{:.0} TFLOP/s", row.work.operations / row.seconds * 1e-12),
        };
        let [floor, ceiling] = [self.card, self.ceilings].map(|card| row.seconds / row.work.seconds(&card));
        let (group, name, us) = (&row.group, &row.name, row.seconds * 1e6);
        let long = row.clock_and_power.map(|(clock, power)| format!(" {clock:.0} | {power:.0} |"));
        format!(
            "| {group} | {name} | {us:.1} | {rate} | {floor:.2} | {ceiling:.2} |{}",
            long.unwrap_or_default()
        )
    }

    /// The whole table.
    pub fn table(&self) -> String {
        let long = self.rows.iter().any(|row| row.clock_and_power.is_some());
        let rows: Vec<String> = self.rows.iter().map(|row| self.table_row(row)).collect();
        format!("{}\n{}", Self::table_head(long), rows.join("\n"))
    }

    /// Seconds, bytes, bytes and operations a second.
    pub fn json(&self) -> Value {
        let row = |row: &Row| {
            json!({
                "group": row.group,
                "name": row.name,
                "shape": row.shape,
                "seconds": row.seconds,
                "bytes": row.work.bytes,
                "operations": row.work.operations,
                "floor_seconds": row.work.seconds(&self.card),
                "ceiling_seconds": row.work.seconds(&self.ceilings),
                "sm_mhz": row.clock_and_power.map(|pair| pair.0),
                "watts": row.clock_and_power.map(|pair| pair.1),
            })
        };
        let Card { read, copy, fp8, bf16, .. } = self.ceilings;
        json!({
            "bench": self.bench,
            "card": self.card.name,
            "driver": self.driver,
            "ceilings": { "read": read, "copy": copy, "fp8": fp8, "bf16": bf16 },
            "rows": self.rows.iter().map(row).collect::<Vec<_>>(),
        })
    }

    /// Writes the JSON to `folder`, as the bench's name with `.json`.
    pub fn write_json(&self, folder: &Path) -> io::Result<()> {
        std::fs::create_dir_all(folder)?;
        std::fs::write(folder.join(self.bench).with_extension("json"), format!("{:#}\n", self.json()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let card = Card { name: "a card", read: 4e12, copy: 2e12, fp8: 1e15, bf16: 0.5e15, l2: 1 << 20 };
        let row = |work, clock_and_power| Row {
            group: "W4A8".to_owned(),
            name: "64 x 64, M = 1".to_owned(),
            shape: json!({ "tokens": 1 }),
            work,
            seconds: 5e-6,
            clock_and_power,
        };
        let rows = vec![
            row(Work::read(4_000_000), None),
            row(Work::read(4_000_000).fp8(4e9), Some((1380.4, 699.6))),
        ];
        Report { bench: "awq_gemm", card, ceilings: Card { read: 2e12, ..card }, driver: None, rows }
    }

    #[test]
    fn rows_show_the_rate_that_is_bound_and_both_ratios() {
        assert_eq!(
            report().table().lines().skip(2).collect::<Vec<_>>(),
            [
                "| W4A8 | 64 x 64, M = 1 | 5.0 | 800 GB/s | 5.00 | 2.50 |",
                "| W4A8 | 64 x 64, M = 1 | 5.0 | 800 TFLOP/s | 1.25 | 1.25 | 1380 | 700 |",
            ]
        );
    }

    #[test]
    fn json_has_what_the_table_has() {
        let json = report().json();
        assert_eq!(json["ceilings"]["read"], 2e12);
        assert_eq!(json["rows"][1]["floor_seconds"], 4e-6);
        assert_eq!(json["rows"][0]["ceiling_seconds"], 2e-6);
        assert_eq!(json["rows"][1]["watts"], 699.6);
        assert!(json["rows"][0]["watts"].is_null());
    }
}
