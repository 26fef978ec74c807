//! The formula on the CPU: f32 factors, f64 sums.

use crate::Attention;
use crate::attention::CHECK;
use device::{BatchView, Element, KvPages, PAGE_SIZE, Result, alibi_bias};
use rayon::prelude::*;
use std::ops::Range;

/// New tokens of a sequence that are computed together, so that a page is widened to f32 once for all of them.
const TOKENS: usize = 16;

impl Attention {
    /// Attention of `queries`, f32 `[tokens, query_heads, head_dim]`, over `pages`, which hold the keys and values of
    /// the new tokens already.
    ///
    /// Writes `output`, f32 `[tokens, query_heads, head_dim]`, and, where wanted, `log_sum_exp`, f32
    /// `[tokens, query_heads]`: the natural logarithm of the sum of `exp(score)` over the visible keys, scores scaled.
    ///
    /// Every row is computed on its own: its bits depend neither on the batch nor on the chunk it comes in, nor on
    /// which pages hold the sequence.
    pub fn reference<T: Element>(
        &self,
        queries: &[f32],
        pages: &KvPages<&[T], &[f32]>,
        batch: &BatchView<&[u32]>,
        output: &mut [f32],
        log_sum_exp: Option<&mut [f32]>,
    ) -> Result<()> {
        let shape = self.shape();
        self.check_layout(pages.layout)?;
        CHECK.len("key_scales", pages.key_scales, shape.kv_heads)?;
        CHECK.len("value_scales", pages.value_scales, shape.kv_heads)?;
        batch.check(CHECK.0, pages.layout.pages(CHECK.0, pages.pool.len())?)?;
        let rows = CHECK.product("queries", &[batch.tokens(), shape.query_heads])?;
        let elements = CHECK.product("queries", &[rows, shape.head_dim])?;
        CHECK.len("queries", queries, elements)?;
        CHECK.len("output", output, elements)?;
        let mut unwanted = Vec::new();
        let log_sum_exp = log_sum_exp.unwrap_or_else(|| {
            unwanted.resize(rows, 0.0);
            &mut unwanted
        });
        CHECK.len("log_sum_exp", log_sum_exp, rows)?;

        let mut tasks = Vec::new();
        let width = shape.group() * shape.head_dim;
        let mut groups =
            queries.chunks(width).zip(output.chunks_mut(width)).zip(log_sum_exp.chunks_mut(shape.group()));
        for sequence in 0..batch.sequences() {
            let context = batch.context_lens[sequence] as usize;
            for first in (batch.first_position(sequence)..context).step_by(TOKENS) {
                let start = tasks.len();
                tasks.extend((0..shape.kv_heads).map(|kv_head| Task { sequence, kv_head, rows: Vec::new() }));
                for position in first..context.min(first + TOKENS) {
                    for (task, ((queries, outputs), log_sum_exps)) in
                        tasks[start..].iter_mut().zip(groups.by_ref())
                    {
                        let heads = queries.chunks(shape.head_dim).zip(outputs.chunks_mut(shape.head_dim));
                        let rows = heads.zip(log_sum_exps).enumerate();
                        task.rows.extend(rows.map(|(head, ((query, output), log_sum_exp))| Row {
                            position,
                            head: task.kv_head * shape.group() + head,
                            query,
                            output,
                            log_sum_exp,
                        }));
                    }
                }
            }
        }
        tasks.into_par_iter().for_each(|task| self.task(pages, batch, task));
        Ok(())
    }

