//! One decode step of the embedded models on the CPU, in tokens a second.
#![allow(clippy::expect_used, missing_docs, reason = "a benchmark that cannot run ends")]

use benches::{Decode, embedded};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use models::{Cpu, KvDtype};

fn decode(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("decode step, CPU");
    for name in ["tiny-llama", "tiny-falcon"] {
        for (sequences, context_len) in [(1, 128), (1, 512), (16, 128)] {
            let checkpoint = embedded(name).expect("the embedded models lie in crates/cli/models");
            let mut decode = Decode::new(&checkpoint, Cpu::default(), KvDtype::F32, sequences, context_len)
                .expect("an embedded model loads");
            group.throughput(Throughput::Elements(sequences as u64));
            let id = BenchmarkId::new(name, format!("batch {sequences}, context {context_len}"));
            group.bench_function(id, |bencher| bencher.iter(|| decode.step().expect("a step runs")));
        }
    }
    group.finish();
}

criterion_group!(benches, decode);
criterion_main!(benches);