    fn task<T: Element>(&self, pages: &KvPages<&[T], &[f32]>, batch: &BatchView<&[u32]>, mut task: Task<'_>) {
        let head_dim = self.shape().head_dim;
        let mut tile = vec![0.0f32; PAGE_SIZE * head_dim];
        let seen = |row: &Row<'_>| self.visible(row.position);
        let (Some(first), Some(last)) = (task.rows.first(), task.rows.last()) else { return };
        let used = seen(first).start / PAGE_SIZE..last.position / PAGE_SIZE + 1;

        let mut scores: Vec<Vec<f64>> = task.rows.iter().map(|row| vec![0.0; seen(row).len()]).collect();
        for number in used.clone() {
            let (page, _) = batch.place(task.sequence, number * PAGE_SIZE);
            // [head_dim][64 tokens]: the sum over dims then runs over whole columns.
            for (dim, column) in tile.chunks_exact_mut(PAGE_SIZE).enumerate() {
                for (token, key) in column.iter_mut().enumerate() {
                    *key = pages.key(page, task.kv_head, token, dim);
                }
            }
            for (row, scores) in task.rows.iter().zip(&mut scores) {
                let (in_row, in_page) = overlap(seen(row), number);
                for (column, &query) in tile.chunks_exact(PAGE_SIZE).zip(row.query) {
                    for (score, &key) in scores[in_row.clone()].iter_mut().zip(&column[in_page.clone()]) {
                        *score += f64::from(query) * f64::from(key);
                    }
                }
            }
        }
        let mut outputs = vec![vec![0.0f64; head_dim]; task.rows.len()];
        for (row, scores) in task.rows.iter_mut().zip(&mut scores) {
            *row.log_sum_exp = self.softmax(row.head, self.visible(row.position), scores);
        }
        for number in used {
            let (page, _) = batch.place(task.sequence, number * PAGE_SIZE);
            for (token, value) in tile.chunks_exact_mut(head_dim).enumerate() {
                for (dim, value) in value.iter_mut().enumerate() {
                    *value = pages.value(page, task.kv_head, token, dim);
                }
            }
            for ((row, scores), output) in task.rows.iter().zip(&scores).zip(&mut outputs) {
                let (in_row, in_page) = overlap(seen(row), number);
                for (&weight, value) in
                    scores[in_row].iter().zip(tile.chunks_exact(head_dim).skip(in_page.start))
                {
                    for (output, &value) in output.iter_mut().zip(value) {
                        *output += weight * f64::from(value);
                    }
                }
            }
        }
        for (row, sums) in task.rows.iter_mut().zip(outputs) {
            for (output, sum) in row.output.iter_mut().zip(sums) {
                *output = sum as f32;
            }
        }
    }

    /// Replaces the products of a query with the keys at `positions` by their softmax; gives the log-sum-exp.
    fn softmax(&self, head: usize, positions: Range<usize>, scores: &mut [f64]) -> f32 {
        if let Some(slopes) = self.alibi_slopes() {
            for (score, position) in scores.iter_mut().zip(positions) {
                *score += f64::from(alibi_bias(slopes[head], position as u32));
            }
        }
        let scale = f64::from(self.scale());
        scores.iter_mut().for_each(|score| *score *= scale);
        let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        scores.iter_mut().for_each(|score| *score = (*score - max).exp());
        let sum: f64 = scores.iter().sum();
        scores.iter_mut().for_each(|score| *score /= sum);
        (max + sum.ln()) as f32
    }
}

/// One query head of one new token.
struct Row<'a> {
    position: usize,
    head: usize,
    query: &'a [f32],
    output: &'a mut [f32],
    log_sum_exp: &'a mut f32,
}

/// The rows of some neighbouring tokens that read one KV head.
struct Task<'a> {
    sequence: usize,
    kv_head: usize,
    rows: Vec<Row<'a>>,
}

/// The part of `positions` that lies in page `number` of the sequence: counted from the start of `positions`, and from the
/// start of the page.
fn overlap(positions: Range<usize>, number: usize) -> (Range<usize>, Range<usize>) {
    let page = number * PAGE_SIZE;
    let (start, end) = (positions.start.max(page), positions.end.min(page + PAGE_SIZE));
    if start < end {
        (start - positions.start..end - positions.start, start - page..end - page)
    } else {
        (0..0, 0..0)
    }
}
